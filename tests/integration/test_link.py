"""SSH as it really is: host keys, logins, sudo, hosts that are not there. Each failure is one clear sentence."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import ROOT, Inv, Lab
from tests.integration.test_playbooks import wait_until

pytestmark = pytest.mark.lab


def inventory(folder: Path, **hosts: dict[str, Any]) -> str:
    """An inventory file of lab hosts under other names or settings; returns its path."""
    access = ROOT / ".lab"
    common = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(access / "id_ed25519"),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={access}/known_hosts -o StrictHostKeyChecking=yes",
    }
    path = folder / "hosts.yml"
    path.write_text(yaml.safe_dump({"all": {"hosts": {name: common | own for name, own in hosts.items()}}}))
    return str(path)


C1 = "10.77.0.21"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ansible_host": "10.77.0.99"}, "no connection to 10.77.0.99:22"),
        ({"ansible_host": C1, "ansible_port": 2222}, "Connection refused"),
        ({"ansible_host": C1, "ansible_user": "nobody"}, "refused the login of user nobody"),
        ({"ansible_host": C1, "ansible_ssh_private_key_file": "/nonexistent/key"}, "/nonexistent/key"),
        ({"ansible_host": "no-such-name.invalid"}, "does not resolve"),
    ],
)
def test_unreachable_is_one_sentence(
    running_lab: Lab, inv: Inv, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    data = inv.json("ping", "--inventory", inventory(tmp_path, sick=settings, well={"ansible_host": C1}), code=4)
    assert data["hosts"]["well"]["status"] == "ok"
    assert data["hosts"]["sick"]["status"] == "unreachable" and said in data["hosts"]["sick"]["error"]
    assert "\n" not in data["hosts"]["sick"]["error"]


def test_no_python_on_a_host_is_a_failure_of_that_host_alone(running_lab: Lab, inv: Inv, tmp_path: Path) -> None:
    sick = {"ansible_host": C1, "ansible_python_interpreter": "/usr/bin/python9"}
    path = inventory(tmp_path, sick=sick, well={"ansible_host": C1})
    data = inv.json("ping", "--inventory", path, code=2)
    assert data["hosts"]["well"]["status"] == "ok" and data["hosts"]["sick"]["status"] == "failed"
    assert "there is no /usr/bin/python9 on this host" in data["hosts"]["sick"]["error"]
    done = inv("tune", "--hosts", "sick", "--inventory", path, code=2)
    assert "there is no /usr/bin/python9" in done.stdout
    refused = inv("stress", "--hosts", "sick", "--target", "well:22", "--inventory", path, code=2)
    assert "there is no /usr/bin/python9" in refused.stderr


def test_a_changed_host_key_is_refused_before_any_login(running_lab: Lab, inv: Inv, tmp_path: Path) -> None:
    other_key = (ROOT / ".lab" / "host_keys" / "s1.pub").read_text().split()[:2]
    known = tmp_path / "known_hosts"
    known.write_text(f"{C1} {' '.join(other_key)}\n")
    args = f"-o UserKnownHostsFile={known}"
    before = running_lab.ssh("c1", "journalctl -u ssh -o cat | grep -c 'Accepted publickey' || true").strip()
    path = inventory(tmp_path, c1={"ansible_host": C1, "ansible_ssh_common_args": args})
    data = inv.json("ping", "--inventory", path, code=4)
    assert "host key of 10.77.0.21 has changed" in data["hosts"]["c1"]["error"]
    after = running_lab.ssh("c1", "journalctl -u ssh -o cat | grep -c 'Accepted publickey' || true").strip()
    assert int(after) == int(before) + 1  # only the ssh of the line above


@pytest.mark.parametrize(("policy", "code"), [("accept-new", 0), ("yes", 4), ("no", 0)])
def test_an_unknown_host_key(running_lab: Lab, inv: Inv, tmp_path: Path, policy: str, code: int) -> None:
    known = tmp_path / "fresh" / "known_hosts"
    args = f"-F none -o UserKnownHostsFile={known} -o StrictHostKeyChecking={policy}"  # Debian hashes names
    path = inventory(tmp_path, c1={"ansible_host": C1, "ansible_ssh_common_args": args})
    inv("ping", "--inventory", path, code=code)
    if policy == "accept-new":
        kind, key = (ROOT / ".lab" / "host_keys" / "c1.pub").read_text().split()[:2]
        assert known.read_text() == f"{C1} {kind} {key}\n"
        inv("ping", "--inventory", path)  # and is known from now on
        assert known.read_text().count("\n") == 1
    else:
        assert not known.exists()


@pytest.mark.parametrize(
    ("user", "password", "ok", "said"),
    [
        ("deploy", None, True, ""),
        ("ops", "right", True, ""),
        ("ops", "wrong", False, "sudo says the password is wrong"),
        ("ops", None, False, "--ask-sudo-pass"),
    ],
)
def test_sudo(
    running_lab: Lab, inv: Inv, tmp_path: Path, user: str, password: str | None, ok: bool, said: str
) -> None:
    settings: dict[str, Any] = {"ansible_host": C1, "ansible_user": user, "ansible_become": True}
    if password == "right":
        settings["ansible_become_password"] = (ROOT / ".lab" / "ops_password").read_text().strip()
    elif password:
        settings["ansible_become_password"] = "not-the-password"
    book = tmp_path / "who.yml"
    book.write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.command: id -un\n      register: who\n      changed_when: false\n"
        "    - ansible.builtin.assert: {that: who.stdout == 'root'}\n"
    )
    done = inv("play", str(book), "--inventory", inventory(tmp_path, c1=settings), code=0 if ok else 2)
    assert said in done.stdout + done.stderr
    assert "not-the-password" not in done.stdout + done.stderr


@pytest.mark.full  # a pulled plug, in test_playbooks.py, is the short one
def test_a_host_that_falls_silent_is_unreachable_within_the_idle_timeout(
    running_lab: Lab, inv: Inv, tmp_path: Path
) -> None:
    book = tmp_path / "long.yml"
    book.write_text("- hosts: all\n  gather_facts: false\n  tasks:\n    - ansible.builtin.command: sleep 120\n")
    path = inventory(tmp_path, c1={"ansible_host": C1}, c2={"ansible_host": "10.77.0.22"})
    process = inv.start("play", str(book), "--inventory", path)
    try:
        for host in ("c1", "c2"):
            wait_until("sleep", lambda host=host: running_lab.ssh(host, "pgrep -f '[s]leep 120' || true"))
        # The host still answers on the network, but no packet of the agent's session comes through any more.
        pid = running_lab.ssh("c1", "pgrep -f '[s]leep 120'").split()[0]
        running_lab.ssh("c1", "for p in $(pgrep -f '[I] -S -c import zlib'); do kill -STOP $p; done")
        running_lab.ssh("c2", "pkill -f '[s]leep 120'")
        begun = time.monotonic()
        out, err = process.communicate(timeout=90)
        assert process.returncode == 4, out + err
        assert "no sign of life for 30 s" in out + err and time.monotonic() - begun < 45
        assert "unreachable=1" in out
    finally:
        process.kill()
        running_lab.ssh("c1", f"pkill -CONT -f '[I] -S -c import zlib'; kill {pid}", check=False)


def test_one_channel_per_host(running_lab: Lab, inv: Inv) -> None:
    count = "journalctl -u ssh -o cat | grep -c 'Accepted publickey' || true"
    before = int(running_lab.ssh("c2", count))
    inv("tune", "--hosts", "c2", "--check")
    assert int(running_lab.ssh("c2", count)) - before == 2  # one of the tool's, one of this line's


def test_nothing_of_an_agent_remains(running_lab: Lab, inv: Inv) -> None:
    inv("ping", "--hosts", "lab")
    time.sleep(0.5)
    for name in running_lab.hosts:
        assert running_lab.ssh(name, "pgrep -fc '[I] -S -c import' || true").strip() == "0"
        assert running_lab.ssh(name, "ls /root/.cache/tcpfleet | wc -l").strip() == "2"  # its archive and its code
