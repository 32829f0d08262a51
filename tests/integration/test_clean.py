"""`clean` on the lab: whatever tasks left on a host, its file tree is afterwards what it was before the first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, Inv, Lab
from tests.integration.test_link import inventory

pytestmark = pytest.mark.lab

# Kind, owner, mode and content of every path; without what logins, clocks and services keep writing by themselves.
TREE = r"""
import hashlib, json, os, stat
LIVE = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/log", "/var/lib/systemd", "/var/lib/private",
        "/var/cache/ldconfig", "/usr", "/etc/machine-id", "/etc/.updated", "/var/.updated", "/var/lib/sudo")
found = {}
for top, folders, files in os.walk("/"):
    folders[:] = [one for one in folders if os.path.join(top, one) not in LIVE]
    for name in folders + files:
        path = os.path.join(top, name)
        if path in LIVE:
            continue
        status = os.lstat(path)
        found[path] = [status.st_mode, status.st_uid, status.st_gid]
        if stat.S_ISLNK(status.st_mode):
            found[path].append(os.readlink(path))
        elif stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20:
            with open(path, "rb") as source:
                found[path].append(hashlib.sha256(source.read()).hexdigest())
for folder in ("/run", "/tmp", "/var/tmp", "/var/log", "/usr/local"):
    found[folder + " names"] = sorted(name for name in os.listdir(folder) if "tcpfleet" in name)
print(json.dumps(found))
"""


def tree(lab: Lab, host: str) -> dict[str, list[object]]:
    found: dict[str, list[object]] = json.loads(lab.ssh(host, "python3 -I -S -", stdin=TREE))
    return found


def differences(before: dict[str, list[object]], after: dict[str, list[object]]) -> dict[str, object]:
    return {
        path: (before.get(path), after.get(path))
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    }


def started(lab: Lab, host: str) -> str:
    """A stress client of a controller that went away."""
    return lab.ssh(host, "pgrep -fc '[s]tress_client.py' || true").strip()


def test_nothing_is_left_of_tune_deploy_and_stress(running_lab: Lab, inv: Inv) -> None:
    hosts = ("s1", "c1")
    inv("rollback", "--hosts", "s1:c1", "--all")
    inv("clean", "--hosts", "s1:c1")
    before = {name: tree(running_lab, name) for name in hosts}
    inv("tune", "--hosts", "s1:c1")
    inv("deploy-server")
    inv("stress", "--hosts", "c1", "--per-client", "200", "--hold", "1")
    refused = inv("clean", "--hosts", "s1:c1", code=2)
    assert "(tune) is not rolled back" in refused.stdout and "inv rollback --hosts s1 --all" in refused.stdout
    assert inv.json("server-status")["servers"]["s1"]["running"] is True
    inv("stop-server")
    inv("rollback", "--hosts", "s1:c1", "--all")
    would = inv.json("clean", "--hosts", "s1:c1", "--check")["hosts"]
    assert would["s1"]["changed"] and would["c1"]["changed"]
    assert running_lab.ssh("c1", "ls /var/lib/tcpfleet").split()
    inv("clean", "--hosts", "s1:c1")
    for name in hosts:
        assert differences(before[name], tree(running_lab, name)) == {}, name
    again = inv.json("clean", "--hosts", "s1:c1")["hosts"]
    assert [again[name]["changed"] for name in hosts] == [False, False]


@pytest.mark.parametrize("manager", ["systemd", pytest.param("daemon", marks=pytest.mark.full)])
def test_a_running_server_and_a_running_client_are_ended(running_lab: Lab, inv: Inv, manager: str) -> None:
    inv("clean", "--hosts", "s1:c1")
    before = {name: tree(running_lab, name) for name in ("s1", "c1")}
    inv("deploy-server", "--manager", manager)
    inv("stress", "--hosts", "c1", "--per-client", "50", "--hold", "600", "--detach")
    assert started(running_lab, "c1") != "0"
    said = inv("clean", "--hosts", "s1:c1").stdout
    assert "s1: stopped" in said and "c1: stopped 1 stress clients of run" in said
    assert started(running_lab, "c1") == "0"
    assert running_lab.ssh("s1", "pgrep -fc '[e]cho_server.py' || true").strip() == "0"
    assert running_lab.ssh("s1", "systemctl is-failed tcpfleet-echo.service || true").strip() != "failed"
    for name, was in before.items():
        assert differences(was, tree(running_lab, name)) == {}, name


def test_all_identities_of_a_login_with_sudo(running_lab: Lab, inv: Inv, tmp_path: Path) -> None:
    sudo = {"ansible_user": "deploy", "ansible_become": True}
    path = inventory(tmp_path, c2={"ansible_host": "10.77.0.22"} | sudo)
    inv("clean", "--hosts", "c2")
    before = tree(running_lab, "c2")
    inv("tune", "--hosts", "c2", "--inventory", path)
    running_lab.ssh("c2", "ls -d /root/.cache/tcpfleet /home/deploy/.cache/tcpfleet /var/lib/tcpfleet")
    inv("rollback", "--hosts", "c2", "--all", "--inventory", path)
    inv("clean", "--hosts", "c2", "--inventory", path)
    assert differences(before, tree(running_lab, "c2")) == {}


def test_this_machine_over_the_local_link(tmp_path: Path) -> None:
    """In a mount namespace of its own: what the machine's owner has there is not touched."""
    script = """
    set -e
    mount -t tmpfs none "$2" && mkdir "$2/changes" "$2/work"
    mount -t overlay none -o lowerdir=/root,upperdir="$2/changes",workdir="$2/work" /root
    for place in /var/lib /etc/systemd/system /run; do mount -t tmpfs none $place; done
    mkdir -p /root/.cache/tcpfleet /var/lib/tcpfleet/runs
    "$1" -m invoke ping --hosts local >/dev/null
    "$1" -m invoke clean --hosts local --json
    [ ! -e /root/.cache/tcpfleet ] && [ -z "$(ls -A /var/lib)" ]
    "$1" -m invoke clean --hosts local --json
    [ ! -e /root/.cache/tcpfleet ]
    """
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads(line)["hosts"]["local"] for line in done.stdout.splitlines())
    assert first["changed"] is True and {entry["status"] for entry in first["entries"]} == {"removed"}
    assert second["changed"] is False and second["entries"] == []
