"""``sysctl_read``: what is in force for kernel settings, and the open-file limits. Changes nothing."""

import resource

from operations import _kernel as kernel


def run(args, context):
    """Reads every key of ``names`` from /proc/sys.

    :returns: ``settings``: key -> ``{"exists", "writeable", "value", "status"}`` (see
        `operations._kernel.read`); ``nofile``: ``{"soft", "hard"}`` of this very process, -1 for unlimited,
        which is what this agent's login got, not what a later login gets.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = args.get("names") or []
    return {
        "changed": False,
        "settings": {name: kernel.read(name) for name in names},
        "nofile": {"soft": soft, "hard": hard},
        "msg": "read %d kernel settings" % len(names),
    }
