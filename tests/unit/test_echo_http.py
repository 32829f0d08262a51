"""echo_http: what is answered to which bytes, however they are cut; and the mode http on real sockets."""

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from echo_connection import CLOSE, LINGER, OPEN, Busy
from echo_http import BODY, MAX_HEAD, answers

from tests.unit.test_echo_server import OLDEST, Server, both, client_socket, receive, wait_until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"


def post(body: bytes, length: object = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST / HTTP/1.1\r\nContent-Length: %s\r\n\r\n" % str(size).encode() + body


@pytest.mark.parametrize(
    ("data", "statuses", "requests", "rest", "skip", "ending"),
    [
        (GET, [200], 1, b"", 0, OPEN),
        (GET * 16, [200] * 16, 16, b"", 0, OPEN),
        (GET + GET[:9], [200], 1, GET[:9], 0, OPEN),
        (b"\r\n\r\n" + GET + b"\r\n", [200], 1, b"", 0, OPEN),
        (b"GET / HTTP/1.1\r\n\r\n", [200], 1, b"", 0, OPEN),
        (b"GET / HTTP/1.0\r\n\r\n", [200], 1, b"", 0, CLOSE),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", [200], 1, b"", 0, OPEN),
        (b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n" + GET, [200], 1, b"", 0, CLOSE),
        (b"GET / HTTP/1.1\r\nConnection: upgrade, Close\r\n\r\n", [200], 1, b"", 0, CLOSE),
        (post(b"abc") + GET, [200, 200], 2, b"", 0, OPEN),
        (post(b"abc", 10), [200], 1, b"", 7, OPEN),
        (post(b"", "0003, 0003"), [200], 1, b"", 3, OPEN),
        (b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 9\r\n\r\nab", [200], 1, b"", 0, LINGER),
        (b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", [100, 200], 1, b"", 5, OPEN),
        (b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx", [200], 1, b"", 0, OPEN),
        (b"", [], 0, b"", 0, OPEN),
        (b"\r", [], 0, b"\r", 0, OPEN),
        (b"G", [], 0, b"G", 0, OPEN),
        (b"GET /" + b"x" * 500, [], 0, b"GET /" + b"x" * 500, 0, OPEN),
        (GET[:-2], [], 0, GET[:-2], 0, OPEN),
        # Refused at once, however little of it has come.
        (b"\x16\x03\x01\x02\x00\x01", [400], 0, b"", 0, LINGER),
        (b"hello\r\n", [400], 0, b"", 0, LINGER),
        (b"GET  / HTTP/1.1", [400], 0, b"", 0, LINGER),
        (b"GET / HTTP/2", [400], 0, b"", 0, LINGER),
        (b"GET / HTTP/1.1\nHost: x\n\n", [400], 0, b"", 0, LINGER),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", [400], 0, b"", 0, LINGER),
        (b"GET / HTTP/1.1\r\nHost: x\n\n", [400], 0, b"", 0, LINGER),  # it would wait for a better end for ever
        (b"GET / HTTP/1.1\r\nHost : x\r\n", [400], 0, b"", 0, LINGER),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", [400], 0, b"", 0, LINGER),
        (b"GET / HTTP/1.1\r\nA: \0\r\n\r\n", [400], 0, b"", 0, LINGER),
        (GET + b"nonsense\r\n\r\n" + GET, [200, 400], 1, b"", 0, LINGER),
        (post(b"abc", -1), [400], 0, b"", 0, LINGER),
        (post(b"abc", "3, 4"), [400], 0, b"", 0, LINGER),
        (post(b"abc", "3\x0b"), [400], 0, b"", 0, LINGER),
        (post(b"abc", "\u0663"), [400], 0, b"", 0, LINGER),
        (post(b"abc", "9" * 16), [413], 0, b"", 0, LINGER),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [501], 0, b"", 0, LINGER),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * MAX_HEAD, [431], 0, b"", 0, LINGER),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * MAX_HEAD + b"\r\n\r\n", [431], 0, b"", 0, LINGER),
    ],
)
def test_answers(data: bytes, statuses: list[int], requests: int, rest: bytes, skip: int, ending: int) -> None:
    found = answers(data)
    lines = [line for line in found.output.split(b"\r\n") if b"HTTP/1.1 " in line]
    assert [int(line.rpartition(b"HTTP/1.1 ")[2][:3]) for line in lines] == statuses
    assert (found.requests, found.rest, found.skip, found.ending) == (requests, rest, skip, ending)
    assert found.bad == bool(statuses and statuses[-1] >= 400)


def test_every_beginning_of_a_request_is_waited_for() -> None:
    request = b"POST /x HTTP/1.1\r\nHost: x\r\nempty:\r\nContent-Length: 0\r\n\r\n"
    for size in range(len(request)):
        assert answers(request[:size])[:3] == (b"", 0, request[:size])


def test_the_answer_itself() -> None:
    assert answers(GET).output == OK
    assert answers(b"GET / HTTP/1.0\r\n\r\n").output == OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert b"Connection: keep-alive" in answers(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").output
    assert answers(b"HEAD / HTTP/1.1\r\n\r\n").output == OK[: -len(BODY)]


def test_what_a_busy_connection_is_carries_over() -> None:
    busy = Busy.unpack(Busy(b"un\0sent", b"GET", 1 << 40, LINGER).pack())
    assert (busy.unsent, busy.rest, busy.skip, busy.ending) == (b"un\0sent", b"GET", 1 << 40, LINGER)


@pytest.fixture
def http(tmp_path: Path) -> Iterator[Server]:
    s = Server(tmp_path, OLDEST).started("--mode", "http", "--workers", "1")
    yield s
    s.close()


def test_requests_in_all_cuts(http: Server) -> None:
    s = http.connect(verify=False)
    stream = GET + post(b"x" * 100) + GET * 3
    for cut in (1, 3, 7, 50, 1000):
        for at in range(0, len(stream), cut):
            s.sendall(stream[at : at + cut])
        assert receive(s, 5 * len(OK)) == 5 * OK
    state = http.status()
    assert (state["echoes"], state["bad_requests"]) == (25, 0)
    assert state["options"]["mode"] == "http"


def test_a_large_body_is_skipped(http: Server) -> None:
    s = http.connect(verify=False)
    s.sendall(post(b"", 8 << 20))
    assert receive(s, len(OK)) == OK
    s.sendall(bytes(8 << 20) + GET)
    assert receive(s, len(OK)) == OK


def test_a_bad_request_is_told_why_even_while_it_still_sends(http: Server) -> None:
    s = http.connect(verify=False)
    s.sendall(b"\x16\x03\x01" + bytes(200_000))
    time.sleep(0.05)
    s.sendall(bytes(1000))
    answer = b""
    while piece := s.recv(4096):
        answer += piece
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    s.close()
    wait_until(lambda: http.status()["connections"] == 0)
    assert http.status()["bad_requests"] == 1


def test_who_does_not_take_the_refusal_is_closed_all_the_same(http: Server) -> None:
    s = http.connect(verify=False)
    s.sendall(b"nonsense\r\n")
    wait_until(lambda: http.status()["bad_requests"] == 1)
    wait_until(lambda: http.status()["connections"] == 0, 5)


def test_an_old_client_is_closed_after_its_answer(http: Server) -> None:
    s = http.connect(verify=False)
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while piece := s.recv(4096):
        answer += piece
    assert answer.endswith(BODY)


def test_many_pipelined_requests_past_a_slow_reader(http: Server) -> None:
    s = client_socket()
    http.sockets.append(s)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.connect(("127.0.0.1", http.port))
    s.setblocking(False)
    sent = 0
    stream = GET * 200_000

    def fill() -> bool:
        nonlocal sent
        try:
            while sent < len(stream):
                sent += s.send(stream[sent : sent + 65536])
        except BlockingIOError:
            pass
        return bool(http.status()["backpressured"])

    wait_until(fill, 15)
    s.setblocking(True)
    s.settimeout(10)
    whole = sent // len(GET)
    assert receive(s, whole * len(OK)) == OK * whole
    s.sendall(GET[sent % len(GET) :])
    assert receive(s, len(OK)) == OK


def test_half_a_request_survives_a_reload(http: Server) -> None:
    half, body = http.connect(verify=False), http.connect(verify=False)
    half.sendall(GET[:9])
    body.sendall(post(b"abc", 10))
    assert receive(body, len(OK)) == OK
    time.sleep(0.1)
    assert http.command("reload").returncode == 0
    half.sendall(GET[9:])
    assert receive(half, len(OK)) == OK
    body.sendall(b"defghij" + GET)
    assert receive(body, len(OK)) == OK


@both
def test_half_a_request_moves_to_another_worker(python: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, python).started("--mode", "http", "--workers", "2")
    clients = [server.connect(verify=False) for _ in range(80)]
    for c in clients:
        c.sendall(GET[:9])
    wait_until(lambda: server.status()["connections"] == 80)
    time.sleep(0.1)
    os.kill(server.status()["pid"], signal.SIGTTOU)
    wait_until(lambda: len(server.processes()) == 2)
    for c in clients:
        c.sendall(GET[9:])
        assert receive(c, len(OK)) == OK
    assert server.status()["connections"] == 80
    server.close()


def test_a_head_that_trickles_in_is_no_activity(tmp_path: Path) -> None:
    server = Server(tmp_path).started("--mode", "http", "--workers", "1", "--idle-timeout", "1")
    s = server.connect(verify=False)
    begun = time.monotonic()
    with pytest.raises(OSError):
        for byte in GET[:-2] + b"X: " + b"y" * 200:
            s.sendall(bytes([byte]))
            time.sleep(0.05)
    assert 1 <= time.monotonic() - begun < 5
    wait_until(lambda: server.status()["idle_closed"] == 1)
    server.close()


def test_resets_and_errors_are_counted_by_errno(http: Server) -> None:
    for _ in range(5):
        s = http.connect(verify=False)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
    wait_until(lambda: http.status()["errors_by_errno"] == {"ECONNRESET": 5})
    assert http.status()["workers"][0]["errors_by_errno"] == {"ECONNRESET": 5}
