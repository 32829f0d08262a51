"""``slurp``: brings the content of one file back, base64-encoded. Changes nothing."""

import base64

from operations import OperationError
from operations._files import read_bytes


def run(args, context):
    """Returns ``content`` (base64 text), ``source`` and ``encoding``, as Ansible does."""
    content = read_bytes(args["src"])
    if content is None:
        raise OperationError("file not found: %s" % args["src"])
    return {
        "changed": False,
        "content": base64.b64encode(content).decode("ascii"),
        "source": args["src"],
        "encoding": "base64",
        "msg": "read %d bytes" % len(content),
    }
