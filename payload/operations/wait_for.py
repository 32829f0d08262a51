"""``wait_for``: waits until a port accepts, stops or is drained, or a path appears or goes. Changes nothing."""

import os
import re
import socket
import struct
import time

from operations import OperationError
from operations import _files as files

_STATES = {"SYN_SENT": 2, "SYN_RECV": 3, "ESTABLISHED": 1, "FIN_WAIT1": 4, "FIN_WAIT2": 5, "TIME_WAIT": 6}
_ACTIVE = ("ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "SYN_RECV", "SYN_SENT", "TIME_WAIT")
_NET = "/proc/net"
_MAPPED = b"\0" * 10 + b"\xff\xff"  # how an IPv4 address is written as an IPv6 one


def run(args, context):
    """Waits for one condition.

    :param args: ``port`` with ``host`` (default 127.0.0.1), or ``path``; ``state`` started|present,
        stopped|absent, or drained (no connection of ``host``:``port`` is in one of ``active_connection_states``,
        those with ``exclude_hosts`` not counted); ``timeout`` (default 300 s), ``delay`` (0 s before the first
        look), ``sleep`` (1 s between looks), ``connect_timeout`` (5 s); ``search_regex`` (what the file, or what
        comes from the port, must match); ``msg`` (what a timeout says). Neither port nor path: waits ``timeout``.
    :returns: ``elapsed``: whole seconds waited; ``match_groups``, ``match_groupdict``.
    :raises OperationError: at the timeout.
    """
    if context.check:
        # As in Ansible: what it would wait for may be what an earlier task did not do either.
        return {"changed": False, "skipped": True, "msg": "not waited for in check mode"}
    began = time.monotonic()
    timeout = float(args.get("timeout", 300))
    state = args.get("state") or "started"
    what, holds = _condition(args, state, began + timeout)
    result = {"changed": False, "state": state, "match_groups": [], "match_groupdict": {}}
    for key in ("port", "path", "search_regex"):
        result[key] = args.get(key)
    path = args.get("path")
    _sleep(float(args.get("delay", 0)), context)
    while True:
        found = holds() if holds is not None else None
        if found:
            result["elapsed"] = int(time.monotonic() - began)
            if path and os.path.exists(files.expand(path)):
                result.update(files.describe(files.expand(path)))
            if found is not True:
                result["match_groups"] = [_text(one) for one in found.groups()]
                result["match_groupdict"] = {name: _text(one) for name, one in found.groupdict().items()}
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


def _text(group):
    return None if group is None else group.decode("utf-8", "replace")


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


def _condition(args, state, end):
    """(sentence that is true once it holds, function that then returns True or a match; None without condition).

    :param end: ``time.monotonic()`` at which waiting ends; no single look goes on after it.
    """
    port, path = args.get("port"), args.get("path")
    if port is not None and path:
        raise OperationError("wait_for takes port or path, not both", elapsed=0)
    if path and state in ("stopped", "drained"):
        raise OperationError("state=%s is for a port, not for a path" % state, elapsed=0)
    if args.get("exclude_hosts") is not None and state != "drained":
        raise OperationError("exclude_hosts needs state=drained", elapsed=0)
    pattern = _pattern(args.get("search_regex"))
    host, up = args.get("host") or "127.0.0.1", state in ("started", "present")
    if state == "drained":
        if port is None:
            raise OperationError("state=drained needs port", elapsed=0)
        count = _counter(host, int(port), args)
        return "%s:%d has no active connection" % (host, port), lambda: count() == 0
    if port is not None:
        port, pause = int(port), float(args.get("connect_timeout", 5))
        if not up:
            return "%s:%d does not accept connections" % (host, port), lambda: not _accepts(host, port, pause)
        if pattern is None:
            return "%s:%d accepts connections" % (host, port), lambda: _accepts(host, port, pause)
        sentence = "what %s:%d says matches '%s'" % (host, port, args["search_regex"])
        return sentence, lambda: _says(host, port, pause, pattern, end)
    if path:
        path = files.expand(path)
        if not up:
            return "%s does not exist" % path, lambda: not os.path.exists(path)
        if pattern is None:
            return "%s exists" % path, lambda: os.path.exists(path)
        return "%s matches '%s'" % (path, args["search_regex"]), lambda: pattern.search(
            files.read_bytes(path) or b""
        )
    return "", None


def _pattern(text):
    if text is None:
        return None
    try:
        return re.compile(text.encode("utf-8", "surrogateescape"), re.MULTILINE)
    except re.error as error:
        raise OperationError("search_regex is no valid regular expression: %s" % error, elapsed=0)


def _accepts(host, port, pause):
    try:
        socket.create_connection((host, port), timeout=pause).close()
    except OSError:
        return False
    return True


def _says(host, port, pause, pattern, end):
    """The match of `pattern` in what a server says by itself, or None."""
    said = b""
    try:
        with socket.create_connection((host, port), timeout=pause) as channel:
            while True:
                channel.settimeout(max(0.01, end - time.monotonic()))
                data = channel.recv(4096)
                said += data
                match = pattern.search(said)
                if match or not data:
                    return match
    except OSError:
        return None


# -- drained: the kernel's own table of connections -----------------------------------------------------


def _counter(host, port, args):
    """A function that counts the active connections of a local address and port."""
    names = args.get("active_connection_states") or _ACTIVE
    unknown = [name for name in names if name not in _STATES]
    if unknown:
        raise OperationError(
            "unknown active_connection_state %s; there are: %s" % (unknown[0], ", ".join(_STATES)), elapsed=0
        )
    states = {_STATES[name] for name in names}
    own = _addresses(host)
    excluded = set()
    for other in args.get("exclude_hosts") or []:
        excluded |= _addresses(other)
    everywhere = any(not any(address) for address in own)  # 0.0.0.0 or ::

    def count():
        return sum(
            1
            for local, local_port, remote, state in connections()
            if state in states and local_port == port and remote not in excluded and (everywhere or local in own)
        )

    return count


def _addresses(host):
    """The addresses of a name, as bytes; IPv4 ones also as IPv6 writes them."""
    try:
        found = socket.getaddrinfo(host, None, 0, socket.SOCK_STREAM)
    except OSError as error:
        raise OperationError("cannot find the address of %s: %s" % (host, error), elapsed=0)
    addresses = set()
    for family, _kind, _protocol, _name, address in found:
        raw = socket.inet_pton(family, address[0].partition("%")[0])
        addresses.add(raw)
        if family == socket.AF_INET:
            addresses.add(_MAPPED + raw if any(raw) else bytes(16))
    return addresses


def connections():
    """(local address, local port, remote address, state number) of every TCP socket; addresses are bytes."""
    for name in ("tcp", "tcp6"):
        path = os.path.join(_NET, name)
        if not os.path.exists(path):
            continue  # a kernel without IPv6
        with open(path) as table:
            next(table, None)
            for line in table:
                fields = line.split()
                local, remote = fields[1].split(":"), fields[2].split(":")
                yield _raw(local[0]), int(local[1], 16), _raw(remote[0]), int(fields[3], 16)


def _raw(words):
    """The kernel prints each 4 bytes as a number of the machine's own byte order."""
    return b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
