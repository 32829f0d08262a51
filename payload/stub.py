"""The first code that runs on a host: `python3 -I -S -c STUB TOKEN SHA256 SIZE`, sent on the command line.

It says `TOKEN have` or `TOKEN need` on a line of its own (whatever a login shell printed before is noise),
reads SIZE bytes of payload archive when it has no copy, checks them against SHA256 before anything of them
runs, keeps a copy in ~/.cache/tcpfleet for the next time, and starts the agent from memory.

The archive is zlib-compressed JSON: {"agent": source, "operations/sysctl": source, ...}. Must parse on
Python 2.7, so that an old interpreter can be named instead of dying with a syntax error.
"""

import os
import sys

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
    import hashlib

    return hashlib.sha256(data).hexdigest() == digest


def cache_directory():
    import pwd

    # not $HOME: under sudo it can still be the caller's
    return os.path.join(pwd.getpwuid(os.geteuid()).pw_dir, ".cache", "tcpfleet")


def cached():
    try:
        fd = os.open(os.path.join(cache_directory(), "agent-" + digest), os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as copy:
            data = copy.read(size + 1)
    except (OSError, IOError, KeyError):
        return None
    return data if matches(data) else None


def keep(data):
    """Store the archive; returns why that was not possible, or None. Then it is simply sent again next time."""
    try:
        place = cache_directory()
        os.makedirs(place, 0o700, exist_ok=True)
        state = os.lstat(place)
        if state.st_uid != os.geteuid() or state.st_mode & 0o022:
            return place + " can be written by others"
        draft = os.path.join(place, "new-" + token)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(fd, "wb") as copy:
                copy.write(data)
            os.rename(draft, os.path.join(place, "agent-" + digest))
        except (OSError, IOError):
            os.unlink(draft)
            raise
        for name in os.listdir(place):
            if name.startswith("agent-") and name != "agent-" + digest:
                os.unlink(os.path.join(place, name))
    except (OSError, IOError, KeyError) as error:
        return str(error)
    return None


if sys.version_info < (3, 6):
    say("old " + sys.version.split()[0])
    sys.exit(1)

data, uncached = cached(), None
if data is None:
    say("need")
    data = take(size)
    if not matches(data):
        say("corrupt")
        sys.exit(1)
    uncached = keep(data)
else:
    say("have")

import json  # noqa: E402 - an old interpreter was turned away above
import zlib  # noqa: E402
from importlib.abc import Loader, MetaPathFinder  # noqa: E402
from importlib.machinery import ModuleSpec  # noqa: E402

sources = json.loads(zlib.decompress(data).decode("utf-8"))


class Memory(MetaPathFinder, Loader):
    """Imports payload modules from the verified archive."""

    def find_spec(self, name, path=None, target=None):
        key = name.replace(".", "/")
        package = key + "/__init__" in sources
        if not package and key not in sources:
            return None
        return ModuleSpec(name, self, origin="payload/" + key + ".py", is_package=package)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        key = module.__spec__.name.replace(".", "/")
        if key + "/__init__" in sources:
            key += "/__init__"
        exec(compile(sources[key], "payload/" + key + ".py", "exec"), module.__dict__)  # noqa: S102


sys.meta_path.insert(0, Memory())

import agent  # noqa: E402

# The archive and this stub go along: a child agent under sudo is started with the same two.
agent.main(sources, data, digest, uncached)
