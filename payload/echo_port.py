"""Who listens on a TCP port: from /proc/net/tcp to the process, for the message "port in use by ..."."""

import os
from typing import Optional, Set

from daemon import describe_process

_LISTEN = "0A"  # include/net/tcp_states.h


def port_owner(port: int) -> Optional[str]:
    """Return "pid N (command line)" of a process that listens on TCP `port`; None if it cannot be seen.

    Another user's process is invisible without root, one of another network namespace always.
    """
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {"socket:[%s]" % inode for inode in inodes}
    for pid in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        directory = "/proc/%s/fd" % pid
        try:
            descriptors = os.listdir(directory)
        except OSError:
            continue
        for fd in descriptors:
            try:
                if os.readlink("%s/%s" % (directory, fd)) in wanted:
                    return "pid %s (%s)" % (pid, describe_process(int(pid)))
            except OSError:
                continue
    return None


def _listening_inodes(port: int) -> Set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as f:
                next(f)
                for line in f:
                    # Listeners come first in the table: with 200,000 connections it must not all be read.
                    fields = line.split()
                    if fields[3] != _LISTEN:
                        break
                    if int(fields[1].rpartition(":")[2], 16) == port:
                        inodes.add(fields[9])
        except (OSError, StopIteration):
            continue
    return inodes
