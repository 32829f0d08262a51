"""What SIGINT, SIGTERM and SIGHUP do: they interrupt a command once, and never its clean-up of the machine."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command the way Ctrl-C does: as KeyboardInterrupt, through every `finally`."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # A command under nohup keeps ignoring SIGHUP.
    handled = [one for one in NUMBERS if signal.getsignal(one) is not signal.SIG_IGN]
    before = [signal.signal(one, interrupt) for one in handled]
    try:
        yield
    finally:
        for one, old in zip(handled, before, strict=True):
            signal.signal(one, old)


@contextlib.contextmanager
def uninterruptible() -> Iterator[None]:
    """For clean-up that must not be cut short and is known to end: further signals are ignored meanwhile."""
    before = [signal.signal(one, signal.SIG_IGN) for one in NUMBERS]
    try:
        yield
    finally:
        for one, old in zip(NUMBERS, before, strict=True):
            signal.signal(one, old)
