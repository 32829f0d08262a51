"""Whether logind would end a daemon together with the login that started it (KillUserProcesses, logind.conf(5)).

A daemon leaves its session but not the session's control group, and that is what logind ends at logout where it is
told to. A unit of systemd is in no session.
"""

import pwd
import re
import subprocess
from typing import List, Optional

_SESSION = re.compile(r"/user-(\d+)\.slice/session-[^/]+\.scope$", re.MULTILINE)
_ASK = ["busctl", "get-property", "org.freedesktop.login1", "/org/freedesktop/login1"]
_PROPERTIES = ["KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers"]
_ASK_SECONDS = 2.0


def warning() -> Optional[str]:
    """Return one sentence if this process, and so a daemon that it starts, ends with its login; else None."""
    try:
        with open("/proc/self/cgroup") as f:
            session = _SESSION.search(f.read())
    except OSError:
        return None
    if session is None:
        return None
    user = _name(int(session.group(1)))
    answer = _ask()
    if answer is None or not is_killed(user, answer):
        return None
    return (
        "logind ends this daemon when %s logs out (KillUserProcesses=yes): run it as a unit of systemd, or from "
        "systemd-run --scope" % user
    )


def is_killed(user: str, properties: List[str]) -> bool:
    """Return what logind's properties mean for a user's processes.

    properties: KillUserProcesses, KillOnlyUsers and KillExcludeUsers as busctl prints them.

    >>> is_killed("ann", ["b true", "as 0", 'as 1 "root"']), is_killed("root", ["b true", "as 0", 'as 1 "root"'])
    (True, False)
    """
    kill, only, never = properties
    those = re.findall(r'"([^"]*)"', only)
    return kill == "b true" and (user in those or not those) and user not in re.findall(r'"([^"]*)"', never)


def _ask() -> Optional[List[str]]:
    try:
        done = subprocess.run(
            [*_ASK, "org.freedesktop.login1.Manager", *_PROPERTIES],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_ASK_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return lines if done.returncode == 0 and len(lines) == len(_PROPERTIES) else None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
