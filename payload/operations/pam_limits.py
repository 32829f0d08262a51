"""``community.general.pam_limits``: one line of limits.conf(5)."""

import os
import stat

from operations import OperationError
from operations import _files as files

_UNLIMITED = ("unlimited", "infinity", "-1")


def run(args, context):
    """Makes the file have one line for domain, type and item.

    :param args: ``domain`` (user, ``@group``, ``*``; ``*`` does not cover root), ``limit_type`` soft|hard|-,
        ``limit_item``, ``value``, ``use_max`` / ``use_min`` (keep a listed value that is higher / lower),
        ``dest`` (default /etc/security/limits.conf), ``comment``, ``backup``.
    """
    wanted = str(args["value"])
    fields = (args["domain"], args["limit_type"], args["limit_item"])
    path = args.get("dest") or "/etc/security/limits.conf"
    if args.get("use_max") and args.get("use_min"):
        raise OperationError("use_max and use_min exclude each other")
    _check_value(fields[2], wanted)
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise OperationError("the directory of %s does not exist" % path)
    status, content = files.lstat(path), files.read_bytes(path)
    old = "" if content is None else content.decode("utf-8", "surrogateescape")

    lines, found, kept_why = [], False, None
    for line in old.splitlines(True):
        words = line.split("#", 1)[0].split()
        if len(words) == 4 and tuple(words[:3]) == fields:
            found = True
            value = _choose(wanted, words[3], args)
            if value == words[3]:
                kept_why = "'%s %s' is already %s" % (" ".join(fields), path, value)
            else:
                comment = args.get("comment") or line.partition("#")[2].strip()
                line = _line(fields, value, comment)
        lines.append(line)
    if not found:
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        lines.append(_line(fields, wanted, args.get("comment") or ""))
    new = "".join(lines)
    result = {"changed": new != old or content is None}
    if context.diff:
        result["diff"] = files.content_diff(path, content, new.encode("utf-8", "surrogateescape"))
    if result["changed"]:
        result["msg"] = "%s set to %s in %s" % (" ".join(fields), wanted, path)
    else:
        result["msg"] = kept_why
    if result["changed"] and not context.check:
        if args.get("backup") and content is not None:
            result["backup_file"] = files.backup(path, content, status)
        mode = 0o644 if status is None else stat.S_IMODE(status.st_mode)
        owner = (None, None) if status is None else (status.st_uid, status.st_gid)
        files.write_atomically(path, new.encode("utf-8", "surrogateescape"), mode, *owner)
    return result


def _line(fields, value, comment):
    return "\t".join((*fields, value)) + ("\t#" + comment if comment else "") + "\n"


def _check_value(item, value):
    if item in ("nice", "priority"):
        try:
            valid = -20 <= int(value) <= 19
        except ValueError:
            valid = False
        if not valid:
            raise OperationError("%s must be a number from -20 to 19, not '%s'" % (item, value))
    elif value not in _UNLIMITED and not value.isdigit():
        raise OperationError("%s must be a number or one of %s, not '%s'" % (item, ", ".join(_UNLIMITED), value))


def _choose(wanted, listed, args):
    """The value that stays, under use_max and use_min."""
    if not (args.get("use_max") or args.get("use_min")):
        return wanted

    def size(text):
        return float("inf") if text in _UNLIMITED else float(text)

    pick = max if args.get("use_max") else min
    return pick((listed, wanted), key=size)
