"""TCP states of one port, counted where the sockets are: in comes a port, out come a few numbers.

Three sources, tried in order of cost: netlink (`observe_netlink`), ``ss -tan`` read line by line, and
/proc/net/tcp{,6} read line by line. Memory stays the same for ten sockets or a million (but for the last source,
see `MAX_SEEN`). The answer says which source was used and why the ones before it were not.
"""

import os
import socket
import struct
import sys
import time

import observe_netlink
from observe_parse import (
    STATE_OF_NUMBER,
    STATES,
    hex_address,
    parse_proc_tcp,
    parse_ss_socket,
)
from observe_read import stream_command, unavailable

SOURCES = ("netlink", "ss", "proc")
MAX_PEERS = 4096  # addresses remembered; the sockets of further ones are counted as "other"
TOP_PEERS = 20  # addresses reported
MAX_SEEN = 1000000  # sockets told apart in /proc/net/tcp, about 60 bytes each
MAX_LISTENERS = 1024  # a prefork server with SO_REUSEPORT has one per worker


class Tally(object):
    """Sums sockets of one port: states by side, listeners, sockets per peer address.

    A socket whose local port is the port counts as server side, else, with the port at the far end, as client
    side; on loopback both ends of a connection are sockets of this host and each is counted on its side. When
    both ports are the port (a client that plans its source ports may get there) see `settle`.

    :param port: the port, 1 to 65535.
    """

    def __init__(self, port):
        self.port = port
        self.server = dict.fromkeys(STATES, 0)
        self.client = dict.fromkeys(STATES, 0)
        self.twins = []
        self.listeners = []
        self.more_listeners = 0
        self.peers = {"server": {}, "client": {}}
        self.other_peers = {"server": 0, "client": 0}

    def add(self, state, recv_q, send_q, local, lport, remote, rport):
        """Counts one socket; addresses are any hashable, turned to text only when reported."""
        if lport == rport:
            if lport == self.port:
                self.twins.append((state, local, remote))
        elif lport == self.port:
            self.server[state] += 1
            if state == "LISTEN":
                if len(self.listeners) < MAX_LISTENERS:
                    self.listeners.append((local, recv_q, send_q))
                else:
                    self.more_listeners += 1
            else:
                self.add_peer("server", remote)
        elif rport == self.port:
            self.client[state] += 1
            self.add_peer("client", remote)

    def settle(self):
        """Assigns the sockets with the port at both ends, at most one per pair of addresses.

        Without a listener here they are clients. With one they are the server's, except that of two that are
        each other's ends one is the client.
        """
        ends = {}
        for state, local, remote in self.twins:
            mirrored = ends.pop((remote, local), 0)
            ends[(local, remote)] = 1
            side = "client" if mirrored or not self.listeners else "server"
            getattr(self, side)[state] += 1
            self.add_peer(side, remote)
        self.twins = []

    def add_peer(self, side, remote):
        """Counts one socket of that side for the address at its far end."""
        peers = self.peers[side]
        if remote in peers:
            peers[remote] += 1
        elif len(peers) < MAX_PEERS:
            peers[remote] = 1
        else:
            self.other_peers[side] += 1

    def peers_result(self, side, address_text):
        """The addresses with most sockets, and how many sockets the others have."""
        ranked = sorted(self.peers[side].items(), key=lambda item: -item[1])
        return {
            "addresses": len(ranked),
            "addresses_limit_reached": self.other_peers[side] > 0,
            "top": [{"address": address_text(key), "sockets": count} for key, count in ranked[:TOP_PEERS]],
            "other_sockets": sum(count for _, count in ranked[TOP_PEERS:]) + self.other_peers[side],
        }

    def result(self, address_text, backlog_known):
        """``(states, listeners)`` as plain data; see `count_sockets`."""
        self.settle()
        states = {
            "server": self.server,
            "client": self.client,
            "sockets": sum(self.server.values()) + sum(self.client.values()),
            "peers": {side: self.peers_result(side, address_text) for side in ("server", "client")},
        }
        listeners = [
            {
                "address": address_text(local),
                "port": self.port,
                "accept_queue": recv_q,
                "backlog": send_q if backlog_known else unavailable("not in /proc/net/tcp"),
            }
            for local, recv_q, send_q in self.listeners
        ]
        return states, listeners


def address_text(raw):
    """Text of a packed IPv4 or IPv6 address; text passes unchanged. IPv4-mapped IPv6 keeps its form."""
    if isinstance(raw, str):
        return raw
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def from_netlink(port, tally, timeout, stopping=None):
    """Fills `tally` from a sock_diag dump.

    :returns: True when the kernel said that the table changed meanwhile.
    :raises OSError, ValueError: see `observe_netlink.dump`.
    """
    wanted = struct.pack("!H", port)
    ipv4 = socket.AF_INET
    names = STATE_OF_NUMBER
    server, client, add_peer = tally.server, tally.client, tally.add_peer
    server_peers, client_peers = tally.peers["server"], tally.peers["client"]

    def on_socket(family, state, sport, dport, src, dst, recv_q, send_q):
        # The hot path: Tally.add without its calls, worth 40 % at 200,000 sockets.
        name = names.get(state, "CLOSED")
        remote = dst[:4] if family == ipv4 else dst
        if sport == wanted:
            if name == "LISTEN" or dport == wanted:
                far = port if dport == wanted else 0
                tally.add(name, recv_q, send_q, src[:4] if family == ipv4 else src, port, remote, far)
                return
            server[name] += 1
            if remote in server_peers:
                server_peers[remote] += 1
            else:
                add_peer("server", remote)
        elif dport == wanted:
            client[name] += 1
            if remote in client_peers:
                client_peers[remote] += 1
            else:
                add_peer("client", remote)

    return observe_netlink.dump(port, on_socket, timeout)


def from_ss(port, tally, timeout, stopping=None):
    """Fills `tally` from ``ss -tan``, whose own filter drops other ports.

    :raises OSError: when ss is missing.
    :raises RuntimeError: when it failed or was cut by the time limit: counts would be wrong.
    """

    def on_line(line):
        found = parse_ss_socket(line.decode("ascii", "replace"))
        if found:
            tally.add(*found)

    argv = ["ss", "-tan", "( sport = :%d or dport = :%d )" % (port, port)]
    outcome = stream_command(argv, on_line, timeout, stopping=stopping)
    if outcome["status"] != 0:
        raise RuntimeError("ss: %s" % (outcome["truncated"] or outcome["stderr"] or "exit %s" % outcome["status"]))
    return False


def from_proc(port, tally, timeout, stopping=None):
    """Fills `tally` from /proc/net/tcp and tcp6.

    :raises OSError: when /proc/net/tcp cannot be read.
    :raises RuntimeError: at the time limit.
    """
    deadline = time.monotonic() + timeout
    little = sys.byteorder == "little"
    suffix = ":%04X" % port
    # The kernel finds its place in the table again for every 4 KiB it hands out, and while connections come and
    # go it repeats some: 15,253 lines were seen for 15,000 sockets.
    seen = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        if path.endswith("6") and not os.path.exists(path):
            continue  # IPv6 is off
        with open(path) as source:
            for number, line in enumerate(source):
                if number % 4096 == 0 and time.monotonic() > deadline:
                    raise RuntimeError("%s: time limit of %g s" % (path, timeout))
                found = parse_proc_tcp(line) if suffix in line else None
                if found:
                    fields = line.split()
                    key = hash((fields[1], fields[2], fields[9]))  # addresses and inode
                    if key in seen:
                        continue
                    if len(seen) < MAX_SEEN:
                        seen.add(key)
                    state, recv_q, send_q, local, lport, remote, rport = found
                    local, remote = hex_address(local, little), hex_address(remote, little)
                    tally.add(state, recv_q, send_q, local, lport, remote, rport)
    return False


_READERS = {"netlink": from_netlink, "ss": from_ss, "proc": from_proc}


def count_sockets(port, sources=SOURCES, timeout=20.0, stopping=None):
    """State counts and listeners of one port.

    :param port: 1 to 65535.
    :param sources: which of `SOURCES` to try, in this order.
    :param timeout: seconds per source.
    :returns: ``(states, listeners)``. states: ``{"source", "not_used": [{"source", "reason"}], "seconds",
        "changed_meanwhile", "server": {11 states: n}, "client": {...}, "sockets", "peers":
        {side: {"addresses", "addresses_limit_reached", "top": [{"address", "sockets"}], "other_sockets"}},
        "listeners_not_shown"}``. listeners: ``[{"address", "port", "accept_queue", "backlog"}]``,
        in connections. Both are ``{"unavailable": ...}`` when no source works.
    """
    failed = []
    for source in sources:
        tally = Tally(port)
        began = time.monotonic()
        try:
            changed = _READERS[source](port, tally, timeout, stopping)
        except (OSError, ValueError, RuntimeError) as problem:
            failed.append({"source": source, "reason": unavailable(problem)["unavailable"]})
            continue
        states, listeners = tally.result(address_text, backlog_known=source != "proc")
        states.update(
            source=source,
            not_used=failed,
            seconds=round(time.monotonic() - began, 4),
            changed_meanwhile=changed,
            listeners_not_shown=tally.more_listeners,
        )
        return states, listeners
    reason = "; ".join("%s: %s" % (one["source"], one["reason"]) for one in failed) or "no source asked for"
    return unavailable(reason), unavailable(reason)
