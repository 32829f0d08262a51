"""Stress clients on this host: start them as daemons, follow them, release their barriers, fetch results.

Every client of a run has a folder ``STATE/runs/RUN_ID/client-INDEX`` that the client itself fills
(stress_client.py --detach): pid, log, plan.json, status.json while it runs, result.json at its end. Because all
that counts is in these files, a run goes on when the controller's connection drops, and any later agent can
pick it up. ``leader`` in the run's folder names the agent that led last.

``args["action"]`` is one of ACTIONS; all but `list` take ``run_id``.
"""

import json
import os
import pwd
import re
import shutil
import signal
import sys
import threading
import time

import daemon

from operations import OperationError

START_TIMEOUT = 60.0  # seconds for one client to plan, fork its workers and say that it is ready
FINAL = ("done", "failed")
BARRIER_TIMEOUT = "6h"
KEEP_PROGRAMS = 5  # versions of the client's files that stay, so that none is taken from a client just starting


def run(args, context):
    """Dispatch on ``action``; the result's keys are told by each function below."""
    action = args.get("action")
    if action not in ACTIONS:
        raise OperationError("stress: unknown action {!r}".format(action))
    if action == "list":
        return list_runs(args, context)
    run_id = args.get("run_id")
    if not isinstance(run_id, str) or not re.match(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z", run_id):
        raise OperationError("stress: {!r} is not a run id".format(run_id))
    return ACTIONS[action](run_folder(run_id), args, context)


def run_folder(run_id):
    """Where this user's clients of a run are."""
    return os.path.join(state_directory(), "runs", run_id)


def state_directory():
    """Where this user's runs live: only its user can enter it."""
    if os.geteuid() == 0:
        return "/var/lib/tcpfleet"
    return os.path.join(pwd.getpwuid(os.geteuid()).pw_dir, ".local", "state", "tcpfleet")


def start(folder, args, context):
    """Start ``clients``: [{"index", "arguments"}]; returns ``clients``: [{"index", "code", "message", "plan"}].

    Code 0: it waits at its barrier, and plan is its plan. 5: its plan was refused. Nothing has connected yet in
    either case.
    """
    try:
        make_private(os.path.dirname(folder))
        os.mkdir(folder, 0o700)
        _lead(folder)
    except FileExistsError:
        raise OperationError("{} exists: this machine is in the run under two names; name it once".format(folder))
    except OSError as error:
        raise OperationError("cannot create {}: {}".format(error.filename or folder, error.strerror))
    programs = install_programs(context.sources)
    answers = []

    def one(client):
        place = os.path.join(folder, "client-{:d}".format(client["index"]))
        argv = [sys.executable, "-E", "-s", "-S", os.path.join(programs, "stress_client.py")]
        argv += [str(part) for part in client["arguments"]] + ["--detach", place, "--barrier"]
        # Others of the run may ramp for long; whether anybody leads still is known from `leader`.
        argv += ["--barrier-timeout", BARRIER_TIMEOUT]
        try:
            done = context.run_command(argv, timeout=START_TIMEOUT)
            text = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
            code = 2 if done.timed_out else done.returncode
        except OSError as error:
            code, text = 2, "cannot start {}: {}".format(argv[0], error.strerror)
        answer = {"index": client["index"], "code": code, "message": text, "plan": None}
        if code == 0:
            with open(os.path.join(place, "plan.json")) as source:
                answer["plan"] = json.load(source)
        answers.append(answer)

    threads = [threading.Thread(target=one, args=(client,)) for client in args["clients"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "changed": True,
        "msg": "started {} clients".format(sum(answer["code"] == 0 for answer in answers)),
        "clients": sorted(answers, key=lambda answer: answer["index"]),
    }


def poll(folder, args, context):
    """Each client's status.json as ``clients``: [{"index", "alive", ...}]; waits ``wait`` seconds first."""
    _lead(folder)
    time.sleep(min(float(args.get("wait", 0)), 5.0))
    return {"changed": False, "msg": "", "clients": [_status(folder, name) for name in _clients(folder)]}


def release(folder, args, context):
    """Open the barrier ``barrier`` (go or hold) for every client of the run here."""
    name = args.get("barrier")
    if name not in ("go", "hold"):
        raise OperationError("stress: unknown barrier {!r}".format(name))
    _lead(folder)
    for client in _clients(folder):
        with open(os.path.join(folder, client, name), "w"):
            pass
    return {"changed": True, "msg": "released {}".format(name)}


def result(folder, args, context):
    """``clients``: [{"index", "result": the client's result.json or None, "message"}]."""
    found = []
    for client in _clients(folder):
        path = os.path.join(folder, client, "result.json")
        entry = {"index": _index(client), "result": None, "message": ""}
        try:
            with open(path) as source:
                entry["result"] = json.load(source)
        except FileNotFoundError:
            entry["message"] = "it left no result; its log says: {}".format(_log_tail(folder, client))
        except (OSError, ValueError) as error:
            entry["message"] = "its result cannot be read: {}".format(error)
        found.append(entry)
    return {"changed": False, "msg": "", "clients": found}


def stop(folder, args, context):
    """SIGTERM to every client (each writes what it reached), SIGKILL to the rest after ``timeout`` s."""
    pids = {client: daemon.PidFile.read(os.path.join(folder, client, "pid")) for client in _clients(folder)}
    alive = {client: pid for client, pid in pids.items() if pid}
    for pid in alive.values():
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + float(args.get("timeout", 10))
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = {client: pid for client, pid in alive.items() if _alive(folder, client)}
    for pid in alive.values():
        _signal(pid, signal.SIGKILL)
    stopped = sum(1 for pid in pids.values() if pid)
    return {
        "changed": bool(stopped),
        "msg": "stopped {} clients, {} by force".format(stopped, len(alive)) if stopped else "none was running",
        "stopped": stopped,
        "killed": len(alive),
    }


def remove(folder, args, context):
    """Delete the run's folder; refuses while a client of it runs."""
    running = [client for client in _clients(folder) if _alive(folder, client)]
    if running:
        raise OperationError("{} of this run still run here".format(", ".join(running)))
    existed = os.path.isdir(folder)
    if existed:
        shutil.rmtree(folder)
    _remove_empty(os.path.dirname(folder))
    return {"changed": existed, "msg": "removed {}".format(folder) if existed else "nothing there"}


def list_runs(args, context):
    """``runs``: {run id: [status of each client]} of all runs that this host still holds."""
    top = os.path.join(state_directory(), "runs")
    names = sorted(os.listdir(top)) if os.path.isdir(top) else []
    runs = {
        name: [_status(os.path.join(top, name), client) for client in _clients(os.path.join(top, name))]
        for name in names
    }
    return {"changed": False, "msg": "{} runs".format(len(runs)), "runs": runs}


ACTIONS = {
    "start": start,
    "poll": poll,
    "release": release,
    "result": result,
    "stop": stop,
    "remove": remove,
    "list": list_runs,
}


# -- small things ----------------------------------------------------------------------------------------


def _lead(folder):
    """Name this agent as the one that opens the run's barriers: clients that wait for a dead one stop waiting."""
    if not os.path.isdir(folder):
        return
    path = os.path.join(folder, "leader")
    me = "{} {}\n".format(os.getpid(), daemon.process_start_time(os.getpid()))
    try:
        with open(path) as source:
            if source.read() == me:
                return  # also when the disk has become full
    except OSError:
        pass
    draft = "{}.{}".format(path, os.getpid())
    with open(draft, "w") as target:
        target.write(me)
    os.rename(draft, path)


def install_programs(sources):
    """Write the client's program files below the state folder, once per content; returns their folder."""
    import hashlib

    names = sorted(name for name in sources if "/" not in name and name not in ("stub", "agent"))
    content = "\0".join(name + "\0" + sources[name] for name in names)
    digest = hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]
    top = os.path.join(state_directory(), "programs")
    place = os.path.join(top, digest)
    if os.path.isdir(place):
        return place
    draft = "{}.new-{}".format(place, os.getpid())
    try:
        make_private(top)
        os.mkdir(draft, 0o700)
        for name in names:
            with open(os.path.join(draft, name + ".py"), "w", encoding="utf-8") as target:
                target.write(sources[name])
        os.rename(draft, place)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if os.path.isdir(place):  # another agent was first
            return place
        raise OperationError("cannot install the stress client in {}: {}".format(place, error.strerror))
    complete = [os.path.join(top, name) for name in os.listdir(top) if ".new-" not in name]
    for old in sorted(complete, key=os.path.getmtime)[:-KEEP_PROGRAMS]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def make_private(directory):
    """Make the state directory and what leads from it to `directory`, for this user only."""
    top = state_directory()
    os.makedirs(os.path.dirname(top), exist_ok=True)
    for path in (top, directory):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass


def _remove_empty(directory):
    try:
        os.rmdir(directory)
    except OSError:
        pass


def _clients(folder):
    if not os.path.isdir(folder):
        return []
    return sorted((name for name in os.listdir(folder) if re.match(r"\Aclient-\d+\Z", name)), key=_index)


def _index(client):
    return int(client.partition("-")[2])


def _alive(folder, client):
    return daemon.PidFile.read(os.path.join(folder, client, "pid")) is not None


def _status(folder, client):
    entry = {"index": _index(client), "state": "failed", "message": "", "alive": _alive(folder, client)}
    try:
        with open(os.path.join(folder, client, "status.json")) as source:
            entry.update(json.load(source))
    except (OSError, ValueError) as error:
        entry["message"] = "no status: {}".format(error)
    if not entry["alive"] and entry["state"] not in FINAL:
        # Its last status is from before it died; without a result its share counts as failed.
        entry["state"] = "done" if os.path.exists(os.path.join(folder, client, "result.json")) else "failed"
        if entry["state"] == "failed":
            entry["message"] = "the client's process is gone; its log says: " + _log_tail(folder, client)
    return entry


def _log_tail(folder, client):
    try:
        with open(os.path.join(folder, client, "log"), errors="replace") as source:
            return " | ".join(source.read()[-2000:].splitlines()[-3:]) or "(nothing)"
    except OSError as error:
        return "({})".format(error.strerror)


def _signal(pid, number):
    try:
        os.kill(pid, number)
    except OSError:
        pass
