"""The open-files limit (RLIMIT_NOFILE): how high it could go, and raising it.

In: a wanted number of descriptors. Out: the number that is really in force. Every process that holds
many connections asks here, because the hard limit, CAP_SYS_RESOURCE and fs.nr_open decide together and
"ulimit -n 1000000" typed in another shell decides nothing.
"""

import resource
from typing import Optional

_CAP_SYS_RESOURCE = 24  # linux/capability.h


def reachable(wanted: Optional[int] = None) -> int:
    """Return the highest soft limit of open files that this process could set, in descriptors.

    That is the hard limit or, for a process that may raise hard limits (CAP_SYS_RESOURCE), fs.nr_open.
    With `wanted`, the answer is at most `wanted`. Nothing is changed for good: whether the capability
    counts is found by trying, since it is void inside a user namespace, and the old limits are put back.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _nr_open() if hard == resource.RLIM_INFINITY else hard
    enough = wanted is not None and wanted <= most
    if not enough and most < _nr_open() and _has_cap_sys_resource():
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _nr_open()))
        except (OSError, ValueError):
            pass
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            most = _nr_open()
    return most if wanted is None else min(wanted, most)


def raise_nofile(wanted: int) -> int:
    """Raise the soft limit of open files to `wanted`, or as near as it can get; return what is in force.

    A limit that is already higher stays as it is. The hard limit is raised only when it must be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        target = reachable(wanted)
        if target > soft:
            # The old hard limit is kept (not lowered to the soft one): a later wish may be larger.
            new_hard = hard if hard == resource.RLIM_INFINITY else max(hard, target)
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, new_hard))
    return current()


def current() -> int:
    """Return the soft limit of open files in force, in descriptors."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _nr_open() if soft == resource.RLIM_INFINITY else soft


def _nr_open() -> int:
    """Return fs.nr_open, the kernel's ceiling for any process; its default where /proc is absent."""
    try:
        with open("/proc/sys/fs/nr_open") as f:
            return int(f.read())
    except (OSError, ValueError):
        return 1024 * 1024


def _has_cap_sys_resource() -> bool:
    try:
        with open("/proc/self/status") as f:
            for line in f:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    except (OSError, ValueError):
        pass
    return False
