"""``systemd`` (``systemd_service``): state and enablement of one unit, or a reload of unit files."""

import glob
import os
import re
import shlex

import journal

from operations import OperationError

_RUNTIME = "/run/systemd/system"  # there when systemd is PID 1: sd_booted(3)
_RUNNING = ("active", "activating")
_VERBS = {"started": "start", "stopped": "stop", "restarted": "restart", "reloaded": "reload"}
# What is-enabled calls a unit that starts by itself, or that cannot be enabled any further.
_ENABLED = ("enabled", "static", "generated", "transient")
# All that is-enabled says of a unit that there is.
_FILE_STATES = (
    *_ENABLED, "enabled-runtime", "linked", "linked-runtime", "masked", "masked-runtime", "indirect", "disabled",
)  # fmt: skip
# Where the links are that enabling, disabling, masking and unmasking make and remove, by scope.
_LINKS = {
    "system": ("/etc/systemd/system", "/run/systemd/system", "/etc/rc[0-6S].d"),
    "global": ("/etc/systemd/user", "/run/systemd/user"),
    "user": ("~/.config/systemd/user", "/run/user/$UID/systemd/user"),
}
# verb -> what undoes it. A unit that was restarted is restarted once more, when its files are as they were.
UNDO = {
    "enable": "disable",
    "disable": "enable",
    "mask": "unmask",
    "unmask": "mask",
    "start": "stop",
    "stop": "start",
    "restart": "restart",
    "reload": "reload",
}
# The same for a shell; what does not run any more is not started.
_BY_HAND = {"restart": "try-restart", "reload": "try-reload-or-restart"}


def run(args, context):
    """Brings unit ``name`` to what is asked.

    :param args: ``name``; ``state`` started|stopped|restarted|reloaded; ``enabled``; ``masked``;
        ``daemon_reload`` and ``daemon_reexec`` (before anything else; alone they are reported unchanged, as
        Ansible does); ``scope`` system|user|global; ``no_block`` (do not wait for the job); ``force`` (replace
        links).
    :returns: ``status``: all that systemd said about the unit before; ``state`` and ``enabled`` as they are now.
    """
    if not os.path.isdir(_RUNTIME):
        raise OperationError("systemd is not the service manager of this host")
    name = args.get("name")
    if not name and any(args.get(key) is not None for key in ("state", "enabled", "masked")):
        raise OperationError("name is needed with state, enabled or masked")
    manager = Manager(args, context)
    for verb in ("daemon-reload", "daemon-reexec"):
        if args.get(verb.replace("-", "_")) and not context.check:
            manager.call(verb)
    result = {"changed": False, "name": name, "status": {}}
    if not name:
        asked = [verb for verb in ("daemon-reload", "daemon-reexec") if args.get(verb.replace("-", "_"))]
        result["msg"] = "systemctl %s" % ", ".join(asked) if asked else "nothing was asked"
        return result
    if re.search(r"[*?\[]", name):
        raise OperationError("patterns of names are not supported: %s" % name)
    before = manager.look(name)
    load = before.get("LoadState")
    # A unit that is masked or not there has a LoadError too, and can be masked and unmasked all the same.
    if load == "error" or (before.get("LoadError") and load not in ("masked", "not-found")):
        raise OperationError("error loading the unit %s: %s" % (name, before.get("LoadError")), name=name)
    if load == "not-found" and (args.get("state") is not None or args.get("enabled") is not None):
        raise OperationError("could not find the unit %s" % name, name=name)
    done = _mask(name, before, args, manager)
    # What is below a mask shows when it is gone: the unit may be enabled.
    now = manager.look(name) if done and not context.check else before
    done += _enable(name, now, args, manager, result)
    done += _state(name, before, args, manager, result)
    result.update(changed=bool(done), status=before)
    result["msg"] = ", ".join(done) or "%s is already as asked (%s)" % (
        name,
        before.get("ActiveState", "not loaded"),
    )
    if context.diff and done:
        result["diff"] = {
            "before": "%s %s\n" % (before.get("ActiveState"), before.get("UnitFileState")),
            "after": "%s\n" % ", ".join(done),
            "before_header": name,
            "after_header": name,
        }
    return result


def _mask(name, before, args, manager):
    wanted = args.get("masked")
    if wanted is None or wanted == (before.get("UnitFileState") == "masked"):
        return []
    manager.change("mask" if wanted else "unmask", name, before)
    return ["masked" if wanted else "unmasked"]


def _enable(name, before, args, manager, result):
    wanted, state = args.get("enabled"), before.get("UnitFileState", "")
    if wanted is None:
        return []
    result["enabled"] = wanted
    # A static unit cannot be disabled: systemctl disable would say yes and change nothing, at every run.
    if wanted == (state in _ENABLED) or (state in _ENABLED[1:] and not wanted):
        return []
    manager.change("enable" if wanted else "disable", name, before)
    return ["enabled" if wanted else "disabled"]


def _state(name, before, args, manager, result):
    wanted, active = args.get("state"), before.get("ActiveState", "")
    if wanted is None:
        return []
    if not active:
        raise OperationError("%s is in an unknown state: it may be a template, which cannot run" % name, name=name)
    running = active in _RUNNING
    result["state"] = "stopped" if wanted == "stopped" else "started"
    if running if wanted == "started" else wanted == "stopped" and not running and active != "deactivating":
        return []
    verb = _VERBS[wanted]
    if wanted in ("reloaded", "restarted") and not running:
        verb = "start"
    if manager.change(verb, name, before) and not manager.args.get("no_block"):
        now = manager.show(name).get("ActiveState")
        # A oneshot unit may be over already: only "failed" contradicts a start.
        if (now == "failed" and wanted != "stopped") or (wanted == "stopped" and now in _RUNNING):
            raise OperationError("%s is %s after systemctl %s" % (name, now, verb), name=name)
    return [wanted]


def links(scope):
    """What enabling and masking leave on disk: path -> target of a symlink, None for a directory."""
    found = {}
    for pattern in _LINKS[scope]:
        for top in glob.glob(os.path.expanduser(pattern.replace("$UID", str(os.geteuid())))):
            for folder, folders, names in os.walk(top):
                for name in folders + names:
                    path = os.path.join(folder, name)
                    if os.path.islink(path):
                        found[path] = os.readlink(path)
                    elif name in folders:
                        found[path] = None
    return found


def names(name, before):
    """What links of a unit may be called: its own names, and those that its [Install] section adds."""
    found = {name, *before.get("Names", "").split()}
    if "." not in name:
        found.add(name + ".service")
    found |= {re.sub(r"@.+\.", "@.", one) for one in found if "@" in one}
    try:
        with open(before.get("FragmentPath") or "/dev/null", encoding="utf-8", errors="replace") as source:
            for line in source:
                key, _, value = line.partition("=")
                if key.strip() in ("Also", "Alias"):
                    found |= set(value.split())
    except OSError:
        pass
    return sorted(found)


class Manager(object):
    """systemctl with the options that the task asks for."""

    def __init__(self, args, context):
        self.args, self._context = args, context
        self._options = []
        if args.get("scope") in ("user", "global"):
            self._options.append("--" + args["scope"])
        if args.get("no_block"):
            self._options.append("--no-block")
        if args.get("force"):
            self._options.append("--force")
        self._environment = dict(os.environ, LC_ALL="C", SYSTEMD_PAGER="")
        # Where the user's own manager listens, when no login session has said so.
        self._environment.setdefault("XDG_RUNTIME_DIR", "/run/user/%d" % os.geteuid())

    def show(self, name):
        """All properties of a unit: name -> text."""
        return parse_show(self.call("show", name))

    def look(self, name):
        """As `show`; of a template (``NAME@.service``), which has no properties, whether it is enabled.

        :returns: ``LoadState`` not-found when there is neither.
        """
        try:
            return self.show(name)
        except OperationError:
            done = self._run("is-enabled", name)
            state = done.stdout.decode("utf-8", "replace").strip()
            if state in _FILE_STATES:
                return {"UnitFileState": state}
            if state == "not-found" or b"No such file or directory" in done.stderr:
                return {"LoadState": "not-found"}
            raise

    def change(self, verb, name, before):
        """Runs a verb unless in check mode; True when it ran.

        :param before: the unit's properties, from `show`.
        """
        if self._context.check:
            return False
        if not journal.active():
            self.call(verb, name)
            return True
        scope = self.args.get("scope") or "system"
        entry = {"unit": name, "verb": verb, "scope": scope, "running": before.get("ActiveState") in _RUNNING}
        on_disk = verb in ("enable", "disable", "mask", "unmask")
        if on_disk:
            entry.update(links=links(scope), names=names(name, before))
        undo = _BY_HAND.get(verb) or UNDO[verb]
        words = ["systemctl", *(["--" + scope] if scope != "system" else []), undo, "--", name]
        noted = journal.unit(entry, " ".join(map(shlex.quote, words)))
        try:
            self.call(verb, name)
        finally:
            if on_disk:
                journal.made(noted, {"links": changed_links(entry["links"], links(scope))})
        return True

    def call(self, *words):
        """Output of systemctl. :raises OperationError: when it exits other than 0."""
        done = self._run(*words)
        out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        if done.returncode != 0:
            sentence = (err or out).strip() or "exit status %d" % done.returncode
            raise OperationError("systemctl %s: %s" % (" ".join(words[:2]), sentence), rc=done.returncode)
        return out

    def _run(self, *words):
        try:
            return self._context.run_command(["systemctl", *self._options, *words], env=self._environment)
        except OSError as error:
            raise OperationError("cannot run systemctl: %s" % error.strerror)


def changed_links(before, after):
    """Path -> [before, after] of what two answers of `links` say differently; False: nothing there."""
    pairs = ((path, before.get(path, False), after.get(path, False)) for path in sorted({**before, **after}))
    return {path: [old, new] for path, old, new in pairs if old != new}


def parse_show(text):
    """Properties from ``systemctl show``; values of several lines, as ``ExecStart={ ... }``, are kept whole.

    >>> parse_show("Id=x\\nExecStart={ path=/a ;\\n b }\\nMainPID=3\\n")["ExecStart"]
    '{ path=/a ;\\n b }'
    """
    found, key = {}, None
    for line in text.splitlines():
        if key is not None:
            found[key] += "\n" + line
            if line.rstrip().endswith("}"):
                key = None
            continue
        name, equals, value = line.partition("=")
        if not equals:
            continue
        found[name] = value
        if name.startswith("Exec") and value.lstrip().startswith("{") and not value.rstrip().endswith("}"):
            key = name
    return found
