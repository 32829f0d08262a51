"""Writing files so that nobody ever sees half of one, shared by the operations that write.

A write makes a temporary file with a random name beside the target (``O_EXCL``, mode 0600), gives it
content, owner and mode, flushes it to disk, and renames it over the target. Whoever reads the target sees
the old or the new content; a symlink planted at a guessable name is never followed.

The differences reported are plain texts, the controller makes unified diffs of them.
"""

import errno
import grp
import hashlib
import os
import pwd
import re
import stat

from operations import OperationError

# Longest content that travels back in a diff, in bytes; a diff is for people to read.
DIFF_LIMIT = 256 * 1024
_READ_LIMIT = 64 * 1024 * 1024


def umask():
    """The umask in force, read without changing it where the kernel tells (Linux >= 4.7)."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    old = os.umask(0o077)
    os.umask(old)
    return old


def mode_text(mode):
    """``0o644`` -> ``"0644"``, as Ansible writes modes."""
    return "%04o" % stat.S_IMODE(mode)


_CLAUSE = re.compile(r"^([ugoa]*)([-+=])([rwxXst]*|[ugo])$")
_BITS = {"r": 4, "w": 2, "x": 1}
_SHIFT = {"u": 6, "g": 3, "o": 0}


def parse_mode(wanted, current, directory=False):
    """The permission bits that `wanted` asks for.

    :param wanted: octal text (``"0644"``), int, or chmod's symbolic form (``"u=rw,g+r,o-rwx"``), or None.
    :param current: permission bits to start a symbolic mode from.
    :returns: int permission bits; `current` when `wanted` is None.
    :raises OperationError: when the text is neither.
    """
    if wanted is None or wanted == "":
        return stat.S_IMODE(current)
    if isinstance(wanted, bool):
        raise OperationError("mode must be octal text such as '0644', not %r" % wanted)
    if isinstance(wanted, int):
        return stat.S_IMODE(wanted)
    text = str(wanted).strip()
    if re.match(r"^(0o?)?[0-7]{1,4}$", text):
        return int(text.replace("o", ""), 8)
    mode = stat.S_IMODE(current)
    mask = umask()
    for clause in text.split(","):
        match = _CLAUSE.match(clause)
        if match is None:
            raise OperationError(
                "mode '%s' is neither octal such as '0644' nor symbolic such as 'u=rw,g=r'" % text
            )
        who, sign, letters = match.groups()
        # Without a letter for whom, chmod leaves the umask's bits alone.
        spare = mask if not who else 0
        for target in "ugo" if not who or "a" in who else who:
            bits = 0
            for letter in letters:
                if letter in "ugo":
                    bits |= (mode >> _SHIFT[letter]) & 7
                elif letter == "X":
                    bits |= 1 if directory or mode & 0o111 else 0
                else:
                    bits |= _BITS.get(letter, 0)
            value = (bits << _SHIFT[target]) & ~spare
            if "s" in letters and target != "o":
                value |= stat.S_ISUID if target == "u" else stat.S_ISGID
            if "t" in letters:
                value |= stat.S_ISVTX
            if sign == "+":
                mode |= value
            elif sign == "-":
                mode &= ~value
            else:
                mode = (mode & ~(7 << _SHIFT[target])) | value
    return mode


def uid_of(owner):
    """Numeric user id of a name or number; None for None."""
    return _id_of(owner, "user", lambda name: pwd.getpwnam(name).pw_uid)


def gid_of(group):
    """Numeric group id of a name or number; None for None."""
    return _id_of(group, "group", lambda name: grp.getgrnam(name).gr_gid)


def _id_of(who, what, look_up):
    if who is None or who == "":
        return None
    try:
        return look_up(str(who))
    except KeyError:
        if str(who).isdigit():
            return int(who)
        raise OperationError("this host has no %s '%s'" % (what, who))


def user_name(uid):
    """Name of a uid, or its number as text where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid):
    """Name of a gid, or its number as text where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def lstat(path):
    """``os.lstat``, or None when there is nothing at `path`."""
    try:
        return os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise OperationError("cannot look at %s: %s" % (path, error.strerror), path=path)


def read_bytes(path, limit=_READ_LIMIT):
    """Content of a regular file, or None when there is none.

    :raises OperationError: when `path` is no regular file, cannot be read, or exceeds `limit` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise OperationError("cannot read %s: %s" % (path, error.strerror), path=path)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OperationError("%s is not a regular file" % path, path=path)
        with os.fdopen(descriptor, "rb", closefd=False) as handle:
            content = handle.read(limit + 1)
    except OSError as error:
        raise OperationError("cannot read %s: %s" % (path, error.strerror), path=path)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise OperationError("%s is larger than %d bytes" % (path, limit), path=path)
    return content


def sha1(content):
    """Hex SHA-1 of bytes: Ansible's file checksum, an identity here and no protection."""
    return hashlib.sha1(content).hexdigest()  # noqa: S324


def as_text(content):
    """Content for a diff: the text itself, or one line that describes what is not text or too long."""
    if content is None:
        return ""
    if len(content) <= DIFF_LIMIT and b"\0" not in content:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            pass
    kind = "text or data too long for a diff" if len(content) > DIFF_LIMIT else "binary"
    return "(%s: %d bytes, sha1 %s)\n" % (kind, len(content), sha1(content))


def content_diff(path, before, after):
    """The ``diff`` field for one file's content; None stands for no file."""
    return {
        "before": as_text(before),
        "after": as_text(after),
        "before_header": path if before is not None else "%s (does not exist)" % path,
        "after_header": path if after is not None else "%s (removed)" % path,
    }


def write_atomically(path, content, mode, uid=None, gid=None):
    """Replaces `path` by a regular file with this content, in one step.

    :param mode: permission bits of the new file.
    :param uid: owner and `gid`: group to set, None to leave what a new file gets.
    :raises OperationError: with the errno's name; the target is then as it was, no temporary file is left.
    """
    folder, name = os.path.split(path)
    token = "".join("%02x" % byte for byte in os.urandom(8))
    temporary = os.path.join(folder, ".%s.tcpfleet-%s" % (name[:100], token))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    created = False
    try:
        descriptor = os.open(temporary, flags, 0o600)
        created = True
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            _copy_attributes(path, handle.fileno())
            if uid is not None or gid is not None:
                os.fchown(handle.fileno(), -1 if uid is None else uid, -1 if gid is None else gid)
            os.fchmod(handle.fileno(), mode)  # after fchown, which clears setuid
            handle.flush()
            os.fsync(handle.fileno())
        os.rename(temporary, path)
        created = False
        sync_folder(folder)
    except OSError as error:
        raise OperationError(
            "cannot write %s: %s" % (path, error.strerror),
            path=path,
            errno=errno.errorcode.get(error.errno, str(error.errno)),
        )
    finally:
        if created:
            os.unlink(temporary)


def sync_folder(folder):
    """Makes a rename in `folder` durable; file systems that cannot sync a folder are left alone."""
    try:
        descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _copy_attributes(path, descriptor):
    """Keeps extended attributes (ACLs, SELinux label) of the file being replaced, where there are any."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return
    for name in names:
        try:
            os.setxattr(descriptor, name, os.getxattr(path, name, follow_symlinks=False))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
                raise


def attributes(status):
    """Owner, group and mode as the lines that diffs show."""
    return "owner: %s\ngroup: %s\nmode: %s\n" % (
        user_name(status.st_uid),
        group_name(status.st_gid),
        mode_text(status.st_mode),
    )


def apply_attributes(path, status, args, check, follow=False):
    """Sets ``args["owner"]``, ``["group"]`` and ``["mode"]`` on something that exists.

    :param status: its ``os.lstat``.
    :returns: list of sentences, one per attribute that was or would be changed.
    """
    done = []
    uid, gid = uid_of(args.get("owner")), gid_of(args.get("group"))
    link = stat.S_ISLNK(status.st_mode) and not follow
    try:
        if (uid is not None and uid != status.st_uid) or (gid is not None and gid != status.st_gid):
            if uid is not None and uid != status.st_uid:
                done.append("owner %s -> %s" % (user_name(status.st_uid), user_name(uid)))
            if gid is not None and gid != status.st_gid:
                done.append("group %s -> %s" % (group_name(status.st_gid), group_name(gid)))
            if not check:
                os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid, follow_symlinks=not link)
        if args.get("mode") is not None and not link:  # a link has no mode of its own on Linux
            wanted = parse_mode(args["mode"], status.st_mode, stat.S_ISDIR(status.st_mode))
            if wanted != stat.S_IMODE(status.st_mode):
                done.append("mode %s -> %s" % (mode_text(status.st_mode), mode_text(wanted)))
            # chown may have cleared setuid: set the mode again after one.
            if not check and (done or wanted != stat.S_IMODE(status.st_mode)):
                os.chmod(path, wanted)
    except OSError as error:
        raise OperationError(
            "cannot change %s: %s" % (path, error.strerror),
            path=path,
            errno=errno.errorcode.get(error.errno, str(error.errno)),
        )
    return done


def describe(path):
    """Fields that Ansible's file modules return about a path: owner, group, mode, size, state."""
    status = lstat(path)
    if status is None:
        return {"path": path, "state": "absent"}
    kinds = (("link", stat.S_ISLNK), ("directory", stat.S_ISDIR), ("file", stat.S_ISREG))
    return {
        "path": path,
        "state": next((name for name, test in kinds if test(status.st_mode)), "special"),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "owner": user_name(status.st_uid),
        "group": group_name(status.st_gid),
        "mode": mode_text(status.st_mode),
        "size": status.st_size,
    }


def backup(path, content, status):
    """Writes a copy beside `path` under Ansible's naming; returns its path."""
    import time

    name = "%s.%d.%s~" % (path, os.getpid(), time.strftime("%Y-%m-%d@%H:%M:%S"))
    write_atomically(name, content, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    return name
