"""A sampler (observe_sampler.py) on this host: start it, read what it wrote so far, end it, remove what it left.

Its folder is ``STATE/samples/RUN_ID/NAME``. ``args``: ``action``, one of ACTIONS; ``run_id``; ``name``, which
tells apart two hosts of an inventory that are one machine.
"""

import json
import os
import re
import shutil
import signal
import sys
import time

import daemon

from operations import OperationError, stress

MOST = 1024 * 1024  # bytes of rows in one answer
FIRST = 4096  # in the first one: by its `now` clocks are compared, so it must not be long under way


def run(args, context):
    """Dispatch on ``action``; the result's keys are told by each function below."""
    names = [args.get("run_id"), args.get("name")]
    if not all(isinstance(one, str) and re.match(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z", one) for one in names):
        raise OperationError("sample: {!r} are no names of a run and a host".format(names))
    if args.get("action") not in ACTIONS:
        raise OperationError("sample: unknown action {!r}".format(args.get("action")))
    return ACTIONS[args["action"]](os.path.join(stress.state_directory(), "samples", *names), args, context)


def start(folder, args, context):
    """Start it with ``config``, see observe_sampler; nothing to do where it was started before."""
    if os.path.isdir(folder):
        return {"changed": False, "msg": "started before"}
    above = os.path.dirname(folder)
    try:
        stress.make_private(os.path.dirname(above))
        for path in (above, folder):
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
        with open(os.path.join(folder, "config.json"), "w") as target:
            json.dump(args["config"], target)
    except OSError as error:
        raise OperationError("cannot write {}: {}".format(folder, error.strerror))
    program = os.path.join(stress.install_programs(context.sources), "observe_sampler.py")
    done = context.run_command([sys.executable, "-E", "-s", "-S", program, folder], timeout=30)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it does not say why"]
        raise OperationError("the sampler did not start: " + said[-1])
    return {"changed": True, "msg": "started"}


def read(folder, args, context):
    """Whole lines from byte ``offset`` on.

    :returns: ``lines``, ``offset`` of the next, ``alive``, ``now`` (this host's clock), ``log``: the end of its
        log where it is not alive.
    """
    alive = daemon.PidFile.read(os.path.join(folder, "pid")) is not None
    try:
        with open(os.path.join(folder, "rows.jsonl"), "rb") as source:
            source.seek(args["offset"])
            data = source.read(MOST if args["offset"] else FIRST)
    except OSError as error:
        raise OperationError("no samples: {}".format(error.strerror))
    data = data[: data.rfind(b"\n") + 1]
    answer = {"changed": False, "msg": "", "alive": alive, "now": time.time(), "log": ""}
    answer.update(
        lines=[json.loads(line.decode()) for line in data.splitlines()], offset=args["offset"] + len(data)
    )
    if not alive:
        with open(os.path.join(folder, "log"), errors="replace") as source:
            answer["log"] = " ".join(source.read()[-500:].split())
    return answer


def end(folder, args, context):
    """SIGTERM, then at most 5 seconds until it has written its last row."""
    path = os.path.join(folder, "pid")
    pid = daemon.PidFile.read(path)
    if pid is None:
        return {"changed": False, "msg": "not running"}
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 5.0
    while daemon.PidFile.read(path) == pid:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    return {"changed": True, "msg": "ended"}


def remove(folder, args, context):
    """Delete its folder, once it has ended."""
    if daemon.PidFile.read(os.path.join(folder, "pid")) is not None:
        raise OperationError("the sampler still runs")
    shutil.rmtree(folder, ignore_errors=True)
    for above in (os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))):
        try:
            os.rmdir(above)
        except OSError:
            break  # other hosts' or runs' are in it
    return {"changed": True, "msg": "removed"}


ACTIONS = {"start": start, "read": read, "end": end, "remove": remove}
