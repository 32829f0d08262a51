"""Sides of sockets whose two ports are equal, and the limit of remembered addresses."""

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
