"""Headless Chromium over --remote-debugging-pipe (messages on descriptors 3 and 4, each ended by a NUL).

Standard library only, no port is opened. Enough of the DevTools protocol to load a page and ask it things.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)


class Chromium:
    """A browser with one page; use as a context manager."""

    def __init__(self, program):
        self.profile = tempfile.mkdtemp(prefix="tcpfleet-chromium-")
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        # 3 and 4 become the browser's ends, so the ends themselves must be neither
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (to_browser, from_browser)]
        actions = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)]
        argv = [program, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        self._child = os.posix_spawn(program, argv, os.environ, file_actions=actions, setpgroup=0)
        for fd in (to_browser, from_browser, *high):
            os.close(fd)
        self._number, self._rest, self.events = 0, b"", []
        self._session = None
        pages = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        target = pages[0]["targetId"] if pages else self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._out)
        os.close(self._in)
        deadline = time.monotonic() + 5
        while os.waitpid(self._child, os.WNOHANG)[0] == 0:  # the browser ends with its pipe
            if time.monotonic() > deadline:
                os.killpg(self._child, signal.SIGKILL)
            time.sleep(0.02)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **params):
        """One command's result; events that come meanwhile are kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message(30)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _message(self, timeout):
        deadline = time.monotonic() + timeout
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._in], [], [], left)[0], "the browser fell silent"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def load(self, url, width=1200, height=900, dark=False, offline=True):
        """Shows a page in that size and colour scheme, and waits until it is loaded."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        network = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Network.emulateNetworkConditions", **network)
        self.events.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 30
        while not any(one.get("method") == "Page.loadEventFired" for one in self.events):
            self.events.append(self._message(max(0.1, deadline - time.monotonic())))

    def ask(self, expression):
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def requests(self):
        """URLs asked for since `load`."""
        sent = (one for one in self.events if one.get("method") == "Network.requestWillBeSent")
        return [one["params"]["request"]["url"] for one in sent]

    def problems(self):
        """Failed requests, console messages and exceptions since `load`."""
        names = ("Network.loadingFailed", "Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [one for one in self.events if one.get("method") in names]

    def screenshot(self, path, full=True):
        """Saves a PNG of the page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=full)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
