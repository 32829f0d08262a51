"""``upload``: takes one piece of a file too large for one message; `operations.copy` then makes the file of it.

The pieces go to a file without a name on the target's own file system: when the agent ends, however it ends,
the kernel forgets it.
"""

import base64
import os
import tempfile

from operations import OperationError
from operations import _files as files

_OPEN = {}  # token -> binary file


def run(args, context):
    """Adds a piece.

    :param args: ``token`` (the sender's name for this upload); ``dest`` (where the file will go); ``offset``
        (bytes that must have arrived before); ``content_b64``.
    :returns: ``size``: bytes that have arrived.
    :raises OperationError: for a piece out of order, or when the disk is full.
    """
    token, offset = str(args["token"]), int(args["offset"])
    if offset == 0:
        drop(token)
        _OPEN[token] = _open(files.absolute(args["dest"], "dest"))
    try:
        handle = _OPEN[token]
        if handle.seek(0, os.SEEK_END) != offset:
            raise KeyError(token)
        handle.write(base64.b64decode(args["content_b64"].encode("ascii")))
        handle.flush()
    except KeyError:
        raise OperationError("a piece of the upload is missing before byte %d" % offset)
    except OSError as error:
        drop(token)
        raise OperationError("cannot keep what was sent for %s: %s" % (args["dest"], error.strerror))
    return {"changed": False, "size": handle.tell(), "msg": "%d bytes have arrived" % handle.tell()}


def _open(dest):
    folder = os.path.dirname(dest)
    while not os.path.isdir(folder):  # copy makes missing folders, once it knows that all is well
        folder = os.path.dirname(folder)
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise OperationError("cannot write in %s: %s" % (folder, error.strerror))


def opened(token):
    """The file with all pieces so far. :raises OperationError: when there is none."""
    if token not in _OPEN:
        raise OperationError("nothing was sent under this token")
    return _OPEN[token]


def drop(token):
    """Forgets an upload."""
    handle = _OPEN.pop(token, None)
    if handle is not None:
        handle.close()
