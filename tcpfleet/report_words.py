"""What the report says about TCP states and kernel counters: tables of words, no logic.

Sources: RFC 9293 section 3.3.2 for the states; the kernel's Documentation/networking/snmp_counter.rst and
net/ipv4/proc.c for the counters.
"""

from __future__ import annotations

from typing import NamedTuple


class StateWords(NamedTuple):
    """One TCP state: what it means, and what a high count tells."""

    meaning: str
    high: str


STATES: dict[str, StateWords] = {
    "LISTEN": StateWords(
        "Waits for connection requests.",
        "One per listener: a prefork server with SO_REUSEPORT has one per worker.",
    ),
    "SYN-SENT": StateWords(
        "The client has sent a connection request and waits for the answer.",
        "Client side: the server does not answer SYNs. Full SYN or accept queue, firewall, or a wrong address.",
    ),
    "SYN-RECV": StateWords(
        "A request has arrived and was answered; the last step of the handshake is missing.",
        "Server side: the accept queue is full, ACKs get lost, or a SYN flood; "
        "see tcp_max_syn_backlog and somaxconn.",
    ),
    "ESTAB": StateWords(
        "Open: data can flow both ways.",
        "The goal. Server side far above the connections the server counts: the rest waits in the accept queue.",
    ),
    "FIN-WAIT-1": StateWords(
        "This side closed; its FIN is not yet acknowledged.",
        "The peer is gone or its packets are lost; bounded by tcp_orphan_retries and tcp_max_orphans.",
    ),
    "FIN-WAIT-2": StateWords(
        "This side closed and the peer knows; the peer has not closed yet.",
        "The peer's program does not close its descriptors; see CLOSE-WAIT there. "
        "Orphans end after tcp_fin_timeout.",
    ),
    "CLOSE-WAIT": StateWords(
        "The peer closed; the program here has not closed its descriptor yet.",
        "The program here leaks descriptors or is too busy to see the end of connections.",
    ),
    "CLOSING": StateWords(
        "Both sides closed at the same time; the last acknowledgement is missing.",
        "Rare and short. Many: both ends close at once, or packets are lost.",
    ),
    "LAST-ACK": StateWords(
        "Closed here after the peer; waits for the acknowledgement of its FIN.",
        "Lost packets, or a peer that vanished.",
    ),
    "TIME-WAIT": StateWords(
        "This side closed first; the address pair rests for 60 s so that late packets do no harm.",
        "Normal after a run. On a client it holds source ports: use more source addresses, or tcp_tw_reuse.",
    ),
    "CLOSED": StateWords(
        "No connection.",
        "The kernel keeps no table of these: nearly always 0.",
    ),
}


class CounterWords(NamedTuple):
    """One kernel counter: what an increase means; trouble says whether it tells of a wall."""

    meaning: str
    trouble: bool = True


COUNTERS: dict[str, CounterWords] = {
    "ListenOverflows": CounterWords("accept queue full: connections dropped (backlog, net.core.somaxconn)"),
    "ListenDrops": CounterWords("connection requests dropped by a listener for any reason"),
    "TCPReqQFullDrop": CounterWords("SYN queue full: request dropped (net.ipv4.tcp_max_syn_backlog)"),
    "TCPReqQFullDoCookies": CounterWords("SYN queue full: answered with a SYN cookie"),
    "SyncookiesSent": CounterWords("SYN cookies sent: the SYN queue was full"),
    "SyncookiesRecv": CounterWords("connections completed by a SYN cookie"),
    "SyncookiesFailed": CounterWords("SYN cookies that came back invalid"),
    "TCPTimeWaitOverflow": CounterWords("TIME-WAIT table full (net.ipv4.tcp_max_tw_buckets)"),
    "TCPAbortOnMemory": CounterWords(
        "connections cut for lack of memory or too many orphans (tcp_mem, tcp_max_orphans)"
    ),
    "TCPAbortOnTimeout": CounterWords("connections given up after retransmissions"),
    "TCPAbortOnData": CounterWords(
        "connections closed by a reset: by choice (as the load client does), or data after close",
        False,
    ),
    "TCPAbortOnClose": CounterWords("connections reset because the program closed with data unread"),
    "TCPAbortOnLinger": CounterWords("connections reset in FIN-WAIT-2 (linger)"),
    "TCPAbortFailed": CounterWords("resets that could not be sent"),
    "TCPMemoryPressures": CounterWords("times TCP entered memory pressure (net.ipv4.tcp_mem)"),
    "TCPMemoryPressuresChrono": CounterWords("milliseconds TCP spent in memory pressure"),
    "TCPBacklogDrop": CounterWords("packets dropped: a socket's backlog was full"),
    "TCPRcvQDrop": CounterWords("packets dropped: a socket's receive queue was full"),
    "TCPZeroWindowDrop": CounterWords("packets dropped: no receive window"),
    "PruneCalled": CounterWords("receive queues compacted for lack of buffer (tcp_rmem)"),
    "RcvPruned": CounterWords("packets dropped from a receive queue for lack of buffer"),
    "OfoPruned": CounterWords("out-of-order packets dropped for lack of buffer"),
    "TCPSynRetrans": CounterWords("SYNs sent again: the first was not answered within 1 s"),
    "TCPTimeouts": CounterWords("retransmission timers that fired"),
    "RetransSegs": CounterWords("segments sent again"),
    "AttemptFails": CounterWords("connection attempts that failed"),
    "EstabResets": CounterWords("connections that ended by a reset; the load client closes so", False),
    "InErrs": CounterWords("bad segments received"),
    "PAWSEstab": CounterWords("packets dropped: old timestamp"),
    "TCPDeferAcceptDrop": CounterWords("handshakes dropped by TCP_DEFER_ACCEPT"),
    "dropped": CounterWords("packets dropped: a CPU's input queue was full (net.core.netdev_max_backlog)"),
    "time_squeeze": CounterWords("times a CPU ran out of its packet budget (net.core.netdev_budget)"),
    "OutRsts": CounterWords("resets sent", False),
    "ActiveOpens": CounterWords("connections begun from here", False),
    "PassiveOpens": CounterWords("connections accepted here", False),
    "InSegs": CounterWords("segments received", False),
    "OutSegs": CounterWords("segments sent", False),
    "TW": CounterWords("connections that went through TIME-WAIT", False),
    "processed": CounterWords("packets processed by the CPUs' input queues", False),
}

# Values in the same files that go up and down: a difference of them is not a count of events.
GAUGES = frozenset({"CurrEstab", "Forwarding", "DefaultTTL", "RtoAlgorithm", "RtoMin", "RtoMax", "MaxConn"})
