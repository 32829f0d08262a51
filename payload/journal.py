"""The journal of a run on a host: what was there before each change, written down before the change is made.

One file per run, of JSON lines that are only ever appended, each flushed to disk before the change it describes:
/var/lib/tcpfleet/journal/RUN.jsonl for root, ~/.local/state/tcpfleet/journal/ for other users (of those without a
home that they can write to, /var/tmp/tcpfleet-UID/journal/). The first line is
about the run (``begin``); every other one about a change, with the state ``before`` and the state ``after`` that
the change is about to make, so that `operations.rollback` can tell what this run did from what others did later,
also after a kill between line and change. What cannot be known beforehand follows in a line ``made``.

The agent says with `recording` which journal counts while an operation runs; whatever changes the host calls one
of the functions below first. Without a journal they do nothing. When a line cannot be written they raise, and the
change is not made. A last line without its newline was cut off by a kill: its change never began.

State of a path: ``kind`` (absent, file, link, directory, special), ``mode``, ``uid``, ``gid``, ``sha256``,
``target``, ``device``, ``xattrs``, ``times`` (access, modification; ns); ``content`` (base64) or ``blob`` (file
beside the journal); ``tree``: [[relative path, state]] of what is below a directory that goes. A state tells only
what is known; what it leaves out may be anything.
"""

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pwd
import re
import shlex
import stat
import time

from operations import OperationError

VERSION = 1
INLINE = 1 << 20  # bytes of one content that go into a line; more goes to a file of its own
MOST_INLINE = 16 << 20  # bytes of all contents of a line, which is made in memory
SPARE = 64 << 20  # bytes of a disk that are left free when contents are kept
MOST_PATHS = 10000  # in a directory that is removed
MOST_BYTES = 256 << 20
_SHOWN = 2048  # bytes of content that a command to paste may hold
_ROOT_PLACE = "/var/lib/tcpfleet"
_USER_PLACE = ".local/state/tcpfleet"
# Others cannot remove what is there; `private` sees whose it is.
_HOMELESS_PLACE = "/var/tmp/tcpfleet-%d"  # noqa: S108
_RUN = re.compile(r"\A[0-9A-Za-z][0-9A-Za-z-]{0,63}\Z")
_NO_XATTRS = (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA, errno.ENOENT)

_current = None  # the journal of the operation at work


def state_folder():
    """The folder of this user's state: /var/lib/tcpfleet for root, ~/.local/state/tcpfleet for others.

    Many users of services have no home, or one that is not theirs: for those it is /var/tmp/tcpfleet-UID.
    """
    user = os.geteuid()
    if user == 0:
        return _ROOT_PLACE
    try:
        home = pwd.getpwuid(user).pw_dir
    except KeyError:
        home = ""
    if os.path.isabs(home) and os.path.isdir(home):
        place = there = os.path.join(home, _USER_PLACE)
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        if there == place or os.access(there, os.W_OK | os.X_OK):
            return place
    return _HOMELESS_PLACE % user


def folder():
    """Where this user's journals are."""
    return os.path.join(state_folder(), "journal")


def token():
    """16 random hex digits: for names that nobody can plant something at."""
    return "".join("%02x" % byte for byte in os.urandom(8))


def sync_folder(path):
    """Makes a rename in a folder durable; file systems that cannot sync a folder are left alone."""
    try:
        descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def boot_id():
    """Which boot this is; kernel values do not outlive it."""
    with open("/proc/sys/kernel/random/boot_id") as source:
        return source.read().strip()


# -- what changes the host calls these first -------------------------------------------------------------


@contextlib.contextmanager
def recording(journal, hidden=False):
    """While this lasts, changes go to `journal` (None: to none).

    :param hidden: contents and command lines are secret (no_log): no diff or command shows them later.
    """
    global _current
    before, _current = _current, journal
    if journal is not None:
        journal.hidden, journal.undo = hidden, []
    try:
        yield
    finally:
        _current = before


def path(where, after, tree=False):
    """Something is about to be created, replaced or removed.

    :param after: the state it will have.
    :param tree: all that is below it goes as well.
    :returns: 16 hex digits: a temporary file of this change is called ``.NAME.tcpfleet-DIGITS`` beside it, so
        that `operations.rollback` can remove what a kill leaves.
    :raises OperationError: when the state before cannot be kept; the change must not be made then.
    """
    if _current is None:
        return token()
    where = canonical(where)
    _current.room = MOST_INLINE
    before = look(where, _current.keep, tree)
    entry = {"kind": "path", "path": where, "before": before, "after": after}
    return _current.append(entry, _undo_path(where, before))


def temporary(where):
    """A file is about to be made that will be gone again when the operation ends. Returns digits, as `path`."""
    if _current is None:
        return token()
    return _current.append({"kind": "temporary", "path": canonical(where)})


def attributes(where, status, uid=None, gid=None, mode=None):
    """Owner, group or permission bits are about to change; None: that one stays.

    :param status: the path's ``lstat``.
    """
    if _current is None:
        return
    where = canonical(where)
    before = _plain(status)
    before["xattrs"] = xattrs(where)  # an ACL changes with the mode
    after = dict(before, uid=status.st_uid if uid is None else uid, gid=status.st_gid if gid is None else gid)
    del after["xattrs"]
    if mode is not None:
        after["mode"] = stat.S_IMODE(mode)
    quoted = shlex.quote(where)
    undo = []
    if (after["uid"], after["gid"]) != (before["uid"], before["gid"]):
        undo.append("chown -h -- %d:%d %s" % (before["uid"], before["gid"], quoted))
    if before["kind"] != "link":
        undo.append("chmod -- %04o %s" % (before["mode"], quoted))
    entry = {"kind": "attributes", "path": where, "before": before, "after": after}
    _current.append(entry, " && ".join(undo))


def times(where, status):
    """Access or modification time is about to be set."""
    if _current is None:
        return
    where = os.path.realpath(where)
    entry = {"kind": "times", "path": where, "before": {"times": [status.st_atime_ns, status.st_mtime_ns]}}
    moment = "%d.%09d" % divmod(status.st_mtime_ns, 10**9)
    _current.append(entry, "touch -m -d @%s -- %s" % (moment, shlex.quote(where)))


def kernel(key, where, before, asked):
    """A kernel setting is about to be written.

    :param key: its name with slashes; `where`: its path.
    :param before: its value, without the final newline; None: it cannot be read, so there is no way back.
    :param asked: the value that is written; None: another key's write may change it.
    :returns: what `made` wants.
    """
    if _current is None:
        return None
    if before is None:
        undo = "# %s cannot be read, so it cannot be undone" % where
    elif before:
        shown = key if "." in key else key.replace("/", ".")
        undo = "sysctl -w -- %s" % shlex.quote("%s=%s" % (shown, before.replace("\t", " ")))
    else:  # sysctl -w does not write an empty value
        undo = "echo > %s" % shlex.quote(where)
    entry = {"kind": "kernel", "name": key, "before": before, "asked": asked}
    return _current.append(entry, undo if asked is not None else None)


def unit(entry, undo):
    """A systemd unit is about to change; see `operations.systemd`. Returns what `made` wants."""
    if _current is None:
        return None
    return _current.append(dict(entry, kind="unit"), undo)


def made(entry, what):
    """What came of a change, where that could not be known before.

    A change is made by then, so a journal that cannot be written any more is no failure here: rollback does
    without this line, as it must after a kill. The next change will say so.

    :param entry: what the function that announced it returned.
    :param what: JSON data.
    """
    if _current is not None and entry is not None:
        with contextlib.suppress(OperationError):
            _current.append({"kind": "made", "of": entry, "what": what})


def command(shown):
    """A program of the user's is about to run: nobody knows what it changes, so it is only listed."""
    if _current is None:
        return
    shown = shown if isinstance(shown, str) else " ".join(shlex.quote(word) for word in shown)
    shown = "(hidden by no_log)" if _current.hidden else shown[:_SHOWN]
    first = shown.strip().splitlines()[0] if shown.strip() else ""
    _current.append({"kind": "command", "command": shown}, "# not reversible: it ran " + first)


def active():
    """True while changes are journalled."""
    return _current is not None


# -- the state of a path ---------------------------------------------------------------------------------


def canonical(where):
    """The path without symlinks in its folder: what it means later too."""
    head, name = os.path.split(where.rstrip("/") or "/")
    return os.path.realpath(where) if name in ("", ".", "..") else os.path.join(os.path.realpath(head), name)


def look(where, keep=None, tree=False):
    """The state of a path.

    :param keep: ``(open file, size) -> fields`` that keep the content, with its ``sha256`` and ``size``; None: its
        checksum alone is told.
    :param tree: with what is below it.
    :raises OperationError: when it cannot be read, or a tree is too large to be kept.
    """
    try:
        state = _look(where, keep)
        if tree and state["kind"] == "directory":
            below, total = [], 0
            for name in _below(where):
                one = _look(os.path.join(where, name), keep)
                below.append([name, one])
                total += one.get("size", 0)
                if len(below) > MOST_PATHS or total > MOST_BYTES:
                    raise OperationError(
                        "%s holds more than %d paths or %d MiB, too much for the journal: nothing was changed"
                        % (where, MOST_PATHS, MOST_BYTES >> 20),
                        path=where,
                    )
            state["tree"] = below
        return state
    except OSError as error:
        raise OperationError(
            "cannot journal the state of %s: %s" % (error.filename or where, error.strerror), path=where
        )


def _below(where):
    """Relative paths below a directory, each after the one it is in."""
    names = []

    def refuse(error):
        raise error

    for top, directories, files in os.walk(where, onerror=refuse):
        for name in directories + files:
            names.append(os.path.relpath(os.path.join(top, name), where))
            if len(names) > MOST_PATHS:
                return names
    return sorted(names)


def _look(where, keep):
    try:
        status = os.lstat(where)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return {"kind": "absent"}
        raise
    state = _plain(status)
    state["times"] = [status.st_atime_ns, status.st_mtime_ns]
    state["xattrs"] = xattrs(where)
    if state["kind"] == "link":
        state["target"] = os.readlink(where)
    elif state["kind"] == "special":
        state["device"] = [stat.S_IFMT(status.st_mode), status.st_rdev]
    elif state["kind"] == "file":
        descriptor = os.open(where, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as source:
            if not os.path.samestat(os.fstat(descriptor), status):
                raise OSError(errno.EAGAIN, "someone has just put something else there", where)
            if keep is None:
                state.update(size=status.st_size, sha256=sha256(source))
            else:
                state.update(keep(source, status.st_size))
    return state


def _plain(status):
    """Kind, owner, group and mode from an ``lstat``."""
    if stat.S_ISREG(status.st_mode):
        kind = "file"
    elif stat.S_ISLNK(status.st_mode):
        kind = "link"
    else:
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "special"
    state = {"kind": kind, "uid": status.st_uid, "gid": status.st_gid}
    if kind != "link":
        state["mode"] = stat.S_IMODE(status.st_mode)
    return state


def xattrs(where):
    """Extended attributes as {name: base64}; those that this user may not read are left out."""
    found = {}
    for name in _tolerant(os.listxattr, where) or ():
        value = _tolerant(os.getxattr, where, name)
        if value is not None:
            found[name] = base64.b64encode(value).decode("ascii")
    return found


def _tolerant(read, *arguments):
    try:
        return read(*arguments, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return None


def sha256(content):
    """Hex digest of bytes, or of a binary file from its start."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    content.seek(0)
    for block in iter(lambda: content.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


_UNIT_FOLDERS = ("/etc/systemd/", "/run/systemd/", "/usr/lib/systemd/", "/lib/systemd/", "/usr/local/lib/systemd/")


def is_unit_file(where):
    """True for what systemd must be told to read again."""
    return where.startswith(_UNIT_FOLDERS) or "/.config/systemd/" in where


def _undo_path(where, before):
    """A shell command that brings back this state, or a comment that says what does."""
    quoted, owner = shlex.quote(where), "-o %d -g %d" % (before.get("uid", 0), before.get("gid", 0))
    if before["kind"] == "absent":
        return "rm -fd -- %s" % quoted + (" && systemctl daemon-reload" if is_unit_file(where) else "")
    if before["kind"] == "link":
        return "ln -sfn -- %s %s" % (shlex.quote(before["target"]), quoted)
    if before["kind"] == "directory" and not before.get("tree"):
        return "install -d -m %04o %s -- %s" % (before["mode"], owner, quoted)
    if before["kind"] == "file" and before.get("size", 0) <= _SHOWN and "content" in before:
        try:
            text = base64.b64decode(before["content"]).decode("utf-8")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" not in text:
            install = "install -m %04o %s -T -- /dev/stdin %s" % (before["mode"], owner, quoted)
            again = " && systemctl daemon-reload" if is_unit_file(where) else ""
            return "printf %%s %s | %s%s" % (shlex.quote(text), install, again)
    return "# %s: only inv rollback brings back what it was" % where


# -- the file --------------------------------------------------------------------------------------------


class Journal(object):
    """The journal of one run, made with its first line.

    :param about: ``run`` (its id), and what `--list` tells of it: ``command``, ``user``.
    :ivar undo: shell commands that undo, by hand, what the operation at work has journalled; oldest first.
    :ivar room: bytes of content that the line to come may still hold.
    """

    def __init__(self, about):
        if not _RUN.match(str(about.get("run"))):
            raise OperationError("%r is no id of a run" % about.get("run"))
        self.about, self.hidden, self.undo, self.room = dict(about), False, [], MOST_INLINE
        self._descriptor, self._broken = None, None

    @property
    def place(self):
        """Path of the file."""
        return os.path.join(folder(), self.about["run"] + ".jsonl")

    def append(self, entry, undo=None):
        """Writes one entry so that it outlives a crash; returns its id.

        :raises OperationError: when that cannot be done; the file is then as it was.
        """
        ident = token()
        entry = dict(entry, id=ident)
        if self.hidden:
            entry["hidden"] = True
        try:
            if self._descriptor is None:
                self._open()
            self._write(self._descriptor, entry)
        except OSError as error:
            raise OperationError(
                "cannot write the journal %s: %s; nothing was changed" % (self.place, error.strerror),
                errno=errno.errorcode.get(error.errno, str(error.errno)),
                journal=self.place,
            )
        if undo:
            secret = self.hidden and not undo.startswith(("rm ", "chmod", "chown", "#"))
            self.undo.append("# %s: inv rollback" % entry.get("path", "hidden by no_log") if secret else undo)
        return ident

    def keep(self, source, size):
        """Keeps the content of an open file; small ones in the line, larger ones in a file beside the journal.

        What someone appends meanwhile is left out: content and checksum are of the same bytes.

        :param size: its length in bytes; files of the kernel say 0 and have more.
        """
        source.seek(0)
        if size <= min(INLINE, self.room):
            content = source.read(size or INLINE)
            self.room -= len(content)
            told = {"size": len(content), "sha256": sha256(content)}
            return dict(told, content=base64.b64encode(content).decode("ascii"))
        digest, left = hashlib.sha256(), size
        try:
            if self._descriptor is None:
                self._open()
            beside = blobs(self.about["run"])
            private(beside)
            disk = os.statvfs(beside)
            if disk.f_bavail * disk.f_frsize < size + SPARE:  # not filled up first, others live there
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            name = token()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            copy = os.path.join(beside, name)
            try:
                with os.fdopen(os.open(copy, flags, 0o600), "wb") as target:
                    while left:
                        block = source.read(min(left, 1 << 20))
                        if not block:
                            break  # it has become shorter
                        target.write(block)
                        digest.update(block)
                        left -= len(block)
                    target.flush()
                    os.fsync(target.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(copy)
                raise
            sync_folder(beside)
        except OSError as error:
            raise OperationError(
                "cannot keep %d bytes for the journal %s: %s; nothing was changed"
                % (size, self.place, error.strerror),
                errno=errno.errorcode.get(error.errno, str(error.errno)),
                journal=self.place,
            )
        return {"blob": name, "size": size - left, "sha256": digest.hexdigest()}

    def _open(self):
        private(folder())
        turn = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)  # of two that begin at once one sees the other
            self._refuse_a_second_tune()
            self._open_own()
        finally:
            os.close(turn)

    def _refuse_a_second_tune(self):
        """Two at once would leave the values of one beside the files of the other.

        :raises OperationError: another is under way here, or is being undone.
        """
        if not _is_tune(self.about):
            return
        for other in runs():
            if other.undone or other.ident == self.about["run"] or not _is_held(other.place):
                continue
            try:
                about = other.load().about
            except OperationError:
                continue  # rollback will say so
            if _is_tune(about):
                raise OperationError(
                    "another tune of this host is under way (run %s by %s); nothing was changed: run this one "
                    "again when that one has ended" % (other.ident, about.get("user"))
                )

    def _open_own(self):
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while self._descriptor is None:
            descriptor = os.open(self.place, flags, 0o600)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                    raise OperationError("%s is no file of this user" % self.place)
                if self._join(descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
                    time.sleep(0.01)

    def _join(self, descriptor):
        """Locks the file, begun, for as long as it is open; False when that has to be tried again.

        A host may be there under several names, with an agent for each: one of them writes the first line.
        """
        try:
            # Alone with it: what an agent that was killed has cut off goes.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _drop_torn(descriptor)
            if os.fstat(descriptor).st_size == 0:
                begin = dict(self.about, kind="begin", version=VERSION, boot=boot_id(), started=time.time())
                self._write(descriptor, begin)
                sync_folder(folder())
        except BlockingIOError:
            pass  # another agent is writing
        # Shared from here on: rollback takes it for itself and so never undoes a run under way.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        try:
            # Between the two locks rollback may have had it, and have moved it away.
            return status.st_size > 0 and os.path.samestat(status, os.lstat(self.place))
        except FileNotFoundError:
            return False

    def _write(self, descriptor, line):
        if self._broken is not None:
            raise OSError(self._broken, os.strerror(self._broken))
        data = json.dumps(line, sort_keys=True).encode("ascii") + b"\n"
        # One at a time: behind half a line, another agent's would make all of the file unreadable.
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        try:
            _drop_torn(descriptor)
            size = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, data)
                if written != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except OSError as error:
                if os.fstat(descriptor).st_size == size + len(data):
                    # What could not be flushed is lost, and the kernel says so once: a later success would not
                    # mean that what is before it has reached the disk (https://lwn.net/Articles/752063/).
                    self._broken = error.errno
                os.ftruncate(descriptor, size)
                raise
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN)

    def close(self):
        """Lets go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _is_tune(about):
    return str(about.get("command")).split()[:1] == ["tune"]


def _is_held(place):
    """Whether somebody writes a journal, or undoes it."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def blobs(run):
    """The folder of large contents that a run's journal keeps."""
    return os.path.join(folder(), run + ".d")


def private(where, top=None):
    """Makes a folder of the state, for this user only, and checks that it is such a folder.

    :param top: the folder of the state that it is in, or is.
    :raises OperationError: it is not.
    """
    top = top or state_folder()
    if not os.path.isdir(top):
        os.makedirs(os.path.dirname(top), exist_ok=True)
    steps = [top]
    if where != top:
        inner = os.path.relpath(where, top).split(os.sep)
        steps += [os.path.join(top, *inner[: count + 1]) for count in range(len(inner))]
    for one in steps:
        try:
            os.mkdir(one, 0o700)
            sync_folder(os.path.dirname(one))
        except FileExistsError:
            pass
        status = os.lstat(one)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise OperationError(
                "%s must be a folder that only this user can write to; nothing is kept there" % one
            )


def _drop_torn(descriptor):
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) == b"\n":
        return
    end, step = size, 1 << 16
    while end > 0:
        start = max(0, end - step)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)


# -- reading ---------------------------------------------------------------------------------------------


class Run(object):
    """What a journal says.

    :ivar about: its first line, {} when a kill came before that.
    :ivar entries: its changes in order, each with ``made`` where that is known, and ``undid`` (the boot that it
        was in) when a rollback that was not finished has put it back.
    """

    def __init__(self, ident, place, undone):
        self.ident, self.place, self.undone = ident, place, undone
        self.about, self.entries = {}, []

    def load(self):
        """Reads the file.

        :raises OperationError: when it is damaged or of an unknown version; nothing is guessed.
        """
        try:
            descriptor = os.open(self.place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as source:
                status = os.fstat(source.fileno())
                if status.st_uid not in (os.geteuid(),) or status.st_mode & 0o022:
                    raise OperationError("the journal %s can be written by others: it is not used" % self.place)
                lines = source.read().split(b"\n")
        except OSError as error:
            raise OperationError("cannot read the journal %s: %s" % (self.place, error.strerror))
        by_id = {}
        for number, raw in enumerate(lines[:-1], 1):  # what follows the last newline is torn, or nothing
            try:
                line = json.loads(raw.decode("ascii"))
                if number == 1:
                    self._begin(line)
                elif line["kind"] == "made":
                    by_id[line["of"]]["made"] = line["what"]
                elif line["kind"] == "undid":
                    by_id[line["of"]]["undid"] = line.get("boot") or True
                elif line["kind"] in KINDS:
                    by_id[line["id"]] = line
                    self.entries.append(line)
                else:
                    raise ValueError("unknown kind")
            except (ValueError, KeyError, TypeError):
                raise OperationError(
                    "the journal %s is damaged in line %d: nothing was undone from it" % (self.place, number),
                    journal=self.place,
                )
        return self

    def _begin(self, line):
        if line["kind"] != "begin":
            raise ValueError("no beginning")
        if line["version"] != VERSION:
            raise OperationError(
                "the journal %s is of version %s, this agent knows %d" % (self.place, line["version"], VERSION)
            )
        self.about = line


class Marks(object):
    """Notes in a journal of what has been put back, for a rollback that does not come to its end.

    When the disk is full they are left out: rollback then goes by what it finds alone.

    :param descriptor: of the file, open for appending and locked.
    """

    def __init__(self, descriptor):
        self._descriptor = descriptor
        with contextlib.suppress(OSError):
            _drop_torn(descriptor)

    def add(self, entry):
        """Notes the id of a change."""
        data = json.dumps({"kind": "undid", "of": entry, "boot": boot_id()}).encode("ascii") + b"\n"
        try:
            size = os.fstat(self._descriptor).st_size
            if os.write(self._descriptor, data) != len(data):
                os.ftruncate(self._descriptor, size)
        except OSError:
            pass


KINDS = ("path", "temporary", "attributes", "times", "kernel", "unit", "command")
_NAME = re.compile(r"\A([0-9A-Za-z][0-9A-Za-z-]{0,63})(\.undone)?\.jsonl\Z")


def runs():
    """This user's runs on this host, newest first: `Run` objects, not loaded.

    :raises OperationError: when the folder is there and cannot be read.
    """
    try:
        _check_folder()
        names = os.listdir(folder())
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise OperationError("cannot read the folder of journals %s: %s" % (folder(), error.strerror))
    found = [match for match in map(_NAME.match, names) if match]
    return sorted(
        (Run(match.group(1), os.path.join(folder(), match.group(0)), bool(match.group(2))) for match in found),
        key=lambda run: run.ident,
        reverse=True,
    )


def _check_folder():
    status = os.lstat(folder())
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise OperationError("%s must be a folder that only this user can write to; it is not used" % folder())
