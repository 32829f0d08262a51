"""Life as a daemon: leave the console, report readiness to whoever started it, own a pid file.

`start_daemon` is the classic recipe (fork, setsid, fork, umask, chdir, stdio) with a pipe back to the
caller, so that "started" means "does its work" and a failure comes back as one sentence. `PidFile` says
which process is the daemon: the pid and its start time, written atomically, never through a symlink.
"""

import errno
import fcntl
import os
import re
import select
import signal
import stat
import sys
import time
import traceback
from typing import Callable, NamedTuple, Optional, Sequence, Tuple

StartResult = NamedTuple("StartResult", [("ok", bool), ("pid", int), ("message", str)])
StartResult.__doc__ = """What `start_daemon` achieved.

ok: the daemon called ready(); pid: its process id (0 if it never came to be); message: what it passed to
ready(), or one sentence that says why it failed.
"""

_RESET_SIGNALS = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "CHLD", "TTIN", "TTOU")
_LOCK_SECONDS = 2.0  # a pid file is locked only while it is read and replaced: microseconds
_POLL_SECONDS = 0.1
_END_SECONDS = 5.0  # between "I failed" and the end of the process: its own clean-up


class DaemonError(Exception):
    """A daemon cannot start, or its pid file cannot be had; the text is one sentence for the user."""


class Readiness:
    """Handed to a daemon's main: call it once when the daemon does its work, with an optional message."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, message: str = "") -> None:
        """Tell the starter that the daemon is ready; later calls do nothing."""
        self._send(b"R", message)

    def failed(self, message: str) -> None:
        """Tell the starter that the daemon gives up, and why; after ready() this does nothing."""
        self._send(b"F", message)

    def close(self) -> None:
        """Close this process's copy of the pipe (a forked worker's business is not readiness)."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _send(self, kind: bytes, message: str) -> None:
        if self._fd < 0:
            return
        try:
            os.write(self._fd, kind + message.encode("utf-8", "replace")[:4000])  # < PIPE_BUF: one piece
        except OSError:
            pass  # The starter is gone; the daemon lives on, that is its purpose.
        self.close()


def start_daemon(
    main: Callable[[Readiness], Optional[int]],
    log_path: Optional[str],
    timeout: float = 30.0,
    keep: Sequence[int] = (),
) -> StartResult:
    """Run `main(ready)` as a daemon and return, in the calling process, once it is ready or has failed.

    :param main: the daemon's program. It calls ready(message="") when it does its work and returns its
        exit status. An exception or an exit before ready() is the failure; its traceback goes to the log.
    :param log_path: file that stdout and stderr are appended to (created 0640, symlinks refused), or None
        for /dev/null. stdin is /dev/null.
    :param timeout: seconds to wait for ready(); after that the daemon is killed and that is the failure.
    :param keep: descriptors from outside that the daemon needs. Every other descriptor above 2 that was
        inherited across exec is closed, so that no SSH session or pipeline waits for the daemon.
    :returns: a StartResult; nothing is left running when `ok` is false.
    """
    open_stdio()
    log_fd = -1
    if log_path is not None:
        log_path = os.path.abspath(log_path)
        try:
            log_fd = open_log(log_path)
        except DaemonError as e:
            return StartResult(False, 0, str(e))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()  # else the daemon's copy of a buffer would be written twice
        except (AttributeError, OSError, ValueError):
            pass
    receive, send = os.pipe()
    try:
        child = os.fork()
    except OSError as e:
        for fd in (receive, send, log_fd):
            if fd >= 0:
                os.close(fd)
        return StartResult(False, 0, "cannot start a process: %s" % e.strerror)
    if child == 0:
        os.close(receive)
        _become_daemon(main, Readiness(send), log_fd, (*keep, send))
    os.close(send)
    if log_fd >= 0:
        os.close(log_fd)
    try:
        return _await_daemon(child, receive, timeout, log_path)
    finally:
        os.close(receive)


def open_stdio() -> None:
    """Open /dev/null in the place of those of stdin, stdout and stderr that the caller has closed.

    Else the next file or socket that is opened becomes "stderr", and is written to as such.
    """
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        os.set_inheritable(fd, True)
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)


def open_log(path: str) -> int:
    """Open `path` for appending and return the descriptor (close-on-exec).

    The file is created with mode 0640. Raises DaemonError with one sentence if it cannot be written or is
    a symlink: a daemon run as root must not be led to append to somebody else's file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as e:
        raise DaemonError("cannot write the log %s: %s" % (path, _reason(e)))
    os.set_blocking(fd, True)
    return fd


def process_start_time(pid: int) -> Optional[int]:
    """Return when process `pid` started, in clock ticks since boot; None if there is no such live process.

    This is field 22 of /proc/PID/stat. With the pid it names one process for good, where a pid alone is
    reused. A zombie counts as gone.
    """
    return _stat(pid)[1]


def describe_process(pid: int) -> str:
    """Return what `pid` runs, as one short line for a message: its command line, else its name, else ''."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as f:
            line = " ".join(f.read(4096).replace(b"\0", b" ").decode("utf-8", "replace").split())
        if not line:
            with open("/proc/%d/comm" % pid) as f:
                line = f.read().strip()
    except OSError:
        return ""
    return line if len(line) <= 100 else line[:97] + "..."


def replace_file(path: str, content: bytes) -> int:
    """Have `path` hold `content` (mode 0644), all of it or, where OSError is raised, what was there before.

    Returns a descriptor of the file that may be read and written. The new file's name is its own until it is
    complete: nobody else can have created it, or have it open.
    """
    temporary = "%s.%d" % (path, os.getpid())
    try:
        os.unlink(temporary)  # left by a process of this number that was killed
    except FileNotFoundError:
        pass
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fchmod(fd, 0o644)  # readable whatever the umask: others may ask for the status
        os.rename(temporary, path)
    except BaseException:
        os.close(fd)
        os.unlink(temporary)
        raise
    return fd


class PidFile:
    """A file that names the one process that is the daemon.

    The first line is the pid, as every tool expects; the second, `start=TICKS`, is its start time, which
    tells a stale file from one whose pid was reused. The file appears complete (temporary name, then
    rename) and a lock is held while it is judged and replaced, so of two starts at once one wins.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._owner = None  # type: Optional[Tuple[int, int]]

    def acquire(self) -> None:
        """Make the file name the calling process.

        :raises DaemonError: another live process holds it (named), it is something else than a pid file
            (left alone), it is a symlink, or it cannot be written.
        """
        pid = os.getpid()
        start = process_start_time(pid)
        if start is None:
            raise DaemonError("/proc does not show this process; is /proc mounted?")
        fd = self._lock()
        try:
            self._refuse_if_held(fd, pid)
            try:
                os.close(replace_file(self.path, b"%d\nstart=%d\n" % (pid, start)))
            except OSError as e:
                if not _content(fd):
                    os.unlink(self.path)  # the empty one that was only locked
                raise DaemonError("cannot write the pid file %s: %s" % (self.path, _reason(e)))
        finally:
            os.close(fd)
        self._owner = (pid, start)

    def adopt(self) -> None:
        """Own the file again after exec: same process, same file. Does nothing if it names another."""
        pid = os.getpid()
        try:
            with open(self.path, "rb") as f:
                named = _parse_pid_file(f.read(256))
        except OSError:
            return
        if named is not None and named == (pid, process_start_time(pid)):
            self._owner = (pid, named[1] or 0)

    def release(self) -> None:
        """Remove the file if it still names the calling process; a forked child's call does nothing."""
        if self._owner is None or self._owner[0] != os.getpid():
            return
        try:
            fd = self._lock(create=False)
        except DaemonError:
            return
        try:
            if _parse_pid_file(_content(fd)) == self._owner:
                os.unlink(self.path)
        except OSError:
            pass
        finally:
            os.close(fd)
        self._owner = None

    @staticmethod
    def read(path: str) -> Optional[int]:
        """Return the pid of the live process that holds the pid file `path`, None if there is none.

        A missing or stale file, one of another program (no start time) and a symlink are all None.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            named = _parse_pid_file(_content(fd))
        except OSError:
            return None
        finally:
            os.close(fd)
        if named is None or named[1] is None or process_start_time(named[0]) != named[1]:
            return None
        return named[0]

    def _lock(self, create: bool = True) -> int:
        """Return a locked descriptor of the file that is at the path now (an empty one if there was none)."""
        deadline = time.monotonic() + _LOCK_SECONDS
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        while True:
            try:
                fd = os.open(self.path, flags, 0o644)
            except OSError as e:
                raise DaemonError("cannot write the pid file %s: %s" % (self.path, _reason(e)))
            try:
                held = os.fstat(fd)
                if not stat.S_ISREG(held.st_mode):
                    raise DaemonError("the pid file %s is not a regular file" % self.path)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The file may have been replaced or removed between open and lock: then that lock is void.
                if os.path.samestat(held, os.lstat(self.path)):
                    return fd
            except FileNotFoundError:
                pass
            except OSError as e:
                if e.errno not in (errno.EAGAIN, errno.EACCES):
                    os.close(fd)
                    raise DaemonError("cannot lock the pid file %s: %s" % (self.path, _reason(e)))
            except DaemonError:
                os.close(fd)
                raise
            os.close(fd)
            if time.monotonic() > deadline:
                raise DaemonError("the pid file %s is locked by another process" % self.path)
            time.sleep(0.005)

    def _refuse_if_held(self, fd: int, own_pid: int) -> None:
        content = _content(fd)
        named = _parse_pid_file(content)
        if named is None:
            if content.strip():
                raise DaemonError("%s is not a pid file; it is left as it is" % self.path)
            return
        pid, start = named
        alive = process_start_time(pid)
        if pid == own_pid or alive is None or (start is not None and start != alive):
            return
        if start is None:  # Written by something else: we cannot know whether the pid was reused.
            raise DaemonError(
                "the pid file %s belongs to another program: it names pid %d (%s)"
                % (self.path, pid, describe_process(pid))
            )
        raise DaemonError("already running as pid %d (pid file %s)" % (pid, self.path))


def _become_daemon(
    main: Callable[[Readiness], Optional[int]], ready: Readiness, log_fd: int, keep: Tuple[int, ...]
) -> None:
    """Child side of start_daemon: never returns."""
    status = 1
    try:
        os.setsid()
        pid = os.fork()  # The second fork: no session leader, so no terminal is ever acquired by an open().
        if pid:
            os._exit(0)
        os.setpgid(0, 0)  # A group under the daemon's own pid, so that all of it can be ended at once.
        os.write(keep[-1], b"P%d\n" % os.getpid())
        os.umask(0o027)
        os.chdir("/")
        _reset_signals()
        _replace_stdio(log_fd)
        _close_inherited(keep)
        status = _call_main(main, ready)
    except BaseException as e:
        ready.failed("cannot become a daemon: %s" % e)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                pass
        os._exit(status)  # not sys.exit: the caller's atexit handlers and finally blocks are not ours


def _call_main(main: Callable[[Readiness], Optional[int]], ready: Readiness) -> int:
    try:
        status = main(ready)
        status = 0 if status is None else int(status)
        ready.failed("the daemon ended with status %d before it was ready" % status)
    except DaemonError as e:
        _print_error(str(e))
        ready.failed(str(e))
        status = 1
    except SystemExit as e:
        if isinstance(e.code, str):
            _print_error(e.code)
            ready.failed(e.code)
            status = 1
        else:
            status = e.code or 0
            ready.failed("the daemon ended with status %d before it was ready" % status)
    except BaseException as e:
        traceback.print_exc()
        ready.failed("%s: %s" % (type(e).__name__, e))
        status = 1
    return status


def _await_daemon(child: int, receive: int, timeout: float, log_path: Optional[str]) -> StartResult:
    """Read the daemon's pid and verdict from the pipe; kill what is there when it does not become ready."""
    deadline = time.monotonic() + timeout
    data, pid, start = b"", 0, None
    poll = select.poll()
    poll.register(receive, select.POLLIN)
    try:
        os.waitpid(child, 0)  # The first child only forks.
        while True:
            if poll.poll(int(_POLL_SECONDS * 1000)):
                piece = os.read(receive, 65536)
                data += piece
                if not pid and b"\n" in data:
                    pid = int(data[1 : data.index(b"\n")])
                    start = process_start_time(pid)
                verdict = data.partition(b"\n")[2] if pid else data
                if verdict[:1] in (b"R", b"F"):
                    if verdict[:1] == b"F":
                        _await_end(pid, start)
                    return StartResult(verdict[:1] == b"R", pid, verdict[1:].decode("utf-8", "replace"))
                if not piece:
                    return StartResult(False, pid, _died(pid, log_path))
            elif pid and (start is None or process_start_time(pid) != start):
                # Its own children may still hold the pipe open, so the end of the pipe is not enough.
                # Without a start time it was gone before we looked.
                _end_group(pid)
                return StartResult(False, pid, _died(pid, log_path))
            if time.monotonic() > deadline:
                _end_group(pid)
                return StartResult(False, pid, "the daemon was not ready within %g s" % timeout)
    except BaseException:  # Ctrl-C while waiting: no half-started daemon stays behind.
        _end_group(pid)
        raise


def _await_end(pid: int, start: Optional[int]) -> None:
    """Give a daemon that has said that it fails the time to end; then end it."""
    deadline = time.monotonic() + _END_SECONDS
    while start is not None and process_start_time(pid) == start:
        if time.monotonic() > deadline:
            _end_group(pid)
            return
        time.sleep(0.002)


def _died(pid: int, log_path: Optional[str]) -> str:
    where = "; its log is %s" % log_path if log_path else ""
    return "the daemon (pid %d) died before it was ready%s" % (pid, where)


def _end_group(pid: int) -> None:
    if pid > 1:
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass


def _reset_signals() -> None:
    """Undo what nohup, a background shell or the caller set: a daemon decides about its signals itself."""
    for name in _RESET_SIGNALS:
        signal.signal(getattr(signal, "SIG" + name), signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _replace_stdio(log_fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null if log_fd < 0 else log_fd, 1)
    os.dup2(null if log_fd < 0 else log_fd, 2)
    for fd in (null, log_fd):
        if fd > 2:
            os.close(fd)
    # Fresh objects: the caller's may be closed, or captured by whatever started it.
    sys.stdin = os.fdopen(0, "r", closefd=False)
    sys.stdout = os.fdopen(1, "w", 1, encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="replace", closefd=False)


def _close_inherited(keep: Tuple[int, ...]) -> None:
    """Close descriptors that came through exec from outside.

    Python opens its own with close-on-exec (PEP 446), so one without the flag is somebody else's: an SSH
    channel, a pipe of the shell. Our own are left to their objects, which would else close a reused number.
    """
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd <= 2 or fd in keep:
            continue
        try:
            if not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                os.close(fd)
        except OSError:
            pass  # the directory listing's own descriptor


def _print_error(message: str) -> None:
    print(message, file=sys.stderr)


def _stat(pid: int) -> Tuple[str, Optional[int]]:
    try:
        with open("/proc/%d/stat" % pid, "rb") as f:
            # The name, in parentheses, may hold spaces and parentheses: split after the last one.
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return "", None
    state = fields[0].decode()
    return state, (None if state in "ZX" else int(fields[19]))


def _content(fd: int) -> bytes:
    return os.pread(fd, 256, 0)


def _parse_pid_file(content: bytes) -> Optional[Tuple[int, Optional[int]]]:
    """Return (pid, start time or None) from a pid file's content; None if it is not one."""
    match = re.match(rb"\s*(\d{1,10})\s*(?:start=(\d{1,20})\s*)?\Z", content)
    if not match or int(match.group(1)) < 1:
        return None
    return int(match.group(1)), int(match.group(2)) if match.group(2) else None


def _reason(e: OSError) -> str:
    return "it is a symbolic link" if e.errno == errno.ELOOP else (e.strerror or str(e))
