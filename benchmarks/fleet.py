"""`inv bench fleet`: what a host more costs, on fifty and on five hundred names of a few lab hosts.

Fifty: `inv ping` beside bare Fabric, which connects and starts a Python that does nothing, and `ansible -m ping`,
in turns, start-up included. Five hundred: ping, facts and tune --check, with the CPU time per host and the most
memory that the controller had. The names lead to the sshd of a few lab hosts on this very machine, which does the
hosts' work too: seconds are those of both sides, CPU time and memory are the controller's alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.playbook import Bench, Place
from tcpfleet import develop
from tcpfleet.bench import Took, machine, median, own_lab, own_program, publish, table, timed
from tcpfleet.cli import ROOT, Answer, Options
from tcpfleet.errors import HostFailed

PARTS = {"fifty": 50, "five-hundred": 500}
FORKS = 50
BARE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import fabric

def one(address):
    keys = {"key_filename": sys.argv[1], "look_for_keys": False, "allow_agent": False}
    with fabric.Connection(address, user="root", connect_kwargs=keys) as connection:
        connection.run("/usr/bin/python3 -I -S -c pass", hide=True, in_stream=False)

with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    list(pool.map(one, sys.argv[3:]))
"""
TASKS = {"ping": ("ping",), "facts": ("facts",), "tune --check": ("tune", "--hosts", "all", "--check")}


def measure(options: Options, rounds: int, parts: Sequence[str]) -> Answer:
    """All parts, or some; each is written into benchmarks/README.md when it is done.

    :param parts: keys of PARTS; empty for all.
    :raises BadInput: an unknown part.
    :raises Refused: the lab is not up.
    """
    known = own_lab(parts, PARTS)
    hosts = [known[host.name] for host in options.select("clients") if host.name in known]
    peers = develop.peers()
    about = f"{machine()}; {rounds} {'round' if rounds == 1 else 'rounds'}."
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as temporary:
        bench = Bench(hosts, Path(temporary), peers, options.say)
        for part in parts or PARTS:
            count = PARTS[part]
            each = [hosts[number % len(hosts)] for number in range(count)]
            places = [Place(f"h{number:03}", host.address) for number, host in enumerate(each, 1)]
            folder = bench.inventory(places, each)
            found[part], text = (fifty if part == "fifty" else many)(bench, folder, places, rounds)
            publish(f"bench fleet, {part}", f"{text}\n\n{about}")
            options.say(f"\n{text}\n")
    return Answer({"about": about, "parts": found})


def own(folder: Path, *words: str) -> Took:
    """A task of ours on all hosts; it fails when one of them does."""
    return timed([own_program("inv"), *words, "--forks", str(FORKS), "--inventory", folder / "hosts.yml"])


def fifty(bench: Bench, folder: Path, places: Sequence[Place], rounds: int) -> tuple[Any, str]:
    """Three tools take turns."""
    environment = {
        "ANSIBLE_CONFIG": str(bench.empty_settings), "ANSIBLE_HOME": str(bench.folder / "ansible"),
        "ANSIBLE_PIPELINING": "1", "ANSIBLE_SSH_CONTROL_PATH_DIR": str(bench.folder), "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    theirs = [bench.peers / "bin/ansible", "-i", folder / "hosts.yml", "--forks", str(FORKS), "all", "-m", "ping"]
    # Every round connects anew, as the others do.
    theirs += ["-e", "ansible_ssh_args='-o ControlMaster=no'"]
    bare = [sys.executable, "-c", BARE, ROOT / ".lab/id_ed25519", str(FORKS), *(one.address for one in places)]
    tools = {
        "bare Fabric: connect, `python3 -I -S -c pass`": lambda: timed(bare),
        "`inv ping`": lambda: own(folder, "ping"),
        "`ansible -m ping`": lambda: timed(theirs, env=environment),
    }
    own(folder, "ping")  # the payload is there from now on
    runs: dict[str, list[Took]] = {name: [] for name in tools}
    for _ in range(rounds):
        for name, run in tools.items():
            runs[name].append(run())
            bench.say(f"  {name}: {runs[name][-1].seconds:.2f} s")
    figures = {
        name: [median([one.seconds for one in all_]), median([one.cpu for one in all_])]
        for name, all_ in runs.items()
    }
    first = next(iter(figures.values()))[0]
    rows = [
        [name, f"{took:.2f} s", f"{took / first:.1f}", f"{cpu:.2f} s"] for name, (took, cpu) in figures.items()
    ]
    return figures, table(
        [f"{len(places)} hosts, forks={FORKS}", "seconds", "ratio", "CPU of the controller"], rows
    )


def many(bench: Bench, folder: Path, places: Sequence[Place], rounds: int) -> tuple[Any, str]:
    """Our tasks alone."""
    rows, figures = [], {}
    for name, words in TASKS.items():
        runs = [own(folder, *words, "--json") for _ in range(rounds)]
        answered = json.loads(runs[-1].output.splitlines()[-1])["hosts"]
        if len(answered) != len(places):
            raise HostFailed(f"{name}: {len(answered)} of {len(places)} hosts answered")
        took, cpu, memory = (median([getattr(one, key) for one in runs]) for key in ("seconds", "cpu", "memory"))
        figures[name] = {"seconds": took, "cpu": cpu, "memory": memory}
        rows.append(
            [
                f"`inv {name}`",
                f"{took:.1f} s",
                f"{cpu:.2f} s",
                f"{cpu / len(places) * 1000:.1f} ms",
                f"{memory / 2**20:.0f} MiB",
            ]
        )
        bench.say(f"  {name}: {took:.1f} s, {memory / 2**20:.0f} MiB")
    head = [f"{len(places)} hosts, forks={FORKS}", "seconds", "CPU of the controller", "a host", "most memory"]
    return figures, table(head, rows)
