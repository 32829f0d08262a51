"""echo_turn: what one turn of the loop does with connections in every state, on real sockets."""

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from echo_connection import Busy
from echo_turn import READ_SIZE, echo_turn

Peer = tuple[socket.socket, socket.socket]


class Connections:
    """As much of echo_connections.Connections as a turn asks for; it writes down what it is told."""

    def __init__(self) -> None:
        self.slot = 0
        self.special: set[int] = set()
        self.columns: dict[str, Any] = {n: memoryview(bytearray(8)).cast("Q") for n in ("echoes", "bytes")}
        self.read = os.read
        self.tight = False
        self.careful: list[int] = []
        self.closed: dict[int, int] = {}
        self.kept: dict[int, Busy] = {}
        self.attended: list[tuple[int, int]] = []

    def is_tight(self) -> bool:
        return self.tight

    def careful_read(self, fd: int, size: int) -> bytes:
        self.careful.append(fd)
        return os.read(fd, 4)

    def attend(self, fd: int, event: int) -> None:
        self.attended.append((fd, event))

    def close(self, fd: int, error: OSError | None = None) -> None:
        self.closed[fd] = (error.errno or 0) if error else 0

    def keep(self, fd: int, busy: Busy) -> None:
        self.kept[fd] = busy
        self.tight = True

    def turn(self, *fds: int) -> tuple[int, int]:
        """Serve these descriptors; return (echoes, bytes)."""
        echo_turn(self)([(fd, 1) for fd in fds])  # type: ignore[arg-type]
        return self.columns["echoes"][0], self.columns["bytes"][0]


@pytest.fixture
def pairs() -> Iterator[list[Peer]]:
    """Eight connections as (the client's end, the server's end)."""
    made = [socket.socketpair() for _ in range(8)]
    for client, served in made:
        client.settimeout(5)
        served.setblocking(False)
    yield made
    for pair in made:
        for one in pair:
            one.close()


def fds(pairs: list[Peer]) -> list[int]:
    return [served.fileno() for _, served in pairs]


def test_each_gets_its_own_bytes_back(pairs: list[Peer]) -> None:
    connections = Connections()
    messages = [bytes([n]) * (n * 1000 + 1) for n in range(8)]
    for (client, _), message in zip(pairs, messages, strict=True):
        client.sendall(message)
    assert connections.turn(*fds(pairs)) == (8, sum(map(len, messages)))
    for (client, _), message in zip(pairs, messages, strict=True):
        assert client.recv(READ_SIZE) == message
    assert (connections.closed, connections.kept, connections.attended) == ({}, {}, [])


def test_one_that_fails_holds_up_nobody(pairs: list[Peer]) -> None:
    """Nothing to read, the end, a peer that is gone when it is written to, one that is no plain connection."""
    connections = Connections()
    nothing, ended, gone, special, *fine = pairs
    ended[0].shutdown(socket.SHUT_WR)
    gone[0].sendall(b"last words")
    gone[0].close()
    special[0].sendall(b"not for the turn")
    connections.special.add(special[1].fileno())
    for client, _ in fine:
        client.sendall(b"hello")
    order = [fine[0], nothing, ended, fine[1], gone, special, *fine[2:]]
    assert connections.turn(*fds(order)) == (4, 20)
    assert [client.recv(100) for client, _ in fine] == [b"hello"] * 4
    assert connections.closed == {ended[1].fileno(): 0, gone[1].fileno(): errno.EPIPE}
    assert connections.attended == [(special[1].fileno(), 1)]
    assert special[1].recv(100) == b"not for the turn" and not connections.kept


def test_what_a_slow_reader_does_not_take_is_kept_and_the_next_are_read_with_care(pairs: list[Peer]) -> None:
    connections = Connections()
    slow, *fine = pairs
    with pytest.raises(BlockingIOError):
        while True:
            slow[1].send(b"x" * READ_SIZE)
    slow[0].sendall(b"y" * 1000)
    for client, _ in fine:
        client.sendall(b"hello")
    connections.turn(*fds(pairs))
    assert {fd: busy.unsent for fd, busy in connections.kept.items()} == {slow[1].fileno(): b"y" * 1000}
    connections.careful.clear()
    fine[0][0].sendall(b"more")
    connections.turn(fine[0][1].fileno())
    assert connections.careful == [fine[0][1].fileno()]


def test_a_reset_is_an_error_of_its_own_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    connections = Connections()
    assert connections.turn(served.fileno()) == (0, 0)
    assert connections.closed == {served.fileno(): errno.ECONNRESET}
    served.close()
