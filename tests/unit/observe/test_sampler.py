"""The sampler on this machine: rows of real sockets under every Python, gaps, how it ends; its operation."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import daemon
import observe_sampler
import pytest
from operations import OperationError, sample, stress

from tests.unit.interpreters import INTERPRETERS

PAYLOAD = Path(__file__).resolve().parents[3] / "payload"
COUNT = 5
HERE, THERE = "127.83.7.3", "127.83.7.4"


def wait_until(question):
    deadline = time.monotonic() + 60  # counts have the lowest priority, and the machine may be busy
    while not question():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def lines(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def rows(folder):
    return [line for line in lines(folder) if "t" in line]


@pytest.fixture
def listener():
    """A server's socket on a port below those that a load test beside this one takes its source ports from."""
    for port in range(700, 1000) if os.geteuid() == 0 else (0,):
        try:
            with socket.create_server((HERE, port)) as server:
                yield server
                return
        except OSError:
            continue
    raise AssertionError("no port is free")


@pytest.fixture
def port(listener):
    """A port with COUNT connections, both ends here."""
    ends = []
    for _ in range(COUNT):
        client = socket.socket()
        client.bind((THERE, 0))
        client.connect(listener.getsockname())
        ends += [client, listener.accept()[0]]
    yield listener.getsockname()[1]
    for one in ends:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves no TIME-WAIT
        one.close()


def configure(folder, port, **more):
    config = {"port": port, "server": True, "pid_file": None, "counters": ["ActiveOpens", "InSegs"]} | more
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def start():
    """Starts a sampler and returns its pid; what still runs after the test is killed."""
    pids = []

    def start(folder, *how, python=sys.executable):
        live = str(Path(__file__).with_name("sampler_live.py"))
        argv = [str(python), "-B", "-W", "error", live, str(PAYLOAD), str(folder), *how]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr + (folder / "log").read_text()
        pids.append(daemon.PidFile.read(str(folder / "pid")))
        return pids[-1]

    yield start
    for pid in filter(None, pids):
        if daemon.describe_process(pid).find("sampler_live") > 0:
            os.kill(pid, signal.SIGKILL)


def end(folder, pid):
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not (folder / "pid").exists())
    assert (folder / "log").read_text() == ""


@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: path.parts[-3])
def test_rows_of_a_live_server(tmp_path, port, python, start):
    configure(tmp_path, port)
    pid = start(tmp_path, python=python)
    wait_until(lambda: len(rows(tmp_path)) >= 4 and any("states" in row for row in rows(tmp_path)))
    end(tmp_path, pid)
    first, *others = rows(tmp_path)
    assert "cpu_busy" not in first and first["files"] > 0 and first["mem_available"] > 0 and first["tcp_inuse"] > 0
    assert [row["t"] for row in others] == sorted(row["t"] for row in others)
    assert all(
        0 <= row["cpu_busy"] <= 1 and isinstance(row["counters"], dict) for row in others if "cpu_busy" in row
    )
    counted = [row for row in rows(tmp_path) if "states" in row]
    assert all(row["states"]["server"] == {"LISTEN": 1, "ESTAB": COUNT} for row in counted)
    assert all(row["states"]["client"] == {"ESTAB": COUNT} for row in counted)
    assert all(row["count"]["source"] == "netlink" and row["count"]["cpu"] > 0 for row in counted)
    assert all(row["server_rss"] > 1 << 20 for row in rows(tmp_path))  # of whoever listens: this process
    (note,) = [line["unavailable"] for line in lines(tmp_path) if "unavailable" in line]
    assert note == {"server_connections": f"the server of port {port} is not one that keeps counters"}
    assert "epoch" in lines(tmp_path)[0] and lines(tmp_path)[-1] == {"ended": "told to"}


def test_without_netlink_and_ss_it_counts_from_proc_and_says_so(tmp_path, port, start):
    configure(tmp_path, port)
    pid = start(tmp_path, "no_tools")
    wait_until(lambda: any("states" in row for row in rows(tmp_path)))
    end(tmp_path, pid)
    row = next(row for row in rows(tmp_path) if "states" in row)
    assert row["states"] == {"server": {"LISTEN": 1, "ESTAB": COUNT}, "client": {"ESTAB": COUNT}}
    assert row["count"]["source"] == "proc"
    assert row["count"]["not_used"][0]["reason"].startswith("ENOENT")


def test_it_ends_when_the_port_has_been_quiet(tmp_path, listener, start):
    configure(tmp_path, listener.getsockname()[1])
    start(tmp_path, "quiet")
    wait_until(lambda: not (tmp_path / "pid").exists())
    assert lines(tmp_path)[-1] == {"ended": "no connections any more"}


def test_counts_come_no_more_often_than_their_share_of_a_processor(port):
    count = observe_sampler.Count(port)
    count.begin()
    found = None
    while not (found := count.take()):
        time.sleep(0.01)
    assert count.next == pytest.approx(count._begun + found["cpu"] / observe_sampler.STATES_SHARE)
    count.next = time.monotonic() + 60
    count.begin()
    assert count.fd is None  # too early
    count.stop()


def test_a_count_that_hangs_is_ended(port, monkeypatch):
    monkeypatch.setattr(observe_sampler, "COUNT_TIMEOUT", 0.0)
    monkeypatch.setattr(observe_sampler, "count_sockets", lambda port: time.sleep(60))
    count = observe_sampler.Count(port)
    count.begin()
    count.begin()
    found = None
    while not (found := count.take()):
        time.sleep(0.01)
    assert "did not end within" in found["states"]["unavailable"]


BEFORE = {"t": 1.0, "cpu": (10.0, 40.0), "gauges": {}, "counters": {"a": 5, "b": 5}, "processes": {7: 1.0}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"cpu_busy": 0.25, "server_cpu": 0.5, "counters": {"a": 3}}),
        ({"cpu": (9.0, 44.0)}, {"cpu_busy": 0.0}),  # iowait can go backwards
        ({"counters": {"a": 8, "new": 9}}, {"counters": {"a": 3}}),
        ({"counters": {"a": 2}}, {"counters": {}}),  # a network stack that began anew
        ({"processes": {7: 1.5, 8: 0.5}}, {"server_cpu": 0.5}),
        ({"processes": {9: 0.25}}, {"server_cpu": 0.125}),  # started again
    ],
)
def test_difference(change, expected):
    now = {
        "t": 3.0,
        "cpu": (11.0, 44.0),
        "gauges": {"files": 9},
        "counters": {"a": 8, "b": 5},
        "processes": {7: 2.0},
    }
    row = observe_sampler.difference(BEFORE, now | change)
    assert {name: row[name] for name in expected} == expected
    assert (row["t"], row["files"]) == (3.0, 9)


@pytest.mark.parametrize("gone", ["cpu", "processes"])
def test_what_could_not_be_read_is_not_in_the_row(gone):
    now = BEFORE | {"t": 2.0, "processes": {}}
    now.pop("cpu")
    assert set(observe_sampler.difference(BEFORE, now)) == {"t", "counters"}


# ---------------------------------------------------------------- the operation


class Context:
    """An agent's context without an agent."""

    check = diff = False

    @property
    def sources(self):
        return {path.stem: path.read_text() for path in PAYLOAD.glob("*.py")}

    def run_command(self, argv, timeout=None):
        return subprocess.run(argv, capture_output=True, timeout=timeout, check=False)


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.setattr(stress, "state_directory", lambda: str(tmp_path / "state"))

    def call(action, **more):
        return sample.run({"action": action, "run_id": "20260101-000000-abcd", "name": "s1"} | more, Context())

    return call


def test_a_sampler_is_started_read_ended_and_leaves_nothing(ask, port, tmp_path):
    config = {"port": port, "server": False, "pid_file": None, "counters": []}
    assert ask("start", config=config)["changed"] is True
    assert ask("start", config=config) == {"changed": False, "msg": "started before"}
    with pytest.raises(OperationError, match="still runs"):
        ask("remove")
    first = ask("read", offset=0)
    assert first["alive"] and "epoch" in first["lines"][0] and "server_rss" not in first["lines"][1]
    ask("end")
    rest = ask("read", offset=first["offset"])
    assert not rest["alive"] and rest["lines"][-1] == {"ended": "told to"} and rest["log"] == ""
    ask("remove")
    assert not (tmp_path / "state/samples").exists()


def test_what_cannot_be_read_or_named_is_said(ask):
    with pytest.raises(OperationError, match="no samples: No such file"):
        ask("read", offset=0)
    for wrong in ({"name": "../x"}, {"run_id": ""}, {"action": "x"}):
        with pytest.raises(OperationError):
            ask(**{"action": "end", **wrong})
