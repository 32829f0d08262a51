"""What a worker knows of a connection beyond its descriptor, and what it asks the kernel about one.

An idle connection has no Python object at all. One that is not idle has a `Busy`: bytes are unsent because its
reader is slow, or (mode http) half a request has come.
"""

import socket
import struct
import time
from typing import Tuple

# Busy.ending: what happens once nothing is unsent any more.
OPEN = 0  # it goes on
CLOSE = 1  # it is closed: the peer has all it asked for
LINGER = 2  # our side is shut and input is thrown away: closing at once would reset what the peer has yet to read

_HEAD = struct.Struct("!BQII")  # ending, skip, bytes of rest, bytes unsent
# Of struct tcp_info (linux/tcp.h): tcpi_last_data_recv in milliseconds; tcpi_bytes_acked, since Linux 4.1
_LAST_DATA_RECV, _LAST_DATA_RECV_AT = struct.Struct("=I"), 52
_BYTES_ACKED, _BYTES_ACKED_AT = struct.Struct("=Q"), 120
_TCP_INFO_SIZE = 128


class Busy:
    """State of a connection that is not idle."""

    __slots__ = ("acked", "ending", "rest", "since", "skip", "unsent", "waits")

    def __init__(self, unsent: bytes = b"", rest: bytes = b"", skip: int = 0, ending: int = OPEN) -> None:
        self.unsent = unsent  # to be written before anything more is read
        self.rest = rest  # mode http: the beginning of a request's head
        self.skip = skip  # mode http: bytes of a request's body still to come
        self.ending = ending
        self.waits = False  # epoll reports when it can be written, not what comes in
        self.since = time.monotonic()  # when it began; or, looked at now and then, when the peer last took bytes
        self.acked = 0  # bytes that the peer's kernel had taken at the last look

    def size(self) -> int:
        """Return how many bytes are held for the connection."""
        return len(self.unsent) + len(self.rest)

    def is_idle(self) -> bool:
        """Return whether nothing is owed in either direction."""
        return self.ending == OPEN and not (self.skip or self.size())

    def pack(self) -> bytes:
        """Return what another process needs to go on with the connection."""
        head = _HEAD.pack(self.ending, self.skip, len(self.rest), len(self.unsent))
        return head + self.rest + self.unsent

    @classmethod
    def unpack(cls, data: bytes) -> "Busy":
        """The inverse of `pack`; the times begin anew."""
        ending, skip, rest, unsent = _HEAD.unpack_from(data)
        at = _HEAD.size
        return cls(data[at + rest : at + rest + unsent], data[at : at + rest], skip, ending)


def activity(fd: int, family: int) -> Tuple[float, int]:
    """Return (for how long the peer has sent nothing, in seconds; bytes that its kernel has taken in all).

    The kernel counts both for every connection, so an idle timeout costs nothing per message.
    """
    s = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fd)
    try:
        info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    finally:
        s.detach()
    acked = _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)[0] if len(info) >= _TCP_INFO_SIZE else 0
    return _LAST_DATA_RECV.unpack_from(info, _LAST_DATA_RECV_AT)[0] / 1000.0, acked


def shut_write(fd: int, family: int) -> None:
    """Send FIN and go on reading. Raises OSError where the connection is gone."""
    s = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fd)
    try:
        s.shutdown(socket.SHUT_WR)
    finally:
        s.detach()


def set_keepalive(listener: socket.socket, times: Tuple[int, ...]) -> None:
    """Have the kernel probe idle peers of all connections that `listener` accepts (they inherit it).

    times: (seconds idle, seconds between probes, probes), or () for no probes.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if times else 0)
    if times:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, times[0])
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, times[1])
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, times[2])
