"""echo_intake: how a worker takes connections where the kernel refuses it something, on real sockets."""

import errno
import os
import select
import socket
from collections.abc import Iterator

import echo_handover
import pytest
from echo_connection import OPEN, Busy
from echo_connections import Connections
from echo_counters import SLOTS, Counters
from echo_intake import Intake
from echo_plan import WorkerSetup


class Epoll:
    """The kernel's, but that the user's descriptors in epoll (fs.epoll.max_user_watches) can be used up."""

    def __init__(self) -> None:
        self.real, self.is_full = select.epoll(), False

    def register(self, fd: int | socket.socket, events: int) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.real.register(fd, events)

    def unregister(self, fd: int | socket.socket) -> None:
        self.real.unregister(fd)


class Worker:
    """The parts of a worker of slot 0 that take connections."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        handover_in, handover_out = echo_handover.pair()
        self.sender = echo_handover.end(handover_out)
        self.counters = Counters.create(None)
        self.counters.globals[SLOTS] = 1
        self.columns = self.counters.columns
        self.columns["limit"][0], self.columns["pid"][0] = 10, os.getpid()
        setup = WorkerSetup(
            slot=0,
            listener=self.listener.fileno(),
            family=int(socket.AF_INET),
            lifeline=-1,
            ready=-1,
            handover_in=handover_in,
            handover_out=handover_out,
            counters=self.counters.fd,
            log_file=None,
            mode="echo",
            idle_timeout=0.0,
            verbose=False,
            max_buffered=1 << 20,
            program=[],
        )
        self.epoll = Epoll()
        self.connections = Connections(
            setup, self.counters, self.epoll, None, lambda: None, lambda: self.intake.rejoin()
        )
        self.intake = Intake(setup, self.counters, self.epoll, self.connections, lambda: None)
        self.clients: list[socket.socket] = []

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.address, 5)
        self.clients.append(client)
        return client

    def close(self) -> None:
        for fd in self.connections.all():
            os.close(fd)
        for one in (*self.clients, self.sender, self.intake.handover, self.epoll.real):
            one.close()
        self.intake._listener.detach()
        self.listener.close()
        os.close(self.counters.fd)


@pytest.fixture
def worker() -> Iterator[Worker]:
    w = Worker()
    yield w
    w.close()


def test_no_room_in_epoll_costs_one_connection_and_a_pause(
    worker: Worker, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ended the worker, and with it every connection that it held."""
    worker.intake.open()
    worker.connect()
    worker.intake.accept_turn()
    refused = worker.connect()
    worker.epoll.is_full = True
    worker.intake.accept_turn()
    assert refused.recv(1) == b""
    assert (worker.connections.count, worker.intake.listening, worker.columns["full"][0]) == (1, False, 1)
    assert worker.columns["errno_ENOSPC"][0] == 1 and worker.intake.rejoin_at is not None
    assert (
        "accepting pauses for 1 s: no more descriptors in epoll, see fs.epoll.max_user_watches"
        in capfd.readouterr().err
    )
    worker.intake.rejoin()  # no room for the listener either
    assert not worker.intake.listening and worker.intake.rejoin_at is not None
    worker.epoll.is_full = False
    worker.intake.rejoin()
    worker.connect()
    worker.intake.accept_turn()
    assert (worker.connections.count, worker.columns["full"][0]) == (2, 0)


def test_a_listener_that_is_ended_from_outside_is_no_spin(worker: Worker) -> None:
    """accept() failed for ever, and the worker asked it for ever."""
    worker.intake.open()
    worker.listener.shutdown(socket.SHUT_RD)
    worker.intake.accept_turn()
    assert not worker.intake.listening and worker.intake.rejoin_at is not None


def test_a_connection_that_cannot_be_taken_over_costs_no_other(
    worker: Worker, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ended the worker that was to have it."""
    given, kept = socket.socketpair()
    assert echo_handover.send(worker.sender, given.fileno(), None)
    given.close()
    worker.epoll.is_full = True
    worker.intake.receive(5)
    assert kept.recv(1) == b"" and worker.connections.count == 0
    assert (worker.columns["errors"][0], worker.columns["errno_ENOSPC"][0]) == (1, 1)
    assert "a connection from another worker is lost" in capfd.readouterr().err
    kept.close()


def test_a_connection_that_owes_nothing_is_idle_where_it_comes_to(worker: Worker) -> None:
    """One that only waited for memory in the worker that left ended the worker that took it, at its next byte."""
    given, kept = socket.socketpair()
    assert echo_handover.send(worker.sender, given.fileno(), Busy(ending=OPEN))
    given.close()
    worker.intake.receive(5)
    assert worker.connections.count == 1 and not worker.connections.special
    kept.close()


def test_a_pause_is_over_after_a_reload(worker: Worker) -> None:
    worker.columns["full"][0] = 1
    worker.intake.open()
    assert worker.intake.listening and worker.columns["full"][0] == 0
