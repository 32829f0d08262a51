"""Tuning on real hosts: who has the last word, what cannot be had, logins that must go on working.

What a run changed is taken back (tests/integration/test_rollback.py): here, what a run says about it is true.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import ROOT, Inv, Lab

pytestmark = pytest.mark.lab

HOST, OTHER = "s1", "c1"
BOTH = f"{HOST},{OTHER}"
ZZ = "/etc/sysctl.d/99-zz.conf"
LIMITS = "/etc/security/limits.d"


def keys(answer: dict[str, Any], host: str = HOST) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in answer["tuning"][host]["keys"]}


@pytest.fixture
def back(inv: Inv, running_lab: Lab) -> Iterator[Lab]:
    """Hosts that no run has touched, also afterwards."""
    inv("rollback", "--hosts", BOTH, "--all", "--force", code=None)
    yield running_lab
    running_lab.ssh(HOST, f"rm -f {ZZ} {LIMITS}/zz.conf")
    inv("rollback", "--hosts", BOTH, "--all", "--force")


def with_overrides(folder: Path, text: str, host: str = HOST) -> str:
    """An inventory like the shipped one, with sysctl_overrides for one host."""
    for file in (ROOT / "inventory").glob("*.yml"):
        (folder / file.name).write_text(file.read_text().replace("{{ inventory_dir }}/..", str(ROOT)))
    (folder / "host_vars").mkdir()
    (folder / "host_vars" / f"{host}.yml").write_text(f"sysctl_overrides: {text}\n")
    return str(folder)


@pytest.mark.parametrize(
    "profile", ["c1m", *(pytest.param(one, marks=pytest.mark.full) for one in ("c100k", "client"))]
)
def test_a_second_run_changes_nothing_and_status_says_lasting(inv: Inv, back: Lab, profile: str) -> None:
    first = inv.json("tune", "--hosts", BOTH, "--profile", profile)
    assert first["tuning"][HOST]["nofile"]["login"]["soft"] == first["tuning"][HOST]["nofile"]["granted"]
    again = inv.json("tune", "--hosts", BOTH, "--profile", profile)
    assert {host["changed"] for host in again["hosts"].values()} == {0}
    statuses = {row["status"] for row in keys(again).values()}
    assert statuses <= {"already", "already (higher)", "absent", "read-only"}
    for key, row in keys(again).items():
        there = back.ssh(HOST, f"cat /proc/sys/{key.replace('.', '/')} 2>/dev/null || true").split()
        assert (row["in_force"] or "").split() == there
    status = inv.json("tune-status", "--hosts", BOTH)
    assert {host["profile"] for host in status["hosts"].values()} == {profile}
    assert {row["status"] for row in status["hosts"][HOST]["keys"]} <= {"lasting", "absent", "read-only"}
    # What PAM gives a login, independently of the code.
    assert back.ssh(HOST, "ulimit -Sn").strip() == str(first["tuning"][HOST]["nofile"]["granted"])


def test_another_file_has_the_last_word(inv: Inv, back: Lab) -> None:
    back.ssh(HOST, f"printf '# mine\\nnet.core.somaxconn = 1234' > {ZZ}")
    back.ssh(HOST, f"printf 'root soft nofile 4000\\n' > {LIMITS}/zz.conf")
    answer = inv.json("tune", "--hosts", BOTH)
    row = keys(answer)["net.core.somaxconn"]
    assert (row["status"], row["in_force"], row["after_boot"]) == ("overridden", "65535", "1234")
    assert row["boot_source"] == f"{ZZ}:2" and f"{ZZ}:2 sets 1234" in row["note"]
    assert keys(answer, OTHER)["net.core.somaxconn"]["status"] == "applied"
    nofile = answer["tuning"][HOST]["nofile"]
    assert nofile["login"]["soft"] == 4000 and f"{LIMITS}/zz.conf:1 (root soft nofile 4000)" in nofile["note"]
    status = inv.json("tune-status", "--hosts", BOTH, code=2)["hosts"]
    states = {row["key"]: row for row in status[HOST]["keys"]}
    assert states["net.core.somaxconn"]["status"] == "overridden" and not status[OTHER]["drifted"]
    # The programs agree: what boot and `sysctl --system` do to the running kernel.
    for command, value in (("/usr/lib/systemd/systemd-sysctl", "1234"), ("sysctl --system", "1234")):
        back.ssh(HOST, f"echo 77 > /proc/sys/net/core/somaxconn; {command} >/dev/null 2>&1 || true")
        assert back.ssh(HOST, "cat /proc/sys/net/core/somaxconn").strip() == value
    status = inv.json("tune-status", "--hosts", BOTH, code=2)["hosts"]
    states = {row["key"]: row["status"] for row in status[HOST]["keys"]}
    assert states["net.core.somaxconn"] == "drift" and states["net.ipv4.tcp_fin_timeout"] == "lasting"


def test_after_the_next_boot_is_as_foretold(inv: Inv, back: Lab) -> None:
    back.ssh(HOST, f"printf 'net.core.somaxconn = 1234\n-net.ipv4.tcp_max_syn_backlog=3000' > {ZZ}")
    inv("tune", "--hosts", BOTH)
    before = inv.json("tune-status", "--hosts", BOTH, code=2)["hosts"]
    back.reboot(HOST, OTHER)
    for host in (HOST, OTHER):
        foretold = {row["key"]: row["after_boot"] for row in before[host]["keys"] if row["after_boot"] is not None}
        paths = " ".join(f"/proc/sys/{key.replace('.', '/')}" for key in foretold)
        found = back.ssh(host, f"for path in {paths}; do echo $(cat $path); done").splitlines()
        assert dict(zip(foretold, found, strict=True)) == foretold
        assert len(foretold) >= 7 and (foretold["net.core.somaxconn"] == "1234") == (host == HOST)
    after = inv.json("tune-status", "--hosts", BOTH, code=2)["hosts"]
    drifted = {row["key"] for row in after[HOST]["keys"] if row["status"] == "drift"}
    assert drifted == {"net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog"} and not after[OTHER]["drifted"]


def test_wrong_values_and_keys_fail_their_host_alone(inv: Inv, back: Lab, tmp_path: Path) -> None:
    inventory = with_overrides(
        tmp_path, "{net.ipv4.tcp_fin_timeout: many, net.core.somaxcon: 5, net.ipv4.tcp_keepalive_probes: 0}"
    )
    done = inv("tune", "--hosts", BOTH, "--inventory", inventory, code=2)
    assert "refused (EINVAL)" in done.stdout and "is net.core.somaxconn meant?" in done.stdout
    answer = inv.json("tune", "--hosts", BOTH, "--inventory", inventory, code=2)
    assert keys(answer)["net.ipv4.tcp_fin_timeout"]["in_force"] == "60"
    assert keys(answer)["net.core.somaxconn"]["status"] == "already"
    assert not any(row["mistaken"] for row in keys(answer, OTHER).values())
    for wrong in ("c10k", "/nowhere/c10k.yml"):
        refused = inv("tune", "--hosts", BOTH, "--profile", wrong, code=1)
        assert wrong in refused.stderr


def test_a_host_that_lets_nobody_in_any_more_is_put_back_at_once(inv: Inv, back: Lab) -> None:
    before = back.ssh(HOST, "sysctl -n net.core.somaxconn").split()[-1]
    guard = "session required pam_exec.so quiet /usr/bin/test ! -e /etc/security/limits.d/99-tcpfleet.conf"
    back.ssh(HOST, f"cp -a /etc/pam.d/sshd /root/pam.sshd && echo '{guard}' >> /etc/pam.d/sshd")
    try:
        answer = inv.json("tune", "--hosts", BOTH, code=2)
        reason = answer["reasons"][HOST]
        assert "a new login failed after the tuning" in reason and "was taken back" in reason
        assert answer["hosts"][HOST]["failed"] == 1 and answer["tuning"][OTHER]["nofile"]["login"]["soft"] > 1024
        # It lets us in, so the file is gone; and so is everything else of this run.
        left = back.ssh(
            HOST, f"ls {LIMITS} /etc/sysctl.d/99-tcpfleet.conf 2>/dev/null || true; sysctl -n net.core.somaxconn"
        )
        assert left.split()[-1] == before and "99-tcpfleet" not in left
    finally:
        back.ssh(HOST, "mv /root/pam.sshd /etc/pam.d/sshd")


def test_servers_that_run_get_the_limit_too(inv: Inv, back: Lab, tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    inventory = with_overrides(tmp_path, "{}")
    (tmp_path / "group_vars" / "server.yml").write_text("nofile_units: [broker.service]\n")
    unit = "[Service]\\nExecStart=/bin/sleep 600\\nLimitNOFILE=1024:4096\\n"
    back.ssh(
        HOST,
        f"printf '{unit}' > /etc/systemd/system/broker.service; systemctl daemon-reload; systemctl start broker",
    )
    back.ssh(HOST, "ulimit -Sn 1000; sleep 600 >/dev/null 2>&1 & echo $! > /run/tcpfleet-echo.pid")
    pids = back.ssh(HOST, "systemctl show -p MainPID --value broker; cat /run/tcpfleet-echo.pid").split()
    try:
        answer = inv.json("tune", "--hosts", HOST, "--inventory", inventory)
        servers = {
            str(one["pid"]): (one["before"], one["now"]) for one in answer["tuning"][HOST]["nofile"]["servers"]
        }
        granted = answer["tuning"][HOST]["nofile"]["granted"]
        # Without CAP_SYS_RESOURCE a lab host cannot raise the hard limit that the unit has.
        assert servers == {pids[0]: (1024, 4096), pids[1]: (1000, granted)}
        for pid, (_before, now) in servers.items():
            assert back.ssh(HOST, f"sed -n 's/^Max open files *//p' /proc/{pid}/limits").split()[0] == str(now)
        back.ssh(HOST, "systemctl restart broker")
        assert back.ssh(HOST, "systemctl show -p LimitNOFILESoft --value broker").strip() == str(granted)
        assert inv.json("tune", "--hosts", HOST, "--inventory", inventory)["hosts"][HOST]["changed"] == 0
    finally:
        back.ssh(HOST, f"systemctl stop broker; kill {pids[1]}; rm -f /run/tcpfleet-echo.pid")
        back.ssh(HOST, "rm -f /etc/systemd/system/broker.service; systemctl daemon-reload")


def test_keys_of_the_whole_machine_are_left_alone_in_a_container(inv: Inv, back: Lab, tmp_path: Path) -> None:
    """With /proc/sys writable, as in a privileged container, vm.* would change this very machine."""
    there = Path("/proc/sys/vm/page-cluster").read_text().strip()
    inventory = with_overrides(tmp_path, f"{{vm.page-cluster: {int(there) + 1}, net.core.somaxconn: 99}}")
    back.ssh(HOST, "mount -o remount,bind,rw /proc/sys")
    try:
        if back.ssh(HOST, "test -w /proc/sys/vm/page-cluster && echo yes || true").strip() != "yes":
            pytest.skip("/proc/sys cannot be made writable in a lab host here")
        answer = inv.json("tune", "--hosts", HOST, "--inventory", inventory)
        assert keys(answer)["vm.page-cluster"]["status"] == "host-wide"
        assert keys(answer)["net.core.somaxconn"]["status"] == "applied"
        assert Path("/proc/sys/vm/page-cluster").read_text().strip() == there
    finally:
        back.ssh(HOST, "mount -o remount,bind,ro /proc/sys")
        if Path("/proc/sys/vm/page-cluster").read_text().strip() != there:
            Path("/proc/sys/vm/page-cluster").write_text(there)


def test_the_report_is_written_and_a_wrong_place_is_told_first(inv: Inv, back: Lab, tmp_path: Path) -> None:
    target = tmp_path / "tuning.md"
    inv("tune", "--hosts", BOTH, "--report", str(target))
    text = target.read_text()
    assert f"## {HOST}" in text and f"## {OTHER}" in text
    assert "| net.core.somaxconn | 4096 | 65535 | 65535 | 65535 | applied |  |" in text
    refused = inv("tune", "--hosts", BOTH, "--report", str(tmp_path / "no" / "t.md"), code=1)
    assert "there is no folder" in refused.stderr
