"""`inv bench playbook`: whole runs of playbooks on the lab, ours, ansible-playbook's and pyinfra's, side by side.

Every figure is the time of a program from its start to its end, as a user waits for it, with the CPU time it took
on the controller. The tools take turns; before each first pass the hosts are made ones that were never tuned
(tune_state.py), outside the timing, and each pass is checked: a first pass must have changed something and a
second one nothing. Ansible runs with pipelining, and keeps its SSH connections from the first pass to the second.

Only lab hosts are measured: they are reset between passes. What was in force before is put back at the end.
"""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcpfleet import develop, lab
from tcpfleet.bench import Took, machine, median, own_lab, own_program, publish, table, timed
from tcpfleet.cli import ROOT, Answer, Options
from tcpfleet.errors import BadInput, HostFailed
from tests.sshd import PORT, CountingSshd

TUNE = ROOT / "playbooks/tune.yml"
THIRTY = ROOT / "benchmarks/thirty_tasks.yml"
STATE = ROOT / "benchmarks/tune_state.py"
RELAY = ROOT / "tests/relay.py"
RTT = 0.1  # seconds that the relay adds
ALIASES = 50
PARTS = {
    "tune": "tune.yml on three hosts",
    "thirty": "a playbook of 30 tasks on three hosts",
    "fifty": "tune.yml on 50 addresses of one host",
    "delay": "the second pass of tune.yml with 100 ms of added round-trip time",
    "channels": "SSH channels per host",
}


@dataclass(frozen=True)
class Place:
    """One inventory host: a name and where it is reached."""

    name: str
    address: str
    port: int = 22


class Bench:
    """The hosts, the tools, and a folder for what is made on the way.

    :param hosts: lab hosts, three of them.
    :param folder: temporary; a short path, for Ansible's control sockets lie in it.
    :param say: takes one line of progress.
    """

    def __init__(
        self, hosts: Sequence[lab.LabHost], folder: Path, peers: Path, say: Callable[[str], None]
    ) -> None:
        self.hosts, self.folder, self.peers, self.say = list(hosts), folder, peers, say
        self._inventories = 0
        self.empty_settings = folder / "ansible.cfg"
        self.empty_settings.touch()

    def ssh(self, host: lab.LabHost) -> list[str]:
        """argv that runs one more word on a host."""
        return lab.ssh_command(host, ROOT)

    def everywhere(self, hosts: Sequence[lab.LabHost], script: str, stdin: bytes = b"") -> None:
        """Run a script on hosts at the same time.

        :raises HostFailed: it failed on one.
        """
        running = [
            subprocess.Popen(
                [*self.ssh(host), script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for host in hosts
        ]
        for host, process in zip(hosts, running, strict=True):
            said, _ = process.communicate(stdin)
            if process.returncode:
                raise HostFailed(f"{host.name}: {script}: {said.decode(errors='replace').strip()}")

    def state(self, hosts: Sequence[lab.LabHost], word: str) -> None:
        """tune_state.py on hosts: save, fresh or restore."""
        self.everywhere(hosts, f"python3 - {word}", STATE.read_bytes())

    def inventory(self, places: Sequence[Place], keys_of: Sequence[lab.LabHost]) -> Path:
        """Writes a folder with the same hosts for all tools: hosts.yml, pyinfra_hosts.py, known_hosts.

        :param keys_of: the lab host that each place leads to.
        """
        self._inventories += 1
        folder = self.folder / f"inventory{self._inventories}"
        folder.mkdir()
        access = ROOT / ".lab"
        known = folder / "known_hosts"
        lines = []
        for place, host in zip(places, keys_of, strict=True):
            kind, key = (access / "host_keys" / f"{host.name}.pub").read_text().split()[:2]
            name = place.address if place.port == 22 else f"[{place.address}]:{place.port}"
            lines.append(f"{name} {kind} {key}\n")
        known.write_text("".join(lines))
        ours: dict[str, Any] = {
            place.name: {"ansible_host": place.address, "ansible_port": place.port} for place in places
        }
        common = {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(access / "id_ed25519"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes",
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        # JSON is YAML.
        (folder / "hosts.yml").write_text(json.dumps({"all": {"hosts": ours, "vars": common}}, indent=1))
        theirs = [
            (
                place.name,
                {
                    "ssh_hostname": place.address,
                    "ssh_port": place.port,
                    "ssh_user": "root",
                    "ssh_key": str(access / "id_ed25519"),
                    "ssh_known_hosts_file": str(known),
                    "ssh_strict_host_key_checking": "yes",
                    "ssh_look_for_keys": False,
                },
            )
            for place in places
        ]
        (folder / "pyinfra_hosts.py").write_text(f"hosts = {theirs!r}\n")
        return folder


@dataclass
class Tool:
    """A program under test.

    :ivar run: one pass over the hosts of an inventory folder, in a folder of its own for what it keeps between
        a first and a second pass.
    :ivar counts: it prints Ansible's recap, so that what changed can be checked.
    """

    name: str
    run: Callable[[Path, Path], Took]
    counts: bool = True
    passes: dict[str, list[Took]] = field(default_factory=lambda: {"first": [], "second": []})

    def to_json(self) -> dict[str, Any]:
        """Medians and all figures."""
        return {
            "tool": self.name,
            **{
                name: {
                    "seconds": median([one.seconds for one in runs]),
                    "cpu": median([one.cpu for one in runs]),
                    "all_seconds": [round(one.seconds, 3) for one in runs],
                }
                for name, runs in self.passes.items()
            },
        }


def play(book: Path) -> Callable[[Path, Path], Took]:
    """`inv play BOOK`."""
    return lambda folder, _: timed(
        [own_program("inv"), "play", book, "--forks", "50", "--inventory", folder / "hosts.yml"]
    )


def tune(folder: Path, _: Path) -> Took:
    """`inv tune`: the playbook, and then what is in force read back, and a new login."""
    return timed(
        [own_program("inv"), "tune", "--hosts", "all", "--forks", "50", "--inventory", folder / "hosts.yml"]
    )


def ansible(bench: Bench, book: Path, forks: int) -> Callable[[Path, Path], Took]:
    """`ansible-playbook` with pipelining, and with settings of nobody else."""

    def run(folder: Path, kept: Path) -> Took:
        environment = {
            "ANSIBLE_CONFIG": str(bench.empty_settings),
            "ANSIBLE_HOME": str(bench.folder / "ansible"),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(kept),
            "LC_ALL": "C.UTF-8",
        }
        command: list[str | Path] = [
            bench.peers / "bin/ansible-playbook",
            "-i",
            folder / "hosts.yml",
            "--forks",
            str(forks),
            book,
        ]
        return timed(command, env=environment)

    return run


def pyinfra(bench: Bench, parallel: int) -> Callable[[Path, Path], Took]:
    """`pyinfra` with benchmarks/tune_pyinfra.py."""
    # It writes files in place: names of one host that upload over each other notice, and must try again.
    options = ["-y", "--parallel", str(parallel), "--retry", "9", "--retry-delay", "0"]

    def run(folder: Path, _: Path) -> Took:
        deploy = ROOT / "benchmarks/tune_pyinfra.py"
        return timed([bench.peers / "bin/pyinfra", folder / "pyinfra_hosts.py", deploy, *options])

    return run


def take_turns(
    bench: Bench, tools: Sequence[Tool], folder: Path, hosts: Sequence[lab.LabHost], rounds: int
) -> None:
    """Both passes of every tool, `rounds` times, each round beginning with another tool.

    :param hosts: those to reset before a first pass.
    """
    for number in range(rounds):
        for tool in [*tools[number % len(tools) :], *tools[: number % len(tools)]]:
            bench.state(hosts, "fresh")
            with tempfile.TemporaryDirectory(dir=bench.folder) as kept:
                for name in tool.passes:
                    took = tool.run(folder, Path(kept))
                    _check(tool, name, took)
                    tool.passes[name].append(took)
                    bench.say(f"  {tool.name}, {name} pass: {took.seconds:.2f} s, {took.cpu:.2f} s of CPU")
                _end_masters(Path(kept))


def _check(tool: Tool, name: str, took: Took) -> None:
    """A pass that did not do its work must not count.

    :raises HostFailed: with the program's output.
    """
    if not tool.counts:
        return
    changed = [int(count) for count in re.findall(r" changed=(\d+) ", took.output)]
    bad = re.search(r" (unreachable|failed)=[1-9]", took.output)
    if not changed or bad or (max(changed) > 0) != (name == "first"):
        raise HostFailed(f"{tool.name}: not what a {name} pass must come to:\n{took.output}")


def _end_masters(kept: Path) -> None:
    """End the SSH connections that Ansible keeps for its next run."""
    for socket in kept.iterdir():
        subprocess.run(
            ["ssh", "-F", "/dev/null", "-o", f"ControlPath={socket}", "-O", "exit", "any"], capture_output=True
        )


# ---------------------------------------------------------------- the parts


def three_hosts(bench: Bench, book: Path, rounds: int) -> list[Tool]:
    """A playbook on three hosts, forks=20 for Ansible as in the aims."""
    folder = bench.inventory([Place(host.name, host.address) for host in bench.hosts], bench.hosts)
    tools = [Tool(f"`inv play {book.name}`", play(book))]
    if book == TUNE:
        tools.append(Tool("`inv tune`", tune))
    tools.append(Tool("ansible-playbook", ansible(bench, book, 20)))
    if book == TUNE:
        tools.append(Tool("pyinfra", pyinfra(bench, 20), counts=False))
    take_turns(bench, tools, folder, bench.hosts, rounds)
    return tools


def fifty_hosts(bench: Bench, rounds: int) -> list[Tool]:
    """tune.yml on fifty addresses of one host, so that no tool can share a connection between them."""
    host = bench.hosts[-1]
    with _more_addresses(bench, host) as addresses:
        places = [Place(f"h{number:02}", address) for number, address in enumerate(addresses, 1)]
        folder = bench.inventory(places, [host] * len(places))
        tools = [
            Tool("`inv play tune.yml`", play(TUNE)),
            Tool("`inv tune`", tune),
            Tool("ansible-playbook", ansible(bench, TUNE, ALIASES)),
            Tool("pyinfra", pyinfra(bench, ALIASES), counts=False),
        ]
        take_turns(bench, tools, folder, [host], rounds)
    return tools


@contextmanager
def _more_addresses(bench: Bench, host: lab.LabHost) -> Iterator[list[str]]:
    taken = {ipaddress.ip_address(one.address) for one in lab.status().hosts} | {lab.GATEWAY}
    free = [str(address) for address in list(lab.NETWORK.hosts())[::-1] if address not in taken][:ALIASES]
    words = " ".join(f"{address}/{lab.NETWORK.prefixlen}" for address in free)
    bench.everywhere([host], f"for a in {words}; do ip address add $a dev host0; done")
    try:
        yield free
    finally:
        bench.everywhere([host], f"for a in {words}; do ip address del $a dev host0; done")


def delay(bench: Bench, rounds: int) -> dict[str, Any]:
    """The second pass of tune.yml on one host, in turns directly and through a relay that adds RTT seconds."""
    host = bench.hosts[-1]
    near = bench.inventory([Place(host.name, host.address)], [host])
    play(TUNE)(near, near)  # what follows is all second passes
    times: dict[str, list[float]] = {"near": [], "far": []}
    trips = []
    for _ in range(rounds):
        times["near"].append(_second(near).seconds)
        relay = subprocess.Popen(
            [sys.executable, RELAY, f"{host.address}:22", "--rtt", str(RTT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert relay.stdin and relay.stdout
        try:
            port = int(relay.stdout.readline())
            times["far"].append(_second(bench.inventory([Place(host.name, "127.0.0.1", port)], [host])).seconds)
        finally:
            counted, _ = relay.communicate()
        trips.append(max(one["round_trips"] for one in json.loads(counted)["each"]))
        bench.say(f"  second pass: {times['near'][-1]:.2f} s, with the relay {times['far'][-1]:.2f} s")
    return {
        "near": median(times["near"]),
        "far": median(times["far"]),
        "difference": median([far - close for far, close in zip(times["far"], times["near"], strict=True)]),
        "round_trips": median(trips),
    }


def _second(folder: Path) -> Took:
    took = play(TUNE)(folder, folder)
    _check(Tool("`inv play tune.yml`", play(TUNE)), "second", took)
    return took


def channels(bench: Bench) -> dict[str, dict[str, int]]:
    """Connections and channels that one host's sshd is asked for by a run."""
    host = bench.hosts[-1]
    folder = bench.inventory([Place(host.name, host.address, PORT)], [host])
    found = {}
    for name, run in (
        ("inv play tune.yml", play(TUNE)),
        ("inv tune", tune),
        ("inv play thirty_tasks.yml", play(THIRTY)),
    ):
        bench.state([host], "fresh")  # after a change of the limits `inv tune` logs in once more
        with CountingSshd(bench.ssh(host)) as sshd:
            run(folder, folder)
            counted = sshd.counted()
        found[name] = counted._asdict()
        bench.say(f"  {name}: {counted.connections} connections, {counted.channels} channels")
    return found


# ---------------------------------------------------------------- all of it


def measure(options: Options, rounds: int, parts: Sequence[str]) -> Answer:
    """All parts, or some; each is written into benchmarks/README.md when it is done.

    :param parts: keys of PARTS; empty for all.
    :raises BadInput: an unknown part, or hosts that are not three of the lab.
    :raises Refused: the lab is not up.
    """
    known = own_lab(parts, PARTS)
    names = [host.name for host in options.select("c2:c3:c4")]
    if len(names) != 3 or not known.keys() >= set(names):
        raise BadInput(f"--hosts must be three hosts of the lab, not {', '.join(names)}")
    hosts = [known[name] for name in names]
    peers = develop.peers()
    about = f"{_machine(peers)}; {rounds} {'round' if rounds == 1 else 'rounds'}."
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as temporary:
        bench = Bench(hosts, Path(temporary), peers, options.say)
        bench.state(hosts, "save")
        try:
            for part in parts or PARTS:
                options.say(f"{part}: {PARTS[part]}")
                found[part], text = _measure(bench, part, rounds)
                publish(f"bench playbook, {part}", f"{text}\n\n{about}")
                options.say(f"\n{text}\n")
        finally:
            bench.state(hosts, "restore")
    options.say(about)
    return Answer({"about": about, "parts": found})


def _measure(bench: Bench, part: str, rounds: int) -> tuple[Any, str]:
    """The figures of one part, and what is written of them."""
    if part == "delay":
        far = delay(bench, rounds)
        return far, (
            f"Without: {far['near']:.2f} s. With it: {far['far']:.2f} s, {far['difference']:.2f} s longer; "
            f"{far['round_trips']:.0f} round trips after TCP's handshake."
        )
    if part == "channels":
        counted = channels(bench)
        rows = [[f"`{name}`", str(one["connections"]), str(one["channels"])] for name, one in counted.items()]
        return counted, table(["first pass of", "connections", "channels"], rows)
    if part == "fifty":
        tools = fifty_hosts(bench, rounds)
    else:
        tools = three_hosts(bench, TUNE if part == "tune" else THIRTY, rounds)
    figures = [tool.to_json() for tool in tools]
    return figures, _comparison(figures)


def _machine(peers: Path) -> str:
    """The machine and every version that matters."""
    versions = {
        name: subprocess.run(
            [peers / "bin/python", "-c", f"import importlib.metadata as m; print(m.version({name!r}))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in ("ansible-core", "pyinfra")
    }
    return ", ".join([machine(), *(f"{name} {version}" for name, version in versions.items())])


def _comparison(tools: Sequence[dict[str, Any]]) -> str:
    ours = tools[0]
    rows = []
    for tool in tools:
        cells = [tool["tool"]]
        for name in ("first", "second"):
            ratio = tool[name]["seconds"] / ours[name]["seconds"]
            cells += [f"{tool[name]['seconds']:.2f} s", f"{ratio:.1f}", f"{tool[name]['cpu']:.2f} s"]
        rows.append(cells)
    head = ["", "first pass", "ratio", "CPU of the controller", "second pass", "ratio", "CPU of the controller"]
    return table(head, rows)
