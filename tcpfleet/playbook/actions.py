"""What each module does: on the controller, and as an operation on the host.

An action gets arguments that are rendered and of the right kind, and returns either a `Call` (which operation
to run on the host, with which arguments) or a finished result.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import template
from tcpfleet.playbook.source import Where, where_of
from tcpfleet.playbook.template import Names


class ActionFailed(Exception):
    """A task fails on the controller, with the sentence that says why."""


@dataclass(frozen=True)
class Call:
    """An operation of the payload and its arguments."""

    operation: str
    args: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where a task runs: its variables, place, and the playbook's folder."""

    names: Names
    where: Where
    folder: Path


Action = Callable[[Mapping[str, Any], Setting], "Call | dict[str, Any]"]


def find_file(source: str, kind: str, folder: Path) -> Path:
    """A file on the controller, searched as Ansible does: in `kind`/ beside the playbook, then beside it.

    :param kind: ``files`` or ``templates``.
    :raises ActionFailed: naming the places looked at.
    """
    given = Path(source).expanduser()
    places = [given] if given.is_absolute() else [folder / kind / given, folder / given]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise ActionFailed(
            f"could not find '{source}' on the controller; looked at " + ", ".join(map(str, places))
        )
    return found


def _copy(args: Mapping[str, Any], setting: Setting) -> Call:
    wire = {key: value for key, value in args.items() if key not in ("src", "content")}
    if "content" in args:
        content = args["content"]
        text = content if isinstance(content, str) else json.dumps(content)
        data = text.encode("utf-8")
    else:
        path = find_file(args["src"], "files", setting.folder)
        if path.is_dir():
            raise ActionFailed(f"{path} is a directory; copy takes one file here: loop over the files")
        data = _read(path)
        wire["basename"] = path.name
        if wire.get("mode") == "preserve":
            wire["mode"] = f"{path.stat().st_mode & 0o7777:04o}"
    if wire.get("mode") == "preserve":
        raise ActionFailed("mode: preserve needs src, there is no mode to take over from content")
    wire["content_b64"] = base64.b64encode(data).decode("ascii")
    return Call("copy", wire)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ActionFailed(f"cannot read {path} on the controller: {error.strerror}") from None


_NEWLINES = {"\\n": "\n", "\\r": "\r", "\\r\\n": "\r\n"}


def _template(args: Mapping[str, Any], setting: Setting) -> Call:
    path = find_file(args["src"], "templates", setting.folder)
    try:
        source = _read(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ActionFailed(f"{path} is not UTF-8 text") from None
    newline = args.get("newline_sequence", "\n")
    text = template.render_file(
        source,
        str(path),
        setting.names,
        trim_blocks=args.get("trim_blocks", True),
        lstrip_blocks=args.get("lstrip_blocks", False),
        newline=_NEWLINES.get(newline, newline),
    )
    own = ("src", "trim_blocks", "lstrip_blocks", "newline_sequence")
    wire = {key: value for key, value in args.items() if key not in own}
    if wire.get("mode") == "preserve":
        wire["mode"] = f"{path.stat().st_mode & 0o7777:04o}"
    # A template called x.conf.j2 that goes to a folder keeps its name, as in Ansible.
    wire["basename"] = path.name
    wire["content_b64"] = base64.b64encode(text.encode("utf-8")).decode("ascii")
    return Call("copy", wire)


def _as_is(operation: str) -> Action:
    """A module whose arguments are those of its operation."""
    return lambda args, setting: Call(operation, dict(args))


def _debug(args: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    if "var" in args:
        name = str(args["var"])
        expression = "{{ " + name + " }}"
        try:
            value = template.render(expression, setting.names, setting.where)
        except LocatedError:
            value = "VARIABLE IS NOT DEFINED!"
        return {"changed": False, name: value, "msg": ""}
    return {"changed": False, "msg": args.get("msg", "Hello world!")}


def _fail(args: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    return {"changed": False, "failed": True, "msg": args.get("msg", "Failed as requested from task")}


def _assert(args: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    for condition in args["that"]:
        if not template.holds(condition, setting.names, where_of(condition, setting.where)):
            return {
                "changed": False,
                "failed": True,
                "assertion": condition,
                "evaluated_to": False,
                "msg": args.get("fail_msg", f"Assertion failed: {condition}"),
            }
    return {"changed": False, "msg": args.get("success_msg", "All assertions passed")}


def _set_fact(args: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    return {"changed": False, "ansible_facts": dict(args), "msg": ""}


# module name -> action; meta is the engine's own.
ACTIONS: Mapping[str, Action] = {
    "assert": _assert,
    "command": _as_is("command"),
    "copy": _copy,
    "debug": _debug,
    "fail": _fail,
    "file": _as_is("file"),
    "pam_limits": _as_is("pam_limits"),
    "ping": _as_is("ping"),
    "set_fact": _set_fact,
    "setup": _as_is("setup"),
    "shell": _as_is("shell"),
    "slurp": _as_is("slurp"),
    "stat": _as_is("stat"),
    "sysctl": _as_is("sysctl"),
    "systemd_service": _as_is("systemd"),
    "template": _template,
    "wait_for": _as_is("wait_for"),
}
