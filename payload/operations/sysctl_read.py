"""``sysctl_read``: what is in force for kernel settings and open-file limits, and what the next boot will set.

Changes nothing.
"""

import os
import re
import resource

from operations import _kernel as kernel
from operations import _sysctl_order as order

LIMITS = "/etc/security/limits.conf"
LIMITS_FOLDER = "/etc/security/limits.d"


def run(args, context):
    """Reads every key of ``names`` from /proc/sys, and the files that set it.

    :param args: ``names``; ``file``: the file of sysctl.d whose word is asked for; ``limits_file``: the one of
        limits.d; ``processes``: pids whose limits are asked for.
    :returns: ``settings``: key -> ``{"exists", "writeable", "value", "status"}`` (see
        `operations._kernel.read`), and of those where they apply ``listed`` (what ``file`` says), ``boot`` (what
        the next boot sets, None: nothing does) and ``system`` (what ``sysctl --system`` sets), each
        ``{"value", "file", "line"}``; for keys that do not exist ``near``: names in the same folder.
        ``profile``: the one that ``file`` says it was written for, None without.
        ``nofile``: ``{"soft", "hard"}`` of this very process, -1 for unlimited, which is what this agent's login
        got, not what a later login gets; ``limits``: lines of limits.d that have a say after ``limits_file``, each
        ``{"file", "line", "text"}``; ``processes``: pid -> soft limit, those that are gone left out.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = args.get("names") or []
    settings = {name: kernel.read(name) for name in names}
    own = args.get("file")
    # Without systemd it is procps that runs at boot, if anything does.
    system = order.by_system(names)
    boot = order.at_boot(names) if os.path.isdir("/run/systemd/system") else system
    listed = {key: (number, value) for number, key, value in order.lines(own)} if own else {}
    for name, found in settings.items():
        found.update(boot=boot.get(name), system=system.get(name))
        number, value = listed.get(order.path_of(name), (None, None))
        found["listed"] = None if value is None else {"value": value, "file": own, "line": number}
        if not found["exists"]:
            found["near"] = _neighbours(name)
    return {
        "changed": False,
        "settings": settings,
        "profile": _profile(own) if own else None,
        "nofile": {"soft": soft, "hard": hard},
        "limits": _later_limits(args.get("limits_file")),
        "processes": _limits_of(args.get("processes") or ()),
        "msg": "read %d kernel settings" % len(names),
    }


def _neighbours(name):
    """Names of the keys beside one that does not exist."""
    folder = os.path.dirname(kernel.key_path(name))
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _profile(path):
    try:
        with open(path, "rb") as source:
            match = re.search(rb"\A# Written by tcpfleet \(.*, profile ([^\n]+)\)", source.readline())
    except OSError:
        return None
    return match.group(1).decode("utf-8", "replace") if match else None


def _later_limits(own):
    """Lines about open files of limits.d files that pam_limits reads after `own`; None: of none."""
    if not own:
        return []
    try:
        names = sorted(os.listdir(LIMITS_FOLDER), key=os.fsencode)
    except OSError:
        return []
    found = []
    for name in names:
        path = os.path.join(LIMITS_FOLDER, name)
        if not name.endswith(".conf") or os.fsencode(name) <= os.fsencode(os.path.basename(own)):
            continue
        try:
            with open(path, "rb") as source:
                text = source.read().decode("utf-8", "replace")
        except OSError:
            continue
        for number, line in enumerate(text.split("\n"), 1):
            words = line.split("#")[0].split()
            if len(words) == 4 and words[2] == "nofile":
                found.append({"file": path, "line": number, "text": " ".join(words)})
    return found


def _limits_of(pids):
    found = {}
    for pid in pids:
        try:
            with open("/proc/%d/limits" % int(pid)) as source:
                match = re.search(r"^Max open files\s+(\d+)", source.read(), re.MULTILINE)
        except OSError:
            continue
        if match:
            found[str(pid)] = int(match.group(1))
    return found
