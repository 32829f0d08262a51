"""Facts about a host's identity and protection, from texts and files: what in them is pure, and a few that read.

Names and shapes are Ansible's. No program is run, so that what Ansible learns from one (systemctl --version,
capsh, lsblk) is not here.
"""

import os
import re
import socket

_DMI = {
    "bios_date": "bios_date",
    "bios_vendor": "bios_vendor",
    "bios_version": "bios_version",
    "board_asset_tag": "board_asset_tag",
    "board_name": "board_name",
    "board_serial": "board_serial",
    "board_vendor": "board_vendor",
    "board_version": "board_version",
    "chassis_asset_tag": "chassis_asset_tag",
    "chassis_serial": "chassis_serial",
    "chassis_vendor": "chassis_vendor",
    "chassis_version": "chassis_version",
    "product_name": "product_name",
    "product_serial": "product_serial",
    "product_uuid": "product_uuid",
    "product_version": "product_version",
    "system_vendor": "sys_vendor",
}
DMI_NAMES = tuple(sorted(_DMI))
KEY_TYPES = ("dsa", "rsa", "ecdsa", "ed25519")


def read(path):
    """A small text file, or None when it cannot be read."""
    try:
        with open(path) as handle:
            return handle.read()
    except (OSError, UnicodeDecodeError):
        return None


def selinux_facts(enforce, config, version):
    """``selinux``: status, and where it is enabled mode, config_mode, type and policyvers.

    :param enforce: text of /sys/fs/selinux/enforce, None where there is none: SELinux is not in force.
    :param config: text of /etc/selinux/config; `version`: of /sys/fs/selinux/policyvers.
    """
    if enforce is None:
        return {"status": "disabled"}
    said = dict(re.findall(r"^(SELINUX|SELINUXTYPE)=(\w+)\s*$", config or "", re.MULTILINE))
    found = {
        "status": "enabled",
        "mode": "enforcing" if enforce.strip() == "1" else "permissive",
        "config_mode": said.get("SELINUX", "unknown"),
        "type": said.get("SELINUXTYPE", "unknown"),
        "policyvers": "unknown",
    }
    if version and version.strip().isdigit():
        found["policyvers"] = int(version)
    return found


def lsb_facts(text, release):
    """``lsb``: id, release, description, codename, major_release; {} where a host has neither file nor program.

    :param text: of /etc/lsb-release, or None.
    :param release: fields of os-release(5), which lsb_release goes by where there is no such file; {}: no program.
    """
    found = {}
    if text is not None:
        said = dict(re.findall(r'^(DISTRIB_\w+)=["\']?(.*?)["\']?$', text, re.MULTILINE))
        for name in ("ID", "RELEASE", "DESCRIPTION", "CODENAME"):
            if said.get("DISTRIB_" + name):
                found[name.lower()] = said["DISTRIB_" + name]
    elif release:
        ident = release.get("ID", "")
        name = release.get("NAME", "")
        found["id"] = name[: len(ident)] if name.lower().startswith(ident) else ident.capitalize()
        for ours, theirs in (
            ("release", "VERSION_ID"),
            ("description", "PRETTY_NAME"),
            ("codename", "VERSION_CODENAME"),
        ):
            if release.get(theirs):
                found[ours] = release[theirs]
    if found.get("release"):
        found["major_release"] = found["release"].split(".")[0]
    return found


def dns_facts(text):
    """``dns`` from the text of resolv.conf(5): nameservers, domain, search, sortlist, options."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        if words[0] == "nameserver":
            found.setdefault("nameservers", []).extend(words[1:])
        elif words[0] == "domain":
            if words[1:]:
                found["domain"] = words[1]
        elif words[0] in ("search", "sortlist"):
            found[words[0]] = words[1:]
        elif words[0] == "options":
            pairs = (word.partition(":") for word in words[1:])
            found["options"] = {name: value or True for name, _colon, value in pairs}
    return found


def dmi_facts(folder="/sys/devices/virtual/dmi/id"):
    """What the firmware calls the machine; ``NA`` where it does not say, or not to this user."""
    found = {}
    for fact, name in _DMI.items():
        text = read(os.path.join(folder, name))
        found[fact] = "NA" if text is None else text.strip()
    return found


def key_facts(folder="/etc/ssh"):
    """``ssh_host_key_TYPE_public`` and ``..._keytype`` of the public keys that sshd has."""
    found = {}
    for kind in KEY_TYPES:
        words = (read(os.path.join(folder, "ssh_host_%s_key.pub" % kind)) or "").split()
        if len(words) > 1:
            name = "ssh_host_key_%s_public" % kind
            found[name], found[name + "_keytype"] = words[1], words[0]
    return found


def words_of_cmdline(text):
    """``proc_cmdline``: as ``cmdline``, with a list for a name that is there several times."""
    found = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        one = value if equals else True
        if name in found:
            before = found[name] if isinstance(found[name], list) else [found[name]]
            found[name] = [*before, one]
        else:
            found[name] = one
    return found


_SCOPES = {0x00: "global", 0x10: "host", 0x20: "link", 0x40: "site"}


def ipv6_addresses(text):
    """Interface name -> [{address, prefix, scope}] from the text of /proc/net/if_inet6."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 6:
            address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0]))
            scope = _SCOPES.get(int(words[3], 16) & 0xF0, "unknown")
            entry = {"address": address, "prefix": str(int(words[2], 16)), "scope": scope}
            found.setdefault(words[5], []).append(entry)
    return found


def default_ipv6_route(text):
    """(interface, gateway) of the best default route in the text of /proc/net/ipv6_route, or None.

    Fields: destination, its prefix, source, its prefix, next hop, metric, two counters, flags, device.
    """
    best = None
    for line in text.splitlines():
        words = line.split()
        if len(words) != 10 or words[1] != "00" or int(words[0], 16) or words[9] == "lo":
            continue
        flags, metric = int(words[8], 16), int(words[5], 16)
        if flags & 0x0200 or not flags & 0x0001:  # RTF_REJECT, RTF_UP
            continue
        if best is None or metric < best[0]:
            gateway = int(words[4], 16) and socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[4]))
            best = (metric, words[9], gateway or None)
    return best and best[1:]
