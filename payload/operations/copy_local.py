"""``copy`` with ``remote_src``: files of this host copied to another place of this host."""

import filecmp
import os
import shutil
import stat

import journal

from operations import OperationError
from operations import _files as files


def run(args, context):
    """Copies ``src``, a file or a folder.

    :param args: ``src``; ``dest``; ``mode`` (``preserve``: the source's), ``owner``, ``group``; ``force``,
        ``follow``, ``backup``, ``validate``, ``checksum`` (what the source must have); ``directory_mode``;
        ``local_follow`` (True: what symlinks in a folder lead to is copied, not they).
        A new or changed file gets the source's times, and its permission bits unless ``mode`` says otherwise. A
        folder named without a final slash is copied itself, with one only what is in it.
    :returns: ``dest``, ``src``, ``checksum`` and what is at ``dest``.
    """
    source = files.absolute(args["src"], "src")
    if not os.path.exists(source):
        raise OperationError("source %s not found" % source, src=source)
    if not os.access(source, os.R_OK):
        raise OperationError("source %s is not readable" % source, src=source)
    if os.path.isdir(source):
        return _folder(source, args, context)
    if not os.path.isfile(source):
        raise OperationError("source %s is no regular file" % source, src=source)
    return _file(source, args, context)


def _file(source, args, context):
    from operations.copy import Content, put

    status = os.stat(source)
    checksum = files.checksum_of(source)
    if args.get("checksum") and args["checksum"] != checksum:
        raise OperationError(
            "%s has not the expected checksum" % source, checksum=checksum, expected_checksum=args["checksum"]
        )
    wanted = dict(args, basename=args.get("basename") or os.path.basename(source))
    if args.get("mode") == "preserve":
        wanted["mode"] = files.mode_text(status.st_mode)
    content = Content({"checksum": checksum, "size": status.st_size})
    wanted = _as_source(wanted, content, status)
    times = (status.st_atime, status.st_mtime)
    if status.st_size <= files.DIFF_LIMIT:
        content.data = files.read_bytes(source)
        result = put(content, wanted, context, times)
    else:
        with open(source, "rb") as content.data:
            result = put(content, wanted, context, times)
    result["src"] = source
    return result


def _as_source(args, content, status):
    """The arguments, with the source's mode where the file will be written and none was asked for."""
    if args.get("mode") is not None:
        return args
    dest = files.absolute(args["dest"], "dest")
    if dest.endswith("/") or os.path.isdir(dest):
        dest = os.path.join(dest, args["basename"])
    same = os.path.isfile(dest) and not os.path.islink(dest) and files.checksum_of(dest) == content.checksum
    return args if same else dict(args, mode=files.mode_text(status.st_mode))


def _folder(source, args, context):
    from operations.copy import make_folders

    dest = files.absolute(args["dest"], "dest")
    if os.path.exists(dest) and not os.path.isdir(dest):
        raise OperationError("%s is a directory and %s is none" % (source, dest), dest=dest)
    top = told = dest
    if not source.endswith("/"):
        dest = os.path.join(dest, os.path.basename(source))
    dest = dest.rstrip("/") or "/"
    if (os.path.realpath(dest) + "/").startswith(os.path.realpath(source) + "/"):
        raise OperationError(
            "%s is inside of %s: a folder cannot be copied into itself" % (dest, source), dest=dest
        )
    if os.path.isdir(top) or top.endswith("/"):
        # What the attributes asked for are of, and the result; a folder that is made on the way has them too.
        top, told = dest, os.path.join(told, os.path.basename(source))
    elif not os.path.isdir(os.path.dirname(top)):
        raise OperationError("destination directory %s does not exist" % os.path.dirname(top), dest=top)
    if args.get("force") is False and os.path.exists(dest):
        return {"changed": False, "dest": told, "src": source, "msg": "%s exists and force is false" % dest}
    if not context.check:
        make_folders(os.path.dirname(dest), args)
    done = []
    _mirror(source.rstrip("/") or "/", dest, args, context, done)
    wanted = args
    if args.get("mode") == "preserve":
        wanted = dict(args, mode=files.mode_text(os.stat(source).st_mode))
    status = files.lstat(top)
    if status is not None:
        done += ["%s: %s" % (top, one) for one in files.apply_attributes(top, status, wanted, context.check)]
    result = {"changed": bool(done), "dest": told, "src": source, "checksum": None}
    if not context.check:
        result = dict(files.describe(top), **result)
        result.pop("path", None)
    result["msg"] = ", ".join(done) if done else "%s already has what is in %s" % (dest, source)
    if context.diff and done:
        result["diff"] = {
            "before": "",
            "after": "\n".join(done) + "\n",
            "before_header": dest,
            "after_header": dest,
        }
    return result


def _mirror(source, dest, args, context, done):
    """Copies what is missing or differs below `source`; nothing at `dest` is removed."""
    follow, owners = bool(args.get("local_follow")), {"owner": args.get("owner"), "group": args.get("group")}
    status = files.lstat(dest)
    if status is None:
        done.append("created %s" % dest)
        if not context.check:
            files.make_folder(dest)
            os.chmod(dest, stat.S_IMODE(os.stat(source).st_mode))
            status = os.lstat(dest)
    if status is not None:
        done += ["%s: %s" % (dest, one) for one in files.apply_attributes(dest, status, owners, context.check)]
    for name in sorted(os.listdir(source)):
        here, there = os.path.join(source, name), os.path.join(dest, name)
        if os.path.islink(here) and not (follow and os.path.exists(here)):
            _link(here, there, owners, context, done)
        elif os.path.isdir(here):
            _mirror(here, there, args, context, done)
        elif os.path.isfile(here):
            _one(here, there, owners, context, done)


def _link(here, there, owners, context, done):
    target = os.readlink(here)
    if os.path.islink(there) and os.readlink(there) == target:
        return
    if os.path.lexists(there):
        raise OperationError("%s exists and is not the link to %s" % (there, target), dest=there)
    done.append("link %s" % there)
    if not context.check:
        journal.path(there, {"kind": "link", "target": target})
        os.symlink(target, there)
        files.apply_attributes(there, os.lstat(there), owners, False)


def _one(here, there, owners, context, done):
    status = files.lstat(there)
    if status is not None and stat.S_ISREG(status.st_mode) and filecmp.cmp(here, there, shallow=False):
        done += ["%s: %s" % (there, one) for one in files.apply_attributes(there, status, owners, context.check)]
        return
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise OperationError("%s is a directory, a file cannot take its place" % there, dest=there)
    done.append("%s %s" % ("created" if status is None else "replaced", there))
    if not context.check:
        _mode, uid, gid = files.new_attributes(status, owners)
        with open(here, "rb") as handle:
            files.write_atomically(there, handle, stat.S_IMODE(os.stat(here).st_mode), uid, gid)
        shutil.copystat(here, there)
