"""``copy``: one file with given content, owner and mode. ``template`` arrives here already rendered.

The content comes with the call, or is already here (``remote_src``), or, when it is large, is only announced by
its checksum: the answer then says whether it is needed, and it follows through `operations.upload`.
"""

import base64
import hashlib
import os
import stat

from operations import OperationError, copy_local, upload
from operations import _files as files


def run(args, context):
    """Makes the file at ``dest`` have the content given.

    :param args: ``dest``; ``content_b64`` (base64 of the bytes), or ``upload`` (token of an upload that is whole),
        or neither, to ask; ``checksum`` (SHA-1, hex) and ``size`` (bytes) of the content, needed with the latter
        two; ``basename`` (name to take when ``dest`` is a folder); ``mode``, ``owner``, ``group``;
        ``directory_mode`` (of folders made on the way, when ``dest`` ends in a slash); ``force`` (False: leave an
        existing file); ``follow`` (write through a symlink instead of replacing it); ``backup``; ``validate``
        (command with ``%s``). With ``remote_src``: ``src``, a path of this host; see `operations.copy_local`.
    :returns: ``dest``, ``checksum``, owner, group, mode, size; ``backup_file`` where one was made; ``need``: True
        when nothing was done since the content is missing.
    """
    if args.get("remote_src"):
        return copy_local.run(args, context)
    try:
        return put(Content(args), args, context)
    finally:
        if args.get("upload"):
            upload.drop(args["upload"])


class Content(object):
    """What a file shall hold.

    :ivar data: bytes, or a binary file, or None when it is not here yet.
    """

    def __init__(self, args):
        self.data, self.checksum, self.size = None, args.get("checksum"), args.get("size")
        if "content_b64" in args:
            try:
                self.data = base64.b64decode(args["content_b64"].encode("ascii"))
            except (AttributeError, ValueError) as error:
                raise OperationError("content_b64 is no base64: %s" % error)
            found = files.sha1(self.data)
            self.size = len(self.data)
        elif args.get("upload"):
            self.data = upload.opened(args["upload"])
            found = _digest(self.data)
        elif self.checksum and self.size is not None:
            return
        else:
            raise OperationError("copy needs content_b64, or checksum and size")
        if self.checksum and found != self.checksum:
            raise OperationError(
                "what arrived has not the expected checksum: transfer failed",
                checksum=found,
                expected_checksum=self.checksum,
            )
        self.checksum = found

    def text(self):
        """For a diff."""
        if isinstance(self.data, bytes):
            return files.as_text(self.data)
        return "(data too long for a diff: %d bytes, sha1 %s)\n" % (self.size, self.checksum)


def _digest(handle):
    digest = hashlib.sha1()  # noqa: S324
    handle.seek(0)
    for block in iter(lambda: handle.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def put(content, args, context, times=None):
    """Brings one file to `content`; the core of `run`.

    :param times: (access, modification) time in seconds that a file written here gets.
    """
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
    same = status is not None and not link and _has(dest, status, content)
    result = {}
    if same:
        done = files.apply_attributes(dest, status, args, context.check)
        if context.diff:
            result["diff"] = files.attribute_diff(dest, done) if done else {"before": "", "after": ""}
        why = ", ".join(done) if done else "%s already has this content, owner and mode" % dest
        result.update(_result(dest, bool(done), why, content=content))
        if not args.get("remote_src"):
            result["path"] = dest  # of the content's file Ansible does not tell it, of a changed mode it does
        return result

    what = "created" if status is None else "replaced the symlink" if link else "content changed"
    if context.diff:
        result["diff"] = _diff(dest, None if link else status, content)
    if context.check:
        # The owner may be a user that an earlier task would have made, so it is not looked up here.
        result.update(checksum=content.checksum, dest=dest, changed=True, msg="would be %s" % what)
        return result
    attributes = files.new_attributes(None if link else status, args)
    if content.data is None:
        return {"changed": False, "need": True, "dest": dest, "msg": "the content is needed"}
    folder = os.path.dirname(dest) or "."
    if not os.path.isdir(folder):
        if not args["dest"].endswith("/"):
            raise OperationError("destination directory %s does not exist" % folder, dest=dest)
        make_folders(folder, args)
    if args.get("validate"):
        files.validate(args["validate"], dest, content.data, context)
    if args.get("backup") and status is not None and not link:
        result["backup_file"] = files.backup(dest, files.read_bytes(dest), status)
    files.write_atomically(dest, content.data, *attributes)
    if times is not None:
        os.utime(dest, times)
    return _result(dest, True, what, result, content)


def _has(path, status, content):
    """True when a regular file has this very content."""
    return status.st_size == _size(content) and files.checksum_of(path) == content.checksum


def _size(content):
    return len(content.data) if isinstance(content.data, bytes) else content.size


def _diff(dest, status, content):
    diff = files.content_diff(dest, None, b"")
    diff["after"] = content.text()
    if status is not None:
        diff["before_header"] = dest
        if status.st_size <= files.DIFF_LIMIT:
            diff["before"] = files.as_text(files.read_bytes(dest))
        else:
            diff["before"] = "(data too long for a diff: %d bytes)\n" % status.st_size
    return diff


def make_folders(folder, args):
    """Makes a folder and those missing above it, each with ``owner``, ``group`` and ``directory_mode``."""
    missing = []
    while files.lstat(folder) is None:
        missing.append(folder)
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise OperationError("%s is in the way: it is no directory" % folder)
    wanted = {"owner": args.get("owner"), "group": args.get("group"), "mode": args.get("directory_mode")}
    for one in reversed(missing):
        files.make_folder(one)
        files.apply_attributes(one, os.lstat(one), wanted, False)
    return missing


def _destination(args):
    dest = files.absolute(args["dest"], "dest")
    if dest.endswith("/") or os.path.isdir(dest):
        if not args.get("basename"):
            raise OperationError("%s is a directory: dest must name a file when content is given" % dest)
        dest = os.path.join(dest, args["basename"])
        if os.path.isdir(dest):
            raise OperationError("%s is a directory, a file cannot take its place" % dest, dest=dest)
    return dest


def _result(dest, changed, msg, extra=None, content=None):
    result = dict(extra or {})
    result.update(files.describe(dest))
    if changed:
        result.pop("path")  # as in Ansible, which tells it of files that it leaves as they are
    result.update(changed=changed, msg=msg, dest=dest)
    if content is not None:
        result["checksum"] = content.checksum
    return result
