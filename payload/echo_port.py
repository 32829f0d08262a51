"""The server's port: listening on it, or saying who has it already (from /proc/net/tcp to the process)."""

import errno
import os
import socket
import time
from typing import Optional, Set

from daemon import DaemonError, describe_process

BACKLOG_MOST = 65535
SEARCH_SECONDS = 1.0
_LISTEN = "0A"  # include/net/tcp_states.h


def listen(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket; raise DaemonError naming who has the port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as e:
        raise DaemonError("cannot bind %s: %s" % (host, e.strerror))
    except UnicodeError:  # what no name can look like, such as "a..b"
        raise DaemonError("cannot bind %s: it is neither an address nor a name" % host)
    family, kind, protocol, _, address = found[0]
    sock = None
    try:
        sock = socket.socket(family, kind, protocol)  # refused where the kernel has no IPv6
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Else a second echo would wait for the acknowledgement of the first (Nagle).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` serves IPv4 as well
        sock.bind(address)
        # bind() succeeds beside a socket that is bound but not listening yet; listen() settles it.
        sock.listen(backlog())
    except OSError as e:
        if sock is not None:
            sock.close()
        where = "%s port %d" % (host, port)
        if e.errno == errno.EADDRINUSE:
            owner = port_owner(port)
            raise DaemonError("%s is in use%s" % (where, " by " + owner if owner else ""))
        raise DaemonError("cannot listen on %s: %s" % (where, e.strerror))
    return sock


def backlog() -> int:
    """Return the accept queue's length: what the kernel allows (net.core.somaxconn), at most 65535."""
    try:
        with open("/proc/sys/net/core/somaxconn") as f:
            return min(int(f.read()), BACKLOG_MOST)
    except (OSError, ValueError):
        return socket.SOMAXCONN


def port_owner(port: int, seconds: float = SEARCH_SECONDS) -> Optional[str]:
    """Return "pid N (command line)" of a process that listens on TCP `port`; None if it cannot be seen.

    Another user's process is invisible without root, one of another network namespace always. The search ends
    after `seconds`: a machine may hold a million descriptors.
    """
    deadline = time.monotonic() + seconds
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    wanted = {"socket:[%s]" % inode for inode in inodes}
    for pid in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        if time.monotonic() > deadline:
            return None
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
