"""Which file has the last word on a kernel setting: cases, and systemd-sysctl and sysctl(8) themselves.

The second part writes files into a mount namespace's own /etc/sysctl.d and runs the real programs in a network
namespace of its own, so that nothing outside changes.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from operations import _sysctl_order as order

ROOT = Path(__file__).resolve().parents[3]
SYSTEMD = "/usr/lib/systemd/systemd-sysctl"


def place(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text[3:])
        else:
            path.write_bytes(text.encode())
    return str(root)


OWN = "etc/sysctl.d/99-tcpfleet.conf"
CASES: list[tuple[str, dict[str, str], str | None, str | None]] = [
    # what the case shows; files; who sets a.b at boot; who under sysctl --system
    ("nobody", {OWN: "c.d = 1"}, None, None),
    ("one", {OWN: "a.b = 1"}, "OWN:1=1", "OWN:1=1"),
    ("the last line of a file", {OWN: "a.b=1\n\na.b = 2\n"}, "OWN:3=2", "OWN:3=2"),
    ("a later name", {OWN: "a.b=1", "etc/sysctl.d/99-zz.conf": "a.b=2"}, "99-zz.conf:1=2", "99-zz.conf:1=2"),
    ("by name, whatever the folder", {OWN: "a.b=1", "usr/lib/sysctl.d/zz.conf": "a.b=2"},
     "zz.conf:1=2", "zz.conf:1=2"),
    ("of equal names the first folder's", {"etc/sysctl.d/9.conf": "a.b=1", "usr/lib/sysctl.d/9.conf": "a.b=2"},
     "9.conf:1=1", "9.conf:1=1"),
    ("a masked file", {"etc/sysctl.d/9.conf": "-> /dev/null", "usr/lib/sysctl.d/9.conf": "a.b=2"}, None, None),
    ("only .conf", {OWN: "a.b=1", "etc/sysctl.d/zz.conf.bak": "a.b=2"}, "OWN:1=1", "OWN:1=1"),
    ("sysctl.conf without a link", {OWN: "a.b=1", "etc/sysctl.conf": "a.b=2"}, "OWN:1=1", "sysctl.conf:1=2"),
    ("sysctl.conf with Debian's link", {OWN: "a.b=1", "etc/sysctl.conf": "a.b=2",
     "etc/sysctl.d/99-sysctl.conf": "-> ../sysctl.conf"}, "OWN:1=1", "sysctl.conf:1=2"),
    ("no final newline, CRLF", {OWN: "# x\r\na.b = 1 2\r\n;\r\na/b=3"}, "OWN:4=3", "OWN:4=3"),
    ("bad lines are passed over", {OWN: "nonsense\n= 5\na.b = 1\n!!"}, "OWN:3=1", "OWN:3=1"),
    ("a leading dash", {OWN: "-a.b = 1"}, "OWN:1=1", "OWN:1=1"),
    ("a pattern sets what no line names", {OWN: "a.* = 1"}, "OWN:1=1", "OWN:1=1"),
    ("a pattern does not reach a named key", {"etc/sysctl.d/1.conf": "a.b=1", OWN: "a.*=2"},
     "1.conf:1=1", "1.conf:1=1"),
    ("a key taken out of patterns", {OWN: "a.*=2\n-a.b"}, None, None),
    ("a key taken away again", {OWN: "a.b=2\n-a.b"}, None, "OWN:1=2"),
    ("a star stays within its part", {OWN: "* = 2\na.b.* = 3"}, None, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "boot", "system"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_who_has_the_last_word(
    files: dict[str, str], boot: str | None, system: str | None, tmp_path: Path
) -> None:
    def told(said: dict[str, Any]) -> str | None:
        one = said.get("a.b")
        return one and f"{one['file'].rpartition('/')[2]}:{one['line']}={one['value']}".replace(
            "99-tcpfleet.conf", "OWN"
        )

    root = place(tmp_path, files)
    assert told(order.at_boot(["a.b", "x.y"], root)) == boot
    assert told(order.by_system(["a.b", "x.y"], root)) == system


def test_names_of_interfaces_with_a_dot(tmp_path: Path) -> None:
    root = place(tmp_path, {OWN: "net.ipv4.conf.eth0/1.forwarding = 1\nnet/ipv4/conf/eth0.2/forwarding = 2"})
    said = order.at_boot(["net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/2.forwarding"], root)
    assert [one["value"] for one in said.values()] == ["1", "2"]


# ---- the programs themselves

KEYS = {
    "net.ipv4.tcp_fin_timeout": range(10, 60),
    "net.ipv4.tcp_keepalive_intvl": range(10, 60),
    "net.ipv4.tcp_keepalive_probes": range(1, 20),
    "net.core.somaxconn": range(100, 900),
}
NAMES = ("10-a.conf", "50-b.conf", "99-sysctl.conf", "99-tcpfleet.conf", "99-zz.conf", "z.conf", "off.conf.bak")
PROGRAM = """
import json, os, subprocess, sys
given = json.load(sys.stdin)
for folder in ("/etc/sysctl.d", "/usr/lib/sysctl.d", "/run"):
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
subprocess.run(["mount", "--bind", given["sysctl.conf"], "/etc/sysctl.conf"], check=True)
answers = []
for files in given["cases"]:
    for folder in ("/etc/sysctl.d", "/usr/lib/sysctl.d"):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
    os.makedirs("/run/sysctl.d", exist_ok=True)
    for name in os.listdir("/run/sysctl.d"):
        os.unlink(os.path.join("/run/sysctl.d", name))
    for path, text in files.items():
        if text.startswith("-> "):
            os.symlink(text[3:], path)
        else:
            with open(path, "w") as target:
                target.write(text)
    got = []
    for command in given["commands"]:
        for key in given["keys"]:
            with open("/proc/sys/" + key.replace(".", "/"), "w") as target:
                target.write("7\\n")
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        got.append({})
        for key in given["keys"]:
            with open("/proc/sys/" + key.replace(".", "/")) as source:
                got[-1][key] = source.read().strip()
    answers.append(got)
json.dump(answers, sys.stdout)
"""


def made_up(rng: random.Random) -> dict[str, str]:
    files = {}
    for _ in range(rng.randrange(1, 7)):
        folder = rng.choice(["/etc/sysctl.d", "/run/sysctl.d", "/usr/lib/sysctl.d"])
        lines = []
        for _ in range(rng.randrange(1, 5)):
            key = rng.choice(list(KEYS))
            shape = rng.randrange(12)
            if shape == 0:
                lines.append(f"-{key}")
            elif shape == 1:
                lines.append(f"{key.rpartition('.')[0]}.{key.rpartition('.')[2][:8]}* = {rng.choice(KEYS[key])}")
            elif shape == 2:
                lines.append(rng.choice(["nonsense", "# net.core.somaxconn = 5", "; x", "", "= 3"]))
            else:
                shown = key.replace(".", "/") if rng.random() < 0.3 else key
                lines.append(
                    f"{rng.choice(['', '-', ' '])}{shown}{rng.choice(['=', ' = '])}{rng.choice(KEYS[key])}"
                )
        text = rng.choice(["\n", "\r\n"]).join(lines) + rng.choice(["", "\n"])
        files[f"{folder}/{rng.choice(NAMES)}"] = "-> /dev/null" if rng.random() < 0.05 else text
    return files


def may_unshare() -> bool:
    command = ["unshare", "-n", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(
    not Path(SYSTEMD).exists() or not shutil.which("sysctl") or not Path("/etc/sysctl.conf").exists(),
    reason="needs systemd-sysctl, sysctl and /etc/sysctl.conf",
)
@pytest.mark.skipif(not may_unshare(), reason="needs unshare(1) and the right to make namespaces")
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.full)])
def test_the_real_programs_agree(count: int, tmp_path: Path) -> None:
    rng = random.Random(count)
    cases = [made_up(rng) for _ in range(count)]
    last = tmp_path / "sysctl.conf"
    last.write_text("net.core.somaxconn = 321\n")
    given = {
        "cases": cases,
        "keys": list(KEYS),
        "commands": [[SYSTEMD], ["sysctl", "--system"]],
        "sysctl.conf": str(last),
    }
    done = subprocess.run(
        ["unshare", "-n", "-m", sys.executable, "-c", PROGRAM],
        input=json.dumps(given), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number, (files, answers) in enumerate(zip(cases, json.loads(done.stdout), strict=True)):
        root = tmp_path / str(number)
        place(root, {name.lstrip("/"): text for name, text in files.items()})
        place(root, {"etc/sysctl.conf": last.read_text()})
        for which, resolve in enumerate((order.at_boot, order.by_system)):
            said = resolve(list(KEYS), str(root))
            ours = {key: said[key]["value"] if key in said else "7" for key in KEYS}
            assert ours == answers[which], (resolve.__name__, files)
