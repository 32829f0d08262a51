"""The lab: every host of the inventory group `lab`, booted on this machine as a real systemd host.

In: the hosts (name and address) of group `lab`. Out: systemd-nspawn machines on a host-only bridge, each
an overlay of this machine's own root file system with its own network namespace, systemd as PID 1, sshd
and PAM, answering SSH with a pinned host key. `down` removes every trace.

One lab per machine. What exists is always read from the machine itself (processes by their root
directory, mounts below STATE, the bridge), never from a record that an interrupted run may have left
wrong; `OWNER` only says which checkout it belongs to and which addresses it has.

Layers of a lab host, lowest first: `/` of this machine; `base`, prepared once (empty homes, no checkout,
users, sshd settings, only the units a host needs); the host's own upper layer, which is its disk: it outlives
the host's power-off and goes with the lab. All but `/` live on one tmpfs, so that unmounting it deletes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcpfleet.errors import BadInput, HostFailed, Refused
from tcpfleet.signals import uninterruptible

STATE = Path("/run/tcpfleet-lab")
OWNER = STATE / "owner.json"
BRIDGE = "tcpfleet0"
NETWORK = ipaddress.ip_network("10.77.0.0/24")
GATEWAY = next(NETWORK.hosts())  # 10.77.0.1: this machine's end of the bridge
GROUP = "lab"
BOOT_TIMEOUT = 120.0  # seconds until every host must be `running`; measured 4 s for one, 12 s for five
STOP_TIMEOUT = 10.0  # seconds an orderly halt may take before the machine is killed; measured 2 s

# Emptied in every host: the controller's dotfiles slow each login (0.2 s measured), its secrets do not
# belong there, and its enabled units are not the host's business.
EMPTY_DIRS = (
    ("root", 0o700),
    ("home", 0o755),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
    ("srv", 0o755),
    ("opt", 0o755),
    ("run", 0o755),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/cache/tcpfleet", 0o700),
    ("var/lib/tcpfleet", 0o700),
    ("etc/systemd/system", 0o755),
    ("etc/systemd/network", 0o755),
    ("etc/ssh/sshd_config.d", 0o755),
)
# The directories of the Filesystem Hierarchy Standard; others at the top (data, checkouts) are emptied.
TOP_DIRS = {
    *("bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32"),
    *("opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"),
}
UNITS = ("ssh.service", "systemd-networkd.service")
# Left by `inv tune` on this very machine, they would make a lab host look tuned before it is.
TUNED_FILES = ("etc/sysctl.d/99-tcpfleet.conf", "etc/security/limits.d/99-tcpfleet.conf")

SSHD_CONFIG = """\
# A lab host: key logins for root, any login for the others, and room for many sessions at once.
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
UsePAM yes
UseDNS no
MaxStartups 200:30:400
MaxSessions 200
PrintMotd no
AcceptEnv LANG LC_*
Subsystem sftp /usr/lib/openssh/sftp-server
"""

NETWORK_UNIT = """\
[Match]
Name=host0
[Network]
Address={address}/{prefix}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


@dataclass(frozen=True)
class LabHost:
    """One machine of the lab.

    :param name: inventory name; becomes the hostname.
    :param address: its address on the bridge.
    """

    name: str
    address: str

    @property
    def directory(self) -> Path:
        return STATE / "hosts" / self.name

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def console(self) -> Path:
        """What it prints while booting; made when its disk is ready, before it boots for the first time."""
        return self.directory / "console.log"

    @property
    def machine(self) -> str:
        return f"tcpfleet-{self.name}"


@dataclass(frozen=True)
class HostStatus:
    """What one lab host is doing: `state` is systemd's word (running, starting, degraded ...) or `down`."""

    name: str
    address: str
    state: str
    pid: int | None
    detail: str = ""


@dataclass(frozen=True)
class LabStatus:
    """The lab of this machine: the checkout it belongs to (None: no lab is up) and its hosts."""

    owner: Path | None
    hosts: tuple[HostStatus, ...]


def lab_hosts(addresses: Sequence[tuple[str, str | None]]) -> list[LabHost]:
    """Check the hosts of group `lab` before anything is booted.

    :param addresses: (inventory name, its ansible_host) pairs.
    :raises BadInput: for an empty group, an address outside 10.77.0.0/24 or one given twice.
    """
    if not addresses:
        raise BadInput(f"the inventory has no hosts in group `{GROUP}`: nothing to boot")
    seen: dict[str, str] = {str(GATEWAY): "this machine's end of the bridge"}
    hosts = []
    for name, address in addresses:
        try:
            inside = ipaddress.ip_address(address or "") in NETWORK
        except ValueError:
            inside = False
        if not inside or address is None:
            raise BadInput(
                f"lab host {name}: ansible_host is {address!r}, but a lab host needs an address in {NETWORK}"
            )
        if address in seen:
            raise BadInput(f"lab host {name}: address {address} already belongs to {seen[address]}")
        if not name.replace("-", "").isalnum() or len(name) > 32:
            raise BadInput(
                f"lab host {name!r}: a lab host's name is its hostname (letters, digits, dashes; at most 32)"
            )
        seen[address] = name
        hosts.append(LabHost(name, address))
    return hosts


def is_down_for(address: str) -> bool:
    """Whether `address` is one of the lab's while this machine has no lab."""
    try:
        return ipaddress.ip_address(address) in NETWORK and not Path(f"/sys/class/net/{BRIDGE}").exists()
    except ValueError:
        return False


def is_off(name: str, address: str) -> bool:
    """Whether that is a host of this machine's lab which does not run while the lab is up."""
    try:
        is_known = _owner() is not None and LabHost(name, address) in _owner_hosts()
    except (Refused, OSError, ValueError, KeyError):  # not ours to look at
        return False
    return is_known and name not in _machines()


def why_not() -> str | None:
    """One sentence on why this machine cannot boot a lab, or None when it can."""
    if os.geteuid() != 0:
        return "the lab needs root (mounts, network namespaces): run it as root or use inventory/local.yml"
    missing = [
        package
        for program, package in (
            ("systemd-nspawn", "systemd-container"),
            ("/usr/sbin/sshd", "openssh-server"),
            ("ssh", "openssh-client"),
            ("ip", "iproute2"),
            ("sudo", "sudo"),
        )
        if shutil.which(program) is None
    ]
    if missing:
        return f"the lab needs these packages: apt-get install {' '.join(missing)}"
    return None


def up(hosts: Sequence[LabHost], checkout: Path, say: Callable[[str], None]) -> LabStatus:
    """Boot the lab and wait until every host is `running` and answers SSH; a running host is left alone.

    A host of this lab that was powered off or died boots again with the disk that it had. Hosts that are up but
    not in `hosts` are taken down: the lab is exactly the inventory's group. An interrupt takes down what this
    call had begun to boot; what had a disk before keeps it.

    :param checkout: root of the checkout that owns the lab; `.lab/` below it gets keys and known_hosts.
    :param say: takes one line of progress.
    :raises Refused: this machine cannot boot a lab, or another checkout's lab is running.
    :raises HostFailed: a host did not come up in BOOT_TIMEOUT seconds, with its console's last lines, or a
        fresh one is degraded.
    """
    reason = why_not()
    if reason:
        raise Refused(reason)
    with _only_one():
        owner = _owner()
        if owner is not None and owner != checkout:
            raise Refused(
                f"a lab is already running on this machine: it belongs to {owner}. "
                "Use it from there, or take it down with `inv lab-down --any`"
            )
        if owner is None:
            _remove_everything(say)  # whatever an interrupted run may have left
        else:
            running = _machines()
            for name in set(running) - {host.name for host in hosts}:
                say(f"{name}: no longer in group {GROUP}, taking it down")
                _halt({name: running[name]})
                _discard(LabHost(name, ""))
        fresh = owner is None
        # One whose address has changed is another host: it begins anew.
        known = _owner_hosts() if owner else []
        had_disk = {host for host in known if host.console.exists() and host.root.is_mount()}
        begun: list[LabHost] = []
        try:
            if fresh:
                _prepare(checkout)
            _save_owner(checkout, hosts)
            _write_access(hosts, checkout)
            alive = _machines()
            for host in hosts:
                if host.name not in alive:
                    again = ", with the disk that it had" if host in had_disk else ""
                    say(f"{host.name}: booting at {host.address}{again}")
                    begun.append(host)
                    _end_leftovers(host)
                    if host not in had_disk:
                        _make_disk(host, checkout)
                    _boot(host)
            _wait(hosts, checkout, say, may_be_degraded=had_disk)
            return status(timeout=30.0)  # they have just answered: on a busy machine they will again
        except BaseException:
            with uninterruptible():
                if fresh:
                    _remove_everything(lambda line: None)
                    shutil.rmtree(checkout / ".lab", ignore_errors=True)
                else:
                    alive = _machines()
                    _halt({host.name: alive[host.name] for host in begun if host.name in alive})
                    for host in begun:
                        if host in had_disk:
                            _end_leftovers(host)
                        else:
                            _discard(host)
            raise


def down(checkout: Path, say: Callable[[str], None], *, anyones: bool = False) -> bool:
    """Take the lab down and leave nothing: no process, mount, bridge, cgroup or file.

    :param anyones: also take down a lab that belongs to another checkout.
    :returns: True when there was something to take down.
    :raises Refused: the lab belongs to another checkout and `anyones` is False.
    """
    if os.geteuid() != 0:
        raise Refused("only root can take a lab down")
    with _only_one(), uninterruptible():
        owner = _owner()
        if owner is not None and owner != checkout and not anyones:
            raise Refused(
                f"the lab on this machine belongs to {owner}; `inv lab-down --any` takes it down all the same"
            )
        was_up = _remove_everything(say)
        for place in {owner or checkout, checkout}:
            shutil.rmtree(place / ".lab", ignore_errors=True)
        return was_up


def status(timeout: float = 5.0) -> LabStatus:
    """What is running now, asked of the hosts themselves over SSH.

    :param timeout: seconds that each may take to answer; one that does not is `booting`.
    """
    owner = _owner()
    if owner is None:
        return LabStatus(None, ())
    hosts, machines = _owner_hosts(), _machines()
    states = _ask_states(hosts, owner, timeout)
    return LabStatus(
        owner,
        tuple(
            HostStatus(
                host.name,
                host.address,
                states[host.name][0] if host.name in machines else "down",
                machines.get(host.name),
                states[host.name][1] if host.name in machines else "",
            )
            for host in hosts
        ),
    )


# ---------------------------------------------------------------- what is on this machine


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Hold the right to change the lab; the name vanishes with the process, so nothing can be left locked."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind("\0tcpfleet-lab")
    except OSError:
        lock.close()
        raise Refused("another lab-up or lab-down is at work on this machine: wait for it to finish") from None
    try:
        yield
    finally:
        lock.close()


def _owner() -> Path | None:
    try:
        return Path(json.loads(OWNER.read_text())["checkout"])
    except PermissionError:
        raise Refused(f"a lab is up on this machine, and only root can look at it ({OWNER})") from None
    except (OSError, ValueError, KeyError):
        return None


def _owner_hosts() -> list[LabHost]:
    """The hosts of the lab that is up; none when a lab-down takes the file away meanwhile."""
    try:
        text = OWNER.read_text()
    except FileNotFoundError:
        return []
    return [LabHost(name, address) for name, address in json.loads(text)["hosts"]]


def _save_owner(checkout: Path, hosts: Sequence[LabHost]) -> None:
    draft = OWNER.with_suffix(".new")
    draft.write_text(
        json.dumps({"checkout": str(checkout), "hosts": [[host.name, host.address] for host in hosts]})
    )
    draft.replace(OWNER)


def _machines() -> dict[str, int]:
    """Host name -> pid of its systemd-nspawn, found by the root directory on its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if not argv[0].endswith(b"systemd-nspawn"):
            continue
        for argument in argv:
            if argument.startswith(f"--directory={STATE}/hosts/".encode()):
                found[Path(argument.decode().partition("=")[2]).parent.name] = int(entry.name)
    return found


def _inits() -> dict[str, list[int]]:
    """Host name -> pids of PID 1s that run on its layers; they outlive a systemd-nspawn that was killed."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "status").read_text()
            inside = status.partition("NSpid:")[2].split("\n")[0].split()
            if len(inside) < 2 or inside[-1] != "1":
                continue
            mounts = [line.split() for line in (entry / "mountinfo").read_text().splitlines()]
        except OSError:
            continue
        for mount in mounts:
            _, marked, rest = mount[-1].partition(f"upperdir={STATE}/hosts/")
            if mount[4] == "/" and marked:
                found.setdefault(rest.split("/")[0], []).append(int(entry.name))
    return found


def _mounts_below(top: Path) -> list[str]:
    """Mount points at or below `top`, deepest first (later mounts first, so stacked ones come off too)."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [point for point in points if point == str(top) or point.startswith(f"{top}/")]
    return below[::-1]


def _cgroup_roots() -> list[Path]:
    """Hierarchies in which systemd keeps its tree: one on cgroup v2, two on v1 with the hybrid layout."""
    top = Path("/sys/fs/cgroup")
    return [top] if (top / "cgroup.controllers").exists() else [top / "systemd", top / "unified"]


def _systemd_here() -> bool:
    return Path("/run/systemd/system").is_dir()


# ---------------------------------------------------------------- building


def _run(*argv: str, stdin: str | None = None) -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise HostFailed(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


_libc = ctypes.CDLL(None, use_errno=True)


def _empty(directory: Path, mode: int) -> None:
    """Make a directory of an upper layer that hides what the layers below have there."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(mode)
    os.setxattr(directory, "trusted.overlay.opaque", b"y")


def _mount_overlay(lower: str, layer: Path, target: Path) -> None:
    for part in (layer / "upper", layer / "work", target):
        part.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={lower},upperdir={layer / 'upper'},workdir={layer / 'work'}"
    _run("mount", "-t", "overlay", "-o", options, "tcpfleet-lab", str(target))


def _prepare(checkout: Path) -> None:
    """The bridge, the tmpfs and the layer that all hosts share."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", "size=50%,mode=0700,nr_inodes=0", "tcpfleet-lab", str(STATE))
    _run("ip", "link", "add", BRIDGE, "type", "bridge")
    _run("ip", "address", "add", f"{GATEWAY}/{NETWORK.prefixlen}", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")

    access = checkout / ".lab"
    shutil.rmtree(access, ignore_errors=True)
    access.mkdir(mode=0o700)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tcpfleet-lab", "-f", str(access / "id_ed25519"))
    password = access / "ops_password"
    password.touch(0o600)
    password.write_text(secrets.token_urlsafe(12) + "\n")

    base, upper = STATE / "base", STATE / "base" / "upper"
    for name, mode in EMPTY_DIRS:
        _empty(upper / name, mode)
    for entry in Path("/").iterdir():
        # Whatever else this machine keeps at its top is not part of a Debian host.
        if entry.is_dir() and not entry.is_symlink() and entry.name not in TOP_DIRS:
            _empty(upper / entry.name, 0o755)
    _hide_checkout(checkout, upper)
    root = base / "root"
    _mount_overlay("/", base, root)
    try:
        for name in TUNED_FILES:
            (root / name).unlink(missing_ok=True)
        for key in (root / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        (root / "etc/ssh/sshd_config").write_text(SSHD_CONFIG)
        (root / "etc/environment").write_text("")  # proxies and tokens of the controller
        shadow = root / "etc/shadow"
        locked = [line.split(":") for line in shadow.read_text().splitlines()]
        shadow.write_text("".join(":".join([user, "*", *rest]) + "\n" for user, _, *rest in locked))
        wants = root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir()
        for unit in UNITS:
            (wants / unit).symlink_to(f"/lib/systemd/system/{unit}")
        skeleton = [entry for entry in (root / "etc/skel").iterdir() if entry.is_file()]
        for entry in skeleton:
            shutil.copy(entry, root / "root" / entry.name)
        public = (access / "id_ed25519.pub").read_text()
        for user in ("ops", "deploy"):
            _run("useradd", "--root", str(root), "--create-home", "--shell", "/bin/bash", user)
        _run("chpasswd", "--root", str(root), stdin=f"ops:{password.read_text()}")
        sudoers = root / "etc/sudoers.d/tcpfleet-lab"
        sudoers.write_text("ops ALL=(ALL:ALL) ALL\ndeploy ALL=(ALL:ALL) NOPASSWD: ALL\n")
        sudoers.chmod(0o440)
        for home in ("root", "home/ops", "home/deploy"):
            ssh = root / home / ".ssh"
            ssh.mkdir(mode=0o700)
            (ssh / "authorized_keys").write_text(public)
            owner = (root / home).stat()
            for path in (ssh, ssh / "authorized_keys"):
                os.chown(path, owner.st_uid, owner.st_gid)
    finally:
        _run("umount", str(root))


def _hide_checkout(checkout: Path, upper: Path) -> None:
    """A host that could see the checkout would let a forgotten upload pass unnoticed."""
    shadow = upper
    for part in checkout.parts[1:]:
        shadow = shadow / part
        if not shadow.exists():
            shadow.mkdir()
            shadow.chmod((Path("/") / shadow.relative_to(upper)).stat().st_mode & 0o7777)
    os.setxattr(shadow, "trusted.overlay.opaque", b"y")


def _write_access(hosts: Sequence[LabHost], checkout: Path) -> None:
    """Host keys made once per host, and the known_hosts that pins them."""
    keys = checkout / ".lab" / "host_keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    lines = []
    for host in hosts:
        key = keys / host.name
        if not key.exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{host.name}", "-f", str(key))
        kind, value = key.with_suffix(".pub").read_text().split()[:2]
        lines.append(f"{host.name},{host.address} {kind} {value}\n")
    (checkout / ".lab" / "known_hosts").write_text("".join(lines))


def _make_disk(host: LabHost, checkout: Path) -> None:
    """A fresh upper layer with what makes it this host, mounted."""
    _discard(host)
    _mount_overlay(f"{STATE / 'base' / 'upper'}:/", host.directory, host.root)
    etc = host.root / "etc"
    (etc / "machine-id").unlink(missing_ok=True)
    (etc / "machine-id").write_text(secrets.token_hex(16) + "\n")
    (etc / "hostname").write_text(host.name + "\n")
    names = "".join(f"{other.address} {other.name}\n" for other in _owner_hosts())
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")
    (etc / "systemd/network/10-lab.network").write_text(
        NETWORK_UNIT.format(address=host.address, prefix=NETWORK.prefixlen)
    )
    key = etc / "ssh/ssh_host_ed25519_key"
    shutil.copy(checkout / ".lab/host_keys" / host.name, key)
    key.chmod(0o600)
    shutil.copy(checkout / ".lab/host_keys" / f"{host.name}.pub", key.with_suffix(".pub"))
    host.console.touch()


def _boot(host: LabHost) -> None:
    command = [
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        f"--directory={host.root}",
        f"--machine={host.machine}",
        f"--hostname={host.name}",
        f"--network-bridge={BRIDGE}",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=pipe",
        "--boot",
    ]
    groups: list[Path] = []
    if not _systemd_here():
        # With no systemd to ask for a scope, each machine gets a cgroup of its own, else five PID 1s
        # would share one tree and end each other's services.
        command.insert(1, "--keep-unit")
        groups = [root / host.machine for root in _cgroup_roots() if root.is_dir()]
        for group in groups:
            group.mkdir(exist_ok=True)

    def enter_cgroup() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text("0")

    with host.console.open("wb") as console:
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
            preexec_fn=enter_cgroup,  # no thread is running yet
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )


def ssh_command(host: LabHost, checkout: Path) -> list[str]:
    """argv of OpenSSH for one lab host, with the lab's key and pinned host keys only."""
    access = checkout / ".lab"
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "3",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(access / "known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    return ["ssh", "-F", "/dev/null", "-i", str(access / "id_ed25519"), *flags, f"root@{host.address}"]


def _ask_states(hosts: Sequence[LabHost], checkout: Path, timeout: float) -> dict[str, tuple[str, str]]:
    """Host name -> (systemd's state, detail), asked of all hosts at once; `booting` when SSH gives no answer."""
    script = "systemctl is-system-running; systemctl --failed --plain --no-legend | cut -d' ' -f1"
    asked = {
        host.name: subprocess.Popen(
            [*ssh_command(host, checkout), script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in hosts
    }
    answers = {}
    for name, process in asked.items():
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        lines = out.split()
        answers[name] = (lines[0], " ".join(lines[1:])) if lines else ("booting", err.strip())
    return answers


def _wait(
    hosts: Sequence[LabHost], checkout: Path, say: Callable[[str], None], *, may_be_degraded: Container[LabHost]
) -> None:
    """Wait for all hosts; one with a disk from before may have units on it that fail, which is only told."""
    deadline = time.monotonic() + BOOT_TIMEOUT
    waiting = list(hosts)
    while waiting:
        alive = _machines()
        states = _ask_states([host for host in waiting if _answers(host)], checkout, timeout=10.0)
        for host in list(waiting):
            state, detail = states.get(host.name, ("booting", "no answer on port 22"))
            if state == "running":
                say(f"{host.name}: running, answers SSH at {host.address}")
                waiting.remove(host)
            elif state == "degraded" and host in may_be_degraded:
                say(f"{host.name}: degraded, failed units: {detail}; answers SSH at {host.address}")
                waiting.remove(host)
            elif state == "degraded":
                raise HostFailed(f"lab host {host.name} is degraded: failed units: {detail}")
            elif host.name not in alive:
                raise HostFailed(f"lab host {host.name} ended while booting; its console says:\n{_console(host)}")
            elif time.monotonic() > deadline:
                raise HostFailed(
                    f"lab host {host.name} is still {state} after {BOOT_TIMEOUT:.0f} s ({detail}); "
                    f"its console says:\n{_console(host)}"
                )
        time.sleep(0.2 if waiting else 0)


def _answers(host: LabHost) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.3)
        return probe.connect_ex((host.address, 22)) == 0


def _console(host: LabHost) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(host.console.read_text(errors="replace").splitlines()[-15:])
    return "(nothing)"


# ---------------------------------------------------------------- taking down


def _halt(machines: dict[str, int]) -> None:
    """End machines: an orderly halt first, then by force; returns when their processes are gone."""
    inits = {pid: _children(pid) for pid in machines.values()}
    for pid in machines.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if not _gone(inits, time.monotonic() + STOP_TIMEOUT):
        for pid, children in inits.items():
            for victim in (*children, pid):  # the init of a PID namespace takes all of it along
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        if not _gone(inits, time.monotonic() + STOP_TIMEOUT):
            raise HostFailed(f"lab machines {sorted(machines)} do not end: look at pids {sorted(inits)}")


def _gone(inits: dict[int, list[int]], deadline: float) -> bool:
    pids = [pid for parent, children in inits.items() for pid in (parent, *children)]
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _wait_until_collected(pids: Iterable[int], patience: float = 3.0) -> None:
    """Give this machine's PID 1 time to collect what ended: nothing of the lab should be seen in `ps` any more."""
    deadline = time.monotonic() + patience
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # our own child when lab-up is interrupted: collect it
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _end_orphans(names: set[str]) -> None:
    """Kill what a killed systemd-nspawn left running; the init of a PID namespace takes all of it along."""
    orphans: dict[int, list[int]] = {pid: [] for name, pids in _inits().items() if name in names for pid in pids}
    for pid in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not _gone(orphans, time.monotonic() + STOP_TIMEOUT):
        raise HostFailed(f"processes of lab hosts do not end: look at pids {sorted(orphans)}")


def _end_leftovers(host: LabHost) -> None:
    """End what a machine that is down has left, but for its disk: processes, its link, its cgroups."""
    _end_orphans({host.name})
    # The network namespace of a machine that died hard lives on while it has data to send, and its link with it.
    link = f"vb-{host.machine}"
    if Path("/sys/class/net", link).exists():
        _run("ip", "link", "delete", link)
    _remove_cgroups(host.machine)


def _discard(host: LabHost) -> None:
    """End what still runs on one host's layers, unmount and delete them, and remove its cgroups."""
    _end_leftovers(host)
    _unmount(host.directory)
    shutil.rmtree(host.directory, ignore_errors=True)


def _unmount(top: Path) -> None:
    for point in _mounts_below(top):
        for _ in range(20):  # a process that is just ending may still hold it
            if _libc.umount2(os.fsencode(point), 0) == 0:
                break
            time.sleep(0.05)
        else:
            raise HostFailed(f"cannot unmount {point}: {os.strerror(ctypes.get_errno())}; is something using it?")


def _remove_cgroups(name: str) -> None:
    for root in _cgroup_roots():
        top = root / name
        if top.is_dir():
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)


def _remove_everything(say: Callable[[str], None]) -> bool:
    """Remove all of the lab, whatever state it is in; True when there was anything."""
    machines = _machines()
    names = set(machines) | (
        {entry.name for entry in (STATE / "hosts").iterdir()} if (STATE / "hosts").is_dir() else set()
    )
    if machines:
        say(f"stopping {', '.join(sorted(machines))}")
        _halt(machines)
    names |= set(_inits())
    _end_orphans(names)
    _wait_until_collected(machines.values())
    found = bool(machines) or STATE.exists()
    _unmount(STATE)
    shutil.rmtree(STATE, ignore_errors=True)
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        _run("ip", "link", "delete", BRIDGE)
        found = True
    for root in _cgroup_roots():
        if root.is_dir():
            names |= {entry.name.removeprefix("tcpfleet-") for entry in root.glob("tcpfleet-*")}
    for name in names:
        _remove_cgroups(f"tcpfleet-{name}")
        propagate = Path(f"/run/systemd/nspawn/propagate/tcpfleet-{name}")
        if propagate.is_dir():
            propagate.rmdir()
    if not _systemd_here():
        for leftover in (
            "propagate",
            "locks",
            "",
        ):  # made by systemd-nspawn here; kept while anyone else uses them
            with contextlib.suppress(OSError):
                (Path("/run/systemd/nspawn") / leftover).rmdir()
    return found
