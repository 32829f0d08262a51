# ruff: noqa: UP031
"""Runs operation cases under whatever Python starts this: JSON cases on stdin, JSON failures on stdout.

Standard library only and Python 3.6 syntax, like the payload it tests. Every case gets a folder of its own;
``$T`` in its texts stands for it. See test_operations.py for what a case holds.
"""

import collections
import importlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "payload"))

import wire
from operations import TABLE, OperationError, _kernel

Completed = collections.namedtuple("Completed", "returncode stdout stderr timed_out")


class Context:
    def __init__(self, check, diff):
        self.check, self.diff = check, diff

    def progress(self, data):
        pass

    def stopping(self):
        return False

    def run_command(self, argv, stdin=b"", timeout=None, env=None, cwd=None):
        child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd
        )
        out, err = child.communicate(stdin)
        return Completed(child.returncode, out, err, False)


def fill(value, folder):
    """`value` with $T replaced in every text."""
    if isinstance(value, str):
        return value.replace("$T", folder)
    if isinstance(value, dict):
        return {fill(key, folder): fill(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [fill(one, folder) for one in value]
    return value


def lay_out(files):
    """Makes files: path -> text, {"link": target}, {"dir": mode} or {"text":, "mode":}."""
    for path, what in files.items():
        if not os.path.isdir(os.path.dirname(path)):
            os.makedirs(os.path.dirname(path))
        if isinstance(what, dict) and "link" in what:
            os.symlink(what["link"], path)
        elif isinstance(what, dict) and "dir" in what:
            os.mkdir(path)
            os.chmod(path, int(what["dir"], 8))
        else:
            text, mode = (what["text"], what["mode"]) if isinstance(what, dict) else (what, "644")
            with open(path, "w", encoding="utf-8", newline="") as handle:
                handle.write(text)
            os.chmod(path, int(mode, 8))


def found(path):
    """What is at a path, in the words that `lay_out` takes; None for nothing."""
    if os.path.islink(path):
        return {"link": os.readlink(path)}
    if not os.path.exists(path):
        return None
    mode = f"{stat.S_IMODE(os.stat(path).st_mode):o}"
    if os.path.isdir(path):
        return {"dir": mode}
    with open(path, encoding="utf-8", newline="") as handle:
        return {"text": handle.read(), "mode": mode}


def differs(expected, got, where):
    """Sentences on where `got` lacks what `expected` says; dicts are compared by the keys of `expected`."""
    if isinstance(expected, dict) and isinstance(got, dict):
        wrong = []
        for key in expected:
            wrong += differs(expected[key], got.get(key), "%s.%s" % (where, key))
        return wrong
    if isinstance(expected, str) and expected.startswith("~") and isinstance(got, str):
        return [] if expected[1:] in got else ["%s: %r is not in %r" % (where, expected[1:], got)]
    return [] if expected == got else ["%s: expected %r, got %r" % (where, expected, got)]


def run_case(case, folder):
    """Sentences on what went wrong."""
    case = fill(case, folder)
    _kernel.PROC_SYS = os.path.join(folder, "proc")
    lay_out(case.get("files", {}))
    wrong = []
    for number, step in enumerate(case["steps"]):
        where = "step %d" % (number + 1)
        module = importlib.import_module("operations." + TABLE[step.get("op", case["op"])])
        context = Context(step.get("check", False), step.get("diff", True))
        try:
            result = module.run(dict(step["args"]), context)
        except OperationError as error:
            result = dict(error.fields, failed=True, msg=error.msg)
        wire.check_result(json.loads(json.dumps(result)))
        result.setdefault("failed", False)
        wrong += differs(dict({"failed": False}, **step["result"]), result, where)
        for path, expected in step.get("files", {}).items():
            got = found(path)
            if isinstance(expected, str) and isinstance(got, dict):
                got = got.get("text")
            wrong += differs(expected, got, "%s: %s" % (where, path))
    left = [
        name
        for root, _, names in os.walk(folder)
        for name in names
        if ".tcpfleet-" in name or ".validate-" in name
    ]
    return wrong + ["left behind: %s" % name for name in left]


def main():
    os.umask(0o022)
    failures = {}
    for name, case in json.load(sys.stdin).items():
        folder = os.path.realpath(tempfile.mkdtemp(prefix="tcpfleet-case-"))
        try:
            wrong = run_case(case, folder)
        finally:
            shutil.rmtree(folder)
        if wrong:
            failures[name] = wrong
    json.dump(failures, sys.stdout)


main()
