"""Bounded reading for `observe`: files and commands that can neither hang nor flood the caller.

What cannot be read becomes ``{"unavailable": "reason"}``, so that a report shows a gap where there is
one. Nothing here raises for a file or a program that is missing; only for wrong use.
"""

import errno
import os
import select
import stat
import subprocess
import time

READ_LIMIT = 256 * 1024
CHUNK = 64 * 1024


def unavailable(reason):
    """The marker for something that could not be read.

    :param reason: an exception or a sentence.
    :returns: ``{"unavailable": str}``; for an OSError the errno name comes first ("ENOENT: ...").
    """
    if isinstance(reason, OSError) and reason.errno:
        name = errno.errorcode.get(reason.errno, str(reason.errno))
        place = ": %s" % reason.filename if reason.filename else ""
        return {"unavailable": "%s: %s%s" % (name, os.strerror(reason.errno), place)}
    if isinstance(reason, BaseException):
        return {"unavailable": "%s: %s" % (type(reason).__name__, reason)}
    return {"unavailable": str(reason)}


def is_unavailable(value):
    """True for what `unavailable` returns."""
    return isinstance(value, dict) and set(value) == {"unavailable"}


def read_text(path, limit=READ_LIMIT):
    """The first `limit` bytes of a file as text (UTF-8, undecodable bytes replaced).

    :raises OSError: when it cannot be opened or read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        parts, left = [], limit
        while left > 0:
            part = os.read(fd, min(left, CHUNK))
            if not part:
                break
            parts.append(part)
            left -= len(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode("utf-8", "replace")


def tail_text(path, lines, limit=READ_LIMIT):
    """The last `lines` lines of a regular file, looking at no more than its last `limit` bytes.

    :returns: ``{"path", "size" (bytes), "lines": [str], "truncated": bool}``; truncated says that
        the file has more than what is shown.
    :raises OSError: when it cannot be opened, or is no regular file (EINVAL; a FIFO would block).
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        start = max(0, info.st_size - limit)
        data, want = b"", info.st_size - start
        os.lseek(fd, start, os.SEEK_SET)
        while len(data) < want:
            part = os.read(fd, min(want - len(data), CHUNK))
            if not part:
                break
            data += part
    finally:
        os.close(fd)
    found = data.decode("utf-8", "replace").splitlines()
    if start and found:
        found = found[1:]  # the first one is cut somewhere
    kept = found[-lines:] if lines > 0 else []
    return {"path": path, "size": info.st_size, "lines": kept, "truncated": bool(start) or len(kept) < len(found)}


def stream_command(argv, on_line, timeout, max_lines=None, max_bytes=None, stopping=None):
    """Runs a command at low priority and hands over its standard output line by line.

    :param argv: program and arguments; no shell.
    :param on_line: called with each line (bytes, no newline).
    :param timeout: seconds, after which the command is killed.
    :param max_lines: stop (and kill) after so many lines.
    :param max_bytes: stop (and kill) after so many bytes of output.
    :param stopping: called now and then; True ends the command.
    :returns: ``{"status": int|None, "lines": n, "truncated": None | reason, "stderr": str}``; status is
        None when the command was killed.
    :raises OSError: when the program cannot be started (ENOENT: not installed).
    """
    environment = dict(os.environ, LC_ALL="C", LANG="C")
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout
    lines = taken = 0
    truncated, rest, complaints, finished = None, b"", b"", False
    try:
        try:
            os.setpriority(os.PRIO_PROCESS, child.pid, 19)  # a look at the server must not slow it down
        except OSError:
            pass  # already gone
        out, err = child.stdout.fileno(), child.stderr.fileno()
        waiting = select.poll()  # select() stops at descriptor 1023
        for fd in (out, err):
            waiting.register(fd, select.POLLIN | select.POLLHUP)
        opened = 2
        while opened and truncated is None:
            left = deadline - time.monotonic()
            if left <= 0:
                truncated = "time limit of %g s" % timeout
                break
            if stopping is not None and stopping():
                truncated = "cancelled"
                break
            for fd, _ in waiting.poll(min(left, 0.5) * 1000):
                data = os.read(fd, CHUNK)
                if not data:
                    waiting.unregister(fd)
                    opened -= 1
                    continue
                if fd == err:
                    complaints = (complaints + data)[:4096]
                    continue
                taken += len(data)
                pieces = (rest + data).split(b"\n")
                rest = pieces.pop()
                for piece in pieces:
                    if max_lines is not None and lines >= max_lines:
                        truncated = "line limit of %d" % max_lines
                        break
                    on_line(piece)
                    lines += 1
                if truncated is None and max_bytes is not None and taken >= max_bytes:
                    truncated = "size limit of %d bytes" % max_bytes
                if truncated is not None:
                    break
        if truncated is None and rest:
            on_line(rest)
            lines += 1
        finished = truncated is None
    finally:
        _end(child, 1.0 if finished else 0.0)
        child.stdout.close()
        child.stderr.close()
    return {
        "status": child.returncode if truncated is None else None,
        "lines": lines,
        "truncated": truncated,
        "stderr": complaints.decode("utf-8", "replace").strip(),
    }


def _end(child, grace):
    """Waits `grace` seconds for a child to end by itself, then kills and reaps it."""
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def command_text(argv, timeout, max_lines=None, max_bytes=READ_LIMIT, stopping=None):
    """Runs a command and returns its bounded output.

    :returns: `stream_command`'s dict with ``"text"``.
    :raises OSError: when the program cannot be started.
    """
    collected = []
    result = stream_command(argv, collected.append, timeout, max_lines, max_bytes, stopping)
    result["text"] = b"\n".join(collected).decode("utf-8", "replace")[:max_bytes]
    return result
