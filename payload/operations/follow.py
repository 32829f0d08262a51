"""``follow``: the end of a log file, and on request what is written to it from then on. Changes nothing."""

import errno
import os
import stat
import time

from observe_read import tail_text

from operations import OperationError
from operations import _files as files

_LOOK_SECONDS = 0.25  # between two looks at the file
_PIECE = 64 * 1024  # bytes that one message to the controller may bring
_MOST_LINES = 10000


def run(args, context):
    """Returns ``lines``; with ``follow``, sends {"lines": [...]} as they come until the controller is gone.

    A file that is moved away is read to its end, then the new one of that name from its beginning; one that was
    cut is read from its beginning. Only whole lines are sent.

    :param args: ``path``; ``lines``: how many of the last lines (default 10); ``follow``: go on (default false).
    :raises OperationError: there is no such file, or it cannot be read.
    """
    path, wanted = files.expand(args["path"]), int(args.get("lines", 10))
    if not 0 <= wanted <= _MOST_LINES:
        raise OperationError("lines must be 0 to %d" % _MOST_LINES)
    try:
        found = tail_text(path, wanted)
    except OSError as error:
        raise OperationError("cannot read %s: %s" % (path, error.strerror))
    if args.get("follow"):
        context.progress({"lines": found["lines"]})
        _follow(path, found["size"], context)
    return {"changed": False, "lines": found["lines"], "msg": "%d lines of %s" % (len(found["lines"]), path)}


def _follow(path, at, context):
    fd = _open(path)
    rest = b""
    try:
        while not context.stopping():
            size = os.fstat(fd).st_size
            if size < at:
                at, rest = 0, b""
            data = os.pread(fd, _PIECE, at)
            if data:
                at += len(data)
                lines = (rest + data).split(b"\n")
                rest = lines.pop()[-_PIECE:]
                if lines:
                    context.progress({"lines": [line.decode("utf-8", "replace") for line in lines]})
                continue
            try:
                moved = not os.path.samestat(os.fstat(fd), os.stat(path))
                if moved:
                    new = _open(path)
                    os.close(fd)
                    fd, at, rest = new, 0, b""
                    continue
            except OSError as error:
                if error.errno != errno.ENOENT:  # between the move and the new file
                    raise OperationError("cannot read %s: %s" % (path, error.strerror))
            time.sleep(_LOOK_SECONDS)
    finally:
        os.close(fd)


def _open(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OperationError("%s is not a regular file" % path)
    return fd
