"""TCP sockets of one port straight from the kernel: a sock_diag dump (sock_diag(7)) in plain Python.

The kernel itself drops sockets of other ports (a filter as ss compiles it), so the cost follows the port's
sockets, not the host's. No text is made or parsed, and messages of one length are handed over as a run, whose
fields a caller may take as columns.
"""

import os
import socket
import struct
import time

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP, NLM_F_DUMP_INTR = 1, 0x300, 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_REQ_BYTECODE = 1
BC_JMP, BC_S_GE, BC_S_LE, BC_D_GE, BC_D_LE = 1, 2, 3, 4, 5

ALL_STATES = (1 << 14) - 2  # 1 (ESTABLISHED) to 13 (BOUND_INACTIVE); older kernels ignore what they lack
LISTENING = 1 << 10
RECEIVE_BUFFER = 256 * 1024

# nlmsghdr (16 bytes) and inet_diag_msg (72), the parts that are counted; ports are in network order
_HEADER = struct.Struct("=IHHII")
_SOCKET = struct.Struct("=IHH8xBBxx2s2s16s16s16xII8x")
_INODE = struct.Struct("=84xI")
FAMILY, STATE, PORTS, DESTINATION = 16, 17, range(20, 24), range(40, 56)  # where these bytes are


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


def dump_request(family, port, states=ALL_STATES):
    """The request message for the TCP sockets of `family` in `states` (a mask) with that port on either side."""
    program = port_filter(port)
    attribute = struct.pack("=HH", 4 + len(program), INET_DIAG_REQ_BYTECODE) + program
    query = struct.pack("=BBBBI48s", family, socket.IPPROTO_TCP, 0, 0, states, b"")
    body = query + attribute
    return _HEADER.pack(16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body


def run_length(data, offset, size, stride):
    """How many messages from `offset` on have the first one's length, type and flags, and thus one layout."""
    count = max(1, (size - offset) // stride)
    for column in range(offset, offset + 8):
        values = data[column : offset + count * stride : stride]
        count = len(values) - len(values.lstrip(values[:1]))
    return count


def one_by_one(on_socket):
    """A function for the runs of `parse_messages`, from one for single sockets.

    :param on_socket: called as ``(family, state number, local port, remote port: 2 bytes each in network
        order, source, destination: 16 bytes each, recv_q, send_q)``.
    """
    unpack = _SOCKET.unpack_from

    def on_run(data, offset, stride, count):
        for place in range(offset, offset + stride * count, stride):
            on_socket(*unpack(data, place)[3:])

    return on_run


def parse_messages(data, size, on_run):
    """Walks the messages in ``data[:size]``.

    :param on_run: called as ``(data, offset, stride, count)`` with sockets whose messages follow each other at
        that distance in bytes; see `one_by_one`.
    :returns: ``(done, interrupted)``: the dump is complete; the table changed under it.
    :raises OSError: with the kernel's errno when it refused the request.
    :raises ValueError: when the data is cut.
    """
    offset, interrupted = 0, False
    need = _SOCKET.size
    while offset + 16 <= size:
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > size:
            raise ValueError("netlink message of %d bytes is cut" % length)
        if flags & NLM_F_DUMP_INTR:
            interrupted = True
        stride = (length + 3) & ~3
        if kind == SOCK_DIAG_BY_FAMILY and length >= need:
            count = run_length(data, offset, size, stride)
            on_run(data, offset, stride, count)
            offset += count * stride
            continue
        if kind == NLMSG_DONE:
            code = struct.unpack_from("=i", data, offset + 16)[0] if length >= 20 else 0
            if code < 0:
                raise OSError(-code, os.strerror(-code))
            return True, interrupted
        if kind == NLMSG_ERROR:
            code = struct.unpack_from("=i", data, offset + 16)[0]
            raise OSError(-code, os.strerror(-code))
        offset += stride
    return False, interrupted


def dump(port, on_run, timeout=10.0, states=ALL_STATES):
    """Dumps the IPv4 and IPv6 TCP sockets of `port`; needs no privilege.

    Between two parts (some 300 sockets, half a millisecond) it sleeps for as long as the part took: a server on a
    host whose processors are all busy with looking would wait for the scheduler's next tick at every echo.

    :param on_run: as in `parse_messages`.
    :param timeout: seconds to wait for each answer of the kernel.
    :param states: which, as a mask.
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
            link.sendto(dump_request(family, port, states), (0, 0))
            done = False
            while not done:
                began = time.monotonic()
                size = link.recv_into(buffer)
                done, interrupted = parse_messages(buffer, size, on_run)
                changed = changed or interrupted
                if not done:
                    time.sleep(time.monotonic() - began)
        finally:
            link.close()
    return changed


def listener_inodes(port):
    """Inodes of the sockets that listen on `port`; the cost is the same however many connections they have."""
    found = set()

    def on_run(data, offset, stride, count):
        found.update(_INODE.unpack_from(data, offset + stride * number)[0] for number in range(count))

    dump(port, on_run, states=LISTENING)
    return found
