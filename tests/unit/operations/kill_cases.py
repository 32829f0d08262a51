# ruff: noqa: UP031, B023
"""Runs operations with a journal, kills them at every system call that changes something, and rolls back.

Standard library only and Python 3.6 syntax, like the payload it tests. A scenario lays out a folder and runs
operations on it. For every call that changes the disk, of the operations and of the journal itself, a process
does the same and kills itself right before that call (and, where it writes, in the middle of it); rollback must
then bring back exactly what was there: contents, owners, modes, extended attributes, links, kernel values, units.
The same for a rollback that is killed at every call and run again.

``python kill_cases.py STRIDE``: each STRIDEth call; prints JSON: {"failures": [...], "kills": n}.
"""

import base64
import contextlib
import errno
import functools
import importlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "payload"))

import journal
from operations import TABLE, OperationError, _kernel, rollback, systemd

RUN = {"run": "20260101-000000-abcd", "command": "play x", "user": "me@here"}
WRITE = os.write
CALLS = (
    "rename", "chmod", "chown", "fchmod", "fchown", "unlink", "mkdir", "rmdir", "symlink", "link", "utime",
    "remove", "setxattr", "removexattr", "ftruncate", "fsync", "mknod", "write",
)  # fmt: skip


class Context:
    """The agent's, with a systemctl that keeps units in files of the scenario's folder."""

    def __init__(self, root, check=False):
        self.check, self.diff, self._root = check, True, root

    def progress(self, data):
        pass

    def stopping(self):
        return False

    def run_command(self, argv, stdin=b"", timeout=None, env=None, cwd=None):
        if argv[0] == "systemctl":
            return self._systemctl([word for word in argv[1:] if not word.startswith("-")])
        if argv[0] == "sysctl":
            with open(argv[-1]) as source:
                for line in source:
                    key, _, value = line.partition("=")
                    put(key.strip(), value.strip())
            return Done(0, b"", b"", False)
        return Done(0, b"said", b"", False)

    def _systemctl(self, words):
        verb, unit = words[0], (words[1:] or [""])[0]
        active = os.path.join(self._root, "active", unit)
        link = os.path.join(self._root, "units", "multi.wants", unit)
        mask = os.path.join(self._root, "units", unit)
        if verb == "show":
            masked = os.path.islink(mask) and os.readlink(mask) == "/dev/null"
            state = "masked" if masked else "enabled" if os.path.islink(link) else "disabled"
            running = "active" if os.path.exists(active) else "inactive"
            text = "LoadState=loaded\nActiveState=%s\nUnitFileState=%s\nNames=%s\n" % (running, state, unit)
            return Done(0, text.encode(), b"", False)
        if verb in ("start", "restart"):
            os.close(os.open(active, os.O_CREAT | os.O_WRONLY, 0o600))
        elif verb == "stop":
            os.unlink(active)
        elif verb == "enable":
            if not os.path.isdir(os.path.dirname(link)):
                os.mkdir(os.path.dirname(link))
            os.symlink("/lib/" + unit, link)
        elif verb == "disable":
            os.unlink(link)
            os.rmdir(os.path.dirname(link))
        elif verb == "mask":
            os.symlink("/dev/null", mask)
        elif verb == "unmask":
            os.unlink(mask)
        return Done(0, b"", b"", False)


class Done:
    def __init__(self, *fields):
        self.returncode, self.stdout, self.stderr, self.timed_out = fields


def put(name, value):
    """Writing a key of the scenario's /proc/sys, which is made of files; as in the kernel, all or nothing."""
    descriptor = os.open(_kernel.key_path(name), os.O_WRONLY | os.O_TRUNC)
    WRITE(descriptor, value.encode() + b"\n")
    os.fsync(descriptor)  # somewhere to be killed after it
    os.close(descriptor)


# -- scenarios: name -> (layout, steps) ------------------------------------------------------------------


def lay_out(root):
    """The same folder for all scenarios: some of everything."""
    made = functools.partial(os.path.join, root)
    for folder in ("proc/net", "units", "active", "d/sub/deep", "etc", "empty", "src/in"):
        os.makedirs(made(folder))
    for path, text, mode in (
        ("proc/net/rmem", "4096\t131072\t6291456\n", 0o644), ("proc/net/max", "128\n", 0o644),
        ("proc/net/empty", "\n", 0o644), ("proc/net/zero", "0\n", 0o644),
        ("etc/conf", "a=1\nb=2\n", 0o640), ("etc/noend", "x\r\ny", 0o600), ("etc/bin", "\0\xff", 0o755),
        ("etc/suid", "s", 0o4750), ("etc/it's", "q'uote $HOME\n", 0o644),
        ("etc/limits", "* hard nofile 5\n", 0o644),
        ("d/one", "1", 0o644), ("d/sub/two", "2" * 5000, 0o600), ("d/sub/deep/three", "3", 0o444),
        ("src/a", "A", 0o600), ("src/in/b", "B", 0o755), ("src/big", "large" * 300000, 0o644),
        ("etc/big", "older" * 300000, 0o644),
    ):  # fmt: skip
        with open(made(path), "w", encoding="latin-1", newline="") as target:
            target.write(text)
        os.chmod(made(path), mode)
    os.symlink("conf", made("etc/link"))
    os.symlink("/nowhere", made("d/dangling"))
    os.mkfifo(made("d/fifo"))
    os.link(made("d/one"), made("d/other-name"))
    os.chmod(made("d/sub"), 0o2711)
    os.symlink("/lib/on.service", made("units/on.link"))
    if os.geteuid() == 0:
        os.chown(made("etc/conf"), 7, 8)
        os.chown(made("etc/suid"), 7, 8)
        os.chmod(made("etc/suid"), 0o4750)
        os.chown(made("d/sub"), 9, 9)
    with contextlib.suppress(OSError):
        os.setxattr(made("etc/conf"), "user.note", b"kept \0")


def b64(text):
    return base64.b64encode(text.encode()).decode()


OWN = {"owner": "3", "group": "4"} if os.geteuid() == 0 else {}
SCENARIOS = {
    "copy: new": [("copy", dict(dest="$T/etc/new", content_b64=b64("new"), mode="0600", **OWN))],
    "copy: replace": [("copy", dict(dest="$T/etc/conf", content_b64=b64("new"), mode="0604", backup=True, **OWN))],
    "copy: mode alone": [("copy", dict(dest="$T/etc/suid", content_b64=b64("s"), mode="6711", **OWN))],
    "copy: through a link": [("copy", {"dest": "$T/etc/link", "content_b64": b64("via"), "follow": True})],
    "copy: over a link": [("copy", {"dest": "$T/etc/link", "content_b64": b64("instead")})],
    "copy: folders on the way": [("copy", dict(dest="$T/x/y/z/", basename="f", content_b64=b64("z"), **OWN))],
    "copy: validated": [("copy", {"dest": "$T/etc/conf", "content_b64": b64("v"), "validate": "true %s"})],
    "copy: large": [("copy", {"dest": "$T/etc/big", "src": "$T/src/big", "remote_src": True})],
    "copy: folder of the host": [("copy", {"dest": "$T/d", "src": "$T/src", "remote_src": True})],
    "copy_tree": [("copy_tree", {
        "dest": "$T/d", "mode": "0640", "directory_mode": "0750", "directories": ["sub", "sub/more"],
        "files": [
            {"path": "one", "content_b64": b64("eins")},
            {"path": "sub/more/f", "content_b64": b64("f"), "mode": "0600"},
        ],
        "links": [["dangling", "one"], ["sub/l", "../one"]],
    })],
    "file: absent": [("file", {"path": "$T/etc/conf", "state": "absent"})],
    "file: absent tree": [("file", {"path": "$T/d", "state": "absent"})],
    "file: chmod and remove": [
        ("file", {"path": "$T/d/sub/two", "state": "file", "mode": "0644"}),
        ("file", {"path": "$T/d", "state": "absent"}),
        ("file", {"path": "$T/d", "state": "directory", "mode": "0700"}),
        ("copy", {"dest": "$T/d/one", "content_b64": b64("anew")}),
    ],
    "file: directories": [("file", dict(path="$T/n/m", state="directory", mode="0750", **OWN))],
    "file: recurse": [("file", dict(path="$T/d", state="directory", recurse=True, mode="u=rwX,g=rX", **OWN))],
    "file: touch": [("file", {"path": "$T/etc/touched", "state": "touch", "mode": "0600"})],
    "file: link": [("file", {"path": "$T/etc/link", "state": "link", "src": "noend", "force": True})],
    "file: link for a file": [("file", {"path": "$T/etc/conf", "state": "link", "src": "noend", "force": True})],
    "file: link for a folder": [("file", {"path": "$T/empty", "state": "link", "src": "etc", "force": True})],
    "file: hard": [("file", {"path": "$T/etc/conf", "state": "hard", "src": "$T/d/one", "force": True})],
    "lines": [
        ("lineinfile", {"path": "$T/etc/conf", "line": "c=3"}),
        ("lineinfile", {"path": "$T/etc/conf", "regexp": "^a=", "line": "a=9", "mode": "0600"}),
        ("blockinfile", {"path": "$T/etc/conf", "block": "in\nblock", "backup": True}),
        ("blockinfile", {"path": "$T/q/new", "block": "in\nblock", "create": True}),
        ("lineinfile", {"path": "$T/etc/conf", "state": "absent", "line": "b=2"}),
        ("lineinfile", {"path": "$T/etc/noend", "line": "z"}),
        ("lineinfile", {"path": "$T/etc/it's", "line": "more 'quotes'"}),
        ("lineinfile", {"path": "$T/etc/bin", "line": "text"}),
    ],
    "back and forth": [
        ("lineinfile", {"path": "$T/etc/conf", "line": "c=3"}),
        ("lineinfile", {"path": "$T/etc/conf", "line": "c=3", "state": "absent"}),
        ("file", {"path": "$T/etc/conf", "mode": "0600"}),
        ("lineinfile", {"path": "$T/etc/conf", "line": "d=4"}),
    ],
    "pam_limits": [("pam_limits", {
        "dest": "$T/etc/limits", "domain": "*", "limit_type": "hard", "limit_item": "nofile", "value": "9",
        "backup": True,
    })],
    "sysctl": [
        ("sysctl", {"name": "net.rmem", "value": "1 2 3", "sysctl_set": True, "sysctl_file": "$T/etc/s",
                    "reload": False}),
        ("sysctl", {"name": "net.empty", "value": "80-90", "sysctl_set": True, "sysctl_file": "$T/etc/s",
                    "reload": False}),
        ("sysctl", {"name": "net.zero", "value": "1", "sysctl_set": True, "sysctl_file": "$T/etc/s",
                    "reload": False}),
        ("sysctl", {"name": "net.zero", "value": "2", "sysctl_set": True, "sysctl_file": "$T/etc/s",
                    "reload": False}),
        ("sysctl", {"name": "net.max", "value": "512", "sysctl_file": "$T/etc/s"}),
    ],
    "systemd": [
        ("systemd", {"name": "web.service", "state": "started", "enabled": True}),
        ("systemd", {"name": "web.service", "state": "stopped"}),
        ("systemd", {"name": "web.service", "masked": True}),
        ("systemd", {"name": "web.service", "masked": False}),
    ],
    "command": [
        ("copy", {"dest": "$T/etc/new", "content_b64": b64("n")}),
        ("command", {"argv": ["true", "a b"]}),
        ("shell", {"cmd": "echo 'x'"}),
    ],
}  # fmt: skip


# -- one try ---------------------------------------------------------------------------------------------


def fill(value, root):
    if isinstance(value, str):
        return value.replace("$T", root)
    if isinstance(value, dict):
        return {key: fill(one, root) for key, one in value.items()}
    return [fill(one, root) for one in value] if isinstance(value, (list, tuple)) else value


def perform(steps, root):
    """What the agent does: each operation with the run's journal."""
    book = journal.Journal(RUN)
    undo = []
    for op, args in steps:
        with journal.recording(book):
            module = importlib.import_module("operations." + TABLE[op])
            try:
                module.run(fill(args, root), Context(root))
            finally:
                undo += book.undo
    return undo


def roll_back(root, **args):
    return rollback.run(dict(args, action="undo", run=RUN["run"]), Context(root))


def snapshot(root):
    """All that rollback must bring back: path -> what is there; hard links are told by content."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names, "."]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            what = [stat.S_IFMT(status.st_mode), status.st_mode, status.st_uid, status.st_gid]
            if stat.S_ISLNK(status.st_mode):
                what.append(os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as source:
                    what.append(source.read())
            what.append(sorted(journal.xattrs(path).items()))
            found[os.path.relpath(path, root)] = what
    return found


def differences(before, now):
    return [
        "%s: %r, and not %r" % (path, str(now.get(path))[:200], str(before.get(path))[:200])
        for path in sorted({**before, **now})
        if before.get(path) != now.get(path)
    ]


def in_child(work):
    """Runs a function in a process of its own; returns (its answer or None, how it ended)."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            answer = work()
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(write, "w") as target:
            json.dump(answer, target)
            target.flush()
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as source:
        text = source.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if text else None, status


def dying(work, number, middle):
    """`work`, in a process that kills itself at its `number`th changing call; answers how many there were."""
    count = [0]

    def guarded(name, real):
        @functools.wraps(real)
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == number:
                if middle and name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return None if name == "fsync" else real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, guarded(name, getattr(os, name)))
    work()
    return {"calls": count[0]}


class Place:
    """A scenario's folder, with the state beside it."""

    def __init__(self, top):
        self.top, self.root, self.state = top, os.path.join(top, "root"), os.path.join(top, "state", "tcpfleet")

    def __enter__(self):
        os.makedirs(self.root)
        lay_out(self.root)
        journal.state_folder = lambda: self.state
        _kernel.PROC_SYS = os.path.join(self.root, "proc")
        systemd._RUNTIME = "/"
        systemd._LINKS = {"system": (os.path.join(self.root, "units"),)}
        journal._UNIT_FOLDERS = (os.path.join(self.root, "units"),)
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.top)


def kept(answer, path):
    with open(path, "w") as target:
        json.dump(answer, target)


def _is_wrong(entry, name):
    # What the second of two changes has put back needs no third.
    fine = ("restored", "not-reversible", *(("already",) if name in ("back and forth", "systemd") else ()))
    return entry["status"] not in fine


def undone(place, before):
    """Rolls back until nothing is left to do; returns sentences on what is wrong."""
    if not os.path.exists(os.path.join(place.state, "journal", RUN["run"] + ".jsonl")):
        return differences(before, snapshot(place.root))  # killed before the journal was there
    answer, _ = in_child(lambda: roll_back(place.root))
    if answer is None or "error" in answer:
        return ["rollback: %s" % (answer or {}).get("error")]
    wrong = [str(one) for one in answer["entries"] if one["status"] in ("refused", "failed")]
    if not answer["undone"]:
        wrong.append("not undone")
    return wrong + differences(before, snapshot(place.root))


def try_scenario(name, steps, stride, folder):
    """(failures, kills) of one scenario."""
    failures, kills = [], 0

    def place(suffix):
        return Place(os.path.join(folder, "%s-%s" % (name.replace(" ", "-").replace(":", ""), suffix)))

    with place("count") as one:
        before = snapshot(one.root)
        answer, _ = in_child(lambda: dying(lambda: perform(steps, one.root), -1, False))
        if "error" in answer:
            return ["%s: %s" % (name, answer["error"])], 0
        calls, changed = answer["calls"], snapshot(one.root)
        if changed == before and name != "command":
            failures.append("%s: changed nothing" % name)
        # In check mode nothing changes, and nothing is in the way.
        answer, _ = in_child(
            lambda: rollback.run({"action": "undo", "run": RUN["run"]}, Context(one.root, check=True))
        )
        if "error" in answer or snapshot(one.root) != changed or not answer["undone"]:
            failures.append("%s: check: %s" % (name, answer))
        answers = os.path.join(one.top, "answers")
        answer, _ = in_child(lambda: dying(lambda: kept(roll_back(one.root), answers), -1, False))
        if "error" in answer:
            return ["%s: %s" % (name, answer["error"])], 0
        back = answer["calls"]
        with open(answers) as source:
            failures += ["%s: %s" % (name, one) for one in json.load(source)["entries"] if _is_wrong(one, name)]
        failures += ["%s: %s" % (name, wrong) for wrong in differences(before, snapshot(one.root))]
    for number in range(1, calls + 1, stride):
        for middle in (False, True):
            with place("kill") as one:
                before = snapshot(one.root)
                _, status = in_child(lambda: dying(lambda: perform(steps, one.root), number, middle))
                kills += status == signal.SIGKILL
                wrong = undone(one, before)
                failures += ["%s, killed at call %d: %s" % (name, number, text) for text in wrong]
    for number in range(1, back + 1, stride):
        with place("again") as one:
            before = snapshot(one.root)
            in_child(lambda: perform(steps, one.root))
            _, status = in_child(lambda: dying(lambda: roll_back(one.root), number, False))
            kills += status == signal.SIGKILL
            wrong = undone(one, before)
            failures += ["%s, rollback killed at call %d: %s" % (name, number, text) for text in wrong]
    return failures, kills


def full_disk(name, steps, folder):
    """Every call that changes something fails once, as on a full disk: nothing half done, and rollback works."""
    failures = []

    def failing(work, number):
        count = [0]

        def guarded(real):
            def call(*args, **kwargs):
                count[0] += 1
                if count[0] == number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*args, **kwargs)

            return call

        for one in ("rename", "mkdir", "symlink", "link", "fsync", "write", "fchmod"):
            setattr(os, one, guarded(getattr(os, one)))
        try:
            work()
        except OperationError as error:
            return {"said": error.msg}
        return {"calls": count[0]}

    number, said = 0, None
    while number < 200:
        number += 1
        with Place(os.path.join(folder, "full")) as one:
            before = snapshot(one.root)
            said, _ = in_child(lambda: failing(lambda: perform(steps, one.root), number))
            if "error" in said:
                failures.append("%s, call %d fails: %s" % (name, number, said["error"][-300:]))
            wrong = undone(one, before)
            failures += ["%s, call %d fails: %s" % (name, number, text) for text in wrong]
        if "calls" in said and said["calls"] < number:
            break
    return failures


def main():
    os.umask(0o022)
    stride, failures, kills = int(sys.argv[1]), [], 0
    chosen = sys.argv[2:] or sorted(SCENARIOS)
    _kernel.put = put
    folder = os.path.realpath(tempfile.mkdtemp(prefix="tcpfleet-kill-"))
    try:
        for name in chosen:
            found, number = try_scenario(name, SCENARIOS[name], stride, folder)
            failures, kills = failures + found, kills + number
            failures += full_disk(name, SCENARIOS[name], folder) if stride == 1 else []
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    json.dump({"failures": failures, "kills": kills}, sys.stdout)


if __name__ == "__main__":
    main()
