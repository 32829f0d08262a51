"""Kernel settings under /proc/sys: where a key lives, what is in force, and writing one with proof.

A write counts only as read back: the exit status of ``sysctl -w`` is no evidence (it is 0 for a refused
write on some systems), and the kernel may accept one value and keep another.
"""

import errno
import os
import stat

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


def write(name, value):
    """Writes a value and reads it back.

    :returns: ``(status, errno name or None, value in force or None, sentence)``; status is applied, absent,
        read-only or refused.
    """
    path = key_path(name)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # A newline ends the value; for an empty value it is what makes the kernel look at the write at all.
            os.write(descriptor, (tidy(value) + "\n").encode("utf-8"))
        finally:
            os.close(descriptor)
    except OSError as error:
        code = errno.errorcode.get(error.errno, str(error.errno))
        if error.errno == errno.ENOENT:
            return "absent", code, None, "this kernel has no %s here" % name
        now = read(name)["value"]
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return "read-only", code, now, "%s cannot be written here (%s)" % (name, error.strerror)
        return "refused", code, now, "the kernel refused %s = %s (%s)" % (name, tidy(value), error.strerror)
    now = read(name)["value"]
    if now is None or not same(now, value):
        return "refused", None, now, "the kernel took %s = %s but has %s in force" % (name, tidy(value), now)
    return "applied", None, now, "applied"
