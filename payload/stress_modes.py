"""What connections do once they are verified: each load mode is one row of functions over a worker.

A mode answers these questions; None means "nothing":
  begin(worker, now)          the steady phase begins
  replied(worker, fd, now)    a reply on `fd` was verified (now: seconds, monotonic)
  tick(worker, now) -> time   called once a turn; sends what is due and says when to be called next
  again                       in the steady phase, each reply is answered with the next message at once (the
                              worker's loop does that inline: a call would cost a tenth of the load)
To add a mode, write its functions and add a row to MODES.
"""

from typing import Callable, NamedTuple, Optional

from stress_slab import STARTED

Mode = NamedTuple(
    "Mode",
    [
        ("name", str),
        ("begin", Optional[Callable]),
        ("replied", Optional[Callable]),
        ("tick", Optional[Callable]),
        ("again", bool),
        ("help", str),
    ],
)
BEATS_A_TURN = 64  # then look for replies again, or they would seem late


def beat(worker, now):
    """Send to each open connection whose slot has come. Connection i of n has its slot at i/n of the interval,
    so the messages are spread evenly however the connections came up."""
    begun = worker.counters[STARTED]
    step = worker.beat_step
    at = worker.beat_time
    number = worker.beat_number
    fd_of = worker.fd_of
    idle, state = worker.IDLE, worker.state
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
        number += 1
        at = worker.beat_base + number * step
    worker.beat_number, worker.beat_time = number, at
    return at


def catch_up(worker, fd, now):
    """A reply came after the connection's next slot: send the message that was due."""
    due = worker.intended[fd] + worker.interval
    if due <= now:
        worker.send(fd, due, now)


def flood_all(worker, now):
    """Start the ping-pong on every open connection."""
    for fd in worker.fd_of:
        if fd >= 0 and worker.state[fd] == worker.IDLE:
            now = worker.clock()
            worker.send(fd, now, now)


MODES = {
    mode.name: mode
    for mode in (
        Mode("idle", None, None, None, False, "connect, verify one echo, hold"),
        Mode(
            "heartbeat", None, catch_up, beat, False, "one message each --interval per connection, spread evenly"
        ),
        Mode("flood", flood_all, None, None, True, "ping-pong: the next message as soon as the reply is here"),
    )
}
