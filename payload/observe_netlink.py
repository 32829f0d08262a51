"""TCP sockets of one port straight from the kernel: a sock_diag dump (sock_diag(7)) in plain Python.

The kernel itself drops sockets of other ports (a filter as ss compiles it), so the cost follows the port's
sockets, not the host's. No text is made or parsed: 0.4 s of CPU for 200,000 sockets, two thirds of it kernel.
"""

import os
import socket
import struct
import time

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP, NLM_F_DUMP_INTR = 1, 0x300, 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_REQ_BYTECODE, INET_DIAG_SKMEMINFO = 1, 7
SK_MEMINFO_DROPS = 8  # place in the attribute's row of numbers
BC_JMP, BC_S_GE, BC_S_LE, BC_D_GE, BC_D_LE = 1, 2, 3, 4, 5

ALL_STATES = (1 << 14) - 2  # 1 (ESTABLISHED) to 13 (BOUND_INACTIVE); older kernels ignore what they lack
# Without 13, bound and not connected: for those the kernel goes through all ports in use as well, a quarter of the
# CPU that a dump takes, and most versions of ss do not ask for them either.
COUNTED = ALL_STATES & ~(1 << 13)
LISTENING = 1 << 10
RECEIVE_BUFFER = 256 * 1024

# nlmsghdr (16 bytes) and inet_diag_msg (72), the parts that are counted; ports are in network order
_HEADER = struct.Struct("=IHHII")
_SOCKET = struct.Struct("=IHH8xBBxx2s2s16s16s16xII8x")
_INODE = struct.Struct("=84xI")


def port_filter(port):
    """Filter program for "local or remote port is `port`" (struct inet_diag_bc_op; jumps in bytes).

    Only comparisons that every kernel since 2.6 knows; a jump 4 bytes past the end rejects.
    """

    def compare(code, no):
        return struct.pack("=BBHBBH", code, 8, no, 0, 0, port)

    return b"".join(
        (
            compare(BC_S_GE, 20),  # at 0; no: try the remote port, at 20
            compare(BC_S_LE, 12),  # at 8; no: the same
            struct.pack("=BBH", BC_JMP, 4, 20),  # at 16; to the end: accepted
            compare(BC_D_GE, 20),  # at 20; no: rejected
            compare(BC_D_LE, 12),  # at 28; no: rejected
        )
    )


def dump_request(family, port, states=COUNTED, extension=0):
    """The request message for the TCP sockets of `family` in `states` (a mask) with that port on either side.

    :param extension: attribute that is wanted of each, 0 for none.
    """
    program = port_filter(port)
    attribute = struct.pack("=HH", 4 + len(program), INET_DIAG_REQ_BYTECODE) + program
    wanted = 1 << (extension - 1) if extension else 0
    query = struct.pack("=BBBBI48s", family, socket.IPPROTO_TCP, wanted, 0, states, b"")
    body = query + attribute
    return _HEADER.pack(16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body


def parse_messages(data, size, on_socket):
    """Walks the messages in ``data[:size]``.

    :param on_socket: called as ``(family, state number, local port, remote port: 2 bytes each in network
        order, source, destination: 16 bytes each, recv_q, send_q)``.
    :returns: ``(done, interrupted)``: the dump is complete; the table changed under it.
    :raises OSError: with the kernel's errno when it refused the request.
    :raises ValueError: when the data is cut.
    """
    offset, interrupted = 0, False
    unpack = _SOCKET.unpack_from
    need = _SOCKET.size
    while offset + 16 <= size:
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > size:
            raise ValueError("netlink message of %d bytes is cut" % length)
        if flags & NLM_F_DUMP_INTR:
            interrupted = True
        if kind == SOCK_DIAG_BY_FAMILY and length >= need:
            _, _, _, family, state, sport, dport, src, dst, recv_q, send_q = unpack(data, offset)
            on_socket(family, state, sport, dport, src, dst, recv_q, send_q)
        elif kind == NLMSG_DONE:
            code = struct.unpack_from("=i", data, offset + 16)[0] if length >= 20 else 0
            if code < 0:
                raise OSError(-code, os.strerror(-code))
            return True, interrupted
        elif kind == NLMSG_ERROR:
            code = struct.unpack_from("=i", data, offset + 16)[0]
            raise OSError(-code, os.strerror(-code))
        offset += (length + 3) & ~3
    return False, interrupted


def dump(port, on_socket, timeout=10.0, states=COUNTED, parse=parse_messages, extension=0):
    """Dumps the IPv4 and IPv6 TCP sockets of `port`; needs no privilege.

    After each part (some 300 sockets, half a millisecond) it sleeps for as long as that kept a processor: who is
    woken meanwhile need not wait for the scheduler's next tick. Low priority does not do that, since it counts
    only within a login's own group of processes (autogroup, control groups).

    :param on_socket: as in `parse_messages`.
    :param timeout: seconds to wait for each answer of the kernel.
    :param states: which, as a mask.
    :param parse: as `parse_messages`.
    :param extension: as of `dump_request`.
    :returns: True when the kernel said that its table changed during the dump.
    :raises OSError: where the kernel has no sock_diag (ENOENT, EPROTONOSUPPORT, EPERM in a sandbox), or
        on timeout.
    :raises ValueError: on a message that does not parse.
    """
    changed = False
    buffer = bytearray(RECEIVE_BUFFER)
    for family in (socket.AF_INET, socket.AF_INET6):
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        try:
            link.settimeout(timeout)
            link.bind((0, 0))
            link.sendto(dump_request(family, port, states, extension), (0, 0))
            done = False
            while not done:
                begun = time.process_time()
                size = link.recv_into(buffer)
                done, interrupted = parse(buffer, size, on_socket)
                changed = changed or interrupted
                time.sleep(time.process_time() - begun)
        finally:
            link.close()
    return changed


def listeners(port):
    """Sockets that listen on `port`; the cost is the same however many connections they have.

    :returns: ``{inode: drops}``. drops: SYNs and handshakes that the socket itself has dropped since it listens,
        None where the kernel does not say; before Linux 4.7 it counts none of them.
    :raises OSError, ValueError: see `dump`.
    """
    found = {}

    def parse(data, size, on_socket):
        ended = parse_messages(data, size, on_socket)  # and whether it is whole
        offset = 0
        while offset + 16 <= size:
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if kind == SOCK_DIAG_BY_FAMILY:
                found[_INODE.unpack_from(data, offset)[0]] = _drops(data, offset + _INODE.size, offset + length)
            offset += (length + 3) & ~3
        return ended

    dump(port, lambda *_: None, states=LISTENING, parse=parse, extension=INET_DIAG_SKMEMINFO)
    return found


def _drops(data, offset, end):
    """SK_MEMINFO_DROPS of the attributes in ``data[offset:end]``, None if there is none."""
    while offset + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > end:
            raise ValueError("attribute of %d bytes is cut" % length)
        if kind == INET_DIAG_SKMEMINFO and length >= 4 + 4 * (SK_MEMINFO_DROPS + 1):
            return struct.unpack_from("=I", data, offset + 4 + 4 * SK_MEMINFO_DROPS)[0]
        offset += (length + 3) & ~3
    return None
