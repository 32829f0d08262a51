"""``wait_for`` with real sockets: what a server says, and ports that are drained."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from operations import OperationError, wait_for


class Context:
    """As the agent's."""

    check = diff = False

    def stopping(self) -> bool:
        """Never."""
        return False


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    # Below the range that connections of other tests take their ports from, for "drained" sees those of all
    # addresses; and not the port of the test before, which has connections in TIME_WAIT.
    for port in random.sample(range(30000, 32000), 2000):
        try:
            server = socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
        with server:
            yield server
        return


def port_of(server: socket.socket) -> int:
    port: int = server.getsockname()[1]
    return port


def test_what_a_server_says(listener: socket.socket) -> None:
    def greet() -> None:
        channel, _ = listener.accept()
        with channel:
            channel.sendall(b"SSH-2.0-Open")
            time.sleep(0.05)
            channel.sendall(b"SSH_9.9\r\n")

    thread = threading.Thread(target=greet)
    thread.start()
    result = wait_for.run({"port": port_of(listener), "search_regex": r"OpenSSH_(\S+)", "timeout": 5}, Context())
    thread.join()
    assert result["match_groups"] == ["9.9"]


def test_a_server_that_says_nothing(listener: socket.socket) -> None:
    began = time.monotonic()
    with pytest.raises(OperationError, match="matches 'x'"):
        wait_for.run({"port": port_of(listener), "search_regex": "x", "timeout": 0.3}, Context())
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_drained(listener: socket.socket, host: str) -> None:
    args = {"port": port_of(listener), "host": host, "state": "drained", "timeout": 0.2, "sleep": 0.1}
    assert wait_for.run(args, Context())["changed"] is False
    with socket.create_connection(listener.getsockname()), listener.accept()[0]:
        with pytest.raises(OperationError, match="no active connection"):
            wait_for.run(args, Context())
        assert wait_for.run({**args, "exclude_hosts": ["127.0.0.1"]}, Context())["changed"] is False
        assert wait_for.run({**args, "active_connection_states": ["SYN_SENT"]}, Context())["changed"] is False


@pytest.mark.parametrize(
    ("words", "raw"),
    [
        ("0100007F", bytes([127, 0, 0, 1])),
        ("0000000000000000FFFF00000100007F", b"\0" * 10 + b"\xff\xff\x7f\0\0\x01"),
    ],
)
def test_addresses_of_the_kernels_table(words: str, raw: bytes) -> None:
    assert wait_for._raw(words) == raw
