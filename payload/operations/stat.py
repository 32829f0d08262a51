"""``stat``: what is at a path, in the fields of ``ansible.builtin.stat``. Changes nothing."""

import hashlib
import os
import stat

from operations import OperationError
from operations._files import group_name, mode_text, user_name

_ABSENT = (2, 20)  # ENOENT, ENOTDIR
_BITS = (
    ("rusr", stat.S_IRUSR), ("wusr", stat.S_IWUSR), ("xusr", stat.S_IXUSR),
    ("rgrp", stat.S_IRGRP), ("wgrp", stat.S_IWGRP), ("xgrp", stat.S_IXGRP),
    ("roth", stat.S_IROTH), ("woth", stat.S_IWOTH), ("xoth", stat.S_IXOTH),
    ("isuid", stat.S_ISUID), ("isgid", stat.S_ISGID),
)  # fmt: skip


def run(args, context):
    """Returns ``stat``: ``{"exists": False}``, or the fields of what is there.

    ``writeable`` is what the kernel says about this user (``access(2)``): on /proc/sys it tells a key that
    can be set from one on a read-only mount or of another namespace.
    """
    path = args["path"]
    try:
        status = os.stat(path) if args.get("follow") else os.lstat(path)
    except OSError as error:
        if error.errno in _ABSENT:
            return {"changed": False, "stat": {"exists": False}, "msg": "%s does not exist" % path}
        raise OperationError("cannot look at %s: %s" % (path, error.strerror), path=path)
    mode = status.st_mode
    found = {
        "exists": True,
        "path": path,
        "mode": mode_text(mode),
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
        "atime": status.st_atime,
        "mtime": status.st_mtime,
        "ctime": status.st_ctime,
        "pw_name": user_name(status.st_uid),
        "gr_name": group_name(status.st_gid),
        "readable": os.access(path, os.R_OK),
        "writeable": os.access(path, os.W_OK),
        "executable": os.access(path, os.X_OK),
    }
    found.update((name, bool(mode & bit)) for name, bit in _BITS)
    if found["islnk"]:
        found["lnk_target"] = os.readlink(path)
        found["lnk_source"] = os.path.realpath(path)
    if found["isreg"] and args.get("get_checksum", True) and found["readable"]:
        checksum = _checksum(path, args.get("checksum_algorithm") or "sha1")
        if checksum is not None:
            found["checksum"] = checksum
    return {"changed": False, "stat": found, "msg": "%s exists" % path}


def _checksum(path, algorithm):
    """Hex digest, or None for a file that says it is readable and is not (write-only keys of /proc/sys)."""
    digest = hashlib.new(algorithm)
    try:
        with open(path, "rb") as handle:
            for block in iter(lambda: handle.read(1 << 20), b""):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
