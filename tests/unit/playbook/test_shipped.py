"""The playbooks that come with tcpfleet parse, are complete, and do to a fake host what they say."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tcpfleet.playbook import Playbook, load
from tcpfleet.playbook.parse import read_vars
from tcpfleet.tune import (
    Asked,
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
            said.append("pid:[4026532000]" if self.container else "pid:[4026531836]")
            said += ["netdev_max_backlog absent"] if self.own_network else []
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
    # facts, assert, look, read, set_fact, file, values, probe, limits, folder, unit, handler; no server to be raised
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
