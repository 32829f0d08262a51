"""What a server has to bear: many idle connections, rude clients, workers that come and go under load.

The small sizes run always, those of the promise only with --full.
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_echo_server import (
    PAYLOAD,
    Server,
    client_socket,
    cpu_seconds,
    exchange,
    receive,
    wait_until,
)

full = pytest.mark.full
small_or_full = pytest.mark.parametrize("size", ["small", pytest.param("full", marks=full)])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    s = Server(tmp_path)
    yield s
    s.close()


def private_bytes(pids: list[int]) -> int:
    """Memory that is the processes' own (RssAnon)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


class Load:
    """stress_client in the background; `end` waits for it and returns what it printed with --json."""

    def __init__(self, server: Server, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PAYLOAD / "stress_client.py"), "127.0.0.1", str(server.port), "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.clients.append(self._process)

    def end(self, early: bool = False) -> dict[str, Any]:
        if early:
            self._process.send_signal(signal.SIGINT)
        out, err = self._process.communicate(timeout=180)
        assert out, err
        return dict(json.loads(out))


def heartbeat(count: int) -> tuple[str, ...]:
    """Options of a Load that holds `count` connections; it takes as many client processes as nofile asks for."""
    interval, sources = ("1", "127.0.0.1") if count < 20000 else ("10", "127.0.0.2,127.0.0.3")
    return ("--connections", str(count), "--mode", "heartbeat", "--interval", interval, "--source", sources)


@small_or_full
def test_idle_connections_cost_no_memory_of_the_process(size: str, server: Server) -> None:
    count = 3000 if size == "small" else 30000
    server.started("--workers", "2", "--max-connections", "32k")
    exchange(server.connect())
    before = private_bytes(server.processes())
    if size == "small":
        for _ in range(count):
            server.connect(verify=False)
        wait_until(lambda: server.status()["connections"] == count + 1)
        after = private_bytes(server.processes())
    else:
        sources = "127.0.0.2,127.0.0.3"  # one address has ports for 28,000
        load = Load(server, "--connections", str(count), "--hold", "4", "--mode", "idle", "--source", sources)
        wait_until(lambda: server.status()["connections"] == count + 1, 60)
        after = private_bytes(server.processes())
        assert load.end()["connections"]["verified"] == count
    # 100 bytes each is the promise; a page for each worker is what measuring can be off by.
    assert after - before <= 100 * count + 2 * 4096


@small_or_full
def test_reload_rotation_and_workers_that_come_and_go_lose_nothing_under_load(size: str, server: Server) -> None:
    count, workers = (1000, 3) if size == "small" else (50000, 5)  # two of them can go
    server.started("--workers", str(workers))
    load = Load(server, *heartbeat(count), "--hold", "300")
    wait_until(lambda: server.status()["connections"] == count, 150)
    pid = server.status()["pid"]
    assert server.command("reload").returncode == 0
    os.kill(pid, signal.SIGTTIN)
    wait_until(lambda: len(server.processes()) == workers + 2)
    for left in (workers + 1, workers):
        os.kill(pid, signal.SIGTTOU)
        wait_until(lambda left=left: len(server.processes()) == left, 60)
    server.log_file.rename(server.directory / "log.1")
    os.kill(pid, signal.SIGUSR1)
    wait_until(server.log_file.exists)
    wait_until(lambda: server.status()["echoes"] >= 3 * count, 120)
    assert server.status()["connections"] == count
    run = load.end(early=True)
    assert run["errors"] == [] and run["connections"]["verified"] == count, run
    assert run["echoes"]["mismatched"] == 0 and run["echoes"]["verified"] >= 2 * count
    assert server.status()["errors"] == 0


@full
def test_a_killed_worker_loses_its_own_connections_and_is_back_in_a_second(server: Server) -> None:
    count = 50000
    server.started("--workers", "4")
    load = Load(server, *heartbeat(count), "--hold", "15")
    wait_until(lambda: server.status()["connections"] == count, 150)
    victim = server.status()["workers"][1]
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: server.status()["workers"][1]["pid"] not in (0, victim["pid"]))
    assert "next one in 0.1 s" in server.log()
    assert server.status()["connections"] == count - victim["connections"]
    run = load.end()
    assert sum(error["count"] for error in run["errors"]) == victim["connections"], run["errors"]


@small_or_full
def test_more_is_offered_than_nofile_allows(size: str, server: Server) -> None:
    """Full costs no CPU, all within capacity echo, the rest is served as others leave."""
    nofile, offered = (128, 500) if size == "small" else (1024, 5000)
    server.started("--workers", "2", nofile=nofile)
    capacity = server.status()["capacity"]
    assert capacity < offered
    clients = [server.connect(verify=False) for _ in range(offered)]
    for n, c in enumerate(clients):
        c.sendall(b"%8d" % n)
    wait_until(lambda: server.status()["connections"] == capacity)
    processes = server.processes()
    before, begun = cpu_seconds(processes), time.monotonic()
    time.sleep(1)
    assert cpu_seconds(processes) - before <= 0.05 * (time.monotonic() - begun)
    served = 0
    for n, c in enumerate(clients):  # the accept queue is in order, so each gets its turn as those before it leave
        assert receive(c, 8) == b"%8d" % n
        c.close()
        served += 1
    assert served == offered and server.log().count("places are taken") <= 2


def test_a_client_that_sends_a_byte_now_and_then_and_one_that_never_reads(server: Server) -> None:
    server.started("--workers", "1")
    other, slow = server.connect(), server.connect()
    never = client_socket()
    server.sockets.append(never)
    never.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    never.connect(("127.0.0.1", server.port))
    never.setblocking(False)

    def fill() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                never.send(bytes(65536))
        return bool(server.status()["backpressured"] == 1)

    wait_until(fill, 20)
    before = server.status()["buffered"]
    for byte in b"slowly":
        slow.sendall(bytes([byte]))
        assert slow.recv(10) == bytes([byte])
        exchange(other, os.urandom(20000))
        fill()
    assert 0 < server.status()["buffered"] == before <= 16384


# Holds connections that end with a reset when the process does; says so when it has them all.
RUDE = """
import socket, struct, sys
held = []
for _ in range(int(sys.argv[2])):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((sys.argv[3], 0))
    s.connect(("127.0.0.1", int(sys.argv[1])))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    held.append(s)
print("held", flush=True)
sys.stdin.read()
"""


@small_or_full
def test_resets_all_at_once(size: str, server: Server) -> None:
    """All have arrived before the workers see the first: they stand still meanwhile."""
    count, clients = (1000, 1) if size == "small" else (10000, 4)
    server.started("--workers", "2")
    keep = server.connect()
    for n in range(clients):
        command = [sys.executable, "-c", RUDE, str(server.port), str(count // clients), f"127.77.1.{n + 1}"]
        server.clients.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for client in server.clients:
        assert client.stdout is not None and client.stdout.readline() == "held\n"
    wait_until(lambda: server.status()["connections"] == count + 1, 20)
    workers = [w["pid"] for w in server.status()["workers"]]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    for client in server.clients:
        client.kill()
    for client in server.clients:
        client.communicate()
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: server.status()["connections"] == 1)
    state = server.status()
    assert state["errors_by_errno"] == {"ECONNRESET": count} and state["resets"] == count
    assert [w["pid"] for w in state["workers"]] == workers
    exchange(keep)


@small_or_full
def test_much_through_one_connection_comes_back_unchanged(size: str, server: Server) -> None:
    server.started("--workers", "1")
    s, other = server.connect(timeout=60), server.connect()
    total = (32 << 20) if size == "small" else (1 << 30)
    piece = os.urandom(1 << 20)
    sent, got = hashlib.sha256(), hashlib.sha256()

    def send() -> None:
        for n in range(total // len(piece)):
            part = struct.pack("!Q", n) + piece[8:]
            sent.update(part)
            s.sendall(part)
        s.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = 0
    while data := s.recv(1 << 20):
        got.update(data)
        received += len(data)
    sender.join()
    assert received == total and got.digest() == sent.digest()
    exchange(other)
    assert private_bytes(server.processes()) < 64 << 20


def test_a_stopped_server_goes_on_where_it_was(server: Server) -> None:
    server.started("--workers", "2")
    clients = [server.connect() for _ in range(100)]
    processes = server.processes()
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    late = [server.connect(verify=False) for _ in range(50)]
    for c in [*clients, *late]:
        c.sendall(b"while it stood still")
    time.sleep(0.5)
    for pid in processes:
        os.kill(pid, signal.SIGCONT)
    for c in [*clients, *late]:
        assert receive(c, 20) == b"while it stood still"
    assert sorted(server.processes()) == sorted(processes)


@pytest.mark.parametrize(
    "command",
    [
        ["wrk", "-c", "1000", "-t", "1", "-d", "2"],
        ["ab", "-q", "-k", "-c", "200", "-n", "30000"],
        ["ab", "-q", "-c", "200", "-n", "10000"],
    ],
    ids=["wrk", "ab -k", "ab"],
)
def test_load_tools_that_speak_http(command: list[str], server: Server, packages: dict[str, str]) -> None:
    server.started("--mode", "http")
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{server.port}/"],
        capture_output=True,
        text=True,
        timeout=60,
        env=packages,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Socket errors" not in done.stdout and "Non-2xx" not in done.stdout
    assert "Failed requests:        0" in done.stdout or command[0] == "wrk"
    said = re.search(r"(\d+) requests in|Complete requests: +(\d+)", done.stdout)
    assert said is not None
    state = server.status()
    assert (state["bad_requests"], state["errors"]) == (0, 0)
    assert state["echoes"] >= int(said[1] or said[2]) > 0


@full
def test_a_long_time_of_heartbeat_and_churn_grows_nothing(server: Server) -> None:
    """Ten minutes (TCPFLEET_SOAK_MINUTES): no more memory and no more descriptors than after the first."""
    seconds = 60 * float(os.environ.get("TCPFLEET_SOAK_MINUTES", "10"))
    server.started("--workers", "2", "--max-connections", "30k")
    count = 20000
    hold = ("--hold", str(seconds), "--interval", "10", "--mode", "heartbeat")
    held = Load(server, "--connections", str(count), "--source", "127.0.0.2", *hold)
    wait_until(lambda: server.status()["connections"] == count, 120)
    ends = time.monotonic() + seconds - 15
    time.sleep(min(60, seconds / 4))
    processes = server.processes()

    def used() -> tuple[int, int]:
        descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes)
        return private_bytes(processes), descriptors - server.status()["connections"]

    first = used()
    accepted = server.status()["accepted"]
    while time.monotonic() < ends:
        for _ in range(500):
            passing = client_socket()
            passing.settimeout(5)
            passing.connect(("127.0.0.1", server.port))
            exchange(passing)
            passing.close()
            time.sleep(0.005)
        wait_until(lambda: server.status()["connections"] == count)
        memory, descriptors = used()
        assert memory <= first[0] + 64 * 1024, (memory, first)
        assert descriptors == first[1]
    assert server.processes() and sorted(server.processes()) == sorted(processes)
    run = held.end()
    assert run["verdict"] == "pass", run["errors"]
    assert server.status()["accepted"] >= accepted + 500
