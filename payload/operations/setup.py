"""``setup``: facts about the host, under the names that Ansible's ``setup`` uses. Changes nothing.

Everything is read from /proc, /sys, /etc and the standard library; no program is run. What cannot be read is
left out, so that a playbook's ``default`` or ``is defined`` decides, never an invented value.

``tcpfleet`` holds what tuning and reports need and Ansible does not gather.
"""

import fnmatch
import os
import platform
import pwd
import re
import resource
import socket
import struct
import sys
import time

from operations import OperationError, _hardware, _host

_PROC_IPV4 = "/proc/net/route"
# What each subset of gather_subset holds; names follow Ansible's.
_SUBSETS = ("min", "hardware", "network", "virtual", "tcpfleet")
# Ansible's finer subsets -> the one of ours that has their facts.
_FINER = {
    "hardware": ("mounts", "processor", "processor_cores", "processor_count"),
    "network": (
        "all_ipv4_addresses", "all_ipv6_addresses", "default_ipv4", "default_ipv6", "interfaces",
    ),
    "virtual": ("virtualization_role", "virtualization_type"),
    "min": (
        "apparmor", "architecture", "chroot", "cmdline", "date_time", "distribution",
        "distribution_major_version", "distribution_release", "distribution_version", "dns", "effective_user_id",
        "env", "fips", "is_chroot", "kernel", "kernel_version", "loadavg", "lsb", "machine", "machine_id",
        "os_family", "pkg_mgr", "platform", "python", "python_version", "real_user_id", "selinux", "service_mgr",
        "ssh_pub_keys", "system", "user", "user_dir", "user_gecos", "user_gid", "user_id", "user_shell",
        "user_uid",
    ),
}  # fmt: skip
_OURS = {finer: subset for subset, names in _FINER.items() for finer in names}
# Subsets of Ansible that are not gathered here; to leave them out is no mistake.
_OTHERS = (
    "caps", "devices", "facter", "fibre_channel_wwn", "iscsi", "local", "nvme", "ohai", "systemd",
)  # fmt: skip


def run(args, context):
    """Gathers facts.

    :param args: ``gather_subset``: list of all, min, hardware, network, virtual, tcpfleet, each may be negated
        with ``!`` (``!all`` leaves ``min``, ``!min`` too leaves nothing); ``filter``: list of globs over names.
    :returns: ``ansible_facts``: fact name, without the prefix ``ansible_``, -> value. Sizes ``*_mb`` in MiB.
    """
    facts = {}
    subsets = chosen(args.get("gather_subset") or ["all"])
    for subset in subsets:
        facts.update(_GATHER[subset]())
    globs = [name[len("ansible_") :] if name.startswith("ansible_") else name for name in args.get("filter") or []]
    for subset, names, gather in _WHEN_ASKED:
        if subset in subsets and (not globs or any(fnmatch.filter(names, glob) for glob in globs)):
            facts.update(gather())
    if globs:
        facts = {name: facts[name] for name in facts if any(fnmatch.fnmatch(name, glob) for glob in globs)}
    facts["gather_subset"] = list(args.get("gather_subset") or ["all"])
    facts["module_setup"] = True
    return {"changed": False, "ansible_facts": facts, "msg": "gathered %d facts" % len(facts)}


def chosen(wanted):
    """Subset names that a ``gather_subset`` list means, in a fixed order.

    :raises OperationError: for a word that is no subset.

    >>> chosen(["!all", "network"])
    ['min', 'network']
    """
    words = [word.strip() for word in wanted]
    for word in words:
        bare = word.lstrip("!")
        if bare not in ("all", *_SUBSETS, *_OURS) and not (word.startswith("!") and bare in _OTHERS):
            raise OperationError("gather_subset has no '%s'; there are: all, %s" % (bare, ", ".join(_SUBSETS)))
    positive = [_OURS.get(word, word) for word in words if not word.startswith("!")]
    # To leave out a part of a subset would leave out too much, so only whole ones go.
    negative = [word[1:] for word in words if word.startswith("!")]
    picked = set(_SUBSETS) if "all" in positive or not positive else set(positive) | {"min"}
    if "all" in negative:
        picked = {word for word in positive if word != "all"} | {"min"}
    picked -= set(negative)
    return [name for name in _SUBSETS if name in picked]


def _read(path):
    try:
        with open(path) as handle:
            return handle.read()
    except (OSError, UnicodeDecodeError):
        return None


def _minimum():
    name = os.uname()
    node = socket.gethostname()
    facts = {
        "hostname": node.split(".")[0],
        "nodename": name.nodename,
        "fqdn": node,
        "domain": node.partition(".")[2],
        "userspace_bits": str(struct.calcsize("P") * 8),
        "effective_user_id": os.geteuid(),
        "effective_group_id": os.getegid(),
        "real_user_id": os.getuid(),
        "real_group_id": os.getgid(),
        "kernel": name.release,
        "kernel_version": name.version,
        "system": name.sysname,
        "architecture": name.machine,
        "machine": name.machine,
        "python": {
            "version": {
                "major": sys.version_info[0],
                "minor": sys.version_info[1],
                "micro": sys.version_info[2],
                "releaselevel": sys.version_info[3],
                "serial": sys.version_info[4],
            },
            "version_info": list(sys.version_info),
            "executable": sys.executable,
            "type": sys.implementation.name,
        },
        "python_version": platform.python_version(),
        "pkg_mgr": _package_manager(),
        "service_mgr": _service_manager(),
        "env": dict(os.environ),
        "date_time": _date_time(),
    }
    facts["user_uid"], facts["user_gid"] = os.getuid(), os.getgid()
    try:
        user = pwd.getpwuid(os.getuid())
        facts.update(user_id=user.pw_name, user_dir=user.pw_dir, user_shell=user.pw_shell)
        facts["user_gecos"] = user.pw_gecos
    except KeyError:
        facts["user_id"] = str(os.getuid())
    release = _read("/etc/os-release") or _read("/usr/lib/os-release") or ""
    facts.update(distribution_facts(release, _read("/etc/debian_version") or ""))
    cmdline = _read("/proc/cmdline")
    if cmdline:
        facts["cmdline"] = _hardware.words_of_cmdline(cmdline)
        facts["proc_cmdline"] = _host.words_of_cmdline(cmdline)
    if name.machine == "x86_64" or re.match(r"i\d86$", name.machine):
        facts["userspace_architecture"] = "x86_64" if facts["userspace_bits"] == "64" else "i386"
    load = os.getloadavg()
    facts["loadavg"] = {"1m": load[0], "5m": load[1], "15m": load[2]}
    machine = (_read("/etc/machine-id") or "").strip()
    if machine:
        facts["machine_id"] = machine
    return {key: value for key, value in facts.items() if value is not None}


_NAMES = {
    "debian": ("Debian", "Debian"),
    "ubuntu": ("Ubuntu", "Debian"),
    "fedora": ("Fedora", "RedHat"),
    "centos": ("CentOS", "RedHat"),
    "rhel": ("RedHat", "RedHat"),
    "rocky": ("Rocky", "RedHat"),
    "almalinux": ("AlmaLinux", "RedHat"),
    "alpine": ("Alpine", "Alpine"),
    "arch": ("Archlinux", "Archlinux"),
}


def distribution_facts(text, debian_version=""):
    """distribution, distribution_version, distribution_major_version, distribution_release, os_family from
    the text of os-release(5), and distribution_minor_version where there is one.

    :param debian_version: the text of /etc/debian_version, which alone knows Debian's point releases.
    """
    fields = dict(re.findall(r'^(\w+)=["\']?(.*?)["\']?$', text, re.MULTILINE))
    if not fields.get("ID"):
        return {}
    name, family = _NAMES.get(fields["ID"], (fields.get("NAME", fields["ID"]), None))
    if family is None:
        likes = fields.get("ID_LIKE", "").split()
        family = next((_NAMES[like][1] for like in likes if like in _NAMES), name)
    version = fields.get("VERSION_ID", "")
    if name == "Debian" and re.match(r"^\d+(\.\d+)+$", debian_version.strip()):
        version = debian_version.strip()
    facts = {"distribution": name, "os_family": family}
    if version:
        facts["distribution_version"] = version
        facts["distribution_major_version"] = version.split(".")[0]
        if "." in version:
            facts["distribution_minor_version"] = version.split(".")[1]
    if fields.get("VERSION_CODENAME"):
        facts["distribution_release"] = fields["VERSION_CODENAME"]
    return facts


def _package_manager():
    for name, path in (
        ("apt", "/usr/bin/apt-get"),
        ("dnf", "/usr/bin/dnf"),
        ("apk", "/sbin/apk"),
        ("pacman", "/usr/bin/pacman"),
    ):
        if os.path.exists(path):
            return name
    return None


def _service_manager():
    """``systemd`` where it runs as PID 1, else the name of PID 1."""
    if os.path.isdir("/run/systemd/system"):
        return "systemd"
    return (_read("/proc/1/comm") or "").strip() or None


def _date_time():
    now = time.time()
    local, utc = time.localtime(now), time.gmtime(now)
    return {
        "date": time.strftime("%Y-%m-%d", local),
        "time": time.strftime("%H:%M:%S", local),
        "epoch": str(int(now)),
        "epoch_int": str(int(now)),
        "iso8601": time.strftime("%Y-%m-%dT%H:%M:%SZ", utc),
        "iso8601_micro": time.strftime("%Y-%m-%dT%H:%M:%S", utc) + ".%06dZ" % (now % 1 * 1000000),
        "iso8601_basic": time.strftime("%Y%m%dT%H%M%S", local) + "%06d" % (now % 1 * 1000000),
        "iso8601_basic_short": time.strftime("%Y%m%dT%H%M%S", local),
        "weekday_number": time.strftime("%w", local),
        "weeknumber": time.strftime("%W", local),
        "tz_dst": time.tzname[1],
        "year": time.strftime("%Y", local),
        "month": time.strftime("%m", local),
        "day": time.strftime("%d", local),
        "hour": time.strftime("%H", local),
        "minute": time.strftime("%M", local),
        "second": time.strftime("%S", local),
        "weekday": time.strftime("%A", local),
        "tz": time.strftime("%Z", local),
        "tz_offset": time.strftime("%z", local),
    }


def _machine():
    facts = {"processor_nproc": len(os.sched_getaffinity(0)), "processor_vcpus": os.cpu_count()}
    facts.update(_hardware.processor_facts(_read("/proc/cpuinfo") or ""))
    facts.update(_hardware.memory_facts(_read("/proc/meminfo") or ""))
    up = _read("/proc/uptime")
    if up:
        facts["uptime_seconds"] = int(float(up.split()[0]))
    return {key: value for key, value in facts.items() if value is not None}


def _protection():
    selinux = (_read("/sys/fs/selinux/enforce"), _read("/etc/selinux/config"), _read("/sys/fs/selinux/policyvers"))
    return {
        "selinux": _host.selinux_facts(*selinux),
        # What Ansible asks a Python library for is read from the kernel here, so it is never missing.
        "selinux_python_present": True,
        "apparmor": {"status": "enabled" if os.path.exists("/sys/kernel/security/apparmor") else "disabled"},
        "fips": (_read("/proc/sys/crypto/fips_enabled") or "").strip() == "1",
        "is_chroot": _is_chroot(),
    }


def _is_chroot():
    if os.environ.get("debian_chroot"):  # noqa: SIM112 - that is its name
        return True
    try:
        mine, first = os.stat("/"), os.stat("/proc/1/root/.")
    except OSError:
        return False  # only root may look, and this user cannot tell
    return (mine.st_ino, mine.st_dev) != (first.st_ino, first.st_dev)


def _names():
    release = {}
    if any(os.path.exists(folder + "/lsb_release") for folder in ("/usr/bin", "/bin", "/usr/local/bin")):
        text = _read("/etc/os-release") or _read("/usr/lib/os-release") or ""
        release = dict(re.findall(r'^(\w+)=["\']?(.*?)["\']?$', text, re.MULTILINE))
    return {
        "lsb": _host.lsb_facts(_read("/etc/lsb-release"), release),
        "dns": _host.dns_facts(_read("/etc/resolv.conf") or ""),
    }


def _mounts():
    """``mounts``: each real file system with its sizes in bytes, and counts of blocks and inodes."""
    found = _hardware.mount_lines(_read("/proc/mounts") or "")
    for entry in found:
        try:
            sizes = os.statvfs(entry["mount"])
        except OSError:
            continue  # the entry tells where it is mounted, and no more
        entry.update(
            size_total=sizes.f_frsize * sizes.f_blocks,
            size_available=sizes.f_frsize * sizes.f_bavail,
            block_size=sizes.f_bsize,
            block_total=sizes.f_blocks,
            block_available=sizes.f_bavail,
            block_used=sizes.f_blocks - sizes.f_bavail,
            inode_total=sizes.f_files,
            inode_available=sizes.f_favail,
            inode_used=sizes.f_files - sizes.f_favail,
        )
    return {"mounts": found}


def _network():
    addresses = interface_addresses()
    facts = {"interfaces": sorted(addresses)}
    # Ansible counts no address of 127.0.0.0/8 among all_ipv4_addresses.
    facts["all_ipv4_addresses"] = [
        entry["address"]
        for name in sorted(addresses)
        for entry in addresses[name]
        if not entry["address"].startswith("127.")
    ]
    for name in addresses:
        key = re.sub(r"[^A-Za-z0-9_]", "_", name)
        facts[key] = {
            "device": name,
            "active": _read("/sys/class/net/%s/operstate" % name) not in (None, "down\n"),
        }
        mtu = _read("/sys/class/net/%s/mtu" % name)
        mac = _read("/sys/class/net/%s/address" % name)
        if mtu:
            facts[key]["mtu"] = int(mtu)
        if mac:
            facts[key]["macaddress"] = mac.strip()
        if addresses[name]:
            facts[key]["ipv4"] = addresses[name][0]
        if len(addresses[name]) > 1:
            facts[key]["ipv4_secondaries"] = addresses[name][1:]
    facts["default_ipv4"] = _default_ipv4(addresses)
    newer = _host.ipv6_addresses(_read("/proc/net/if_inet6") or "")
    facts["all_ipv6_addresses"] = [
        entry["address"] for name in sorted(newer) for entry in newer[name] if entry["address"] != "::1"
    ]
    for name in newer:
        facts.setdefault(re.sub(r"[^A-Za-z0-9_]", "_", name), {"device": name})["ipv6"] = newer[name]
    facts["default_ipv6"] = _default_ipv6(newer)
    return facts


def interface_addresses():
    """Interface name -> list of ``{"address", "netmask", "prefix"}``, asked from the kernel over rtnetlink.

    One dump of all IPv4 addresses: complete where the older ioctl shows one address for each interface.
    """
    found = {name: [] for _index, name in socket.if_nameindex()}
    names = dict(socket.if_nameindex())
    get_address, dump, done = 22, 0x301, 3  # RTM_GETADDR, NLM_F_REQUEST|ROOT|MATCH, NLMSG_DONE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as channel:
        channel.settimeout(5)
        channel.sendall(
            struct.pack("=IHHII", 24, get_address, dump, 1, 0) + struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)
        )
        while True:
            block = channel.recv(65536)
            offset = 0
            while offset + 16 <= len(block):
                length, kind = struct.unpack_from("=IH", block, offset)
                if kind in (2, done) or length < 16:  # NLMSG_ERROR or the end
                    return found
                _family, prefix, _flags, _scope, index = struct.unpack_from("=BBBBI", block, offset + 16)
                attributes = dict(_route_attributes(block[offset + 24 : offset + length]))
                raw = attributes.get(2) or attributes.get(1)  # IFA_LOCAL, else IFA_ADDRESS
                if raw and index in names:
                    mask = struct.pack(">I", (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF)
                    found[names[index]].append(
                        {
                            "address": socket.inet_ntoa(raw),
                            "netmask": socket.inet_ntoa(mask),
                            "prefix": str(prefix),
                            "network": _network_of(raw, prefix),
                            # A broadcast address only where the kernel has one (IFA_BROADCAST), as Ansible says.
                            "broadcast": socket.inet_ntoa(attributes[4]) if attributes.get(4) else "",
                        }
                    )
                offset += (length + 3) & ~3


def _network_of(raw, prefix):
    """The network that an IPv4 address (4 bytes) is of."""
    mask = (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF
    return socket.inet_ntoa(struct.pack(">I", struct.unpack(">I", raw)[0] & mask))


def _route_attributes(data):
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _default_ipv4(addresses):
    """The interface of the default route, its gateway and first address; ``{}`` without such a route."""
    for line in (_read(_PROC_IPV4) or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            gateway = socket.inet_ntoa(struct.pack("<I", int(fields[2], 16)))
            found = {"interface": fields[0], "alias": fields[0], "gateway": gateway, "type": "ether"}
            mtu, mac = (_read("/sys/class/net/%s/%s" % (fields[0], name)) for name in ("mtu", "address"))
            if mtu:
                found["mtu"] = int(mtu)
            if mac:
                found["macaddress"] = mac.strip()
            if addresses.get(fields[0]):
                found.update(addresses[fields[0]][0])
            return found
    return {}


def _default_ipv6(addresses):
    """The interface of the default route of IPv6, its gateway and first global address; ``{}`` without one."""
    route = _host.default_ipv6_route(_read("/proc/net/ipv6_route") or "")
    if route is None:
        return {}
    found = {"interface": route[0], "type": "ether"}
    if route[1]:
        found["gateway"] = route[1]
    for name, key, kind in (("mtu", "mtu", int), ("address", "macaddress", str)):
        text = _read("/sys/class/net/%s/%s" % (route[0], name))
        if text:
            found[key] = kind(text.strip())
    found.update(next((one for one in addresses.get(route[0], ()) if one["scope"] == "global"), {}))
    return found


def _virtual():
    kind = None
    said, container = _container_of_init(), _read("/run/systemd/container")
    if said:  # in Ansible's words, which are fewer
        kind, role = said if said in ("lxc", "podman") else "container", "guest"
    elif container:
        kind, role = container.strip(), "guest"
    elif os.path.exists("/.dockerenv"):
        kind, role = "docker", "guest"
    else:
        names = ("/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name")
        vendor = " ".join((_read(name) or "").strip() for name in names)
        known = (
            ("KVM", "kvm"),
            ("QEMU", "kvm"),
            ("VMware", "VMware"),
            ("VirtualBox", "virtualbox"),
            ("Amazon EC2", "kvm"),
            ("Google", "kvm"),
            ("Microsoft Corporation Virtual", "VirtualPC"),
            ("Xen", "xen"),
        )
        kind = next((word for text, word in known if text in vendor), None)
        role = "guest"
        if kind is None:
            hypervised = " hypervisor" in (_read("/proc/cpuinfo") or "")
            kind, role = ("kvm", "guest") if hypervised else ("NA", "NA")
    return {"virtualization_type": kind, "virtualization_role": role}


def _container_of_init():
    """``container=`` in the environment of PID 1, where this user may read it."""
    try:
        with open("/proc/1/environ", "rb") as handle:
            for entry in handle.read().split(b"\0"):
                if entry.startswith(b"container="):
                    return entry[len(b"container=") :].decode("utf-8", "replace")
    except OSError:
        pass
    return None


def _tcpfleet():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = {"nofile": {"soft": soft, "hard": hard}, "python": sys.executable}
    boot = _read("/proc/sys/kernel/random/boot_id")
    if boot:
        facts["boot_id"] = boot.strip()
    limits = {}
    for name in (
        "fs.nr_open",
        "fs.file-max",
        "net.core.somaxconn",
        "net.ipv4.ip_local_port_range",
        "kernel.pid_max",
    ):
        value = _read("/proc/sys/" + name.replace(".", "/"))
        if value is not None:
            limits[name] = " ".join(value.split())
    facts["kernel"] = limits
    return {"tcpfleet": facts}


# (subset, names, function): facts that take more time than most, gathered when the filter asks for one of them.
# The mounts above all: a file server that is gone makes them wait.
_WHEN_ASKED = (
    ("min", ("selinux", "selinux_python_present", "apparmor", "fips", "is_chroot"), _protection),
    ("min", ("lsb", "dns"), _names),
    ("min", tuple("ssh_host_key_%s_public" % kind for kind in _host.KEY_TYPES)
     + tuple("ssh_host_key_%s_public_keytype" % kind for kind in _host.KEY_TYPES), _host.key_facts),
    ("hardware", _host.DMI_NAMES, _host.dmi_facts),
    ("hardware", ("mounts",), _mounts),
)  # fmt: skip
_GATHER = {
    "min": _minimum,
    "hardware": _machine,
    "network": _network,
    "virtual": _virtual,
    "tcpfleet": _tcpfleet,
}
