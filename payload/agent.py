"""The agent: one process per host and command, speaking frames (wire.py) over the pipes it was started with.

In: `run` messages with a list of steps, each naming an operation, its arguments, check and diff mode and the
identity to become. Out: `progress` while a step runs, a `result` for each, in order, and an `end`. Steps carry
the number of the task they belong to: when a step fails and may not (`go_on`), the steps of later tasks are not
run, so that a controller can send many tasks ahead. A step that names a run journals what it changes (journal.py).

Both ends send a `beat` every BEAT seconds; until it is asked for something the agent answers one with one. It ends
when the controller closes the pipe or is silent for ALONE seconds: the operation at work is asked to stop, gets
GRACE seconds to finish its step, then every child goes and the agent with it.

Another identity is a child agent under sudo, fed the same archive over its pipes; its frames are relayed.
The password is written only after sudo's random prompt token has been seen.
"""

import binascii
import errno
import fcntl
import os
import pwd
import resource
import select
import sys
import time
from _thread import allocate_lock, start_new_thread

import wire

# What only some runs need is imported where it is used: most of an agent's start is imports. An agent that is only
# greeted, as by `inv ping`, needs neither threading nor queue, signal, json and journal, half of its start.

BEAT = 2.0  # seconds between beats
ALONE = 60.0  # seconds of silence after which the controller is taken for dead
IDLE = 25.0  # seconds of silence after which a child agent is taken for dead; below the controller's own 30
GRACE = 10.0  # seconds an operation may take to finish its step once the controller is gone
SUDO_TIMEOUT = 20.0  # seconds for sudo to ask for a password or to start the child
SUDO_NOISE = 256 * 1024  # bytes that it may print meanwhile


class Completed(object):
    """What came of a program; stdout and stderr are bytes."""

    def __init__(self, returncode, stdout, stderr, timed_out):
        self.returncode, self.stdout, self.stderr, self.timed_out = returncode, stdout, stderr, timed_out


class Context(object):
    """What an operation may use; see operations/__init__.py for the contract."""

    def __init__(self, agent, check, diff, progress):
        self.check = check
        self.diff = diff
        self.progress = progress
        self._agent = agent

    @property
    def sources(self):
        """{module path: source} of all payload modules."""
        return self._agent.payload.sources()

    @property
    def sent_for_this(self):
        """True when this user had no copy of the payload here before this command."""
        return self._agent.payload.was_sent

    def stopping(self):
        return self._agent.stopped

    def run_command(self, argv, stdin=b"", timeout=None, env=None, cwd=None):
        """Run a program to its end, with no terminal, and collect its output.

        :param argv: list of str; no shell is involved.
        :param stdin: bytes it reads.
        :param timeout: seconds until it and its group are killed; None waits for as long as the controller lives.
        :returns: a Completed.
        :raises OSError: it could not be started.
        """
        import subprocess

        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        self._agent.children.add(child.pid)
        end = None if timeout is None else time.monotonic() + timeout
        timed_out = False
        try:
            while True:
                try:
                    out, err = child.communicate(stdin, timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    stdin = None  # communicate() goes on with what it was first given
                    if self.stopping() or (end is not None and time.monotonic() > end):
                        timed_out = True
                        _kill_group(child.pid)
                        out, err = child.communicate()
                        break
        finally:
            self._agent.children.discard(child.pid)
        return Completed(child.returncode, out, err, timed_out)


class Agent(object):
    """The loop of one agent; `read_fd` and `write_fd` are private copies of its first stdin and stdout."""

    def __init__(self, payload, digest, read_fd, write_fd):
        self.payload, self.digest = payload, digest
        self.read_fd, self.write_fd = read_fd, write_fd
        self.stopped = False
        self.children = set()  # pids of processes that must not outlive this agent
        self._write_lock = allocate_lock()
        self._becomes = {}  # identity -> Become
        self._wrong = {}  # (sudo, password) -> sentence: a second try could lock the user out
        self._journal = None  # of the run whose steps were sent last

    # -- the three threads: this one works, one reads, one sends beats ------------------------------

    def serve(self, hello):
        """Answer messages until the controller is done; returns the exit status."""
        self.send(dict(hello, type="hello", protocol=wire.VERSION), wire.pack_flat)
        data = self._receive()
        beat = {"type": "beat"}
        while data == wire.pack_flat(beat):  # nothing is asked yet
            self.send(beat, wire.pack_flat)
            data = self._receive()
        if data:
            import queue
            import signal

            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the pipe's end is the signal that counts
            inbox = queue.Queue()
            start_new_thread(self._read, (data, inbox))
            start_new_thread(self._beat, ())
            for message in iter(inbox.get, None):
                self._answer(message)
            self._end_children()
        self.payload.keep()
        return 0

    def _receive(self):
        """What the controller says next; nothing when it is gone."""
        ready, _, _ = select.select([self.read_fd], [], [], ALONE)
        return os.read(self.read_fd, 1 << 20) if ready else b""

    def _read(self, data, inbox):
        decoder = wire.Decoder(wire.FROM_CONTROLLER)
        try:
            while data:
                for message in decoder.feed(data):
                    if message["type"] == "run":
                        inbox.put(message)
                data = self._receive()
        except (OSError, wire.ProtocolError) as error:
            sys.stderr.write("tcpfleet agent: {}\n".format(error))
        self.stopped = True
        inbox.put(None)
        time.sleep(GRACE)  # the main thread normally ends the process long before this
        self._end_children()
        os._exit(1)

    def _beat(self):
        while not self.stopped:
            time.sleep(BEAT)
            self.send({"type": "beat"})
            for child in list(self._becomes.values()):
                child.send({"type": "beat"})

    def send(self, message, pack=wire.pack):
        """Write one frame whole; a vanished controller is noticed by the reader, not here."""
        data = memoryview(pack(message))
        with self._write_lock:
            while data:
                try:
                    data = data[os.write(self.write_fd, data) :]
                except OSError:
                    self.stopped = True
                    return

    def _end_children(self):
        for child in self._becomes.values():
            child.close()
        for pid in list(self.children):
            _kill_group(pid)

    # -- operations --------------------------------------------------------------------------------

    def _answer(self, message):
        number, failed_in = message.get("id"), None
        for index, step in enumerate(message["steps"]):
            if self.stopped or (failed_in is not None and step.get("task", 0) != failed_in):
                break
            answer = {"type": "result", "id": number, "step": index}
            result = self._run(step, number, index)
            try:
                self.send(dict(answer, result=result))
            except (wire.ProtocolError, TypeError, ValueError) as error:
                msg = "the result of {} cannot be sent: {}".format(step.get("op"), error)
                result = {"changed": False, "failed": True, "msg": msg}
                self.send(dict(answer, result=result))
            if result.get("failed") and not step.get("go_on"):
                failed_in = step.get("task", 0)
        self.send({"type": "end", "id": number})

    def _run(self, step, number, index):
        """One step as whom it asks for; returns the result dict."""

        def progress(data):
            self.send({"type": "progress", "id": number, "step": index, "data": data})

        become = step.get("become")
        try:
            if become and not _is_me(become["user"]):
                result = self._as(become).call(step, progress)
            else:
                context = Context(self, bool(step.get("check")), bool(step.get("diff")), progress)
                result = self._journalled(step, context)
        except (BecomeError, wire.ProtocolError) as error:
            result = {"changed": False, "failed": True, "msg": str(error)}
        notify = step.get("notify")
        if notify and result.get("changed") and not result.get("failed"):
            # Before anything else can go wrong: the change is made, so its handlers are owed.
            owed = perform("handlers", dict(notify, action="add"), Context(self, False, False, progress))
            if owed.get("failed"):
                result = dict(result, warnings=[*result.get("warnings", ()), owed["msg"]])
        return result

    def _journalled(self, step, context):
        """Runs an operation; with a journal its result gets ``undo_by_hand``: commands, oldest change first."""
        import journal

        about = step.get("journal")
        if step["op"] == "rollback" and self._journal is not None:
            # A run that is under way is not undone; this connection's own run is over when it asks for that.
            self._journal.close()
            self._journal = None
        if not about or context.check:
            return perform(step["op"], step["args"], context)
        if self._journal is None or self._journal.about["run"] != about["run"]:
            if self._journal is not None:
                self._journal.close()
            self._journal = journal.Journal(about)
        with journal.recording(self._journal, bool(step.get("hidden"))):
            result = perform(step["op"], step["args"], context)
            return dict(result, undo_by_hand=self._journal.undo) if self._journal.undo else result

    def _as(self, become):
        key = (become.get("exe"), become["user"])
        if key not in self._becomes or not self._becomes[key].alive():
            secret = (become.get("exe"), become.get("password"))
            if secret in self._wrong:
                raise BecomeError(self._wrong[secret])
            try:
                self._becomes[key] = Become(self, become)
            except WrongPassword as error:
                self._wrong[secret] = str(error)
                raise
        return self._becomes[key]


def perform(name, args, context):
    """Run one operation of operations.TABLE; failures and bugs both become a result, never an exception."""
    import operations

    if name not in operations.TABLE:
        return {"changed": False, "failed": True, "msg": "this agent has no operation {!r}".format(name)}
    try:
        full = "operations." + operations.TABLE[name]
        __import__(full)
        return sys.modules[full].run(args, context)
    except operations.OperationError as error:
        return dict({"changed": False, "failed": True, "msg": error.msg}, **error.fields)
    except Exception as error:
        # A bug or an unforeseen OSError: named with its place, so that it can be reported.
        import traceback

        return {
            "changed": False,
            "failed": True,
            "msg": "{}: {}: {}".format(name, type(error).__name__, error),
            "exception": traceback.format_exc(),
        }


# -- another identity ----------------------------------------------------------------------------------


class BecomeError(Exception):
    """The identity asked for could not be had; the text is for the user."""


class WrongPassword(BecomeError):
    """sudo asked again."""


class Become(object):
    """A child agent running as another user through sudo."""

    def __init__(self, agent, become):
        import subprocess
        import zlib

        self.user = become["user"]
        exe = become.get("exe") or "sudo"
        prompt = binascii.hexlify(os.urandom(12)).decode()
        token = binascii.hexlify(os.urandom(12)).decode()
        stub = agent.payload.sources()["stub"].encode("utf-8")
        code = "import zlib,binascii;exec(zlib.decompress(binascii.a2b_base64({!r})))".format(
            binascii.b2a_base64(zlib.compress(stub), newline=False).decode()
        )
        argv = [exe, "-H", "-S", "-p", prompt, "-u", self.user, "--"]
        argv += [sys.executable, "-I", "-S", "-c", code, token, agent.digest, str(len(agent.payload.archive))]
        try:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            why = error.strerror
            if error.errno == errno.ENOENT:
                why = "there is no {} on this host; install it, log in as {}, or set ansible_become_exe".format(
                    exe, self.user
                )
            raise BecomeError("cannot become {}: {}".format(self.user, why))
        self._lock = allocate_lock()
        self._decoder = wire.Decoder(wire.FROM_AGENT)
        self._number = 0
        try:
            rest = self._log_in(prompt.encode(), token.encode(), become.get("password"), agent.payload.archive)
        except BaseException:
            for pipe in (self.process.stdout, self.process.stderr):
                pipe.close()  # one that goes on talking ends by that
            self.close()
            raise
        self._ready = self._decoder.feed(rest)
        start_new_thread(self._drain, ())

    def _log_in(self, prompt, token, password, archive):
        """Answer sudo's prompt if it comes, feed the child its code; returns what it sent after its token."""
        out, err = b"", b""
        stdout, stderr = self.process.stdout.fileno(), self.process.stderr.fileno()
        asked, deadline = False, time.monotonic() + SUDO_TIMEOUT
        watched = [stdout, stderr]
        while True:
            ready, _, _ = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))
            if time.monotonic() > deadline:  # however much it says
                said = " ".join(err[-300:].decode("utf-8", "replace").split())
                said = "; its last words: " + said if said else ""
                msg = "cannot become {}: no answer from sudo in {:.0f} s{}"
                raise BecomeError(msg.format(self.user, SUDO_TIMEOUT, said))
            if len(out) + len(err) > SUDO_NOISE:
                raise BecomeError("cannot become {}: sudo prints without end".format(self.user))
            for fd in ready:
                data = os.read(fd, 65536)
                if fd == stderr:
                    err += data
                elif data:
                    out += data
                if not data:
                    watched.remove(fd)
            if prompt in err:
                if password is None:
                    raise BecomeError(
                        "cannot become {}: sudo wants a password; give one with --ask-sudo-pass".format(self.user)
                    )
                if asked:
                    raise WrongPassword("cannot become {}: sudo says the password is wrong".format(self.user))
                asked = True
                err = err.partition(prompt)[2]
                self._write(password.encode("utf-8") + b"\n")
            _, found, tail = out.partition(b"\n" + token + b" ")
            if found and b"\n" in tail:
                word, _, rest = tail.partition(b"\n")
                if word == b"need":
                    self._write(archive)
                elif word != b"have":
                    raise BecomeError("cannot become {}: its python3 answers {}".format(self.user, word.decode()))
                return rest
            if stdout not in watched:
                said = " ".join(err.decode("utf-8", "replace").split())
                if "tty" in said:  # in every language
                    said += "; sudoers has `Defaults requiretty`: turn it off for this user"
                raise BecomeError("cannot become {}: {}".format(self.user, said or "sudo ended without a word"))

    def _drain(self):
        # A child that writes to stderr must never block on a full pipe.
        while os.read(self.process.stderr.fileno(), 65536):
            pass

    def _write(self, data):
        with self._lock:
            try:
                self.process.stdin.write(data)
                self.process.stdin.flush()
            except (OSError, ValueError):
                pass  # its end is noticed where its answer is awaited

    def alive(self):
        return self.process.poll() is None

    def send(self, message):
        self._write(wire.pack(message))

    def call(self, step, progress):
        """Relay one step and its progress; returns the result dict."""
        self._number += 1
        told = {name: step[name] for name in ("op", "args", "check", "diff", "journal", "hidden") if name in step}
        self.send({"type": "run", "id": self._number, "steps": [told]})
        result = None
        while True:
            while self._ready:
                answer = self._ready.pop(0)
                if answer.get("id") != self._number:
                    continue
                if answer["type"] == "progress":
                    progress(answer["data"])
                elif answer["type"] == "result":
                    result = answer["result"]
                elif answer["type"] == "end" and result is not None:
                    return result
            ready, _, _ = select.select([self.process.stdout], [], [], IDLE)
            if not ready:  # it beats every BEAT seconds while it lives
                self.process.kill()
                raise BecomeError("no sign of life from the agent of user {} for {:.0f} s".format(self.user, IDLE))
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                raise BecomeError("the agent of user {} ended in the middle of an operation".format(self.user))
            self._ready = self._decoder.feed(data)

    def close(self):
        """Closing its pipe ends the child; a kill may not reach a process of another user."""
        import subprocess

        try:
            self.process.stdin.close()
        except OSError:
            pass
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            _kill_group(self.process.pid)  # a sudo that hangs, where it may be killed


# -- small things ----------------------------------------------------------------------------------------


def _is_me(user):
    try:
        return pwd.getpwnam(user).pw_uid == os.geteuid()
    except KeyError:
        raise BecomeError("cannot become {}: this host has no such user".format(user))


def _kill_group(pid):
    import signal

    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass


def _private_pipes():
    """Move stdin and stdout to private close-on-exec descriptors: no operation or child can write into frames."""
    pipes = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (0, 1)]
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return pipes


def main(payload, digest, uncached):
    """Entry from the stub; never returns.

    :param payload: the stub's: ``sources()`` of all payload modules, their ``archive``, ``keep()``.
    :param digest: sha256 of the archive.
    :param uncached: why the archive could not be kept on this host, or None.
    """
    read_fd, write_fd = _private_pipes()
    with open("/proc/sys/kernel/random/boot_id") as source:
        boot_id = source.read().strip()
    hello = {
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "boot_id": boot_id,
        "nofile": list(resource.getrlimit(resource.RLIMIT_NOFILE)),  # as this login got them
        "uncached": uncached,
    }
    os._exit(Agent(payload, digest, read_fd, write_fd).serve(hello))
