"""Telling systemd about the server's life: the datagrams of sd_notify(3), for a unit with Type=notify."""

import os
import socket
import time


def is_asked_for() -> bool:
    """Return whether systemd, or whoever else started us, wants to be told."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(*lines: str) -> None:
    """Send assignments such as READY=1 and STATUS=...; does nothing where nobody asked for it.

    A message that cannot be sent is dropped: systemd then notices by its own timeout.
    """
    place = os.environ.get("NOTIFY_SOCKET", "")
    if place[:1] not in ("/", "@"):
        return
    if place[0] == "@":
        place = "\0" + place[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        try:
            s.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), place)
        except OSError:
            pass


def reloading() -> None:
    """Say that a reload has begun; READY=1 ends it."""
    notify("RELOADING=1", "MONOTONIC_USEC=%d" % int(time.monotonic() * 1e6), "STATUS=reloading")
