"""One worker process of the stress client: connects, sends, verifies, records.

In: its `WorkerShare`, the `Settings`, a slab of shared memory, and the read end of a pipe on which the supervisor
sends one letter per command. Out: the slab. The pipe's end of file means that the supervisor is gone: the
worker closes its connections and ends.

Connections are raw descriptors; what is known of them sits in arrays indexed by the descriptor (about 50 bytes
each), so no Python object exists per idle connection. A connection is `established` only when its first echo was
verified: with a full accept queue the kernel tells a client that it is connected when it is not.
"""

import _socket
import errno
import os
import select
import socket
import struct
import time
from array import array
from time import monotonic
from typing import Callable, NamedTuple, Optional

import stress_slab as slabs
from histogram import SUB_BITS, Histogram
from stress_modes import MODES
from stress_pace import TokenBucket, Window
from stress_plan import WorkerShare, each_port
from stress_slab import (
    BROKEN,
    CPU_US,
    DRAINED,
    DROPS,
    ECHOED,
    ESTABLISHED,
    FAILED,
    FIRST_US,
    LAG_US,
    LAST_US,
    LOST,
    MISMATCHED,
    OPEN,
    SENT,
    SKIPPED,
    STARTED,
    STATE,
    WINDOW,
    Slab,
)

GO, HOLD, CLOSE, STOP, NOW = b"G", b"H", b"C", b"S", b"X"
"""Commands: begin connecting; the steady phase begins; end it, waiting for replies on their way; the same within
STOP_SECONDS and start nothing more; end at once."""

STOP_SECONDS = 2.0
CONNECTS_A_TURN = 16
EVENTS_A_TURN = 256
SWEEP_SECONDS = 0.05  # between two parts of a sweep; the whole table takes SWEEP_PARTS of them
SWEEP_PARTS = 10
PUBLISH_SECONDS = 0.02
PUBLISH_ALL_SECONDS = 0.25
RETRANSMIT_SECONDS = 0.9
RST = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST and leaves no TIME_WAIT

Settings = NamedTuple(
    "Settings",
    [
        ("family", int),
        ("target", tuple),
        ("mode", str),
        ("render", Callable[[int, int], bytes]),
        ("longest", int),
        ("expect", str),
        ("interval", float),
        ("connect_timeout", float),
        ("reply_timeout", float),
        ("rate", Optional[float]),
        ("in_flight", Optional[int]),
        ("close", str),
        ("first_conn", int),
        ("connections", int),
        ("workers", int),
        ("at_once", int),
    ],
)
Settings.__doc__ = """What all workers of a client share.

target: a socket address; render(conn, seq) -> message; longest: bytes of it at most; expect: "echo" or "any";
interval and timeouts in seconds; rate: connects/s of the whole client or None; in_flight: connections of the whole
client between connect and first verified echo, None to follow the delay; close: "rst" or "fin";
first_conn: number of the client's first connection in messages; connections, workers: of the whole client;
at_once: how many workers connect at the same time.
"""


class Worker:
    """The tables and the loop. Fields without underscore are what modes use."""

    # Values of `state`. Above IDLE: a reply is awaited.
    CLOSED, CONNECTING, IDLE, FIRST, AWAITING = range(5)

    def __init__(self, share: WorkerShare, settings: Settings, slab: Slab, pipe: int) -> None:
        self.share, self.settings, self.slab, self.pipe = share, settings, slab, pipe
        self.mode = MODES[settings.mode]
        self.clock = monotonic
        self.interval = settings.interval
        size = share.connections + 128
        self.state = array("b", bytes(size))
        self.conn = array("q", bytes(8 * size))
        self.seq = array("L", bytes(array("L").itemsize * size))
        self.started_at = array("d", bytes(8 * size))
        self.sent_at = array("d", bytes(8 * size))
        self.intended = array("d", bytes(8 * size))
        self.awaited = [None] * size  # type: List[Optional[bytes]]  # the reply that is to come, only until it is here
        self.fd_of = array("i", [-1]) * share.connections
        self.counters = [0] * len(slabs.COUNTERS)
        self.histograms = [Histogram() for _ in slabs.HISTOGRAMS]
        self.errors = {}  # type: slabs.Errors
        self.partial = {}  # type: Dict[int, int]  # fd -> bytes of the reply verified so far
        self.unsent = {}  # type: Dict[int, bytes]  # fd -> rest of a message the socket did not take
        self.steady = False
        self.in_flight = 0
        self.stalled = set()  # type: Set[int]  # of those, what waits so long that it no longer fills the window
        self.last_good = self.last_timeout = 0.0
        self.window = Window(settings.in_flight, settings.at_once)
        self.bucket = None  # type: Optional[TokenBucket]
        self.ports = each_port(share.blocks)
        self.epoll = select.epoll()
        self._ramping = False
        self._closing = False
        self._deadline = 0.0
        self._sweep_at = 0
        self._next_sweep = self._next_publish = self._next_publish_all = 0.0
        self._errors_changed = False

    # -- the loop ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Wait for GO, then work until told to end; leaves the final state in the slab."""
        self.slab.write_counters(self.counters)
        if os.read(self.pipe, 1) != GO:
            self._end()
            return
        self._begin(monotonic())
        try:
            self._loop()
        finally:
            self._end()

    def _begin(self, now: float) -> None:
        settings, share = self.settings, self.share
        self.epoll.register(self.pipe, select.EPOLLIN)
        self._ramping = True
        self.last_good = now
        self.counters[STATE] = slabs.RAMPING
        if settings.rate:
            rate = settings.rate * share.connections / settings.connections
            self.bucket = TokenBucket(rate, now + share.index / settings.rate)
        if self.mode.tick:
            self.beat_step = settings.interval / share.connections
            # On a clock that all workers share, so that their beats interleave whenever each began.
            base = now - now % settings.interval
            self.beat_base = self.beat_time = base + self.beat_step * share.index / settings.workers
            self.beat_number = 0

    def _loop(self) -> None:
        # Everything is local and inline: this runs 100,000 times a second.
        poll, read, write, now_of = self.epoll.poll, os.read, os.write, monotonic
        render = self.settings.render
        service_max = 0
        state, conn, seq, awaited = self.state, self.conn, self.seq, self.awaited
        sent_at, intended = self.sent_at, self.intended
        counters = self.counters
        _, first, service, response = self.histograms
        first_counts, service_counts = first.counts, service.counts
        idle, awaiting, plain_read = self.IDLE, self.AWAITING, select.EPOLLIN
        sub_bits, bucket_bits = SUB_BITS, SUB_BITS + 1
        size = self.settings.longest + 1  # one more, to see a reply that is too long
        partial = self.partial
        mode = self.mode
        replied, tick, again = mode.replied, mode.tick, False
        exact = self.bucket is not None or tick is not None
        now = now_of()
        while True:
            timeout = self._turn(now)
            if tick is not None and not self._closing:
                timeout = min(timeout, tick(self, now) - now)
            if timeout <= 0:
                events = poll(0, EVENTS_A_TURN)
            elif exact:
                # epoll counts in milliseconds; select sleeps to the microsecond, so that beats are on time.
                select.select((self.epoll,), (), (), timeout)
                events = poll(0, EVENTS_A_TURN)
            else:
                events = poll(timeout, EVENTS_A_TURN)
            woke = now_of()
            echoed = messages = 0
            for fd, event in events:
                if event == plain_read and state[fd] > idle:
                    try:
                        data = read(fd, size)
                    except BlockingIOError:
                        continue
                    except OSError as e:
                        self._fail_with(fd, e)
                        continue
                    now = now_of()
                    if (data != awaited[fd] or partial) and not self._received(fd, data):
                        continue
                elif fd == self.pipe:
                    if self._command():
                        counters[ECHOED] += echoed
                        counters[SENT] += messages
                        return
                    replied = None if self._closing else mode.replied
                    again = mode.again and self.steady and not self._closing
                    continue
                else:
                    if not self._unusual(fd, event):
                        continue
                    now = now_of()
                # A whole reply, verified. The buckets are Histogram.record's, inline.
                echoed += 1
                us = int((now - sent_at[fd]) * 1000000)
                shift = us.bit_length() - bucket_bits
                bucket = us if shift <= 0 else (shift << sub_bits) + (us >> shift)
                if again and state[fd] == awaiting:
                    service_counts[bucket] += 1
                    if us > service_max:
                        service_max = us
                    number = seq[fd] + 1
                    data = render(conn[fd], number)
                    try:
                        count = write(fd, data)
                    except BlockingIOError:
                        count = 0
                    except OSError as e:
                        state[fd] = idle
                        self._fail_with(fd, e)
                        continue
                    seq[fd] = number
                    awaited[fd] = data
                    sent_at[fd] = now
                    messages += 1
                    if count != len(data):
                        self._keep(fd, data[count:])
                    continue
                awaited[fd] = None
                if state[fd] != awaiting:
                    state[fd] = idle
                    first_counts[bucket] += 1
                    if us > first.max:
                        first.max = us
                    self._verified(fd, now)
                else:
                    state[fd] = idle
                    if self.steady:
                        service.record(us)
                        response.record(int((now - intended[fd]) * 1000000))
                    else:
                        first.record(us)
                if replied is not None:
                    replied(self, fd, now)
            counters[ECHOED] += echoed
            counters[SENT] += messages
            if service_max > service.max:
                service.max = service_max
            now = now_of()
            if now - woke > self._longest_turn:
                self._longest_turn = now - woke
            if self._closing and (now >= self._deadline or not self._waiting()):
                return

    _longest_turn = 0.0

    def _turn(self, now: float) -> float:
        """All that is not a reply: connects, timeouts, publishing. Returns how long to sleep at most (s)."""
        waiting = self._waiting()
        if waiting and now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._sweep(now)
        if now >= self._next_publish:
            self._publish(now)
        wake = now + (SWEEP_SECONDS if waiting else 0.5)
        if self._ramping:
            room = min(CONNECTS_A_TURN, self.window.size - self.in_flight + len(self.stalled))
            room = min(room, self.share.connections - self.counters[STARTED])
            if room > 0 and self.bucket is not None:
                granted = self.bucket.available(now)
                if granted < room:
                    wake = min(wake, self.bucket.next_time())
                room = min(room, granted)
                self.bucket.take(max(0, room))
            elif room > 0:
                wake = now
            for _ in range(room):
                self._connect()
            if self.in_flight == 0 and self.counters[STARTED] >= self.share.connections:
                self._ramping = False
                self.counters[STATE] = slabs.RAMPED
                self._publish(now, everything=True)
        return wake - now

    def _waiting(self) -> int:
        """Connections that wait for something of the server: the handshake or a reply."""
        c = self.counters
        return self.in_flight + c[SENT] - c[ECHOED] - c[MISMATCHED] - c[LOST]

    def _command(self) -> bool:
        """Obey the supervisor; True: end now."""
        now = monotonic()
        command = os.read(self.pipe, 1)
        if command == HOLD:
            self.steady = True
            self.counters[STATE] = slabs.STEADY
            if self.mode.begin and not self._closing:
                self.mode.begin(self, now)
            return False
        if command in (CLOSE, STOP):
            self._closing, self._ramping = True, False
            self.counters[STATE] = slabs.CLOSING
            self._deadline = now + (STOP_SECONDS if command == STOP else self.settings.reply_timeout + 2.0)
            return False
        return True  # NOW, or the supervisor is gone

    # -- connecting --------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Start one connection from the next source port that can be had."""
        counters = self.counters
        index = counters[STARTED]
        number = self.settings.first_conn + self.share.first + index
        begun = monotonic()
        if not index:
            counters[FIRST_US] = int(begun * 1000000)
        counters[STARTED] = index + 1
        try:
            fd = self._open_socket()
        except OSError as e:
            self._count_error("connect", _name(e), "connection {}: {}".format(number, e.strerror))
            counters[FAILED] += 1
            return
        if fd >= len(self.state):
            self._grow(fd)
        self.in_flight += 1
        self.fd_of[index] = fd
        self.conn[fd], self.seq[fd] = number, 0
        self.started_at[fd] = begun
        self.state[fd] = self.CONNECTING
        # On the same host the handshake is over by now; elsewhere this says EAGAIN.
        if self._first_write(fd):
            self.epoll.register(fd, select.EPOLLIN if fd not in self.unsent else select.EPOLLIN | select.EPOLLOUT)
        elif self.state[fd] == self.CONNECTING:
            self.epoll.register(fd, select.EPOLLIN | select.EPOLLOUT)

    def _open_socket(self) -> int:
        """The descriptor of a connecting socket. Raises OSError: EADDRNOTAVAIL when no port is left, EMFILE,
        ENETUNREACH and so on."""
        settings = self.settings
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        while True:
            sock = _socket.socket(settings.family, kind, 0)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._bind(sock)
                code = sock.connect_ex(settings.target)
                if code in (0, errno.EINPROGRESS):
                    return sock.detach()
                if code not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                    raise OSError(code, os.strerror(code))
                # These four numbers are a connection already, perhaps in TIME_WAIT; take another port.
                self.counters[SKIPPED] += 1
            finally:
                sock.close()  # does nothing after detach()

    def _bind(self, sock: "_socket.socket") -> None:
        for address in self.ports:
            try:
                sock.bind(address)
                return
            except OSError as e:
                if e.errno != errno.EADDRINUSE:
                    raise
                self.counters[SKIPPED] += 1
        raise OSError(errno.EADDRNOTAVAIL, "every planned source port is in use")

    def _first_write(self, fd: int) -> bool:
        """Send the first message; False when the handshake is not over, or failed."""
        now = monotonic()
        data = self.settings.render(self.conn[fd], 0)
        try:
            count = os.write(fd, data)
        except BlockingIOError:
            return False
        except OSError as e:
            self._fail(fd, "connect", _name(e), e.strerror)
            return False
        self.histograms[0].record(int((now - self.started_at[fd]) * 1000000))
        self.state[fd] = self.FIRST
        self.sent_at[fd] = self.intended[fd] = now
        self.awaited[fd] = data
        self.counters[SENT] += 1
        if count != len(data):
            self.unsent[fd] = data[count:]
        return True

    def _verified(self, fd: int, now: float) -> None:
        """The first echo is right: the connection is established."""
        counters = self.counters
        self.in_flight -= 1
        self.stalled.discard(fd)
        self.last_good = now
        counters[ESTABLISHED] += 1
        counters[OPEN] += 1
        counters[LAST_US] = int(now * 1000000)
        self.window.verified(now - self.started_at[fd], now)

    def _grow(self, fd: int) -> None:
        more = fd + 128 - len(self.state)
        self.awaited.extend([None] * more)
        for table in (self.state, self.conn, self.seq, self.started_at, self.sent_at, self.intended):
            table.frombytes(bytes(table.itemsize * more))

    # -- messages ----------------------------------------------------------------------------------------

    def send(self, fd: int, intended: float, now: float) -> None:
        """Send the next message on an idle connection; `intended` is when it should have left (seconds)."""
        seq = self.seq[fd] + 1
        data = self.settings.render(self.conn[fd], seq)
        try:
            count = os.write(fd, data)
        except BlockingIOError:
            count = 0
        except OSError as e:
            self._fail_with(fd, e)
            return
        self.seq[fd] = seq
        self.counters[SENT] += 1
        self.state[fd] = self.AWAITING
        self.sent_at[fd] = now
        self.intended[fd] = intended
        self.awaited[fd] = data
        if count != len(data):
            self._keep(fd, data[count:])

    def _keep(self, fd: int, rest: bytes) -> None:
        """Keep what the socket did not take until it is writable."""
        self.unsent[fd] = rest
        self.epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def _unusual(self, fd: int, event: int) -> bool:
        """An event that is not a reply on a waiting connection. True: a whole reply was verified."""
        state = self.state[fd]
        if state == self.CLOSED:
            return False  # failed earlier in this turn
        if state == self.CONNECTING:
            if self._first_write(fd) and fd not in self.unsent:
                self.epoll.modify(fd, select.EPOLLIN)
            return False
        if event & select.EPOLLOUT and fd in self.unsent:
            self._write_rest(fd)
            if self.state[fd] == self.CLOSED:
                return False
        if not event & ~select.EPOLLOUT:
            return False
        try:
            data = os.read(fd, self.settings.longest + 1)
        except BlockingIOError:
            return False
        except OSError as e:
            self._fail_with(fd, e)
            return False
        return self._received(fd, data)

    def _write_rest(self, fd: int) -> None:
        data = self.unsent[fd]
        try:
            count = os.write(fd, data)
        except BlockingIOError:
            return
        except OSError as e:
            self._fail_with(fd, e)
            return
        if count < len(data):
            self.unsent[fd] = data[count:]
        else:
            del self.unsent[fd]
            self.epoll.modify(fd, select.EPOLLIN)

    def _received(self, fd: int, data: bytes) -> bool:
        """Judge bytes that are not simply the whole reply. True: they complete it."""
        awaited = self.state[fd] > self.IDLE
        if not data:
            got = "the server closed the connection"
            self._fail(fd, "echo" if awaited else "close", "EOF", got)
            return False
        if self.settings.expect == "any":
            return awaited  # bytes after the reply was counted are its rest
        if not awaited:
            self._fail(
                fd, "echo", "EBADMSG", "{} bytes that no message asked for: {!r}".format(len(data), data[:40])
            )
            return False
        expected = self.awaited[fd]
        at = self.partial.pop(fd, 0)
        if expected[at : at + len(data)] == data:
            if at + len(data) == len(expected):
                return True
            self.partial[fd] = at + len(data)
            return False
        self.counters[MISMATCHED] += 1
        self._fail(fd, "echo", "EBADMSG", _difference(expected, at, data), counted=True)
        return False

    # -- failures ----------------------------------------------------------------------------------------

    def _fail(self, fd: int, phase: str, name: str, what: Optional[str], counted: bool = False) -> None:
        """Close a connection that failed and count it once. `counted`: its message is accounted for already."""
        counters, state = self.counters, self.state[fd]
        os.close(fd)
        self.state[fd] = self.CLOSED
        self.fd_of[self.conn[fd] - self.settings.first_conn - self.share.first] = -1
        self.awaited[fd] = None
        self.partial.pop(fd, None)
        self.unsent.pop(fd, None)
        counters[FAILED] += 1
        if state in (self.CONNECTING, self.FIRST):
            self.in_flight -= 1
            self.stalled.discard(fd)
        else:
            counters[OPEN] -= 1
            counters[BROKEN] += 1
        if state > self.IDLE and not counted:
            counters[LOST] += 1
        sample = "connection {} message {}: {}".format(self.conn[fd], self.seq[fd], what)
        self._count_error(phase, name, sample)

    def _fail_with(self, fd: int, error: OSError) -> None:
        """A read or write failed: during an echo, or on a connection that was only held."""
        self._fail(fd, "echo" if self.state[fd] > self.IDLE else "close", _name(error), error.strerror)

    def _count_error(self, phase: str, name: str, sample: str, count: int = 1) -> None:
        now = time.time()
        row = self.errors.get((phase, name))
        if row is None:
            self.errors[phase, name] = [count, now, now, sample]
        else:
            row[0] += count
            row[2] = now
        self._errors_changed = True

    def _give_up(self, why: str) -> None:
        """Count all connections that were not begun as failed: a server that answers nothing would take
        each of them a timeout."""
        missing = self.share.connections - self.counters[STARTED]
        if missing:
            self.counters[STARTED] += missing
            self.counters[FAILED] += missing
            self._count_error("connect", "ECANCELED", why, missing)

    def _sweep(self, now: float) -> None:
        """Look through the next part of the table for what has waited too long."""
        settings, state = self.settings, self.state
        begin = self._sweep_at
        end = min(len(state), begin + max(256, len(state) // SWEEP_PARTS + 1))
        self._sweep_at = end if end < len(state) else 0
        for fd in range(begin, end):
            kind = state[fd]
            if kind == self.IDLE or kind == self.CLOSED:
                continue
            if kind == self.CONNECTING:
                waited, limit = now - self.started_at[fd], settings.connect_timeout
                text = "no answer to the handshake in {:g} s".format(limit)
                phase = "connect"
            else:
                waited, limit = now - self.sent_at[fd], settings.reply_timeout
                text = "no {}reply in {:g} s".format("complete " if fd in self.partial else "", limit)
                phase = "echo"
            if waited > limit:
                self._fail(fd, phase, "ETIMEDOUT", text)
                self.last_timeout = now
            elif waited > RETRANSMIT_SECONDS and kind != self.AWAITING and fd not in self.stalled:
                self.stalled.add(fd)
                self.window.overflow(now)
        patience = settings.connect_timeout + settings.reply_timeout
        if self._ramping and self.last_timeout > self.last_good and now - self.last_good > patience:
            self._give_up("not attempted: nothing was established in the last {:g} s".format(patience))

    # -- reporting and the end ---------------------------------------------------------------------------

    def _publish(self, now: float, everything: bool = False) -> None:
        counters = self.counters
        self._next_publish = now + PUBLISH_SECONDS
        counters[CPU_US] = int(time.process_time() * 1000000)
        counters[LAG_US] = int(self._longest_turn * 1000000)
        counters[WINDOW], counters[DROPS] = self.window.size, self.window.drops
        self.slab.write_counters(counters)
        if everything or now >= self._next_publish_all:
            self._next_publish_all = now + PUBLISH_ALL_SECONDS
            if self.mode.again:  # sent as soon as intended: response time is service time
                self.histograms[3] = self.histograms[2]
            for number, source in enumerate(self.histograms):
                self.slab.write_histogram(number, source)
            if self._errors_changed:
                self._errors_changed = False
                self.slab.write_errors(self.errors)

    def _end(self) -> None:
        """Account for what was under way or never begun, publish, close every connection."""
        counters = self.counters
        for fd in range(len(self.state)):
            kind = self.state[fd]
            if kind == self.CONNECTING or kind > self.IDLE:
                self._fail(fd, "connect" if kind == self.CONNECTING else "echo", "ECANCELED", "the run was ended")
                counters[DRAINED] += 1
        self._give_up("not attempted: the run was ended")
        self._publish(monotonic(), everything=True)
        rst = self.settings.close == "rst"
        for fd in self.fd_of:
            if fd >= 0:
                if rst:
                    sock = _socket.socket(self.settings.family, socket.SOCK_STREAM, 0, fd)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
                    sock.close()
                else:
                    os.close(fd)
        counters[STATE] = slabs.DONE
        counters[OPEN] = 0
        self._publish(monotonic(), everything=True)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def _difference(expected: bytes, at: int, data: bytes) -> str:
    """Where and how `data`, received from offset `at`, differs from `expected`."""
    rest = expected[at : at + len(data)]
    for offset, want in enumerate(rest):
        got = data[offset]
        if want != got:
            return "byte {} of the reply is 0x{:02x}, not 0x{:02x}; got {!r}".format(
                at + offset, got, want, data[max(0, offset - 20) : offset + 40]
            )
    return "the reply is longer than the {} bytes sent: {!r}".format(len(expected), data[len(rest) :][:40])
