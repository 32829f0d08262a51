"""``wait_for``: waits until a port accepts (or stops), or a path appears (or goes). Changes nothing."""

import os
import re
import socket
import time

from operations import OperationError
from operations._files import read_bytes


def run(args, context):
    """Waits for one condition.

    :param args: ``port`` with ``host`` (default 127.0.0.1), or ``path``; ``state`` started|present or
        stopped|absent; ``timeout`` (default 300 s), ``delay`` (0 s before the first look), ``sleep`` (1 s
        between looks), ``connect_timeout`` (5 s); ``search_regex`` (with ``path``: its content must match);
        ``msg`` (what a timeout says). Neither port nor path: waits ``timeout`` seconds.
    :returns: ``elapsed``: whole seconds waited.
    :raises OperationError: at the timeout.
    """
    if context.check:
        # As in Ansible: what it would wait for may be what an earlier task did not do either.
        return {"changed": False, "skipped": True, "msg": "not waited for in check mode"}
    began = time.monotonic()
    timeout = float(args.get("timeout", 300))
    state = {"present": "started", "absent": "stopped"}.get(args.get("state"), args.get("state")) or "started"
    what, holds = _condition(args, state == "started")
    result = {"changed": False, "state": args.get("state") or "started"}
    for key in ("port", "path", "search_regex"):
        result[key] = args.get(key)
    _sleep(float(args.get("delay", 0)), context)
    while True:
        if holds is not None and holds():
            result["elapsed"] = int(time.monotonic() - began)
            result["msg"] = what
            return result
        left = timeout - (time.monotonic() - began)
        if left <= 0:
            if holds is None:
                result["elapsed"] = int(time.monotonic() - began)
                result["msg"] = "waited %g s" % timeout
                return result
            sentence = args.get("msg") or "timeout after %g s: not true that %s" % (timeout, what)
            raise OperationError(sentence, elapsed=int(time.monotonic() - began))
        _sleep(min(left, float(args.get("sleep", 1))), context)


def _sleep(seconds, context):
    """Sleeps, and ends early when the controller is gone."""
    until = time.monotonic() + seconds
    while True:
        if context.stopping():
            raise OperationError("cancelled while waiting")
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, 0.2))


def _condition(args, up):
    """(sentence that is true once it holds, function without arguments or None)."""
    if args.get("port") is not None and args.get("path"):
        raise OperationError("wait_for takes port or path, not both")
    if args.get("port") is not None:
        host, port = args.get("host") or "127.0.0.1", int(args["port"])
        pause = float(args.get("connect_timeout", 5))
        word = "accepts" if up else "does not accept"
        return "%s:%d %s connections" % (host, port, word), lambda: _accepts(host, port, pause) is up
    if args.get("path"):
        path, pattern = args["path"], args.get("search_regex")
        if pattern and up:
            expression = re.compile(pattern.encode("utf-8"), re.MULTILINE)
            return "%s matches '%s'" % (path, pattern), lambda: bool(expression.search(read_bytes(path) or b""))
        word = "exists" if up else "does not exist"
        return "%s %s" % (path, word), lambda: os.path.exists(path) is up
    return "", None


def _accepts(host, port, pause):
    try:
        socket.create_connection((host, port), timeout=pause).close()
    except OSError:
        return False
    return True
