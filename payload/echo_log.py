"""The server's log: lines with a timestamp and a pid on stderr, which is the log file if there is one.

One os.write per line keeps lines of many processes whole (O_APPEND). A disk that is full must not stop
the server, so a failed write is dropped.
"""

import os
import time

from daemon import DaemonError, open_log


def log(message: str) -> None:
    """Write one line: local time in ISO 8601 with milliseconds and offset, pid, message."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now))
    line = "%s.%03d%s [%d] %s\n" % (
        stamp,
        int(now * 1000) % 1000,
        time.strftime("%z", time.localtime(now)),
        os.getpid(),
        message.replace("\n", " | "),
    )
    write(2, line.encode("utf-8", "replace"))


def write(fd: int, line: bytes) -> None:
    """Write a line of the log or the console, or nothing where that is full or gone."""
    try:
        os.write(fd, line)
    except OSError:
        pass


def redirect_to(path: str) -> None:
    """Make `path` the log from now on: stdout and stderr of this process go there.

    Called again with the same path, it follows a rotation. Raises DaemonError when the file cannot be
    written; the old log stays in use then.
    """
    fd = open_log(path)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def reopen(path: str) -> None:
    """Follow a log rotation; if that fails, say so in the old log."""
    try:
        redirect_to(path)
    except DaemonError as e:
        log("cannot reopen the log: %s" % e)
