"""The stress client as a program, on loopback, against servers that behave and servers that do not."""

import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from stress_slots import Slots

from tests.unit.interpreters import INTERPRETERS

CLIENT = Path(__file__).resolve().parents[2] / "payload" / "stress_client.py"
ENDS = sorted({INTERPRETERS[0], INTERPRETERS[-1]})
NEWEST = INTERPRETERS[-1]


class Server:
    """A TCP server in a thread: `reply(server, sock, data) -> bytes | None` decides; None closes.

    messages: how often reply was called; peers: the clients' addresses; times: when each was accepted.
    """

    def __init__(self, reply=None, accepting=True, backlog=1024, chunk=65536):
        self.reply = reply or (lambda server, sock, data: data)
        self.messages, self.peers, self.times = 0, [], []
        self.chunk = chunk
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(backlog)
        self.port = self.listener.getsockname()[1]
        self.wake, waker = socket.socketpair()
        self.stop = waker
        self.open = set()
        self.thread = threading.Thread(target=self.run, args=(accepting,), daemon=True)
        self.thread.start()

    def run(self, accepting):
        selector = selectors.DefaultSelector()
        selector.register(self.wake, selectors.EVENT_READ)
        if accepting:
            self.listener.setblocking(False)
            selector.register(self.listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                sock = key.fileobj
                if sock is self.wake:
                    return
                if sock is self.listener:
                    self.accept(selector)
                else:
                    self.serve(selector, sock)

    def accept(self, selector):
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, peer = self.listener.accept()
                self.times.append(time.monotonic())
                self.peers.append(peer)
                self.open.add(sock)
                selector.register(sock, selectors.EVENT_READ)

    def serve(self, selector, sock):
        try:
            data = sock.recv(self.chunk)
        except OSError:
            data = b""
        answer = None
        if data:
            self.messages += 1
            answer = self.reply(self, sock, data)
        if answer is None:
            selector.unregister(sock)
            self.open.discard(sock)
            sock.close()
        elif answer:
            with contextlib.suppress(OSError):
                sock.sendall(answer)

    def close(self):
        self.stop.send(b"x")
        self.thread.join(5)
        for sock in [self.listener, self.wake, self.stop, *self.open]:
            sock.close()


@pytest.fixture
def serve():
    """Starts servers and stops them."""
    started = []

    def start(*args, **kwargs):
        started.append(Server(*args, **kwargs))
        return started[-1]

    yield start
    for server in started:
        server.close()


def command(port, *options, python=NEWEST):
    return [str(python), str(CLIENT), "127.0.0.1", str(port), *map(str, options)]


def run(port, *options, python=NEWEST, code=0):
    """Run the client to its end with --json; returns the result after checking that its sums hold."""
    done = subprocess.run(command(port, *options, "--json", python=python), capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr.decode()[-2000:]
    result = json.loads(done.stdout)
    check_sums(result)
    return result


def check_sums(result):
    c, e = result["connections"], result["echoes"]
    assert c["requested"] == c["verified"] + c["failed"]
    assert e["sent"] == e["verified"] + e["mismatched"] + e["lost"]
    assert sum(row["count"] for row in result["errors"]) == c["failed"]
    assert c["established"] <= c["requested"]
    assert c["verified"] <= c["established"]
    if result["timeline"]:
        end = result["timeline"][-1]
        totals = (c["established"], c["failed"], e["verified"])
        assert (end["established"], end["failed"], end["echoes"]) == totals
    good = c["failed"] == 0 and e["mismatched"] == 0 and e["lost"] == 0
    assert result["verdict"] == ("pass" if good else "fail")
    counts = {"service": e["steady"] or e["verified"], "response": e["steady"] or e["verified"]}
    for name, count in counts.items():
        assert result["latency_ms"][name]["count"] == count
    json.dumps(result, allow_nan=False)


def errors(result):
    return {(row["phase"], row["errno"]): row["count"] for row in result["errors"]}


def wait_for(question, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = question()
        if answer:
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s")


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


# -- servers that behave -------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", ENDS, ids=lambda p: p.parts[-3])
@pytest.mark.parametrize("workers", [1, 3])
def test_idle_connections_are_verified_held_and_closed(serve, python, workers):
    server = serve()
    result = run(server.port, "--connections", 600, "--hold", 0.3, "--workers", workers, python=python)
    c = result["connections"]
    assert (c["requested"], c["established"], c["verified"], c["failed"], c["peak"]) == (600, 600, 600, 0, 600)
    assert result["echoes"] == {"sent": 600, "verified": 600, "mismatched": 0, "lost": 0, "steady": 0}
    assert len(set(server.peers)) == 600
    assert result["latency_ms"]["connect"]["count"] == 600
    assert result["schema"] == "tcpfleet.run/1"
    assert len(result["hosts"][0]["workers"]) == workers
    assert max(p["open"] for p in result["timeline"]) == 600
    assert result["seconds"]["hold"] == pytest.approx(0.3, abs=0.1)
    assert result["wall"] is None
    wait_for(lambda: not server.open)


@pytest.mark.parametrize("python", ENDS, ids=lambda p: p.parts[-3])
def test_heartbeats_are_spread_evenly(serve, python):
    arrivals = []

    def note(server, sock, data):
        arrivals.append(time.monotonic())
        return data

    server = serve(note)
    options = ["--connections", 100, "--mode", "heartbeat", "--interval", 0.5, "--hold", 2, "--workers", 2]
    result = run(server.port, *options, python=python)
    # 100 connections, 2 beats a second each, 2 seconds; those of the ramp are few.
    assert result["echoes"]["steady"] == pytest.approx(400, abs=10)
    assert result["rate"]["echoes_per_second"] == pytest.approx(200, rel=0.05)
    steady = [t for t in arrivals if t > arrivals[0] + 0.6]
    tenths = [0] * 14
    for moment in steady:
        index = int((moment - steady[0]) * 10)
        if index < len(tenths):
            tenths[index] += 1
    assert min(tenths) >= 12, tenths
    assert max(tenths) <= 28, tenths


def test_response_time_counts_from_the_slot_when_the_server_stalls(serve):
    stalls = []

    def stall_once(server, sock, data):
        if len(server.peers) == 20 and server.messages > 60 and not stalls:
            stalls.append(1)
            time.sleep(0.6)
        return data

    server = serve(stall_once)
    options = ["--connections", 20, "--mode", "heartbeat", "--interval", 0.1, "--hold", 2]
    result = run(server.port, *options)
    # Beats that fell due in the stall are sent after it and count from their slot: more of them are slow.
    service, response = result["latency_ms"]["service"], result["latency_ms"]["response"]
    assert response["max"] >= service["max"] >= 400
    assert response["p90"] > 100 > service["p90"]


@pytest.mark.parametrize("python", ENDS, ids=lambda p: p.parts[-3])
def test_flood_begins_after_the_ramp(serve, python):
    server = serve()
    result = run(server.port, "--connections", 50, "--mode", "flood", "--hold", 0.5, python=python)
    assert result["echoes"]["steady"] > 500
    assert result["latency_ms"]["first_echo"]["count"] == 50
    assert server.messages == result["echoes"]["sent"]


@pytest.mark.full  # timed: on a busy machine it says more about the machine
@pytest.mark.parametrize("rate", [500, 2000])
def test_the_rate_is_kept(serve, rate):
    server = serve()
    result = run(server.port, "--connections", rate, "--rate", rate, "--hold", 0, "--workers", 2)
    assert result["rate"]["connects_per_second"] == pytest.approx(rate, rel=0.02)
    most = max(sum(1 for t in server.times if a <= t < a + 0.1) for a in server.times[::10])
    assert most <= 0.2 * rate + 2


def test_replies_in_pieces_and_long_messages(serve):
    pending = {}

    def dribble(server, sock, data):
        # Keep the last byte back until the next read: every reply comes in two pieces.
        data = pending.pop(sock, b"") + data
        if data.endswith(b"\n"):
            sock.sendall(data[:-1])
            time.sleep(0.0005)
            return data[-1:]
        pending[sock] = data
        return b""

    server = serve(dribble, chunk=7)
    assert run(server.port, "--connections", 30, "--hold", 0)["verdict"] == "pass"
    options = ["--connections", 5, "--hold", 0.5, "--mode", "heartbeat", "--interval", 0.2]
    result = run(serve().port, *options, "--message", "{conn}" + "x" * 120_000 + "{seq}")
    assert result["echoes"]["steady"] >= 5


def test_any_reply_will_do_when_asked(serve):
    server = serve(lambda server, sock, data: b"HTTP/1.1 200 OK\r\n\r\n")
    assert run(server.port, "--connections", 20, "--expect", "any", "--hold", 0)["verdict"] == "pass"
    assert errors(run(server.port, "--connections", 20, "--hold", 0, code=3)) == {("echo", "EBADMSG"): 20}


TALKS = [
    # what the server answers, options, and what the client must find: None, or words of the sample
    (lambda d: b"+OK 12\r\n", ["--expect", "regex:OK [0-9]+", "--delimiter", r"\r\n"], None),
    (lambda d: b"+OK 12\r\n", ["--expect", r"regex:\A\+OK"], None),
    (lambda d: b"-ERR\r\n", ["--expect", "regex:OK", "--delimiter", r"\r\n"], "does not match OK: b'-ERR"),
    (lambda d: b"+OK\r\n+OK\r\n", ["--expect", "any", "--delimiter", r"\r\n"], "5 bytes after the reply"),
    (lambda d: b"ab" + d[:2], ["--expect", "any", "--reply-bytes", 4], None),
    (lambda d: b"abcde", ["--expect", "any", "--reply-bytes", 4], "1 bytes after the reply"),
    (lambda d: b"abc", ["--expect", "any", "--reply-bytes", 4, "--reply-timeout", 0.4], "no complete reply"),
    (lambda d: b"yes", ["--expect", "text:yes"], None),
    (lambda d: b"yet", ["--expect", "hex:796573"], "byte 2 of the reply is 0x74, not 0x73"),
    (lambda d: d[::-1], ["--message", "{conn:3}", "--expect", "regex:[0-9]{3}"], None),
    (lambda d: b"", ["--expect", "none"], None),
    (lambda d: b"noise" + d, ["--expect", "none"], None),
    (
        lambda d: d if d.startswith(b"hello") else d.upper(),
        [
            "--first-message",
            "hello {conn}",
            "--first-expect",
            "echo",
            "--message",
            "q{seq}",
            "--expect",
            "text:Q{seq}",
        ],
        None,
    ),
]


@pytest.mark.parametrize("number", range(len(TALKS)))
def test_what_is_said_and_expected(serve, number):
    (answer, options, words), python = TALKS[number], ENDS[number % len(ENDS)]
    server = serve(lambda server, sock, data: answer(data))
    base = ["--connections", 10, "--mode", "heartbeat", "--interval", 0.1, "--hold", 0.3, "--workers", 1]
    result = run(server.port, *base, *options, code=3 if words else 0, python=python)
    if words:
        assert result["connections"]["failed"] == 10
        assert words in result["errors"][0]["sample"]
    else:
        assert result["echoes"]["steady"] >= 20


def test_the_timer_sends_whatever_the_replies_do(serve):
    arrivals = []

    def stall_once(server, sock, data):
        arrivals.append((time.monotonic(), data.count(b"\r\n\r\n")))
        if len(arrivals) == 40:
            time.sleep(0.5)
        return data

    server = serve(stall_once)
    result = run(server.port, "--connections", 10, "--mode", "timer", "--interval", 0.1, "--hold", 2)
    # Heartbeats would skip the slots of the stall; the timer does not: reads after it hold several messages.
    assert result["echoes"]["steady"] == pytest.approx(200, abs=12)
    assert max(count for _, count in arrivals) >= 3
    assert result["latency_ms"]["response"]["max"] >= 400


@pytest.mark.parametrize("python", ENDS, ids=lambda p: p.parts[-3])
def test_churn_makes_connections_anew_at_the_rate(serve, python):
    server = serve()
    options = ["--connections", 20, "--mode", "churn", "--rate", 300, "--hold", 1, "--workers", 2]
    result = run(server.port, *options, python=python)
    churn = result["churn"]
    assert churn["connects"] == churn["verified"] == pytest.approx(300, rel=0.03)
    assert result["connections"]["requested"] == len(server.peers) == 20 + churn["connects"]
    assert result["connections"]["peak"] <= 20
    assert result["latency_ms"]["service"]["count"] == churn["verified"]


def test_churn_uses_its_ports_again(serve):
    server = serve()
    options = ["--connections", 5, "--mode", "churn", "--rate", 100, "--hold", 0.6, "--ports", "22000-22009"]
    result = run(server.port, *options)
    assert {port for _, port in server.peers} == set(range(22000, 22010))
    assert result["connections"]["failed"] == 0


def test_hold_leaves_the_closing_to_the_server(serve):
    def close_later(server, sock, data):
        if server.messages == 20:
            threading.Timer(0.6, lambda: [other.shutdown(socket.SHUT_RDWR) for other in list(server.open)]).start()
        return data

    server = serve(close_later)
    began = time.monotonic()
    result = run(server.port, "--connections", 20, "--hold", 0.1, "--close", "hold", "--reply-timeout", 5)
    assert result["verdict"] == "pass"
    assert 0.5 < time.monotonic() - began < 4


# -- servers that do not -------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", ENDS, ids=lambda p: p.parts[-3])
def test_one_wrong_byte_is_one_mismatch(serve, python):
    def corrupt(server, sock, data):
        return data[:30] + b"?" + data[31:] if server.messages == 150 else data

    result = run(serve(corrupt).port, "--connections", 300, "--hold", 0.2, code=3, python=python)
    assert result["connections"]["failed"] == result["echoes"]["mismatched"] == 1
    assert result["echoes"]["lost"] == 0
    assert "byte 30 of the reply is 0x3f" in result["errors"][0]["sample"]


def test_one_wrong_byte_in_a_million_is_found(serve):
    seen = [0]

    def corrupt(server, sock, data):
        before, seen[0] = seen[0], seen[0] + len(data)
        at = 1_000_000 - before
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if 0 <= at < len(data) else data

    options = ["--connections", 20, "--mode", "flood", "--hold", 2, "--message", "{conn}.{seq}." + "x" * 2000]
    result = run(serve(corrupt).port, *options, code=3)
    assert seen[0] > 1_000_000
    assert result["connections"]["failed"] == result["echoes"]["mismatched"] == 1
    assert result["echoes"]["lost"] == 0
    assert errors(result) == {("echo", "EBADMSG"): 1}


@pytest.mark.parametrize("size", [1, 50, 100])
def test_a_server_that_closes_after_n_bytes(serve, size):
    given = {}

    def close_after(server, sock, data):
        left = size - given.get(sock, 0)
        given[sock] = given.get(sock, 0) + len(data)
        if len(data) <= left:
            return data
        sock.sendall(data[:left])
        return None

    options = ["--connections", 30, "--message", "x" * 60, "--mode", "heartbeat", "--interval", 0.1, "--hold", 0.5]
    result = run(serve(close_after).port, *options, code=3)
    assert errors(result) == {("echo", "EOF"): 30}
    assert f"after {size - (60 if size > 60 else 0)} bytes of the reply" in result["errors"][0]["sample"]
    assert result["connections"]["established"] == (30 if size > 60 else 0)
    assert result["wall"]["name"] == "the server closes connections"


@pytest.mark.parametrize("wrong", [b".9", b".01"])
def test_a_wrong_digit_is_no_other_message_s_reply(serve, wrong):
    """Message 9 was not sent yet, and none has the number 01: the server does not mix up replies."""
    server = serve(lambda server, sock, data: data.replace(b".1\r\n\r\n", wrong + b"\r\n\r\n"))
    options = ["--connections", 5, "--mode", "heartbeat", "--interval", 0.2, "--hold", 0.4]
    assert errors(run(server.port, *options, code=3)) == {("echo", "EBADMSG"): 5}


def test_crossed_replies_are_two_mismatches(serve):
    held = []

    def swap(server, sock, data):
        if server.messages in (99, 100):
            held.append((sock, data))
            if len(held) == 2:
                (first, one), (second, two) = held
                first.sendall(two)
                second.sendall(one)
            return b""
        return data

    result = run(serve(swap).port, "--connections", 200, "--hold", 0.2, code=3)
    assert (result["connections"]["failed"], result["echoes"]["mismatched"]) == (2, 2)
    assert errors(result) == {("echo", "CROSSED"): 2}
    (row,) = result["errors"]
    mine, other = (int(number) for number in re.findall(r"connection (\d+)", row["sample"]))
    assert mine != other
    assert result["wall"]["name"] == "the server mixes up replies"


FAULTS = [
    # name, reply, options, errors of 40 connections, wall
    ("closes at once", lambda s, c, d: None, [], {("echo", "EOF"): 40}, "the server closes connections"),
    (
        "closes in the middle of the reply",
        lambda s, c, d: c.sendall(d[:10]) or None,
        [],
        {("echo", "EOF"): 40},
        "the server closes connections",
    ),
    (
        "never replies",
        lambda s, c, d: b"",
        ["--reply-timeout", 0.5],
        {("echo", "ETIMEDOUT"): 40},
        "connected but no reply",
    ),
    (
        "never answers TLS",
        lambda s, c, d: b"",
        ["--tls-insecure", "--connect-timeout", 0.2, "--connections", 3],
        {("tls", "ETIMEDOUT"): 3},
        "TLS handshake",
    ),
    ("replies twice", lambda s, c, d: d + d, [], {("echo", "EBADMSG"): 40}, "wrong replies"),
    (
        "closes the tenth",
        lambda s, c, d: None if s.messages == 10 else d,
        [],
        {("echo", "EOF"): 1},
        "the server closes connections",
    ),
]


@pytest.mark.parametrize(("name", "reply", "options", "expected", "wall"), FAULTS, ids=[row[0] for row in FAULTS])
def test_faults_are_reported_as_what_they_are(serve, name, reply, options, expected, wall):
    result = run(serve(reply).port, "--connections", 40, "--hold", 0.2, *options, code=3)
    assert errors(result) == expected
    assert (result["wall"] and result["wall"]["name"]) == wall
    for row in result["errors"]:
        assert row["first"] <= row["last"]
        assert row["sample"]


def test_connections_that_the_server_drops_while_held(serve):
    def drop_later(server, sock, data):
        if len(server.peers) == 50:
            for other in list(server.open)[:5]:
                other.shutdown(socket.SHUT_RDWR)
        return data

    result = run(serve(drop_later).port, "--connections", 50, "--rate", 200, "--hold", 0.5, code=3)
    assert sum(errors(result).values()) in (5, 6)  # the fiftieth itself may be among the five
    assert ("close", "EOF") in errors(result)
    assert result["connections"]["established"] > result["connections"]["verified"]


def test_a_server_that_never_accepts_verifies_nothing(serve):
    server = serve(accepting=False, backlog=4)
    options = ["--connections", 5000, "--connect-timeout", 1.2, "--reply-timeout", 1, "--hold", 0]
    began = time.monotonic()
    result = run(server.port, *options, code=3)
    assert time.monotonic() - began < 10  # not a timeout for each of the 5,000
    # The kernel completes some handshakes all by itself; that establishes nothing.
    assert result["connections"]["established"] == 0
    assert errors(result)["connect", "ECANCELED"] > 4000
    assert set(errors(result)) <= {("echo", "ETIMEDOUT"), ("connect", "ETIMEDOUT"), ("connect", "ECANCELED")}
    assert result["wall"]["name"] in ("connected but no reply", "handshakes unanswered")


@pytest.mark.parametrize("python", ENDS, ids=lambda p: p.parts[-3])
def test_a_refused_port(python):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        result = run(unused.getsockname()[1], "--connections", 30, "--hold", 0, code=3, python=python)
    assert errors(result) == {("connect", "ECONNREFUSED"): 30}
    assert result["wall"]["name"] == "nothing listens"
    assert result["echoes"]["sent"] == 0


# -- ports ---------------------------------------------------------------------------------------------------


def test_slices_of_one_range_do_not_collide(serve):
    server = serve()
    base = ["--connections", 100, "--hold", 1, "--ports", "20000-20299", "--json"]
    clients = [
        subprocess.Popen(command(server.port, *base, "--slice", f"{k}/3"), stdout=-1, stderr=-3) for k in range(3)
    ]
    results = [json.loads(client.communicate(timeout=30)[0]) for client in clients]
    assert [r["verdict"] for r in results] == ["pass"] * 3
    assert sorted(port for _, port in server.peers) == list(range(20000, 20300))


def test_several_sources_double_the_ports(serve):
    server = serve()
    options = ["--connections", 200, "--hold", 0, "--ports", "20500-20599", "--source", "127.0.0.1,127.0.0.2"]
    run(server.port, *options)
    assert {ip for ip, _ in server.peers} == {"127.0.0.1", "127.0.0.2"}


def test_a_busy_port_is_planned_around_and_rst_frees_ports_at_once(serve):
    server = serve()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 21000))
        busy.listen()
        for _ in range(3):  # the same ports again, at once
            result = run(server.port, "--connections", 99, "--hold", 0, "--ports", "21000-21099")
            assert result["plan"]["busy_ports"] == 1
        options = ["--connections", "100", "--ports", "21000-21099"]
        refused = subprocess.run(command(server.port, *options), capture_output=True)
        assert refused.returncode == 5
        assert b"allows 99" in refused.stderr


def test_a_port_taken_after_the_plan_is_skipped(serve, tmp_path):
    server = serve()
    directory = tmp_path / "run"
    options = ["--connections", 50, "--hold", 0, "--ports", "21200-21299", "--detach", directory, "--barrier"]
    assert subprocess.run(command(server.port, *options)).returncode == 0
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 21210))  # without SO_REUSEADDR
        thief.listen()
        (directory / "go").touch()
        (directory / "hold").touch()
        result = finished(directory)
    assert result["verdict"] == "pass"
    assert result["hosts"][0]["workers"][0]["ports_skipped"] == 1


def test_fin_leaves_time_wait_which_the_next_plan_knows(serve):
    server = serve()
    options = ["--connections", 50, "--hold", 0, "--ports", "21300-21349", "--close", "fin"]
    run(server.port, *options)
    wait_for(lambda: not server.open)
    again = subprocess.run(command(server.port, *options), capture_output=True)
    assert again.returncode == 5
    assert b"50 busy" in again.stderr


# -- use -----------------------------------------------------------------------------------------------------

BAD_USE = [
    (["127.0.0.1"], "PORT"),
    (["127.0.0.1", "0", "--connections", "1"], "'0' is not a port"),
    (["127.0.0.1", "80"], "--connections"),
    (["127.0.0.1", "80", "--connections", "0"], "'0' is not a number"),
    (["127.0.0.1", "80", "--connections", "many"], "'many'"),
    (["127.0.0.1", "80", "--connections", "1", "--mode", "storm"], "storm"),
    (["127.0.0.1", "80", "--connections", "1", "--rate", "-1"], "--rate"),
    (["127.0.0.1", "80", "--connections", "1", "--rate", "0"], "'0' is not a rate"),
    (["127.0.0.1", "80", "--connections", "1", "--slice", "2/2"], "'2/2'"),
    (["127.0.0.1", "80", "--connections", "1", "--ports", "9-8"], "'9-8'"),
    (["127.0.0.1", "80", "--connections", "1", "--interval", "0"], "'0' is too short"),
    (["127.0.0.1", "80", "--connections", "1", "--hold", "nan"], "'nan'"),
    (["127.0.0.1", "80", "--connections", "1", "--barrier"], "--detach"),
    (["127.0.0.1", "80", "--connections", "1", "--source", "192.0.2.1"], "192.0.2.1 is not an address"),
    (["127.0.0.1", "80", "--connections", "1", "--source", "127.0.0.1,127.0.0.1"], "twice"),
    (["127.0.0.1", "80", "--connections", "1", "--message", "{x}"], "{x}"),
    (["127.0.0.1", "80", "--connections", "1", "--conn", "1"], "--conn"),
    (["127.0.0.1", "80", "--connections", "1", "--source", "::1"], "::1 is not an IPv4 address"),
    (["127.0.0.1", "80", "--connections", "1", "--source", "localhost"], "localhost is not an IPv4 address"),
    (["127.0.0.1", "80", "--connections", "1", "--expect", "regex:"], "--expect is empty"),
    (["127.0.0.1", "80", "--connections", "1", "--first-conn", "9" * 20], "is not a whole number"),
    (["127.0.0.1", "80", "--connections", "1", "--tls-name", ".."], "--tls-name ..: not a server's name"),
    (["no.such.host.invalid", "80", "--connections", "1"], "no.such.host.invalid"),
    (["a" * 300, "80", "--connections", "1"], "cannot resolve aaa"),
]


@pytest.mark.parametrize("python", ENDS, ids=lambda p: p.parts[-3])
def test_bad_use_is_one_sentence_and_exit_1(python):
    for arguments, words in BAD_USE:
        done = subprocess.run([str(python), str(CLIENT), *arguments], capture_output=True, text=True)
        assert done.returncode == 1, arguments
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


def test_too_many_connections_for_one_address_are_refused(serve):
    done = subprocess.run(
        command(serve().port, "--connections", "70k", "--source", "127.0.0.1"), capture_output=True, text=True
    )
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert done.returncode == 5
    assert f"{low}-{high}" in done.stderr
    assert "--source" in done.stderr
    assert done.stderr.count("\n") == 1


def test_people_get_words(serve):
    done = subprocess.run(
        command(serve().port, "--connections", "50", "--hold", "0"), capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("PASS: 50 of 50 connections")
    assert "ramp" in done.stderr


def test_the_plan_alone_starts_nothing(serve):
    server = serve()
    done = subprocess.run(command(server.port, "--connections", "50", "--plan"), capture_output=True, text=True)
    plan = json.loads(done.stdout)
    assert plan["connections"] == 50
    options = ["--connections", "50", "--plan", "--tls-insecure"]
    done = subprocess.run(command(server.port, *options), capture_output=True, text=True)
    secure = json.loads(done.stdout)
    assert secure["host"]["bytes_per_connection"] - plan["host"]["bytes_per_connection"] == 20000
    assert not server.peers


# -- led through files ---------------------------------------------------------------------------------------


def status(directory):
    try:
        return json.loads((directory / "status.json").read_text())
    except FileNotFoundError:
        return None


def state(directory):
    found = status(directory)
    return found and found["state"]


def finished(directory):
    wait_for(lambda: state(directory) in ("done", "failed"), 30)
    result = json.loads((directory / "result.json").read_text())
    check_sums(result)
    return result


@pytest.mark.parametrize("python", ENDS, ids=lambda p: p.parts[-3])
def test_a_detached_run_waits_at_both_barriers(serve, tmp_path, python):
    server = serve()
    directory = tmp_path / "run"
    options = ["--connections", 300, "--hold", 0.3, "--detach", directory, "--barrier", "--workers", 2]
    options += ["--mode", "heartbeat", "--interval", 0.2]
    done = subprocess.run(command(server.port, *options, python=python), capture_output=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert directory.stat().st_mode & 0o777 == 0o700
    pid = int((directory / "pid").read_text().split()[0])
    assert os.getsid(pid) != os.getsid(0)
    time.sleep(0.3)
    assert state(directory) == "ready"
    assert not server.peers
    (directory / "go").touch()
    wait_for(lambda: state(directory) == "ramped")
    assert status(directory)["connections"]["open"] == 300
    before = server.messages
    time.sleep(0.6)
    assert server.messages > before + 300  # still beating
    assert state(directory) == "ramped"
    (directory / "hold").touch()
    result = finished(directory)
    assert result["verdict"] == "pass"
    assert result["seconds"]["hold"] == pytest.approx(0.3, abs=0.1)
    assert set(result) >= {"histograms", "timeline", "plan", "options"}
    assert set(status(directory)) == {
        *("state", "pid", "elapsed", "connections", "rate", "echoes", "p99_ms", "errors", "message")
    }
    wait_for(lambda: not running(pid))
    assert not (directory / "pid").exists()


def test_clients_of_one_host_take_turns(serve, tmp_path):
    server = serve()
    options = ["--connections", 400, "--hold", 0.3, "--barrier", "--workers", 2]
    places = [tmp_path / f"client-{k}" for k in range(3)]
    for k, place in enumerate(places):
        done = subprocess.run(command(server.port, *options, "--slice", f"{k}/3", "--detach", place), check=True)
        assert done.returncode == 0
    for place in places:
        (place / "go").touch()
    for place in places:
        wait_for(lambda place=place: state(place) == "ramped", 30)
    for place in places:
        (place / "hold").touch()
    assert [finished(place)["connections"]["verified"] for place in places] == [400] * 3
    assert {path.name for path in tmp_path.glob("slot-*")} <= {f"slot-{k}" for k in range(os.cpu_count())}


def test_a_slot_is_given_back_by_its_holder_s_end(tmp_path):
    ours, others = Slots(tmp_path, 2), Slots(tmp_path, 2)
    assert ours.take() and others.take()
    assert not ours.take() and not others.take()
    others.keep(0)
    assert ours.take() and ours.held == 2
    del others
    ours.keep(1)
    third = Slots(tmp_path, 2)
    assert ours.held == 1 and third.take()
    ours.keep(0)
    third.keep(0)


def test_no_go_fails_by_itself(serve, tmp_path):
    server = serve()
    directory = tmp_path / "run"
    options = ["--connections", 10, "--detach", directory, "--barrier", "--barrier-timeout", 0.3]
    assert subprocess.run(command(server.port, *options)).returncode == 0
    result = finished(directory)
    assert state(directory) == "failed"
    assert "no go" in result["message"]
    assert (result["verdict"], result["connections"]["failed"]) == ("fail", 10)
    assert not server.peers


def test_no_hold_goes_on_by_itself(serve, tmp_path):
    directory = tmp_path / "run"
    options = ["--connections", 10, "--hold", 0.1, "--detach", directory, "--barrier", "--barrier-timeout", 3]
    assert subprocess.run(command(serve().port, *options)).returncode == 0
    (directory / "go").touch()
    assert finished(directory)["verdict"] == "pass"


def test_a_client_whose_leader_is_gone_does_not_wait_for_it(serve, tmp_path):
    leader = subprocess.Popen(["sleep", "60"])
    born = Path(f"/proc/{leader.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    (tmp_path / "leader").write_text(f"{leader.pid} {born}\n")
    # The program's own patience is 15 s: too long for a test.
    short = "import stress_client as c; c.Leader.ALONE_SECONDS = 0.5; sys.exit(c.main())"
    for name, go in (("one", False), ("two", True)):
        words = command(serve().port, "--connections", 10, "--hold", 0.1, "--detach", tmp_path / name, "--barrier")
        argv = [words[0], "-c", f"import sys; sys.path.insert(0, {str(CLIENT.parent)!r}); " + short, *words[2:]]
        assert subprocess.run(argv).returncode == 0
        if go:
            (tmp_path / name / "go").touch()
            wait_for(lambda name=name: state(tmp_path / name) == "ramped")
    time.sleep(0.8)
    assert (state(tmp_path / "one"), state(tmp_path / "two")) == ("ready", "ramped")
    leader.kill()
    leader.wait()
    assert finished(tmp_path / "two")["verdict"] == "pass"
    assert "is gone" in finished(tmp_path / "one")["message"]


def test_detach_says_why_it_cannot(serve, tmp_path):
    port = serve().port
    taken = subprocess.run(
        command(port, "--connections", "5", "--detach", tmp_path), capture_output=True, text=True
    )
    assert (taken.returncode, taken.stderr.count("\n")) == (1, 1)
    assert "exists already" in taken.stderr
    directory = tmp_path / "new"
    many = ["--connections", "70k", "--source", "127.0.0.1", "--detach", directory]
    refused = subprocess.run(command(port, *many), capture_output=True)
    assert refused.returncode == 5
    assert not directory.exists()


# -- the end comes early -------------------------------------------------------------------------------------


@pytest.fixture
def start():
    """Starts clients in the foreground; none survives the test."""
    started = []

    def begin(port, *options):
        process = subprocess.Popen(
            command(port, *options, "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def test_sigterm_ends_gracefully_with_what_was_reached(serve, start):
    """As timeout(1) and systemd send it: to the workers too."""
    server = serve()
    process = start(server.port, "--connections", 2000, "--rate", 400, "--hold", 30, "--workers", 2)
    wait_for(lambda: len(server.peers) >= 200 + 24)  # the probe's 8 among them, and what is still on its way
    os.killpg(process.pid, signal.SIGTERM)
    result = json.loads(process.communicate(timeout=10)[0])
    check_sums(result)
    assert process.returncode == 130
    assert result["interrupted"]
    assert 200 <= result["connections"]["verified"] < 2000
    assert errors(result)["connect", "ECANCELED"] > 1000
    assert result["echoes"]["lost"] == 0
    wait_for(lambda: not server.open)


def test_a_signal_while_holding_loses_nothing(serve, start):
    server = serve()
    process = start(server.port, "--connections", 100, "--hold", 30)
    wait_for(lambda: server.messages == 100)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    result = json.loads(process.communicate(timeout=10)[0])
    check_sums(result)
    assert process.returncode == 130
    assert (result["connections"]["verified"], result["connections"]["failed"]) == (100, 0)


def test_the_second_signal_ends_at_once(serve, start):
    server = serve(lambda server, sock, data: b"")  # never replies: a graceful end would wait
    process = start(server.port, "--connections", 20, "--hold", 30)
    wait_for(lambda: server.messages >= 5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    result = json.loads(process.communicate(timeout=10)[0])
    assert time.monotonic() - began < 1.5
    check_sums(result)
    assert process.returncode == 130
    assert result["connections"]["failed"] == 20


def test_a_killed_worker_s_share_is_failed_and_the_others_finish(serve, start):
    server = serve()
    options = ["--connections", 300, "--hold", 1.5, "--workers", 3, "--mode", "heartbeat", "--interval", 0.2]
    process = start(server.port, *options)
    wait_for(lambda: len(server.peers) == 300)
    time.sleep(0.4)
    victim = children(process.pid)[1]
    os.kill(victim, signal.SIGKILL)
    result = json.loads(process.communicate(timeout=20)[0])
    check_sums(result)
    assert process.returncode == 3
    assert result["connections"]["failed"] == 100
    assert errors(result) == {("echo", "WORKER_DIED"): 100}
    assert f"(pid {victim}) was killed by signal 9" in result["errors"][0]["sample"]
    assert result["echoes"]["steady"] > 0


@pytest.mark.parametrize("target", ["127.0.0.1", "0.0.0.0"])
def test_no_connection_is_one_with_itself(target):
    """Where nothing listens, TCP connects a socket to its own address and port, and echoes all that it sends."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    ports = f"{port - 3}-{port + 3}"
    argv = command(port, "--connections", 4, "--ports", ports, "--source", "127.0.0.1", "--hold", 0, "--json")
    argv[2] = target
    result = json.loads(subprocess.run(argv, capture_output=True, timeout=30).stdout)
    assert result["plan"]["busy_ports"] >= 1
    assert errors(result) == {("connect", "ECONNREFUSED"): 4}


def test_a_worker_that_was_held_up_blames_nobody(serve, start):
    """The replies were there, in its sockets: no connection failed, and the seconds are called its own."""
    server = serve()
    options = ["--connections", 40, "--hold", 3, "--mode", "flood", "--reply-timeout", 1.5]  # a busy server's too
    process = start(server.port, *options)
    wait_for(lambda: server.messages > 400)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGSTOP)
    time.sleep(2.2)
    os.kill(worker, signal.SIGCONT)
    result = json.loads(process.communicate(timeout=20)[0])
    check_sums(result)
    assert (result["verdict"], result["errors"]) == ("pass", [])
    assert result["hosts"][0]["workers"][0]["slow_connects"] == 0
    assert result["latency_ms"]["service"]["max"] > 2000
    assert any("held up" in text for text in result["warnings"])


def test_messages_of_the_ramp_are_not_the_steady_phase_s(serve):
    """With 0.5 s until each reply, 200 messages a second had come to 250: those of the ramp were counted in."""
    replies = []

    def later(server, sock, data):
        timer = threading.Timer(0.5, lambda: sock.fileno() >= 0 and sock.sendall(data))
        replies.append(timer)
        timer.start()
        return b""

    options = ["--connections", 20, "--hold", 2, "--mode", "timer", "--interval", 0.1, "--workers", 1]
    result = run(serve(later).port, *options, "--in-flight", 20)
    for timer in replies:
        timer.join()
    assert result["rate"]["echoes_per_second"] == pytest.approx(200, rel=0.05)
    assert result["echoes"]["verified"] > result["echoes"]["steady"] + 20


def test_progress_that_cannot_be_written_ends_no_load(serve, tmp_path):
    """A disk that is full for a while: all connections of the client had failed for that."""
    directory = tmp_path / "run"
    options = ["--connections", 30, "--hold", 1.5, "--detach", directory]
    assert subprocess.run(command(serve().port, *options)).returncode == 0
    wait_for(lambda: state(directory) == "hold")
    place = directory / "status.json"
    while not place.is_dir():  # what no file can take the place of
        place.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            place.mkdir()
    wait_for((directory / "result.json").exists)
    result = json.loads((directory / "result.json").read_text())
    assert (result["verdict"], result["connections"]["verified"]) == ("pass", 30)
    assert result["warnings"][0] == "its progress could not be written: Is a directory"
    place.rmdir()


def test_what_a_killed_worker_had_is_not_verified_any_more(serve, tmp_path):
    directory = tmp_path / "run"
    options = ["--connections", 60, "--hold", 2, "--workers", 2, "--detach", directory]
    assert subprocess.run(command(serve().port, *options)).returncode == 0
    wait_for(lambda: state(directory) == "hold")
    os.kill(children(status(directory)["pid"])[0], signal.SIGKILL)
    wait_for(lambda: status(directory)["connections"]["failed"])
    counts = status(directory)["connections"]
    assert (counts["verified"], counts["failed"], counts["open"]) == (30, 30, 30)
    finished(directory)


def test_a_worker_that_fails_has_verified_nothing(serve):
    """A bug of ours in the middle of a connect: whatever the worker had counted, its share has failed."""
    bug = "import stress_worker, stress_client; stress_worker.Worker._first_write = None; stress_client.main()"
    argv = [str(NEWEST), "-c", f"import sys; sys.path.insert(0, {str(CLIENT.parent)!r}); {bug}"]
    argv += ["127.0.0.1", str(serve().port), "--connections", "5", "--hold", "0", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    result = json.loads(done.stdout)
    check_sums(result)
    assert errors(result) == {("echo", "WORKER_DIED"): 5} and "TypeError" in done.stderr
    assert result["wall"]["name"] == "a worker of a stress client died"


def test_workers_do_not_outlive_a_killed_client(serve, start):
    server = serve()
    process = start(server.port, "--connections", 100, "--hold", 30, "--workers", 2)
    wait_for(lambda: server.messages == 100)
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(running(pid) for pid in workers), 3)
    wait_for(lambda: not server.open, 3)
