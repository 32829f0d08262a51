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
import shlex
import shutil
import stat

import journal

from operations import OperationError

# Longest content that travels back in a diff, in bytes; a diff is for people to read.
DIFF_LIMIT = 256 * 1024
_READ_LIMIT = 64 * 1024 * 1024


def expand(path):
    """A path with ``~`` and ``$NAME`` put in, as Ansible's arguments of type path have them."""
    return os.path.expanduser(os.path.expandvars(path))


def absolute(path, name="path"):
    """The path expanded; :raises OperationError: when it is relative, for an agent has no folder to start from."""
    full = expand(str(path))
    if not os.path.isabs(full):
        raise OperationError("%s must be an absolute path, not '%s'" % (name, path))
    return full


token = journal.token


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


_CLAUSE = re.compile(r"^([ugo]*|a)((?:[-+=][rwxXstugo]*)+)$")
_STEP = re.compile(r"([-+=])([rwxXstugo]*)")
_BITS = {"r": 4, "w": 2, "x": 1}
_SHIFT = {"u": 6, "g": 3, "o": 0}
# The special bit that goes with each triple: u=rw takes setuid away too, as in Ansible.
_SPECIAL = {"u": ("s", stat.S_ISUID), "g": ("s", stat.S_ISGID), "o": ("t", stat.S_ISVTX)}


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
    if re.match(r"^0*o?[0-7]{1,4}$", text):
        return int(text.replace("o", ""), 8)
    mode = stat.S_IMODE(current)
    mask = umask()
    for clause in text.split(","):
        match = _CLAUSE.match(clause)
        if match is None:
            raise OperationError(
                "mode '%s' is neither octal such as '0644' nor symbolic such as 'u=rw,g=r'" % text
            )
        who, steps = match.groups()
        # Without a letter for whom, chmod leaves the umask's bits alone.
        spare = mask if not who else 0
        for sign, letters in _STEP.findall(steps):
            for target in "ugo" if who in ("", "a") else who:
                value = _bits_of(letters, target, mode, directory, spare)
                if sign == "+":
                    mode |= value
                elif sign == "-":
                    mode &= ~value
                else:
                    mode = (mode & ~(7 << _SHIFT[target] | _SPECIAL[target][1])) | value
    return mode


def _bits_of(letters, target, mode, directory, spare):
    """The bits that the letters of a symbolic mode mean for u, g or o, given the mode so far."""
    bits = 0
    for letter in letters:
        if letter in "ugo":
            bits |= (mode >> _SHIFT[letter]) & 7
        elif letter == "X":
            bits |= 1 if directory or mode & 0o111 else 0
        else:
            bits |= _BITS.get(letter, 0) & ~(spare >> _SHIFT[target])
    letter, special = _SPECIAL[target]
    return bits << _SHIFT[target] | (special if letter in letters else 0)


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


def checksum_of(path, algorithm="sha1"):
    """Hex digest of a file's content, read piece by piece; None when it cannot be read."""
    digest = hashlib.new(algorithm)
    try:
        with open(path, "rb") as handle:
            for block in iter(lambda: handle.read(1 << 20), b""):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


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


def write_atomically(path, content, mode, uid=None, gid=None, digits=None):
    """Replaces `path` by a regular file with this content, in one step.

    :param content: bytes, or a binary file that is read from its start to its end.
    :param mode: permission bits of the new file.
    :param uid: owner and `gid`: group to set, None to leave what a new file gets.
    :param digits: what the journal answered, where it has been told of this file already.
    :raises OperationError: with the errno's name; the target is then as it was, no temporary file is left.
    """
    temporary = temporary_name(path, digits or _announce(path, content, mode, uid, gid))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    created = False
    try:
        descriptor = os.open(temporary, flags, 0o600)
        created = True
        with os.fdopen(descriptor, "wb") as handle:
            if isinstance(content, bytes):
                handle.write(content)
            else:
                content.seek(0)
                shutil.copyfileobj(content, handle, 1 << 20)
            _copy_attributes(path, handle.fileno())
            if uid is not None or gid is not None:
                os.fchown(handle.fileno(), -1 if uid is None else uid, -1 if gid is None else gid)
            os.fchmod(handle.fileno(), mode)  # after fchown, which clears setuid
            handle.flush()
            os.fsync(handle.fileno())
        os.rename(temporary, path)
        created = False
        journal.sync_folder(os.path.dirname(path))
    except OSError as error:
        raise OperationError(
            "cannot write %s: %s" % (path, error.strerror),
            path=path,
            errno=errno.errorcode.get(error.errno, str(error.errno)),
        )
    finally:
        if created:
            os.unlink(temporary)


def _announce(path, content, mode, uid, gid):
    """Tells the journal what a file is about to become; returns its digits."""
    after = {"kind": "file", "mode": mode}
    if journal.active():
        after["sha256"] = journal.sha256(content)
    for name, number in (("uid", uid), ("gid", gid)):
        if number is not None:
            after[name] = number
    return journal.path(path, after)


def temporary_name(path, digits):
    """Where a change of `path` that got these digits from the journal keeps what is not finished."""
    folder, name = os.path.split(path)
    return os.path.join(folder, ".%s.tcpfleet-%s" % (name[:100], digits))


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


def apply_attributes(path, status, args, check, follow=False):
    """Sets ``args["owner"]``, ``["group"]`` and ``["mode"]`` on something that exists.

    :param status: its ``os.lstat``.
    :returns: list of sentences, one per attribute that was or would be changed.
    """
    done = []
    uid, gid, mode = uid_of(args.get("owner")), gid_of(args.get("group")), None
    link = stat.S_ISLNK(status.st_mode) and not follow
    uid = None if uid == status.st_uid else uid
    gid = None if gid == status.st_gid else gid
    if uid is not None:
        done.append("owner %s -> %s" % (user_name(status.st_uid), user_name(uid)))
    if gid is not None:
        done.append("group %s -> %s" % (group_name(status.st_gid), group_name(gid)))
    if args.get("mode") is not None and not link:  # a link has no mode of its own on Linux
        wanted = parse_mode(args["mode"], status.st_mode, stat.S_ISDIR(status.st_mode))
        if wanted != stat.S_IMODE(status.st_mode):
            done.append("mode %s -> %s" % (mode_text(status.st_mode), mode_text(wanted)))
        if done:  # chown may have cleared setuid: set the mode again after one
            mode = wanted
    if not done or check:
        return done
    journal.attributes(path, status, uid, gid, mode)
    try:
        if uid is not None or gid is not None:
            os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid, follow_symlinks=not link)
        if mode is not None:
            os.chmod(path, mode)
    except OSError as error:
        raise OperationError(
            "cannot change %s: %s" % (path, error.strerror),
            path=path,
            errno=errno.errorcode.get(error.errno, str(error.errno)),
        )
    return done


def attribute_diff(path, done):
    """The ``diff`` field for what `apply_attributes` says: one line per attribute and side."""
    pairs = [sentence.split(" ", 1) for sentence in done]
    before = "".join("%s: %s\n" % (name, change.split(" -> ")[0]) for name, change in pairs)
    after = "".join("%s: %s\n" % (name, change.split(" -> ")[1]) for name, change in pairs)
    return {"before": before, "after": after, "before_header": path, "after_header": path}


def validate(command, path, content, context):
    """Runs the user's check over the content before it takes the target's place.

    :param command: text with ``%s``, which becomes the name of a file beside `path` with this content.
    :param content: as `write_atomically` takes it.
    :raises OperationError: when it exits other than 0, with its output.
    """
    if "%s" not in command:
        raise OperationError("validate must contain %%s, the name of the file to check: %s" % command)
    folder, name = os.path.split(path)
    # The suffix stays: some checkers go by it.
    trial = os.path.join(folder, ".validate-%s-%s" % (token(), name[-100:]))
    write_atomically(trial, content, 0o600, digits=journal.temporary(trial))
    argv = shlex.split(command.replace("%s", shlex.quote(trial)))
    try:
        done = context.run_command(argv)
    except OSError as error:
        raise OperationError(
            "cannot run the validate command '%s': %s" % (command, error.strerror),
            cmd=" ".join(map(shlex.quote, argv)),
            rc=error.errno,
            **output_fields("", ""),
        )
    finally:
        os.unlink(trial)
    if done.returncode != 0:
        out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        raise OperationError(
            "failed to validate: '%s' exited %d: %s" % (command, done.returncode, (out + err).strip()),
            exit_status=done.returncode,
            **output_fields(out, err),
        )


def output_fields(out, err):
    """What a program has written, as text and in lines, as results have it."""
    return {"stdout": out, "stderr": err, "stdout_lines": out.splitlines(), "stderr_lines": err.splitlines()}


def new_attributes(status, args):
    """``(mode, uid, gid)`` for a file written over something with this ``lstat``, or over nothing (None)."""
    uid, gid = uid_of(args.get("owner")), gid_of(args.get("group"))
    if status is None:
        return parse_mode(args.get("mode"), 0o666 & ~umask()), uid, gid
    mode = parse_mode(args.get("mode"), status.st_mode)
    return mode, status.st_uid if uid is None else uid, status.st_gid if gid is None else gid


def make_folders(folder):
    """Makes a folder and those above it that are missing; :raises OperationError: when that cannot be."""
    missing = []
    while lstat(folder) is None:
        missing.append(folder)
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise OperationError("%s is in the way: it is no directory" % folder, path=folder)
    for one in reversed(missing):
        make_folder(one)


def make_folder(path):
    """``os.mkdir`` with a word to the journal."""
    journal.path(path, {"kind": "directory"})
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise OperationError("%s is in the way: it is no directory" % path, path=path)
        # Another name of this host in the inventory made it just now: as wanted.
    except OSError as error:
        raise OperationError("cannot create %s: %s" % (path, error.strerror), path=path)


def edit(path, before, after, args, context):
    """Gives a text file new content for an operation that edits it, through symlinks, then owner and mode.

    :param before: the bytes it has, None when there is no such file; `after`: the bytes it shall have.
    :param args: ``mode``, ``owner``, ``group``, ``backup``, ``validate``.
    :returns: ``(sentences on attributes changed, fields for the result)``; in check mode nothing is written.
    """
    fields = {}
    differs = before != after
    if context.diff and differs:
        fields["diff"] = content_diff(path, before, after)
    if differs and not context.check:
        real = os.path.realpath(path)
        status = lstat(real)
        if args.get("validate"):
            validate(args["validate"], real, after, context)
        if args.get("backup") and status is not None:
            fields["backup"] = fields["backup_file"] = backup(path, before, status)
        # A link's mode is not asked for (below it has none), so its target keeps what it has.
        aims = {} if real != path and os.path.islink(path) else args
        write_atomically(real, after, *new_attributes(status, aims))
    status = lstat(path)
    if status is None:
        return [], fields
    done = apply_attributes(path, status, args, context.check)
    if done and context.diff:
        fields["diff"] = [fields["diff"]] if "diff" in fields else []
        fields["diff"].append(attribute_diff(path, done))
    return done, fields


def state_of(status):
    """Ansible's word for what an ``lstat`` (or None) shows: absent, link, directory, hard (more names), file."""
    if status is None:
        return "absent"
    if stat.S_ISLNK(status.st_mode):
        return "link"
    if stat.S_ISDIR(status.st_mode):
        return "directory"
    return "hard" if status.st_nlink > 1 else "file"


def describe(path):
    """Fields that Ansible's file modules return about a path: owner, group, mode, size, state."""
    status = lstat(path)
    if status is None:
        return {"path": path, "state": "absent"}
    return {
        "path": path,
        "state": state_of(status),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "owner": user_name(status.st_uid),
        "group": group_name(status.st_gid),
        "mode": "0%03o" % stat.S_IMODE(status.st_mode),  # five digits for setuid, as in Ansible's results
        "size": status.st_size,
    }


def backup(path, content, status):
    """Writes a copy beside `path` under Ansible's naming; returns its path."""
    import time

    name = "%s.%d.%s~" % (path, os.getpid(), time.strftime("%Y-%m-%d@%H:%M:%S"))
    write_atomically(name, content, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    return name
