"""Whole playbook runs: a long way to the host, hosts that go away in mid-play, Ctrl-C, bad files, the output."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tcpfleet import lab
from tests.integration.conftest import ROOT, Inv, Lab
from tests.relay import Relay
from tests.sshd import CountingSshd

VICTIM = "c4"  # what goes away in these tests
RTT = 0.1  # seconds
COUNTS = re.compile(
    r"^(\S+) +: ok=(\d+) +changed=(\d+) +unreachable=(\d+) +failed=(\d+) +skipped=(\d+)", re.MULTILINE
)


def write_inventory(folder: Path, hosts: dict[str, dict[str, Any]], known_hosts: Path | None = None) -> str:
    """An inventory file of lab hosts, in this order; returns its path."""
    access = ROOT / ".lab"
    common = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(access / "id_ed25519"),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={known_hosts or access / 'known_hosts'} "
        "-o StrictHostKeyChecking=yes",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    path = folder / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": common}}, sort_keys=False))
    return str(path)


def lab_inventory(running_lab: Lab, folder: Path, *names: str) -> str:
    """`write_inventory` of hosts as they are."""
    return write_inventory(folder, {name: {"ansible_host": running_lab.hosts[name].address} for name in names})


def elsewhere(folder: Path, host: str, port: int, address: str = "127.0.0.1") -> str:
    """An inventory in which a lab host is reached at another place, its key known there."""
    known = folder / "known_hosts_elsewhere"
    kind, key = (ROOT / ".lab" / "host_keys" / f"{host}.pub").read_text().split()[:2]
    known.write_text(f"[{address}]:{port} {kind} {key}\n")
    return write_inventory(folder, {host: {"ansible_host": address, "ansible_port": port}}, known)


def counts(output: str) -> dict[str, dict[str, int]]:
    """Host name -> the columns of its recap line."""
    names = ("ok", "changed", "unreachable", "failed", "skipped")
    return {
        match[1]: dict(zip(names, (int(one) for one in match.groups()[1:]), strict=True))
        for match in COUNTS.finditer(output)
    }


def wait_until(what: str, holds: Any, patience: float = 20) -> None:
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.2)


def book(folder: Path, text: str) -> str:
    """A playbook file; returns its path."""
    path = folder / "book.yml"
    path.write_text(text)
    return str(path)


# ---------------------------------------------------------------- the way to the host


@pytest.mark.lab
def test_a_long_way_costs_a_round_trip_per_dependency_not_per_task(
    running_lab: Lab, inv: Inv, tmp_path: Path
) -> None:
    tune = str(ROOT / "playbooks/tune.yml")
    inv("play", tune, "--inventory", lab_inventory(running_lab, tmp_path, "c3"))
    with Relay((running_lab.hosts["c3"].address, 22), RTT) as relay:
        done = inv("play", tune, "--inventory", elsewhere(tmp_path, "c3", relay.port))
        assert counts(done.stdout)["c3"]["changed"] == 0
        # 1.5 s at 100 ms are 15 round trips: TCP's handshake, these, and the last answer.
        assert relay.connections == 1 and 3 <= relay.round_trips <= 13


@pytest.mark.lab
def test_thirty_tasks_take_no_more_round_trips_than_their_dependencies(
    running_lab: Lab, inv: Inv, tmp_path: Path
) -> None:
    free = "\n".join(
        f"    - ansible.builtin.command: {{cmd: 'true', chdir: /tmp}}\n      name: n{n}" for n in range(30)
    )
    path = book(tmp_path, f"- hosts: all\n  gather_facts: false\n  tasks:\n{free}\n")
    trips = []
    for file in (path, book_of_one(tmp_path)):
        with Relay((running_lab.hosts["c3"].address, 22), RTT) as relay:
            inv("play", file, "--inventory", elsewhere(tmp_path, "c3", relay.port))
            trips.append(relay.round_trips)
    # A window of the channel may have to be opened further for thirty answers.
    assert trips[0] <= trips[1] + 1


def book_of_one(folder: Path) -> str:
    path = folder / "one.yml"
    path.write_text("- hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.command: 'true'\n")
    return str(path)


@pytest.mark.lab
@pytest.mark.parametrize(
    ("words", "most"),
    [(("play", str(ROOT / "playbooks/tune.yml")), 1), (("tune", "--hosts", "all"), 2), (("ping",), 1)],
)
def test_channels_per_host(running_lab: Lab, inv: Inv, tmp_path: Path, words: tuple[str, ...], most: int) -> None:
    with CountingSshd(running_lab.argv("c3")) as sshd:
        path = elsewhere(tmp_path, "c3", sshd.port, running_lab.hosts["c3"].address)
        inv(*words, "--inventory", path)
        assert 1 <= sshd.counted().channels <= most


# ---------------------------------------------------------------- hosts that go away

# Ends the connection's sshd the hard way; nothing else on the host.
GO = "'pkill -9 -f \"^sshd: root\"'"
GO_TASK = f"    - name: go\n      ansible.builtin.shell: {GO}\n      when: inventory_hostname == '{VICTIM}'\n"
BEFORE = "    - name: before\n      ansible.builtin.command: 'true'\n"
AFTER = "    - name: after\n      ansible.builtin.command: 'true'\n"
ONCE = (
    "    - name: once\n      ansible.builtin.command: echo said once\n      run_once: true\n      register: said\n"
    "    - name: all know\n      ansible.builtin.assert: {that: said.stdout == 'said once'}\n"
)
IN_A_BLOCK = (
    f"    - name: block\n      block:\n    {GO_TASK}".replace("\n      ansible", "\n          ansible").replace(
        "\n      when", "\n          when"
    )
    + "      rescue:\n        - ansible.builtin.command: 'true'\n"
    "      always:\n        - ansible.builtin.command: 'true'\n"
)
GO_ONCE = f"    - name: go\n      ansible.builtin.shell: {GO}\n      run_once: true\n"


@pytest.mark.lab
@pytest.mark.parametrize(
    ("order", "head", "tasks", "survivors"),
    [
        pytest.param((VICTIM, "c3"), "", BEFORE + GO_TASK + AFTER, {"c3": (2, 1)}, id="free"),
        pytest.param((VICTIM, "c3"), "strategy: linear", BEFORE + GO_TASK + AFTER, {"c3": (2, 1)}, id="linear"),
        pytest.param((VICTIM, "c3", "s1"), "", GO_TASK + ONCE, {"c3": (2, 1), "s1": (1, 1)}, id="run_once"),
        pytest.param((VICTIM, "c3"), "", BEFORE + GO_ONCE + AFTER, {"c3": (1, 0)}, id="run_once-on-the-lost"),
        # Being lost is no failure that a rescue could mend.
        pytest.param((VICTIM, "c3"), "", BEFORE + IN_A_BLOCK + AFTER, {"c3": (3, 1)}, id="block"),
        pytest.param(
            (VICTIM, "c3"), "any_errors_fatal: true", BEFORE + GO_TASK + AFTER, {"c3": (1, 1)}, id="fatal"
        ),
        pytest.param(
            ("c3", VICTIM, "s1"), "serial: 1", BEFORE + GO_TASK + AFTER, {"c3": (2, 1), "s1": None}, id="serial-1"
        ),
        pytest.param(
            (VICTIM, "c3", "s1"),
            "serial: 2",
            BEFORE + GO_TASK + AFTER,
            {"c3": (2, 1), "s1": (2, 1)},
            id="serial-2",
        ),
    ],
)
def test_a_host_that_is_lost_in_mid_play(
    running_lab: Lab,
    inv: Inv,
    tmp_path: Path,
    order: tuple[str, ...],
    head: str,
    tasks: str,
    survivors: dict[str, tuple[int, int] | None],
) -> None:
    """`survivors`: host -> (ok, skipped) as ansible-playbook counts them, None when its turn never comes."""
    head = f"  {head}\n" if head else ""
    path = book(tmp_path, f"- hosts: all\n  gather_facts: false\n{head}  tasks:\n{tasks}")
    done = inv("play", path, "--inventory", lab_inventory(running_lab, tmp_path, *order), code=4, timeout=60)
    seen = counts(done.stdout)
    assert seen[VICTIM]["unreachable"] == 1 and seen[VICTIM]["failed"] == 0
    for name, expected in survivors.items():
        if expected is None:
            assert sum(seen.get(name, {}).values()) == 0
        else:
            assert (seen[name]["ok"], seen[name]["skipped"], seen[name]["unreachable"]) == (*expected, 0), (
                done.stdout
            )
    assert done.stdout.rstrip().splitlines()[-1].startswith(f"UNREACHABLE {VICTIM}: ")
    left = "pgrep -fc '[I] -S -c import' || true"
    wait_until("the agent ends", lambda: running_lab.ssh(VICTIM, left).strip() == "0")


def power_off(host: str) -> None:
    """The plug is pulled: not a packet comes any more, then nothing runs any more."""
    leader = lab._machines()[host]
    # Without its end on this side, the machine's last words (its kernel would close the connections) get nowhere.
    subprocess.run(["ip", "link", "delete", f"vb-{lab.LabHost(host, '').machine}"], check=True)
    for pid in (*lab._children(leader), leader):  # the init of a PID namespace takes all of it along
        os.kill(pid, signal.SIGKILL)


@pytest.mark.lab
@pytest.mark.full
@pytest.mark.parametrize("head", ["", "  strategy: linear\n"], ids=["free", "linear"])
def test_a_host_whose_plug_is_pulled(running_lab: Lab, inv: Inv, tmp_path: Path, head: str) -> None:
    path = book(
        tmp_path,
        f"- hosts: all\n  gather_facts: false\n{head}  tasks:\n"
        f"    - name: work\n      vars: {{long: \"{{{{ inventory_hostname == '{VICTIM}' }}}}\"}}\n"
        "      ansible.builtin.command: sleep {{ 121 if long else 1 }}\n"
        "    - name: more\n      ansible.builtin.command: touch /run/tcpfleet-test-more\n"
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - name: second play\n      ansible.builtin.file: {path: /run/tcpfleet-test-more, state: absent}\n",
    )
    process = inv.start("play", path, "--inventory", lab_inventory(running_lab, tmp_path, VICTIM, "c3"))
    try:
        wait_until("work", lambda: running_lab.ssh(VICTIM, "pgrep -fc '[s]leep 121' || true").strip() != "0")
        power_off(VICTIM)
        begun = time.monotonic()
        out, err = process.communicate(timeout=90)
        lasted = time.monotonic() - begun
        assert process.returncode == 4, out + err
        assert lasted < 45  # idle timeout 30 s; sooner when this side's kernel finds out that nobody is there
        seen = counts(out)
        assert seen[VICTIM]["unreachable"] == 1 and seen["c3"] == {
            "ok": 3, "changed": 3, "unreachable": 0, "failed": 0, "skipped": 0,
        }, out  # fmt: skip
        last = out.rstrip().splitlines()[-1]
        assert last.startswith(f"UNREACHABLE {VICTIM}: ") and "connection lost: " in last
        # A host that is down from the start is named within the connect timeout.
        begun = time.monotonic()
        done = inv("play", path, "--inventory", lab_inventory(running_lab, tmp_path, VICTIM, "c3"), code=4)
        assert counts(done.stdout)[VICTIM]["unreachable"] == 1 and time.monotonic() - begun < 25
        assert counts(done.stdout)["c3"]["ok"] == 3
    finally:
        process.kill()
        process.communicate()
        inv("lab-up")  # boots what is missing


# ---------------------------------------------------------------- Ctrl-C


@pytest.mark.lab
@pytest.mark.parametrize("head", ["", "  strategy: linear\n"], ids=["free", "linear"])
def test_ctrl_c_ends_a_play_here_and_on_the_hosts(running_lab: Lab, inv: Inv, tmp_path: Path, head: str) -> None:
    path = book(
        tmp_path,
        f"- hosts: all\n  gather_facts: false\n{head}  tasks:\n"
        "    - ansible.builtin.command: sleep 62.5\n"
        "    - ansible.builtin.command: touch /run/tcpfleet-test-after\n",
    )
    hosts = ("c3", VICTIM)
    process = inv.start("play", path, "--inventory", lab_inventory(running_lab, tmp_path, *hosts))
    try:
        for host in hosts:
            wait_until(
                "sleep", lambda host=host: running_lab.ssh(host, "pgrep -fc '[s]leep 62.5' || true") != "0\n"
            )
        begun = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 130 and time.monotonic() - begun < 8, out + err
        assert "Traceback" not in err and "interrupted" in err
        for host in hosts:
            for pattern in ("[s]leep 62.5", "[I] -S -c import"):
                count = f"pgrep -fc '{pattern}' || true"
                wait_until(f"{pattern} on {host} ends", lambda h=host, c=count: running_lab.ssh(h, c) == "0\n", 12)
            assert running_lab.ssh(host, "ls /run/tcpfleet-test-after 2>/dev/null || true") == ""
    finally:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------- bad files

FIVE_MISTAKES = """\
- hosts: all
  gather_facts: false
  tasks:
    - name: a key that is none
      ansible.builtin.command: 'true'
      whenn: true
    - name: a module that is none
      ansible.builtin.comand: 'true'
    - name: an argument that is none
      ansible.builtin.file: {path: /tmp/x, stat: absent}
    - name: a handler that is none
      ansible.builtin.command: 'true'
      notify: Restart it
    - name: a variable that nothing defines
      ansible.builtin.command: 'echo {{ undefined_thing }}'
"""


def test_five_mistakes_are_five_located_errors_and_no_host_is_touched(inv: Inv, tmp_path: Path) -> None:
    path = book(tmp_path, FIVE_MISTAKES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inventory = tmp_path / "hosts.yml"
        port = listener.getsockname()[1]
        inventory.write_text(f"all: {{hosts: {{h: {{ansible_host: 127.0.0.1, ansible_port: {port}}}}}}}\n")
        done = inv("play", path, "--inventory", str(inventory), code=1)
        assert select.select([listener], [], [], 0)[0] == []  # nobody has connected
    places = re.findall(rf"{re.escape(path)}:(\d+):(\d+): (.+)", done.stderr)
    assert [int(line) for line, _, _ in places] == [6, 8, 10, 13, 15], done.stderr
    for (_, column, said), word in zip(
        places, ("whenn", "comand", "stat", "Restart it", "undefined_thing"), strict=True
    ):
        assert word in said and int(column) > 4
    assert "PLAY" not in done.stdout


def test_json_of_a_bad_file_is_one_object_too(inv: Inv, tmp_path: Path) -> None:
    data = inv.json("play", book(tmp_path, FIVE_MISTAKES), code=1)
    assert data["exit_code"] == 1 and "undefined_thing" in data["error"]


# ---------------------------------------------------------------- what it prints

SHOWN = """\
- hosts: all
  gather_facts: false
  tasks:
    - name: write
      ansible.builtin.copy: {content: "one\\ntwo\\n", dest: /run/tcpfleet-test-shown, mode: "0644"}
    - name: only one can
      ansible.builtin.command: test -e /run/tcpfleet-test-not-there
      when: inventory_hostname == 'c3'
      changed_when: false
    - name: last
      ansible.builtin.command: 'true'
      changed_when: false
"""


@pytest.mark.lab
def test_what_a_run_prints(running_lab: Lab, inv: Inv, tmp_path: Path) -> None:
    path, inventory = book(tmp_path, SHOWN), lab_inventory(running_lab, tmp_path, "c3", VICTIM)
    clean = "rm -f /run/tcpfleet-test-shown"
    for host in ("c3", VICTIM):
        running_lab.ssh(host, clean)
    try:
        checked = inv("play", path, "--inventory", inventory, "--check", "--diff", code=0)
        assert counts(checked.stdout)[VICTIM]["changed"] == 1
        assert checked.stdout.count("+one\n+two\n") == 2
        assert running_lab.ssh(VICTIM, "ls /run/tcpfleet-test-shown 2>/dev/null || true") == ""

        data = inv.json("play", path, "--inventory", inventory, code=2)
        assert data["exit_code"] == 2 and data["hosts"]["c3"]["failed"] == 1
        assert data["hosts"][VICTIM] == {
            "ok": 2, "changed": 1, "unreachable": 0, "failed": 0, "skipped": 1, "rescued": 0, "ignored": 0,
        }  # fmt: skip
        assert "rc=1" in data["reasons"]["c3"] or "non-zero return code" in data["reasons"]["c3"]
        assert [task["task"] for task in data["tasks"]] == ["write", "only one can", "last"]
        assert running_lab.ssh(VICTIM, "cat /run/tcpfleet-test-shown") == "one\ntwo\n"

        second = inv("play", path, "--inventory", inventory, "--diff", code=2)
        assert "+one" not in second.stdout and counts(second.stdout)["c3"]["changed"] == 0
        assert second.stdout.rstrip().splitlines()[-1].startswith("FAILED c3: ")
        assert second.stdout.count("TASK [write]") == 1  # once for all hosts, though each goes its own way
        running_lab.ssh(VICTIM, "echo three >> /run/tcpfleet-test-shown")
        third = inv("play", path, "--inventory", inventory, "--diff", code=2)
        assert "-three\n" in third.stdout and f"changed: [{VICTIM}]" in third.stdout
        assert "changed: [c3]" not in third.stdout
    finally:
        for host in ("c3", VICTIM):
            running_lab.ssh(host, clean)


@pytest.mark.lab
def test_json_under_diff_keeps_stdout_to_one_object(running_lab: Lab, inv: Inv, tmp_path: Path) -> None:
    path, inventory = book(tmp_path, SHOWN), lab_inventory(running_lab, tmp_path, VICTIM)
    done = inv("play", path, "--inventory", inventory, "--check", "--diff", "--json")
    assert list(json.loads(done.stdout))[-1] == "exit_code" and "+one" in done.stderr
