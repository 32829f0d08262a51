"""``copy``: one file with given content, owner and mode. ``template`` arrives here already rendered."""

import base64
import os
import shlex
import stat

from operations import OperationError
from operations import _files as files


def run(args, context):
    """Makes the file at ``dest`` have the content given.

    :param args: ``dest``; ``content_b64`` (base64 of the bytes); ``basename`` (name to take when ``dest`` is a
        folder); ``mode``, ``owner``, ``group``; ``force`` (False: leave an existing file); ``follow`` (write
        through a symlink instead of replacing it); ``backup``; ``validate`` (command with ``%s``).
    :returns: ``dest``, ``checksum``, owner, group, mode, size; ``backup_file`` where one was made.
    """
    try:
        content = base64.b64decode(args["content_b64"].encode("ascii"))
    except (KeyError, ValueError) as error:
        raise OperationError("copy needs content_b64: %s" % error)
    dest = _destination(args)
    status = files.lstat(dest)
    if status is not None and stat.S_ISLNK(status.st_mode) and args.get("follow"):
        dest = os.path.realpath(dest)
        status = files.lstat(dest)
    if status is not None and not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        raise OperationError("%s exists and is no regular file" % dest, dest=dest)
    if status is not None and args.get("force") is False:
        return _result(dest, False, "%s exists and force is false" % dest)

    link = status is not None and stat.S_ISLNK(status.st_mode)
    before = None if status is None or link else files.read_bytes(dest)
    same = before == content
    result = {}
    if context.diff:
        result["diff"] = files.content_diff(dest, before, content) if not same else {"before": "", "after": ""}
    if same:
        done = files.apply_attributes(dest, status, args, context.check)
        if done and context.diff:
            result["diff"] = _attribute_diff(dest, done)
        why = ", ".join(done) if done else "%s already has this content, owner and mode" % dest
        return _result(dest, bool(done), why, result)

    folder = os.path.dirname(dest) or "."
    if status is None or link:
        mode = files.parse_mode(args.get("mode"), 0o666 & ~files.umask())
        uid, gid = files.uid_of(args.get("owner")), files.gid_of(args.get("group"))
    else:
        mode = files.parse_mode(args.get("mode"), status.st_mode)
        uid, gid = files.uid_of(args.get("owner")), files.gid_of(args.get("group"))
        uid, gid = status.st_uid if uid is None else uid, status.st_gid if gid is None else gid
    what = "created" if status is None else "replaced the symlink" if link else "content changed"
    if context.check:
        result.update(checksum=files.sha1(content), dest=dest, changed=True, msg="would be %s" % what)
        return result
    if not os.path.isdir(folder):
        raise OperationError("destination directory %s does not exist" % folder, dest=dest)
    if args.get("validate"):
        _validate(args["validate"], dest, content, context)
    if args.get("backup") and before is not None:
        result["backup_file"] = files.backup(dest, before, status)
    files.write_atomically(dest, content, mode, uid, gid)
    return _result(dest, True, what, result)


def _destination(args):
    dest = os.path.expanduser(args["dest"])
    if not os.path.isabs(dest):
        raise OperationError("dest must be an absolute path, not '%s'" % dest)
    if dest.endswith("/") or os.path.isdir(dest):
        if not args.get("basename"):
            raise OperationError("%s is a directory: dest must name a file when content is given" % dest)
        return os.path.join(dest, args["basename"])
    return dest


def _attribute_diff(dest, done):
    pairs = [sentence.split(" ", 1) for sentence in done]
    before = "".join("%s: %s\n" % (name, change.split(" -> ")[0]) for name, change in pairs)
    after = "".join("%s: %s\n" % (name, change.split(" -> ")[1]) for name, change in pairs)
    return {"before": before, "after": after, "before_header": dest, "after_header": dest}


def _validate(command, dest, content, context):
    """Runs the user's check over the content before it takes the target's place."""
    if "%s" not in command:
        raise OperationError("validate must contain %%s, the name of the file to check: %s" % command)
    token = "".join("%02x" % byte for byte in os.urandom(8))
    trial = os.path.join(os.path.dirname(dest), ".%s.validate-%s" % (os.path.basename(dest)[:100], token))
    files.write_atomically(trial, content, 0o600)
    argv = shlex.split(command.replace("%s", shlex.quote(trial)))
    try:
        done = context.run_command(argv)
    except OSError as error:
        raise OperationError("cannot run the validate command '%s': %s" % (command, error.strerror))
    finally:
        os.unlink(trial)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
        raise OperationError("failed to validate: '%s' exited %d: %s" % (command, done.returncode, output))


def _result(dest, changed, msg, extra=None):
    result = dict(extra or {})
    content = files.read_bytes(dest) if os.path.isfile(dest) else None
    result.update(files.describe(dest))
    result.pop("path")
    result.update(changed=changed, msg=msg, dest=dest)
    if content is not None:
        result["checksum"] = files.sha1(content)
    return result
