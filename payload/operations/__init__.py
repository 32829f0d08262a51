"""What an agent can do on a host: one small module per operation, found through this table.

An operation module has one function, ``run(args, context) -> dict``:

* ``args``: dict, already validated for presence and type by the controller, checked again here.
* ``context.check``: True when nothing may be changed; report what would be.
* ``context.diff``: True when the result should carry ``diff``.
* ``context.progress(data)``: sends one dict to the controller while the operation runs.
* ``context.stopping()``: True once the controller is gone or has cancelled; long loops look at it.

What changes the host says so to journal.py first; what goes through `_files` and `_kernel` has done so.

It returns a dict with ``changed`` (bool) and ``msg`` (why it did something, or why it did nothing), and
where they apply ``diff`` (``{"before", "after", "before_header", "after_header"}``), ``before``, ``after``,
``status``. Failure is ``raise OperationError(msg, **fields)``; never a silent default.

To add one: one file here, one row below, one file of cases under tests/unit/operations/.
"""

# name on the wire -> module in this package
TABLE = {
    "stress": "stress",
    "blockinfile": "blockinfile",
    "clean": "clean",
    "command": "command",
    "copy": "copy",
    "copy_tree": "copy_tree",
    "fetch": "fetch",
    "file": "file",
    "follow": "follow",
    "handlers": "handlers",
    "lineinfile": "lineinfile",
    "pam_limits": "pam_limits",
    "observe": "observe",
    "ping": "ping",
    "rollback": "rollback",
    "sample": "sample",
    "setup": "setup",
    "shell": "shell",
    "slurp": "slurp",
    "stat": "stat",
    "sysctl": "sysctl",
    "sysctl_read": "sysctl_read",
    "systemd": "systemd",
    "upload": "upload",
    "wait_for": "wait_for",
}


class OperationError(Exception):
    """The operation could not do what was asked; becomes ``{"failed": true, "msg": ..., **fields}``."""

    def __init__(self, msg, **fields):
        super(OperationError, self).__init__(msg)
        self.msg = msg
        self.fields = fields
