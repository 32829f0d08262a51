"""``rollback``: takes back what a run did to this host, from its journal (journal.py), newest change first.

Every change gets a status:

* ``restored``: it was as this run had made it, and is now as it was before (check mode: ``would-restore``);
* ``already``: it is as it was before; ``gone``: what was changed is no longer there, or did not outlive a reboot;
* ``refused``: someone else changed it since, or put something in its way; ``force`` overrides;
* ``failed``: it could not be put back, the sentence says why;
* ``not-reversible``: a command ran, a key that cannot be read was written, a folder holds what others put there, a
  process that a command started is still running.

A run of which nothing was refused and nothing failed is undone: its journal is renamed. Until then rollback can
be run again: what was put back is noted in the journal, and each step looks at what is there, so that a kill at
any point does no harm.
"""

import base64
import collections
import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time

import journal

from operations import OperationError, _started, systemd
from operations import _files as files
from operations import _kernel as kernel

KEPT = 20  # journals of undone runs that stay for the list
_DIFFS = 4 << 20  # bytes of diffs in one answer
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID  # chown clears them
_PENDING = ("refused", "failed")
_BYTECODE = "__pycache__"
_SHOWN = 300  # characters of a command line
_PATIENCE = 3.0  # seconds: the agent of a run whose controller was killed needs a moment to end


def run(args, context):
    """Lists journals, or undoes one run.

    :param args: ``action`` list or undo; for undo ``run`` (its id) and ``force``.
    :returns: list: ``place`` (the folder) and ``runs``, newest first: ``run``, ``started`` (seconds since the
        epoch), ``command``, ``user``, ``entries`` (how many), ``not_reversible`` (how many of them), ``state``
        (``can be undone``, ``under way``, ``undone``, ``damaged``), ``msg``. undo: ``entries``, newest first:
        ``what``, ``kind``, ``status``, ``msg``, ``diff`` where there is one; ``undone``: nothing is left to do.
    """
    if args["action"] == "list":
        found = [describe(one) for one in journal.runs()]
        return {"changed": False, "place": journal.folder(), "runs": found, "msg": "%d runs" % len(found)}
    for one in journal.runs():
        if one.ident == args["run"] and not one.undone:
            return _undo(one, bool(args.get("force")), context)
    raise OperationError("there is no journal of a run %s to undo" % args["run"])


def describe(run):
    """What `run` tells of one journal; loads it."""
    told = {"run": run.ident, "state": "undone" if run.undone else "can be undone", "msg": ""}
    try:
        run.load()
    except OperationError as error:
        return dict(told, state="damaged", msg=error.msg, entries=0, not_reversible=0)
    shown = [entry for entry in run.entries if entry["kind"] != "temporary"]
    told.update({key: run.about.get(key) for key in ("started", "command", "user")})
    told["entries"] = len(shown)
    told["not_reversible"] = sum(entry["kind"] == "command" for entry in shown)
    if not run.undone:
        try:
            with _held(run):
                pass
        except _InUse as error:
            told.update(state="under way", msg=error.msg)
        except OperationError:
            pass  # not readable any more: someone undid it meanwhile
    return told


def _undo(run, force, context):
    with _held(run, _PATIENCE) as descriptor:
        run.load()
        work = _Rollback(run, force, context, None if context.check else journal.Marks(descriptor))
        entries = work.go()
        undone = work.complete and not any(one["status"] in _PENDING for one in entries)
        if undone and not context.check:
            _close(run)
    changed = any(one["status"] in ("restored", "would-restore") for one in entries)
    counts = collections.Counter(one["status"] for one in entries)
    msg = ", ".join("%s %d" % pair for pair in sorted(counts.items())) or "nothing was journalled"
    return {"changed": changed, "run": run.ident, "entries": entries, "undone": undone, "msg": msg}


class _InUse(OperationError):
    """An agent is writing the journal, or another rollback works on it."""


@contextlib.contextmanager
def _held(run, patience=0.0):
    """The journal's descriptor, while nobody else uses it: whoever writes one holds it shared.

    :param patience: seconds to wait for its writer's end.
    """
    try:
        descriptor = os.open(run.place, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise OperationError("cannot read the journal %s: %s" % (run.place, error.strerror))
        descriptor = os.open(run.place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _InUse("the run %s is under way on this host, or is being undone" % run.ident)
                time.sleep(0.05)
        if not os.path.exists(run.place):
            raise OperationError("the run %s has been undone meanwhile" % run.ident)
        yield descriptor
    finally:
        os.close(descriptor)


def _close(run):
    """Marks a run undone, and forgets the oldest of those."""
    try:
        os.rename(run.place, os.path.join(journal.folder(), run.ident + ".undone.jsonl"))
        journal.sync_folder(journal.folder())
        shutil.rmtree(journal.blobs(run.ident), ignore_errors=True)
        for old in [one for one in journal.runs() if one.undone][KEPT:]:
            shutil.rmtree(journal.blobs(old.ident), ignore_errors=True)  # of one that was killed right here
            os.unlink(old.place)
    except OSError as error:
        raise OperationError("all is undone, but %s cannot be marked so: %s" % (run.place, error.strerror))


class _Problem(Exception):
    """A change that is not put back.

    :ivar status: refused, failed, gone or not-reversible.
    """

    def __init__(self, status, msg, diff=None):
        super(_Problem, self).__init__(msg)
        self.status, self.msg, self.diff = status, msg, diff


class _Rollback(object):
    """One run being undone.

    :ivar complete: every change was looked at: the controller has not stopped it.
    """

    def __init__(self, run, force, context, marks):
        self.run, self.force, self.context, self._marks = run, force, context, marks
        self.complete = True
        self._chains = collections.defaultdict(list)  # what was changed -> its changes, oldest first
        for entry in run.entries:
            self._chains[_subject(entry)].append(entry)
        self._again = []  # units to restart or reload at the end
        self._reload = False  # unit files have changed since systemd read them
        self._room = _DIFFS
        self._led = ""  # what became of the last key that was written by itself
        self._assumed = {}  # check mode: path or key -> what would be there by now

    def go(self):
        """Undoes all changes; returns what came of each."""
        told = []
        for entry in reversed(self.run.entries):
            if self.context.stopping():
                self.complete = False
                break
            if entry["kind"] == "temporary":
                self._remove_temporary(entry["path"])
                self._remove_temporary(files.temporary_name(entry["path"], entry["id"]))
                continue
            over = self._was_undone(entry)
            if over and entry.get("asked") is not None:
                self._led = "already"
            if over:
                done = {"kind": entry["kind"], "what": _what(entry), "status": "already", "msg": "undone before"}
                told.append(done)
                continue
            if _is_again(entry):
                self._again.append(entry)
                continue
            told.append(self._one(entry))
            if entry.get("asked") is not None:
                self._led = told[-1]["status"]
            if told[-1]["status"] in ("restored", "already") and self._marks is not None:
                self._marks.add(entry["id"])
        if self.complete:
            told += self._units_again()
            told += self._still_running()
        return told

    def _was_undone(self, entry):
        """True for what a rollback has put back that did not come to its end.

        Not for a kernel value when the host has booted since: a file that is still there may have set it again.
        """
        undid = entry.get("undid")
        return bool(undid) and (entry["kind"] != "kernel" or undid == journal.boot_id())

    def _one(self, entry):
        answer = {"kind": entry["kind"], "what": _what(entry)}
        try:
            status, msg = getattr(self, "_" + entry["kind"])(entry)
            answer.update(status=status, msg=msg)
        except _Problem as problem:
            answer.update(status=problem.status, msg=problem.msg)
            if problem.diff and not entry.get("hidden"):
                answer["diff"] = self._bounded(problem.diff)
        except OperationError as error:
            answer.update(status="failed", msg=error.msg)
        except (OSError, ValueError) as error:  # ValueError: a name that this locale cannot write
            said = getattr(error, "strerror", None) or error
            answer.update(status="failed", msg="cannot restore %s: %s" % (answer["what"], said))
        if entry["kind"] == "kernel" and entry.get("hidden"):
            answer["msg"] = "(hidden by no_log)"
        if answer["status"] == "would-restore" and self.context.diff and not entry.get("hidden"):
            answer["diff"] = self._bounded(self._diff(entry))
        return answer

    def _bounded(self, diff):
        size = sum(len(str(value)) for value in diff.values())
        if size > self._room:
            return dict(diff, before="(too long to be shown)\n", after="(too long to be shown)\n")
        self._room -= size
        return diff

    def _done(self, restore, *arguments):
        """Calls a function that restores, unless in check mode."""
        if self.context.check:
            return "would-restore"
        restore(*arguments)
        return "restored"

    def _look(self, path, tree=False):
        """What is at a path; in check mode what would be there by now."""
        if path in self._assumed:
            return self._assumed[path]
        for above, state in self._assumed.items():
            if path.startswith(above + "/"):
                below = dict(state.get("tree", ()))
                return below.get(os.path.relpath(path, above), {"kind": "absent"})
        return journal.look(path, tree=tree)

    # -- paths -----------------------------------------------------------------------------------------

    def _path(self, entry):
        path, before = entry["path"], entry["before"]
        with_tree = "tree" in before
        self._check_folder(path, before, whole=True)
        self._remove_temporary(files.temporary_name(path, entry["id"]))
        if with_tree:
            for name, _state in before["tree"]:
                self._remove_temporary(files.temporary_name(os.path.join(path, name), entry["id"]))
        now = self._look(path, tree=with_tree)
        if self._is_over(entry, now) or _same(now, before):
            return "already", "is as it was before"
        if not _same(now, entry["after"]) and not _part(now, before) and not self.force:
            raise self._refusal(entry, now)
        if before["kind"] == "absent" and now["kind"] == "directory":
            self._check_empty(path, entry)
        status = self._done(_in_folder, _put_back, path, before, now, self._content, entry["id"])
        if self.context.check:
            self._assumed[path] = before
        self._reload = self._reload or journal.is_unit_file(path)
        return status, _sentence(before)

    def _attributes(self, entry):
        path, before, after = entry["path"], entry["before"], entry["after"]
        self._check_folder(path, before)
        now = self._look(path)
        if now["kind"] == "absent":
            raise _Problem("gone", "is no longer there")
        if self._is_over(entry, now) or (_same(now, before) and now["xattrs"] == before["xattrs"]):
            return "already", "is as it was before"
        if not _between(now, before, after) and not (self.force and now["kind"] == before["kind"]):
            raise self._refusal(entry, now)
        status = self._done(_in_folder, _set_attributes, path, before)
        if self.context.check:
            self._assumed[path] = dict(now, **before)
        return status, _sentence(before)

    def _times(self, entry):
        path, before = entry["path"], entry["before"]
        self._check_folder(path, {})
        now = self._look(path)
        if now["kind"] == "absent":
            raise _Problem("gone", "is no longer there")
        if now["times"][1] == before["times"][1]:
            return "already", "has its former times"
        return self._done(_in_folder, _set_times, path, before["times"]), "its former times"

    def _check_folder(self, path, before, whole=False):
        """What led to the path must not lead elsewhere now: someone may have put a symlink there.

        :param whole: what was at the path is to be put back, not only its attributes.
        """
        folder = os.path.dirname(path)
        if folder in self._assumed:
            return
        if os.path.realpath(folder) != folder:
            raise _Problem("refused", "its folder %s leads elsewhere now" % folder)
        if not os.path.isdir(folder) and before.get("kind", "absent") != "absent":
            raise _Problem("failed" if whole else "gone", "its folder %s is gone" % folder)

    def _check_empty(self, path, entry):
        """A directory that this run made goes when it is empty; what others put there is never removed."""
        left = sorted(os.listdir(path))
        made = {one["path"] for one in self.run.entries if one["kind"] == "path"}
        if self.context.check:
            left = [name for name in left if os.path.join(path, name) not in made]
        if left == [_BYTECODE] and _is_bytecode_of(path, made):
            left = []
            if not self.context.check:
                shutil.rmtree(os.path.join(path, _BYTECODE))
        if left:
            held = ", ".join(left[:5]) + (" ..." if len(left) > 5 else "")
            status = "not-reversible" if self.force else "refused"
            raise _Problem(status, "this run made it, and now it holds %s; it is left" % held)

    def _remove_temporary(self, path):
        """What a kill in the middle of a change has left, if anything."""
        if os.path.lexists(path) and not self.context.check:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _is_over(self, entry, now):
        """True when there is what was there before any change of this run, as when someone undid all by hand."""
        first = _original(self._chains[_subject(entry)])
        if "tree" in first and "tree" not in now:
            now = self._look(entry["path"], tree=True)
        return _same(now, first)

    def _refusal(self, entry, now):
        words = {"absent": "was removed", "file": "was changed", "link": "is a symlink now"}
        msg = "%s since by someone else" % words.get(now["kind"], "is a %s now" % now["kind"])
        if now["kind"] == "file" and entry["kind"] == "attributes":
            msg = "has another owner or mode than this run gave it"
        return _Problem("refused", msg, self._diff(entry))

    def _diff(self, entry):
        """What rollback would make of what is there now."""
        if entry["kind"] == "kernel":
            sides = [kernel.raw(entry["name"]), entry["before"]]
            texts = ["" if one is None else one + "\n" for one in sides]
            header = kernel.key_path(entry["name"])
            return {"before": texts[0], "after": texts[1], "before_header": header, "after_header": header}
        if entry["kind"] not in ("path", "attributes"):
            return {}
        path, before = entry["path"], entry["before"]
        now = journal.look(path)
        old = self._content(before) if before["kind"] == "file" and "sha256" in before else None
        content = None
        if now["kind"] == "file" and entry["kind"] == "path":
            with contextlib.suppress(OperationError):
                content = files.read_bytes(path)
        if old is not None and not isinstance(old, bytes):
            with old:
                old = old.read(files.DIFF_LIMIT + 1)
        if now["kind"] == before["kind"] == "file" and (entry["kind"] == "attributes" or content == old):
            lines = [
                "owner: %d\ngroup: %d\nmode: %04o\n" % (one["uid"], one["gid"], one["mode"])
                for one in (now, before)
            ]
            return {"before": lines[0], "after": lines[1], "before_header": path, "after_header": path}
        diff = files.content_diff(path, content, old)
        for side, state in (("before", now), ("after", before)):
            if state["kind"] not in ("file", "absent"):
                diff[side] = "(%s%s)\n" % (state["kind"], " to " + state["target"] if "target" in state else "")
                diff[side + "_header"] = path
        return diff

    def _content(self, state):
        """The content that a state had: bytes, or an open file."""
        if "content" in state:
            return base64.b64decode(state["content"].encode("ascii"))
        if "blob" in state:
            return open(os.path.join(journal.blobs(self.run.ident), os.path.basename(state["blob"])), "rb")
        raise OperationError("the journal does not hold the former content")

    # -- kernel values ---------------------------------------------------------------------------------

    def _kernel(self, entry):
        name, before = entry["name"], entry["before"]
        now = self._assumed[name] if name in self._assumed else kernel.raw(name)
        if before is None:
            if now is not None or os.path.exists(kernel.key_path(name)):
                raise _Problem("not-reversible", "it cannot be read, so its former value is not known")
            raise _Problem("gone", "this kernel has it no longer")
        if now is None:
            raise _Problem("gone", "this kernel has it no longer")
        chain = self._chains[_subject(entry)]
        if kernel.same(now, chain[0]["before"]) or kernel.same(now, before):
            return "already", "is %s, as before" % (_shown(before))
        if entry["asked"] is None:
            return self._along(entry, now)
        ours = {_words(one) for link in chain for one in (link["asked"], link.get("made")) if one is not None}
        ours |= {_words(link["before"]) for link in chain if link["before"] is not None}
        if _words(now) not in ours:
            if self.run.about.get("boot") != journal.boot_id():
                raise _Problem("gone", "this host has booted since, and has %s" % _shown(now))
            if not self.force:
                raise _Problem(
                    "refused",
                    "is %s: someone else changed it since; it was %s" % (_shown(now), _shown(before)),
                    self._diff(entry),
                )
        if self.context.check:
            self._assumed[name] = before
        return self._done(self._write_kernel, name, before), "%s -> %s" % (_shown(now), _shown(before))

    def _along(self, entry, now):
        """A key that changed along with another: putting that one back has perhaps changed it once more."""
        if self._led not in ("restored", "would-restore", "already"):
            raise _Problem("gone", "is %s; the key that it changes with stays as it is" % _shown(now))
        return self._done(self._write_kernel, entry["name"], entry["before"]), "%s -> %s" % (
            _shown(now),
            _shown(entry["before"]),
        )

    @staticmethod
    def _write_kernel(name, before):
        kernel.put(name, before)
        now = kernel.raw(name)
        if now is None or not kernel.same(now, before):
            shown = "nothing" if now is None else _shown(now)
            raise OperationError("the kernel took %s, but has %s in force" % (_shown(before), shown))

    # -- systemd ---------------------------------------------------------------------------------------

    def _manager(self, entry):
        return systemd.Manager({"scope": entry.get("scope")}, self.context)

    def _unit(self, entry):
        verb = entry["verb"]
        if "links" in entry:
            return self._links(entry)
        manager = self._manager(entry)
        self._read_units(manager)
        state = manager.show(entry["unit"])
        if state.get("LoadState") == "not-found":
            raise _Problem("gone", "there is no such unit any more")
        running = state.get("ActiveState") in ("active", "activating")
        if running == entry["running"]:
            return "already", "is %s, as before" % ("running" if running else "not running")
        status = self._done(manager.call, systemd.UNDO[verb], entry["unit"])
        return status, "running again" if entry["running"] else "not running any more"

    def _links(self, entry):
        """Puts back the links that enabling or masking made or removed."""
        now = systemd.links(entry["scope"])
        if "made" in entry:
            changed = entry["made"]["links"]
        else:  # killed meanwhile: what is different now and speaks of this unit
            changed = {
                path: sides
                for path, sides in systemd.changed_links(entry["links"], now).items()
                if {os.path.basename(path), os.path.basename(str(sides[0] or sides[1]))} & set(entry["names"])
                or sides == [False, None]  # a new folder, which goes only when it is empty
            }
        wrong, todo = [], []
        for path, (before, after) in changed.items():
            self._remove_temporary(files.temporary_name(path, entry["id"]))
            found = now.get(path, False)
            if found == before:
                continue
            is_folder = before is None or after is None  # nothing to be fought over
            if is_folder or found == after or self.force:
                todo.append((path, before))
            else:
                wrong.append(path)
        if wrong:
            raise _Problem("refused", "%s was changed since by someone else" % ", ".join(wrong))
        if not todo:
            return "already", "is %s, as before" % ("on" if entry["verb"] in ("disable", "mask") else "off")
        status = self._done(_put_links, todo, entry["id"])
        self._reload = True
        self._read_units(self._manager(entry))
        return status, "%s undone" % entry["verb"]

    def _read_units(self, manager):
        if self._reload and not self.context.check:
            manager.call("daemon-reload")
            self._reload = False

    def _units_again(self):
        """Has systemd read unit files again, and restarts what this run restarted, with its former files.

        Also when nothing was restored just now: a rollback that was killed may have done it and not come here.
        """
        told = []
        touched = any(one["kind"] == "path" and journal.is_unit_file(one["path"]) for one in self.run.entries)
        if (touched or self._reload) and not self.context.check and os.path.isdir("/run/systemd/system"):
            answer = {"kind": "unit", "what": "systemctl daemon-reload"}
            try:
                self._manager({}).call("daemon-reload")
                told.append(dict(answer, status="restored", msg="unit files were read again"))
            except OperationError as error:
                told.append(dict(answer, status="failed", msg=error.msg))
        seen = set()
        for entry in reversed(self._again):
            key = (entry["unit"], entry["verb"], entry.get("scope"))
            if key in seen:
                continue
            seen.add(key)
            answer = {"kind": "unit", "what": entry["unit"]}
            try:
                manager = self._manager(entry)
                if manager.show(entry["unit"]).get("ActiveState") not in ("active", "activating"):
                    told.append(dict(answer, status="already", msg="is not running: no %s" % entry["verb"]))
                    continue
                status = self._done(manager.call, entry["verb"], entry["unit"])
                told.append(dict(answer, status=status, msg="%s, with its former files" % entry["verb"]))
            except OperationError as error:
                told.append(dict(answer, status="failed", msg=error.msg))
        return told

    # -- the rest --------------------------------------------------------------------------------------

    @staticmethod
    def _command(entry):
        raise _Problem("not-reversible", "it ran; what it did is not known")

    def _still_running(self):
        """What commands of this run have started from the files that it put there."""
        about, entries = self.run.about, self.run.entries
        files_of_it = {one["path"] for one in entries if one["kind"] == "path" and one["after"]["kind"] == "file"}
        commands = [one for one in entries if one["kind"] == "command"]
        if not commands or not files_of_it or about.get("boot") != journal.boot_id():
            return []
        secret = any(one.get("hidden") for one in commands)
        return [
            {
                "kind": "process",
                "what": "process %d (%s)" % (pid, "hidden by no_log" if secret else line[:_SHOWN]),
                "status": "not-reversible",
                "msg": "was started by this run and is still running; kill %d ends it" % pid,
            }
            for pid, line in _started.since(about["started"], files_of_it)
        ]


def _is_bytecode_of(folder, made):
    """True when Python has left nothing but compiled forms of files that the run put there."""
    inner = os.path.join(folder, _BYTECODE)
    if os.path.islink(inner):
        return False
    names = [name for name in os.listdir(inner) if not name.endswith(".pyc")]
    sources = {os.path.join(folder, name.partition(".")[0] + ".py") for name in os.listdir(inner)}
    return not names and sources <= made


def _is_again(entry):
    """A restart or reload: what undoes it is the same at the end of all."""
    return entry["kind"] == "unit" and entry["verb"] in ("restart", "reload")


def _subject(entry):
    kind = "path" if entry["kind"] in ("path", "attributes", "times") else entry["kind"]
    return kind, entry.get("path") or entry.get("name") or entry["id"]


def _what(entry):
    """What a change was about, for people."""
    if entry["kind"] == "kernel":
        name = entry["name"]
        return name if "." in name else name.replace("/", ".")
    if entry["kind"] == "command":
        return entry["command"].strip().splitlines()[0] if entry["command"].strip() else entry["command"]
    return entry.get("path") or entry["unit"]


def _sentence(before):
    if before["kind"] == "absent":
        return "removed, since it was not there"
    words = ["as before:", before["kind"]]
    if "mode" in before:
        words.append("%04o" % before["mode"])
    words.append("%d:%d" % (before["uid"], before["gid"]))
    if "size" in before:
        words.append("%d bytes" % before["size"])
    if "target" in before:
        words.append("to " + before["target"])
    return " ".join(words)


def _shown(value):
    return repr(value) if value.strip() != value or not value else kernel.tidy(value)


def _words(value):
    return tuple(str(value).split())


# -- comparing states ------------------------------------------------------------------------------------

_FIELDS = ("kind", "mode", "uid", "gid", "sha256", "target", "device")


def _same(now, state):
    """True when what is there is what a state tells, as far as it tells."""
    if any(state.get(key) is not None and now.get(key) != state[key] for key in _FIELDS):
        return False
    whole = "xattrs" in state and "times" in state and "xattrs" in now  # a state from before
    if whole and state["xattrs"] != now["xattrs"]:
        return False
    if "tree" in state and "tree" in now:
        return dict(_bare(now["tree"])) == dict(_bare(state["tree"]))
    return True


def _bare(tree):
    for name, state in tree:
        yield name, {key: state.get(key) for key in _FIELDS}


def _part(now, before):
    """True when what is there is some of a tree: a kill came while it was being removed, or put back."""
    if "tree" not in before or now["kind"] != "directory":
        return False
    full = dict(_bare(before["tree"]))
    for name, state in _bare(now.get("tree", [])):
        if name not in full or state["kind"] != full[name]["kind"]:
            return False
        if state["kind"] != "directory" and state != full[name]:
            return False
    return True


def _between(now, before, after):
    """True when owner, group and mode are what a change found or made, or a kill between the two left."""
    if now["kind"] != before["kind"]:
        return False
    if any(now[key] not in (before[key], after[key]) for key in ("uid", "gid")):
        return False
    if "mode" not in before:
        return True
    modes = (before["mode"], after["mode"])
    return now["mode"] in modes or now["mode"] in [mode & ~_SPECIAL_BITS for mode in modes]


def _original(chain):
    """What was there before all changes of a chain, from the first of them that tells."""
    found = {}
    for entry in chain:
        if entry["kind"] == "times":
            continue
        for key, value in entry["before"].items():
            found.setdefault(key, value)
        if entry["kind"] == "path":
            break  # what later ones found, this one made
    return found or {"kind": "unknown"}


# -- putting back ----------------------------------------------------------------------------------------


def _in_folder(change, path, *arguments):
    """Calls a function that changes a path, in the folder that is there now.

    Who may write to a folder above could otherwise put a symlink in its place after it was looked at, and have
    root change something elsewhere. Through /proc/self/fd the folder stays the one that was opened.

    :raises _Problem: the folder leads elsewhere.
    """
    folder, name = os.path.split(path)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        opened = "/proc/self/fd/%d" % descriptor
        if os.readlink(opened) != folder:
            raise _Problem("refused", "its folder %s leads elsewhere now" % folder)
        change(os.path.join(opened, name), *arguments)
    finally:
        os.close(descriptor)


def _put_back(path, before, now, content_of, digits):
    """Makes what a state tells, in one step where the file system can."""
    kind = before["kind"]
    if now["kind"] == "directory" and kind != "directory":
        os.rmdir(path)  # only an empty one goes
        now = {"kind": "absent"}
    if kind == "absent":
        if now["kind"] != "absent":
            os.unlink(path)
    elif kind == "directory":
        if now["kind"] not in ("absent", "directory"):
            os.unlink(path)
            now = {"kind": "absent"}
        if now["kind"] == "absent":
            os.mkdir(path, 0o700)
        _fill(path, before.get("tree", []), content_of, digits)
        _set_attributes(path, before)
        _set_times(path, before["times"])
    elif kind == "file" and now.get("sha256") == before["sha256"]:
        _set_attributes(path, before)
        _set_times(path, before["times"])
    else:
        _place(path, before, content_of, digits)
    journal.sync_folder(os.path.dirname(path))


def _place(path, before, content_of, digits):
    """A file, link or special file, made beside its place and moved there."""
    temporary = files.temporary_name(path, digits)
    if os.path.lexists(temporary):
        os.unlink(temporary)
    try:
        if before["kind"] == "link":
            os.symlink(before["target"], temporary)
        elif before["kind"] == "special":
            os.mknod(temporary, before["device"][0] | 0o600, before["device"][1])
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as target:
                content = content_of(before)
                if isinstance(content, bytes):
                    target.write(content)
                else:
                    with content:
                        shutil.copyfileobj(content, target, 1 << 20)
                target.flush()
                os.fsync(target.fileno())
            with open(temporary, "rb") as written:
                if journal.sha256(written) != before["sha256"]:
                    raise OperationError("what the journal keeps of %s is damaged" % path)
        _set_attributes(temporary, before)
        _set_times(temporary, before["times"])
        os.rename(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise


def _fill(top, tree, content_of, digits):
    """What was below a directory; what is there already stays. Directories get their attributes last."""
    for name, state in tree:
        path = os.path.join(top, name)
        if state["kind"] == "directory":
            if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path)):
                os.unlink(path)  # force; a symlink here would lead what follows elsewhere
            if not os.path.lexists(path):
                os.mkdir(path, 0o700)
        elif not os.path.lexists(path):
            _place(path, state, content_of, digits)
    for name, state in reversed(tree):
        if state["kind"] == "directory":
            path = os.path.join(top, name)
            _set_attributes(path, state)
            _set_times(path, state["times"])
            journal.sync_folder(path)


def _set_attributes(path, state):
    """Owner, group, extended attributes and mode, in the order in which one does not undo the other."""
    status = os.lstat(path)
    if (status.st_uid, status.st_gid) != (state["uid"], state["gid"]):
        os.chown(path, state["uid"], state["gid"], follow_symlinks=False)
    wanted, found = state.get("xattrs"), journal.xattrs(path)
    if wanted is not None and wanted != found:
        for name in sorted(set(found) - set(wanted)):
            _tolerant(os.removexattr, path, name)
        for name, value in sorted(wanted.items()):
            if found.get(name) != value:
                _tolerant(os.setxattr, path, name, base64.b64decode(value.encode("ascii")))
    if "mode" in state and not stat.S_ISLNK(status.st_mode):  # chmod would change what a link leads to
        os.chmod(path, state["mode"])


def _tolerant(change, path, *arguments):
    """Extended attributes that this user or file system cannot have are no failure: none could be made here."""
    try:
        change(path, *arguments, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA):
            raise


def _set_times(path, times):
    os.utime(path, ns=tuple(times), follow_symlinks=False)


def _put_links(todo, digits):
    """Links and folders for links, as they were; new folders before what is in them, old ones after."""
    for path, before in sorted(todo, key=lambda pair: pair[0]):
        if before is None and not os.path.isdir(path):
            os.mkdir(path, 0o755)
    for path, before in todo:
        if before is None:
            continue
        if before is False and not os.path.islink(path):
            continue
        if before is False:
            os.unlink(path)
        else:
            temporary = files.temporary_name(path, digits)
            os.symlink(before, temporary)
            os.rename(temporary, path)
        journal.sync_folder(os.path.dirname(path))
    for path, before in sorted(todo, key=lambda pair: pair[0], reverse=True):
        if before is False and os.path.isdir(path) and not os.path.islink(path):
            with contextlib.suppress(OSError):  # someone else uses it by now
                os.rmdir(path)
