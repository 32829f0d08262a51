"""``command``: runs one program, without a shell. ``shell`` runs one line of a shell through here."""

import datetime
import glob
import os
import re
import shlex

import journal

from operations import OperationError
from operations import _files as files


def run(args, context):
    """Runs a program and reports its exit status and output.

    :param args: ``cmd`` (text, split as a shell would, but run without one) or ``argv`` (list); ``chdir``;
        ``creates`` / ``removes`` (glob: do nothing when it does / does not exist); ``stdin``,
        ``stdin_add_newline``; ``strip_empty_ends``; ``environment`` (dict added to the environment);
        ``expand_argument_vars`` (default True: ``~`` and ``$NAME`` in words are put in, no shell needed).
    :raises OperationError: with the same fields when the exit status is not 0.
    """
    argv = args.get("argv")
    if argv:
        argv = [str(word) for word in argv]
    else:
        try:
            argv = shlex.split(args.get("cmd") or "")
        except ValueError as error:
            raise OperationError("cannot split the command into words: %s" % error, cmd=args.get("cmd"))
    if not argv:
        raise OperationError("no command given", rc=256)
    ready = argv
    if args.get("expand_argument_vars", True):
        environment = _environment(args)
        ready = [os.path.expanduser(_put_in(word, environment)) for word in argv]
    return execute(ready, argv, args, context)


def _environment(args):
    environment = dict(os.environ)
    environment.update((str(key), str(value)) for key, value in (args.get("environment") or {}).items())
    return environment


def _put_in(word, environment):
    """``os.path.expandvars`` for an environment that is not this process's own; unknown names stay."""

    def value(match):
        return environment.get(match.group(1).strip("{}"), match.group(0))

    return re.sub(r"\$(\w+|\{[^}]*\})", value, word, flags=re.ASCII)


def execute(argv, shown, args, context):
    """Runs `argv` with what `args` says about folder, input and conditions; see `run`.

    :param shown: what the result's ``cmd`` says.
    """
    folder = args.get("chdir") or None
    if folder:
        folder = files.expand(folder)
        if not os.path.isdir(folder):
            raise OperationError(
                "cannot change to directory %s before running" % folder, **_fields(shown, None, "", "")
            )
    for key, unwanted, state in (("creates", True, "exists"), ("removes", False, "does not exist")):
        pattern = args.get(key)
        if pattern and bool(glob.glob(os.path.join(folder or "", files.expand(pattern)))) is unwanted:
            return _fields(
                shown, 0, "skipped, since %s %s" % (pattern, state), "",
                changed=False, msg="did not run, since '%s' %s" % (pattern, state),
            )  # fmt: skip
    if context.check:
        conditional = bool(args.get("creates") or args.get("removes"))
        result = _fields(shown, 0, "", "", changed=conditional, msg="would have run, if not in check mode")
        if not conditional:
            result["skipped"] = True
        return result

    journal.command(shown)
    started = datetime.datetime.now()
    code, out, err = _run(argv, folder, args, context)
    ended = datetime.datetime.now()
    if args.get("strip_empty_ends", True):
        out, err = out.rstrip("\r\n"), err.rstrip("\r\n")
    result = _fields(
        shown, code, out, err, changed=True, msg="",
        start=str(started), end=str(ended), delta=str(ended - started),
    )  # fmt: skip
    if code != 0:
        result.pop("msg")
        raise OperationError("non-zero return code", **result)
    return result


def _fields(shown, code, out, err, **more):
    fields = {"cmd": shown, "rc": code, "start": None, "end": None, "delta": None}
    fields.update(files.output_fields(out, err))
    fields.update(more)
    return fields


def _run(argv, folder, args, context):
    """Runs the program through the agent, which ends it and its children when the controller is gone."""
    data = args.get("stdin")
    if data is not None:
        data = str(data)
        if args.get("stdin_add_newline", True) and not data.endswith("\n"):
            data += "\n"
        data = data.encode("utf-8")
    line = " ".join(map(shlex.quote, argv))
    try:
        done = context.run_command(argv, stdin=data or b"", env=_environment(args), cwd=folder)
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None) or 2
        raise OperationError(
            "cannot run '%s': %s" % (argv[0], getattr(error, "strerror", None) or error),
            cmd=line,
            rc=code,
            **files.output_fields("", ""),
        )
    if done.timed_out:
        raise OperationError("cancelled while '%s' was running" % argv[0], cmd=line, rc=done.returncode)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
