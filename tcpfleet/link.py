"""One host, one channel, one agent.

In: a `Host` and the inventory's `Connection` for it. Out: a `Session`, whose `call` runs one operation
of payload/operations on the host and returns its result. An SSH session and a process on this machine look
the same from above.

The host's Python is started once with a stub on its command line (payload/stub.py) and fetches the payload
archive only when it has no copy; after that the channel carries frames (payload/wire.py). Nothing bulky ever
goes through Fabric's `run`, whose output capture is quadratic (invoke issue 1079).
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import json
import os
import secrets
import selectors
import shlex
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from payload import wire
from tcpfleet.answers import HELLO, PROGRESS, misfit, wrong_result
from tcpfleet.errors import HostFailed, Unreachable
from tcpfleet.route import Route, connect, os_reason
from tcpfleet.secret import Secret

if TYPE_CHECKING:
    from tcpfleet.inventory import Connection, Host
    from tcpfleet.keys import Keyring

PAYLOAD = Path(__file__).resolve().parent.parent / "payload"
DEFAULT_PYTHON = "/usr/bin/python3"  # a version manager's shim costs 60 ms more per start
CONNECT_TIMEOUT = 10.0  # seconds
IDLE_TIMEOUT = 30.0  # seconds without a beat after which a host is unreachable
UPLOAD_TIMEOUT = 60.0  # seconds for the payload archive, some hundred kilobytes
TRICKLE = 16 * 1024  # bytes in IDLE_TIMEOUT that are a sign of life too: a large frame on a slow line
MOST_MESSAGES = 2000  # per second, over ten of them: an agent tells of its progress a few times in one
BEAT = 2.0  # seconds
SSH_PIECE = 256 * 1024  # bytes handed to Paramiko at a time: it cuts packets itself, this bounds the copies
MAX_NOISE = 64 * 1024  # bytes a login shell may print before the agent's token


class Become(NamedTuple):
    """An identity to run an operation as."""

    user: str = "root"
    method: str = "sudo"
    password: Secret | None = None
    exe: str = "sudo"


class Step(NamedTuple):
    """One operation among those that are sent together.

    :ivar task: steps of one task share a number; when a step fails, later tasks of the message are not run ...
    :ivar go_on: ... unless it may fail.
    :ivar notify: ``{"play", "names"}``: handlers that are owed once this step has changed something.
    :ivar journal: ``{"run", "command", "user"}``: what the step changes is journalled on the host under this run.
    :ivar hidden: the journal shows no contents of it (no_log).
    """

    op: str
    args: dict[str, Any]
    check: bool = False
    diff: bool = False
    become: Become | None = None
    task: int = 0
    go_on: bool = False
    notify: dict[str, Any] | None = None
    journal: Mapping[str, str] | None = None
    hidden: bool = False

    def message(self) -> dict[str, Any]:
        """The step as the agent gets it; see payload/agent.py."""
        told = self._asdict()
        if self.become is not None:
            password = self.become.password
            told["become"] = {
                "user": self.become.user,
                "exe": self.become.exe,
                "password": None if password is None else password.reveal(),
            }
        return {name: value for name, value in told.items() if value not in (None, False)}

    def __repr__(self) -> str:  # arguments may hold secrets
        return f"Step(op={self.op!r}, task={self.task})"


# ---------------------------------------------------------------- the archive


_archive_lock = threading.Lock()


def archive() -> tuple[bytes, str]:
    """All of payload/ as the stub wants it, and its sha256; the same files always give the same bytes."""
    with _archive_lock:  # else every host's thread would pack it at the same time
        return _packed()


@functools.lru_cache(maxsize=1)
def _packed() -> tuple[bytes, str]:
    sources = {
        path.relative_to(PAYLOAD).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(PAYLOAD.rglob("*.py"))
    }
    # Every command packs it. Level 6 would take 17 ms more for 5% less.
    data = zlib.compress(json.dumps(sources, sort_keys=True).encode(), 4)
    return data, hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=1)
def _stub_code() -> str:
    packed = base64.b64encode(zlib.compress((PAYLOAD / "stub.py").read_bytes(), 9)).decode()
    return f'import zlib,binascii;exec(zlib.decompress(binascii.a2b_base64("{packed}")))'


# ---------------------------------------------------------------- streams


class Stream(Protocol):
    """Bytes to and from an agent; `receive` returns b"" at the end and raises TimeoutError."""

    def send(self, data: bytes, timeout: float) -> None: ...
    def receive(self, timeout: float) -> bytes: ...
    def last_words(self) -> tuple[int | None, str]: ...
    def close(self, patience: float) -> None: ...


class LocalStream:
    """An agent that is a child process of ours, in a session of its own so that Ctrl-C does not reach it."""

    def __init__(self, argv: list[str]) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out, self._err = self._process.stdin, self._process.stdout, self._process.stderr
        self._said = b""
        os.set_blocking(self._in.fileno(), False)
        self._watch = selectors.DefaultSelector()
        self._watch.register(self._out, selectors.EVENT_READ)
        self._watch.register(self._err, selectors.EVENT_READ)

    def send(self, data: bytes, timeout: float) -> None:
        left, deadline = memoryview(data), time.monotonic() + timeout
        while left:
            try:
                left = left[os.write(self._in.fileno(), left) :]
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(0.002)

    def receive(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while True:
            ready = [key.fileobj for key, _ in self._watch.select(max(0.0, deadline - time.monotonic()))]
            if self._out in ready:
                return os.read(self._out.fileno(), 1 << 20)
            if self._err in ready:
                said = os.read(self._err.fileno(), 65536)
                self._said = (self._said + said)[-4096:]
                if not said:
                    self._watch.unregister(self._err)
            elif time.monotonic() >= deadline:
                raise TimeoutError

    def last_words(self) -> tuple[int | None, str]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, rest = self._process.communicate(timeout=2)
            self._said += rest or b""
        return self._process.returncode, self._said.decode(errors="replace").strip()

    def close(self, patience: float) -> None:
        self._watch.close()
        self._in.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._err.close()


class SshStream:
    """An agent behind one SSH channel."""

    def __init__(self, route: Route, command: str, timeout: float) -> None:
        self._route = route
        self._said = b""
        assert route.transport is not None
        # Paramiko's own default would wait an hour (fabric issue 1384).
        self._channel = route.transport.open_session(timeout=timeout)
        self._channel.settimeout(timeout)
        self._channel.exec_command(command)

    def send(self, data: bytes, timeout: float) -> None:
        sent, deadline = 0, time.monotonic() + timeout
        while sent < len(data):
            try:
                sent += self._channel.send(data[sent : sent + SSH_PIECE])
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None

    def receive(self, timeout: float) -> bytes:
        self._channel.settimeout(timeout)
        try:
            return self._channel.recv(1 << 20)
        except TimeoutError:
            raise TimeoutError from None
        finally:
            self._read_stderr()

    def _read_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            self._said = (self._said + self._channel.recv_stderr(65536))[-4096:]

    def last_words(self) -> tuple[int | None, str]:
        code = self._channel.recv_exit_status() if self._channel.status_event.wait(2) else None
        self._read_stderr()
        return code, self._said.decode(errors="replace").strip()

    def close(self, patience: float) -> None:
        self._channel.close()
        self._route.close()


# ---------------------------------------------------------------- sessions


class Session:
    """An open agent on one host. One thread at a time calls; `beat` may come from another.

    :ivar host: the inventory's host.
    :ivar become: who to be for what needs rights; set by the fleet from the inventory.
    :ivar hello: what the agent said of itself: pid, uid, python, executable, boot_id,
        nofile (soft and hard limit of open files of this login), uncached (why its archive could
        not be kept there, or None).
    """

    def __init__(self, host: Host, stream: Stream, hello: dict[str, Any], decoder: wire.Decoder) -> None:
        self.host, self.hello = host, hello
        self._stream, self._decoder = stream, decoder
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()
        self._calling = threading.Lock()  # a stop after Ctrl-C waits here for the call it interrupts
        self.become: Become | None = None  # the identity that the inventory asks for on this host
        self.idle_timeout = IDLE_TIMEOUT
        self.gone: str | None = None

    def call(
        self,
        op: str,
        args: dict[str, Any],
        *,
        check: bool = False,
        diff: bool = False,
        become: Become | None = None,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Run one operation and wait for its result.

        :param timeout: seconds for the operation as a whole; None as long as the host keeps beating.
        :returns: the operation's result; a failed one has ``failed: True`` and ``msg``.
        :raises Unreachable: the host is gone, silent, or speaks nonsense.
        """
        results: list[dict[str, Any]] = []
        self.run(
            [Step(op, args, check, diff, become)],
            lambda _, result: results.append(result),
            on_progress=on_progress,
            timeout=timeout,
        )
        return results[0]

    def run(
        self,
        steps: Sequence[Step],
        on_result: Callable[[int, dict[str, Any]], None],
        *,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Send steps in one message and wait until the agent is done with them.

        :param on_result: called with a step's index and result, in order, as results come. Steps of tasks after
            one that failed are not run and have no result.
        :param timeout: seconds for all of it; None as long as the host keeps beating.
        :raises Unreachable: the host is gone, silent, or speaks nonsense.
        """
        with self._calling:
            number = next(self._numbers)
            self._send(wire.pack({"type": "run", "id": number, "steps": [step.message() for step in steps]}))
            deadline = None if timeout is None else time.monotonic() + timeout
            heard, done = time.monotonic(), 0
            failed_in: int | None = None
            begun, arrived, messages = heard, 0, 0
            while True:
                now = time.monotonic()
                doing = steps[min(done, len(steps) - 1)].op
                if deadline is not None and now > deadline:
                    raise self._lost(f"{doing} took longer than {timeout:g} s")
                if now - heard > self.idle_timeout:
                    raise self._lost(f"no sign of life for {self.idle_timeout:g} s")
                try:
                    data = self._stream.receive(0.5)
                except TimeoutError:
                    continue
                except OSError as error:
                    raise self._lost(os_reason(error)) from None
                if not data:
                    _code, said = self._stream.last_words()
                    raise self._lost(f"the agent ended during {doing}" + (f": {_in_short(said)}" if said else ""))
                answers = self._decode(data)
                arrived += len(data)
                if answers or arrived >= TRICKLE:
                    heard, arrived = time.monotonic(), 0
                messages += len(answers)
                if messages > MOST_MESSAGES * max(10.0, heard - begun) + len(steps):
                    raise self._lost("it floods us with messages")
                for answer in answers:
                    kind, about = answer["type"], answer.get("id", number)
                    if about > number or kind == "hello":
                        raise self._lost(f"the agent's {kind} is not one that was asked for")
                    if about < number:
                        continue  # of a call that ended here before it did there
                    if kind == "progress" and on_progress is not None:
                        op = steps[min(done, len(steps) - 1)].op
                        self._check(op, misfit(PROGRESS.get(op, {}), answer["data"]))
                        on_progress(answer["data"])
                    elif kind == "result":
                        if answer["step"] != done or done >= len(steps):
                            raise self._lost("the agent's result is not one that was asked for")
                        step, result = steps[done], answer["result"]
                        self._check(step.op, wrong_result(step.op, step.args, result))
                        if result.get("failed") and not step.go_on:
                            failed_in = step.task
                        done += 1
                        on_result(done - 1, result)
                    elif kind == "end":
                        if done < len(steps) and (failed_in is None or steps[done].task == failed_in):
                            raise self._lost(f"the agent did not run {steps[done].op}")
                        return

    def _check(self, op: str, wrong: str | None) -> None:
        """:raises Unreachable: `wrong` says what is wrong with an answer; whoever talks nonsense is lost."""
        if wrong is not None:
            raise self._lost(f"the agent speaks nonsense: answer to {op}: {wrong}")

    def _decode(self, data: bytes) -> list[dict[str, Any]]:
        try:
            return self._decoder.feed(data)
        except wire.ProtocolError as error:
            raise self._lost(f"the agent speaks nonsense: {error}") from None

    def beat(self) -> None:
        """Tell the agent that its controller is alive; a failure is noticed by the next call."""
        with contextlib.suppress(Unreachable):
            self._send(wire.pack({"type": "beat"}))

    def _send(self, frame: bytes) -> None:
        if self.gone:
            raise Unreachable(self.gone)
        with self._sending:
            try:
                self._stream.send(frame, self.idle_timeout)
            except TimeoutError:
                raise self._lost(f"nothing could be sent for {self.idle_timeout:g} s") from None
            except OSError as error:
                raise self._lost(os_reason(error)) from None

    def _lost(self, why: str) -> Unreachable:
        self.gone = f"connection lost: {why}"
        return Unreachable(self.gone)

    def close(self) -> None:
        """End the agent and the connection; never raises."""
        with contextlib.suppress(OSError, EOFError):
            self._stream.close(15.0)  # an agent ends its children first


def nobody_to_ask(question: str) -> Secret:
    """Answers no question."""
    raise EOFError(question)


def open_session(
    host: Host,
    how: Connection,
    *,
    connect_timeout: float = CONNECT_TIMEOUT,
    keys: Keyring | None = None,
    ask: Callable[[str], Secret] = nobody_to_ask,
) -> Session:
    """Connect to a host and start its agent.

    :param how: `Inventory.connection(host)`.
    :param connect_timeout: seconds for the connection, and again for the agent's first word.
    :param keys: the command's unlocked keys.
    :param ask: gets the passphrase of an encrypted key; EOFError where nobody can be asked.
    :raises Unreachable: one sentence on why: no route, refused, login, host key, silence ...
    :raises HostFailed: it was reached, and no agent can run there: no python3, or too old a one.
    """
    local = how.kind == "local"
    python = how.python or (sys.executable if local else DEFAULT_PYTHON)
    route: Route | None = None
    if not local:
        from tcpfleet.keys import Keyring

        route = connect(how, connect_timeout, Keyring() if keys is None else keys, ask)
    # Only now: while the first thread packs it, the hosts are at work on the logins of the others.
    data, digest = archive()
    token = secrets.token_hex(12)
    argv = [python, "-I", "-S", "-c", _stub_code(), token, digest, str(len(data))]
    stream: Stream
    if route is None:
        try:
            stream = LocalStream(argv)
        except OSError as error:
            raise HostFailed(f"cannot start {python}: {error.strerror}") from None
    else:
        try:
            stream = SshStream(route, "exec " + shlex.join(argv), connect_timeout)
        except Exception as error:
            route.close()
            if type(error).__name__ == "ChannelException":
                raise Unreachable("its sshd opens no session (MaxSessions?)") from None
            raise Unreachable(f"no session: {os_reason(error)}") from None
    try:
        return _greet(host, python, stream, token.encode(), data, connect_timeout)
    except BaseException:
        with contextlib.suppress(OSError, EOFError):
            stream.close(0.5)
        raise


@functools.lru_cache(maxsize=8192)  # bounded, since a host chooses what is in there
def _one_of_equals(text: str) -> str:
    return text


def _shared(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of an answer. Hundreds of hosts send the same names and short texts: they are kept once."""
    return {
        _one_of_equals(name): _one_of_equals(value) if type(value) is str and len(value) < 100 else value
        for name, value in pairs
    }


def _greet(host: Host, python: str, stream: Stream, token: bytes, data: bytes, timeout: float) -> Session:
    """Get past a login shell's noise to the agent's hello, sending the archive when it is wanted."""
    deadline = time.monotonic() + timeout
    heard = b""
    decoder = wire.Decoder(wire.FROM_AGENT, _shared)

    def more() -> bytes:
        try:
            if time.monotonic() > deadline:
                raise TimeoutError  # however much it says
            part = stream.receive(max(0.01, deadline - time.monotonic()))
        except TimeoutError:
            raise Unreachable(f"{python} did not start in {timeout:g} s") from None
        except OSError as error:
            raise Unreachable(f"connection lost: {os_reason(error)}") from None
        if not part:
            code, said = stream.last_words()
            # A ForceCommand and nologin say it on stdout; what follows the token is our own.
            noise = heard.partition(b"\n" + token)[0][-300:].decode(errors="replace").strip()
            raise HostFailed(_why_no_agent(python, code, _in_short(said or noise)))
        return part

    def word_after_token() -> tuple[str, bytes]:
        nonlocal heard
        while True:
            _, found, tail = heard.partition(b"\n" + token + b" ")
            if found and b"\n" in tail:
                word, _, rest = tail.partition(b"\n")
                return word.decode(errors="replace"), rest
            if len(heard) > MAX_NOISE:
                raise Unreachable("its login shell prints without end; nothing could be started")
            heard += more()

    word, rest = word_after_token()
    if word == "need":
        try:
            stream.send(data, max(timeout, UPLOAD_TIMEOUT))
        except TimeoutError:
            raise Unreachable(f"the payload could not be sent in {max(timeout, UPLOAD_TIMEOUT):g} s") from None
        except OSError as error:
            raise Unreachable(f"the payload could not be sent: {os_reason(error)}") from None
        deadline = time.monotonic() + max(timeout, UPLOAD_TIMEOUT)
    elif word.startswith("old"):
        raise HostFailed(
            f"{python} is Python {word[4:]}, tcpfleet needs 3.6 or newer there; set ansible_python_interpreter"
        )
    elif word != "have":
        changed = "; its login changes what is sent, as a terminal does" if word.strip() == "have" else ""
        raise Unreachable(f"the agent did not start: {word!r:.200}{changed}")
    session = Session(host, stream, {}, decoder)
    while True:
        if rest.startswith(b"\n" + token + b" corrupt"):
            raise Unreachable("the payload arrived damaged")
        for message in session._decode(rest) if rest else []:
            if message.get("type") == "hello" and message.get("protocol") == wire.VERSION:
                session._check("hello", misfit(HELLO, message))
                session.hello = message
                return session
            raise Unreachable(f"the agent's first message is not a hello of protocol {wire.VERSION}")
        rest = more()


def _why_no_agent(python: str, code: int | None, said: str) -> str:
    if "nknown option: -I" in said:  # before Python 3.4
        return f"{python} is Python 2 or 3.3, tcpfleet needs 3.6 or newer there; set ansible_python_interpreter"
    if code == 127 and (python in said or not said):
        return f"there is no {python} on this host; install python3 or set ansible_python_interpreter"
    if code == 126:
        return f"{python} cannot be run on this host; set ansible_python_interpreter" + (
            f": {said}" if said else ""
        )
    how = "killed" if code is None or code < 0 else f"exit status {code}"  # Paramiko says -1 of a signal
    return f"the agent did not start ({how})" + (f": {said}" if said else "")


def _in_short(said: str) -> str:
    """What an agent left, in a line: of a traceback the last one, which tells what went wrong."""
    lines = said.split("\n")
    return " ".join((lines[-1] if "Traceback (most" in said else said).split())
