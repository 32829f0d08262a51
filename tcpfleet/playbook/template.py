"""Jinja2 as Ansible uses it: native types, strict about undefined variables, errors with a place.

A string that is one expression (``"{{ x }}"``) renders to that expression's value, whatever its type; any
other mix renders to text. What comes from hosts (facts, results) is never itself taken as a template.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2 import nativetypes, runtime, sandbox
from jinja2.utils import missing

from tcpfleet.errors import LocatedError
from tcpfleet.playbook.filters import FILTERS, TESTS
from tcpfleet.playbook.source import Text, Where, where_of


class _Omit:
    """The value of ``omit``: an argument that renders to it is as if not given."""

    def __repr__(self) -> str:
        return "omit"


OMIT = _Omit()


class Names(Protocol):
    """Where templates look variables up."""

    def lookup(self, name: str) -> Any:
        """The value of a variable, rendered. :raises KeyError: when there is none."""


class TemplateFailure(LocatedError):
    """A template that does not parse or cannot be rendered, with its place."""


class UndefinedVariable(TemplateFailure):
    """A template that uses a variable without a value."""


class Undefined(jinja2.StrictUndefined):
    """Strict, but ``a.b.c | default(x)`` may have the first missing part anywhere, as in Ansible."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> Any:
        return self


class _Context(runtime.Context):
    """A Jinja context that asks `Names` for each variable when it is used, not before."""

    names: Names

    def resolve_or_missing(self, key: str) -> Any:
        if key in self.vars:
            return self.vars[key]
        try:
            return self.names.lookup(key)
        except KeyError:
            return self.environment.globals.get(key, missing)
        except UndefinedVariable as error:
            # A variable made of an undefined one is undefined itself: `default` may still rescue it.
            return Undefined(hint=str(error), name=key)


def _native(values: Iterable[Any]) -> Any:
    """Joins what a template yields: one value stays what it is, several become text."""
    head = list(islice(values, 2))
    if not head:
        return ""
    if len(head) == 1:
        if isinstance(head[0], Undefined):
            head[0]._fail_with_undefined_error()
        return head[0]
    return "".join(str(value) for value in head) + "".join(str(value) for value in values)


class _NativeEnvironment(sandbox.SandboxedEnvironment, nativetypes.NativeEnvironment):
    """Native types, and no way from a template to Python's internals."""

    concat = staticmethod(_native)


def _prepare(environment: jinja2.Environment) -> jinja2.Environment:
    environment.filters.update(FILTERS)
    environment.tests.update(TESTS)
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    environment.context_class = _Context
    return environment


_OPTIONS: dict[str, Any] = {"undefined": Undefined, "extensions": ["jinja2.ext.do", "jinja2.ext.loopcontrols"]}
# autoescape is for HTML; these templates make configuration files and arguments.
_VALUES = _prepare(_NativeEnvironment(**_OPTIONS))


@lru_cache(maxsize=8)
def _file_environment(trim_blocks: bool, lstrip_blocks: bool, newline: str) -> jinja2.Environment:
    return _prepare(
        sandbox.SandboxedEnvironment(
            trim_blocks=trim_blocks,
            lstrip_blocks=lstrip_blocks,
            newline_sequence=newline,
            keep_trailing_newline=True,
            **_OPTIONS,
        )
    )


def is_template(value: object) -> bool:
    """True for a string that holds Jinja."""
    return isinstance(value, str) and ("{{" in value or "{%" in value or "{#" in value)


@lru_cache(maxsize=4096)
def _compiled(source: str) -> jinja2.Template:
    return _VALUES.from_string(source)


def check_syntax(source: str, where: Where, condition: bool = False) -> None:
    """Compiles without running; filters and tests must exist.

    :raises TemplateFailure: when it does not compile.
    """
    try:
        _compiled(_braced(source) if condition else str(source))
    except jinja2.TemplateSyntaxError as error:
        _fail(error, source, where)


def parse_tree(source: str, condition: bool = False) -> jinja2.nodes.Template:
    """The syntax tree of a string, for finding out which variables it uses."""
    return _VALUES.parse(_braced(source) if condition else str(source))


def _braced(expression: str) -> str:
    return "{{ (" + str(expression) + ") }}"


def render(value: Any, names: Names, where: Where) -> Any:
    """A value with all Jinja in it rendered; dicts and lists are rendered through and copied.

    :param where: place to blame when the string does not know its own.
    :raises TemplateFailure: with the place, for bad syntax, an undefined variable or a failing filter.
    """
    if isinstance(value, str):
        return _render_text(value, names, where) if is_template(value) else value
    if isinstance(value, dict):
        rendered = {render(key, names, where): render(one, names, where) for key, one in value.items()}
        return {key: one for key, one in rendered.items() if one is not OMIT}
    if isinstance(value, (list, tuple)):
        return [one for one in (render(one, names, where) for one in value) if one is not OMIT]
    return value


def _render_text(source: str, names: Names, where: Where) -> Any:
    try:
        result = _run(_compiled(str(source)), names)
    except LocatedError:
        raise
    except Exception as error:
        _fail(error, source, where)
    # Jinja drops a final newline of the source; text keeps it, other types never had one.
    if isinstance(result, str) and source.endswith("\n") and not result.endswith("\n"):
        return result + "\n"
    return result


def _run(template: jinja2.Template, names: Names) -> Any:
    context = template.new_context({})
    assert isinstance(context, _Context)
    context.names = names
    return template.environment.concat(template.root_render_func(context))


def holds(condition: Any, names: Names, where: Where) -> bool:
    """Evaluates a ``when``-like condition: a bool, or an expression without braces.

    :raises TemplateFailure: also when the result is no bool, as ansible-core >= 2.19 demands.
    """
    if isinstance(condition, bool):
        return condition
    if not isinstance(condition, str):
        raise _located(f"a condition is an expression or a bool, not {condition!r}", where)
    try:
        result = _run(_compiled(_braced(condition)), names)
    except LocatedError:
        raise
    except Exception as error:
        _fail(error, condition, where)
    if not isinstance(result, bool):
        kind = "str" if isinstance(result, str) else type(result).__name__
        raise _located(
            f"the condition '{condition}' is {result!r} ({kind}), and must be true or false; use `is defined`, "
            "a comparison, `| length > 0` or `| bool`",
            where_of(condition, where),
        )
    return result


def render_file(
    source: str,
    shown: str,
    names: Names,
    trim_blocks: bool = True,
    lstrip_blocks: bool = False,
    newline: str = "\n",
) -> str:
    """The text of a template file, with Ansible's defaults for white space.

    :param shown: how errors name the file.
    :raises TemplateFailure: with the template's own file and line.
    """
    where = Where(shown, 1, 1)
    try:
        template = _file_environment(trim_blocks, lstrip_blocks, newline).from_string(source)
        return str(_run(template, names))
    except LocatedError:
        raise
    except Exception as error:
        line = getattr(error, "lineno", None) or _template_line(error)
        raise TemplateFailure(_sentence(error), shown, line or where.line) from None


def check_file_syntax(source: str, shown: str) -> None:
    """Compiles a template file. :raises TemplateFailure: with its line."""
    try:
        _file_environment(True, False, "\n").from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateFailure(_sentence(error), shown, error.lineno) from None


def _template_line(error: BaseException) -> int | None:
    """The line of the template in which an error arose; Jinja puts it into the traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return lines[-1] if lines else None


def _sentence(error: BaseException) -> str:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"bad template: {error.message}"
    if isinstance(error, jinja2.UndefinedError):
        return str(error.message)
    if isinstance(error, RecursionError):
        return "the template refers to itself without end"
    return f"the template fails: {type(error).__name__}: {error}"


def _located(message: str, where: Where) -> TemplateFailure:
    return TemplateFailure(message, where.file, where.line, where.column)


def _fail(error: BaseException, source: str, where: Where) -> NoReturn:
    inner = getattr(error, "lineno", None) or _template_line(error) or 1
    if isinstance(source, Text) and hasattr(source, "where"):
        where = source.where
        line = source.first_line + inner - 1
        where = where if line == where.line else Where(where.file, line, 1)
    shown = " ".join(str(source).split())
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    kind = UndefinedVariable if isinstance(error, jinja2.UndefinedError) else TemplateFailure
    raise kind(f"{_sentence(error)} (in '{shown}')", where.file, where.line, where.column) from None
