"""Fills in connection variables that hold Jinja2, such as ``{{ inventory_dir }}/../.lab/id_ed25519``.

Only what is needed to reach a host, before any task runs: the host's own variables and Ansible's magic
ones. Templates run in Jinja2's sandbox, which keeps them from Python's internals.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from .connection import is_template

MAX_CHAIN = 20
MAX_TEMPLATE = 65536


class _Environment(jinja2.sandbox.SandboxedEnvironment):
    """The sandbox, without the operators that make much out of little."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply numbers that are at home in a port or a name; refuse the rest."""
        if operator == "*" and all(isinstance(side, (int, float)) and abs(side) < 1e9 for side in (left, right)):
            return left * right
        raise jinja2.exceptions.SecurityError(f"{operator} is only supported between small numbers, as *")


_environment = _Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
# Statements that loop or read other files: nothing that reaching a host needs.
_REFUSED = (
    jinja2.nodes.For,
    jinja2.nodes.Macro,
    jinja2.nodes.CallBlock,
    jinja2.nodes.Include,
    jinja2.nodes.Import,
    jinja2.nodes.FromImport,
    jinja2.nodes.Extends,
)


@functools.lru_cache(maxsize=1024)
def _compile(text: str) -> tuple[jinja2.Template, frozenset[str]]:
    """`text` compiled, and the variables it uses; a fleet shares few templates among many hosts."""
    tree = _environment.parse(text)
    if next(tree.find_all(_REFUSED), None):
        raise ValueError("a template of a connection variable cannot have loops, macros or includes")
    return _environment.from_string(text), frozenset(jinja2.meta.find_undeclared_variables(tree))


def fill_in(value: Any, variables: Mapping[str, Any], chain: tuple[str, ...] = ()) -> Any:
    """`value` with every template in it replaced by its text; variables may be templates themselves.

    :param chain: names of the variables being filled in, outermost first.
    :returns: new lists and dicts; text for every template.
    :raises ValueError: with a sentence: not valid, an unknown variable, a loop.
    """
    if isinstance(value, dict):
        return {key: fill_in(item, variables, chain) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_in(item, variables, chain) for item in value]
    if not is_template(value):
        return value
    if len(chain) > MAX_CHAIN:
        raise ValueError(f"templates refer to each other more than {MAX_CHAIN} times: {' > '.join(chain[:5])} ...")
    if len(value) > MAX_TEMPLATE:
        raise ValueError(f"this template is longer than {MAX_TEMPLATE} characters")
    context = {}
    try:
        template, names = _compile(value)
        for name in names:
            if name in chain:
                raise ValueError(f"the template of {name!r} refers to itself")
            if name in variables:
                context[name] = fill_in(variables[name], variables, (*chain, name))
        return template.render(context)
    except jinja2.TemplateError as error:
        raise ValueError(f"this template cannot be filled in: {error.message or type(error).__name__}") from error
    except (TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(f"this template cannot be filled in: {type(error).__name__}") from error
