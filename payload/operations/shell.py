"""``shell``: runs one line (or script) of a shell. Arguments and result as `operations.command`."""

from operations import OperationError
from operations.command import execute


def run(args, context):
    """Runs ``cmd`` through ``executable`` (default /bin/sh) with ``-c``; see `operations.command.run`."""
    line = args.get("cmd")
    if not line:
        raise OperationError("no command given", rc=256)
    return execute([args.get("executable") or "/bin/sh", "-c", line], line, args, context)
