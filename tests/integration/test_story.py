"""The four commands on real hosts, in the order in which users run them, and what can go wrong on the way."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, Inv, Lab

pytestmark = pytest.mark.lab

PORT = 1883


@pytest.fixture(scope="module")
def tuned(running_lab: Lab, inv: Inv) -> Lab:
    inv("tune", "--hosts", "lab")
    return running_lab


@pytest.fixture(scope="module")
def served(tuned: Lab, inv: Inv) -> Iterator[Lab]:
    inv("deploy-server")
    yield tuned
    inv("stop-server")


def latest() -> dict[str, Any]:
    run: dict[str, Any] = json.loads((ROOT / "reports/latest/run.json").read_text())
    return run


def samples_of(host: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"reports/latest/samples/{host}.json").read_text())
    return found


def nothing_runs(lab: Lab, pattern: str = "stress_client") -> None:
    for name in lab.hosts:
        assert lab.ssh(name, f"pgrep -fa '[{pattern[0]}]{pattern[1:]}' || true") == ""


# ---------------------------------------------------------------- tune


def test_tune_tells_every_key_apart_and_repeats_without_a_change(
    running_lab: Lab, inv: Inv, tmp_path: Path
) -> None:
    for file in (ROOT / "inventory").glob("*.yml"):
        text = file.read_text().replace("{{ inventory_dir }}/..", str(ROOT))
        (tmp_path / file.name).write_text(text)
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / "lab.yml").write_text(
        "sysctl_overrides:\n  net.ipv4.ip_local_port_range: 1 65000\n"
    )
    # 2: a refused value fails its host, and stops nothing else.
    first = inv.json("tune", "--hosts", "lab", "--inventory", str(tmp_path), code=2)
    again = inv.json("tune", "--hosts", "lab", "--inventory", str(tmp_path), code=2)
    statuses = {row["key"]: row for row in first["tuning"]["s1"]["keys"]}
    assert len(statuses) == 15
    assert statuses["net.core.somaxconn"]["status"] in ("applied", "already")
    assert statuses["net.ipv4.tcp_mem"]["status"] == "absent"
    assert statuses["net.core.rmem_max"]["status"] == "read-only"
    refused = statuses["net.ipv4.ip_local_port_range"]
    assert (refused["status"], refused["errno"]) == ("refused", "EINVAL")
    assert {host["changed"] for host in again["hosts"].values()} == {0}
    assert {row["status"] for row in again["tuning"]["c1"]["keys"]} == {
        "already",
        "already (higher)",
        "absent",
        "read-only",
        "refused",
    }
    for row in again["tuning"]["s1"]["keys"]:
        path = "/proc/sys/" + row["key"].replace(".", "/")
        there = running_lab.ssh("s1", f"cat {path} 2>/dev/null || true").split()
        assert (row["in_force"] or "").split() == there, row


def test_the_limit_that_tune_claims_is_what_a_new_login_has(tuned: Lab, inv: Inv) -> None:
    claims = inv.json("tune", "--hosts", "lab")["tuning"]
    for name in tuned.hosts:
        claimed = claims[name]["nofile"]
        soft, hard = (int(word) for word in tuned.ssh(name, "ulimit -Sn; ulimit -Hn").split())
        assert (claimed["login"]["soft"], claimed["login"]["hard"]) == (soft, hard)
        assert claimed["granted"] == soft and claimed["asked"] == 1048576


def test_check_changes_nothing(running_lab: Lab, inv: Inv) -> None:
    look = "cat /etc/sysctl.d/* /etc/security/limits.d/* 2>/dev/null | md5sum; cat /proc/sys/net/core/somaxconn"
    running_lab.ssh("c3", "rm -f /etc/sysctl.d/99-tcpfleet.conf; echo 5000 > /proc/sys/net/core/somaxconn")
    before = running_lab.ssh("c3", look)
    data = inv.json("tune", "--hosts", "c3", "--check", "--diff")
    assert running_lab.ssh("c3", look) == before
    rows = {row["key"]: row["status"] for row in data["tuning"]["c3"]["keys"]}
    assert rows["net.core.somaxconn"] == "would-apply"
    inv("tune", "--hosts", "c3")


# ---------------------------------------------------------------- deploy


def test_the_server_is_a_daemon_that_outlives_its_session(served: Lab, inv: Inv) -> None:
    status = inv.json("server-status")["servers"]["s1"]
    pid = status["pid"]
    look = f"cut -d' ' -f6 /proc/{pid}/stat; for n in 0 1 2; do readlink /proc/{pid}/fd/$n; done"
    facts = served.ssh("s1", look).split("\n")
    assert int(facts[0]) not in (0, 1)
    session = served.ssh("s1", f"cut -d' ' -f6 /proc/{pid}/stat; cut -d' ' -f6 /proc/self/stat").split()
    assert session[0] != session[1]
    assert set(facts[1:4]) <= {"/dev/null", "/var/log/tcpfleet-echo.log"}
    assert status["capacity"] >= 262144 and status["nofile"] == 20000 and len(status["workers"]) >= 14
    echoed = served.ssh("c1", f"exec 3<>/dev/tcp/10.77.0.11/{PORT}; printf hello >&3; head -c 5 <&3")
    assert echoed == "hello"


def test_deploying_again_changes_nothing_and_new_options_restart(served: Lab, inv: Inv) -> None:
    before = inv.json("server-status")["servers"]["s1"]["pid"]
    assert inv.json("deploy-server")["hosts"]["s1"]["changed"] == 0
    assert inv.json("server-status")["servers"]["s1"]["pid"] == before
    assert inv.json("deploy-server", "--max-connections", "10k")["hosts"]["s1"]["changed"] > 0
    now = inv.json("server-status")["servers"]["s1"]
    assert now["pid"] != before and now["capacity"] == 10000
    refused = inv("stress", "--clients", "4", "--per-client", "5000", code=5)
    assert "can hold 10,000 connections, 20,000 are asked" in refused.stderr
    kept = next(line.split()[-1] for line in refused.stderr.splitlines() if "refused plan is kept as" in line)
    compared = inv("compare-reports", kept, kept)
    assert "was refused before anything connected" in compared.stdout
    assert f"{kept} " in inv("reports").stdout
    inv("deploy-server")
    nothing_runs(served)


def test_start_by_hand_over_ssh_returns_at_once(served: Lab) -> None:
    begun = time.monotonic()
    served.ssh(
        "s1",
        "python3 /opt/tcpfleet/echo_server.py start --bind 0.0.0.0 --port 1999 --pid-file /run/other.pid "
        "--log-file /var/log/other.log",
    )
    assert time.monotonic() - begun < 5
    try:
        assert served.ssh("c1", "exec 3<>/dev/tcp/10.77.0.11/1999; printf x >&3; head -c 1 <&3") == "x"
    finally:
        served.ssh("s1", "python3 /opt/tcpfleet/echo_server.py stop --pid-file /run/other.pid")


def test_a_port_in_use_is_one_sentence(tuned: Lab, inv: Inv) -> None:
    done = inv("deploy-server", "--hosts", "c1", "--port", "22", code=2)
    assert "port 22 is in use" in done.stdout
    assert inv.json("server-status", "--hosts", "c1", code=2)["servers"]["c1"]["running"] is False


# ---------------------------------------------------------------- stress


def test_the_whole_story(served: Lab, inv: Inv) -> None:
    done = inv("stress", "--clients", "4", "--per-client", "2500", "--hold", "4")
    assert "verdict: pass" in done.stdout
    run = latest()
    assert run["connections"] == {
        "requested": 10000,
        "established": 10000,
        "verified": 10000,
        "failed": 0,
        "peak": 10000,
    }
    assert run["echoes"]["verified"] == run["echoes"]["sent"] >= 10000
    assert run["verdict"] == "pass" and run["wall"] is None and run["errors"] == []
    inv("collect-report")
    folder = ROOT / "reports/latest"
    summary = gzip.decompress((folder / "raw/peak/s1/ss-s.txt.gz").read_bytes()).decode()
    assert int(summary.partition("estab ")[2].partition(",")[0]) >= 10000
    sampled = samples_of("s1")
    assert sampled["unavailable"] == {} and len(sampled["rows"]) >= 4
    assert all(later["t"] > earlier["t"] for earlier, later in pairwise(sampled["rows"]))
    assert max(row["server_connections"] for row in sampled["rows"]) == 10000
    assert max(row["tcp_inuse"] for row in sampled["rows"]) >= 10000
    counted = [row["states"] for row in sampled["rows"] if "states" in row]
    assert max(states["server"].get("ESTAB", 0) for states in counted) == 10000
    assert sum(row.get("counters", {}).get("PassiveOpens", 0) for row in sampled["rows"]) >= 10000
    client = [row["states"]["client"] for row in samples_of("c1")["rows"] if "states" in row]
    assert max(states.get("ESTAB", 0) for states in client) == 2500
    html = (folder / "report.html").read_text()
    assert "10,000" in html and "<svg" in html
    assert json.loads((folder / "report.json").read_text())
    nothing_runs(served)
    nothing_runs(served, "observe_sampler")
    for name in served.hosts:
        left = "ls /var/lib/tcpfleet/runs /var/lib/tcpfleet/samples 2>/dev/null | wc -l"
        assert served.ssh(name, left).strip() == "0"


def test_five_clients_on_two_hosts_with_heartbeat_and_rate(served: Lab, inv: Inv) -> None:
    run = inv.json(
        *("stress", "--hosts", "c1:c2", "--clients", "5", "--per-client", "400", "--mode", "heartbeat"),
        *("--interval", "1", "--hold", "4", "--rate", "400"),
    )
    assert run["verdict"] == "pass" and run["connections"]["verified"] == 2000
    assert run["echoes"]["verified"] >= 2000 * 4
    assert 0.8 <= run["seconds"]["ramp"] <= 3


def test_what_one_address_cannot_hold_is_refused(served: Lab, inv: Inv) -> None:
    done = inv("stress", "--hosts", "c1", "--clients", "1", "--per-client", "70000", code=5)
    assert "10.77.0.21 allows" in done.stderr and "source" in done.stderr
    nothing_runs(served)


def test_nothing_listening_is_refused(served: Lab, inv: Inv) -> None:
    done = inv("stress", "--per-client", "10", "--target", "s1:1999", code=5)
    assert "nothing listens on port 1999" in done.stderr
    nothing_runs(served)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_stops_all_clients_and_reports_what_was_reached(
    served: Lab, inv: Inv, number: signal.Signals
) -> None:
    before = os.readlink(ROOT / "reports/latest")
    process = inv.start("stress", "--clients", "4", "--per-client", "500", "--hold", "60")
    deadline = time.monotonic() + 60
    while os.readlink(ROOT / "reports/latest") == before and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    nothing_runs(served)
    run = latest()
    assert run["interrupted"] is True
    assert run["connections"]["verified"] + run["connections"]["failed"] == run["connections"]["requested"] == 2000


@pytest.mark.full
def test_a_dropped_connection_does_not_end_the_run(served: Lab, inv: Inv) -> None:
    process = inv.start("stress", "--clients", "4", "--per-client", "500", "--hold", "12")
    time.sleep(6)
    dropped = served.ssh("c2", "pkill -f '^sshd: root@notty' ; true", check=False)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, out + err + dropped
    assert latest()["connections"]["verified"] == 2000
    nothing_runs(served)


def test_the_result_of_a_run_without_its_controller_is_fetched_later(served: Lab, inv: Inv) -> None:
    before = os.readlink(ROOT / "reports/latest")
    process = inv.start("stress", "--clients", "4", "--per-client", "300", "--hold", "4")
    deadline = time.monotonic() + 60
    while os.readlink(ROOT / "reports/latest") == before and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (ROOT / "reports/latest/run.json").exists()
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        clients = [
            client
            for runs in inv.json("stress-status")["runs"].values()
            for run in runs.values()
            for client in run
        ]
        if all(client["state"] in ("done", "failed") for client in clients):
            break
        time.sleep(1)
    inv("collect-report")
    run = latest()
    assert run["connections"]["verified"] == run["connections"]["requested"] == 1200
    for name in ("s1", "c1"):  # the samplers went on, and nothing is kept of the time after the load
        assert run["timeline"][-1]["t"] - 2 <= samples_of(name)["rows"][-1]["t"] <= run["timeline"][-1]["t"] + 10
    nothing_runs(served)
    nothing_runs(served, "observe_sampler")


def test_a_lost_client_host_is_counted_as_failed_and_the_others_finish(served: Lab, inv: Inv) -> None:
    from tcpfleet import lab

    victim = next(host for host in lab.status().hosts if host.name == "c4")
    process = started(inv, "--clients", "4", "--per-client", "250", "--hold", "8")
    timer = threading.Timer(4, lambda: os.kill(victim.pid or -1, signal.SIGKILL))
    timer.start()
    # Killing systemd-nspawn leaves its payload running; the host is gone when its init is.
    threading.Timer(4.2, lambda: lab._end_orphans({"c4"})).start()
    try:
        out, err = process.communicate(timeout=150)
    finally:
        inv("lab-up")
        inv("tune", "--hosts", "c4")
    assert process.returncode == 4, out + err
    run = latest()
    assert run["verdict"] == "fail" and run["wall"]["name"] == "a client host was lost"
    assert (run["connections"]["verified"], run["connections"]["failed"]) == (750, 250)
    lost = samples_of("c4")
    assert len(lost["rows"]) >= 2  # what was fetched before it died
    assert [name for name in lost["unavailable"] if name.startswith("rows after ")]
    assert samples_of("c1")["unavailable"] == {}
    inv("stop-stress")
    nothing_runs(served)


# ---------------------------------------------------------------- collect-report


def test_a_host_that_is_down_is_a_visible_gap(served: Lab, inv: Inv, tmp_path: Path) -> None:
    inv("stress", "--clients", "4", "--per-client", "100", "--hold", "1")
    served.ssh("c3", "systemctl stop ssh")
    try:
        inv("collect-report", code=4)
        assert "c3" in (ROOT / "reports/latest/report.md").read_text()
        seen = json.loads((ROOT / "reports/latest/observations/present/c3.json").read_text())
        assert seen["status"] == "unreachable"
    finally:
        from tcpfleet import lab

        pid = next(host.pid for host in lab.status().hosts if host.name == "c3")
        init = lab._children(pid or 0)[0]
        subprocess.run(["nsenter", "-t", str(init), "-a", "systemctl", "start", "ssh"], check=True)
    inv("collect-report")


# ---------------------------------------------------------------- bad use


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ping", "--hosts", "nosuch"], 1, "nosuch"),
        (["tune"], 1, "--hosts"),
        (["tune", "--hosts", "lab", "--profile", "nosuch"], 1, "article"),
        (["stress", "--per-client", "many"], 1, "'many' is not a number"),
        (["stress", "--clients", "0"], 1, "--clients"),
        (["stress", "--target", "192.0.2.1"], 1, "--allow-target"),
        (["stress", "--mode", "nonsense"], 1, "nonsense"),
        (["stress", "--rate", "fast"], 1, "fast"),
        (["collect-report", "--run", "../../etc"], 1, "there is no run"),
        (["ping", "--forks", "x"], 1, "--forks"),
        (["ping", "--inventory", "/nonexistent"], 1, "/nonexistent"),
        (["--dry", "ping"], 1, "--check"),
        (["deploy-server", "--port", "99999"], 1, "--port"),
        (["play", "/nonexistent.yml"], 1, "/nonexistent.yml"),
        (["nosuch-task"], 1, "nosuch-task"),
        (["ping", "--nosuch"], 1, "nosuch"),
    ],
)
def test_bad_use_is_one_sentence(served: Lab, inv: Inv, words: list[str], code: int, said: str) -> None:
    done = inv(*words, code=code)
    assert said in done.stderr, done.stderr
    nothing_runs(served)


def test_json_is_one_object_on_stdout_even_for_errors(running_lab: Lab) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "ping", "--hosts", "nosuch", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and json.loads(done.stdout)["exit_code"] == 1


# ---------------------------------------------------------------- found by breaking it


def started(inv: Inv, *words: str) -> "subprocess.Popen[str]":
    """A stress run in the background, at the moment in which its folder appears."""
    before = os.readlink(ROOT / "reports/latest") if (ROOT / "reports/latest").is_symlink() else None
    process = inv.start("stress", *words)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (ROOT / "reports/latest").is_symlink() and os.readlink(ROOT / "reports/latest") != before:
            return process
        time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


def test_what_was_interrupted_stays_so_when_results_are_fetched_later(served: Lab, inv: Inv) -> None:
    process = started(inv, "--per-client", "200", "--hold", "60")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    record = latest()
    # As if c1 had been out of reach at the end.
    next(host for host in record["hosts"] if host["name"] == "c1")["lost"] = "no sign of life"
    folder = ROOT / "reports/latest"
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "observations/after/c1.json").unlink()
    others = {name: (folder / f"observations/after/{name}.json").read_text() for name in ("s1", "c2", "c3", "c4")}
    inv("collect-report", code=None)
    again = latest()
    assert again["interrupted"] is True and again["verdict"] == "fail"
    for name, text in others.items():
        assert (folder / f"observations/after/{name}.json").read_text() == text


def test_stop_stress_says_so_under_check_and_makes_no_pass(served: Lab, inv: Inv) -> None:
    process = started(inv, "--per-client", "200", "--hold", "30")
    time.sleep(2)
    assert "would stop 1 clients" in inv("stop-stress", "--check").stdout
    assert process.poll() is None
    inv("stop-stress")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    run = latest()
    assert run["verdict"] == "fail" and run["interrupted"] is True
    assert any("was stopped after" in warning for warning in run["warnings"])


def test_few_forks_do_not_break_the_barriers(served: Lab, inv: Inv) -> None:
    run = inv.json("stress", "--clients", "4", "--per-client", "500", "--hold", "3", "--forks", "1")
    assert run["verdict"] == "pass" and run["connections"]["peak"] == 2000
    text = gzip.decompress((ROOT / "reports/latest/raw/peak/s1/ss-s.txt.gz").read_bytes()).decode()
    assert int(text.partition("estab ")[2].partition(",")[0]) >= 2000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--port", "22"), r"port 22 is in use by pid \d+ \(sshd"),
        (("--bind", "1.2.3.4"), "cannot listen on 1.2.3.4"),
    ],
)
def test_a_running_server_is_not_stopped_for_an_address_that_cannot_be_had(
    served: Lab, inv: Inv, options: tuple[str, str], sentence: str
) -> None:
    before = inv.json("server-status")["servers"]["s1"]["pid"]
    done = inv("deploy-server", *options, code=2)
    assert re.search(sentence, done.stdout) and "the running server was left as it is" in done.stdout
    assert inv.json("server-status")["servers"]["s1"]["pid"] == before


def test_check_counts_what_deploying_would_change(served: Lab, inv: Inv) -> None:
    assert inv.json("deploy-server", "--check")["hosts"]["s1"]["changed"] == 0
    would = inv.json("deploy-server", "--check", "--max-connections", "20k")["hosts"]["s1"]["changed"]
    assert would == 3  # the unit, one stop, one start
    assert inv.json("deploy-server", "--check")["hosts"]["s1"]["changed"] == 0


def test_a_machine_under_two_names_is_named(served: Lab, inv: Inv, tmp_path: Path) -> None:
    from tests.integration.test_link import C1, inventory

    path = inventory(
        tmp_path, one={"ansible_host": C1}, two={"ansible_host": C1}, s1={"ansible_host": "10.77.0.11"}
    )
    done = inv("stress", "--hosts", "one:two", "--target", "s1", "--per-client", "10", "--inventory", path, code=2)
    assert "under two names" in done.stderr
    nothing_runs(served)


def test_two_interrupts_say_what_is_left(served: Lab, inv: Inv) -> None:
    process = started(inv, "--per-client", "100", "--hold", "60")
    time.sleep(2)
    pids = served.ssh("c1", "pgrep -f '[s]tress_client.py'").split()
    served.ssh("c1", f"kill -STOP {' '.join(pids)}")
    try:
        process.send_signal(signal.SIGINT)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "may still run on" in err and "cleaned up" not in err
    finally:
        served.ssh("c1", f"kill -CONT {' '.join(pids)}")
        inv("stop-stress")
    nothing_runs(served)


def test_the_four_commands_as_a_user_with_sudo(tuned: Lab, inv: Inv, tmp_path: Path) -> None:
    from tests.integration.test_link import inventory

    sudo = {"ansible_user": "deploy", "ansible_become": True}
    addresses = {"s1": "10.77.0.11", "c1": "10.77.0.21", "c2": "10.77.0.22"}
    path = inventory(tmp_path, **{name: sudo | {"ansible_host": address} for name, address in addresses.items()})
    here = ("--inventory", path)
    inv("tune", "--hosts", "all", *here)
    inv("deploy-server", "--hosts", "s1", *here)
    try:
        assert inv.json("server-status", "--hosts", "s1", *here)["servers"]["s1"]["running"] is True
        run = inv.json(
            "stress", "--hosts", "c1:c2", "--target", "s1", "--per-client", "1500", "--hold", "1", *here
        )
        assert run["verdict"] == "pass" and run["connections"]["verified"] == 3000
        inv("collect-report", *here)
        seen = json.loads((ROOT / "reports/latest/observations/peak/s1.json").read_text())["observation"]
        assert seen["states"]["server"]["ESTAB"] == 3000 and seen["server"]["pid"]
        assert tuned.ssh("c1", "stat -c %U /home/deploy/.local/state/tcpfleet").strip() == "deploy"
    finally:
        inv("stop-server", "--hosts", "s1", *here)
    nothing_runs(tuned)
