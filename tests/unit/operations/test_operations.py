"""Operations, case by case (cases/*.yml), under every Python that payload/ is meant for.

A file holds cases of one operation: ``op``, and under ``cases`` name -> ``files`` (path -> text, ``{text, mode}``,
``{link}`` or ``{dir: mode}``) and ``steps``: ``args``, ``check``, ``op`` (when it is another), ``result`` (fields
the result must have; a text beginning with ``~`` must be contained) and ``files`` (as they must be afterwards;
null: nothing there).
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from operations import TABLE, OperationError, _files, _hardware, _host, _kernel, setup, systemd

from tests.unit.interpreters import INTERPRETERS

HERE = Path(__file__).parent


def all_cases() -> dict[str, Any]:
    found = {}
    for path in sorted((HERE / "cases").glob("*.yml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, case in data["cases"].items():
            found[f"{data['op']}: {name}"] = {"op": data["op"], **case}
    return found


@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: path.parent.parent.name)
def test_cases(python: Path) -> None:
    done = subprocess.run(
        [str(python), "-B", "-I", "-S", str(HERE / "run_cases.py")],
        input=json.dumps(all_cases()).encode(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {}


def test_every_operation_of_a_playbook_module_has_cases() -> None:
    from tcpfleet.playbook.actions import ACTIONS

    tested = {case["op"] for case in all_cases().values()}
    ours = {"systemd" if name == "systemd_service" else name for name in ACTIONS} & set(TABLE)
    assert ours - tested - {"systemd", "setup"} == set()


@pytest.mark.parametrize(
    ("where", "number", "status"),
    [
        ("write", errno.EINVAL, "refused"),
        ("open", errno.EROFS, "read-only"),
        ("open", errno.EACCES, "read-only"),
        ("write", errno.EPERM, "read-only"),
        ("open", errno.ENOENT, "absent"),
    ],
)
def test_a_kernel_that_says_no(
    where: str, number: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("1\n")
    monkeypatch.setattr(_kernel, "PROC_SYS", str(tmp_path))

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(_kernel.os, where, refuse)
        found, code, _now, sentence = _kernel.write("key", "2")
    assert (found, code) == (status, errno.errorcode[number])
    assert "key" in sentence
    assert (tmp_path / "key").read_text() == "1\n"


def test_a_kernel_that_keeps_another_value_has_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("1\n")
    monkeypatch.setattr(_kernel, "PROC_SYS", str(tmp_path))
    monkeypatch.setattr(_kernel.os, "write", lambda *_: 2)
    assert _kernel.write("key", "2")[0] == "refused"


@pytest.mark.parametrize("name", ["", "..", "net.../x", "/etc/passwd", "net/../../etc", "a..b", "a//b"])
def test_no_key_leads_out_of_proc_sys(name: str) -> None:
    with pytest.raises(OperationError):
        _kernel.key_path(name)


def test_interface_names_with_dots() -> None:
    assert _kernel.key_path("net.ipv4.conf.eth0/1.forwarding") == "/proc/sys/net/ipv4/conf/eth0.1/forwarding"
    assert _kernel.key_path("net/ipv4/conf/eth0.1/forwarding") == "/proc/sys/net/ipv4/conf/eth0.1/forwarding"


@pytest.mark.parametrize("step", ["fsync", "rename", "fchmod"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "f"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, step, full)
        with pytest.raises(OperationError) as caught:
            _files.write_atomically(str(target), b"new", 0o600)
    assert caught.value.fields["errno"] == "ENOSPC"
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("wanted", "current", "mode"),
    [
        ("0644", 0, 0o644), ("644", 0, 0o644), (0o600, 0, 0o600), ("u=rw,g=r,o=", 0o777, 0o640),
        ("u+x", 0o644, 0o744), ("a-w", 0o666, 0o444), ("g=u", 0o640, 0o660), ("u=rwX", 0o600, 0o600),
        ("u=rwX", 0o711, 0o711), ("u+s", 0o755, 0o4755), ("+t", 0o777, 0o1777), (None, 0o640, 0o640),
    ],
)  # fmt: skip
def test_modes(wanted: object, current: int, mode: int) -> None:
    assert _files.parse_mode(wanted, current) == mode


@pytest.mark.parametrize(
    ("wanted", "picked"),
    [
        (["all"], ["min", "hardware", "network", "virtual", "tcpfleet"]),
        (["!all"], ["min"]),
        (["!all", "!min"], []),
        (["!all", "network"], ["min", "network"]),
        (["network"], ["min", "network"]),
        (["!network"], ["min", "hardware", "virtual", "tcpfleet"]),
        (["!facter", "!ohai"], ["min", "hardware", "network", "virtual", "tcpfleet"]),
        (["!all", "default_ipv4", "distribution"], ["min", "network"]),
    ],
)
def test_fact_subsets(wanted: list[str], picked: list[str]) -> None:
    assert setup.chosen(wanted) == picked


def test_no_such_fact_subset() -> None:
    with pytest.raises(OperationError, match="no 'netwrok'; there are: all, min"):
        setup.chosen(["netwrok"])


def test_facts_of_this_machine() -> None:
    class Context:
        check = diff = False

    facts = setup.run({}, Context())["ansible_facts"]
    assert facts["hostname"] == os.uname().nodename.split(".")[0]
    assert facts["kernel"] == os.uname().release
    assert facts["processor_nproc"] == len(os.sched_getaffinity(0))
    assert facts["memtotal_mb"] > 0
    assert facts["lo"]["ipv4"]["address"].startswith("127.")
    assert not any(address.startswith("127.") for address in facts["all_ipv4_addresses"])
    assert facts["tcpfleet"]["nofile"]["soft"] != 0
    assert setup.run({"filter": ["ansible_kern*"]}, Context())["ansible_facts"].keys() >= {"kernel"}


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (
            'PRETTY_NAME="Debian GNU/Linux 12"\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nID=debian\n',
            {
                "distribution": "Debian",
                "os_family": "Debian",
                "distribution_version": "12",
                "distribution_major_version": "12",
                "distribution_release": "bookworm",
            },
        ),
        ('NAME="Mint"\nID=linuxmint\nID_LIKE="ubuntu"\nVERSION_ID="21.1"\n', {
            "distribution": "Mint",
            "os_family": "Debian",
            "distribution_version": "21.1",
            "distribution_major_version": "21",
            "distribution_minor_version": "1",
        }),
        ("", {}),
    ],
)  # fmt: skip
def test_distribution(text: str, facts: dict[str, str]) -> None:
    assert setup.distribution_facts(text) == facts


def test_debians_point_release() -> None:
    facts = setup.distribution_facts('ID=debian\nVERSION_ID="12"\n', "12.11\n")
    assert (facts["distribution_version"], facts["distribution_minor_version"]) == ("12.11", "11")
    assert setup.distribution_facts('ID=debian\nVERSION_ID="13"\n', "trixie/sid\n")["distribution_version"] == "13"


def test_processors() -> None:
    one = "processor\t: {}\nvendor_id\t: V\nmodel name\t: M x\nphysical id\t: {}\nsiblings\t: 4\n"
    one += "core id\t\t: {}\ncpu cores\t: 2\n"
    text = "\n".join(one.format(n, n // 4, n % 2) for n in range(8))
    facts = _hardware.processor_facts(text)
    assert facts["processor"][:3] == ["0", "V", "M x"]
    assert [facts["processor_" + name] for name in ("count", "cores", "threads_per_core", "vcpus")] == [2, 2, 2, 8]
    assert _hardware.processor_facts("processor : 0\n\nprocessor : 1\n")["processor_count"] == 2
    assert _hardware.processor_facts("") == {}


def test_memory_mounts_and_the_kernels_command_line() -> None:
    text = "MemTotal: 4096 kB\nMemFree: 1024 kB\nCached: 1024 kB\nBuffers: 0 kB\nSwapTotal: 0 kB\n"
    facts = _hardware.memory_facts(text)
    assert facts["memory_mb"]["real"] == {"total": 4, "used": 3, "free": 1}
    assert facts["memory_mb"]["nocache"] == {"free": 2, "used": 2}
    lines = "/dev/a /mnt/a\\040b ext4 rw 0 1\nproc /proc proc rw 0 0\nfs:/x /y nfs rw 0 0\n"
    assert [one["mount"] for one in _hardware.mount_lines(lines)] == ["/mnt/a b", "/y"]
    assert _hardware.words_of_cmdline("quiet root=/dev/a=b\n") == {"quiet": True, "root": "/dev/a=b"}


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ((None, None, None), {"status": "disabled"}),
        ((None, "SELINUX=enforcing\n", None), {"status": "disabled"}),
        (
            ("1", "# SELINUX=x\nSELINUX=permissive\nSELINUXTYPE=targeted\n", "33"),
            {
                "status": "enabled", "mode": "enforcing", "config_mode": "permissive", "type": "targeted",
                "policyvers": 33,
            },
        ),
        (
            ("0\n", None, None),
            {
                "status": "enabled", "mode": "permissive", "config_mode": "unknown", "type": "unknown",
                "policyvers": "unknown",
            },
        ),
    ],
)  # fmt: skip
def test_selinux(texts: tuple[str | None, ...], found: dict[str, object]) -> None:
    assert _host.selinux_facts(*texts) == found


def test_lsb() -> None:
    text = 'DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=22.04\nDISTRIB_CODENAME=jammy\nDISTRIB_DESCRIPTION="Ubuntu 22"\n'
    assert _host.lsb_facts(text, {}) == {
        "id": "Ubuntu", "release": "22.04", "codename": "jammy", "description": "Ubuntu 22",
        "major_release": "22",
    }  # fmt: skip
    release = {"ID": "debian", "NAME": "Debian GNU/Linux", "VERSION_ID": "12"}
    assert _host.lsb_facts(None, release) == {"id": "Debian", "release": "12", "major_release": "12"}
    assert _host.lsb_facts(None, {}) == {}


def test_name_servers() -> None:
    text = "# x\n; y\nnameserver 10.0.0.1\nnameserver ::1\n\nsearch a.b c\ndomain d\noptions ndots:2 rotate\n"
    assert _host.dns_facts(text) == {
        "nameservers": ["10.0.0.1", "::1"], "search": ["a.b", "c"], "domain": "d",
        "options": {"ndots": "2", "rotate": True},
    }  # fmt: skip
    assert _host.dns_facts("domain\n") == {}


def test_ipv6() -> None:
    text = (
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fd000000000000000000000000000002 02 40 00 80     eth0\n"
        "fe8000000000000000fc00fffe000001 02 40 20 80     eth0\n"
    )
    assert _host.ipv6_addresses(text) == {
        "lo": [{"address": "::1", "prefix": "128", "scope": "host"}],
        "eth0": [
            {"address": "fd00::2", "prefix": "64", "scope": "global"},
            {"address": "fe80::fc:ff:fe00:1", "prefix": "64", "scope": "link"},
        ],
    }
    zero, gateway = "0" * 32, "fd00" + "0" * 27 + "1"
    route = "{} {} {} 00 {} {} 00000001 00000000 {} {}\n"
    lines = [
        route.format(zero, "00", zero, gateway, "00000400", "00000003", "eth0"),
        route.format(zero, "00", zero, zero, "00000100", "00000001", "wg0"),
        route.format(zero, "00", zero, zero, "00000001", "00200200", "lo"),
        route.format(zero, "00", zero, zero, "00000001", "00000201", "eth1"),  # unreachable
        route.format("fd00" + zero[4:], "40", zero, zero, "00000001", "00000001", "eth2"),
    ]
    assert _host.default_ipv6_route("".join(lines)) == ("wg0", None)
    assert _host.default_ipv6_route(lines[0]) == ("eth0", "fd00::1")
    assert _host.default_ipv6_route("".join(lines[2:])) is None


def test_what_the_firmware_says_and_host_keys(tmp_path: Path) -> None:
    (tmp_path / "sys_vendor").write_text("QEMU\n")
    facts = _host.dmi_facts(str(tmp_path))
    assert facts["system_vendor"] == "QEMU" and facts["product_serial"] == "NA"
    assert set(facts) == set(_host.DMI_NAMES)
    (tmp_path / "ssh_host_ed25519_key.pub").write_text("ssh-ed25519 AAAA root@here\n")
    (tmp_path / "ssh_host_rsa_key.pub").write_text("")
    assert _host.key_facts(str(tmp_path)) == {
        "ssh_host_key_ed25519_public": "AAAA",
        "ssh_host_key_ed25519_public_keytype": "ssh-ed25519",
    }
    assert _host.words_of_cmdline("quiet a=1 a=2 a=3") == {"quiet": True, "a": ["1", "2", "3"]}


def test_dear_facts_are_gathered_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        check = diff = False

    asked: list[str] = []
    table = [(subset, names, lambda names=names: asked.append(names[0]) or {names[0]: 1})
             for subset, names, _ in setup._WHEN_ASKED]  # fmt: skip
    monkeypatch.setattr(setup, "_WHEN_ASKED", table)
    setup.run({"filter": ["ansible_kernel"]}, Context())
    assert asked == []
    assert setup.run({"filter": ["lsb"], "gather_subset": ["min"]}, Context())["ansible_facts"]["lsb"] == 1
    assert asked == ["lsb"]
    setup.run({}, Context())
    assert len(asked) == 1 + len(table)


class Systemctl:
    """A context whose systemctl knows one unit."""

    check = diff = False
    below_the_mask = "disabled"

    def __init__(self, active: str = "inactive", enabled: str = "disabled", load: str = "loaded") -> None:
        self.unit = {"LoadState": load, "ActiveState": active, "UnitFileState": enabled}
        if load in ("not-found", "masked"):
            self.unit["LoadError"] = 'org.freedesktop.systemd1.NoSuchUnit "Unit x.service not found."'
        self.ran: list[str] = []

    def run_command(self, argv: list[str], env: Any = None) -> Any:
        verb = argv[1]
        out = ""
        if verb == "show":
            out = "".join(f"{key}={value}\n" for key, value in self.unit.items())
        else:
            self.ran.append(verb)
            after = {
                "start": ("ActiveState", "active"),
                "restart": ("ActiveState", "active"),
                "stop": ("ActiveState", "inactive"),
                "enable": ("UnitFileState", "enabled"),
                "disable": ("UnitFileState", "disabled"),
                "mask": ("LoadState", "masked"),
                "unmask": ("UnitFileState", self.below_the_mask),
            }
            self.unit.update([after[verb]] if verb in after else [])
        return type("Done", (), {"returncode": 0, "stdout": out.encode(), "stderr": b""})


@pytest.mark.parametrize(
    ("unit", "args", "ran", "changed"),
    [
        (("inactive",), {"state": "started"}, ["start"], True),
        (("active",), {"state": "started"}, [], False),
        (("active",), {"state": "stopped"}, ["stop"], True),
        (("inactive",), {"state": "stopped"}, [], False),
        (("active",), {"state": "restarted"}, ["restart"], True),
        (("active",), {"state": "reloaded"}, ["reload"], True),
        (("inactive",), {"state": "reloaded"}, ["start"], True),
        (("active",), {"enabled": True, "daemon_reload": True}, ["daemon-reload", "enable"], True),
        (("active", "enabled"), {"enabled": True}, [], False),
        (("active", "static"), {"enabled": False}, [], False),
        (("active", "static"), {"enabled": True}, [], False),
        (("active", "indirect"), {"enabled": True}, ["enable"], True),
        (("active", "enabled-runtime"), {"enabled": True}, ["enable"], True),
        (("deactivating",), {"state": "stopped"}, ["stop"], True),
        (("activating",), {"state": "started"}, [], False),
        (("inactive",), {"state": "restarted"}, ["start"], True),
        (("active",), {"daemon_reexec": True}, ["daemon-reexec"], False),
        (("active", "masked"), {"masked": True}, [], False),
        (("active", "masked"), {"masked": False}, ["unmask"], True),
        (("active",), {"masked": True}, ["mask"], True),
        (("inactive", "", "not-found"), {"masked": True}, ["mask"], True),
        (("inactive", "", "not-found"), {"masked": False}, [], False),
        (("inactive", "masked", "masked"), {"masked": True}, [], False),
        (("inactive", "masked", "masked"), {"masked": False}, ["unmask"], True),
        (("inactive", "masked", "masked"), {"masked": False, "enabled": False}, ["unmask"], True),
        (("active", "masked-runtime", "masked"), {"masked": True}, ["mask"], True),
    ],
)
def test_systemd(
    unit: tuple[str, ...], args: dict[str, Any], ran: list[str], changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_RUNTIME", "/")
    context = Systemctl(*unit)
    result = systemd.run({"name": "x", **args}, context)
    assert (context.ran, result["changed"]) == (ran, changed)
    assert result["msg"]
    context = Systemctl(*unit)
    context.check = True
    assert systemd.run({"name": "x", **args}, context)["changed"] == changed
    assert context.ran == []


def test_a_unit_that_was_enabled_below_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_RUNTIME", "/")
    context = Systemctl("active", "masked", "masked")
    context.below_the_mask = "enabled"
    result = systemd.run({"name": "x", "masked": False, "enabled": False, "state": "stopped"}, context)
    assert (context.ran, result["enabled"], result["changed"]) == (["unmask", "disable", "stop"], False, True)


@pytest.mark.parametrize(
    ("said", "args", "ran"),
    [
        ("disabled", {"enabled": True}, ["enable"]),
        ("disabled", {"enabled": False}, []),
        ("enabled", {"enabled": True}, []),
        ("enabled", {"state": "started"}, "in an unknown state"),
        ("not-found", {"enabled": True}, "could not find the unit x@"),
    ],
)
def test_templates_of_units(
    said: str, args: dict[str, Any], ran: list[str] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Templates(Systemctl):
        def run_command(self, argv: list[str], env: Any = None) -> Any:
            done = super().run_command(argv, env)
            if argv[1] in ("show", "is-enabled"):
                done.returncode, done.stdout = 1, b"" if argv[1] == "show" else f"{said}\n".encode()
            self.ran = [verb for verb in self.ran if verb != "is-enabled"]
            return done

    monkeypatch.setattr(systemd, "_RUNTIME", "/")
    context = Templates()
    if isinstance(ran, str):
        with pytest.raises(OperationError, match=ran):
            systemd.run({"name": "x@", **args}, context)
    else:
        assert systemd.run({"name": "x@", **args}, context)["changed"] == bool(ran)
        assert context.ran == ran


def test_systemd_failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(systemd, "_RUNTIME", str(tmp_path / "none"))
    with pytest.raises(OperationError, match="not the service manager"):
        systemd.run({"name": "x", "state": "started"}, Systemctl())
    monkeypatch.setattr(systemd, "_RUNTIME", "/")
    with pytest.raises(OperationError, match="could not find the unit x"):
        systemd.run({"name": "x", "state": "started"}, Systemctl(load="not-found"))
    with pytest.raises(OperationError, match="could not find the unit x"):
        systemd.run({"name": "x", "state": "stopped"}, Systemctl(load="not-found"))
    with pytest.raises(OperationError, match="patterns"):
        systemd.run({"name": "x*", "state": "stopped"}, Systemctl())
    result = systemd.run({"daemon_reload": True}, Systemctl())
    assert result["changed"] is False
