"""What a host looks like: files below some folders, sysctls, services, and the open-file limits of a new login.

`take` sends this file's `LOOK` to a host and gets plain data back; `changes` says what became different between
two snapshots of the same host, so that hosts can be compared that were not alike to begin with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.running import Lab

# Runs on the host, under its own Python; prints one JSON object. Times are left out: they always differ.
LOOK = r"""
import hashlib, json, os, stat, subprocess, sys
asked = json.loads(sys.argv[1])
files = {}
def look(path):
    there = os.lstat(path)
    row = {"mode": oct(stat.S_IMODE(there.st_mode)), "owner": there.st_uid, "group": there.st_gid}
    if stat.S_ISLNK(there.st_mode):
        row.update(type="link", target=os.readlink(path))
    elif stat.S_ISDIR(there.st_mode):
        row.update(type="directory")
    elif stat.S_ISREG(there.st_mode):
        with open(path, "rb") as file:
            data = file.read()
        row.update(type="file", size=len(data), sha256=hashlib.sha256(data).hexdigest(), links=there.st_nlink)
        if len(data) < 20000:
            row["text"] = data.decode("utf-8", "backslashreplace")
    else:
        row.update(type="other")
    files[path] = row
for root in asked["roots"]:
    if os.path.lexists(root):
        look(root)
    for folder, names, others in os.walk(root):
        # what Python compiled for itself holds the times of its sources
        names[:] = [name for name in names if name != "__pycache__"]
        for name in names + others:
            look(os.path.join(folder, name))
sysctls = {}
for key in asked["sysctls"]:
    try:
        with open("/proc/sys/" + key.replace(".", "/")) as file:
            sysctls[key] = file.read().split()
    except OSError as error:
        sysctls[key] = error.errno
services = {}
for unit in asked["units"]:
    done = subprocess.run(
        ["systemctl", "show", unit, "-p", "LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload"],
        stdout=subprocess.PIPE)
    services[unit] = sorted(done.stdout.decode().split())
import resource
print(json.dumps({"files": files, "sysctls": sysctls, "services": services,
                  "limits": {"nofile": resource.getrlimit(resource.RLIMIT_NOFILE)}}))
"""

Snapshot = dict[str, dict[str, Any]]


def take(
    lab: Lab, host: str, *, roots: Sequence[str], sysctls: Sequence[str] = (), units: Sequence[str] = ()
) -> Snapshot:
    """A snapshot of a host, over a login of its own."""
    asked = json.dumps({"roots": list(roots), "sysctls": list(sysctls), "units": list(units)})
    found: Snapshot = json.loads(lab.ssh(host, f"python3 - '{asked}'", stdin=LOOK))
    return found


def changes(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """`kind:name` -> what it is after, for everything that is not as before; None: it is gone.

    >>> changes({"files": {"/a": 1, "/b": 1}}, {"files": {"/a": 2, "/c": 3}})
    {'files:/a': 2, 'files:/b': None, 'files:/c': 3}
    """
    found = {}
    for kind in before:
        for name in sorted({*before[kind], *after[kind]}):
            if before[kind].get(name) != after[kind].get(name):
                found[f"{kind}:{name}"] = after[kind].get(name)
    return found


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Sentences on what two programs did differently to their hosts, from `changes` of each."""
    found = []
    for name in sorted({*ours, *theirs}):
        mine, other = ours.get(name, "as before"), theirs.get(name, "as before")
        if mine == other:
            continue
        if isinstance(mine, dict) and isinstance(other, dict):
            keys = [key for key in {**mine, **other} if mine.get(key) != other.get(key) and key != "sha256"]
            mine, other = ({key: one.get(key) for key in keys} for one in (mine, other))
        found.append(f"{name}: ours {mine!r}, Ansible {other!r}")
    return found
