"""Which modules there are, under which names, and which arguments each takes.

One row per module; `parse` checks a playbook against it, `actions` says what each does. The names and
meanings of modules and arguments are Ansible's. To add a module: a row here, one in `actions`, and its
operation in payload/operations.
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

TRUE_WORDS = frozenset(("y", "yes", "on", "1", "true", "t", "1.0"))
FALSE_WORDS = frozenset(("n", "no", "off", "0", "false", "f", "0.0"))


@dataclass(frozen=True)
class Argument:
    """One argument of a module.

    :ivar kind: str, bool, int, float, list, dict, mode, lines (text or list of texts) or any.
    :ivar choices: the values allowed, when not all are.
    """

    kind: str = "str"
    required: bool = False
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Module:
    """One module.

    :ivar full_name: as ansible-doc lists it.
    :ivar free_form: the argument that takes ``module: text`` (command and its kin), or None when such text
        is ``key=value`` pairs.
    :ivar one_of: groups of which at least one member must be given.
    :ivar exclusive: groups of which at most one member may be given.
    :ivar open: any argument name is fine (set_fact).
    """

    full_name: str
    arguments: Mapping[str, Argument]
    free_form: str | None = None
    one_of: tuple[tuple[str, ...], ...] = ()
    exclusive: tuple[tuple[str, ...], ...] = ()
    open: bool = False
    names: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The short name."""
        return self.full_name.rsplit(".", 1)[1]

    def canonical(self, argument: str) -> str | None:
        """The argument's own name for it or one of its aliases; None when there is no such argument."""
        if argument in self.arguments:
            return argument
        return next((name for name, row in self.arguments.items() if argument in row.aliases), None)


_OWNERSHIP = {"mode": Argument("mode"), "owner": Argument(), "group": Argument()}
_PLACING = {
    **_OWNERSHIP,
    "backup": Argument("bool"),
    "force": Argument("bool"),
    "follow": Argument("bool"),
    "validate": Argument(),
}
_EDITING = {
    **_OWNERSHIP,
    "path": Argument(required=True, aliases=("dest", "destfile", "name")),
    "state": Argument(choices=("absent", "present")),
    "insertafter": Argument(),
    "insertbefore": Argument(),
    "create": Argument("bool"),
    "backup": Argument("bool"),
    "validate": Argument(),
}
_TAGS = ("block", "variable", "comment")
_COMMAND = {
    "cmd": Argument(),
    "chdir": Argument(),
    "creates": Argument(),
    "removes": Argument(),
    "stdin": Argument(),
    "stdin_add_newline": Argument("bool"),
    "strip_empty_ends": Argument("bool"),
    "expand_argument_vars": Argument("bool"),
}

_MODULES = (
    Module("ansible.builtin.ping", {"data": Argument()}),
    Module(
        "ansible.builtin.setup",
        {"gather_subset": Argument("list"), "filter": Argument("list")},
        names=("gather_facts", "ansible.builtin.gather_facts"),
    ),
    Module(
        "ansible.builtin.command",
        {**_COMMAND, "argv": Argument("list")},
        free_form="cmd",
        one_of=(("cmd", "argv"),),
        exclusive=(("cmd", "argv"),),
    ),
    Module("ansible.builtin.shell", {**_COMMAND, "executable": Argument()}, free_form="cmd", one_of=(("cmd",),)),
    Module(
        "ansible.builtin.stat",
        {
            "path": Argument(required=True, aliases=("dest", "name")),
            "follow": Argument("bool"),
            "get_checksum": Argument("bool"),
            "get_mime": Argument("bool", aliases=("mime", "mime_type", "mime-type")),
            "get_attributes": Argument("bool", aliases=("attr", "attributes")),
            "checksum_algorithm": Argument(
                choices=("md5", "sha1", "sha224", "sha256", "sha384", "sha512"),
                aliases=("checksum", "checksum_algo"),
            ),
        },
    ),
    Module("ansible.builtin.slurp", {"src": Argument(required=True, aliases=("path",))}),
    Module(
        "ansible.builtin.copy",
        {
            **_PLACING,
            "dest": Argument(required=True),
            "src": Argument(),
            "content": Argument("any"),
            "checksum": Argument(),
            "directory_mode": Argument("mode"),
            "local_follow": Argument("bool"),
            "remote_src": Argument("bool"),
        },
        one_of=(("src", "content"),),
        exclusive=(("src", "content"),),
    ),
    Module(
        "ansible.builtin.template",
        {
            **_PLACING,
            "dest": Argument(required=True),
            "src": Argument(required=True),
            "trim_blocks": Argument("bool"),
            "lstrip_blocks": Argument("bool"),
            **{f"{part}_{side}_string": Argument() for part in _TAGS for side in ("start", "end")},
            "output_encoding": Argument(),
            "newline_sequence": Argument(choices=("\\n", "\\r", "\\r\\n", "\n", "\r", "\r\n")),
        },
    ),
    Module(
        "ansible.builtin.lineinfile",
        {
            **_EDITING,
            "line": Argument(aliases=("value",)),
            "regexp": Argument(aliases=("regex",)),
            "search_string": Argument(),
            "backrefs": Argument("bool"),
            "firstmatch": Argument("bool"),
        },
        exclusive=(("insertafter", "insertbefore"), ("regexp", "search_string"), ("backrefs", "search_string")),
        one_of=(("line", "regexp", "search_string"),),
    ),
    Module(
        "ansible.builtin.blockinfile",
        {
            **_EDITING,
            "block": Argument(aliases=("content",)),
            "marker": Argument(),
            "marker_begin": Argument(),
            "marker_end": Argument(),
            "append_newline": Argument("bool"),
            "prepend_newline": Argument("bool"),
        },
        exclusive=(("insertafter", "insertbefore"),),
    ),
    Module(
        "ansible.builtin.fetch",
        {
            "src": Argument(required=True),
            "dest": Argument(required=True),
            "flat": Argument("bool"),
            "fail_on_missing": Argument("bool"),
            "validate_checksum": Argument("bool"),
        },
    ),
    Module(
        "ansible.builtin.file",
        {
            **_OWNERSHIP,
            "path": Argument(required=True, aliases=("dest", "name")),
            "state": Argument(choices=("absent", "directory", "file", "hard", "link", "touch")),
            "src": Argument(),
            "recurse": Argument("bool"),
            "force": Argument("bool"),
            "follow": Argument("bool"),
            "access_time": Argument(),
            "access_time_format": Argument(),
            "modification_time": Argument(),
            "modification_time_format": Argument(),
        },
    ),
    Module(
        "ansible.builtin.systemd_service",
        {
            "name": Argument(aliases=("service", "unit")),
            "state": Argument(choices=("reloaded", "restarted", "started", "stopped")),
            "enabled": Argument("bool"),
            "masked": Argument("bool"),
            "daemon_reload": Argument("bool", aliases=("daemon-reload",)),
            "daemon_reexec": Argument("bool", aliases=("daemon-reexec",)),
            "scope": Argument(choices=("system", "user", "global")),
            "no_block": Argument("bool"),
            "force": Argument("bool"),
        },
        names=("systemd", "ansible.builtin.systemd"),
        one_of=(("state", "enabled", "masked", "daemon_reload", "daemon_reexec"),),
    ),
    Module(
        "ansible.builtin.wait_for",
        {
            "host": Argument(),
            "port": Argument("int"),
            "path": Argument(),
            "state": Argument(choices=("absent", "drained", "present", "started", "stopped")),
            "active_connection_states": Argument("list"),
            "exclude_hosts": Argument("list"),
            "timeout": Argument("int"),
            "delay": Argument("int"),
            "sleep": Argument("int"),
            "connect_timeout": Argument("int"),
            "search_regex": Argument(),
            "msg": Argument(),
        },
        exclusive=(("port", "path"),),
    ),
    Module(
        "ansible.builtin.debug",
        {"msg": Argument("any"), "var": Argument(), "verbosity": Argument("int")},
        exclusive=(("msg", "var"),),
    ),
    Module("ansible.builtin.fail", {"msg": Argument()}),
    Module(
        "ansible.builtin.assert",
        {
            "that": Argument("list", required=True),
            "fail_msg": Argument("lines", aliases=("msg",)),
            "success_msg": Argument("lines"),
            "quiet": Argument("bool"),
        },
    ),
    Module("ansible.builtin.set_fact", {}, open=True),
    Module(
        "ansible.builtin.meta",
        {"action": Argument(required=True, choices=("flush_handlers", "noop"))},
        free_form="action",
    ),
    Module(
        "ansible.posix.sysctl",
        {
            "name": Argument(required=True, aliases=("key",)),
            "value": Argument(aliases=("val",)),
            "state": Argument(choices=("present", "absent")),
            "reload": Argument("bool"),
            "sysctl_set": Argument("bool"),
            "sysctl_file": Argument(),
            "ignoreerrors": Argument("bool"),
        },
    ),
    Module(
        "community.general.pam_limits",
        {
            "domain": Argument(required=True),
            "limit_type": Argument(required=True, choices=("hard", "soft", "-")),
            "limit_item": Argument(
                required=True,
                choices=(
                    "core", "data", "fsize", "memlock", "nofile", "rss", "stack", "cpu", "nproc", "as",
                    "maxlogins", "maxsyslogins", "priority", "locks", "sigpending", "msgqueue", "nice",
                    "rtprio", "chroot",
                ),
            ),
            "value": Argument(required=True),
            "use_max": Argument("bool"),
            "use_min": Argument("bool"),
            "backup": Argument("bool"),
            "dest": Argument(),
            "comment": Argument(),
        },
        exclusive=(("use_max", "use_min"),),
    ),
)  # fmt: skip


def _index() -> dict[str, Module]:
    table: dict[str, Module] = {}
    for module in _MODULES:
        for name in (module.full_name, module.name, *module.names):
            table[name] = module
            if module.full_name.startswith("ansible.builtin."):
                table["ansible.legacy." + name.rsplit(".", 1)[-1]] = module
    return table


MODULES: Mapping[str, Module] = _index()


def short_names() -> list[str]:
    """The modules' names as a message lists them: short for built-in ones, full for the others."""
    return sorted(
        module.name if module.full_name.startswith("ansible.builtin.") else module.full_name for module in _MODULES
    )


def suggest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` when a known word is close, else an empty text."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def coerce(argument: Argument, value: Any) -> Any:
    """A value as the argument's kind, with Ansible's conversions.

    :raises ValueError: with what would be right, when it cannot be converted or is no choice.
    """
    converted = _CONVERT[argument.kind](value)
    if argument.choices and converted not in argument.choices:
        raise ValueError("must be one of " + ", ".join(choice.replace("\n", "\\n") for choice in argument.choices))
    return converted


def to_bool(value: Any) -> bool:
    """Ansible's idea of true and false: words, 0 and 1.

    :raises ValueError: for anything else.
    """
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError("must be true or false")


def _to_int(value: Any) -> int:
    try:
        number = Decimal(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError
        return int(number)
    except (ArithmeticError, TypeError, ValueError):
        raise ValueError("must be a whole number") from None


def _to_str(value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise ValueError("must be text")
    return value if isinstance(value, str) else str(value)


_SCALARS = (int, float, datetime.date)  # what YAML makes of words in a list of texts


def _to_list(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [str(one) if isinstance(one, _SCALARS) and not isinstance(one, bool) else one for one in value]
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if isinstance(value, (int, float)):
        return [str(value)]
    raise ValueError("must be a list")


def _to_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be a mapping")
    return value


def _to_mode(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("must be octal text such as '0644'")
    return value


def _to_lines(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return value
    raise ValueError("must be text or a list of texts")


_CONVERT: Mapping[str, Any] = {
    "str": _to_str,
    "bool": to_bool,
    "int": _to_int,
    "list": _to_list,
    "dict": _to_dict,
    "mode": _to_mode,
    "lines": _to_lines,
    "any": lambda value: value,
}
