"""``systemd`` (``systemd_service``): state and enablement of one unit, or a reload of unit files."""

import os

from operations import OperationError

_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "FragmentPath",
    "NeedDaemonReload",
)
_RUNTIME = "/run/systemd/system"  # there when systemd is PID 1: sd_booted(3)
_RUNNING = ("active", "activating", "reloading")
_VERBS = {"started": "start", "stopped": "stop", "restarted": "restart", "reloaded": "reload"}


def run(args, context):
    """Brings unit ``name`` to what is asked.

    :param args: ``name``; ``state`` started|stopped|restarted|reloaded; ``enabled``; ``masked``;
        ``daemon_reload`` (before anything else; alone it is reported unchanged, as Ansible does).
    :returns: ``status``: what systemd says about the unit afterwards.
    """
    if not os.path.isdir(_RUNTIME):
        raise OperationError("systemd is not the service manager of this host")
    name = args.get("name")
    if not name and any(args.get(key) is not None for key in ("state", "enabled", "masked")):
        raise OperationError("name is needed with state, enabled or masked")
    done = []
    if args.get("daemon_reload") and not context.check:
        _systemctl(context, "daemon-reload")
    result = {"changed": False, "name": name, "state": args.get("state"), "enabled": args.get("enabled")}
    if not name:
        result["msg"] = "unit files read again" if args.get("daemon_reload") else "nothing was asked"
        return result
    if "." not in name:
        name += ".service"
    before = _show(name, context)
    if before["LoadState"] == "not-found" and (args.get("state") not in (None, "stopped") or args.get("enabled")):
        raise OperationError("could not find the unit %s" % name, name=name)
    done += _mask(name, before, args, context)
    done += _enable(name, before, args, context)
    done += _state(name, before, args, context)
    after = before if context.check else _show(name, context)
    result.update(changed=bool(done), status=after)
    result["msg"] = ", ".join(done) or "%s is already as asked (%s)" % (name, before["ActiveState"])
    if context.diff and done:
        result["diff"] = {
            "before": "%s %s\n" % (before["ActiveState"], before["UnitFileState"]),
            "after": "%s\n" % ", ".join(done),
            "before_header": name,
            "after_header": name,
        }
    return result


def _mask(name, before, args, context):
    wanted = args.get("masked")
    if wanted is None or wanted == (before["LoadState"] == "masked"):
        return []
    if not context.check:
        _systemctl(context, "mask" if wanted else "unmask", name)
    return ["masked" if wanted else "unmasked"]


def _enable(name, before, args, context):
    wanted = args.get("enabled")
    if wanted is None or wanted == before["UnitFileState"].startswith("enabled"):
        return []
    if before["UnitFileState"] in ("static", "indirect", "generated", "transient"):
        if wanted:
            raise OperationError("%s is %s: it cannot be enabled" % (name, before["UnitFileState"]), name=name)
        return []
    if not context.check:
        _systemctl(context, "enable" if wanted else "disable", name)
    return ["enabled" if wanted else "disabled"]


def _state(name, before, args, context):
    wanted = args.get("state")
    running = before["ActiveState"] in _RUNNING
    if wanted is None or (wanted == "started" and running) or (wanted == "stopped" and not running):
        return []
    verb = _VERBS[wanted]
    if wanted == "reloaded" and not running:
        verb = "start"
    if not context.check:
        _systemctl(context, verb, name)
        now = _show(name, context)["ActiveState"]
        # A oneshot unit may be over already: only "failed" contradicts a start.
        if now == "failed" or (wanted == "stopped" and now in _RUNNING):
            raise OperationError("%s is %s after systemctl %s" % (name, now, verb), name=name)
    return [wanted]


def _show(name, context):
    out = _systemctl(context, "show", name, "--property=" + ",".join(_PROPERTIES))
    found = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    return {key: found.get(key, "") for key in _PROPERTIES}


def _systemctl(context, *words):
    environment = dict(os.environ, LC_ALL="C", SYSTEMD_PAGER="")
    try:
        done = context.run_command(["systemctl", *words], env=environment)
    except OSError as error:
        raise OperationError("cannot run systemctl: %s" % error.strerror)
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    if done.returncode != 0:
        sentence = (err or out).strip() or "exit status %d" % done.returncode
        raise OperationError("systemctl %s: %s" % (" ".join(words[:2]), sentence), rc=done.returncode)
    return out
