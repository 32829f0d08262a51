"""``file``: a directory, a link, an empty file, or nothing, at a path, with owner and mode."""

import os
import shutil
import stat

from operations import OperationError
from operations import _files as files


def run(args, context):
    """Brings ``path`` to ``state``.

    :param args: ``path``; ``state`` file|directory|absent|link|touch (default: what is there, else file);
        ``mode``, ``owner``, ``group``; ``recurse`` (directory: the same for all below); ``src`` (link target);
        ``force`` (link: replace a file that is in the way); ``follow`` (default True, as Ansible's).
    """
    path = os.path.expanduser(args["path"])
    if not os.path.isabs(path):
        raise OperationError("path must be absolute, not '%s'" % path)
    path = path.rstrip("/") or "/"
    status = files.lstat(path)
    state = args.get("state") or ("file" if status is None else files.describe(path)["state"])
    before = files.describe(path)["state"]
    linked = status is not None and stat.S_ISLNK(status.st_mode) and os.path.exists(path)
    if linked and state in ("file", "directory", "touch") and args.get("follow", True):
        path = os.path.realpath(path)
        status = files.lstat(path)
        before = files.describe(path)["state"]
    done = _STATES[state](path, status, args, context.check)
    result = files.describe(path) if not context.check else {"path": path, "state": state}
    result["changed"] = bool(done)
    already = "%s is already absent" if state == "absent" else "%s is already as asked (" + state + ")"
    result["msg"] = ", ".join(done) if done else already % path
    if context.diff and done:
        result["diff"] = {
            "before": "state: %s\n" % before,
            "after": "state: %s\n" % ("file" if state == "touch" else state),
            "before_header": path,
            "after_header": path,
        }
        for sentence in done:
            name, arrow, new = sentence.partition(" -> ")
            if arrow and " " in name:
                what, old = name.split(" ", 1)
                result["diff"]["before"] += "%s: %s\n" % (what, old)
                result["diff"]["after"] += "%s: %s\n" % (what, new)
    return result


def _explain(action, path, error):
    return OperationError("cannot %s %s: %s" % (action, path, error.strerror), path=path)


def _file(path, status, args, check):
    if status is None:
        raise OperationError("file (%s) is absent, cannot continue" % path, path=path)
    if not stat.S_ISREG(status.st_mode):
        raise OperationError("%s is no regular file, cannot continue" % path, path=path)
    return files.apply_attributes(path, status, args, check)


def _touch(path, status, args, check):
    if status is not None:
        if not check:
            os.utime(path)
        return [*files.apply_attributes(path, status, args, check), "times set to now"]
    if not check:
        files.write_atomically(path, b"", 0o666 & ~files.umask())
        files.apply_attributes(path, os.lstat(path), args, False)
    return ["created"]


def _directory(path, status, args, check):
    done = []
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise OperationError("%s already exists and is no directory" % path, path=path)
    if status is None:
        missing = []
        parent = path
        while files.lstat(parent) is None:
            missing.append(parent)
            parent = os.path.dirname(parent)
        if not os.path.isdir(parent):
            raise OperationError("%s is in the way: it is no directory" % parent, path=path)
        for folder in reversed(missing):
            done.append("created %s" % folder)
            if not check:
                try:
                    os.mkdir(folder)
                except OSError as error:
                    raise _explain("create", folder, error)
                # As Ansible does, each directory made on the way gets the attributes asked for.
                files.apply_attributes(folder, os.lstat(folder), args, False)
        return done
    done += files.apply_attributes(path, status, args, check)
    if args.get("recurse"):
        for folder, folders, names in os.walk(path):
            for name in folders + names:
                inner = os.path.join(folder, name)
                changes = files.apply_attributes(inner, os.lstat(inner), args, check)
                done += ["%s: %s" % (inner, change) for change in changes]
    return done


def _absent(path, status, args, check):
    if status is None:
        return []
    if path == "/":
        raise OperationError("will not remove /")
    if not check:
        try:
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except OSError as error:
            raise _explain("remove", path, error)
    return ["removed"]


def _link(path, status, args, check):
    target = args.get("src")
    if not target and status is not None and stat.S_ISLNK(status.st_mode):
        target = os.readlink(path)
    if not target:
        raise OperationError("state=link needs src, the path the link points to")
    if status is not None and stat.S_ISLNK(status.st_mode):
        if os.readlink(path) == target:
            return files.apply_attributes(path, status, args, check)
    elif status is not None and (not args.get("force") or stat.S_ISDIR(status.st_mode)):
        raise OperationError("refusing to replace %s, which is no link, by a link" % path, path=path)
    if not check:
        temporary = "%s.tcpfleet-%s" % (path, "".join("%02x" % byte for byte in os.urandom(8)))
        try:
            os.symlink(target, temporary)
            os.rename(temporary, path)
        except OSError as error:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise _explain("link", path, error)
        files.apply_attributes(path, os.lstat(path), args, False)
    return ["link to %s" % target]


_STATES = {"file": _file, "touch": _touch, "directory": _directory, "absent": _absent, "link": _link}
