"""Walls that can be confined to a lab host, provoked there: each must be named as what it is."""

import base64
import json
import os
import signal
import subprocess
import time

import pytest

from tests.running import Inv, Lab

pytestmark = [pytest.mark.lab, pytest.mark.full]

PORT = 1999
# A server in a few lines, and what is wrong with it.
ACCEPT = """
import select, socket, time
listener = socket.create_server(("0.0.0.0", {port}), backlog={backlog})
poll = select.epoll()
poll.register(listener, select.EPOLLIN)
links = {{}}
while True:
    for fd, event in poll.poll():
        if fd == listener.fileno():
            time.sleep({pause})
            try:
                link = listener.accept()[0]
            except OSError:
                time.sleep(0.05)
                continue
            links[link.fileno()] = link
            poll.register(link, select.EPOLLIN)
        else:
            try:
                data = links[fd].recv(65536)
                links[fd].sendall(data)
            except OSError:
                data = b""
            if not data or {close}:
                links.pop(fd).close()
"""
NEVER = """
import socket, time
listener = socket.create_server(("0.0.0.0", {port}), backlog={backlog})
time.sleep(600)
"""

CASES = [
    # wall, program, backlog, pause, close, nofile, options, words of the evidence
    ("the server does not accept", NEVER, 8, 0, "False", 1024, [], "accept queue of 8"),
    ("the server's accept queue", ACCEPT, 2, 0.03, "False", 1024, ["--in-flight", "100"], "holds 2"),
    (
        "open files of the server process (nofile)",
        ACCEPT,
        1024,
        0,
        "False",
        60,
        [],
        "1 of 1 server processes on s1 had all of their 60 open files",
    ),
    ("the server closes connections", ACCEPT, 1024, 0, "len(links) > 50", 1024, [], "EOF"),
]


def serve(lab: Lab, program: str, **values: object) -> None:
    """Starts a program of this file on s1 as unit `wall`, and waits until it listens."""
    packed = base64.b64encode(program.format(port=PORT, **values).encode()).decode()
    lab.ssh("s1", "systemctl stop wall 2>/dev/null; systemctl reset-failed wall 2>/dev/null; true")
    nofile = values.get("nofile", 1024)
    lab.ssh(
        "s1",
        f"systemd-run -q --unit=wall -p LimitNOFILE={nofile} "
        f"python3 -c 'import base64; exec(base64.b64decode(\"{packed}\"))'",
    )
    for _ in range(50):
        if lab.ssh("s1", f"ss -Hltn sport = :{PORT}").strip():
            return
        time.sleep(0.1)
    raise AssertionError("the server of the test does not listen")


def end_serving(lab: Lab) -> None:
    lab.ssh("s1", "systemctl stop wall; systemctl reset-failed wall 2>/dev/null; true")


@pytest.mark.parametrize(
    ("wall", "program", "backlog", "pause", "close", "nofile", "options", "words"),
    CASES,
    ids=[c[0] for c in CASES],
)
def test_walls_of_a_server(
    running_lab: Lab,
    inv: Inv,
    wall: str,
    program: str,
    backlog: int,
    pause: float,
    close: str,
    nofile: int,
    options: list[str],
    words: str,
) -> None:
    serve(running_lab, program, backlog=backlog, pause=pause, close=close, nofile=nofile)
    try:
        load = ["--clients", "2", "--per-client", "100", "--hold", "0.5", "--target", f"s1:{PORT}"]
        limits = ["--connect-timeout", "2", "--reply-timeout", "2"]
        run = inv.json("stress", "--hosts", "c1:c2", *load, *limits, *options, code=3)
    finally:
        end_serving(running_lab)
    assert run["wall"]["name"] == wall, run["wall"]
    assert words in run["wall"]["evidence"]
    assert run["connections"]["verified"] + run["connections"]["failed"] == run["connections"]["requested"] == 200
    assert run["plan"]["servers"][f"s1:{PORT}"]["backlog"] == backlog


def test_a_detached_load_is_followed_and_repeated(running_lab: Lab, inv: Inv) -> None:
    inv("deploy-server")
    load = ["--clients", "3", "--per-client", "100", "--hosts", "c1:c2", "--hold", "4", "--mode", "timer"]
    rules = ["--interval", "0.5", "--fail-if", "failed > 0", "--message", "{conn}.{seq}.{rand:16}"]
    started = inv.json("stress", *load, *rules, "--detach")
    assert started["detached"] is True
    run = inv.json("stress", "--attach", started["run_id"])
    assert run["run_id"] == started["run_id"] and run["connections"]["verified"] == 300
    assert run["thresholds"] == [{"text": "failed > 0", "value": 0, "failed": False}]
    assert run["echoes"]["sent"] > 300
    assert "finished" in inv("stress", "--attach", started["run_id"], code=1).stderr
    again = inv.json("stress", "--repeat", started["run_id"])
    assert (
        again["command"] == run["command"] and again["plan"]["options"]["seed"] == run["plan"]["options"]["seed"]
    )
    assert again["connections"]["verified"] == 300 and again["run_id"] != run["run_id"]
    found = inv.json(
        "find-limit", "--clients", "2", "--hosts", "c1:c2", "--start", "200", "--most", "400", "--hold", "0"
    )
    assert found["limit"] == 400 and len(found["tries"]) == 2 and found["wall"] is None
    inv("stop-server")


def test_clients_of_a_killed_controller_do_not_wait_for_it(running_lab: Lab, inv: Inv) -> None:
    """Killed while the clients ramp, nobody will open the second barrier: they hold and end by themselves."""
    inv("deploy-server")
    load = ["--clients", "2", "--per-client", "300", "--hosts", "c1:c2", "--hold", "1", "--rate", "100"]
    process = inv.start("stress", *load)
    wait_for_client(running_lab, "c1")
    time.sleep(2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    begun = time.monotonic()
    while "stress_client" in running_lab.ssh("c1", "ps -eo args") and time.monotonic() < begun + 60:
        time.sleep(1)
    assert time.monotonic() - begun < 40
    record = inv.json("stress", "--attach", "latest")
    assert record["connections"]["verified"] == record["connections"]["requested"] == 600
    inv("stop-server")


def test_a_network_that_is_cut_for_ten_seconds_loses_no_count(running_lab: Lab, inv: Inv) -> None:
    inv("deploy-server")
    process = inv.start("stress", "--clients", "2", "--per-client", "200", "--hosts", "c1:c2", "--hold", "6")
    time.sleep(4)
    link = f"vb-{running_lab.hosts['c2'].machine}"
    subprocess.run(["ip", "link", "set", link, "down"], check=True)
    time.sleep(10)
    subprocess.run(["ip", "link", "set", link, "up"], check=True)
    out, err = process.communicate(timeout=150)
    inv("stop-server")
    assert process.returncode in (0, 3, 4), out + err
    assert "Traceback" not in err
    counts = [line for line in out.splitlines() if line.startswith("connections:")]
    assert "400 requested" in counts[0]
    verified, failed = (int(part.split()[0].replace(",", "")) for part in counts[0].split(",")[2:4])
    assert verified + failed == 400


LIMITS = ["--connect-timeout", "2", "--reply-timeout", "2"]
# Drops what would complete a handshake: the server's half-open connections stay.
HALF_OPEN = """table inet wall {{
  chain input {{
    type filter hook input priority 0;
    tcp dport {port} tcp flags & (syn | ack) == ack drop
  }}
}}"""
# Takes every port of a small range, as other programs of a client host may between the plan and the load.
TAKE = """
import socket, time
held = []
for port in range({low}, {high} + 1):
    one = socket.socket()
    try:
        one.bind(("0.0.0.0", port))
    except OSError:
        continue
    held.append(one)
print(len(held), flush=True)
time.sleep(60)
"""


def test_source_ports_that_others_took_after_the_plan(running_lab: Lab, inv: Inv) -> None:
    inv("deploy-server")
    ports = "/proc/sys/net/ipv4/ip_local_port_range"
    was = running_lab.ssh("c1", f"cat {ports}").strip()
    packed = base64.b64encode(TAKE.format(low=40000, high=40149).encode()).decode()
    try:
        running_lab.ssh("c1", f"echo 40000 40149 > {ports}")
        load = ["--clients", "1", "--per-client", "100", "--hosts", "c1", "--hold", "0", "--rate", "20"]
        process = inv.start("stress", *load, "--json")
        wait_for_client(running_lab, "c1")
        time.sleep(1)
        running_lab.ssh(
            "c1",
            f"systemd-run -q --unit=take python3 -c 'import base64; exec(base64.b64decode(\"{packed}\"))'",
        )
        out, err = process.communicate(timeout=120)
    finally:
        running_lab.ssh(
            "c1", f"systemctl stop take; systemctl reset-failed take 2>/dev/null; echo {was} > {ports}"
        )
        inv("stop-server")
    run = json.loads(out)
    assert process.returncode == 3, err
    assert "source ports" in run["wall"]["name"], run["wall"]
    counts = run["connections"]
    assert counts["failed"] > 0 and counts["verified"] + counts["failed"] == 100
    assert {row["errno"] for row in run["errors"]} == {"EADDRNOTAVAIL"}


def test_open_files_of_a_client_that_were_cut_after_the_plan(running_lab: Lab, inv: Inv) -> None:
    inv("deploy-server")
    load = ["--clients", "1", "--per-client", "100", "--hosts", "c1", "--hold", "0", "--rate", "20"]
    process = inv.start("stress", *load, "--json")
    try:
        wait_for_client(running_lab, "c1")
        time.sleep(1)
        running_lab.ssh(
            "c1", "for p in $(pgrep -f '[s]tress_client.py'); do prlimit --nofile=40:40 --pid $p; done"
        )
        out, err = process.communicate(timeout=120)
    finally:
        inv("stop-server")
    run = json.loads(out)
    assert process.returncode == 3, err
    assert run["wall"]["name"] == "open files of a client process", run["wall"]
    assert run["connections"]["verified"] + run["connections"]["failed"] == 100
    assert {row["errno"] for row in run["errors"]} == {"EMFILE"}


def test_the_capacity_of_our_server(running_lab: Lab, inv: Inv) -> None:
    """Two loads that fit alone and not together: the plan of neither can know."""
    inv("deploy-server", "--max-connections", "150")
    load = ["--clients", "1", "--per-client", "100", "--hold", "8", "--rate", "40", *LIMITS]
    try:
        first = inv.start("stress", *load, "--hosts", "c1", "--json")
        second = inv.start("stress", *load, "--hosts", "c2", "--json")
        ended = [(*one.communicate(timeout=120), one.returncode) for one in (first, second)]
    finally:
        inv("stop-server")
    runs = [json.loads(out) for out, _, _ in ended]
    assert sum(run["connections"]["verified"] for run in runs) <= 150
    failed = [run for run in runs if run["verdict"] == "fail"]
    assert failed, ended
    for run in failed:
        assert run["wall"]["name"] == "the server's own connection limit", run["wall"]
        assert run["connections"]["verified"] + run["connections"]["failed"] == 100


def test_processors_that_have_no_time_left(running_lab: Lab, inv: Inv) -> None:
    inv("deploy-server")
    load = ["--clients", "2", "--per-client", "200", "--hosts", "c1:c2", "--mode", "flood", "--hold", "4"]
    try:
        run = inv.json("stress", *load, "--fail-if", "p50_service_ms > 0.001", code=3)
    finally:
        inv("stop-server")
    assert run["connections"]["verified"] == 400
    assert run["wall"]["name"].startswith("CPU of "), run["wall"]
    assert "one machine, counted once" in run["wall"]["name"]


def wait_for_client(lab: Lab, host: str) -> None:
    deadline = time.monotonic() + 40
    while "stress_client" not in lab.ssh(host, "ps -eo args"):
        assert time.monotonic() < deadline, "no client runs"
        time.sleep(0.2)


def test_a_killed_worker_is_counted_and_the_others_finish(running_lab: Lab, inv: Inv) -> None:
    inv("deploy-server")
    load = ["--clients", "2", "--per-client", "200", "--hosts", "c1:c2", "--hold", "5", "--mode", "heartbeat"]
    process = inv.start("stress", *load, "--interval", "1", "--json")
    try:
        wait_for_client(running_lab, "c1")
        time.sleep(4)
        running_lab.ssh("c1", "kill -9 $(pgrep -f '[s]tress_client.py' | tail -1)")
        out, err = process.communicate(timeout=120)
    finally:
        inv("stop-server")
    run = json.loads(out)
    assert process.returncode == 3, err
    counts, echoes = run["connections"], run["echoes"]
    assert counts["failed"] > 0 and counts["verified"] + counts["failed"] == counts["requested"] == 400
    assert echoes["sent"] == echoes["verified"] + echoes["mismatched"] + echoes["lost"]
    assert run["wall"]["name"] == "a worker of a stress client died", run["wall"]
    for host in ("c1", "c2"):
        assert "stress_client" not in running_lab.ssh(host, "ps -eo args")
