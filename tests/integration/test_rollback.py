"""Tune and take it back on real hosts: also after SIGKILL at each step, on a full disk, after others' changes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.running import ROOT, Inv, Lab

pytestmark = pytest.mark.lab

HOST, OTHER = "c3", "c4"
# What the kernel counts or draws by itself.
COUNTERS = (
    "fs/aio-nr", "fs/dentry-state", "fs/file-nr", "fs/inode-nr", "fs/inode-state", "fs/quota/",
    "net/netfilter/nf_conntrack_count", "net/core/netdev_rss_key",
)  # fmt: skip
SNAPSHOT = """
import hashlib, json, os
found = {}
for top in ("/proc/sys/net", "/proc/sys/fs", "/etc"):
    for folder, folders, names in os.walk(top):
        for path in [folder] + [os.path.join(folder, name) for name in names + folders]:
            try:
                status = os.lstat(path)
                what = [status.st_mode, status.st_uid, status.st_gid]
                if os.path.islink(path):
                    what.append(os.readlink(path))
                elif os.path.isfile(path):
                    with open(path, "rb") as source:
                        content = source.read()
                    what.append(repr(content) if top != "/etc" else hashlib.sha256(content).hexdigest())
            except OSError as error:
                what = [error.strerror]
            found[path] = what
print(json.dumps(found))
"""
# The agent's journal kills the agent after so many entries; {count} is filled in.
DYING = """

_write, _entries = Journal._write, []


def _dying(self, line):
    import signal

    _write(self, line)
    _entries.append(line["kind"])
    if len(_entries) - _entries.count("begin") == {count}:
        os.kill(os.getpid(), signal.SIGKILL)


Journal._write = _dying
"""
DRIVER = """
import sys
from pathlib import Path
from tcpfleet import link
link.PAYLOAD = Path(sys.argv.pop(1))
from invoke.main import program
program.run(["inv", *sys.argv[1:]])
"""


def snapshot(lab: Lab, host: str = HOST) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.ssh(host, "python3 -I -S -", stdin=SNAPSHOT))
    own = tuple(f"/proc/sys/{name}" for name in COUNTERS)
    return {path: what for path, what in found.items() if not path.startswith(own)}


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    return {
        path: (before.get(path), now.get(path))
        for path in sorted(before.keys() | now.keys())
        if before.get(path) != now.get(path)
    }


def entries(answer: dict[str, Any], host: str = HOST) -> list[dict[str, Any]]:
    return [entry for run in answer["hosts"][host]["undone"] for entry in run["entries"]]


@pytest.fixture
def clean(inv: Inv, running_lab: Lab) -> dict[str, Any]:
    """Hosts with no journal; what HOST is like."""
    inv("rollback", "--hosts", f"{HOST},{OTHER}", "--all", "--force", code=None)
    for host in (HOST, OTHER):
        running_lab.ssh(host, "rm -rf /var/lib/tcpfleet/journal ~deploy/.local/state/tcpfleet")
    return snapshot(running_lab)


def dying_inv(tmp_path: Path, inv: Inv, count: int, *words: str) -> subprocess.CompletedProcess[str]:
    """A task whose agents kill themselves after so many journalled changes."""
    payload = tmp_path / f"payload-{count}"
    for source in (ROOT / "payload").rglob("*.py"):
        copy = payload / source.relative_to(ROOT / "payload")
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text()
        copy.write_text(text + DYING.format(count=count) if source.name == "journal.py" else text)
    command = [sys.executable, "-c", DRIVER, str(payload), *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False
    )


@pytest.mark.parametrize(
    "profile",
    ["article", *(pytest.param(name, marks=pytest.mark.full) for name in ("c100k", "c1m", "client"))],
)
def test_tune_and_back(inv: Inv, running_lab: Lab, clean: dict[str, Any], profile: str) -> None:
    if not (ROOT / "playbooks" / "profiles" / f"{profile}.yml").exists():
        pytest.skip(f"there is no profile {profile}")
    tuned = inv.json("tune", "--hosts", HOST, "--profile", profile)
    assert differences(clean, snapshot(running_lab))
    run = tuned["run"]
    listed = inv.json("rollback", "--hosts", HOST, "--list")["hosts"][HOST]["runs"]
    assert [(one["run"], one["state"], one["command"]) for one in listed] == [
        (run, "can be undone", f"tune --profile {profile}")
    ]
    assert inv.json("rollback", "--hosts", HOST, "--check")["hosts"][HOST]["counts"].keys() == {"would-restore"}
    answer = inv.json("rollback", "--hosts", HOST)
    assert answer["hosts"][HOST]["counts"].keys() == {"restored"}
    assert differences(clean, snapshot(running_lab)) == {}
    again = inv.json("rollback", "--hosts", HOST)
    assert again["hosts"][HOST]["undone"] == [] and again["hosts"][HOST]["counts"] == {}
    assert [one["state"] for one in again["hosts"][HOST]["runs"]] == ["undone"]
    assert running_lab.ssh(HOST, "stat -c '%a %U' /var/lib/tcpfleet/journal /var/lib/tcpfleet/journal/*") == (
        "700 root\n600 root\n"
    )


def test_the_commands_by_hand_undo_it_too(inv: Inv, running_lab: Lab, clean: dict[str, Any]) -> None:
    tuned = inv.json("tune", "--hosts", HOST)
    running_lab.ssh(HOST, "set -e\n" + "\n".join(tuned["undo"][HOST]))
    assert differences(clean, snapshot(running_lab)) == {}
    answer = inv.json("rollback", "--hosts", HOST)
    assert {entry["status"] for entry in entries(answer) if entry["what"] != "systemctl daemon-reload"} == {
        "already"
    }
    # A second tune and --all: everything back to before the first.
    inv("tune", "--hosts", HOST)
    inv("tune", "--hosts", HOST, "--profile", "article")
    running_lab.ssh(HOST, "sed -i '$d' /etc/sysctl.d/99-tcpfleet.conf")
    inv("tune", "--hosts", HOST)
    assert inv.json("rollback", "--hosts", HOST, code=None)["hosts"][HOST]["undone"]
    assert inv.json("rollback", "--hosts", HOST, "--all", "--force")["hosts"][HOST]["status"] == "ok"
    assert differences(clean, snapshot(running_lab)) == {}


def killed_and_back(
    tmp_path: Path, inv: Inv, lab: Lab, clean: dict[str, Any], count: int, profile: str = "article"
) -> bool:
    """One kill after `count` changes, and the way back; returns whether the run came that far."""
    done = dying_inv(tmp_path, inv, count, "tune", "--hosts", HOST, "--profile", profile)
    killed = done.returncode == 4
    assert killed or done.returncode == 0, done.stdout + done.stderr
    for attempt in range(50):  # the agent's end frees the journal
        answer = inv.json("rollback", "--hosts", HOST, code=None)
        if "under way" not in str(answer["hosts"][HOST].get("error")):
            break
        assert attempt < 49
        time.sleep(0.2)
    assert answer["exit_code"] == 0, answer
    assert differences(clean, snapshot(lab)) == {}
    return killed


@pytest.mark.parametrize("count", [1, 4, 9])
def test_killed_and_back(tmp_path: Path, inv: Inv, running_lab: Lab, clean: dict[str, Any], count: int) -> None:
    assert killed_and_back(tmp_path, inv, running_lab, clean, count)


@pytest.mark.full
@pytest.mark.parametrize("profile", ["article", "c100k", "c1m", "client"])
def test_killed_after_every_change_and_back(
    tmp_path: Path, inv: Inv, running_lab: Lab, clean: dict[str, Any], profile: str
) -> None:
    if not (ROOT / "playbooks" / "profiles" / f"{profile}.yml").exists():
        pytest.skip(f"there is no profile {profile}")
    count = 1
    while killed_and_back(tmp_path, inv, running_lab, clean, count, profile):
        count += 1
    assert count > 10


def test_what_someone_else_changed_is_left_unless_forced(
    inv: Inv, running_lab: Lab, clean: dict[str, Any]
) -> None:
    limits = "/etc/security/limits.d/99-tcpfleet.conf"
    inv("tune", "--hosts", f"{HOST},{OTHER}")
    running_lab.ssh(HOST, f"echo '# mine' >> {limits}; sysctl -qw net.core.somaxconn=777")
    done = inv("rollback", "--hosts", f"{HOST},{OTHER}", code=2)
    assert "-# mine" in done.stdout and "refused=2" in done.stdout
    assert "# mine" in running_lab.ssh(HOST, f"cat {limits}")
    assert running_lab.ssh(HOST, "cat /proc/sys/net/core/somaxconn").strip() == "777"
    assert running_lab.ssh(OTHER, f"ls {limits} 2>/dev/null || true") == ""
    answer = inv.json("rollback", "--hosts", HOST, "--force")
    forced = [one["what"] for one in entries(answer) if one["kind"] != "unit" and one["status"] == "restored"]
    assert sorted(forced) == [limits, "net.core.somaxconn"]
    assert differences(clean, snapshot(running_lab)) == {}


def test_a_read_only_etc(inv: Inv, running_lab: Lab, clean: dict[str, Any]) -> None:
    running_lab.ssh(HOST, "mount --bind /etc /etc && mount -o remount,bind,ro /etc")
    try:
        answer = inv.json("tune", "--hosts", f"{HOST},{OTHER}", code=2)
        assert "Read-only file system" in answer["reasons"][HOST] and answer["hosts"][OTHER]["failed"] == 0
        assert inv.json("rollback", "--hosts", HOST)["hosts"][HOST]["counts"] == {"already": 1}
    finally:
        running_lab.ssh(HOST, "umount /etc")
    assert differences(clean, snapshot(running_lab)) == {}


def test_a_full_disk(inv: Inv, running_lab: Lab, clean: dict[str, Any]) -> None:
    full = "mount -t tmpfs -o size=16k,mode=755 none {0} && (cat /dev/zero > {0}/filler || true) 2>/dev/null"
    running_lab.ssh(HOST, "mkdir -p /var/lib/tcpfleet; " + full.format("/var/lib/tcpfleet"))
    running_lab.ssh(HOST, "chmod 700 /var/lib/tcpfleet")
    try:
        answer = inv.json("tune", "--hosts", HOST, code=2)
        assert "No space left on device; nothing was changed" in answer["reasons"][HOST]
        assert differences(clean, snapshot(running_lab)) == {}
    finally:
        running_lab.ssh(HOST, "umount /var/lib/tcpfleet")
    # The journal can be written, the file cannot.
    running_lab.ssh(HOST, full.format("/etc/security/limits.d"))
    try:
        answer = inv.json("tune", "--hosts", HOST, code=2)
        assert "No space left on device" in answer["reasons"][HOST]
        assert running_lab.ssh(HOST, "ls -A /etc/security/limits.d") == "filler\n"
        assert inv.json("rollback", "--hosts", HOST)["hosts"][HOST]["status"] == "ok"
    finally:
        running_lab.ssh(HOST, "umount /etc/security/limits.d")
    assert differences(clean, snapshot(running_lab)) == {}


PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - copy: {content: own, dest: /home/deploy/own.conf}
    - command: touch /home/deploy/touched
    - file: {path: /etc/rolled, state: directory, owner: deploy, mode: "0700"}
      become: true
    - copy: {content: in root's folder, dest: /etc/rolled/mine}
    - copy: {content: secret, dest: /etc/secret.conf, mode: "0600"}
      become: true
      no_log: true
"""


def test_a_login_that_is_not_root(inv: Inv, running_lab: Lab, clean: dict[str, Any], tmp_path: Path) -> None:
    host = running_lab.hosts[HOST]
    inventory, book = tmp_path / "hosts.yml", tmp_path / "own.yml"
    words = running_lab.argv(HOST)
    key = words[words.index("-i") + 1]
    known = next(word for word in words if "UserKnownHostsFile=" in word).partition("=")[2]
    inventory.write_text(
        f"all:\n  hosts:\n    {HOST}:\n      ansible_host: {host.address}\n      ansible_user: deploy\n"
        f"      ansible_ssh_private_key_file: {key}\n"
        f"      ansible_ssh_common_args: -o UserKnownHostsFile={known}\n"
    )
    book.write_text(PLAYBOOK)
    inv("play", str(book), "--inventory", str(inventory))
    assert running_lab.ssh(HOST, "cat /home/deploy/own.conf /etc/rolled/mine") == "ownin root's folder"
    answer = inv.json("rollback", "--hosts", HOST, "--inventory", str(inventory))
    counts = answer["hosts"][HOST]["counts"]
    assert counts["not-reversible"] == 1 and not counts.keys() & {"refused", "failed"}
    running_lab.ssh(HOST, "test ! -e /home/deploy/own.conf -a ! -e /etc/rolled -a ! -e /etc/secret.conf")
    running_lab.ssh(HOST, "rm /home/deploy/touched")
    assert differences(clean, snapshot(running_lab)) == {}
