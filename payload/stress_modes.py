"""What connections do once they are verified: each load mode is one row of functions over a worker.

A mode answers these questions; None means "nothing":
  begin(worker, now)          the steady phase begins
  replied(worker, fd, now)    a reply on `fd` was verified (now: seconds, monotonic)
  tick(worker, now) -> time   called once a turn; sends what is due and says when to be called next
  beats                       tick walks the slots of --interval (`beat`)
  again                       in the steady phase, each reply is answered with the next message at once (the
                              worker's loop does that inline: a call would cost a tenth of the load)
To add a mode, write its functions and add a row to MODES.
"""

from typing import Callable, NamedTuple, Optional

from stress_pace import TokenBucket
from stress_slab import CHURNED, STARTED

Mode = NamedTuple(
    "Mode",
    [
        ("name", str),
        ("begin", Optional[Callable]),
        ("replied", Optional[Callable]),
        ("tick", Optional[Callable]),
        ("beats", bool),
        ("again", bool),
        ("help", str),
    ],
)
BEATS_A_TURN = 64  # then look for replies again, or they would seem late
CHURNS_A_TURN = 16
IDLE_SECONDS = 0.5


def beat(worker, now, whatever=False):
    """Send to each open connection whose slot has come. Connection i of n has its slot at i/n of the interval,
    so the messages are spread evenly however the connections came up.

    :param whatever: send also where the reply to the message before is still awaited.
    """
    begun = worker.counters[STARTED]
    step = worker.beat_step
    at = worker.beat_time
    number = worker.beat_number
    fd_of = worker.fd_of
    idle, awaiting, state = worker.IDLE, worker.AWAITING, worker.state
    size = len(fd_of)
    left = BEATS_A_TURN
    while at <= now and left:
        index = number % size
        if index < begun:
            fd = fd_of[index]
            # Still waiting for a reply: the message is sent when that comes (`catch_up`), and its response
            # time counts from this slot.
            if fd >= 0 and state[fd] == idle:
                worker.send(fd, at, now)
                left -= 1
            elif whatever and fd >= 0 and state[fd] == awaiting:
                worker.send_behind(fd, at, now)
                left -= 1
        number += 1
        at = worker.beat_base + number * step
    worker.beat_number, worker.beat_time = number, at
    return at


def catch_up(worker, fd, now):
    """A reply came after the connection's next slot: send the message that was due."""
    due = worker.intended[fd] + worker.interval
    if due <= now and not worker.closing:
        worker.send(fd, due, now)


def beat_whatever(worker, now):
    """Send to each open connection whose slot has come, whether or not it still awaits replies."""
    return beat(worker, now, True)


def next_in_line(worker, fd, now):
    """The next of the messages that wait for their replies on this connection."""
    worker.next_in_line(fd, now)


def flood_all(worker, now):
    """Start the ping-pong on every open connection."""
    for fd in worker.fd_of:
        if fd >= 0 and worker.state[fd] == worker.IDLE:
            now = worker.clock()
            worker.send(fd, now, now)


def begin_churn(worker, now):
    """From now on connections are made anew, at the share of --rate that is this worker's."""
    settings, share = worker.settings, worker.share
    worker.churning = True
    worker.churn_next, worker.churn_cycle = 0, 1
    worker.bucket = None
    if settings.rate:
        rate = settings.rate * share.connections / settings.connections
        worker.bucket = TokenBucket(rate, now + share.index / settings.rate)


def churn(worker, now):
    """Close the connection that has been open longest and make it anew; so on, as fast as rate and window allow.

    A connection that failed is made anew like the others: each attempt counts as a connection of its own.
    """
    if not worker.churning:
        return now + IDLE_SECONDS
    bucket = worker.bucket
    size = len(worker.fd_of)
    room = min(CHURNS_A_TURN, worker.window.size - worker.in_flight + len(worker.stalled))
    if bucket is not None:
        room = min(room, bucket.available(now))
    done = 0
    while done < room:
        fd = worker.fd_of[worker.churn_next]
        if fd >= 0 and worker.state[fd] != worker.IDLE:
            break  # all of them are on their way: the oldest is
        if fd >= 0:
            worker.release(fd)
        due = now
        if bucket is not None:
            due = now - (bucket.tokens - 1.0) / bucket.rate
            bucket.take(1)
        worker.counters[CHURNED] += 1
        worker.connect(worker.churn_next, worker.churn_cycle, due)
        done += 1
        worker.churn_next += 1
        if worker.churn_next == size:
            worker.churn_next, worker.churn_cycle = 0, worker.churn_cycle + 1
    if done == room and room > 0 and bucket is None:
        return now
    if bucket is not None and done == room:
        return max(bucket.next_time(), now + 0.0005 if room else now)
    return now + 0.001  # until a reply lets one go; replies wake the loop anyway


MODES = {
    mode.name: mode
    for mode in (
        Mode("idle", None, None, None, False, False, "connect, verify one echo, hold"),
        Mode(
            "heartbeat",
            None,
            catch_up,
            beat,
            True,
            False,
            "one message each --interval per connection, spread evenly, after the reply to the one before",
        ),
        Mode("timer", None, next_in_line, beat_whatever, True, False, "the same whatever the replies do"),
        Mode(
            "flood", flood_all, None, None, False, True, "ping-pong: the next message as soon as the reply is here"
        ),
        Mode("churn", begin_churn, None, churn, False, False, "connect, verify, close, repeat at --rate"),
    )
}
