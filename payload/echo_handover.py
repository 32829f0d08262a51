"""Connections on their way from one worker to another, over a Unix socket pair that all workers share.

One message per connection: its descriptor (SCM_RIGHTS) and, where it is not idle, its packed state. What is in
the socket belongs to whoever reads it first; nothing is lost when a worker dies, since the supervisor holds both
ends.
"""

import array
import errno
import select
import socket
from typing import Optional, Tuple

from echo_connection import Busy

_IDLE = b"-"  # an empty message would look like the end of the stream
_MOST = 1 << 18  # bytes of a message; what is held for one connection is far less
_FULL = (errno.EAGAIN, errno.ETOOMANYREFS, errno.EMSGSIZE, errno.ENOBUFS)


def pair() -> Tuple[int, int]:
    """Return (descriptor to receive from, descriptor to send to)."""
    # SEQPACKET keeps messages apart, and bounds by bytes what is on its way: some 270 connections.
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in (receiver, sender):
        one.setblocking(False)
    return receiver.detach(), sender.detach()


def end(fd: int) -> socket.socket:
    """Return one end as a socket, for `send` or `receive`."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)


def is_waiting(receiver: socket.socket) -> bool:
    """Return whether a connection is on its way that nobody has taken yet."""
    poll = select.poll()
    poll.register(receiver.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def send(sender: socket.socket, fd: int, busy: Optional[Busy]) -> bool:
    """Give away a connection; return False where it cannot be sent now (it is then still the caller's).

    On success the caller closes its own copy.
    """
    rights = array.array("i", [fd])
    try:
        sender.sendmsg([_IDLE if busy is None else busy.pack()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    except OSError as e:
        if e.errno not in _FULL:
            raise
        return False
    return True


def receive(receiver: socket.socket) -> Optional[Tuple[int, Optional[Busy]]]:
    """Return (descriptor, state or None) of the next connection, None where none is on its way."""
    size = array.array("i").itemsize
    try:
        data, rights, _, _ = receiver.recvmsg(_MOST, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None
    for level, kind, content in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors = array.array("i")
            descriptors.frombytes(content[:size])
            return descriptors[0], None if data == _IDLE else Busy.unpack(data)
    raise OSError(errno.EMFILE, "no descriptor was free for a connection from another worker")
