"""Before the load: does the server keep connections apart when several messages arrive at once?

In: the target, a few source addresses and ports, the message. Out: a `Finding`. A server with one buffer for all
connections answers one message at a time correctly and mixes up two that arrive together; it is then loaded with
one connection on its way at a time, and the result says so. All others get as many as the delay allows.

A few connections are made, each sends a message at the same moment as the others, ROUNDS times; they are closed by
RST before the load begins. Silence, refusals and errors are no finding: the load itself will count them.
"""

import errno
import select
import socket
import struct
import time
from typing import Callable, List, NamedTuple, Sequence, Tuple

CONNECTIONS = 8  # together still below any backlog
FROM = 100 * CONNECTIONS  # in a run smaller than that, the probe would be more than a hundredth of the load
ROUNDS = 60  # a fast server is caught in one of three: it may have answered one message before the next is sent
FAR_ROUNDS, FAR_SECONDS = 3, 0.2  # over a long path there are fewer, but messages arrive closer together
SECONDS = 1.0  # for all; a server that answers later than that is not found out

Finding = NamedTuple("Finding", [("mixed", bool), ("sample", str)])
Finding.__doc__ = """mixed: a connection received bytes of another one's message; sample: which and what, or ""."""

APART = Finding(False, "")
_RST = struct.pack("ii", 1, 0)


def probe(
    family: int, target: tuple, sources: Sequence[Tuple[str, int]], render: Callable[[int, int], bytes], first: int
) -> Finding:
    """Look how the server at `target` treats messages that arrive at once; takes at most SECONDS.

    :param sources: (address, port) for each connection; one that cannot be had is left out.
    :param render: (conn, seq) -> message; connections are numbered from `first`.
    """
    deadline = time.monotonic() + SECONDS
    links = []  # type: List[socket.socket]
    try:
        for source in sources:
            link = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            links.append(link)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            try:
                link.bind(source)
                refused = link.connect_ex(target) not in (0, errno.EINPROGRESS)
            except OSError:
                refused = True
            if refused:
                links.pop().close()
        if not _connect(links, deadline):
            return APART
        enough = time.monotonic() + FAR_SECONDS
        for number in range(ROUNDS):
            if number >= FAR_ROUNDS and time.monotonic() > enough:
                break
            sent = [render(first + index, number) for index in range(len(links))]
            received, whole = _exchange(links, sent, deadline)
            found = _mixed(sent, received, first)
            if found.mixed or not whole:
                return found
        return APART
    except OSError:
        return APART
    finally:
        for link in links:
            link.close()


def _connect(links: List[socket.socket], deadline: float) -> bool:
    """Wait until all are connected (failed ones raise OSError later); False when fewer than two are, or time is
    up."""
    waiting = list(links)
    while waiting:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        ready = _wait(waiting, select.POLLOUT, left)
        waiting = [link for link in waiting if link not in ready]
    return len(links) > 1


def _exchange(links: List[socket.socket], sent: List[bytes], deadline: float) -> Tuple[List[bytes], bool]:
    """Send all messages at once; what came back until each reply is as long as its message or one cannot be
    right any more, and whether all were."""
    for link, data in zip(links, sent):  # noqa: B905 - Python 3.6
        if link.send(data) != len(data):
            return [b""] * len(sent), False
    received = [b""] * len(sent)
    while True:
        waiting = [link for i, link in enumerate(links) if len(received[i]) < len(sent[i])]
        left = deadline - time.monotonic()
        wrong = any(not data.startswith(got) for data, got in zip(sent, received))  # noqa: B905
        if not waiting or wrong or left <= 0:
            return received, not waiting and not wrong
        for link in _wait(waiting, select.POLLIN, left):
            index = links.index(link)
            data = link.recv(len(sent[index]) - len(received[index]))
            if not data:
                return received, False
            received[index] += data


def _mixed(sent: List[bytes], received: List[bytes], first: int) -> Finding:
    """Whether a reply is (the beginning of) another connection's message and not of its own."""
    for index, got in enumerate(received):
        if not sent[index].startswith(got):
            for other, data in enumerate(sent):
                if data.startswith(got):
                    text = "connection {} received {!r}, which connection {} sent"
                    return Finding(True, text.format(first + index, got[:120], first + other))
    return APART


def _wait(links: List[socket.socket], event: int, seconds: float) -> List[socket.socket]:
    poll = select.poll()
    for link in links:
        poll.register(link, event)
    ready = {fd for fd, _ in poll.poll(max(1, seconds * 1000))}
    return [link for link in links if link.fileno() in ready]
