"""Handlers that are owed: notified by a change that was made, and not run yet.

A play that fails between a change and the handlers it notified leaves the change in force and the handlers
undone, and its next run finds nothing to change. So what is owed is kept on the host, in one JSON file of the
login user, {play: [handler names in the order of their notification]}, until the handlers have run.
"""

import json
import os

import journal
from journal import state_folder as place

from operations import OperationError
from operations import _files as files


def run(args, context):
    """Reads or changes what a play owes this host.

    :param args: ``play`` (its name for this purpose); ``action`` read, add or done; ``names`` of handlers, for
        add and done.
    :returns: ``names`` owed afterwards.
    """
    play, action = args["play"], args["action"]
    path = os.path.join(place(), "handlers.json")
    if os.path.lexists(place()):
        journal.private(place(), place())
    content = files.read_bytes(path)
    try:
        owed = {} if content is None else json.loads(content.decode("utf-8"))
        names = list(owed.get(play, []))
    except (ValueError, AttributeError, TypeError):
        raise OperationError("%s, where pending handlers are kept, is damaged: look at it and remove it" % path)
    if action == "read":
        return {"changed": False, "names": names, "msg": "%d handlers owed" % len(names)}
    if action == "add":
        wanted = names + [name for name in args["names"] if name not in names]
    else:
        wanted = [name for name in names if name not in args["names"]]
    if wanted != names:
        owed.pop(play, None)
        if wanted:
            owed[play] = wanted
        _write(path, owed)
    return {"changed": False, "names": wanted, "msg": "%d handlers owed" % len(wanted)}


def _write(path, owed):
    try:
        journal.private(os.path.dirname(path), os.path.dirname(path))
        if not owed:
            os.unlink(path)
            try:
                os.rmdir(os.path.dirname(path))
            except OSError:
                pass  # something else is kept there
            return
    except OSError as error:
        raise OperationError("cannot keep pending handlers in %s: %s" % (path, error.strerror))
    files.write_atomically(path, json.dumps(owed, sort_keys=True).encode("utf-8"), 0o600)
