"""How a connection gets the source port that was planned for it: WAYS, each a few functions to try in turn.

`range`  IP_LOCAL_PORT_RANGE (Linux 6.3) with a range of one port: the port is chosen at connect(), for this target
         alone. Others on the host may still let the kernel choose the same port towards elsewhere.
`route`  the same where the one source address is what the route gives anyway: two system calls less.
`bind`   SO_REUSEADDR and bind((address, port)), on every kernel. While it lasts, the kernel chooses that port for
         nobody: a client with the whole range leaves no port to a plain connect() on its host.

The kernel gives no port by range that somebody else has bound, though towards another target or in TIME_WAIT; such
a port can still be bound. None of them slows down as the range fills, as the kernel's own choice does.
"""

import errno
import socket
import struct
from typing import Tuple

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h
IP_LOCAL_PORT_RANGE = 51
_WORD = struct.Struct("=I")


def by_range(sock: socket.socket, address: Tuple[str, int]) -> int:
    """Have connect() take this very port; 0. Raises OSError for what is not the port's fault."""
    source, port = address
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, _WORD.pack(port << 16 | port))
    sock.bind((source, 0))
    return 0


def by_route(sock: socket.socket, address: Tuple[str, int]) -> int:
    """As `by_range`, from the address that the route gives."""
    port = address[1]
    sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, _WORD.pack(port << 16 | port))
    return 0


def by_bind(sock: socket.socket, address: Tuple[str, int]) -> int:
    """Bind; 0, or EADDRINUSE when somebody has the port. Raises OSError for everything else."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            raise
        return errno.EADDRINUSE
    return 0


WAYS = {"range": (by_range, by_bind), "route": (by_route, by_bind), "bind": (by_bind,)}  # type: Dict[str, Callable[[socket.socket, Tuple[str, int]], int]]


def choose(family: int, ports: Tuple[int, int], port_range: Tuple[int, int], routed: bool) -> str:
    """The way for these ports on this host: by range where the kernel has it and they lie in ip_local_port_range
    (the kernel ignores others).

    :param routed: connections come from one address, the one that the route to the target gives.
    """
    inside = port_range[0] <= ports[0] and ports[1] <= port_range[1]
    if not inside or family != socket.AF_INET or not _has_range():
        return "bind"
    return "route" if routed else "range"


def _has_range() -> bool:
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, _WORD.pack(50000 << 16 | 50000))
        return True
    except OSError:
        return False
    finally:
        probe.close()
