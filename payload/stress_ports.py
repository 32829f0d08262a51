"""How a connection gets the source port that was planned for it: one row of WAYS for each way.

`range`  IP_LOCAL_PORT_RANGE (Linux 6.3) with a range of one port: the port is chosen at connect(), for this target
         alone. Others on the host may still let the kernel choose the same port towards elsewhere.
`bind`   SO_REUSEADDR and bind((address, port)), on every kernel. While it lasts, the kernel chooses that port for
         nobody: a client with the whole range leaves no port to a plain connect() on its host.

Neither slows down as the range fills, as the kernel's own choice does.
"""

import errno
import socket
import struct
from typing import Tuple

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h
IP_LOCAL_PORT_RANGE = 51


def by_range(sock: socket.socket, address: Tuple[str, int]) -> int:
    """Have connect() take this very port; 0. Raises OSError for what is not the port's fault."""
    source, port = address
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=I", port << 16 | port))
    sock.bind((source, 0))
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


WAYS = {"range": by_range, "bind": by_bind}  # type: Dict[str, Callable[[socket.socket, Tuple[str, int]], int]]


def choose(family: int, ports: Tuple[int, int], port_range: Tuple[int, int]) -> str:
    """The way for these ports on this host: `range` where the kernel has it and they lie in
    ip_local_port_range (the kernel ignores others)."""
    inside = port_range[0] <= ports[0] and ports[1] <= port_range[1]
    return "range" if inside and family == socket.AF_INET and _has_range() else "bind"


def _has_range() -> bool:
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=I", 50000 << 16 | 50000))
        return True
    except OSError:
        return False
    finally:
        probe.close()
