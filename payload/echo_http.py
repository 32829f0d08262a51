"""Mode http: the same small answer to every request, with keep-alive and pipelining.

A load tool that speaks HTTP (ab, wrk, JMeter, webbench) can so be pointed at the server. A request's head is
parsed just enough to find where it ends, how long its body is and whether the connection goes on (RFC 9112);
bodies are skipped. `answers` is a pure function of the bytes that came; `http_turn` is its edge.
"""

import os
import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Callable, List, NamedTuple, Tuple

from echo_connection import CLOSE, LINGER, OPEN, Busy

if TYPE_CHECKING:
    from echo_connections import Connections

READ_SIZE = 4096  # bytes per read: bounds how many answers one read can ask for
MAX_HEAD = 8192  # bytes of a request's head
MAX_BODY_DIGITS = 15  # of Content-Length: below 2**53, so that it is exact everywhere
BODY = b"ok\n"
# A load tool sends the same bytes over and over: their answer is worked out once. 128 reads of READ_SIZE.
_REMEMBERED = 128

Answers = NamedTuple(
    "Answers",
    [("output", bytes), ("requests", int), ("rest", bytes), ("skip", int), ("ending", int), ("bad", bool)],
)
Answers.__doc__ = """What to do about some bytes of a connection.

output: to be written; requests: answered by it, without the bad one; rest: the beginning of a head whose end has
not come; skip: bytes of a body still to come; ending: OPEN, CLOSE or, where the peer may still be sending, LINGER;
bad: the last request was refused.
"""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEAD = re.compile(
    rb"(?P<method>" + _TOKEN + rb") [!-~\x80-\xff]+ HTTP/1\.(?P<minor>[01])\r\n"
    rb"(?P<fields>(?:" + _TOKEN + rb":[^\r\n\0]*\r\n)*)\r\n"
)
# What the beginning of a head can look like; anything else need not be waited for.
_BEGUN = re.compile(
    rb"(?:\r|" + _TOKEN + rb"(?: (?:[!-~\x80-\xff]+(?: (?:H(?:T(?:T(?:P(?:/(?:1(?:\.(?:[01](?:\r"
    rb"(?:\n(?:" + _TOKEN + rb":[^\r\n\0]*\r\n)*(?:\r|" + _TOKEN + rb"(?::[^\r\n\0]*\r?)?)?)?"
    rb")?)?)?)?)?)?)?)?)?)?)?)?)?\Z"
)
_FIELD = re.compile(rb"^(content-length|transfer-encoding|connection|expect):[ \t]*(.*?)[ \t]*\r$", re.I | re.M)
_CONTENT = b"Content-Type: text/plain\r\nContent-Length: %d\r\n" % len(BODY)


def _ok(connection: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + _CONTENT + connection + b"\r\n" + body


def _refusal(status: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status


def answers(data: bytes) -> Answers:
    """Return what to do about `data`, the bytes of a connection from the beginning of a request on.

    >>> answers(b"GET / HTTP/1.1\\r\\n\\r\\nGE")[1:]
    (1, b'GE', 0, 0, False)
    >>> answers(b"POST / HTTP/1.1\\r\\nContent-Length: 10\\r\\n\\r\\nabc")[1:]
    (1, b'', 7, 0, False)
    >>> answers(b"nonsense\\r\\n\\r\\n")[0][:24]
    b'HTTP/1.1 400 Bad Request'
    """
    output, requests, at, size = [], 0, 0, len(data)
    while at < size:
        if data.startswith(b"\r\n", at):  # an empty line before a request is to be ignored (RFC 9112, section 2.2)
            at += 2
            continue
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            if size - at > MAX_HEAD:
                return _end(output, requests, b"431 Request Header Fields Too Large")
            if not _BEGUN.match(data, at):
                return _end(output, requests, b"400 Bad Request")
            return Answers(b"".join(output), requests, data[at:], 0, OPEN, False)
        head = _HEAD.match(data, at, end + 4)
        if end - at > MAX_HEAD:
            return _end(output, requests, b"431 Request Header Fields Too Large")
        if head is None:
            return _end(output, requests, b"400 Bad Request")
        length, keep, status, expects = _fields(head)
        if status:
            return _end(output, requests, status)
        at = end + 4
        if expects and size - at < length:
            output.append(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection = b"" if keep and head.group("minor") == b"1" else b"Connection: keep-alive\r\n"
        if not keep:
            connection = b"Connection: close\r\n"
        output.append(_ok(connection, b"" if head.group("method") == b"HEAD" else BODY))
        requests += 1
        if not keep:
            return Answers(b"".join(output), requests, b"", 0, CLOSE if size - at >= length else LINGER, False)
        if size - at < length:
            return Answers(b"".join(output), requests, b"", length - (size - at), OPEN, False)
        at += length
    return Answers(b"".join(output), requests, b"", 0, OPEN, False)


def _end(output: List[bytes], requests: int, status: bytes) -> Answers:
    return Answers(b"".join(output) + _refusal(status), requests, b"", 0, LINGER, True)


def _fields(head: Any) -> Tuple[int, bool, bytes, bool]:
    """Return (bytes of the body, the connection goes on, status of a refusal or b"", 100-continue is awaited)."""
    length, lengths, expects = 0, set(), False
    options = set()  # type: Any
    fields = head.group("fields")
    for name, value in _FIELD.findall(fields) if fields else ():
        name = name.lower()
        if name == b"content-length":
            lengths.update(one.strip(b" \t") for one in value.split(b","))
        elif name == b"transfer-encoding":
            return 0, False, b"501 Not Implemented", False
        elif name == b"connection":
            options.update(one.strip() for one in value.lower().split(b","))
        else:
            expects = value.lower() == b"100-continue"
    if lengths:
        text = lengths.pop()
        # Two lengths that differ are how requests are smuggled past a proxy (RFC 9112, section 6.3).
        if lengths or not text.isdigit():
            return 0, False, b"400 Bad Request", False
        if len(text) > MAX_BODY_DIGITS:
            return 0, False, b"413 Content Too Large", False
        length = int(text)
    old = head.group("minor") == b"0"
    keep = b"keep-alive" in options if old else b"close" not in options
    return length, keep and b"close" not in options, b"", expects and not old


remembered_answers = lru_cache(_REMEMBERED)(answers)


def http_turn(connections: "Connections") -> Callable[[List[Tuple[int, int]]], None]:
    """Return the function that serves a list of (descriptor, events); see `echo_turn.echo_turn`.

    A request counts as an echo in the worker's counters.
    """
    read, write, slot = connections.read, os.write, connections.slot
    special, attend, close = connections.special, connections.attend, connections.close
    echo_cell, byte_cell = connections.columns["echoes"], connections.columns["bytes"]
    careful_read: Any = connections.careful_read

    def turn(events: List[Tuple[int, int]]) -> None:
        requests = total = 0
        take = careful_read if connections.is_tight() else read
        for fd, event in events:
            if fd in special:
                attend(fd, event)
                continue
            try:
                data = take(fd, READ_SIZE)
            except BlockingIOError:
                continue
            except OSError as e:
                close(fd, e)
                continue
            if not data:
                close(fd)
                continue
            output, count, rest, skip, ending, bad = remembered_answers(data)
            sent = 0
            if output:
                try:
                    sent = write(fd, output)
                except BlockingIOError:
                    pass
                except OSError as e:
                    close(fd, e)
                    continue
            requests += count
            total += len(output)
            if sent != len(output) or rest or skip or ending:
                settle(connections, fd, Busy(output[sent:], rest, skip, ending), bad)
                take = careful_read if connections.is_tight() else take
        if requests or total:
            echo_cell[slot] += requests
            byte_cell[slot] += total

    return turn


def settle(connections: "Connections", fd: int, busy: Busy, bad: bool) -> None:
    """A connection of which something is unsent, half received, or to end: keep what is to be kept."""
    if busy.rest and connections.is_tight():  # no memory for half a request
        busy.unsent += _refusal(b"503 Service Unavailable")
        busy.rest, busy.ending, bad = b"", LINGER, True
    if bad:
        connections.columns["bad_requests"][connections.slot] += 1
    if busy.unsent or busy.ending == OPEN:
        connections.keep(fd, busy)
    else:
        connections.end(fd, busy)


def http_go_on(connections: "Connections", fd: int, busy: Busy) -> None:
    """More has come on a connection with half a request, or with one whose body is still being skipped."""
    try:
        data = connections.read(fd, READ_SIZE)
    except BlockingIOError:
        return
    except OSError as e:
        connections.close(fd, e)
        return
    if not data:
        connections.close(fd)
        return
    begun = busy.since if busy.rest else time.monotonic()
    if busy.skip:
        skipped = min(busy.skip, len(data))
        busy.skip -= skipped
        busy.since = begun
        data = data[skipped:]
        if not data and busy.skip:
            return
    found = answers(busy.rest + data)
    sent = 0
    if found.output:
        try:
            sent = os.write(fd, found.output)
        except BlockingIOError:
            pass
        except OSError as e:
            connections.close(fd, e)
            return
    connections.columns["echoes"][connections.slot] += found.requests
    connections.columns["bytes"][connections.slot] += len(found.output)
    connections.forget(fd)
    if sent != len(found.output) or found.rest or found.skip or found.ending:
        after = Busy(found.output[sent:], found.rest, found.skip, found.ending)
        if not found.requests:
            after.since = begun  # a head that trickles in must still be complete in time
        settle(connections, fd, after, found.bad)
