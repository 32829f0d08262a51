"""``clean``: ends what tcpfleet runs on this host and removes what it keeps here, as far as it is this user's.

docs/files.md lists every path. What a rollback could still put back stands in the way: nothing is touched then,
for the journal that would go is the only way back. The server's own files are not in the way: they are removed.
"""

import os
import re
import shutil
import signal
import stat
import time

import daemon
import journal

from operations import OperationError, _started, rollback, stress

UNIT = "tcpfleet-echo.service"
UNIT_FILE = "/etc/systemd/system/" + UNIT
DROP_IN = UNIT_FILE + ".d/nofile.conf"
# What tune wrote; without a journal when ansible-playbook ran the playbook.
TUNED = ("/etc/sysctl.d/99-tcpfleet.conf", "/etc/security/limits.d/99-tcpfleet.conf")
STOP_SECONDS = 40.0  # the server gives its connections 10 s, systemd gives the server 30
CLIENT_SECONDS = 15.0
_CUT_OFF = re.compile(r"\A\.(.+)\.tcpfleet-[0-9a-f]{16}\Z")  # what a kill in the middle of a copy leaves


def run(args, context):
    """Stops and removes; under check it says what it would do.

    :param args: ``server``: {"dir", "pid_file", "log_file"}: where the echo server is if it was deployed; None: it
        is another identity's business.
    :returns: ``uid``; ``entries``: [{"what", "status", "msg"}], status stopped, removed, would-stop, would-remove,
        left (somebody else's things are in it) or failed.
    :raises OperationError: with ``waiting``: [{"run", "command", "msg"}], what has to be rolled back before.
    """
    server = args.get("server")
    programs = sorted(name + ".py" for name in context.sources if "/" not in name)
    waiting = _waiting(server, programs)
    if waiting:
        raise OperationError("; ".join(one["msg"] for one in waiting) + "; nothing was touched", waiting=waiting)
    work = _Clean(context)
    try:
        work.stop_clients()
        if server:
            work.take_server(server, programs)
        for place in sorted({journal.state_folder(), stress.state_directory()}):
            work.remove_own(place)
        work.remove_own(_cache(), told=not context.sent_for_this)
    except OSError as error:
        msg = "cannot remove %s: %s" % (error.filename, error.strerror)
        raise OperationError(msg, entries=work.entries)
    changed = any(one["status"] not in ("left", "failed") for one in work.entries)
    return {
        "changed": changed,
        "uid": os.geteuid(),
        "entries": work.entries,
        "msg": "%d things" % len(work.entries),
    }


def _cache():
    import pwd

    try:
        return os.path.join(pwd.getpwuid(os.geteuid()).pw_dir, ".cache", "tcpfleet")
    except KeyError:  # a user that this host does not name has no home either
        return ""


# -- what stands in the way --------------------------------------------------------------------------------


def _waiting(server, programs):
    """What clean would lose, oldest first: runs with changes that it does not take back itself."""
    mine = set()
    if server:
        folder = os.path.realpath(server["dir"])
        mine = {os.path.join(folder, name) for name in _names_in(folder, programs)}
        mine |= {folder, UNIT_FILE, server["pid_file"], server["log_file"]}
    found, made = [], set()
    for one in reversed(journal.runs()):
        state = rollback.describe(one)
        if state["state"] in ("damaged", "under way"):
            found.append({"run": one.ident, "command": state.get("command"), "msg": state["msg"]})
        elif state["state"] != "undone":
            foreign = [entry for entry in one.entries if _is_foreign(entry, mine, made)]
            if foreign:
                msg = "run %s (%s) is not rolled back" % (one.ident, state["command"])
                found.append({"run": one.ident, "command": state["command"], "msg": msg})
    if not found and server:
        for path in TUNED:
            if os.path.lexists(path):
                msg = "%s is there, and no journal tells what was there before: remove it by hand" % path
                found.append({"run": None, "command": None, "msg": msg})
    return found


def _is_foreign(entry, mine, made):
    """True for a change that clean would leave, or that replaced what was there before.

    :param made: paths of `mine` that a run has made; the caller shows entries oldest first.
    """
    kind = entry["kind"]
    if kind in ("command", "temporary"):  # no rollback takes these back
        return False
    if kind == "unit":
        return bool(entry["unit"] != UNIT)
    if kind == "kernel" or entry["path"] not in mine:
        return True
    if kind == "path":
        replaced = entry["path"] not in made and entry["before"]["kind"] != "absent"
        made.add(entry["path"])
        return replaced
    return False


def _names_in(folder, programs):
    """Names of the server's files in its folder, those of other versions too."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    ours = set(programs) | {name for name in names if re.match(r"\Aecho_\w+\.py\Z", name)}
    cut_off = [name for name in names if _CUT_OFF.match(name) and _CUT_OFF.match(name).group(1) in ours]
    return sorted(ours) + cut_off


# -- the work ------------------------------------------------------------------------------------------------


class _Clean(object):
    """:ivar entries: what was done, in order."""

    def __init__(self, context):
        self.entries, self._context = [], context

    def _tell(self, what, status, msg=""):
        if self._context.check and status in ("stopped", "removed"):
            status = {"stopped": "would-stop", "removed": "would-remove"}[status]
        self.entries.append({"what": what, "status": status, "msg": msg})

    def stop_clients(self):
        """Stress clients of all runs, with SIGTERM: each writes what it reached, and that goes with its folder."""
        for ident, clients in sorted(stress.list_runs({}, self._context)["runs"].items()):
            alive = sum(client["alive"] for client in clients)
            if alive and not self._context.check:
                stress.stop(stress.run_folder(ident), {"timeout": CLIENT_SECONDS}, self._context)
            if alive:
                self._tell("%d stress clients of run %s" % (alive, ident), "stopped")

    def take_server(self, server, programs):
        """The echo server: its unit, its daemon, its files."""
        if os.path.lexists(UNIT_FILE):
            self._disable()
        self._stop_daemon(server["pid_file"])
        folder = os.path.realpath(server["dir"])
        files = [os.path.join(folder, name) for name in _names_in(folder, programs)]
        busy = [] if self._context.check else _started.since(0, set(files))
        for pid, line in busy:
            self._tell(line, "failed", "pid %d still runs from %s: end it, then clean again" % (pid, folder))
        if busy:
            return
        removed = [self._remove(path) for path in (DROP_IN, UNIT_FILE)]
        if any(removed) and not self._context.check:
            _remove_empty(os.path.dirname(DROP_IN))
            if os.path.isdir("/run/systemd/system"):
                self._systemctl("daemon-reload")
                self._context.run_command(["systemctl", "reset-failed", UNIT])  # says no where nothing had failed
        self._remove_programs(folder, files)
        for path in (server["pid_file"], server["log_file"]):
            self._remove(path)

    def _remove_programs(self, folder, files):
        there = [path for path in files if os.path.lexists(path)]
        if not os.path.isdir(folder) or not there:
            return
        if not self._context.check:
            for path in there:
                os.unlink(path)
            stems = {os.path.basename(path).partition(".")[0] for path in there}
            compiled = os.path.join(folder, "__pycache__")
            for name in os.listdir(compiled) if os.path.isdir(compiled) else ():
                if name.partition(".")[0] in stems:
                    os.unlink(os.path.join(compiled, name))
            _remove_empty(compiled)
            _remove_empty(folder)
        self._tell(folder, "removed", "%d files of the server" % len(there))
        if os.path.isdir(folder) and not self._context.check:
            held = sorted(os.listdir(folder))
            self._tell(folder, "left", "it holds %s" % ", ".join(held[:5]) + (" ..." if len(held) > 5 else ""))

    def _disable(self):
        if not os.path.isdir("/run/systemd/system"):
            return
        shown = self._context.run_command(["systemctl", "is-active", UNIT]).stdout.decode("utf-8", "replace")
        if not self._context.check:
            self._systemctl("disable", "--now", UNIT)
        if shown.strip() in ("active", "activating", "reloading", "deactivating"):
            self._tell(UNIT, "stopped")

    def _systemctl(self, *words):
        done = self._context.run_command(["systemctl", *words])
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise OperationError("systemctl %s: %s" % (" ".join(words), said or "exit %d" % done.returncode))

    def _stop_daemon(self, pid_file):
        pid = daemon.PidFile.read(pid_file)
        if pid is None:
            return
        born, what = daemon.process_start_time(pid), daemon.describe_process(pid)
        if not self._context.check:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while daemon.process_start_time(pid) == born:
                if time.monotonic() > deadline:
                    raise OperationError("the server, pid %d, did not stop within %g s" % (pid, STOP_SECONDS))
                time.sleep(0.02)
        self._tell(what, "stopped", "pid %d" % pid)

    def _remove(self, path):
        """A single file or link; a folder in its place is not ours."""
        try:
            status = os.lstat(path)
        except OSError:
            return False
        if stat.S_ISDIR(status.st_mode):
            self._tell(path, "left", "it is a folder")
            return False
        if not self._context.check:
            os.unlink(path)
        self._tell(path, "removed")
        return True

    def remove_own(self, place, told=True):
        """A folder of this user alone with all that is in it, and what led to it, where that is empty then.

        :param told: False: this very command has made it.
        """
        if not place:
            return
        if not os.path.lexists(place):
            if not self._context.check:
                _remove_parents(place)  # which an operation that has tidied up after itself leaves
            return
        status = os.lstat(place)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            self._tell(place, "left", "it is no folder of this user")
            return
        if not self._context.check:
            shutil.rmtree(place)
            _remove_parents(place)
        if told:
            self._tell(place, "removed")


def _remove_parents(place):
    """The folders of a home that lead to a place, where they are empty."""
    for parent in (os.path.dirname(place), os.path.dirname(os.path.dirname(place))):
        if os.path.basename(parent) in (".cache", "state", ".local"):
            _remove_empty(parent)


def _remove_empty(folder):
    try:
        os.rmdir(folder)
    except OSError:
        pass  # it holds something, or is not there
