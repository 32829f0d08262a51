"""Kernel settings under /proc/sys: where a key lives, what is in force, and writing one with proof.

A write counts only as read back: the exit status of ``sysctl -w`` is no evidence (it is 0 for a refused
write on some systems), and the kernel may accept one value and keep another.
"""

import errno
import glob
import os
import re
import stat

import journal

from operations import OperationError

PROC_SYS = "/proc/sys"


def key_path(name):
    """Path of a key, by sysctl(8)'s rule: whichever of ``.`` and ``/`` comes first separates.

    ``net.ipv4.conf.eth0/1.forwarding`` names the interface ``eth0.1``.

    :raises OperationError: when the name leaves /proc/sys or is empty.
    """
    parts = name.strip()
    separators = [char for char in parts if char in "./"]
    if separators and separators[0] == ".":
        parts = parts.translate({ord("."): "/", ord("/"): "."})
    words = parts.split("/")
    if not parts or any(word in ("", ".", "..") or "\0" in word for word in words):
        raise OperationError("'%s' is no name of a kernel setting" % name, name=name)
    return os.path.join(PROC_SYS, *words)


def same(left, right):
    """True when two values are equal but for the kind of white space: the kernel prints tabs."""
    return str(left).split() == str(right).split()


def tidy(value):
    """A value as people write it: single blanks, no newline."""
    return " ".join(str(value).split())


def read(name):
    """What is in force: ``{"name", "exists", "writeable", "value", "status"}``.

    ``status`` is "ok", "absent", "unreadable" (with ``errno``); ``value`` is None unless "ok".
    """
    path = key_path(name)
    found = {"name": name, "exists": os.path.exists(path), "writeable": False, "value": None, "status": "ok"}
    try:
        if found["exists"] and not stat.S_ISREG(os.stat(path).st_mode):
            raise OperationError("%s is a group of kernel settings, not one" % name, name=name)
        found["writeable"] = found["exists"] and os.access(path, os.W_OK)
        with open(path) as handle:
            found["value"] = tidy(handle.read())
    except OSError as error:
        code = errno.errorcode.get(error.errno, str(error.errno))
        found.update(status="absent" if error.errno == errno.ENOENT else "unreadable", errno=code)
    return found


def raw(name):
    """The value as the kernel has it, without the final newline; None when there is none to be read."""
    try:
        with open(key_path(name), "rb") as handle:
            text = handle.read().decode("utf-8", "surrogateescape")
    except OSError:
        return None
    return text[:-1] if text.endswith("\n") else text


def put(name, value):
    """Writes a value as it is. :raises OSError: when the kernel says no."""
    descriptor = os.open(key_path(name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        # A newline ends the value; for an empty value it is what makes the kernel look at the write at all.
        os.write(descriptor, (value + "\n").encode("utf-8", "surrogateescape"))
    finally:
        os.close(descriptor)


# Keys that the kernel changes along with another: what is written to `all` and `default` reaches the interfaces,
# forwarding takes accept_redirects with it, and of some pairs the one written last zeroes the other.
_PAIRS = (
    ("vm.dirty_ratio", "vm.dirty_bytes"),
    ("vm.dirty_background_ratio", "vm.dirty_background_bytes"),
    ("vm.overcommit_ratio", "vm.overcommit_kbytes"),
)


def coupled(name):
    """Names of the other keys that a write of this one may change, that exist here."""
    key = key_path(name)[len(PROC_SYS) + 1 :]
    dotted = key.replace("/", ".")
    for pair in _PAIRS:
        if dotted in pair:
            return [other for other in pair if other != dotted and os.path.exists(key_path(other))]
    patterns = []
    conf = re.match(r"\Anet/(ipv4|ipv6)/(conf|neigh)/(all|default)/(\w+)\Z", key)
    if conf is not None:
        patterns.append("net/%s/%s/*/%s" % (conf.group(1), conf.group(2), conf.group(4)))
    if key == "net/ipv4/ip_forward" or (conf is not None and conf.group(4) == "forwarding"):
        family = "ipv4" if conf is None else conf.group(1)
        patterns += ["net/%s/conf/*/forwarding" % family, "net/%s/conf/all/accept_redirects" % family]
        patterns += ["net/ipv4/ip_forward"] if family == "ipv4" else []
    found = [path[len(PROC_SYS) + 1 :] for one in patterns for path in glob.glob(os.path.join(PROC_SYS, one))]
    return sorted(set(found) - {key})


def announce(name, value):
    """Tells the journal that a key is about to be written; returns what `settled` wants.

    The keys coupled to it come first, so that they are put back after it.
    """
    if not journal.active() or not os.path.exists(key_path(name)):
        return []
    now = raw(name)
    if now is not None and same(now, value):
        return []
    found = []
    for one, asked in [*((other, None) for other in coupled(name)), (name, value)]:
        where = key_path(one)
        found.append((one, journal.kernel(where[len(PROC_SYS) + 1 :], where, raw(one), asked)))
    return found


def settled(announced):
    """Tells the journal what is in force after the write."""
    for name, entry in announced:
        journal.made(entry, raw(name))


def write(name, value):
    """Writes a value and reads it back.

    :returns: ``(status, errno name or None, value in force or None, sentence)``; status is applied, absent,
        read-only or refused.
    """
    announced = announce(name, tidy(value))
    try:
        put(name, tidy(value))
    except OSError as error:
        settled(announced)
        code = errno.errorcode.get(error.errno, str(error.errno))
        if error.errno == errno.ENOENT:
            return "absent", code, None, "this kernel has no %s here" % name
        now = read(name)["value"]
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return "read-only", code, now, "%s cannot be written here (%s)" % (name, error.strerror)
        return "refused", code, now, "the kernel refused %s = %s (%s)" % (name, tidy(value), error.strerror)
    settled(announced)
    now = read(name)["value"]
    if now is None or not same(now, value):
        return "refused", None, now, "the kernel took %s = %s but has %s in force" % (name, tidy(value), now)
    return "applied", None, now, "applied"
