"""The tables of docs/ansible.md, from what the parser goes by: `python -m tests.parity.doc_tables` writes them.

A test fails when the page says anything else.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tcpfleet.inventory import connection
from tcpfleet.playbook import lookups
from tcpfleet.playbook.catalogue import MODULES, Module
from tcpfleet.playbook.filters import FILTERS
from tcpfleet.playbook.filters_tests import TESTS
from tcpfleet.playbook.parse import _BLOCK_KEYS, _LOOP_KEYS, _PLAY_KEYS, _TASK_KEYS
from tests.running import ROOT

PAGE = ROOT / "docs/ansible.md"


def modules() -> str:
    """Module, arguments: required ones in bold, aliases in brackets."""
    rows = ["| module | arguments |", "|---|---|"]
    for module in {one.full_name: one for one in MODULES.values()}.values():
        others = [name.rsplit(".", 1)[-1] for name in module.names if "." not in name]
        name = f"`{_short(module)}`" + "".join(f", `{other}`" for other in others)
        rows.append(f"| {name} | {_arguments(module)} |")
    return "\n".join(rows)


def _short(module: Module) -> str:
    return module.name if module.full_name.startswith("ansible.builtin.") else module.full_name


def _arguments(module: Module) -> str:
    if module.open:
        return "any names"
    words = []
    for name, argument in module.arguments.items():
        shown = f"**{name}**" if argument.required else name
        words.append(shown + (f" ({', '.join(argument.aliases)})" if argument.aliases else ""))
    return ", ".join(words)


def keys() -> str:
    """What plays, blocks and tasks may say."""
    lines = (
        f"* play: {_listed(_PLAY_KEYS)}",
        f"* task: {_listed(_TASK_KEYS)}, with `loop_control`: {_listed(_LOOP_KEYS)}",
        f"* block: {_listed(_BLOCK_KEYS)}",
        "* handler: as a task, and `listen`",
        "* `import_tasks` among tasks and handlers, `import_playbook` among plays",
    )
    return "\n".join(_wrapped(line, indent="  ") for line in lines)


def filters() -> str:
    """Jinja2's own filters and tests, and Ansible's; and lookups."""
    return "\n\n".join(
        _wrapped(f"{what}: {_listed(sorted(names))}.")
        for what, names in (
            ("Filters, beside all of Jinja2's", FILTERS),
            ("Tests, beside all of Jinja2's", TESTS),
            ("Lookups, also with `query` or `q`", lookups._LOOKUPS),
        )
    )


def connections() -> str:
    """The connection variables of inventories."""
    return _wrapped(f"{_listed(connection.SUPPORTED)}.")


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 115, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


TABLES: Mapping[str, Callable[[], str]] = {
    "keys": keys,
    "modules": modules,
    "filters": filters,
    "connection variables": connections,
}


def with_tables(page: str) -> str:
    """The page with every table as it should be; a table stands between two comments that name it."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        count = page.count(start) * page.count(end)
        if count != 1:
            raise AssertionError(f"docs/ansible.md has {count} places for the table '{name}'")
        before, rest = page.split(start)
        page = f"{before}{start}{table()}\n{end}{rest.split(end)[1]}"
    return page


def write(path: Path = PAGE) -> None:
    """Brings the page up to date."""
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
