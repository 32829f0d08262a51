"""What each module does: on the controller, and as an operation on the host.

An action gets arguments that are rendered and of the right kind, and returns a `Call` (which operation to run
on the host, with which arguments), a finished result, or a `Conversation` for what takes several operations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import search, syntax, template, transfers
from tcpfleet.playbook.calls import ActionFailed, Call, Conversation
from tcpfleet.playbook.catalogue import to_bool
from tcpfleet.playbook.source import Where, where_of
from tcpfleet.playbook.template import Names


@dataclass(frozen=True)
class Setting:
    """Where a task runs: its variables, place, the playbook's folder, the host's name, the modes in force."""

    names: Names
    where: Where
    folder: Path
    host: str
    check: bool = False
    diff: bool = False


__all__ = ["ACTIONS", "Action", "ActionFailed", "Call", "Conversation", "Setting"]

Action = Callable[[Mapping[str, Any], Setting], "Call | Conversation | dict[str, Any]"]


def _find(source: str, kind: str, setting: Setting) -> Path:
    """A file or folder on the controller, found as Ansible does; `kind` is ``files`` or ``templates``.

    :raises ActionFailed: naming the places looked at.
    """
    folders = setting.names.folders
    found = search.find(source, kind, folders)
    if found is None:
        looked = ", ".join(map(str, search.places(source, kind, folders)))
        raise ActionFailed(f"could not find '{source}' on the controller; looked at {looked}")
    return found


def _copy(args: Mapping[str, Any], setting: Setting) -> Call | Conversation:
    own = ("src", "content", "remote_src", "local_follow")
    wire = {key: value for key, value in args.items() if key not in own}
    if args.get("remote_src"):
        if "content" in args:
            raise ActionFailed("remote_src copies a file of the host: it needs src, not content")
        return Call("copy", dict(args))
    preserve = args.get("mode") == "preserve"
    if preserve:
        del wire["mode"]
    if "content" in args:
        if preserve:
            raise ActionFailed("mode: preserve needs src, there is no mode to take over from content")
        return Call("copy", {**wire, "content_b64": transfers.encoded(_content(args["content"]))})
    path = _find(args["src"], "files", setting)
    if path.is_dir():
        if "checksum" in wire:
            raise ActionFailed(f"checksum is for one file, and {path} is a directory")
        found = transfers.tree(path, args["src"].endswith("/"), args.get("local_follow", True))
        if found.directories:  # only a plain file of the host may be reached through a symlink
            wire.pop("follow", None)
        return transfers.send_tree(path, found, wire, preserve)
    if "checksum" in wire and wire["checksum"] != transfers.checksum(path):
        raise ActionFailed(f"{path} has the checksum {transfers.checksum(path)}, and not {wire['checksum']}")
    wire["basename"] = path.name
    if preserve:
        wire["mode"] = transfers.mode_of(path)
    return _send(path, wire)


def _send(path: Path, wire: Mapping[str, Any]) -> Call | Conversation:
    """One file of the controller, in one call when it is small."""
    try:
        large = path.stat().st_size > transfers.SMALL
    except OSError as error:
        raise ActionFailed(f"cannot read {path} on the controller: {error.strerror}") from None
    if large:
        return transfers.send_file(path, wire)
    return Call("copy", {**wire, "content_b64": transfers.encoded(transfers.read(path))})


def _content(content: Any) -> bytes:
    """What ``content`` means: text as it is, a mapping or list as JSON, anything else as Python writes it."""
    if not isinstance(content, (dict, list)):
        return str(content).encode("utf-8")
    try:
        return json.dumps(content).encode("utf-8")
    except TypeError as error:
        raise ActionFailed(f"content cannot be written as JSON: {error}") from None


def _fetch(args: Mapping[str, Any], setting: Setting) -> Conversation | dict[str, Any]:
    if setting.check:
        return {"changed": False, "skipped": True, "msg": "check mode not (yet) supported for this module"}
    return transfers.fetch(
        args["src"],
        args,
        setting.folder,
        setting.host,
        args.get("fail_on_missing", True),
        args.get("validate_checksum", True),
    )


def _template(args: Mapping[str, Any], setting: Setting) -> Call:
    path = _find(args["src"], "templates", setting)
    try:
        source = transfers.read(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ActionFailed(f"{path} is not UTF-8 text") from None
    try:
        wanted = syntax.of_arguments(args)
    except ValueError as error:
        raise ActionFailed(f"template: {error}") from None
    text = template.render_file(source, str(path), setting.names, wanted)
    own = ("src", "output_encoding", *syntax.ARGUMENTS)
    wire = {key: value for key, value in args.items() if key not in own}
    if wire.get("mode") == "preserve":
        wire["mode"] = transfers.mode_of(path)
    # A template called x.conf.j2 that goes to a folder keeps its name, as in Ansible.
    wire["basename"] = path.name
    encoding = args.get("output_encoding", "utf-8")
    try:
        data = text.encode(encoding)
    except LookupError:
        raise ActionFailed(f"output_encoding '{encoding}' is no encoding that Python knows") from None
    except UnicodeEncodeError as error:
        raise ActionFailed(f"{path} holds what {encoding} cannot express: {error}") from None
    wire["content_b64"] = transfers.encoded(data)
    return Call("copy", wire)


def _as_is(operation: str) -> Action:
    """A module whose arguments are those of its operation."""
    return lambda args, setting: Call(operation, dict(args))


def _debug(args: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    if args.get("verbosity", 0) > 0:
        return {"changed": False, "skipped": True, "msg": "", "skipped_reason": "Verbosity threshold not met."}
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
    facts = dict(args)
    try:
        cacheable = to_bool(facts.pop("cacheable", False))
    except ValueError as error:
        raise ActionFailed(f"set_fact: cacheable {error}") from None
    if cacheable:
        raise ActionFailed("set_fact: cacheable is not supported: facts are kept for one run, there is no cache")
    if not facts:
        raise ActionFailed("set_fact: no key/value pairs provided, at least one is required")
    return {"changed": False, "ansible_facts": facts, "msg": ""}


# module name -> action; meta is the engine's own.
ACTIONS: Mapping[str, Action] = {
    "assert": _assert,
    "blockinfile": _as_is("blockinfile"),
    "command": _as_is("command"),
    "copy": _copy,
    "debug": _debug,
    "fail": _fail,
    "fetch": _fetch,
    "file": _as_is("file"),
    "lineinfile": _as_is("lineinfile"),
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
