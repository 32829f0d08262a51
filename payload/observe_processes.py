"""Which processes are the server of a port: those of its pid file, else whoever listens."""

import errno
import os
import re

import observe_netlink
from observe_parse import parse_stat_parent
from observe_read import read_text

MAX_PROCESSES = 512
LISTENER_FDS = 64  # a server opens its listener early; looking through all descriptors would take seconds


def find(port, pid_file):
    """Pids of the server, the one of the pid file first, then its descendants; of whoever listens on the port,
    if that is somebody else.

    :raises LookupError: with a sentence, when there is no server to look at.
    """
    inodes = listening(port)
    try:
        ours = server_pids(pid_file)
    except (LookupError, OSError):
        found = holders(inodes)
        if not found:
            raise
        return found
    # Our server may run while another one has this port. Only then is every process looked at.
    return ours if not inodes or holders(inodes, ours) else holders(inodes) or ours


def listening(port):
    """What /proc/PID/fd calls the sockets that listen on `port`: ``socket:[INODE]``."""
    try:
        return {"socket:[%d]" % inode for inode in observe_netlink.listeners(port)}
    except (OSError, ValueError):
        found = set()
    # Listeners come first in these, but where there is none the kernel goes through all connections.
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path) as lines:
                next(lines, None)
                for line in lines:
                    fields = line.split()
                    if fields[3] != "0A":
                        break
                    if int(fields[1].rpartition(":")[2], 16) == port:
                        found.add("socket:[%s]" % fields[9])
        except OSError:
            continue  # no IPv6
    return found


def holders(sockets, pids=None):
    """Those of `pids` (None: of all processes) that hold one of `sockets`; needs root for others' processes."""
    if pids is None:
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) if sockets else ()
    found = []
    for pid in pids:
        for fd in range(LISTENER_FDS):
            try:
                if os.readlink("/proc/%d/fd/%d" % (pid, fd)) in sockets:
                    found.append(pid)
                    break
            except OSError as problem:
                if problem.errno in (errno.EACCES, errno.EPERM):
                    break
    return found[:MAX_PROCESSES]


def server_pids(pid_file):
    """The pid in `pid_file` and all its descendants, at most `MAX_PROCESSES`.

    :raises LookupError: when no pid file was named, or it does not name a live process.
    :raises OSError: when the file cannot be read.
    """
    if not pid_file:
        raise LookupError("no pid file was given for this host")
    match = re.match(r"\s*(\d+)", read_text(pid_file, 4096))
    if not match:
        raise LookupError("%s holds no process id" % pid_file)
    root = int(match.group(1))
    if not os.path.isdir("/proc/%d" % root):
        raise LookupError("process %d named by %s is not running" % (root, pid_file))
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent, _ = parse_stat_parent(read_text("/proc/%s/stat" % entry, 4096))
            except (OSError, ValueError, IndexError):
                continue  # ended meanwhile
            children.setdefault(parent, []).append(int(entry))
    pids = [root]
    for pid in pids:  # grows while it is walked
        pids.extend(sorted(children.get(pid, ())))
    return pids[:MAX_PROCESSES]
