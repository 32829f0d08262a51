"""``slurp``: brings the content of one file back, base64-encoded. Changes nothing."""

import base64
import os

from operations import OperationError
from operations import _files as files

_LIMIT = 16 * 1024 * 1024  # bytes; what is larger is for fetch, it would fill one message


def run(args, context):
    """Returns ``content`` (base64 text), ``source`` and ``encoding``, as Ansible does."""
    source = files.expand(args["src"])
    if os.path.isdir(source):
        raise OperationError("source is a directory and must be a file: %s" % source)
    content = files.read_bytes(source, _LIMIT)
    if content is None:
        raise OperationError("file not found: %s" % source)
    return {
        "changed": False,
        "content": base64.b64encode(content).decode("ascii"),
        "source": source,
        "encoding": "base64",
        "msg": "read %d bytes" % len(content),
    }
