"""Does the probe tell a server that mixes up connections from one that does not?"""

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import stress_probe
from stress_message import DEFAULT, compile_message

CLIENT = Path(__file__).parents[2] / "payload" / "stress_client.py"
RENDER = compile_message(DEFAULT).render


def echo_apart(links, shared):
    for link in links:
        link.sendall(link.recv(4096))


def echo_mixed(links, shared):
    """As a server with one buffer does: reads all that are readable, answers all with the last."""
    for link in links:
        shared[:] = link.recv(4096)
    for link in links:
        with contextlib.suppress(ConnectionResetError):  # the probe has seen enough
            link.sendall(bytes(shared))


def silent(links, shared):
    for link in links:
        link.recv(4096)


def hang_up(links, shared):
    for link in links:
        link.close()


class Server(threading.Thread):
    """Hands all readable connections to `answer` at once."""

    def __init__(self, answer):
        super().__init__(daemon=True)
        self.answer, self.stop, self.shared = answer, False, bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.target = self.listener.getsockname()
        self.closed = 0

    def run(self):
        with selectors.DefaultSelector() as selector, self.listener:
            selector.register(self.listener, selectors.EVENT_READ)
            while not self.stop:
                links = []
                for key, _ in selector.select(0.05):
                    link = key.fileobj
                    if link is self.listener:
                        accepted = link.accept()[0]
                        selector.register(accepted, selectors.EVENT_READ)
                        continue
                    try:
                        alive = link.recv(1, socket.MSG_PEEK)
                    except ConnectionResetError:
                        alive = b""
                    if alive:
                        links.append(link)
                    else:
                        selector.unregister(link)
                        link.close()
                        self.closed += 1
                self.answer(links, self.shared)
                for link in links:
                    if link.fileno() < 0:
                        selector.unregister(link)
            for key in list(selector.get_map().values()):
                if key.fileobj is not self.listener:
                    key.fileobj.close()


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(Server(answer))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop = True
        server.join()


def look(target):
    sources = [("127.0.0.1", port) for port in range(20100, 20100 + stress_probe.CONNECTIONS)]
    return stress_probe.probe(socket.AF_INET, target, sources, RENDER, 500)


def test_a_server_that_keeps_them_apart(serve):
    assert look(serve(echo_apart).target) == stress_probe.APART


def test_a_server_that_mixes_them_up(serve):
    found = look(serve(echo_mixed).target)
    assert found.mixed
    assert "X-Tcpfleet: 50" in found.sample and "which connection 50" in found.sample


@pytest.mark.parametrize("answer", [silent, hang_up])
def test_silence_and_closing_are_no_finding(serve, answer, monkeypatch):
    monkeypatch.setattr(stress_probe, "SECONDS", 0.2)
    assert look(serve(answer).target) == stress_probe.APART


def test_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = listener.getsockname()
    assert look(target) == stress_probe.APART


def test_a_server_that_mixes_them_up_is_loaded_one_at_a_time_and_the_result_says_so(serve):
    command = [sys.executable, str(CLIENT), *map(str, serve(echo_mixed).target), "--hold", "0", "--json"]
    command += ["--connections", str(stress_probe.FROM), "--ports", "30000-31999"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    result = json.loads(done.stdout)
    assert (done.returncode, result["verdict"]) == (0, "pass")
    assert "mixes up messages" in result["warnings"][0]
