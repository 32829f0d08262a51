"""The playbooks that come with tcpfleet parse, are complete, and do to a fake host what they say."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tcpfleet.playbook import Playbook, load
from tcpfleet.playbook.parse import read_vars
from tcpfleet.tune import (
    LIMITS_FILE,
    SYSCTL_FILE,
    Asked,
    HostTuning,
    LoginLimit,
    asked,
    key_tuning,
    read_back,
    render,
    render_markdown,
    summarise,
)
from tcpfleet.tune_status import compare, key_state
from tcpfleet.tune_status import render as render_status

from .fakes import FakeFleet, inventory_of

ROOT = Path(__file__).resolve().parents[3]
ARTICLE = """
fs.file-max = 2097152
fs.nr_open = 2097152
net.core.somaxconn = 65535
net.core.rmem_default = 65535
net.core.wmem_default = 65535
net.core.rmem_max = 8388608
net.core.wmem_max = 83886080
net.core.optmem_max = 40960
net.ipv4.tcp_rmem = 4096 87380 83886080
net.ipv4.tcp_wmem = 4096 65535 83886080
net.ipv4.tcp_mem = 8388608 8388608 83886080
net.ipv4.ip_local_port_range = 1025 65000
net.ipv4.tcp_max_syn_backlog = 16384
net.core.netdev_max_backlog = 16384
net.ipv4.tcp_fin_timeout = 15
"""


@pytest.mark.parametrize("name", ["tune", "deploy-server", "stop-server"])
def test_shipped_playbooks_have_no_mistakes(name: str, tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, "all: {children: {server: {hosts: {h1: }}}}")
    assert load(ROOT / f"playbooks/{name}.yml").prepare(inventory)


def test_the_article_profile_has_the_articles_values_verbatim() -> None:
    profile = read_vars(ROOT / "playbooks/profiles/article.yml")
    listed = [f"{entry['name']} = {entry['value']}" for entry in profile["sysctl_profile"]]
    assert listed == ARTICLE.split("\n")[1:-1]
    assert profile["nofile_profile"]["value"] == 1048576
    assert all(entry["reason"] and entry["source"] for entry in profile["sysctl_profile"])


def test_deploy_copies_all_that_the_server_imports() -> None:
    play = load(ROOT / "playbooks/deploy-server.yml").plays[0]
    wanted, queue = set(), ["echo_server"]
    while queue:
        name = queue.pop()
        path = ROOT / f"payload/{name}.py"
        if not path.exists() or path.name in wanted:
            continue
        wanted.add(path.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                queue.append(node.module)
    assert wanted == set(play.vars["echo_files"])


# ---- tune on a fake host: its keys exist, are read-only, or are absent, as a table says

HOST_KEYS: dict[str, Any] = {
    "net.core.somaxconn": "4096",
    "net.ipv4.tcp_fin_timeout": "15",
    "net.ipv4.tcp_rmem": "4096\t87380\t83886080",
    "net.ipv4.ip_local_port_range": "32768\t60999",
}
READ_ONLY = {"fs.file-max": "100", "net.core.rmem_max": "8388608"}


class Kernel:
    """Answers for a host whose kernel has the keys above; everything else is absent."""

    def __init__(
        self, container: bool = True, own_network: bool = True, login: tuple[int, int] = (1024, 20000)
    ) -> None:
        self.values = dict(HOST_KEYS)
        self.files: dict[str, str] = {}
        self.container, self.own_network, self.login = container, own_network, login
        self.boot: dict[str, Any] = {}

    def shell(self, args: dict[str, Any]) -> dict[str, Any]:
        """The two scripts of the play: what is in force, and what limit can be had."""
        if "ns/pid" in args["cmd"]:
            said = [
                f"/proc/sys/{key.replace('.', '/')}:{value}" for key, value in {**READ_ONLY, **self.values}.items()
            ]
            said += ["in a container"] if self.container else []
            said += ["in a network of its own"] if self.own_network else []
        else:
            import shlex
            import subprocess

            soft, hard = self.login
            script = f"ulimit -Sn {soft}; ulimit -Hn {hard}; set +e; systemctl() {{ :; }}; {args['cmd']}"
            said = subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout.splitlines()
            assert said, shlex.quote(script)
        return {"changed": True, "rc": 0, "stdout": "\n".join(said), "stdout_lines": said}

    def stat(self, args: dict[str, Any]) -> dict[str, Any]:
        key = args["path"].removeprefix("/proc/sys/").replace("/", ".")
        exists = key in self.values or key in READ_ONLY
        return {"stat": {"exists": exists, "writeable": key in self.values}}

    def copy(self, args: dict[str, Any]) -> dict[str, Any]:
        changed = self.files.get(args["dest"]) != args["content_b64"]
        self.files[args["dest"]] = args["content_b64"]
        return {"changed": changed}

    def sysctl(self, args: dict[str, Any]) -> dict[str, Any]:
        key, asked, before = args["name"], args["value"], self.values[args["name"]]
        if before.split() == asked.split():
            return {"changed": False, "status": "already", "before": before}
        if asked == "1 65000":
            return {"failed": True, "changed": False, "status": "refused", "errno": "EINVAL", "msg": "no"}
        self.values[key] = asked
        return {"changed": True, "status": "applied", "before": before}

    def sysctl_read(self, args: dict[str, Any]) -> dict[str, Any]:
        every = {**READ_ONLY, **self.values}
        settings = {
            key: {
                "value": every.get(key),
                "exists": key in every,
                "writeable": key in self.values,
                "boot": self.boot.get(key),
                "listed": self.boot.get(key),
                "near": ["somaxconn", "rmem_max"] if key.startswith("net.core.") else [],
            }
            for key in args["names"]
        }
        return {"settings": settings, "profile": None, "limits": [], "processes": {}}

    def canned(self) -> dict[str, Any]:
        return {
            "setup": {"ansible_facts": {"service_mgr": "systemd"}},
            "stat": self.stat,
            "copy": self.copy,
            "sysctl": self.sysctl,
            "sysctl_read": self.sysctl_read,
            "shell": self.shell,
            "file": {"changed": False},
            "systemd": {"changed": False},
        }


def tune(fleet: FakeFleet, inventory: Any, book: Playbook) -> tuple[Any, dict[str, Any]]:
    recap = book.run(fleet, inventory)
    return recap, summarise(
        recap, read_back(fleet, list(inventory.hosts.values()), recap), {"h1": LoginLimit(1024, 20000)}
    )


def test_tune_tells_the_five_states_apart_and_the_second_run_changes_nothing(tmp_path: Path) -> None:
    inventory = inventory_of(
        tmp_path,
        "all: {hosts: {h1: {sysctl_overrides: {net.ipv4.ip_local_port_range: 1 65000, x.y: 0}}, h2: }}",
    )
    kernel = Kernel()
    fleet = FakeFleet(inventory, kernel.canned(), gone=["h2"])
    book = load(ROOT / "playbooks/tune.yml")
    recap, tables = tune(fleet, inventory, book)
    # facts, assert, look, read, set_fact, file, values, probe, limits, folder, unit, handler; no server runs
    assert vars(recap.hosts["h1"]) == {
        "ok": 12, "changed": 4, "failed": 0, "unreachable": 0, "skipped": 1, "rescued": 0, "ignored": 0
    }  # fmt: skip
    statuses = {key.key: key.status for key in tables["h1"].keys}
    assert len(statuses) == 16
    assert statuses["net.core.somaxconn"] == "applied"
    assert statuses["net.ipv4.tcp_fin_timeout"] == statuses["net.ipv4.tcp_rmem"] == "already"
    assert statuses["net.core.rmem_max"] == "already" and tables["h1"].failed
    assert statuses["fs.file-max"] == "read-only"
    assert statuses["net.ipv4.tcp_mem"] == statuses["x.y"] == "absent"
    refused = next(key for key in tables["h1"].keys if key.key == "net.ipv4.ip_local_port_range")
    assert (refused.status, refused.errno, refused.asked, refused.in_force) == (
        "refused", "EINVAL", "1 65000", "32768\t60999"
    )  # fmt: skip
    assert (tables["h1"].nofile.asked, tables["h1"].nofile.granted) == (1048576, 20000)
    assert "53 processes" in tables["h1"].nofile.note and "a new login has 1024" in tables["h1"].nofile.note
    assert tables["h2"].keys == () and "no answer" in tables["h2"].error
    assert "refused (EINVAL)" in render(tables)
    assert asked(recap)["h1"].values["x.y"] == "0"

    recap, tables = tune(fleet, inventory, book)
    assert recap.hosts["h1"].changed == 0
    assert {key.status for key in tables["h1"].keys} == {"already", "absent", "read-only", "refused"}


def test_tune_writes_absent_and_read_only_keys_so_that_boot_passes_over_them(tmp_path: Path) -> None:
    import base64

    inventory = inventory_of(tmp_path, "all: {hosts: {h1: {sysctl_overrides: {x.y: 0, net.core.somaxconn: 9}}}}")
    kernel = Kernel()
    load(ROOT / "playbooks/tune.yml").run(FakeFleet(inventory, kernel.canned()), inventory)
    text = base64.b64decode(kernel.files["/etc/sysctl.d/99-tcpfleet.conf"]).decode()
    lines = text.splitlines()
    assert "-fs.file-max = 2097152" in lines and "-net.ipv4.tcp_mem = 8388608 8388608 83886080" in lines
    assert "net.core.somaxconn = 9" in lines and "-x.y = 0" in lines
    at = lines.index("net.core.somaxconn = 9")
    assert lines[at - 2].startswith("# caps the accept queue") and "65535" in lines[at - 1]
    assert "# warning: these are pages, not bytes" in text
    assert text.endswith("\n") and "\n\n\n" not in text


@pytest.mark.parametrize(
    ("stat", "result", "reading", "status"),
    [
        ({"exists": False}, None, {"value": None}, "absent"),
        ({"exists": True, "writeable": False}, None, {"value": "1"}, "read-only"),
        ({"exists": True, "writeable": False}, None, {"value": "5 6"}, "already"),
        ({"exists": True, "writeable": True}, None, {"value": "1"}, "unknown"),
        ({"exists": True, "writeable": True}, {"status": "applied"}, {"value": "5\t6"}, "applied"),
        ({"exists": True, "writeable": True}, {"status": "applied"}, {"value": "1"}, "refused"),
        ({"exists": True, "writeable": True}, {"status": "would-apply"}, {"value": "1"}, "would-apply"),
        ({"exists": True, "writeable": True}, {"status": "applied"}, None, "applied"),
    ],
)
def test_a_setting_counts_only_as_read_back(stat: Any, result: Any, reading: Any, status: str) -> None:
    assert key_tuning("k", "5 6", stat, result, reading).status == status


# ---- what a profile may ask for: a file of its own, given by its path

PROFILE = """
sysctl_profile:
  - {name: net.core.somaxconn, value: 1000, raise: true, reason: r, source: s}
  - {name: net.ipv4.tcp_rmem, value: 8192 20000 90000000, raise: true, reason: r, source: s}
  - {name: net.ipv4.ip_local_reserved_ports, value: "80,1883,3000-3002", keep: true, reason: r, source: s}
  - {name: net.ipv4.tcp_fin_timeout, value: 0, reason: r, source: s, warning: "{{ 'too low' if true else '' }}"}
  - {name: fs.file-max, value: 50, raise: true, reason: r, source: s, warning: "{{ '' }}"}
nofile_profile: {value: 500, raise: true, reason: r, source: s}
"""


def run_profile(tmp_path: Path, kernel: Kernel, given: str = "") -> tuple[Any, Any, str]:
    import base64

    (tmp_path / "own.yml").write_text(PROFILE)
    variables = f"{{profile: {tmp_path}/own.yml, {given}}}"
    inventory = inventory_of(tmp_path, f"all: {{hosts: {{h1: {variables}}}}}")
    recap, tables = tune(FakeFleet(inventory, kernel.canned()), inventory, load(ROOT / "playbooks/tune.yml"))
    assert recap.reasons == {}
    written = base64.b64decode(kernel.files["/etc/sysctl.d/99-tcpfleet.conf"]).decode()
    return recap, tables["h1"], written


def test_raise_keeps_the_higher_of_both_and_keep_joins_ports(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.values["net.ipv4.ip_local_reserved_ports"] = "81,3003,5000-5001"
    _recap, table, written = run_profile(tmp_path, kernel)
    rows = {row.key: (row.status, row.asked) for row in table.keys}
    assert rows == {
        "net.core.somaxconn": ("already (higher)", "4096"),
        "net.ipv4.tcp_rmem": ("applied", "8192 87380 90000000"),  # number by number
        "net.ipv4.ip_local_reserved_ports": ("applied", "80-81,1883,3000-3003,5000-5001"),
        "net.ipv4.tcp_fin_timeout": ("applied", "0"),
        "fs.file-max": ("already (higher)", "100"),
    }
    assert "# the profile says 1000; what this host has beyond that is kept" in written
    assert written.count("# warning:") == 1 and "# warning: too low" in written
    assert "net.ipv4.tcp_fin_timeout: too low [h1]" in render({"h1": table})
    assert not table.failed and table.nofile.granted == 1024  # raised: the login's soft limit is more than 500
    assert tune_again(tmp_path, kernel) == 0


def tune_again(tmp_path: Path, kernel: Kernel, given: str = "") -> int:
    changed: int = run_profile(tmp_path, kernel, given)[0].hosts["h1"].changed
    return changed


def test_allow_lower_takes_the_profile_at_its_word(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.values["net.ipv4.ip_local_reserved_ports"] = "81"
    _recap, table, _written = run_profile(tmp_path, kernel, "allow_lower: true")
    rows = {row.key: (row.status, row.asked) for row in table.keys}
    assert rows["net.core.somaxconn"] == ("applied", "1000")
    assert rows["net.ipv4.tcp_rmem"] == ("applied", "8192 20000 90000000")
    assert rows["net.ipv4.ip_local_reserved_ports"] == ("applied", "80,1883,3000-3002")
    assert rows["fs.file-max"] == ("read-only", "50")
    assert table.nofile.granted == 500
    assert tune_again(tmp_path, kernel, "allow_lower: true") == 0


@pytest.mark.parametrize(
    ("container", "own_network", "given", "left"),
    [
        (False, False, "", []),
        (True, True, "", ["vm.overcommit_ratio"]),
        (True, False, "", ["net.core.somaxconn", "vm.overcommit_ratio"]),
        (True, False, ", allow_host_wide: true", []),
    ],
)
def test_a_container_leaves_alone_what_belongs_to_its_machine(
    container: bool, own_network: bool, given: str, left: list[str], tmp_path: Path
) -> None:
    kernel = Kernel(container, own_network)
    kernel.values["vm.overcommit_ratio"] = "50"
    overrides = "sysctl_overrides: {vm.overcommit_ratio: 60, net.core.somaxconn: 9}"
    _recap, table, written = run_profile(tmp_path, kernel, overrides + given)
    asked = ("vm.overcommit_ratio", "net.core.somaxconn")
    assert sorted(row.key for row in table.keys if row.status == "host-wide" and row.key in asked) == left
    for key in asked:
        assert kernel.values[key] == (HOST_KEYS | {"vm.overcommit_ratio": "50"})[key] if key in left else True
        assert (f"-{key} = " in written) == (key in left)


@pytest.mark.parametrize("wrong", ["0", "-5", "1M", "''"])
def test_a_number_of_connections_that_is_none_fails_before_anything_changes(wrong: str, tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, f"all: {{hosts: {{h1: {{profile: c1m, connections_wanted: {wrong}}}}}}}")
    canned = Kernel().canned()
    facts = {"memtotal_mb": 2000, "processor_vcpus": 2, "kernel": "6.1", "architecture": "x86_64"}
    canned["setup"] = {"ansible_facts": {"service_mgr": "systemd", **facts}}
    recap = load(ROOT / "playbooks/tune.yml").run(FakeFleet(inventory, canned), inventory)
    assert "connections_wanted must be a whole number above 0" in recap.reasons["h1"]
    assert recap.hosts["h1"].changed == 0


def test_what_is_read_back_is_what_the_play_writes() -> None:
    variables = load(ROOT / "playbooks/tune.yml").plays[0].vars
    assert (variables["sysctl_file"], variables["limits_file"]) == (SYSCTL_FILE, LIMITS_FILE)


# ---- which rows fail a host, which are overridden

OWN = "/etc/sysctl.d/99-tcpfleet.conf"


def source(value: str, file: str = OWN) -> dict[str, Any]:
    return {"value": value, "file": file, "line": 3}


@pytest.mark.parametrize(
    ("reading", "status", "note"),
    [
        ({"boot": source("5\t6")}, "applied", ""),
        ({"boot": None}, "applied", ""),
        ({"boot": source("7", "/etc/sysctl.d/zz.conf"), "listed": source("5 6")}, "overridden", ":3 sets 7"),
        # check mode: no file of ours yet, so the name decides
        ({"boot": source("7", "/etc/sysctl.d/99-zz.conf"), "listed": None}, "overridden", "99-zz.conf:3 sets 7"),
        ({"boot": source("7", "/usr/lib/sysctl.d/50-a.conf"), "listed": None}, "applied", ""),
        ({"boot": source("5 6", "/etc/sysctl.d/zz.conf")}, "applied", ""),
        (
            {"boot": source("5 6"), "system": source("8", "/etc/sysctl.conf"), "listed": source("5 6")},
            "applied", "`sysctl --system` would set 8 (/etc/sysctl.conf:3)",
        ),
    ],
)  # fmt: skip
def test_who_has_the_last_word_shows(reading: dict[str, Any], status: str, note: str) -> None:
    row = key_tuning("k", "5 6", WRITEABLE, {"status": "applied"}, {"value": "5\t6", **reading})
    assert row.status == status and row.note.endswith(note) and bool(row.note) == bool(note)


WRITEABLE = {"exists": True, "writeable": True}


@pytest.mark.parametrize(
    ("key", "near", "mistaken"),
    [
        ("net.core.somaxcon", ["somaxconn", "rmem_max"], True),
        ("net.ipv4.tcp_mem", ["tcp_rmem", "tcp_wmem"], False),  # a key of other network namespaces
        ("net.ipv4.tcp_brand_new", ["tcp_rmem"], False),
        ("net.ipvx.tcp_mem", [], False),
    ],
)
def test_a_misspelt_key_fails_the_host_and_one_of_another_kernel_does_not(
    key: str, near: list[str], mistaken: bool
) -> None:
    row = key_tuning(key, "5", {"exists": False}, None, {"value": None, "near": near})
    assert (row.status, row.mistaken) == ("absent", mistaken)
    assert ("net.core.somaxconn" in row.note) == mistaken


def test_the_report_escapes_what_hosts_say() -> None:
    row = key_tuning(
        "a|b", "5", WRITEABLE, {"status": "refused", "errno": "EINVAL", "msg": "<b>|"}, {"value": "4"}
    )
    text = render_markdown({"h1": HostTuning("h1", (row,), None, "it | failed")}, "Tuning")
    assert "| a\\|b | 4 | 5 | 4 | - | refused (EINVAL) | &lt;b>\\| |" in text and "**it \\| failed**" in text


# ---- tune-status


@pytest.mark.parametrize(
    ("reading", "status"),
    [
        ({"value": "5", "boot": source("5"), **WRITEABLE}, "lasting"),
        ({"value": "4", "boot": source("5"), **WRITEABLE}, "drift"),
        ({"value": "5", "boot": None, **WRITEABLE}, "not on disk"),
        ({"value": "5", "boot": source("4"), **WRITEABLE}, "file changed"),
        ({"value": "5", "boot": source("4", "/etc/sysctl.d/zz.conf"), **WRITEABLE}, "overridden"),
        ({"value": "4", "boot": source("5"), "exists": True, "writeable": False}, "read-only"),
        ({"value": "5", "boot": None, "exists": True, "writeable": False}, "lasting"),
        ({"value": None, "boot": source("5"), "exists": False, "writeable": False}, "absent"),
    ],
)
def test_what_has_become_of_a_key(reading: dict[str, Any], status: str) -> None:
    row = key_state("k", "5", reading, Asked({"k": "5"}, {"k": "5"}, {}, frozenset()))
    assert row.status == status
    assert (row.after_boot is None) == (not reading["writeable"] or reading["boot"] is None)


def test_status_of_a_host_that_is_as_asked_and_of_one_that_is_not(tmp_path: Path) -> None:
    kernel = Kernel()
    inventory = inventory_of(tmp_path, "all: {hosts: {h1: , h2: }}")
    fleet = FakeFleet(inventory, kernel.canned(), gone=["h2"])
    book = load(ROOT / "playbooks/tune.yml")
    tune(fleet, inventory, book)
    kernel.boot = {key: source(value) for key, value in kernel.values.items()}
    hosts = list(inventory.hosts.values())
    seen = {"h1": LoginLimit(20000, 20000)}
    recap = book.run(fleet, inventory, check=True)
    states = compare(recap, read_back(fleet, hosts, recap), seen)
    assert not states["h1"].drifted and not states["h1"].error and states["h2"].error
    kernel.values["net.ipv4.tcp_fin_timeout"] = "60"
    states = compare(recap, read_back(fleet, hosts, recap), {"h1": LoginLimit(1024, 20000)})
    assert [row.key for row in states["h1"].keys if row.status == "drift"] == ["net.ipv4.tcp_fin_timeout"]
    assert "a new login has 1024 open files, not 20000" in render_status(states)
