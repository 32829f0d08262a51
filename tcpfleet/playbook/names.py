"""Finds variables that nothing can define, before anything runs.

A name counts as defined when the inventory, a play, a vars file, ``-e``, a fact, a ``register``, a
``set_fact`` or a loop may give it a value. A name that its task guards (``x | default(..)``,
``x is defined``) is left alone, in all of the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes

from tcpfleet.playbook import template
from tcpfleet.playbook.catalogue import suggest
from tcpfleet.playbook.model import Play, Task
from tcpfleet.playbook.source import Problems, Where, where_of

_GUARD_FILTERS = ("default", "d", "mandatory")
_GUARD_TESTS = ("defined", "undefined")
_GLOBALS = frozenset(("range", "dict", "namespace", "omit", "hostvars", "ansible_facts"))


def check_names(
    play: Play,
    layers: Sequence[Mapping[str, Any]],
    known: set[str],
    problems: Problems,
) -> None:
    """Adds a problem for every use of a name that nothing defines.

    :param layers: variables of the play whose values are templates: vars_files and vars, strongest first.
    :param known: names that inventory, ``-e``, magic, earlier plays' registers and the like define.
    """
    tasks = [*play.tasks, *play.handlers]
    everywhere = known | _GLOBALS | {name for layer in layers for name in layer} | set(given_names(play))
    facts = play.gather_facts or any(task.module.name == "setup" for task in tasks)
    for task in tasks:
        scope = everywhere | set(task.vars)
        if task.loop is not None:
            scope |= {task.loop.variable, "ansible_loop_var", *filter(None, [task.loop.index])}
        uses = list(_uses(task))
        guarded = {name for source, condition, _where in uses for name in _guarded(source, condition)}
        reported: set[str] = set()
        for source, condition, where in uses:
            _check(source, condition, where, (task.vars, *layers), scope, guarded, facts, problems, reported)


def given_names(play: Play) -> Iterator[str]:
    """Names that the tasks of a play define: register and set_fact."""
    for task in (*play.tasks, *play.handlers):
        if task.register:
            yield task.register
        if task.module.name == "set_fact":
            yield from task.args


def _check(
    source: str,
    condition: bool,
    where: Where,
    layers: Sequence[Mapping[str, Any]],
    known: set[str],
    guarded: set[str],
    facts: bool,
    problems: Problems,
    seen: set[str],
) -> None:
    """One template, and the variables it is made of."""
    for name in sorted(_free(source, condition)):
        if name in seen or name in guarded:
            continue
        seen.add(name)
        if name not in known and not (facts and name.startswith("ansible_")):
            hint = suggest(name, known)
            problems.add(where, f"'{name}' is undefined: no vars, inventory, fact, register or -e gives it{hint}")
            continue
        layer = next((layer for layer in layers if name in layer), None)
        if layer is not None:
            for text, text_where in _strings(layer[name], where):
                inner = guarded | _guarded(text, False)
                _check(text, False, text_where, layers, known, inner, facts, problems, seen)


def _uses(task: Task) -> Iterator[tuple[str, bool, Where]]:
    """(template or expression, whether it is an expression, place) of everything a task evaluates."""
    conditions = [*task.when, *(task.changed_when or ()), *(task.failed_when or ())]
    args: Any = task.args
    if task.module.name == "assert":
        that = task.args.get("that", ())
        conditions += that if isinstance(that, list) else [that]
        args = {key: value for key, value in task.args.items() if key != "that"}
    for condition in conditions:
        if isinstance(condition, str):
            yield condition, True, where_of(condition, task.where)
    plain = [args, task.become, task.become_user, task.check_mode, task.ignore_errors, task.no_log]
    plain += [dict(task.environment), list(task.notify)]
    if task.loop is not None:
        plain += [task.loop.items, task.loop.label]
    for value in plain:
        for text, where in _strings(value, task.where):
            yield text, False, where


def _strings(value: Any, where: Where) -> Iterator[tuple[str, Where]]:
    if template.is_template(value):
        yield value, where_of(value, where)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _strings(key, where)
            yield from _strings(one, where_of(key, where))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _strings(one, where)


def _tree(source: str, condition: bool) -> nodes.Template | None:
    try:
        return template.parse_tree(source, condition)
    except TemplateSyntaxError:
        return None  # reported by the parser


def _free(source: str, condition: bool) -> set[str]:
    """Names a template uses and does not set itself."""
    tree = _tree(source, condition)
    return set() if tree is None else meta.find_undeclared_variables(tree)


def _guarded(source: str, condition: bool) -> set[str]:
    """Names under ``default`` or ``is defined``."""
    tree = _tree(source, condition)
    if tree is None:
        return set()
    guards: list[nodes.Node | None] = [
        node.node for node in tree.find_all(nodes.Filter) if node.name in _GUARD_FILTERS
    ]
    guards += [node.node for node in tree.find_all(nodes.Test) if node.name in _GUARD_TESTS]
    found: set[str] = set()
    for guard in guards:
        while isinstance(guard, (nodes.Getattr, nodes.Getitem)):
            guard = guard.node
        if isinstance(guard, nodes.Name):
            found.add(guard.name)
    return found
