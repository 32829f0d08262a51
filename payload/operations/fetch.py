"""``fetch``: brings a file of this host to the controller, piece by piece. Changes nothing here."""

import base64
import errno
import hashlib
import os

from operations import OperationError

PIECE = 4 * 1024 * 1024  # bytes of content in one answer


def run(args, context):
    """One look at a file, or one piece of it.

    :param args: ``src``; ``offset``: bytes that are there already; ``have``: SHA-1 of the controller's copy, so
        that nothing is sent when it is the same.
    :returns: ``source`` (the path expanded), ``content_b64``, ``last`` (nothing follows); on the first look also
        ``checksum`` and ``size``; or ``missing`` (a sentence) when there is no such file, ``directory``: True.
    """
    source = os.path.expanduser(args["src"])
    offset = int(args.get("offset") or 0)
    result = {"changed": False, "source": source, "msg": "read %s" % source}
    try:
        if os.path.isdir(source):
            return dict(result, directory=True)
        if os.path.exists(source) and not os.path.isfile(source):
            raise OperationError("%s is no regular file" % source, file=source)
        with open(source, "rb") as handle:
            if offset == 0:
                first = handle.read(PIECE + 1)
                # Files of /proc say that they have no size, so what could be read is what counts.
                checksum, size = _rest(handle, first)
                result.update(checksum=checksum, size=size)
                if checksum == args.get("have"):
                    return dict(result, last=True)
                piece, last = first[:PIECE], len(first) <= PIECE
            else:
                handle.seek(offset)
                piece = handle.read(PIECE + 1)
                piece, last = piece[:PIECE], len(piece) <= PIECE
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return dict(result, missing="the remote file does not exist")
        raise OperationError("cannot read %s: %s" % (source, error.strerror), file=source)
    return dict(result, content_b64=base64.b64encode(piece).decode("ascii"), last=last)


def _rest(handle, first):
    """(SHA-1, size) of `first` and all that follows it."""
    digest = hashlib.sha1(first)  # noqa: S324
    size = len(first)
    if size > PIECE:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size
