"""What a test run must not leave behind: processes of ours, mounts, network interfaces, cgroups, descriptors."""

import os
import time
from pathlib import Path

# Parts of command lines that only tcpfleet's own processes have.
OURS = ("echo_server.py", "stress_client.py", "observe_sampler.py", "systemd-nspawn", "-I -S -c import zlib")
# Of these, what a lab itself consists of: tests without a lab may run beside it.
LAB = ("systemd-nspawn",)


def processes(parts: tuple[str, ...]) -> set[str]:
    """`pid: command line` of every live process with one of these parts in its command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if any(part in command for part in parts):
                found.add(f"{entry.name}: {command[:120]}")
    return found


def mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def interfaces() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def cgroups() -> set[str]:
    # Not Path.glob: a host that is just ending takes folders away under it.
    return {
        os.path.join(where, name)
        for where, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith("tcpfleet-")
    }


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def snapshot(parts: tuple[str, ...] = OURS) -> dict[str, set[str]]:
    return {"processes": processes(parts), "mounts": mounts(), "interfaces": interfaces(), "cgroups": cgroups()}


def left_since(
    before: dict[str, set[str]], parts: tuple[str, ...] = OURS, patience: float = 5.0
) -> dict[str, set[str]]:
    """What is there now and was not before; waits a little for processes that are just ending."""
    deadline = time.monotonic() + patience
    while True:
        left = {kind: now - before[kind] for kind, now in snapshot(parts).items()}
        if any("systemd-nspawn" in process for process in before["processes"]):
            # A lab that was up before is not ours to end; a test may have booted a host of it anew.
            left["processes"] = {one for one in left["processes"] if "systemd-nspawn" not in one}
        left = {kind: what for kind, what in left.items() if what}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)
