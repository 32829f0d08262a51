"""Sides of sockets whose two ports are equal, and the limit of remembered addresses."""

import socket
import struct

import observe_netlink
import observe_sockets
import pytest
from observe_sockets import Tally

LISTEN = ("LISTEN", 0, 128, "0.0.0.0", 1883, "0.0.0.0", 0)
FORTH = ("ESTAB", 0, 0, "10.0.0.1", 1883, "10.0.0.2", 1883)
BACK = ("ESTAB", 0, 0, "10.0.0.2", 1883, "10.0.0.1", 1883)
OTHER = ("ESTAB", 0, 0, "10.0.0.1", 1884, "10.0.0.2", 40000)


@pytest.mark.parametrize(
    ("sockets", "server", "client"),
    [
        ([FORTH], 0, 1),  # a client host: nothing listens
        ([LISTEN, FORTH], 1, 0),  # a server host, the client is elsewhere
        ([LISTEN, FORTH, BACK], 1, 1),  # both ends on one host
        ([BACK, OTHER, LISTEN, FORTH], 1, 1),
        ([LISTEN, OTHER], 0, 0),
    ],
)
def test_port_at_both_ends(sockets, server, client):
    tally = Tally(1883)
    for one in sockets:
        tally.add(*one)
    states, listeners = tally.result(str, backlog_known=True)
    assert (states["server"]["ESTAB"], states["client"]["ESTAB"]) == (server, client)
    assert len(listeners) == sockets.count(LISTEN)


def test_addresses_beyond_the_limit_are_summed(monkeypatch):
    monkeypatch.setattr(observe_sockets, "MAX_PEERS", 30)
    tally = Tally(1883)
    for number in range(50):
        for port in range(40000, 40000 + number + 1):
            tally.add("ESTAB", 0, 0, "10.0.0.1", 1883, f"10.1.0.{number}", port)
    peers = tally.result(str, backlog_known=True)[0]["peers"]["server"]
    assert peers["addresses"] == 30 and peers["addresses_limit_reached"]
    assert len(peers["top"]) == observe_sockets.TOP_PEERS
    assert sum(one["sockets"] for one in peers["top"]) + peers["other_sockets"] == 50 * 51 // 2


def message(state, local, lport, remote, rport, length=96, queued=0):
    """A socket as a dump has it (struct nlmsghdr, struct inet_diag_msg)."""
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    source, destination = (socket.inet_pton(family, one).ljust(16, b"\0") for one in (local, remote))
    head = struct.pack(
        "=IHHIIBBxxHH", length, 20, 2, 1, 0, family, state, socket.htons(lport), socket.htons(rport)
    )
    return (head + source + destination + struct.pack("=16xIIII", queued, 9, 0, 7)).ljust(length, b"\0")


ESTAB, TIME_WAIT, LISTENING, NEWER = 1, 6, 10, 14
PARTS = [  # of a dump of port 1883 = 0x075B; ports with one of its two bytes are not it
    [(LISTENING, "0.0.0.0", 1883, "0.0.0.0", 0), (LISTENING, "::", 1883, "::", 0)],
    [(ESTAB, "10.0.0.1", 1883, f"10.0.{n % 3}.2", 0x0700 + n) for n in range(300)],
    [(ESTAB, f"10.0.0.{n % 2 + 1}", 0x5B + 256 * n, "10.0.0.3", 1883) for n in range(4, 200)],
    [(ESTAB, "10.0.0.1", 1883, "10.0.0.9", 40000), (TIME_WAIT, "10.0.0.1", 1883, "10.0.0.9", 40001, 88)] * 3,
    [(ESTAB, "10.0.0.1", 1883, "10.0.0.9", n) for n in (40002, 1883, 40003)],  # the one with two ports alike
    [(ESTAB, "::1", 1883, "fe80::1:2", 50000 + n) for n in range(9)] + [(NEWER, "::1", 50000, "::2", 1883)],
    [(ESTAB, "10.0.0.1", 1884, "10.0.0.2", 0x5B07)],
]


def test_sockets_counted_in_runs_are_those_counted_one_by_one(monkeypatch):
    one_by_one = Tally(1883)

    def dump(port, on_run, timeout):
        for part in PARTS:
            data = bytearray(b"".join(message(*one) for one in part))
            observe_netlink.parse_messages(data, len(data), on_run)
        return False

    for state, local, lport, remote, rport, *_ in (one for part in PARTS for one in part):
        name = observe_sockets.STATE_OF_NUMBER.get(state, "CLOSED")
        packed = [
            socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text) for text in (local, remote)
        ]
        one_by_one.add(name, 0, 9, packed[0], lport, packed[1], rport)
    in_runs = Tally(1883)
    monkeypatch.setattr(observe_netlink, "dump", dump)
    observe_sockets.from_netlink(1883, in_runs, 1.0)
    expected = one_by_one.result(observe_sockets.address_text, backlog_known=True)
    assert in_runs.result(observe_sockets.address_text, backlog_known=True) == expected
    assert expected[0]["server"]["ESTAB"] == 300 + 3 + 2 + 9 + 2 and expected[0]["server"]["TIME-WAIT"] == 3
