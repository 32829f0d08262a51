"""The echo server as a service of real hosts: systemd minds it, versions and options change, it comes back."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tcpfleet import lab
from tests.integration.conftest import Inv, Lab

pytestmark = pytest.mark.lab

PORT = 1883
UNIT = "tcpfleet-echo.service"


@pytest.fixture(scope="module")
def served(running_lab: Lab, inv: Inv) -> Iterator[Lab]:
    inv("deploy-server")
    yield running_lab
    inv("stop-server")


def status(inv: Inv) -> dict[str, Any]:
    state: dict[str, Any] = inv.json("server-status")["servers"]["s1"]
    return state


def shown(lab: Lab, *names: str) -> dict[str, str]:
    """Properties of the unit on s1."""
    lines = lab.ssh("s1", f"systemctl show {UNIT} -p {','.join(names)}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def until(what: str, holds: Callable[[], object], patience: float = 30) -> None:
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.1)


def echo(sock: socket.socket, message: bytes = b"hello\0") -> None:
    sock.sendall(message)
    got = b""
    while len(got) < len(message):
        piece = sock.recv(len(message) - len(got))
        assert piece, "the server closed the connection"
        got += piece
    assert got == message


def connected(lab: Lab) -> socket.socket:
    sock = socket.create_connection((lab.hosts["s1"].address, PORT), 10)
    echo(sock)
    return sock


def accepts(lab: Lab) -> bool:
    try:
        connected(lab).close()
    except OSError:
        return False
    return True


def test_systemd_minds_it(served: Lab, inv: Inv) -> None:
    state = status(inv)
    unit = shown(served, "ActiveState", "UnitFileState", "Type", "MainPID", "StatusText", "NoNewPrivileges")
    assert unit["StatusText"].startswith(f"listening on 0.0.0.0:{PORT}: ")
    assert (unit["ActiveState"], unit["UnitFileState"], unit["Type"]) == ("active", "enabled", "notify")
    assert int(unit["MainPID"]) == state["pid"] and state["manager"] == "systemd"
    assert unit["NoNewPrivileges"] == "yes"
    for pid in (state["pid"], state["workers"][0]["pid"]):
        limits = served.ssh("s1", f"cat /proc/{pid}/limits")
        line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
        assert line.split()[3:5] == [str(state["nofile"])] * 2
    assert "Read-only" in served.ssh("s1", f"nsenter -t {state['pid']} -m touch /usr/probe 2>&1; true")
    # It belongs to no session, so that logind has nothing to kill at logout.
    assert served.ssh("s1", f"cat /proc/{state['pid']}/cgroup").strip().endswith(f"/system.slice/{UNIT}")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("server_user=nosuch", "there is no user nosuch; the running server was left as it is"),
        pytest.param(
            "server_workers=600",
            "'600' is not a number from 1 to 512; the running server was left as it is",
            marks=pytest.mark.full,
        ),
        pytest.param("server_port=0", "server_port must be 1 to 65535", marks=pytest.mark.full),
    ],
)
def test_a_running_server_is_not_stopped_for_what_cannot_start(
    served: Lab, inv: Inv, options: str, sentence: str
) -> None:
    before = status(inv)["pid"]
    done = inv("play", "playbooks/deploy-server.yml", "--hosts", "s1", "--extra-vars", options, code=2)
    assert sentence in done.stdout
    assert status(inv)["pid"] == before


@pytest.mark.full
def test_its_files_may_be_in_tmp(served: Lab, inv: Inv) -> None:
    """The unit has a /tmp of its own, in which nobody else found the pid file."""
    places = "server_hosts=c4 server_pid_file=/tmp/echo.pid server_log_file=/var/tmp/echo.log"
    book = ("--extra-vars", places)
    try:
        inv("play", "playbooks/deploy-server.yml", *book)
        assert inv.json("play", "playbooks/deploy-server.yml", *book)["hosts"]["c4"]["changed"] == 0
        assert "reloaded pid" in served.ssh(
            "c4", "python3 -ESs /opt/tcpfleet/echo_server.py reload --pid-file /tmp/echo.pid"
        )
    finally:
        inv("play", "playbooks/stop-server.yml", *book)


def test_it_is_back_after_kill_9_of_the_supervisor(served: Lab, inv: Inv) -> None:
    before = status(inv)["pid"]
    served.ssh("s1", f"kill -9 {before}")
    until(
        "another one runs",
        lambda: shown(served, "MainPID")["MainPID"] not in ("0", str(before)) and accepts(served),
    )
    assert status(inv)["pid"] != before
    assert shown(served, "NRestarts")["NRestarts"] == "1"


@pytest.mark.full
def test_it_survives_logout_where_logind_kills_what_users_leave(served: Lab, inv: Inv) -> None:
    conf = "/etc/systemd/logind.conf.d/kill.conf"
    served.ssh(
        "s1",
        f"mkdir -p $(dirname {conf}); printf '[Login]\\nKillUserProcesses=yes\\nKillExcludeUsers=\\n' > {conf}; "
        "systemctl restart systemd-logind",
    )
    try:
        inv("deploy-server", "--max-connections", "20k")
        before = status(inv)["pid"]
        by_hand = (
            "python3 /opt/tcpfleet/echo_server.py start --port 1999 --pid-file /run/o.pid --log-file /run/o.log"
        )
        said = served.ssh("s1", by_hand)
        time.sleep(1)
        assert status(inv)["pid"] == before
        # A daemon that a login starts by itself is killed there, and it has said so.
        assert "logind" in said and "KillUserProcesses" in said
    finally:
        served.ssh("s1", f"rm {conf}; systemctl restart systemd-logind; rm -f /run/o.*")
        inv("deploy-server")


def test_a_new_version_takes_over_the_connections_and_other_options_restart(served: Lab, inv: Inv) -> None:
    inv("deploy-server")
    served.ssh("s1", f"echo '# another version' >> /opt/tcpfleet/echo_log.py; systemctl reload {UNIT}")
    before = status(inv)
    held = [connected(served) for _ in range(50)]
    assert inv.json("deploy-server")["hosts"]["s1"]["changed"] > 0
    after = status(inv)
    assert after["version"] != before["version"] and after["pid"] == before["pid"]
    for one in held:
        echo(one)
        one.close()
    assert inv.json("deploy-server")["hosts"]["s1"]["changed"] == 0
    inv("deploy-server", "--mode", "http")
    assert status(inv)["pid"] != before["pid"]
    with socket.create_connection((served.hosts["s1"].address, PORT), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: s1\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    inv("deploy-server")


def test_reload_that_cannot_be_is_said_and_the_old_code_goes_on(served: Lab, inv: Inv) -> None:
    held = connected(served)
    served.ssh("s1", "echo 'raise RuntimeError(\"half\")' >> /opt/tcpfleet/echo_worker.py")
    try:
        done = inv("reload-server", code=2)
        assert "not reloaded: the new code does not load: RuntimeError: half" in done.stdout + done.stderr
        echo(held)
    finally:
        inv("deploy-server")
    echo(held)
    assert inv.json("reload-server")["servers"]["s1"]["reloaded"] is True
    echo(held)
    held.close()


def test_a_port_in_use_is_said_and_not_tried_again(served: Lab, inv: Inv) -> None:
    done = inv("deploy-server", "--hosts", "c4", "--port", "22", code=2)
    assert "port 22 is in use" in done.stdout
    assert served.ssh("c4", f"systemctl is-active {UNIT}; true").strip() == "inactive"
    assert served.ssh("c4", "systemctl is-system-running").strip() == "running"
    assert inv.json("stop-server", "--hosts", "c4")["hosts"]["c4"]["changed"] == 0


@pytest.mark.full
def test_workers_of_another_user_under_systemd(served: Lab, inv: Inv) -> None:
    options = "server_user=nobody server_idle_timeout=300 server_keepalive=60,10,5"
    try:
        book = ("play", "playbooks/deploy-server.yml", "--hosts", "s1", "--extra-vars", options)
        inv(*book)
        state = status(inv)
        assert state["options"]["user"] == "nobody" and state["options"]["keepalive"] == [60, 10, 5]
        pid = state["workers"][0]["pid"]
        assert served.ssh("s1", f"grep -E '^(Uid|CapEff)' /proc/{pid}/status").split()[1:3] == ["65534"] * 2
        assert inv.json(*book)["hosts"]["s1"]["changed"] == 0
        held = connected(served)
        assert inv.json("reload-server")["servers"]["s1"]["reloaded"] is True
        echo(held)
        held.close()
    finally:
        inv("deploy-server")


def test_from_systemd_to_daemon_and_back(served: Lab, inv: Inv) -> None:
    inv("deploy-server", "--manager", "daemon")
    state = status(inv)
    assert state["running"] and state["manager"] == "none"
    assert served.ssh("s1", f"systemctl is-active {UNIT}; true").strip() == "inactive"
    assert served.ssh("s1", f"ls /etc/systemd/system/{UNIT} 2>&1; true").count("No such file")
    assert inv.json("deploy-server", "--manager", "daemon")["hosts"]["s1"]["changed"] == 0
    assert inv.json("stop-server", "--check")["hosts"]["s1"]["changed"] == 1
    assert inv.json("reload-server", "--check")["servers"]["s1"]["reloaded"] is False
    assert status(inv)["pid"] == state["pid"] and status(inv)["reload"]["attempts"] == 0
    inv("deploy-server")
    assert status(inv)["manager"] == "systemd"


def test_the_log_is_shown_and_followed_through_a_rotation(served: Lab, inv: Inv) -> None:
    shown_lines = inv.json("server-log", "--lines", "3")["servers"]["s1"]["lines"]
    assert 1 <= len(shown_lines) <= 3
    process = inv.start("server-log", "--follow", "--lines", "0")
    try:
        time.sleep(2)
        pid = status(inv)["pid"]
        served.ssh("s1", f"mv /var/log/tcpfleet-echo.log /var/log/tcpfleet-echo.log.1; kill -USR1 {pid}")
        time.sleep(1)
        served.ssh("s1", f"kill -TTIN {pid}")
        time.sleep(2)
    finally:
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "workers for" in out and out.count("workers for") == 1, out + err
    served.ssh("s1", f"kill -TTOU {status(inv)['pid']}; rm /var/log/tcpfleet-echo.log.1")


@pytest.mark.full
def test_it_runs_after_a_boot(served: Lab, inv: Inv) -> None:
    """The host's own systemd goes down and up again. systemd-nspawn ends at a reboot and is called anew."""
    pid = next(one.pid for one in lab.status().hosts if one.name == "s1")
    machine = served.hosts["s1"].machine
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    groups = [root / machine for root in lab._cgroup_roots() if (root / machine).is_dir()]

    def enter() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text("0")

    before = status(inv)["started"]
    served.ssh("s1", "systemctl --no-block reboot", check=False)
    until("the host is down", lambda: not lab._alive(pid or 0), 60)
    if Path(f"/sys/class/net/vb-{machine}").exists():
        subprocess.run(["ip", "link", "delete", f"vb-{machine}"], check=False)
    subprocess.run(
        [b"setsid", b"-f", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=enter,
        check=True,
    )
    until("it accepts", lambda: accepts(served), 60)
    inv("lab-up")  # waits until the host answers
    state = status(inv)
    assert state["running"] and state["manager"] == "systemd" and state["started"] != before


def test_a_stopped_server_stays_stopped(served: Lab, inv: Inv) -> None:
    inv("stop-server")
    assert served.ssh("s1", f"systemctl is-enabled {UNIT}; true").strip() == "disabled"
    assert not accepts(served)
    assert inv.json("stop-server")["hosts"]["s1"]["changed"] == 0
    assert json.loads(
        served.ssh("s1", "python3 /opt/tcpfleet/echo_server.py status --pid-file /run/tcpfleet-echo.pid; true")
    ) == {"running": False}
    inv("deploy-server")
