"""``file``: a directory, a link, an empty file, or nothing, at a path, with owner, mode and times."""

import os
import shutil
import stat
import time

import journal

from operations import OperationError
from operations import _files as files

_NOW = object()


def run(args, context):
    """Brings ``path`` to ``state``.

    :param args: ``path``; ``state`` file|directory|absent|link|hard|touch (default: what is there, else file, or
        directory under ``recurse``); ``mode``, ``owner``, ``group``; ``recurse`` (directory: the same for all
        below); ``src`` (link target); ``force`` (link and hard: replace what is in the way, link to what does not
        exist); ``follow`` (default True: a symlink at ``path`` stands for what it leads to);
        ``modification_time`` and ``access_time`` (``preserve``, ``now``, or a time in
        ``modification_time_format`` / ``access_time_format``, default ``%Y%m%d%H%M.%S``; default now for touch).
    """
    return bring(args, context)


def bring(args, context):
    """See `run`; for other operations that make folders and links."""
    told = files.absolute(args["path"])  # what results call it: with the slash that it may end in
    path = told.rstrip("/") or "/"
    state = args.get("state")
    if state not in ("link", "absent") and os.path.isdir(path) and args.get("src"):
        told = path = os.path.join(path, os.path.basename(args["src"]))
    before = files.state_of(files.lstat(path))
    if state is None:
        state = before if before != "absent" else "directory" if args.get("recurse") else "file"
    if args.get("recurse") and state != "directory":
        raise OperationError("recurse needs state=directory", path=path)
    if args.get("src") and state not in ("link", "hard"):
        raise OperationError("src needs state=link or state=hard", path=path)
    follow = args.get("follow", True)
    if before == "link" and follow and state in ("file", "directory"):
        path = os.path.realpath(path)
        told = told if told.endswith("/") else path
        before = files.state_of(files.lstat(path))
    done = _STATES[state](path, files.lstat(path), dict(args, follow=follow), context.check)
    result = files.describe(path)
    if context.check and state == "absent":
        result = {"state": "absent"}
    result["path"] = told
    if state in ("link", "hard", "touch"):
        result["dest"] = told
    if args.get("src"):
        result["src"] = args["src"]
    result["changed"] = bool(done)
    already = "%s is already absent" if state == "absent" else "%s is already as asked (" + state + ")"
    result["msg"] = ", ".join(done) if done else already % path
    if context.diff and done:
        result["diff"] = _diff(path, before, "file" if state == "touch" else state, done)
    return result


def _diff(path, before, after, done):
    diff = {
        "before": "state: %s\n" % before,
        "after": "state: %s\n" % after,
        "before_header": path,
        "after_header": path,
    }
    for sentence in done:
        name, arrow, new = sentence.partition(" -> ")
        if arrow and " " in name:
            what, old = name.rsplit(" ", 1)
            diff["before"] += "%s: %s\n" % (what, old)
            diff["after"] += "%s: %s\n" % (what, new)
    return diff


def _explain(action, path, error):
    return OperationError("cannot %s %s: %s" % (action, path, error.strerror), path=path)


def _followed(path, args):
    return os.path.realpath(path) if args["follow"] and os.path.islink(path) else path


# -- times ---------------------------------------------------------------------------------------------


def _time(args, name, default):
    """Seconds since the epoch, `_NOW`, or None to leave a time alone."""
    text = args.get(name) or default
    if text == "preserve":
        return None
    if text == "now":
        return _NOW
    form = args.get(name + "_format") or "%Y%m%d%H%M.%S"
    try:
        return time.mktime(time.strptime(text, form))
    except (ValueError, OverflowError) as error:
        raise OperationError("%s is no time in the format %s: %s" % (name, form, error))


def _times(args, default="preserve"):
    return _time(args, "modification_time", default), _time(args, "access_time", default)


def _set_times(path, times, check):
    """Sets modification and access time; returns sentences."""
    modified, accessed = times
    if modified is None and accessed is None:
        return []
    try:
        status = os.stat(path)
        if modified is _NOW and accessed is _NOW:
            # Without a time given, who may write the file may do this, not only its owner.
            if not check:
                journal.times(path, status)
                os.utime(path)
            return ["times set to now"]
        now = time.time()
        wanted = [
            old if new is None else now if new is _NOW else new
            for new, old in ((accessed, status.st_atime), (modified, status.st_mtime))
        ]
        if wanted == [status.st_atime, status.st_mtime]:
            return []
        if not check:
            journal.times(path, status)
            os.utime(path, tuple(wanted))
    except OSError as error:
        raise _explain("set the times of", path, error)
    pairs = (("atime", status.st_atime, wanted[0]), ("mtime", status.st_mtime, wanted[1]))
    return ["%s %s -> %s" % (name, old, new) for name, old, new in pairs if old != new]


def _attributes(path, args, times, check):
    """Owner, group, mode and times of what is at `path` (of a link: its own, but its target's times)."""
    status = files.lstat(path)
    if status is None:
        return []
    done = files.apply_attributes(path, status, args, check)
    return done + _set_times(path, times, check) if os.path.exists(path) else done


# -- states --------------------------------------------------------------------------------------------


def _file(path, status, args, check):
    found = files.state_of(status)
    if found not in ("file", "hard"):
        raise OperationError("file (%s) is %s, cannot continue" % (path, found), path=path, state=found)
    return _attributes(path, args, _times(args), check)


def _touch(path, status, args, check):
    times = _times(args, "now")
    done = []
    target = os.path.realpath(path) if status is not None and stat.S_ISLNK(status.st_mode) else path
    if files.lstat(target) is None:
        if check:
            return ["created"]
        journal.path(target, {"kind": "file", "sha256": journal.sha256(b"")})
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
        except OSError as error:
            raise _explain("create", path, error)
        done.append("created")
        try:
            return done + _attributes(_followed(path, args), args, times, check)
        except OperationError:
            os.unlink(target)  # what was made for nothing goes again, as in Ansible
            raise
    return done + _attributes(_followed(path, args), args, times, check)


def _directory(path, status, args, check):
    times = _times(args)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        found = files.state_of(status)
        raise OperationError("%s already exists as a %s and is no directory" % (path, found), path=path)
    if status is None:
        return _make(path, args, times, check)
    done = _attributes(path, args, times, check)
    if args.get("recurse"):
        done += _recurse(path, args, times, check, set())
    return done


def _make(path, args, times, check):
    missing, parent, done = [], path, []
    while files.lstat(parent) is None:
        missing.append(parent)
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise OperationError("%s is in the way: it is no directory" % parent, path=path)
    for folder in reversed(missing):
        done.append("created %s" % folder)
        if check:
            continue
        files.make_folder(folder)
        # As Ansible does, each directory made on the way gets the attributes asked for.
        files.apply_attributes(folder, os.lstat(folder), args, False)
    if not check:
        _set_times(path, times, check)
    return done


def _recurse(path, args, times, check, seen):
    """Attributes of all below `path`; under ``follow`` also of what symlinks there lead to."""
    done = []
    for folder, folders, names in os.walk(path):
        for name in sorted(folders + names):
            inner = os.path.join(folder, name)
            done += ["%s: %s" % (inner, change) for change in _attributes(inner, args, times, check)]
            target = os.path.realpath(inner)
            if not os.path.islink(inner) or not args["follow"] or not os.path.exists(target) or target in seen:
                continue
            seen.add(target)
            if os.path.isdir(target):
                done += _recurse(target, args, times, check, seen)
            done += ["%s: %s" % (target, change) for change in _attributes(target, args, times, check)]
    return done


def _absent(path, status, args, check):
    if status is None:
        return []
    if path == "/":
        raise OperationError("will not remove /")
    if not check:
        journal.path(path, {"kind": "absent"}, tree=True)
        try:
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except OSError as error:
            raise _explain("remove", path, error)
    return ["removed"]


def _link(path, status, args, check):
    target, force, found = args.get("src"), args.get("force"), files.state_of(status)
    if not target and found == "link" and args["follow"] and os.path.exists(path):
        target = os.readlink(path)
    if not target and found != "link":
        raise OperationError("state=link needs src, the path the link points to", path=path)
    if target:
        aim = os.path.join(path if found == "directory" else os.path.dirname(path), files.expand(target))
        if not force and not os.path.exists(aim):
            sentence = "src file does not exist, use force=yes if you really want to create the link: %s"
            raise OperationError(sentence % aim, path=path, src=target)
    if found in ("directory", "file", "hard") and not force:
        raise OperationError("refusing to convert from %s to symlink for %s" % (found, path), path=path)
    if found == "directory" and os.listdir(path):
        raise OperationError("the directory %s is not empty, refusing to convert it" % path, path=path)
    done, times = [], _times(args)
    if found != "link" or (target and os.readlink(path) != files.expand(target)):
        done.append("link to %s" % target)
        if not check:
            after = {"kind": "link", "target": files.expand(target)}
            _replace(path, found, after, lambda name: os.symlink(files.expand(target), name))
    if check and (done or not os.path.exists(path)):
        return done
    aim = _followed(path, args)
    if aim != path and not os.path.exists(aim):
        return done  # what is not there has no owner or mode to set
    return done + _attributes(aim, args, times, check)


def _hard(path, status, args, check):
    source, force, found = args.get("src"), args.get("force"), files.state_of(status)
    if not source and found != "hard":
        raise OperationError("state=hard needs src, the file to give another name", path=path)
    done, times = [], _times(args)
    if source:
        source = files.absolute(source, "src")
        if not os.path.exists(source):
            raise OperationError("src does not exist", dest=path, src=source)
        same = status is not None and os.path.exists(path) and os.path.samefile(path, source)
        if not same or found == "link":
            if found not in ("absent", "link") and not force:
                kind = "different hard link" if found == "hard" else found
                raise OperationError("cannot link, %s exists at %s" % (kind, path), dest=path, src=source)
            if found == "directory":
                raise OperationError("%s is a directory, a hard link cannot take its place" % path, path=path)
            real = os.path.realpath(source) if args["follow"] else source
            done.append("hard link to %s" % source)
            if not check:
                after = journal.look(real) if journal.active() else None
                _replace(path, found, after, lambda name: os.link(real, name))
    if check and done:
        return done
    return done + _attributes(_followed(path, args), args, times, check)


def _replace(path, found, after, make):
    """Makes something under a random name and moves it over `path`, so that there is never nothing.

    :param after: the journal's word for what it makes.
    """
    try:
        if found == "directory":
            journal.path(path, {"kind": "absent"}, tree=True)
            os.rmdir(path)
        temporary = files.temporary_name(path, journal.path(path, after))
        try:
            make(temporary)
            os.rename(temporary, path)
        finally:
            if os.path.lexists(temporary):  # rename leaves two names of one file alone
                os.unlink(temporary)
    except OSError as error:
        raise _explain("link", path, error)


_STATES = {
    "absent": _absent,
    "directory": _directory,
    "file": _file,
    "hard": _hard,
    "link": _link,
    "touch": _touch,
}
