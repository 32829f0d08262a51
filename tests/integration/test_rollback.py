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


def _dying(self, descriptor, line):
    import signal

    _write(self, descriptor, line)
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
    return without_counters(json.loads(lab.ssh(host, "python3 -I -S -", stdin=SNAPSHOT)))


def without_counters(found: dict[str, Any]) -> dict[str, Any]:
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
    left = "ls /var/lib/tcpfleet/journal 2>/dev/null | grep 'jsonl$' | grep -v undone || true"
    if any(running_lab.ssh(host, left) for host in (HOST, OTHER)):
        inv("rollback", "--hosts", f"{HOST},{OTHER}", "--all", "--force", code=None)
    for host in (HOST, OTHER):
        running_lab.ssh(host, "rm -rf /var/lib/tcpfleet/journal ~deploy/.local/state/tcpfleet")
    return snapshot(running_lab)


JOURNAL = (ROOT / "payload/journal.py").read_text()


def inv_with(payload: Path, journal: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A task whose agents are made from a copy of payload/ with another journal.py."""
    for source in (ROOT / "payload").rglob("*.py"):
        copy = payload / source.relative_to(ROOT / "payload")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(journal if source.name == "journal.py" else source.read_text())
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
    unit = "/etc/systemd/system/tcpfleet-echo.service"
    limits = "systemctl show -p LimitNOFILE,NeedDaemonReload,DropInPaths tcpfleet-echo"
    running_lab.ssh(HOST, f"printf '[Service]\\nExecStart=/bin/true\\n' > {unit}; systemctl daemon-reload")
    try:
        before, shown = snapshot(running_lab), running_lab.ssh(HOST, limits)
        tuned = inv.json("tune", "--hosts", HOST)
        assert running_lab.ssh(HOST, limits) != shown
        running_lab.ssh(HOST, "set -e\n" + "\n".join(tuned["undo"][HOST]))
        assert differences(before, snapshot(running_lab)) == {}
        assert running_lab.ssh(HOST, limits) == shown
        counts = inv.json("rollback", "--hosts", HOST)["hosts"][HOST]["counts"]
        assert counts.pop("restored", 1) == 1 and counts.keys() == {"already"}  # systemd reads its files once more
    finally:
        running_lab.ssh(HOST, f"rm {unit}; systemctl daemon-reload")


def killed_and_back(
    tmp_path: Path, inv: Inv, lab: Lab, clean: dict[str, Any], count: int, profile: str = "article"
) -> bool:
    """One kill after `count` changes, and the way back; returns whether the run came that far."""
    payload = tmp_path / f"payload-{count}"
    dying = JOURNAL + DYING.format(count=count)
    done = inv_with(payload, dying, "tune", "--hosts", HOST, "--profile", profile)
    killed = done.returncode == 4
    assert killed or done.returncode == 0, done.stdout + done.stderr
    inv("rollback", "--hosts", HOST)
    assert differences(clean, snapshot(lab)) == {}
    return killed


def test_killed_and_back(tmp_path: Path, inv: Inv, running_lab: Lab, clean: dict[str, Any]) -> None:
    assert killed_and_back(tmp_path, inv, running_lab, clean, 9)


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


@pytest.mark.full
def test_after_a_reboot(inv: Inv, running_lab: Lab, clean: dict[str, Any]) -> None:
    other = snapshot(running_lab, OTHER)
    inv("tune", "--hosts", f"{HOST},{OTHER}")
    running_lab.ssh(
        OTHER, "rm /etc/sysctl.d/99-tcpfleet.conf; echo net.core.somaxconn=777 > /etc/sysctl.d/50-own.conf"
    )
    running_lab.reboot(HOST, OTHER)
    # The file that the run wrote has set its values again; where someone removed it, nothing has.
    values = "cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/tcp_max_syn_backlog"
    assert running_lab.ssh(HOST, values).split() == ["65535", "16384"]
    assert running_lab.ssh(OTHER, values).split()[0] == "777"
    answer = inv.json("rollback", "--hosts", f"{HOST},{OTHER}")
    assert set(answer["hosts"][HOST]["counts"]) == {"restored"}
    assert differences(clean, snapshot(running_lab)) == {}
    told = {entry["what"]: entry for entry in entries(answer, OTHER)}
    assert told["net.core.somaxconn"]["status"] == "gone" and "booted since" in told["net.core.somaxconn"]["msg"]
    assert told["net.ipv4.tcp_max_syn_backlog"]["status"] == "already"
    running_lab.ssh(OTHER, "rm /etc/sysctl.d/50-own.conf; sysctl -qw net.core.somaxconn=4096")
    assert differences(other, snapshot(running_lab, OTHER)) == {}


UNITS = """
- hosts: all
  gather_facts: false
  tasks:
    - copy:
        content: |
          [Service]
          ExecStart=/bin/sleep infinity
          [Install]
          WantedBy=multi-user.target tcpfleet-own.target
          Alias=rolled-alias.service
        dest: /etc/systemd/system/rolled-new.service
    - systemd_service: {name: rolled-new, daemon_reload: true, enabled: true, state: started}
    - systemd_service: {name: rolled-on.service, enabled: false, state: stopped}
    - systemd_service: {name: rolled-off.service, enabled: true, state: started}
    - systemd_service: {name: rolled-off.service, state: restarted}
    - systemd_service: {name: rolled-masked.service, masked: false}
    - systemd_service: {name: rolled-masked.service, state: started}
    - systemd_service: {name: rolled-plain.service, masked: true}
    - copy:
        content: |
          [Service]
          ExecStart=
          ExecStart=/bin/sleep 8888
        dest: /etc/systemd/system/rolled-run.service.d/x.conf
      notify: restart
  handlers:
    - name: restart
      systemd_service: {name: rolled-run.service, state: restarted, daemon_reload: true}
"""
BEFORE_UNITS = r"""
cd /etc/systemd/system
for name in on off masked plain run; do
  printf '[Service]\nExecStart=/bin/sleep 7777\n[Install]\nWantedBy=multi-user.target\n' > rolled-$name.service
done
mkdir rolled-run.service.d
mv rolled-masked.service rolled-plain.service /run/systemd/system/
systemctl daemon-reload
systemctl -q enable --now rolled-on; systemctl start rolled-run; systemctl -q mask rolled-masked
"""
UNIT_STATES = """
for name in new on off masked plain run; do
  systemctl show -p UnitFileState,ActiveState,LoadState,NeedDaemonReload,ExecStart rolled-$name.service |
    sed 's/start_time.*//'
  systemctl is-enabled rolled-$name.service 2>&1 || true
done
"""


def test_real_units(inv: Inv, running_lab: Lab, clean: dict[str, Any], tmp_path: Path) -> None:
    book = tmp_path / "units.yml"
    book.write_text(UNITS)
    running_lab.ssh(HOST, BEFORE_UNITS)
    try:
        before, states = snapshot(running_lab), running_lab.ssh(HOST, UNIT_STATES)
        inv("play", str(book), "--hosts", HOST)
        now = running_lab.ssh(HOST, UNIT_STATES)
        assert "sleep 8888" in now and "sleep infinity" in now and now.count("ActiveState=active") == 4
        answer = inv.json("rollback", "--hosts", HOST)
        assert not answer["hosts"][HOST]["counts"].keys() & {"refused", "failed", "gone"}, answer
        assert running_lab.ssh(HOST, UNIT_STATES) == states
        assert differences(before, snapshot(running_lab)) == {}
    finally:
        running_lab.ssh(
            HOST,
            "systemctl stop 'rolled-*'; systemctl -q disable rolled-on; cd /etc/systemd/system; rm -r rolled-* "
            "/run/systemd/system/rolled-*; systemctl daemon-reload; systemctl reset-failed 'rolled-*'",
            check=False,
        )


def test_a_deployed_server_that_still_runs_is_named(inv: Inv, running_lab: Lab, clean: dict[str, Any]) -> None:
    asked = ("--manager", "daemon", "--max-connections", "100", "--workers", "1")
    inv("deploy-server", "--hosts", HOST, *asked)
    done = inv("rollback", "--hosts", HOST)
    (line,) = [one for one in done.stdout.splitlines() if "still running" in one]
    command = line.partition("still running; ")[2].partition(" ends it")[0]
    assert "echo_server.py" in line and command.startswith("kill ")
    running_lab.ssh(HOST, f"{command}; while [ -e /proc/{command.split()[1]} ]; do sleep 0.05; done")
    left = running_lab.ssh(HOST, "ls /opt; pgrep -f '[e]cho_server.py' || true; rm -f /var/log/tcpfleet-echo.log")
    assert left == ""
    assert differences(clean, snapshot(running_lab)) == {}


def test_a_deployed_unit_is_stopped_and_gone(inv: Inv, running_lab: Lab, clean: dict[str, Any]) -> None:
    asked = ("--manager", "systemd", "--max-connections", "100", "--workers", "1")
    inv("deploy-server", "--hosts", HOST, *asked)
    assert running_lab.ssh(HOST, "systemctl is-active tcpfleet-echo; systemctl is-enabled tcpfleet-echo") == (
        "active\nenabled\n"
    )
    answer = inv.json("rollback", "--hosts", HOST)["hosts"][HOST]
    assert not answer["counts"].keys() & {"refused", "failed"}, answer
    left = running_lab.ssh(HOST, "ls /opt; pgrep -f '[e]cho_server.py' || true; rm -f /var/log/tcpfleet-echo.log")
    assert left == ""
    assert "tcpfleet" not in running_lab.ssh(HOST, "systemctl list-units --all; systemctl list-unit-files")
    assert differences(clean, snapshot(running_lab)) == {}


ODD = r"""
cd /etc/sysctl.d
printf '# no newline at the end\nnet.ipv4.tcp_fin_timeout = 61' > 10-noend.conf
printf 'this is no setting\n= 3\nnet.core.somaxconn 1\nkernel.nothing.here = 9\n\377\000\n' > 20-bad.conf
printf '# from Windows\r\nnet.ipv4.tcp_syn_retries = 5\r\n\r\nvm.swappiness=60' > 30-crlf.conf
printf '* soft nofile 5000\r\nroot hard nofile' > /etc/security/limits.d/10-crlf.conf
printf 'net.ipv4.tcp_retries2 = 14\r\nnot a setting' >> /etc/sysctl.conf
"""
ODD_BOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.posix.sysctl:
        {name: net.core.somaxconn, value: "5000", sysctl_set: true, reload: false, sysctl_file: "{{ item }}"}
      loop: [/etc/sysctl.d/10-noend.conf, /etc/sysctl.d/20-bad.conf, /etc/sysctl.d/30-crlf.conf, /etc/sysctl.conf]
    - lineinfile: {path: /etc/sysctl.d/30-crlf.conf, line: net.ipv4.tcp_syn_retries = 6, regexp: ^net.ipv4.tcp_syn}
    - blockinfile: {path: /etc/sysctl.d/10-noend.conf, block: net.ipv4.tcp_fin_timeout = 62}
    - lineinfile: {path: /etc/sysctl.d/99-tcpfleet.conf, line: fs.nr_open = 1048577, regexp: ^-fs.nr_open}
    - pam_limits:
        {dest: /etc/security/limits.d/10-crlf.conf, domain: ops, limit_type: hard, limit_item: nproc, value: "60"}
"""


def test_odd_files_survive(inv: Inv, running_lab: Lab, clean: dict[str, Any], tmp_path: Path) -> None:
    book = tmp_path / "odd.yml"
    book.write_text(ODD_BOOK)
    running_lab.ssh(HOST, "cp -a /etc/sysctl.conf /root/; " + ODD)
    try:
        before = snapshot(running_lab)
        inv("tune", "--hosts", HOST)
        tuned = snapshot(running_lab)
        assert {path for path in differences(before, tuned) if "sysctl.d/" in path or "limits" in path} == {
            "/etc/sysctl.d/99-tcpfleet.conf", "/etc/security/limits.d/99-tcpfleet.conf"
        }  # fmt: skip
        assert tuned["/etc/sysctl.conf"] == before["/etc/sysctl.conf"]
        inv("play", str(book), "--hosts", HOST)
        edited = differences(tuned, snapshot(running_lab))
        assert len([path for path in edited if path.startswith("/etc/") and path.endswith(".conf")]) == 6
        answer = inv.json("rollback", "--hosts", HOST, "--all")
        assert answer["hosts"][HOST]["counts"].keys() == {"restored"}
        assert differences(before, snapshot(running_lab)) == {}
    finally:
        running_lab.ssh(
            HOST,
            "mv /root/sysctl.conf /etc/; cd /etc/sysctl.d; "
            "rm 10-noend.conf 20-bad.conf 30-crlf.conf /etc/security/limits.d/10-crlf.conf",
        )


def test_a_controller_that_is_killed(inv: Inv, running_lab: Lab, clean: dict[str, Any]) -> None:
    """As the lid of a laptop that closes: agents end, and what they had done can be undone at once."""
    process = inv.start("tune", "--hosts", f"{HOST},{OTHER}")
    deadline = time.monotonic() + 30
    journal = "cat /var/lib/tcpfleet/journal/*.jsonl 2>/dev/null | wc -l"
    while int(running_lab.ssh(HOST, journal)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
    process.kill()
    process.communicate()
    answer = inv.json("rollback", "--hosts", f"{HOST},{OTHER}")
    assert entries(answer) and not answer["hosts"][HOST]["counts"].keys() & {"refused", "failed"}
    assert differences(clean, snapshot(running_lab)) == {}
