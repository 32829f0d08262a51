"""``ansible.posix.sysctl``: one kernel setting, in a file of sysctl.d and in force.

Beside Ansible's ``changed`` the result says what became of the key: ``status`` is

* ``applied``: written and read back; ``already``: it had this value;
* ``absent``: this kernel (or network namespace) has no such key; ``read-only``: it cannot be written here;
* ``refused``: the kernel said no (``errno``), or keeps another value than the one it took;
* ``would-apply``: check mode, and the value in force differs;
* ``file-only``: neither ``sysctl_set`` nor ``reload``, so only the file was looked after.
"""

import glob
import os
import re
import stat

import journal

from operations import OperationError
from operations import _files as files
from operations import _kernel as kernel

_TRUE = ("y", "yes", "on", "1", "true", "t", "1.0")
_FALSE = ("n", "no", "off", "0", "false", "f", "0.0")


def run(args, context):
    """Brings one key to ``value``.

    :param args: ``name``; ``value`` (text; words for true and false become 1 and 0); ``state``
        present|absent (absent: the line leaves the file, nothing is set); ``sysctl_set`` (write to /proc/sys);
        ``reload`` (default True: ``sysctl -p FILE`` after a change); ``sysctl_file``
        (default /etc/sysctl.conf); ``ignoreerrors`` (an absent key is no failure).
    :raises OperationError: with ``status``, ``errno``, ``before``, ``after`` when the key could not be set.
    """
    name, state = args["name"].strip(), args.get("state") or "present"
    present = state == "present"
    value = _value(args.get("value"))
    if present and value == "":
        raise OperationError("state=present needs a value for %s" % name)
    path = os.path.realpath(files.expand(args.get("sysctl_file") or "/etc/sysctl.conf"))
    setting, reloading = bool(args.get("sysctl_set")), args.get("reload", True)

    before = kernel.read(name)
    content = files.read_bytes(path)
    old = "" if content is None else content.decode("utf-8", "surrogateescape")
    listed, wanted_text = _edit(old, name, value if present else None)
    in_force = before["value"] is not None and kernel.same(before["value"], value)
    writes_file = wanted_text is not None
    changed = writes_file or (present and (setting or reloading) and not in_force)
    result = {
        "name": name,
        "asked": value if present else None,
        "before": before["value"],
        "after": before["value"],
        "changed": changed,
        "file": path,
    }
    if context.diff and changed:
        result["diff"] = _diffs(path, content, wanted_text, result, setting and present and not in_force)

    if not present:
        result.update(status="file-only")
    elif in_force:
        result.update(status="already")
    elif not (setting or reloading):
        result.update(status="file-only")
    elif before["status"] == "absent":
        result.update(status="absent", errno="ENOENT")
        if setting and not args.get("ignoreerrors") and not context.check:
            result.update(changed=False)
            raise OperationError("this kernel has no %s here" % name, **result)
    elif context.check:
        result.update(status="would-apply" if before["writeable"] else "read-only")
    elif setting:
        status, code, now, sentence = kernel.write(name, value)
        result.update(status=status, after=now)
        if code:
            result["errno"] = code
        if status != "applied":
            result["changed"] = not kernel.same(now, before["value"])
            raise OperationError(sentence, **result)
    if writes_file and not context.check:
        _write(path, wanted_text)
    if changed and reloading and not context.check:
        _reload(path, args, result, context)
        now = kernel.read(name)["value"]
        result["after"] = now
        if present and not in_force and not setting:
            result["status"] = "applied" if now is not None and kernel.same(now, value) else "refused"
    result["msg"] = _sentence(result, listed, writes_file, context.check)
    return result


def _value(value):
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    text = str(value).strip()
    return "1" if text.lower() in _TRUE else "0" if text.lower() in _FALSE else text


def _edit(text, name, value):
    """The file with exactly one line for `name`, saying `value` (None: no line).

    A file whose last line for `name`, the one that counts, says `value` already is left alone. Other lines stay
    as they are, byte for byte; a missing final newline is added only when a line follows.

    :returns: ``(value listed before or None, new text or None when nothing is to be done)``.
    """
    lines = [(line, _listed(line, name)) for line in text.splitlines(True)]
    listed = [found for _line, found in lines if found is not None]
    last = listed[-1] if listed else None
    if last == value:
        return last, None
    kept, done = [], False
    for line, found in lines:
        if found is None:
            kept.append(line)
        elif value is not None and not done:
            kept.append("%s=%s\n" % (name, value))
            done = True
    if value is not None and not done:
        if kept and not kept[-1].endswith("\n"):
            kept[-1] += "\n"
        kept.append("%s=%s\n" % (name, value))
    return last, "".join(kept)


def _listed(line, name):
    """The value that a line of the file gives to `name`; None when it gives none."""
    bare = line.strip()
    if not bare or bare[0] in "#;" or "=" not in bare:
        return None
    key, _, found = bare.partition("=")
    return found.strip() if key.strip() == name else None


def _settings(text):
    """(key, value) of every line that ``sysctl -p`` would set, in order; of patterns, each key they mean."""
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        key = key.strip().lstrip("-")
        if not equals or not key or key[0] in "#;":
            continue
        try:
            path = kernel.key_path(key)
        except OperationError:
            continue
        for one in sorted(glob.glob(path)) if any(char in key for char in "*?[") else [path]:
            yield one[len(kernel.PROC_SYS) + 1 :], value.strip()


def _write(path, text):
    status = files.lstat(path)
    mode = 0o644 if status is None else stat.S_IMODE(status.st_mode)
    owner = (None, None) if status is None else (status.st_uid, status.st_gid)
    files.write_atomically(path, text.encode("utf-8", "surrogateescape"), mode, *owner)


def _reload(path, args, result, context):
    """``sysctl -p FILE``, as Ansible's default asks; its exit status alone is not trusted."""
    command = ["sysctl", "-p", path]
    if args.get("ignoreerrors"):
        command.insert(1, "-e")
    announced = []
    if journal.active():
        text = (files.read_bytes(path) or b"").decode("utf-8", "surrogateescape")
        for key, value in _settings(text):
            announced += kernel.announce(key, value)
    try:
        done = context.run_command(command, env=dict(os.environ, LC_ALL="C"))
    except OSError as error:
        raise OperationError("cannot run sysctl: %s" % error.strerror, **result)
    finally:
        kernel.settled(announced)
    out, err = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    complaint = re.search(r'^sysctl: setting key "[^"]+".*: .+$', err, re.MULTILINE)
    if done.returncode != 0 or complaint:
        raise OperationError("failed to reload sysctl: %s" % (err or out).strip(), **result)


def _diffs(path, content, wanted_text, result, sets):
    diffs = []
    if wanted_text is not None:
        after = wanted_text.encode("utf-8", "surrogateescape")
        diffs.append(files.content_diff(path, content, after))
    if sets:
        where = kernel.key_path(result["name"])
        diffs.append(
            {
                "before": "" if result["before"] is None else result["before"] + "\n",
                "after": result["asked"] + "\n",
                "before_header": where,
                "after_header": where,
            }
        )
    return diffs


def _sentence(result, listed, writes_file, check):
    if not result["changed"]:
        if result["asked"] is None:
            return "%s has no line for %s" % (result["file"], result["name"])
        return "%s is already %s" % (result["name"], result["asked"])
    would = "would be " if check else ""
    parts = []
    if writes_file:
        parts.append("%s%s in %s" % (would, "written" if listed is None else "changed", result["file"]))
    if result["status"] in ("applied", "would-apply"):
        parts.append("%s -> %s" % (result["before"], result["asked"]))
    elif result["status"] == "already":
        parts.append("in force it is already %s" % result["asked"])
    return ", ".join(parts) or result["status"]
