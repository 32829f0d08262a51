"""A canary for a password: nothing that tcpfleet runs, prints or writes on either side ever holds it.

The lab's hosts are containers, so this machine's /proc has the processes of both sides. What was written is looked
for on each side in all files that changed since before the first run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.running import Lab

pytestmark = pytest.mark.lab
full = pytest.mark.full
C1 = "10.77.0.21"
HERE = [str(ROOT), str(Path.home()), "/tmp", "/var/tmp", "/run", "/var/log"]
THERE = ["/root", "/home", "/tmp", "/var/tmp", "/run", "/var/log", "/var/lib/tcpfleet", "/etc", "/opt", "/dev/shm"]

# Reads {"words", "places", "since"} on stdin, for an argument would be found; prints the files that hold a word.
SEARCH = """
import json, os, stat, sys
asked = json.load(sys.stdin)
words = [word.encode() for word in asked["words"]]
found = []
for place in asked["places"]:
    for folder, folders, names in os.walk(place):
        folders[:] = [one for one in folders if not os.path.ismount(folder + "/" + one)]
        for name in names:
            path = folder + "/" + name
            try:
                state = os.lstat(path)
                fresh = state.st_mtime >= asked["since"] and state.st_size < 1 << 28
                if stat.S_ISREG(state.st_mode) and fresh:
                    with open(path, "rb") as file:
                        data = file.read()
                    found += [path] if any(word in data for word in words) else []
            except OSError:
                pass
print(json.dumps(found))
"""

BOOK = """
- hosts: all
  become: true
  tasks:
    - ansible.builtin.copy: {content: "x\\n", dest: /root/canary-test}
    - ansible.builtin.command: sleep 1
    - ansible.builtin.template: {src: t.j2, dest: /root/canary-template}
    - ansible.builtin.command: "true"
      no_log: true
    - ansible.builtin.command: cat /nonexistent
      when: fails | default(false) | bool
      ignore_errors: true
    - ansible.builtin.command: sleep 60
      when: waits | default(false) | bool
"""


class Canary:
    """A password of `ops` on c1 that no file holds, and who looks for it.

    :ivar seen: where a process had it in its argv or environment.
    :ivar wrong_runs: how many runs had a wrong password for sudo.
    """

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder, self.since = lab, folder, time.time() - 1
        self.right, self.wrong = f"canary-{secrets.token_hex(8)}-é\"'", f"wrong-{secrets.token_hex(8)}"
        self.words = [self.right[:20], self.wrong]
        self.seen: set[str] = set()
        self.wrong_runs = 0
        self._over = threading.Event()
        self.become(self.right)

    def become(self, password: str) -> None:
        """Set it on the host, by stdin."""
        self.lab.ssh("c1", "chpasswd", stdin=f"ops:{password}\n")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Looks at every process of both sides, over and over."""
        self._over.clear()
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            watcher.join()

    def _watch(self) -> None:
        words = [word.encode() for word in self.words]
        while not self._over.wait(0.01):
            for pid in os.listdir("/proc"):
                for kind in ("cmdline", "environ") if pid.isdigit() else ():
                    with contextlib.suppress(OSError):
                        data = Path(f"/proc/{pid}/{kind}").read_bytes()
                        if any(word in data for word in words):
                            self.seen.add(f"{kind} of {Path(f'/proc/{pid}/comm').read_text().strip()}")

    def left(self) -> dict[str, list[str]]:
        """Files of either side that were written since the beginning and hold it."""

        def asked(places: list[str]) -> str:
            return json.dumps({"words": self.words, "places": places, "since": self.since})

        here = subprocess.run(
            [sys.executable, "-c", SEARCH], input=asked(HERE), stdout=subprocess.PIPE, text=True, check=True
        )
        there = self.lab.ssh("c1", f"journalctl --sync; python3 -c '{SEARCH}'", stdin=asked(THERE))
        return {"here": json.loads(here.stdout), "there": json.loads(there)}


@pytest.fixture(scope="module")
def canary(running_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    one = Canary(running_lab, tmp_path_factory.mktemp("canary"))
    access = ROOT / ".lab"
    for how in ("key", "password"):
        host = {
            "ansible_host": C1,
            "ansible_user": "ops",
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={access}/known_hosts -o StrictHostKeyChecking=yes",
        }
        if how == "key":
            host["ansible_ssh_private_key_file"] = str(access / "id_ed25519")
        (one.folder / f"{how}.yml").write_text(yaml.safe_dump({"all": {"hosts": {"c1": host}}}))
    (one.folder / "book.yml").write_text(BOOK)
    (one.folder / "t.j2").write_text("{{ ansible_facts.hostname }}\n")
    yield one
    one.become((ROOT / ".lab" / "ops_password").read_text().strip())
    running_lab.ssh("c1", "rm -f /root/canary-test /root/canary-template")


def start(canary: Canary, how: str, *words: str) -> subprocess.Popen[str]:
    """`inv play`, with Invoke's own debugging and without a terminal: what it asks is answered on stdin."""
    book, hosts = canary.folder / "book.yml", canary.folder / f"{how}.yml"
    return subprocess.Popen(
        [sys.executable, "-m", "invoke", "--debug", "play", str(book), "--inventory", str(hosts), *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


# How it logs in, more words, what is typed, the exit code, what it says.
RUNS = {
    "sudo": ("key", ["--ask-sudo-pass", "--diff"], "{right}\n", 0, "changed="),
    "a task fails": ("key", ["--ask-sudo-pass", "-e", "fails=true", "--json"], "{right}\n", 0, "No such file"),
    "a wrong sudo password": ("key", ["--ask-sudo-pass"], "{wrong}\n", 2, "sudo says the password is wrong"),
    "no sudo password": ("key", [], "", 2, "give one with --ask-sudo-pass"),
    "one password for login and sudo": ("password", ["--ask-pass"], "{right}\n", 0, "changed="),
    "a wrong password for the login": ("password", ["--ask-pass"], "{wrong}\n", 4, "refused the login of"),
    "no password for the login": ("password", [], "", 4, "give a password with --ask-pass"),
    "the right one for the login, a wrong one for sudo": (
        "password", ["--ask-pass", "--ask-sudo-pass"], "{right}\n{wrong}\n", 2, "sudo says the password is wrong"
    ),
}  # fmt: skip


IN_SHORT = ("sudo", "a wrong sudo password", "one password for login and sudo")


@pytest.mark.parametrize(
    ("how", "words", "typed", "code", "said"),
    [pytest.param(*run, id=name, marks=() if name in IN_SHORT else full) for name, run in RUNS.items()],
)
def test_runs(canary: Canary, how: str, words: list[str], typed: str, code: int, said: str) -> None:
    with canary.watched():
        process = start(canary, how, *words)
        out, err = process.communicate(typed.format(right=canary.right, wrong=canary.wrong), timeout=60)
    assert process.returncode == code and said in out + err, out + err
    canary.wrong_runs += "password is wrong" in said
    assert not [word for word in canary.words if word in out + err]
    assert canary.seen == set()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=full)])
def test_interrupted(canary: Canary, number: signal.Signals) -> None:
    with canary.watched():
        process = start(canary, "key", "--ask-sudo-pass", "-e", "waits=true")
        assert process.stdin is not None
        process.stdin.write(canary.right + "\n")
        process.stdin.flush()
        while not canary.lab.ssh("c1", "pgrep -fx 'sleep 60' || true").strip():
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert not [word for word in canary.words if word in out + err]
    assert canary.seen == set()


def test_the_watcher_sees_what_is_there(canary: Canary) -> None:
    """Else the tests above prove nothing."""
    with canary.watched():
        subprocess.run(["sleep", "0.3"], env={"CANARY": canary.wrong}, check=True)
        canary.lab.ssh("c1", f"sleep 0.3; : {canary.wrong}")
    assert {"environ of sleep", "cmdline of bash"} <= canary.seen
    canary.seen.clear()


def test_no_file_holds_it(canary: Canary) -> None:
    """After all of the runs above; and the search finds what is there."""
    bait = canary.folder / "bait"
    bait.write_text(f"x{canary.wrong}x")
    canary.lab.ssh("c1", "cat > /run/bait", stdin=canary.wrong)
    try:
        assert canary.left() == {"here": [str(bait)], "there": ["/run/bait"]}
    finally:
        bait.unlink()
        canary.lab.ssh("c1", "rm /run/bait")


def test_a_wrong_password_is_told_to_sudo_once(canary: Canary) -> None:
    """As sudo counts it: each run with a wrong one above, with several tasks each, was one attempt."""
    log = canary.lab.ssh("c1", f"journalctl -o cat -t sudo --since @{int(canary.since)} | grep incorrect || true")
    assert log.count("1 incorrect password attempt ;") == len(log.splitlines()) == canary.wrong_runs > 0, log


def test_requiretty_is_named(canary: Canary) -> None:
    canary.lab.ssh("c1", "echo 'Defaults:ops requiretty' > /etc/sudoers.d/tty")
    try:
        process = start(canary, "key", "--ask-sudo-pass")
        out, err = process.communicate(canary.right + "\n", timeout=60)
        assert process.returncode == 2 and "sudoers has `Defaults requiretty`" in out + err
    finally:
        canary.lab.ssh("c1", "rm /etc/sudoers.d/tty")
