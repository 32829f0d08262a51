"""``stat``: what is at a path, in the fields of ``ansible.builtin.stat``. Changes nothing."""

import errno
import os
import stat

from operations import OperationError
from operations import _files as files

# lsattr(1): letter -> Ansible's word for it.
_FLAGS = {
    "A": "noatime", "a": "append", "c": "compressed", "C": "nocow", "d": "nodump", "D": "dirsync", "e": "extents",
    "E": "encrypted", "h": "blocksize", "i": "immutable", "I": "indexed", "j": "journalled", "N": "inline",
    "s": "zero", "S": "synchronous", "t": "notail", "T": "blockroot", "u": "undelete", "X": "compressedraw",
    "Z": "compresseddirty",
}  # fmt: skip
_BITS = (
    ("rusr", stat.S_IRUSR), ("wusr", stat.S_IWUSR), ("xusr", stat.S_IXUSR),
    ("rgrp", stat.S_IRGRP), ("wgrp", stat.S_IWGRP), ("xgrp", stat.S_IXGRP),
    ("roth", stat.S_IROTH), ("woth", stat.S_IWOTH), ("xoth", stat.S_IXOTH),
    ("isuid", stat.S_ISUID), ("isgid", stat.S_ISGID),
)  # fmt: skip


def run(args, context):
    """Returns ``stat``: ``{"exists": False}``, or the fields of what is there.

    :param args: ``path``; ``follow``; ``get_checksum`` (default True), ``checksum_algorithm`` (sha1);
        ``get_mime`` and ``get_attributes``: ask file(1) and lsattr(1) too. These two default to False, unlike
        Ansible's: each starts a program, for fields that hardly any playbook looks at.

    ``writeable`` is what the kernel says about this user (``access(2)``): on /proc/sys it tells a key that
    can be set from one on a read-only mount or of another namespace.
    """
    path = files.expand(args["path"])
    try:
        status = os.stat(path) if args.get("follow") else os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return {"changed": False, "stat": {"exists": False}, "msg": "%s does not exist" % path}
        raise OperationError("cannot look at %s: %s" % (path, error.strerror), path=path)
    mode = status.st_mode
    found = {
        "exists": True,
        "path": path,
        "mode": files.mode_text(mode),
        "isdir": stat.S_ISDIR(mode),
        "ischr": stat.S_ISCHR(mode),
        "isblk": stat.S_ISBLK(mode),
        "isreg": stat.S_ISREG(mode),
        "isfifo": stat.S_ISFIFO(mode),
        "islnk": stat.S_ISLNK(mode),
        "issock": stat.S_ISSOCK(mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size": status.st_size,
        "inode": status.st_ino,
        "dev": status.st_dev,
        "nlink": status.st_nlink,
        "blocks": status.st_blocks,
        "block_size": status.st_blksize,
        "device_type": status.st_rdev,
        "atime": status.st_atime,
        "mtime": status.st_mtime,
        "ctime": status.st_ctime,
        "pw_name": files.user_name(status.st_uid),
        "gr_name": files.group_name(status.st_gid),
        "readable": os.access(path, os.R_OK),
        "writeable": os.access(path, os.W_OK),
        "executable": os.access(path, os.X_OK),
    }
    found.update((name, bool(mode & bit)) for name, bit in _BITS)
    if found["islnk"]:
        found["lnk_target"] = os.readlink(path)
        found["lnk_source"] = os.path.realpath(path)
    if found["isreg"] and args.get("get_checksum", True) and found["readable"]:
        # None for a file that says it is readable and is not: write-only keys of /proc/sys.
        checksum = files.checksum_of(path, args.get("checksum_algorithm") or "sha1")
        if checksum is not None:
            found["checksum"] = checksum
    if args.get("get_mime"):
        found.update(_mime(path, context))
    if args.get("get_attributes"):
        found.update(_attributes(path, context))
    return {"changed": False, "stat": found, "msg": "%s exists" % path}


def _output(argv, context):
    try:
        done = context.run_command(argv, env=dict(os.environ, LC_ALL="C"))
    except OSError:
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def _mime(path, context):
    """``mimetype`` and ``charset``, "unknown" where file(1) does not say."""
    words = _output(["file", "--mime-type", "--mime-encoding", path], context).rpartition(": ")[2].strip()
    kind, _, charset = words.partition("; charset=")
    return {"mimetype": kind or "unknown", "charset": charset or "unknown"}


def _attributes(path, context):
    """``version``, ``attributes`` (words) and ``attr_flags`` (letters) where lsattr(1) knows them."""
    words = _output(["lsattr", "-vd", path], context).split()
    if len(words) < 3:
        return {"version": None, "attributes": [], "attr_flags": ""}
    letters = words[1].replace("-", "")
    return {
        "version": words[0],
        "attributes": [_FLAGS[letter] for letter in letters if letter in _FLAGS],
        "attr_flags": letters,
    }
