"""The profiles of playbooks/profiles/: what they compute on hosts of every size, in this engine and in Ansible's.

Also that each entry explains itself, that docs/tuning.md describes every key and no other, and, as root, that the
kernel takes the values and gives them back as they were written.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tcpfleet.inventory import Inventory
from tcpfleet.playbook.parse import read_vars
from tcpfleet.playbook.variables import HostState, RunVariables, Scope

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ROOT / "playbooks/profiles"
NAMES = sorted(path.stem for path in PROFILES.glob("*.yml"))
COMPUTED = ("c100k", "c1m", "client")
FIELDS = {"name", "value", "raise", "keep", "reason", "source", "warning"}
INT_MAX = 2**31 - 1

# What the kernel accepts for each number of a key, from its sources; the value is written to it as it is.
LIMITS: dict[str, tuple[int, int]] = {
    "fs.file-max": (0, 2**63 - 1),
    "fs.nr_open": (64, INT_MAX // 64 * 64),
    "fs.epoll.max_user_watches": (0, 2**63 - 1),
    "net.core.somaxconn": (0, 65535),  # 16 bits wide until Linux 5.x
    "net.core.rmem_default": (2304, INT_MAX),
    "net.core.wmem_default": (4608, INT_MAX),
    "net.core.rmem_max": (2304, INT_MAX // 2),  # setsockopt doubles it
    "net.core.wmem_max": (4608, INT_MAX // 2),
    "net.ipv4.tcp_rmem": (4096, INT_MAX),
    "net.ipv4.tcp_wmem": (4096, INT_MAX),
    "net.ipv4.tcp_mem": (1, 2**63 - 1),
    "net.ipv4.ip_local_port_range": (1024, 65535),  # not below ip_unprivileged_port_start
    "net.ipv4.ip_local_reserved_ports": (1, 65535),
    "net.ipv4.tcp_tw_reuse": (0, 2),
    "net.ipv4.tcp_syncookies": (0, 2),
    "net.ipv4.tcp_slow_start_after_idle": (0, 1),
    "net.ipv4.tcp_fin_timeout": (1, 120),
    "net.ipv4.tcp_keepalive_time": (1, 32767),
    "net.ipv4.tcp_keepalive_intvl": (1, 32767),
    "net.ipv4.tcp_keepalive_probes": (1, 127),
    "net.ipv4.tcp_notsent_lowat": (1, 2**32 - 1),
    "kernel.pid_max": (301, 4194304),
    "kernel.threads-max": (20, 0x3FFFFFFF),
}


@dataclass(frozen=True)
class Machine:
    """A host to compute for; sizes in MiB."""

    memory: int = 24000
    cpus: int = 2
    kernel: str = "6.12.9-amd64"
    architecture: str = "x86_64"
    groups: tuple[str, ...] = ("server",)
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "memtotal_mb": self.memory,
            "processor_vcpus": self.cpus,
            "kernel": self.kernel,
            "architecture": self.architecture,
        }


def render(profile: str, machine: Machine, folder: Path) -> dict[str, Any]:
    """All variables of a profile, as this project's engine computes them."""
    inventory = folder / "hosts.yml"
    groups = {group: {"hosts": {"h1": None}} for group in machine.groups}
    everything = {"hosts": {"h1": machine.given}, "children": groups}
    inventory.write_text(json.dumps({"all": everything}), encoding="utf-8")
    loaded = Inventory.load(inventory)
    state = HostState(loaded.hosts["h1"], facts=machine.facts)
    variables = read_vars(PROFILES / f"{profile}.yml")
    scope = Scope(RunVariables(loaded, {"h1": state}, {}, {}), state, (variables,))
    return {name: scope.lookup(name) for name in variables}


def settings(rendered: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: str(entry["value"]) for entry in rendered["sysctl_profile"]}


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.split("[ ,-]", text)]


MEMORY = (512, 961, 2048, 7800, 24000, 128000, 515000, 1048576)
CPUS = (1, 2, 48, 128, 256)  # one more than groups: each memory meets each group
GROUPS: tuple[tuple[str, ...], ...] = ((), ("server",), ("clients",), ("clients", "server"))
GIVEN: tuple[dict[str, Any], ...] = (
    {},
    {"connections_wanted": 1, "message_bytes": 1},
    {"connections_wanted": "2_000_000", "message_bytes": 65536, "processes_wanted": 2000000},
    {"connections_wanted": 10**7, "reserved_ports": ["30000-32767", 1883, 1884, 8080], "server_port": "1900"},
)
KERNELS = (
    ("6.12.9-amd64", "x86_64", 4096),
    ("4.18.0-553.el8_10.aarch64", "aarch64", 65536),
    ("5.14.0-503.el9.aarch64+64k", "aarch64", 65536),
    ("5.14.0-503.el9.aarch64", "aarch64", 4096),
    ("6.8.0-45-generic", "ppc64le", 65536),
)


def machines() -> Iterator[Machine]:
    for (memory, cpus), groups in zip(itertools.product(MEMORY, CPUS), itertools.cycle(GROUPS), strict=False):
        yield Machine(memory, cpus, groups=groups)
    for memory, given, groups in itertools.product((512, 24000, 1048576), GIVEN, GROUPS[2:]):
        yield Machine(memory, 8, groups=groups, given=given)
    for memory, (kernel, architecture, _page) in itertools.product((512, 128000), KERNELS):
        yield Machine(memory, 8, kernel, architecture)


ALL_MACHINES = list(machines())


# ---- each entry explains itself


@pytest.mark.parametrize("profile", NAMES)
def test_entries_are_complete_and_say_where_they_come_from(profile: str) -> None:
    variables = read_vars(PROFILES / f"{profile}.yml")
    names = [entry["name"] for entry in variables["sysctl_profile"]]
    assert len(names) == len(set(names))
    for entry in [*variables["sysctl_profile"], {"name": "nofile", **variables["nofile_profile"]}]:
        assert FIELDS >= entry.keys() >= {"name", "value", "reason", "source"}, entry
        assert all(isinstance(entry.get(flag, True), bool) for flag in ("raise", "keep"))
        # One line of a file each: `#` and a newline would end the comment that they become.
        for word in ("reason", "source", "warning"):
            assert "\n" not in entry.get(word, "").strip() and entry.get(word, "x").strip()
        assert re.search(r"kernel doc|\(\d\)", entry["source"])


def test_warnings_and_raise_only_keys_of_the_article() -> None:
    entries = {entry["name"]: entry for entry in read_vars(PROFILES / "article.yml")["sysctl_profile"]}
    warned = {name.rpartition(".")[2] for name, entry in entries.items() if entry.get("warning")}
    assert warned == {
        "tcp_mem", "tcp_fin_timeout", "wmem_max", "optmem_max", "rmem_default", "wmem_default", "tcp_rmem",
        "tcp_wmem", "ip_local_port_range",
    }  # fmt: skip
    raised = {name.rpartition(".")[2] for name, entry in entries.items() if entry.get("raise")}
    assert raised == {
        "file-max", "nr_open", "somaxconn", "rmem_max", "wmem_max", "tcp_max_syn_backlog", "netdev_max_backlog",
    }  # fmt: skip


def test_what_the_computed_profiles_share_is_the_same_in_each() -> None:
    """They are files of their own, to be read top to bottom; this keeps them from drifting apart."""
    own = {
        "host_connections",
        "net.ipv4.tcp_notsent_lowat", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_keepalive_probes", "net.ipv4.ip_local_port_range",
    }  # fmt: skip
    seen: dict[str, Any] = {}
    for profile in COMPUTED:
        variables = read_vars(PROFILES / f"{profile}.yml")
        flat = {name: value for name, value in variables.items() if name != "sysctl_profile"}
        flat |= {entry["name"]: entry for entry in variables["sysctl_profile"]}
        for name, value in flat.items():
            if name not in own:
                assert seen.setdefault(name, value) == value, f"{name} of {profile}"


# ---- values on hosts of every size


@pytest.mark.parametrize("profile", COMPUTED)
def test_every_host_gets_values_that_its_kernel_takes(profile: str, tmp_path: Path) -> None:
    for machine in ALL_MACHINES:
        rendered = render(profile, machine, tmp_path)
        for name, text in settings(rendered).items():
            where = f"{name} = {text!r} on {machine}"
            form = r"\d+(-\d+)?(,\d+(-\d+)?)*" if name.endswith("reserved_ports") else r"\d+( \d+)*"
            assert re.fullmatch(form, text), where
            least, most = LIMITS.get(name, (1, INT_MAX))
            assert all(least <= number <= most for number in numbers(text)), where
        check_relations(profile, rendered, machine)


def check_relations(profile: str, rendered: dict[str, Any], machine: Machine) -> None:
    """What must hold between values, and between them and the host."""
    values = settings(rendered)
    memory = machine.memory * 2**20
    page = next(size for kernel, _, size in KERNELS if kernel == machine.kernel)
    page = 65536 if machine.architecture == "ppc64le" else page
    wanted = int(str(machine.given.get("connections_wanted", 10**6 if profile == "c1m" else 10**5)))
    ends = 2 if {"server", "clients"} <= set(machine.groups) else 1
    context = f"{profile} on {machine}: {values}"

    low, pressure, limit = numbers(values["net.ipv4.tcp_mem"])
    assert 0 < low < pressure < limit, context
    assert limit * page <= memory * 3 // 4, context
    assert limit * page >= memory * 9 // 100, context  # not below what the kernel takes by itself

    nofile = int(rendered["nofile_profile"]["value"])
    assert wanted + 16384 <= nofile <= int(values["fs.nr_open"]), context
    assert int(values["fs.nr_open"]) >= 1048576, context  # never below the kernel's default
    assert int(values["fs.file-max"]) >= wanted * ends + 65536, context
    assert int(values["fs.epoll.max_user_watches"]) >= wanted * ends, context
    assert values["net.core.rmem_max"] == values["net.core.wmem_max"], context
    for name in ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"):
        least, initial, most = numbers(values[name])
        assert 4096 == least < initial < most <= int(values["net.core.rmem_max"]), context
        assert most * 100 < limit * page or most == 1048576, context  # no connection gets a notable part of all
        assert (least | initial | most) % 4096 == 0, context
    assert int(values["net.core.netdev_max_backlog"]) >= 1000, context
    assert int(values["net.netfilter.nf_conntrack_max"]) * 320 <= memory // 8, context
    first, last = numbers(values["net.ipv4.ip_local_port_range"])
    assert first % 2 != last % 2, context  # the kernel doc asks for different parity
    if profile == "client":
        assert (first, last) == (1024, 65535)
    else:
        probing = sum(int(values[f"net.ipv4.tcp_keepalive_{name}"]) for name in ("time", "intvl"))
        assert int(values["net.netfilter.nf_conntrack_tcp_timeout_established"]) > 10 * probing, context
        assert int(values["net.core.somaxconn"]) >= min(4096, wanted), context
    warnings = [entry["warning"] for entry in rendered["sysctl_profile"] if entry.get("warning")]
    assert bool(warnings) == (wanted * ends * 4096 > memory * 3 // 4), context


def test_ports_are_reserved_as_the_kernel_gives_them_back(tmp_path: Path) -> None:
    """It joins neighbours and sorts; written otherwise, the key would look changed on every run."""

    def reserved(**given: Any) -> str:
        machine = Machine(given=given)
        return settings(render("c100k", machine, tmp_path))["net.ipv4.ip_local_reserved_ports"]

    assert reserved(reserved_ports=[]) == "1883"
    assert reserved(reserved_ports=[8081, 8080, "8082", 1884]) == "1883-1884,8080-8082"
    assert reserved(reserved_ports=["30000-32767", "31000-31001", 32768], server_port=7) == "7,30000-32768"
    assert reserved(reserved_ports=["5-9", "1-20"], server_port="21") == "1-21"
    default = reserved().split(",")
    assert {"1883", "3306", "5432", "6379", "8080", "2379-2380"} <= set(default)
    assert default == sorted(default, key=lambda part: int(part.split("-")[0]))


@pytest.mark.parametrize("wrong", ["1M", "many", "", "-5", [3]])
def test_a_number_of_connections_that_is_none_shows(wrong: Any, tmp_path: Path) -> None:
    """The play refuses what is not above 0; a guess would tune for something nobody asked for."""
    assert render("c1m", Machine(given={"connections_wanted": wrong}), tmp_path)["host_connections"] < 0


def test_page_size_can_be_given(tmp_path: Path) -> None:
    usual, large = (
        numbers(settings(render("c100k", Machine(given=given), tmp_path))["net.ipv4.tcp_mem"])
        for given in ({"connections_wanted": 9}, {"connections_wanted": 9, "page_bytes": 16384})
    )
    assert large[2] * 4 == pytest.approx(usual[2], rel=0.01)


# ---- the same in Ansible

ANSIBLE = """
import json, sys
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
loader = DataLoader()
answers = []
for case in json.load(sys.stdin):
    variables = dict(loader.load_from_file(case["path"], trusted_as_template=True))
    names = list(variables)
    variables = {**case["given"], "ansible_facts": case["facts"], "group_names": case["groups"], **variables}
    templar = Templar(loader=loader, variables=variables)
    answers.append({name: templar.template(trust_as_template("{{ %s }}" % name)) for name in names})
json.dump(answers, sys.stdout)
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the reference is ansible-core 2.19, which needs 3.11")
def test_ansible_computes_the_same(tmp_path: Path) -> None:
    chosen = [Machine(given=GIVEN[3]), *random.Random(4).sample(ALL_MACHINES, 11)]
    cases = [(profile, machine) for profile in COMPUTED for machine in chosen]
    cases += [(profile, Machine()) for profile in NAMES if profile not in COMPUTED]
    sent = [
        {
            "path": str(PROFILES / f"{profile}.yml"),
            "given": machine.given,
            "facts": machine.facts,
            "groups": list(machine.groups),
        }
        for profile, machine in cases
    ]
    environment = {**os.environ, "ANSIBLE_LOCAL_TEMP": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ANSIBLE],
        input=json.dumps(sent), capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (profile, machine), theirs in zip(cases, json.loads(done.stdout), strict=True):
        ours = json.loads(json.dumps(render(profile, machine, tmp_path)))
        assert ours == theirs, f"{profile} on {machine}"


# ---- the kernel takes them

WRITE = """
import json, os, sys
values, outside = json.load(sys.stdin)
if os.readlink("/proc/self/ns/net") == outside:
    sys.exit("not in a network namespace of its own")
answers = {}
for key, value in values.items():
    path = "/proc/sys/" + key.replace(".", "/")
    if not os.path.exists(path) or not os.stat(path).st_mode & 0o200:
        continue
    try:
        with open(path, "w") as file:
            file.write(value + "\\n")
        with open(path) as file:
            answers[key] = " ".join(file.read().split())
    except OSError as error:
        answers[key] = str(error)
json.dump(answers, sys.stdout)
"""


def may_unshare() -> bool:
    try:
        return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_unshare(), reason="needs unshare(1) and the right to make a network namespace")
@pytest.mark.parametrize("profile", NAMES)
def test_the_kernel_gives_back_what_was_written(profile: str, tmp_path: Path) -> None:
    """In a network namespace of its own; keys of the whole machine (fs, kernel, vm) are left alone."""
    given = GIVEN[3] | {"reserved_ports": ["2379-2380", 8081, 8080]}
    for machine in (Machine(), Machine(512, 1), Machine(1048576, 256, groups=("clients",), given=given)):
        values = settings(render(profile, machine, tmp_path))
        values = {name: value for name, value in values.items() if name.startswith("net.")}
        outside = os.readlink("/proc/self/ns/net")
        done = subprocess.run(
            ["unshare", "-n", sys.executable, "-c", WRITE],
            input=json.dumps([values, outside]), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)
        assert answers == {name: values[name] for name in answers}
        assert {"net.core.somaxconn", "net.ipv4.tcp_rmem"} & values.keys() <= answers.keys()


# ---- docs/tuning.md

DOCS = ROOT / "docs/tuning.md"


def sections() -> dict[str, str]:
    """Heading of each key -> the text below it."""
    parts = re.split(r"(?m)^### `([^`]+)`\n", DOCS.read_text(encoding="utf-8"))
    return {name: re.split(r"(?m)^## ", text)[0] for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_the_documentation_has_every_key_and_no_other() -> None:
    known = {"nofile"}
    for profile in NAMES:
        known |= {entry["name"] for entry in read_vars(PROFILES / f"{profile}.yml")["sysctl_profile"]}
    assert set(sections()) == known


def test_each_section_says_which_profiles_set_the_key_and_to_what() -> None:
    texts = sections()
    told = {name: re.search(r"(?m)^\* Profiles: (.*(?:\n  .*)*)", text) for name, text in texts.items()}
    setting: dict[str, dict[str, Any]] = {name: {} for name in texts}
    for profile in NAMES:
        variables = read_vars(PROFILES / f"{profile}.yml")
        for entry in [*variables["sysctl_profile"], {"name": "nofile", **variables["nofile_profile"]}]:
            setting[entry["name"]][profile] = entry
    for name, entries in setting.items():
        match = told[name]
        assert match, f"{name} has no line 'Profiles:'"
        line = " ".join(match.group(1).split())
        said = {}
        for clause in re.split(r";\s+(?=`)", line):
            names, text = re.fullmatch(r"((?:`\w+`(?:, | ))+)(.*)", clause).groups()
            said |= dict.fromkeys(re.findall("`(.*?)`", names), text)
        assert said.keys() == entries.keys(), f"{name}: {line}"
        for profile, entry in entries.items():
            if "{{" not in str(entry["value"]):
                assert str(entry["value"]) in said[profile].replace(",", ""), f"{name}: {profile}: {line}"
            assert ("only raised" in said[profile]) == bool(entry.get("raise")), f"{name}: {profile}"
    for name, text in texts.items():
        assert re.search(r"(?m)^\* Default: ", text), f"{name} has no line 'Default:'"
        assert re.search(r"(?m)^\* How we know: ", text), f"{name} has no line 'How we know:'"
        assert re.search(r"(?m)^\* When it matters: ", text), f"{name} has no line 'When it matters:'"
