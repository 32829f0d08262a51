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
from collections import deque
from time import monotonic
from typing import NamedTuple, Optional

import stress_ports
import stress_slab as slabs
from histogram import SUB_BITS, Histogram
from stress_expect import FrameError
from stress_modes import MODES
from stress_pace import TokenBucket, Window
from stress_plan import WorkerShare, each_port
from stress_slab import (
    BEGUN_US,
    BROKEN,
    CHURN_OK,
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
from stress_talk import Talk
from stress_tls import Secure

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
HELD_UP_SECONDS = 0.3  # a turn so long looks like the server's delay to all connections that wait meanwhile
RST = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST and leaves no TIME_WAIT
CYCLE = 10**9  # what a connection's number grows by each time that churn makes it anew

Settings = NamedTuple(
    "Settings",
    [
        ("family", int),
        ("target", tuple),
        ("mode", str),
        ("talk", Talk),
        ("secure", Optional[Secure]),
        ("ports_by", str),
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

target: a socket address; talk: what is said and expected; secure: TLS, or None; ports_by: a row of
stress_ports.WAYS; interval and timeouts in seconds; rate: connects/s of the whole client or None; in_flight:
connections of the whole client between connect and first verified echo, None to follow the delay; close: "rst",
"fin" or "hold";
first_conn: number of the client's first connection in messages; connections, workers: of the whole client;
at_once: how many workers connect at the same time.
"""


class Worker:
    """The tables and the loop. Fields without underscore are what modes use."""

    # Values of `state`. Above IDLE: a reply is awaited.
    CLOSED, CONNECTING, HANDSHAKE, IDLE, FIRST, AWAITING = range(6)

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
        self.held = {}  # type: Dict[int, bytes]  # fd -> a reply whose end has not come, where it is not known before
        self.behind = {}  # type: Dict[int, deque]  # fd -> (awaited, sent_at, intended) of messages after the oldest
        self.ahead = {}  # type: Dict[int, bytes]  # fd -> what came after the oldest message's reply
        self.unsent = {}  # type: Dict[int, bytes]  # fd -> rest of a message the socket did not take
        self.talk = talk = settings.talk
        self.reply_to = talk.expect.reply_to
        self.silent = talk.expect.silent
        self.secure = settings.secure and settings.secure.for_worker()
        self.read = self.secure.read if self.secure else os.read
        self.write = self.secure.write if self.secure else os.write
        self.steady = False
        self.steady_from = float("inf")  # messages sent before are the ramp's, whenever their replies come
        self.in_flight = 0
        self._hold_ups = deque(maxlen=100)  # type: deque
        self.stalled = set()  # type: Set[int]  # of those, what waits so long that it no longer fills the window
        self.last_good = self.last_timeout = 0.0
        self.window = Window(settings.in_flight, settings.at_once)
        self.bucket = None  # type: Optional[TokenBucket]
        self.ports = each_port(share.blocks)
        self.ways = stress_ports.WAYS[settings.ports_by]
        self.churning = False
        self.epoll = select.epoll()
        self._ramping = False
        self.closing = False
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
        self._loop()
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
        if self.mode.beats:
            self.beat_step = settings.interval / share.connections
            # On a clock that all workers share, so that their beats interleave whenever each began.
            base = now - now % settings.interval
            self.beat_base = self.beat_time = base + self.beat_step * share.index / settings.workers
            self.beat_number = 0

    def _loop(self) -> None:
        # Everything is local and inline: this runs 100,000 times a second.
        poll, read, write, now_of = self.epoll.poll, self.read, self.write, monotonic
        render, reply_to = self.talk.render, self.reply_to
        service_max = 0
        state, conn, seq, awaited = self.state, self.conn, self.seq, self.awaited
        sent_at, intended = self.sent_at, self.intended
        counters = self.counters
        _, first, service, response = self.histograms
        first_counts, service_counts = first.counts, service.counts
        idle, awaiting, plain_read = self.IDLE, self.AWAITING, select.EPOLLIN
        sub_bits, bucket_bits = SUB_BITS, SUB_BITS + 1
        size = self.talk.read_size
        partial = self.partial
        mode = self.mode
        replied, tick, again, churning = mode.replied, mode.tick, False, False
        exact = self.bucket is not None or tick is not None
        now = now_of()
        while True:
            begun = now
            timeout = self._turn(now)
            if tick is not None and not self.closing:
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
            late = woke - begun - (timeout if timeout > 0 else 0.0)
            if late > HELD_UP_SECONDS:
                self._held_up = woke
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
                    again = mode.again and self.steady and not self.closing
                    churning = self.churning
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
                    awaited[fd] = data if reply_to is None else reply_to(conn[fd], number)
                    sent_at[fd] = now
                    messages += 1
                    if count != len(data):
                        self._keep(fd, data[count:])
                    continue
                awaited[fd] = None
                if churning:
                    echoed -= 1
                    self.count_reply(fd, now)
                elif state[fd] != awaiting:
                    state[fd] = idle
                    first_counts[bucket] += 1
                    if us > first.max:
                        first.max = us
                    self._verified(fd, now)
                else:
                    state[fd] = idle
                    if sent_at[fd] >= self.steady_from:
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
            turn = now - woke + (late if late > 0 else 0.0)
            if turn > self._longest_turn:
                self._longest_turn = turn
            if turn > HELD_UP_SECONDS:
                self._held_up = now
                self._hold_ups.append((begun, now))
            if self.closing and (now >= self._deadline or not self._waiting()):
                return

    _longest_turn = 0.0
    _held_up = 0.0  # when this worker last came back late: what began before it says nothing of the server
    _graceful = False

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
                if room > 0:
                    self.counters[BEGUN_US] = int(now * 1000000)
            elif room > 0:
                wake = now
            for _ in range(room):
                index = self.counters[STARTED]
                self.counters[STARTED] = index + 1
                self.connect(index, 0)
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
            self.steady, self.steady_from = True, now
            self.counters[STATE] = slabs.STEADY
            if self.mode.begin and not self.closing:
                self.mode.begin(self, now)
            return False
        if command in (CLOSE, STOP):
            self.closing, self._ramping, self._graceful = True, False, command == CLOSE
            self.counters[STATE] = slabs.CLOSING
            self._deadline = now + (STOP_SECONDS if command == STOP else self.settings.reply_timeout + 2.0)
            return False
        return True  # NOW, or the supervisor is gone

    # -- connecting --------------------------------------------------------------------------------------

    def connect(self, index: int, cycle: int, due: float = 0.0) -> None:
        """Start connection `index` of this worker, for the `cycle`-th time, from the next source port that can be
        had; due: when it should have begun (mode churn, seconds)."""
        counters = self.counters
        number = self.settings.first_conn + self.share.first + index + cycle * CYCLE
        begun = monotonic()
        if not counters[FIRST_US]:
            counters[FIRST_US] = int(begun * 1000000)
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
        self.intended[fd] = due
        self.state[fd] = self.CONNECTING
        # On the same host the handshake is over by now; elsewhere this says EAGAIN.
        if self._first_write(fd):
            self.epoll.register(fd, select.EPOLLIN if fd not in self.unsent else select.EPOLLIN | select.EPOLLOUT)
        elif self.CONNECTING <= self.state[fd] <= self.HANDSHAKE:
            self.epoll.register(fd, select.EPOLLIN | select.EPOLLOUT)

    def _open_socket(self) -> int:
        """The descriptor of a connecting socket. Raises OSError: EADDRNOTAVAIL when no port is left, EMFILE,
        ENETUNREACH and so on."""
        settings = self.settings
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        again = self.churning
        while True:
            address = next(self.ports, None)
            if address is None:
                if not again:
                    raise OSError(errno.EADDRNOTAVAIL, "every planned source port is in use")
                self.ports, again = each_port(self.share.blocks), False  # churn: the same ports once more
                continue
            for take_port in self.ways:
                sock = _socket.socket(settings.family, kind, 0)
                try:
                    code = take_port(sock, address) or sock.connect_ex(settings.target)
                    if code in (0, errno.EINPROGRESS):
                        return sock.detach()
                    if code not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                        raise OSError(code, os.strerror(code))
                finally:
                    sock.close()  # does nothing after detach()
            # Somebody has this port, or these four numbers are a connection already, perhaps in TIME_WAIT.
            self.counters[SKIPPED] += 1

    def _first_write(self, fd: int) -> bool:
        """Send the first message; False when a handshake is not over, or failed."""
        now = monotonic()
        number = self.conn[fd]
        if self.secure and not self._handshake(fd):
            return False
        data = self.talk.first_render(number, 0)
        try:
            count = self.write(fd, data)
        except BlockingIOError:
            if self.state[fd] == self.CONNECTING:
                return False
            count = 0
        except OSError as e:
            self._fail(fd, "connect", _name(e), e.strerror)
            return False
        if self.state[fd] == self.CONNECTING:
            self.histograms[0].record(int((now - self.started_at[fd]) * 1000000))
        expect = self.talk.first_expect
        self.state[fd] = self.FIRST
        self.sent_at[fd] = now
        if not self.churning:
            self.intended[fd] = now
        self.awaited[fd] = data if expect.reply_to is None else expect.reply_to(number, 0)
        self.counters[SENT] += 1
        if count != len(data):
            self.unsent[fd] = data[count:]
        elif expect.silent:
            self.count_reply(fd, monotonic())
        return True

    def _handshake(self, fd: int) -> bool:
        """TLS: take the handshake a step further. True: it is over."""
        assert self.secure
        now = monotonic()
        if self.state[fd] == self.CONNECTING:
            code = self.secure.begin(fd, self.settings.family)
            if code == errno.EINPROGRESS:
                return False
            if code:
                self._fail(fd, "connect", _error_name(code), os.strerror(code))
                return False
            self.histograms[0].record(int((now - self.started_at[fd]) * 1000000))
            self.state[fd] = self.HANDSHAKE
        try:
            wanted = self.secure.handshake(fd)
        except OSError as e:
            self._fail(fd, "tls", _name(e), e.strerror)
            return False
        return not wanted

    def _verified(self, fd: int, now: float) -> None:
        """The first echo is right: the connection is established."""
        counters = self.counters
        self.in_flight -= 1
        self.stalled.discard(fd)
        self.last_good = now
        counters[ESTABLISHED] += 1
        counters[OPEN] += 1
        if self.churning:
            counters[CHURN_OK] += 1
        else:
            counters[LAST_US] = int(now * 1000000)
        if self.started_at[fd] > self._held_up:
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
        data = self.talk.render(self.conn[fd], seq)
        try:
            count = self.write(fd, data)
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
        self.awaited[fd] = data if self.reply_to is None else self.reply_to(self.conn[fd], seq)
        if count != len(data):
            self._keep(fd, data[count:])
        elif self.silent:
            self.count_reply(fd, monotonic())

    def send_behind(self, fd: int, intended: float, now: float) -> None:
        """Send the next message on a connection that still awaits a reply (mode timer)."""
        seq = self.seq[fd] + 1
        data = self.talk.render(self.conn[fd], seq)
        rest = self.unsent.get(fd)
        if rest is None:
            try:
                count = self.write(fd, data)
            except BlockingIOError:
                count = 0
            except OSError as e:
                self._fail_with(fd, e)
                return
            if count != len(data):
                self._keep(fd, data[count:])
        else:
            self.unsent[fd] = rest + data
        self.seq[fd] = seq
        self.counters[SENT] += 1
        awaited = data if self.reply_to is None else self.reply_to(self.conn[fd], seq)
        self.behind.setdefault(fd, deque()).append((awaited, now, intended))

    def next_in_line(self, fd: int, now: float) -> None:
        """A reply was verified: the oldest message sent after it awaits its own now, and may have it already (mode
        timer)."""
        while fd in self.behind:
            line = self.behind[fd]
            self.awaited[fd], self.sent_at[fd], self.intended[fd] = line.popleft()
            if not line:
                del self.behind[fd]
            self.state[fd] = self.AWAITING
            if self.silent:
                if fd in self.unsent:
                    return
            else:
                data = self.ahead.pop(fd, None)
                if data is None or not self._received(fd, data):
                    return
            self.count_reply(fd, now)

    def count_reply(self, fd: int, now: float) -> None:
        """A whole reply was verified, or nothing was to be awaited: what the loop does inline."""
        self.counters[ECHOED] += 1
        us = int((now - self.sent_at[fd]) * 1000000)
        _, first, service, response = self.histograms
        was, self.state[fd] = self.state[fd], self.IDLE
        self.awaited[fd] = None
        if was != self.AWAITING:
            self._verified(fd, now)
            if not self.churning:
                first.record(us)
                return
            us = int((now - self.started_at[fd]) * 1000000)  # the whole of it: connect and first reply
        elif self.sent_at[fd] < self.steady_from:
            first.record(us)
            return
        service.record(us)
        response.record(int((now - self.intended[fd]) * 1000000))

    def _keep(self, fd: int, rest: bytes) -> None:
        """Keep what the socket did not take until it is writable."""
        self.unsent[fd] = rest
        self.epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def _unusual(self, fd: int, event: int) -> bool:
        """An event that is not a reply on a waiting connection. True: a whole reply was verified."""
        state = self.state[fd]
        if state == self.CLOSED:
            return False  # failed earlier in this turn
        if state <= self.HANDSHAKE:
            if self._first_write(fd):
                if fd not in self.unsent:
                    self.epoll.modify(fd, select.EPOLLIN)
            elif self.state[fd] == self.HANDSHAKE:
                self.epoll.modify(fd, self.secure.wanted(fd))
            return False
        if event & select.EPOLLOUT and fd in self.unsent:
            self._write_rest(fd)
            if self.state[fd] == self.CLOSED:
                return False
        if not event & ~select.EPOLLOUT:
            return False
        try:
            data = self.read(fd, self.talk.read_size)
        except BlockingIOError:
            return False
        except OSError as e:
            self._fail_with(fd, e)
            return False
        return self._received(fd, data)

    def _write_rest(self, fd: int) -> None:
        data = self.unsent[fd]
        try:
            count = self.write(fd, data)
        except BlockingIOError:
            return
        except OSError as e:
            self._fail_with(fd, e)
            return
        if count < len(data):
            self.unsent[fd] = data[count:]
            return
        del self.unsent[fd]
        self.epoll.modify(fd, select.EPOLLIN)
        expect = self.talk.first_expect if self.state[fd] == self.FIRST else self.talk.expect
        if expect.silent:
            now = monotonic()
            self.count_reply(fd, now)
            if self.mode.replied:
                self.mode.replied(self, fd, now)

    def _received(self, fd: int, data: bytes) -> bool:
        """Judge bytes that are not simply the whole reply. True: they complete it, and it is right; what came
        after it is in `ahead`, where messages were sent after the one that it answers."""
        state = self.state[fd]
        awaited = state > self.IDLE
        if not data:
            got = "the server closed the connection"
            have = self.partial.get(fd, 0) or len(self.held.get(fd, b""))
            if awaited and have:
                got += " after {} bytes of the reply".format(have)
            self._fail(fd, "echo" if awaited else "close", "EOF", got)
            return False
        expect = self.talk.first_expect if state == self.FIRST else self.talk.expect
        if not awaited or expect.silent:
            if not expect.loose:
                text = "{} bytes that no message asked for: {!r}"
                self._fail(fd, "echo", "EBADMSG", text.format(len(data), data[:40]))
            return False
        more = fd in self.behind
        if expect.exact:
            expected = self.awaited[fd]
            at = self.partial.pop(fd, 0)
            left = len(expected) - at
            if more and len(data) > left:
                data, self.ahead[fd] = data[:left], data[left:]
            if expected[at : at + len(data)] == data:
                if len(data) == left:
                    return True
                self.partial[fd] = at + len(data)
                return False
            crossed = self._crossed(fd, expected[:at] + data)
            if crossed:
                self.counters[MISMATCHED] += 1
                self._fail(fd, "echo", "CROSSED", crossed, counted=True)
                return False
            wrong = _difference(expected, at, data)
        else:
            data = self.held.pop(fd, b"") + data
            try:
                size = expect.frame(data)
                wrong = None
            except FrameError as e:
                size, wrong = len(data), str(e)
            if size is None and len(data) <= expect.longest:
                self.held[fd] = data
                return False
            if size is None:
                wrong = "no end of the reply in {:,} bytes: {!r}".format(len(data), data[:80])
            elif wrong is None:
                wrong = expect.judge(data[:size])
                if wrong is None and size < len(data):
                    if more:
                        self.ahead[fd] = data[size:]
                    elif not expect.loose:
                        wrong = "{} bytes after the reply: {!r}".format(len(data) - size, data[size:][:40])
            if wrong is None:
                return True
        self.counters[MISMATCHED] += 1
        self._fail(fd, "echo", "EBADMSG", wrong, counted=True)
        return False

    def _crossed(self, fd: int, reply: bytes) -> Optional[str]:
        """Whose reply this is, in words, when it is right for another message; else None."""
        found = self.talk.owner(reply)
        if found is None:
            return None
        conn, seq = found
        index = (conn - self.settings.first_conn) % CYCLE - self.share.first
        theirs = self.fd_of[index] if 0 <= index < len(self.fd_of) else -1
        if theirs >= 0 and self.conn[theirs] == conn and seq > self.seq[theirs]:
            return None  # a wrong byte that makes another number of it: that message was not sent yet
        if conn == self.conn[fd]:
            return "this is the reply to its message {}: {!r}".format(seq, reply[-80:])
        return "this is the reply to connection {}, message {}: {!r}".format(conn, seq, reply[-80:])

    # -- failures ----------------------------------------------------------------------------------------

    def _fail(self, fd: int, phase: str, name: str, what: Optional[str], counted: bool = False) -> None:
        """Close a connection that failed and count it once. `counted`: its message is accounted for already."""
        counters, state = self.counters, self.state[fd]
        others = len(self.behind.get(fd, ()))
        self._forget(fd)
        os.close(fd)
        counters[FAILED] += 1
        counters[LOST] += others
        if state < self.IDLE or state == self.FIRST:
            self.in_flight -= 1
            self.stalled.discard(fd)
        else:
            counters[OPEN] -= 1
            counters[BROKEN] += 1
        if state > self.IDLE and not counted:
            counters[LOST] += 1
        sample = "connection {} message {}: {}".format(self.conn[fd], self.seq[fd], what)
        self._count_error(phase, name, sample)

    def _forget(self, fd: int) -> None:
        """Nothing is known of this descriptor any more; the caller closes it."""
        self.state[fd] = self.CLOSED
        self.fd_of[(self.conn[fd] - self.settings.first_conn - self.share.first) % CYCLE] = -1
        self.awaited[fd] = None
        for table in (self.partial, self.held, self.behind, self.ahead, self.unsent):
            table.pop(fd, None)
        if self.secure:
            self.secure.forget(fd)

    def release(self, fd: int) -> None:
        """Close an idle connection that did what it should (mode churn)."""
        self._forget(fd)
        self.counters[OPEN] -= 1
        self._close(fd)

    def _close(self, fd: int) -> None:
        if self.settings.close != "fin":
            sock = _socket.socket(self.settings.family, socket.SOCK_STREAM, 0, fd)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            sock.close()
        else:
            os.close(fd)

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
            elif kind == self.HANDSHAKE:
                waited, limit = now - self.started_at[fd], settings.connect_timeout
                text = "no end of the TLS handshake in {:g} s".format(limit)
                phase = "tls"
            else:
                waited, limit = now - self.sent_at[fd], settings.reply_timeout
                text = "no {}reply in {:g} s".format(
                    "complete " if fd in self.partial or fd in self.held else "", limit
                )
                phase = "echo"
            if waited > limit and now - self._sent(fd) > limit and not self._is_here(fd):
                self._fail(fd, phase, "ETIMEDOUT", text)
                self.last_timeout = now
                continue
            waited = min(waited, now - self._held_up)
            if waited > RETRANSMIT_SECONDS and kind != self.AWAITING and fd not in self.stalled:
                self.stalled.add(fd)
                self.window.overflow(now)
        patience = settings.connect_timeout + settings.reply_timeout
        if self._ramping and self.last_timeout > self.last_good and now - self.last_good > patience:
            self._give_up("not attempted: nothing was established in the last {:g} s".format(patience))

    def _sent(self, fd: int) -> float:
        """When what a connection waits for was sent at the latest: a turn's begin stands for all that it sent, and
        the turn may have been held up."""
        began = max(self.sent_at[fd], self.started_at[fd])
        return next((end for begin, end in self._hold_ups if begin <= began <= end), began)

    def _is_here(self, fd: int) -> bool:
        """Whether what a connection waits for has come and was not looked at: then not the server is late."""
        waiting = select.poll()
        writes = self.state[fd] == self.CONNECTING or fd in self.unsent
        waiting.register(fd, select.POLLOUT | select.POLLIN if writes else select.POLLIN)
        return bool(waiting.poll(0))

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
            if kind not in (self.CLOSED, self.IDLE):
                phase = {self.CONNECTING: "connect", self.HANDSHAKE: "tls"}.get(kind, "echo")
                self._fail(fd, phase, "ECANCELED", "the run was ended")
                counters[DRAINED] += 1
        self._give_up("not attempted: the run was ended")
        self._publish(monotonic(), everything=True)
        if self.settings.close == "hold" and self._graceful:
            self._let_server_close()
        for fd in self.fd_of:
            if fd >= 0:
                if self.secure:
                    self.secure.forget(fd)
                self._close(fd)
        counters[STATE] = slabs.DONE
        counters[OPEN] = 0
        self._publish(monotonic(), everything=True)

    def _let_server_close(self) -> None:
        """Wait, reply_timeout at most, until the server has closed every connection: who closes first keeps
        TIME_WAIT. What it leaves open is reset."""
        end = monotonic() + self.settings.reply_timeout
        left = sum(1 for fd in self.fd_of if fd >= 0)
        while left and monotonic() < end:
            for fd, _ in self.epoll.poll(0.1, EVENTS_A_TURN):
                if fd == self.pipe:
                    return  # end at once, or nobody leads any more
                try:
                    if self.read(fd, self.talk.read_size):
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass  # closed by RST
                self._forget(fd)
                os.close(fd)
                left -= 1


def _name(error: OSError) -> str:
    return _error_name(error.errno or 0)


def _error_name(code: int) -> str:
    return errno.errorcode.get(code, str(code))


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
