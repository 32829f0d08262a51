"""Processes that a run has started by a command and that are still running.

What a command did is not known, but what runs from files that the run has put there can be seen. A daemon outlives
the removal of its program, and what came along to stop it is gone by then: so rollback names the process.
"""

import os
import time


def since(moment, paths):
    """Processes that began after a moment and have one of some files on their command line.

    :param moment: seconds since the epoch.
    :param paths: a set of absolute paths. Of a container on this machine the same paths are other files.
    :returns: ``[(pid, command line)]``, lowest pid first; a child of one that is listed is left out.
    """
    with open("/proc/uptime") as source:
        booted = time.time() - float(source.read().split()[0])
    tick = 1.0 / os.sysconf("SC_CLK_TCK")
    wanted = {os.fsencode(path) for path in paths}
    found, parents = {}, {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open("/proc/%s/cmdline" % name, "rb") as source:
                words = source.read().split(b"\0")
            if wanted.isdisjoint(words) or not os.path.samestat(os.stat("/proc/%s/root" % name), os.stat("/")):
                continue
            with open("/proc/%s/stat" % name) as source:
                fields = source.read().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        # The kernel counts whole ticks.
        if fields[0] != "Z" and booted + (int(fields[19]) + 2) * tick >= moment:
            found[int(name)] = b" ".join(words).decode("utf-8", "replace").strip()
            parents[int(name)] = int(fields[1])
    return [(pid, found[pid]) for pid in sorted(found) if parents[pid] not in found]
