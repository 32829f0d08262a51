"""TLS on the worker's raw descriptors: reads and writes under the names and errors of os.read and os.write.

In: an ssl.SSLContext made once by the client (`Secure`). Each worker has its own `Sockets`: one ssl object per
connection (BYTES of memory, so a TLS client holds fewer connections than a plain one).
"""

import errno
import os
import select
import socket
import ssl
from typing import NamedTuple, Optional

from stress_message import MessageError

BYTES = 20000  # of an idle connection: the same with Python 3.6 and 3.13, OpenSSL 1.1 and 3; nginx takes 14,000


class Secure(NamedTuple("Secure", [("context", ssl.SSLContext), ("name", str)])):
    """What all connections share: the context, and the name that the server's certificate must have."""

    __slots__ = ()

    def for_worker(self) -> "Sockets":
        """A worker's table of connections."""
        return Sockets(self.context, self.name)


def make_secure(name: str, insecure: bool, ca: Optional[str]) -> Secure:
    """TLS towards `name`; the certificate is checked against the system's authorities or those of `ca` (a file, or
    its PEM text), unless `insecure`. Raises MessageError when they cannot be used, or no server has such a name.
    """
    text = ca if ca and ca.startswith("-----BEGIN") else None
    try:
        context = ssl.create_default_context(cafile=None if text else ca, cadata=text)
    except (OSError, ssl.SSLError) as e:
        raise MessageError("--tls-ca {}: {}".format("(text)" if text else ca, e.strerror or e))
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except (ValueError, ssl.SSLError) as e:  # UnicodeError among them
        raise MessageError("--tls-name {}: not a server's name: {}".format(name, e))
    return Secure(context, name)


class Sockets:
    """The TLS connections of one worker, by descriptor."""

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self._context, self._name = context, name
        self._sockets = {}  # type: Dict[int, ssl.SSLSocket]
        self._wanted = {}  # type: Dict[int, int]

    def begin(self, fd: int, family: int) -> int:
        """Prepare TLS on a TCP connection; 0, EINPROGRESS while it is not connected, or why it failed (errno)."""
        plain = socket.socket(family, socket.SOCK_STREAM, 0, fd)
        try:
            # A new socket object takes its descriptor for a blocking one, and makes it that.
            plain.setblocking(False)
            code = plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                return code
            try:
                plain.getpeername()
            except OSError:
                return errno.EINPROGRESS
            try:
                secured = self._context.wrap_socket(
                    plain, server_hostname=self._name, do_handshake_on_connect=False
                )  # takes the descriptor over
            except OSError as e:
                return e.errno or errno.EPROTO
            self._sockets[fd] = secured
            self._wanted[fd] = select.EPOLLIN | select.EPOLLOUT
            return 0
        finally:
            plain.detach()

    def handshake(self, fd: int) -> int:
        """One step; 0 when it is over, else the epoll events to wait for. Raises OSError: EPROTO for TLS's own."""
        try:
            self._sockets[fd].do_handshake()
        except ssl.SSLWantReadError:
            self._wanted[fd] = select.EPOLLIN
            return select.EPOLLIN
        except ssl.SSLWantWriteError:
            self._wanted[fd] = select.EPOLLOUT
            return select.EPOLLOUT
        except ssl.SSLError as e:
            raise _as_os_error(e)
        return 0

    def wanted(self, fd: int) -> int:
        """The epoll events that the handshake waits for."""
        return self._wanted[fd]

    def read(self, fd: int, size: int) -> bytes:
        """All that has been decrypted, at least up to `size` bytes of it; b"" at the end. Raises BlockingIOError
        when there is nothing, OSError as os.read, EPROTO with TLS's words."""
        secured = self._sockets[fd]
        try:
            data = secured.recv(size)
            # What is left inside the ssl object makes no descriptor readable.
            while secured.pending():
                data += secured.recv(secured.pending())
            return data
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except ssl.SSLError as e:
            raise _as_os_error(e)

    def write(self, fd: int, data: bytes) -> int:
        """How many bytes were taken. Raises as `read`."""
        try:
            return self._sockets[fd].send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except ssl.SSLError as e:
            raise _as_os_error(e)

    def forget(self, fd: int) -> None:
        """Drop the ssl object; the descriptor stays open."""
        secured = self._sockets.pop(fd, None)
        self._wanted.pop(fd, None)
        if secured is not None:
            secured.detach()


def _as_os_error(error: ssl.SSLError) -> OSError:
    if isinstance(error, ssl.SSLEOFError):
        return OSError(errno.ECONNRESET, "the server closed the connection inside TLS")
    words = getattr(error, "verify_message", None) or error.reason or str(error)
    return OSError(errno.EPROTO, "TLS: {}".format(words))
