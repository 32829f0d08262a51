"""The lab itself: real hosts, idempotent, survives an interrupt, one per machine, leaves nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcpfleet import lab
from tests import leaks
from tests.integration.conftest import ROOT, Inv, Lab

pytestmark = pytest.mark.lab


@pytest.fixture
def no_lab() -> None:
    if lab.status().owner is not None:
        pytest.skip("a lab is up already, and this test needs to boot its own")


# First in this file on purpose: they boot and end labs of their own, before the one that all others share.


def test_an_interrupted_lab_up_cleans_up_and_the_next_one_works(no_lab: None, inv: Inv) -> None:
    before = leaks.snapshot()
    process = inv.start("lab-up")
    deadline = time.monotonic() + 30
    while not lab.STATE.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.8)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert leaks.left_since(before, leaks.LAB) == {} and not lab.STATE.exists()


@pytest.mark.parametrize("moment", [2.0, 3.2])
def test_impatient_signals_do_not_cut_the_clean_up_short(no_lab: None, inv: Inv, moment: float) -> None:
    before = leaks.snapshot()
    process = inv.start("lab-up")
    time.sleep(moment)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.15)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:  # it was up before the first signal came
        inv("lab-down")
    assert "Traceback" not in err
    assert leaks.left_since(before, leaks.LAB) == {} and not lab.STATE.exists() and not (ROOT / ".lab").exists()


def test_a_killed_lab_up_is_cleaned_up_by_the_next_command(no_lab: None, inv: Inv) -> None:
    before = leaks.snapshot()
    process = inv.start("lab-up")
    deadline = time.monotonic() + 30
    while not (lab.STATE / "hosts").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    inv("lab-down")
    assert leaks.left_since(before, leaks.LAB) == {} and not lab.STATE.exists() and not (ROOT / ".lab").exists()


def test_hosts_are_real(running_lab: Lab) -> None:
    assert sorted(running_lab.hosts) == ["c1", "c2", "c3", "c4", "s1"]
    for name in running_lab.hosts:
        facts = running_lab.ssh(name, "hostname; cat /proc/1/comm; systemctl is-system-running")
        assert facts.split() == [name, "systemd", "running"]
        hidden = running_lab.ssh(name, f"ls -A {ROOT} /root/.pyenv /opt /srv 2>/dev/null; ls -A /home")
        ours = {"tcpfleet"}  # what another test may have deployed to /opt
        seen = [line for line in hidden.split("\n") if line and not line.endswith(":") and line not in ours]
        assert seen == ["deploy", "ops"]


def test_machine_ids_and_host_keys_differ(running_lab: Lab) -> None:
    ids = {
        running_lab.ssh(name, "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub")
        for name in running_lab.hosts
    }
    assert len(ids) == len(running_lab.hosts)


@pytest.mark.parametrize(("user", "works"), [("deploy", True), ("ops", False)])
def test_sudo_users(running_lab: Lab, user: str, works: bool) -> None:
    said = running_lab.ssh("c1", "sudo -n id -u 2>/dev/null || echo asks", user=user).strip()
    assert said == ("0" if works else "asks")


def test_lab_up_again_changes_nothing(running_lab: Lab, inv: Inv) -> None:
    before = {host.name: host.pid for host in lab.status().hosts}
    inv("lab-up")
    assert {host.name: host.pid for host in lab.status().hosts} == before
    state = inv.json("lab-status")
    assert state["owner"] == str(ROOT) and {host["state"] for host in state["hosts"]} == {"running"}


def test_another_checkout_is_told_whose_lab_it_is(running_lab: Lab, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("tasks.py", "tcpfleet", "payload", "inventory", "playbooks", "templates"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, other / name)
    for task, code in (("lab-up", 5), ("lab-status", 0), ("lab-down", 5)):
        done = subprocess.run(
            [sys.executable, "-m", "invoke", task], cwd=other, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert str(ROOT) in done.stdout + done.stderr and "lab-down --any" in done.stdout + done.stderr
    assert {host.state for host in lab.status().hosts} == {"running"}


def test_a_host_that_died_is_booted_again_with_its_disk(running_lab: Lab, inv: Inv) -> None:
    look = "cat /etc/machine-id /etc/hosts /etc/kept; stat -c '%U %a' /etc/kept; ls /run/gone /tmp/gone"
    running_lab.ssh("c4", "echo 1 > /etc/kept; chown deploy: /etc/kept; touch /run/gone /tmp/gone")
    # A unit that fails at boot is no reason to keep the host down: nobody could mend it then.
    unit = "[Service]\\nType=oneshot\\nExecStart=/bin/false\\n"
    running_lab.ssh("c4", f"printf '{unit}' > /etc/systemd/system/sick.service")
    running_lab.ssh("c4", "systemctl -q add-wants multi-user.target sick.service")
    before = running_lab.ssh("c4", look)
    victim = next(host for host in lab.status().hosts if host.name == "c4")
    assert victim.pid
    os.kill(victim.pid, signal.SIGKILL)
    assert "with the disks that they had" in inv("lab-status", code=2).stdout
    try:
        assert "degraded, failed units: sick.service" in inv("lab-up", code=2).stdout
        assert running_lab.ssh("c4", look, check=False) + "/run/gone\n/tmp/gone\n" == before
    finally:
        running_lab.ssh(
            "c4",
            "rm /etc/kept /etc/systemd/system/sick.service /etc/systemd/system/*/sick.service; "
            "systemctl daemon-reload; systemctl reset-failed",
        )
    assert running_lab.ssh("c4", "systemctl is-system-running").strip() == "running"
    assert (
        inv.json("ping", "--hosts", "c4")["hosts"]["c4"]["status"] == "ok"
    )  # its host key is still the pinned one
