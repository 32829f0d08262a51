"""One sick host beside a well one, for every command: each fault ends in time, is named, and leaves nothing.

A row of FAULTS says what is broken, when, and what may come of it; the matrix is FAULTS x COMMANDS. An ordinary
run takes the commands that a row names in `short`; `inv test --full` takes all and writes what it measured to
docs/reliability.md. A fault `during` a command comes at one and the same message: the host's agent is made to wait
there. What a run leaves to be done, the same command does when it is run again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tcpfleet import lab as labs
from tests.integration.test_link import inventory
from tests.integration.test_playbooks import power_off
from tests.integration.test_rollback import DRIVER
from tests.relay import Relay
from tests.running import ROOT, Inv, Lab

pytestmark = pytest.mark.lab

WELL, SICK = "c1", "c2"
ADDRESSES = {"s1": "10.77.0.11", WELL: "10.77.0.21", SICK: "10.77.0.22"}
BOTH = ("--hosts", f"{WELL}:{SICK}")
COMMANDS = {
    "tune": ("tune", *BOTH),
    "deploy-server": ("deploy-server", *BOTH),
    "stress": ("stress", *BOTH, "--target", "s1", "--per-client", "100", "--hold", "3"),
    "collect-report": ("collect-report", *BOTH),
}
# The message of the sick host's agent (its hello is the first) at which a fault comes that comes during a command.
MIDDLE = {"tune": 4, "deploy-server": 6, "stress": 8, "collect-report": 2}
JOURNALLED = ("tune", "deploy-server")
MESSAGES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96)  # as far as a run has so many
LONGEST = 200  # characters of what a command said, in the table
HOOKS = ("input", "output")
HALT = "run/tcpfleet-test-halt"
WAITING = """

_send, _sent = Agent.send, []


def _at_message(self, message, *how):
    import socket

    if message["type"] != "beat" and socket.gethostname() == "{host}":
        _sent.append(message)
        if len(_sent) == {at} and not os.path.exists("/run/tcpfleet-test-once"):  # one agent of a run, once
            open("/run/tcpfleet-test-once", "w").close()
            {act}
    _send(self, message, *how)


Agent.send = _at_message
"""
KILL = "os.kill(os.getpid(), 9)"
WAIT = f"""open("/{HALT}", "w").close()
            while os.path.exists("/{HALT}") and not self.stopped:
                time.sleep(0.02)"""
LEFT = "pgrep -fa '[I] -S -c import|[s]tress_client' || true"


class Scene:
    """The lab around one case."""

    def __init__(self, lab: Lab, inv: Inv, folder: Path) -> None:
        self.lab, self.inv, self.folder = lab, inv, folder
        self.process: subprocess.Popen[str] | None = None
        self.relay: Relay | None = None
        self.settings: dict[str, Any] = {}

    @property
    def init(self) -> int:
        """Pid of the sick host's init."""
        return labs._children(labs._machines()[SICK])[0]

    def inside(self, script: str) -> None:
        """A shell in the sick host, by no network."""
        subprocess.run(["nsenter", "-t", str(self.init), "-a", "sh", "-c", script], check=True)

    def firewall(self, rule: str) -> None:
        """A rule for all packets from and to the sick host; '' lets them pass again."""
        chains = " ".join(f"chain {hook} {{ type filter hook {hook} priority 0; {rule}; }};" for hook in HOOKS)
        script = f"table inet fault; delete table inet fault; {f'table inet fault {{ {chains} }}' if rule else ''}"
        subprocess.run(["nsenter", "-t", str(self.init), "-n", "nft", script], check=True)

    def inventory(self) -> str:
        hosts = {name: {"ansible_host": address} for name, address in ADDRESSES.items()}
        hosts[SICK] |= self.settings
        self.folder.mkdir(exist_ok=True)
        return inventory(self.folder, **hosts)

    def start(self, command: str, change: str = "") -> subprocess.Popen[str]:
        """A command whose agents are made from a copy of payload/ with something appended to agent.py."""
        with contextlib.suppress(FileNotFoundError, IndexError, KeyError):  # it may be off
            self.came.unlink()
        payload = self.folder / "payload"
        shutil.rmtree(payload, ignore_errors=True)
        where = self.inventory()
        shutil.copytree(ROOT / "payload", payload, ignore=shutil.ignore_patterns("__pycache__"))
        with (payload / "agent.py").open("a") as agent:
            agent.write(change)
        words = [sys.executable, "-c", DRIVER, str(payload), *COMMANDS[command], "--inventory", where]
        self.process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        return self.process

    @property
    def halted(self) -> Path:
        return Path(f"/proc/{self.init}/root/{HALT}")

    @property
    def came(self) -> Path:
        """Is there once the message came at which something was to happen."""
        return self.halted.with_name("tcpfleet-test-once")

    def halts(self) -> bool:
        """Waits until the sick host's agent waits; False: the command ended before."""
        assert self.process is not None
        deadline = time.monotonic() + 60
        while not self.halted.exists():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "the message never came"
            time.sleep(0.02)
        return True

    def left(self) -> dict[str, str]:
        """What still runs of agents and clients, after the time in which one that hears nothing any more ends."""
        deadline = time.monotonic() + 80
        while True:
            found = {name: self.lab.ssh(name, LEFT) for name in ADDRESSES}
            found = {name: what for name, what in found.items() if what}
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.3)


class Fault(NamedTuple):
    """:ivar when: before a command starts, or during it.
    :ivar inject: breaks the sick host; `heal`: mends it.
    :ivar codes: exit statuses that are right; of commands that are not named, those under "".
    :ivar within: seconds that the command may take from the fault on.
    :ivar short: commands of an ordinary run.
    """

    name: str
    when: str
    inject: Callable[[Scene], Any]
    heal: Callable[[Scene], Any]
    codes: dict[str, tuple[int, ...]]
    within: float
    short: tuple[str, ...] = ()


def cut_for(seconds: float) -> Callable[[Scene], None]:
    def cut(scene: Scene) -> None:
        scene.firewall("drop")
        time.sleep(seconds)
        scene.firewall("")

    return cut


def slow(rtt: float) -> Callable[[Scene], None]:
    def put_between(scene: Scene) -> None:
        scene.relay = Relay((ADDRESSES[SICK], 22), rtt)
        args = "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no"
        scene.settings = {
            "ansible_host": "127.0.0.1", "ansible_port": scene.relay.port, "ansible_ssh_common_args": args,
        }  # fmt: skip

    return put_between


def take_away(scene: Scene) -> None:
    if scene.relay is not None:
        scene.relay.close()
    scene.settings = {}


def python(path: str) -> Callable[[Scene], None]:
    def choose(scene: Scene) -> None:
        # Stands for a Python that the stub turns away: its arguments are -I -S -c CODE TOKEN ...
        script = '#!/bin/sh\\nshift 4; printf "\\\\n%%s old 3.5.9\\\\n" "$1"\\n'
        scene.inside(f"printf '{script}' >/run/python3.5; chmod 755 /run/python3.5")
        scene.settings = {"ansible_python_interpreter": path}

    return choose


# Containers share the machine's clock, which is not to be set, and no namespace moves it.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

int clock_gettime(clockid_t which, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(which, now);
    if (!code && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += AHEAD;
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec, now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (out) *out = fine.tv_sec;
    return fine.tv_sec;
}
"""


def clock(ahead: int) -> Callable[[Scene], None]:
    def preload(scene: Scene) -> None:
        if shutil.which("cc") is None:
            pytest.skip("needs cc, for a clock of the host's own")
        scene.inventory()
        library = scene.folder / "clock.so"
        argv = ["cc", "-shared", "-fPIC", f"-DAHEAD={ahead}L", "-xc", "-", "-o", str(library), "-ldl"]
        subprocess.run(argv, input=CLOCK, text=True, check=True)
        run = Path(f"/proc/{scene.init}/root/run")
        shutil.copy(library, run / "clock.so")
        (run / "late").write_text('#!/bin/sh\nLD_PRELOAD=/run/clock.so exec /usr/bin/python3 "$@"\n')
        (run / "late").chmod(0o755)
        scene.settings = {"ansible_python_interpreter": "/run/late"}

    return preload


def nothing(scene: Scene) -> None:
    """Nothing to mend."""


FILL = "mkdir -p {0} && mount -t tmpfs -o size=8k,mode=0700 none {0}; head -c 9000 /dev/zero >{0}/full || :"
FULL_DISK = "; ".join(FILL.format(place) for place in ("/var/lib/tcpfleet", "/root/.cache"))
NOISE = r"""
cp -p /root/.bashrc /run/bashrc 2>/dev/null || :
printf 'WELCOME to a host with a long story\n' >/run/banner
printf 'Banner /run/banner\n' >>/etc/ssh/sshd_config && systemctl reload ssh
printf 'echo; echo "Welcome \033[1m$(hostname)\033[0m"; seq 2000; echo oops >&2\n' >/root/.bashrc
mkdir -p /root/.ssh && printf 'echo from ssh/rc\n' >/root/.ssh/rc
"""
QUIET = """
sed -i '/^Banner/d' /etc/ssh/sshd_config; systemctl reload ssh
rm -f /root/.bashrc /root/.ssh/rc; [ ! -e /run/bashrc ] || mv /run/bashrc /root/.bashrc
"""
SESSIONS = "pkill -9 -f '^sshd-session: root|^sshd: root' || :"
REACHED = {"": (0,)}
# More than a third of all questions stay without their first answer: a login may take longer than it is given, and
# one of 200 connections may hear nothing for 15 s.
BY_CHANCE = {"": (0, 4), "stress": (0, 3, 4)}
LOST = {"": (4,)}
KEPT = {"": (4,), "stress": (0,)}  # a load's clients are daemons: they are found again

FAULTS = [
    Fault("powered off before", "before", lambda _: power_off(SICK), lambda one: one.inv("lab-up"), LOST, 25),
    Fault("powered off during", "during", lambda _: power_off(SICK), lambda one: one.inv("lab-up"), LOST, 120),
    Fault("network cut 10 s", "during", cut_for(10), nothing, REACHED, 60),
    Fault("network cut", "during", lambda one: one.firewall("drop"), lambda one: one.firewall(""), LOST, 120),
    Fault(
        "packet loss 20%", "before", lambda one: one.firewall("numgen random mod 100 < 20 drop"),
        lambda one: one.firewall(""), BY_CHANCE, 90, ("collect-report",),
    ),
    Fault(
        "sshd stopped", "before", lambda one: one.inside("systemctl stop ssh"),
        lambda one: one.inside("systemctl start ssh"), LOST, 25, ("tune",),
    ),
    Fault(
        "sshd session killed", "during", lambda one: one.inside(SESSIONS), nothing, KEPT, 60, ("tune",),
    ),
    Fault(
        "disk full", "before", lambda one: one.inside(FULL_DISK),
        lambda one: one.inside("umount /var/lib/tcpfleet /root/.cache"), {"": (2,), "collect-report": (0,)}, 30,
        ("tune",),
    ),
    Fault(
        "/tmp noexec", "before",
        lambda one: one.inside("for d in /tmp /var/tmp; do mount -t tmpfs -o noexec,nosuid none $d; done"),
        lambda one: one.inside("umount /tmp /var/tmp"), REACHED, 30, ("deploy-server",),
    ),
    Fault("clock a year ahead", "before", clock(365 * 86400), take_away, REACHED, 30),
    Fault("clock a year behind", "before", clock(-365 * 86400), take_away, REACHED, 30),
    Fault("no python3", "before", python("/usr/bin/python9"), take_away, {"": (2,)}, 15, ("deploy-server",)),
    Fault("python3 too old", "before", python("/run/python3.5"), take_away, {"": (2,)}, 15, ("collect-report",)),
    Fault("slow, 0.1 s round trip", "before", slow(0.1), take_away, REACHED, 60, ("tune",)),
    Fault("slow, 1 s round trip", "before", slow(1.0), take_away, REACHED, 120),
    Fault(
        "noisy login", "before", lambda one: one.inside(NOISE), lambda one: one.inside(QUIET), REACHED, 30,
        ("collect-report",),
    ),
]  # fmt: skip


def matrix() -> Iterator[Any]:
    for fault in FAULTS:
        for command in COMMANDS:
            marks = () if command in fault.short else (pytest.mark.full,)
            yield pytest.param(fault, command, marks=marks, id=f"{fault.name}-{command}".replace(" ", "_"))


@pytest.fixture(scope="module")
def served(running_lab: Lab, inv: Inv) -> Iterator[Lab]:
    if shutil.which("nft") is None:
        pytest.skip("needs nft")
    inv("deploy-server")
    yield running_lab
    inv("rollback", *BOTH, "--all", "--force", code=None)
    inv("stop-server", "--hosts", f"s1:{WELL}:{SICK}")


@pytest.fixture
def scene(served: Lab, inv: Inv, tmp_path: Path) -> Scene:
    return Scene(served, inv, tmp_path / "scene")


def again(scene: Scene, command: str) -> None:
    """Everything that the last case did is undone: there is something to do."""
    if command == "deploy-server":
        scene.inv("stop-server", *BOTH)
    if command in JOURNALLED:
        scene.inv("rollback", *BOTH, "--all", "--force", code=None)


@pytest.mark.parametrize(("fault", "command"), list(matrix()))
def test_fault(fault: Fault, command: str, scene: Scene, request: pytest.FixtureRequest) -> None:
    again(scene, command)
    process = None
    try:
        if fault.when == "before":
            fault.inject(scene)
            begun = time.monotonic()
            process = scene.start(command)
        else:
            process = scene.start(command, WAITING.format(host=SICK, at=MIDDLE[command], act=WAIT))
            assert scene.halts(), process.communicate()
            marker, begun = scene.halted, time.monotonic()
            fault.inject(scene)
            marker.unlink(missing_ok=True)
        out, err = process.communicate(timeout=fault.within)
        lasted = time.monotonic() - begun
    finally:
        if process is not None:
            process.kill()
            process.communicate()
        fault.heal(scene)
    assert process.returncode in fault.codes.get(command, fault.codes[""]), f"{process.returncode}\n{out}{err}"
    assert "Traceback" not in err, err
    words = what_it_said(out + err)
    assert process.returncode == 0 or SICK in words, out + err
    completed_by_a_rerun(scene, command)
    row = Row(fault.name, command, f"{lasted:.1f}", str(process.returncode), words, "yes")
    if request.config.getoption("--full"):
        write_rows([row])


SHORT_KILLS = {("agent", "tune"), ("controller", "deploy-server")}


@pytest.mark.parametrize(
    ("victim", "command"),
    [
        pytest.param(victim, command, marks=() if (victim, command) in SHORT_KILLS else pytest.mark.full)
        for victim in ("agent", "controller")
        for command in COMMANDS
    ],
)
def test_killed_at_each_message(victim: str, command: str, scene: Scene, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("--full")
    for at in MESSAGES if full else (MIDDLE[command],):
        again(scene, command)
        begun = time.monotonic()
        process = scene.start(command, WAITING.format(host=SICK, at=at, act=KILL if victim == "agent" else WAIT))
        if victim == "controller" and scene.halts():
            os.killpg(process.pid, signal.SIGKILL)
            scene.halted.unlink()
        out, err = process.communicate(timeout=120)
        lasted = time.monotonic() - begun
        if not scene.came.exists():
            assert process.returncode == 0 and at > 1, out + err
            break  # there is no message of that number
        assert "Traceback" not in err, err
        words = what_it_said(out + err)
        assert process.returncode in ((-9, 0) if victim == "controller" else (0, 2, 4)), out + err
        assert process.returncode in (0, -9) or SICK in words, out + err
        if command == "stress" and process.returncode == -9:
            scene.inv("stop-stress", *BOTH)  # what the user would do; else they end by themselves
        completed_by_a_rerun(scene, command)
        if full:
            fault = f"{victim} killed at message {at}"
            write_rows([Row(fault, command, f"{lasted:.1f}", str(process.returncode), words, "yes")])


def completed_by_a_rerun(scene: Scene, command: str) -> None:
    """Nothing runs any more, what is journalled can be read, and the same command comes to its end."""
    assert scene.left() == {}
    redo = scene.start(command)
    out, err = redo.communicate(timeout=90)
    assert redo.returncode == 0, out + err
    if command in JOURNALLED:
        assert "damaged" not in scene.inv("rollback", *BOTH, "--list").stdout


def what_it_said(text: str) -> str:
    """The line about the sick host, or the one that says why nothing was done."""
    lines = [line.strip() for line in text.splitlines()]
    for start in (
        f"UNREACHABLE {SICK}",
        f"FAILED {SICK}",
        f"{SICK}: un",
        f"{SICK}: failed",
        "error: ",
        f"{SICK} ",
    ):
        for line in reversed(lines):
            if line.startswith(start):
                return textwrap.shorten(line, LONGEST, placeholder=" ...")
    verdict = [line for line in lines if line.startswith(("verdict", "run "))]
    return textwrap.shorten(verdict[-1], LONGEST, placeholder=" ...") if verdict else ""


# ---------------------------------------------------------------- docs/reliability.md


class Row(NamedTuple):
    """One line of the table, as text."""

    fault: str
    command: str
    seconds: str
    status: str
    said: str
    rerun: str


def write_rows(rows: list[Row]) -> None:
    """Puts measured rows into the table of docs/reliability.md; rows of other cases stay."""
    path = ROOT / "docs/reliability.md"
    head, mark, table = path.read_text().partition("<!-- measured -->\n")
    assert mark, f"{path} has lost its mark"
    kept = {}
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == len(Row._fields):
            kept[tuple(cells[:2])] = cells
    for row in rows:
        kept[row[:2]] = [cell.replace("|", "\\|") for cell in row]
    order = {fault.name: number for number, fault in enumerate(FAULTS)}
    commands = list(COMMANDS)
    lines = sorted(
        kept.values(),
        key=lambda cells: (order.get(cells[0], 99), len(cells[0]), cells[0], commands.index(cells[1])),
    )
    body = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    columns = "| fault | command | seconds | exit | what it says of the sick host | rerun completes |\n"
    path.write_text(f"{head}{mark}{columns}|---|---|---|---|---|---|\n{body}")
