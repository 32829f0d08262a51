"""The first code that runs on a host: `python3 -I -S -c STUB TOKEN SHA256 SIZE`, sent on the command line.

It says `TOKEN have` or `TOKEN need` on a line of its own (whatever a login shell printed before is noise),
reads SIZE bytes of payload archive when it has no copy, checks them against SHA256 before anything of them
runs, keeps a copy in ~/.cache/tcpfleet for the next time, and starts the agent from memory. Beside the copy lies
what earlier agents have compiled of it, for compiling is most of an agent's start (30 of 50 ms): it is used only
when this user alone can have written it, from this very archive, for this very Python.

The archive is zlib-compressed JSON: {"agent": source, "operations/sysctl": source, ...}. Must parse on
Python 2.7, so that an old interpreter can be named instead of dying with a syntax error.
"""

import os
import stat
import sys
import zlib

token, digest, size = sys.argv[1], sys.argv[2], int(sys.argv[3])


def say(word):
    os.write(1, ("\n" + token + " " + word + "\n").encode("utf-8"))


def take(count):
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 20))
        if not part:
            sys.exit(1)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def matches(data):
    # Python's own, up to 3.11 and since 3.12; hashlib brings OpenSSL along, a tenth of an agent's start.
    for name in ("_sha256", "_sha2", "hashlib"):
        try:
            sha256 = __import__(name).sha256
            break
        except ImportError:
            continue
    return sha256(data).hexdigest() == digest


def cache_directory():
    import pwd

    # not $HOME: under sudo it can still be the caller's
    return os.path.join(pwd.getpwuid(os.geteuid()).pw_dir, ".cache", "tcpfleet")


class Cache(object):
    """~/.cache/tcpfleet, held open: its name may come to lead elsewhere, it does not.

    Raises OSError where someone else owns it or may write there, or so in the home or ~/.cache above it.
    """

    def __init__(self, make=False):
        home, cache, own = cache_directory().rsplit("/", 2)
        self.fd = None
        try:
            for name in (home, cache, own):
                if make and self.fd is not None:
                    try:
                        os.mkdir(name, 0o700, dir_fd=self.fd)
                    except FileExistsError:
                        pass
                flags = os.O_RDONLY | os.O_DIRECTORY | (0 if self.fd is None else os.O_NOFOLLOW)
                self.enter(os.open(name, flags, dir_fd=self.fd), name)
        except BaseException:
            self.__exit__()
            raise

    def enter(self, fd, name):
        above, self.fd = self.fd, fd
        if above is not None:
            os.close(above)
        if not is_private(os.fstat(fd)):
            raise OSError(name + " can be written by others")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def read(self, name, most=-1):
        # A FIFO would be waited for.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.fd)
        with os.fdopen(fd, "rb") as copy:
            state = os.fstat(fd)
            if not (stat.S_ISREG(state.st_mode) and is_private(state)):
                raise OSError(name + " can be written by others")
            return copy.read(most)

    def put(self, name, data):
        draft = "new-" + token
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=self.fd)
        try:
            with os.fdopen(fd, "wb") as copy:
                copy.write(data)
            os.rename(draft, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except (OSError, IOError):
            os.unlink(draft, dir_fd=self.fd)
            raise


def is_private(state):
    return state.st_uid == os.geteuid() and not state.st_mode & 0o022


def cached():
    try:
        with Cache() as cache:
            data = cache.read("agent-" + digest, size + 1)
    except (OSError, IOError, KeyError):
        return None
    return data if matches(data) else None


def keep(data):
    """Store the archive; returns why that was not possible, or None. Then it is simply sent again next time."""
    try:
        with Cache(make=True) as cache:
            cache.put("agent-" + digest, data)
            for name in os.listdir(cache.fd):
                if name.startswith(("agent-", "code-")) and digest not in name:
                    os.unlink(name, dir_fd=cache.fd)
    except (OSError, IOError, KeyError) as error:
        return str(error)
    return None


def speak_utf8():
    """Starts this Python again in a UTF-8 locale, for 3.6 in a login without one cannot name files but in ASCII.

    Later ones do as much by themselves (PEP 538).
    """
    import locale

    key = "LC_ALL" if os.environ.get("LC_ALL") else "LC_CTYPE"
    for name in ("C.UTF-8", "C.utf8", "en_US.UTF-8"):
        try:
            locale.setlocale(locale.LC_CTYPE, name)
        except locale.Error:
            continue
        if os.environ.get(key) != name:
            os.environ[key] = name
            with open("/proc/self/cmdline", "rb") as words:
                os.execv(sys.executable, words.read().split(b"\0")[:-1])  # noqa: S606
        return


if sys.version_info < (3, 6):
    say("old " + sys.version.split()[0])
    sys.exit(1)
if sys.getfilesystemencoding() == "ascii":
    speak_utf8()

data, uncached = cached(), None
was_sent = data is None
if was_sent:
    say("need")
    data = take(size)
    if not matches(data):
        say("corrupt")
        sys.exit(1)
    uncached = keep(data)
else:
    say("have")

import marshal  # noqa: E402 - an old interpreter was turned away above
from importlib.machinery import ModuleSpec  # noqa: E402


def checked(body):
    return zlib.crc32(body).to_bytes(4, "big") + body


class Payload(object):
    """Imports modules of the verified archive.

    :ivar names: of all its modules.
    :ivar was_sent: this user had no copy of it on this host.
    """

    # Not from importlib.abc, whose import costs more than all of this.

    def __init__(self, archive):
        self.archive, self._sources, self._fresh = archive, None, False
        self._kept = "code-%s-%s-%x" % (digest, sys.implementation.cache_tag, sys.hexversion)
        self.names, self._code = self._compiled() or (frozenset(self.sources()), {})

    def sources(self):
        """Module path -> source; unpacked when first asked for."""
        if self._sources is None:
            import json

            self._sources = json.loads(zlib.decompress(self.archive).decode("utf-8"))
        return self._sources

    def _compiled(self):
        """(names, {module path: marshalled code}) as `keep` left them, or None."""
        try:
            with Cache() as cache:
                kept = cache.read(self._kept)
        except (OSError, KeyError):
            return None
        body = kept[4:]
        # Half a file, after a crash, would crash the interpreter.
        return marshal.loads(body) if body and kept == checked(body) else None  # noqa: S302

    def keep(self):
        """Stores what this agent had to compile. Where that cannot be, the next one compiles it again."""
        if not self._fresh:
            return
        try:
            with Cache() as cache:
                cache.put(self._kept, checked(marshal.dumps((self.names, self._code))))
        except (OSError, KeyError):
            pass
        self._fresh = False

    def _key(self, name):
        key = name.replace(".", "/")
        return key + "/__init__" if key + "/__init__" in self.names else key

    def find_spec(self, name, path=None, target=None):
        key = self._key(name)
        if key not in self.names:
            return None
        package = key.endswith("/__init__")
        return ModuleSpec(name, self, origin="payload/" + key + ".py", is_package=package)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        key = self._key(module.__spec__.name)
        if key in self._code:
            code = marshal.loads(self._code[key])  # noqa: S302
        else:
            code = compile(self.sources()[key], "payload/" + key + ".py", "exec")
            self._code[key], self._fresh = marshal.dumps(code), True
        exec(code, module.__dict__)  # noqa: S102


payload = Payload(data)
payload.was_sent = was_sent
sys.meta_path.insert(0, payload)

import agent  # noqa: E402

# The archive and this stub go along: a child agent under sudo is started with the same two.
agent.main(payload, digest, uncached)
