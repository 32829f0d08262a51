"""Jinja2 as Ansible uses it: native types, strict about undefined variables, errors with a place.

A string that is one expression (``"{{ x }}"``) renders to that expression's value, whatever its type; any
other mix renders to text. What comes from hosts (facts, results) is never itself taken as a template.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import os
import pwd
import types
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import jinja2
from jinja2 import lexer, nativetypes, runtime, sandbox
from jinja2.utils import missing

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import lookups, search
from tcpfleet.playbook.filters import FILTERS
from tcpfleet.playbook.filters_tests import TESTS
from tcpfleet.playbook.source import Text, Where, where_of
from tcpfleet.playbook.syntax import PLAIN, FileSyntax, split


class _Omit:
    """The value of ``omit``: an argument that renders to it is as if not given."""

    def __repr__(self) -> str:
        return "<<Omit>>"


OMIT = _Omit()


# Names that only template files have; see `_FileNames`.
FILE_NAMES = frozenset(
    ("template_fullpath", "template_host", "template_mtime", "template_path", "template_run_date", "template_uid")
)


class Names(Protocol):
    """Where templates look variables up."""

    @property
    def folders(self) -> Sequence[Path]:
        """Where relative names of files start from: the task's folder, the playbook's."""

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


# Under this key a context carries its `Names`, also into the contexts of included templates.
_NAMES = "\0names"


class _Context(runtime.Context):
    """A Jinja context that asks `Names` for each variable when it is used, not before."""

    def resolve_or_missing(self, key: str) -> Any:
        if key in self.vars:
            return self.vars[key]
        inherited = self.parent.get(key, missing)
        common = self.environment.globals.get(key, missing)
        if inherited is not common:
            return inherited  # set by the template that includes this one
        names: Names | None = self.parent.get(_NAMES)
        if names is None:
            return common  # imported without context
        try:
            return names.lookup(key)
        except KeyError:
            return common
        except UndefinedVariable as error:
            # A variable made of an undefined one is undefined itself: `default` may still rescue it.
            return Undefined(hint=str(error), name=key)


_ONCE: tuple[type, ...] = (
    types.GeneratorType, map, zip, filter, range, set, frozenset, tuple, type({}.keys()), type({}.values()),
    type({}.items()), itertools.chain,
)  # fmt: skip


def _listed(value: Any) -> Any:
    """A list of what can be gone through only once, as filters and calls give in Ansible."""
    once = isinstance(value, (Iterator, KeysView, ValuesView, ItemsView))
    return list(cast("Iterable[Any]", value)) if once else value


# Filters of Jinja's own that give an iterator; in Ansible they give a list.
_LAZY_FILTERS = (
    "batch",
    "items",
    "map",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "slice",
    "unique",
)


def _listing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        return _listed(function(*args, **options))

    return wrapped


def _native(values: Iterable[Any]) -> Any:
    """Joins what a template yields: nothing is None, one value stays what it is, several become text."""
    # As in Ansible, null is nothing, also beside a value: `{{ list.append(1) }}{{ list }}` is a list.
    nodes = [value for value in values if value is not None]
    if not nodes:
        return None
    if len(nodes) == 1:
        return finished(nodes[0])
    return "".join(_as_text(value) for value in nodes if value is not OMIT)


def _as_text(value: Any) -> str:
    if value is None or type(value) is jinja2.Undefined:  # `'x' if false` within text is nothing
        return ""
    return str(finished(value))


def finished(value: Any) -> Any:
    """A value as tasks and YAML know it: whatever can be gone through once, or is a tuple, becomes a list.

    What needs no change is not copied; what is `OMIT` is left out.

    :raises UndefinedError: when it holds anything undefined, also ``'x' if false``.
    """
    if isinstance(value, _ONCE):
        return [finished(one) for one in cast("Iterable[Any]", value) if one is not OMIT]
    if isinstance(value, list):
        items = [finished(one) for one in value if one is not OMIT]
        same = len(items) == len(value) and all(new is old for new, old in zip(items, value, strict=True))
        return value if same else items
    if type(value) is dict:
        fields = {key: finished(one) for key, one in value.items() if one is not OMIT}
        same = len(fields) == len(value) and all(fields[key] is one for key, one in value.items())
        return value if same else fields
    if isinstance(value, jinja2.Undefined):
        value._fail_with_undefined_error()
    return value


class _EscapingLexer(lexer.Lexer):
    r"""As in Ansible, a backslash in a string within ``{{ }}`` is one: ``'\1'`` is what regex_replace needs.

    YAML has its own escapes; Jinja's on top would make that string a control character.
    """

    def tokeniter(self, *args: Any, **options: Any) -> Iterator[tuple[int, str, str]]:
        inside = False
        for line, kind, text in super().tokeniter(*args, **options):
            if kind == lexer.TOKEN_VARIABLE_BEGIN:
                inside = True
            elif kind == lexer.TOKEN_VARIABLE_END:
                inside = False
            elif inside and kind == lexer.TOKEN_STRING:
                text = text.replace("\\", "\\\\")
            yield line, kind, text


@contextlib.contextmanager
def as_mistake() -> Iterator[None]:
    """Jinja works out constants while it compiles: 4096 ** 4096, or brackets 3,000 deep, are a mistake of whoever
    wrote them."""
    try:
        yield
    except (ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise jinja2.TemplateSyntaxError(" ".join(str(error).split()) or type(error).__name__, 1) from None


class _NativeEnvironment(sandbox.SandboxedEnvironment, nativetypes.NativeEnvironment):
    """Native types, and no way from a template to Python's internals."""

    concat = staticmethod(_native)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        with as_mistake():
            return super()._parse(source, name, filename)

    def _generate(self, *args: Any, **options: Any) -> str:
        with as_mistake():
            return super()._generate(*args, **options)

    def call(self, context: runtime.Context, function: Any, /, *args: Any, **options: Any) -> Any:
        """Calls from templates: what can be gone through once is a list, so that it can be indexed and counted."""
        return _listed(super().call(context, function, *args, **options))


class _ValueEnvironment(_NativeEnvironment):
    """For what stands in YAML within ``{{ }}``."""

    @cached_property
    def lexer(self) -> lexer.Lexer:
        return _EscapingLexer(self)


@jinja2.pass_context
def _as_it_is(context: runtime.Context, value: Any) -> Any:
    # Without a finalizer that needs the context, Jinja makes text of constant expressions when it compiles.
    return value


@jinja2.pass_context
def _for_file(context: runtime.Context, value: Any) -> Any:
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()  # here, where the line is known
    return value


def _prepare(environment: jinja2.Environment) -> jinja2.Environment:
    for name in _LAZY_FILTERS:
        environment.filters[name] = _listing(environment.filters[name])
    for table, own in ((environment.filters, FILTERS), (environment.tests, TESTS)):
        table.update(own)
        table.update({f"ansible.builtin.{name}": table[name] for name in list(table) if "." not in name})
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    environment.globals.update(lookup=_lookup, query=_query, q=_query, now=_now, undef=_undef)
    environment.context_class = _Context
    return environment


@jinja2.pass_context
def _query(context: runtime.Context, name: str, /, *terms: Any, **options: Any) -> Any:
    return _looked_up(context, name, terms, options, as_list=options.pop("wantlist", True))


@jinja2.pass_context
def _lookup(context: runtime.Context, name: str, /, *terms: Any, **options: Any) -> Any:
    return _looked_up(context, name, terms, options, as_list=options.pop("wantlist", False))


def _looked_up(
    context: runtime.Context, name: str, terms: Sequence[Any], options: dict[str, Any], as_list: bool
) -> Any:
    for one in (name, *terms):
        if isinstance(one, Undefined):
            one._fail_with_undefined_error()
    names: Names = context.parent[_NAMES]
    place = lookups.Place(
        names,
        undefined=lambda message: Undefined(hint=message),
        render_file=lambda text, path: rendered_file(text, path, names),
    )
    errors = options.pop("errors", "strict")
    try:
        values = lookups.run(name, terms, options, place)
    except (ValueError, OSError, LocatedError):
        if errors == "strict":
            raise
        values = []
    return values if as_list else lookups.joined(values) if values else None if errors != "strict" else ""


def _now(utc: bool = False, fmt: str | None = None) -> Any:
    moment = datetime.datetime.now(tz=datetime.UTC).replace(tzinfo=None) if utc else datetime.datetime.now()
    return moment.strftime(fmt) if fmt else moment


def _undef(hint: str | None = None) -> Undefined:
    return Undefined(hint=hint or "a mandatory variable has not been overridden")


_OPTIONS: dict[str, Any] = {"undefined": Undefined, "extensions": ["jinja2.ext.do", "jinja2.ext.loopcontrols"]}
# autoescape is for HTML; these templates make configuration files and arguments.
_CONDITIONS = _prepare(_NativeEnvironment(finalize=_as_it_is, **_OPTIONS))


@lru_cache(maxsize=16)
def _value_environment(syntax: FileSyntax) -> jinja2.Environment:
    # Ansible trims the newline after a block in values too, not only in template files.
    return _prepare(_ValueEnvironment(finalize=_as_it_is, **syntax.options(), **_OPTIONS))


def _value_split(source: str) -> tuple[str, jinja2.Environment]:
    """A value without its first line, where that gives options, and the environment to read it in."""
    try:
        body, used = split(source, PLAIN)
    except ValueError as error:
        raise jinja2.TemplateSyntaxError(str(error), 1) from None
    return body, _value_environment(used)


class _FileLoader(jinja2.BaseLoader):
    """Finds what template files include, import and extend."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def get_source(self, environment: jinja2.Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        path = search.find(template, "templates", self._folders)
        if path is None:
            listed = ", ".join(str(place) for place in search.places(template, "templates", self._folders))
            raise jinja2.TemplateNotFound(
                template, f"could not find the template '{template}'; looked at {listed}"
            )
        before = path.stat().st_mtime_ns
        return path.read_text(encoding="utf-8"), str(path), lambda: path.stat().st_mtime_ns == before


@lru_cache(maxsize=64)
def _file_environment(syntax: FileSyntax, folders: tuple[Path, ...] = ()) -> jinja2.Environment:
    # A file that is a single expression has a value of its own type, as everything has in Ansible's templates.
    options = {**syntax.options(), **_OPTIONS}
    return _prepare(_NativeEnvironment(loader=_FileLoader(folders), finalize=_for_file, **options))


@lru_cache(maxsize=256)
def _file_template(environment: jinja2.Environment, source: str) -> jinja2.Template:
    return environment.from_string(source)


def is_template(value: object) -> bool:
    """True for a string that holds Jinja."""
    return isinstance(value, str) and PLAIN.occurs_in(value)


@lru_cache(maxsize=4096)
def _compiled(source: str, condition: bool = False) -> jinja2.Template:
    if condition:
        return _CONDITIONS.from_string(_braced(source))
    body, environment = _value_split(source)
    return environment.from_string(body)


def check_syntax(source: str, where: Where, condition: bool = False) -> None:
    """Compiles without running; filters and tests must exist.

    :raises TemplateFailure: when it does not compile.
    """
    try:
        _compiled(str(source), condition)
        _check_lookups(parse_tree, source, condition)
    except jinja2.TemplateSyntaxError as error:
        _fail(error, source, where)


def _check_lookups(parse: Callable[..., jinja2.nodes.Template], source: str, *options: Any) -> None:
    """Lookups, like filters, must exist. :raises TemplateSyntaxError: when one does not."""
    if not any(f"{word}(" in source for word in ("lookup", "query", "q")):
        return
    for call in parse(source, *options).find_all(jinja2.nodes.Call):
        named = isinstance(call.node, jinja2.nodes.Name) and call.node.name in ("lookup", "query", "q")
        if named and call.args and isinstance(call.args[0], jinja2.nodes.Const):
            wrong = lookups.unknown(str(call.args[0].value))
            if wrong:
                raise jinja2.TemplateSyntaxError(wrong, call.lineno)


def parse_tree(source: str, condition: bool = False) -> jinja2.nodes.Template:
    """The syntax tree of a string, for finding out which variables it uses."""
    if condition:
        return _CONDITIONS.parse(_braced(source))
    body, environment = _value_split(str(source))
    return environment.parse(body)


def parse_file_tree(source: str, syntax: FileSyntax = PLAIN) -> jinja2.nodes.Template:
    """The syntax tree of a template file's text, without a first line of options."""
    return _file_environment(syntax).parse(source)


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
    return _with_newlines(result, source)


def _with_newlines(result: Any, source: str, newline: str = "\n") -> Any:
    """Text with as many newlines at its end as its template has, as in Ansible; Jinja drops some."""
    if not isinstance(result, str):
        return result
    missing = _newlines_at_end(source) - _newlines_at_end(result)
    return result + newline * missing if missing > 0 else result


def _newlines_at_end(text: str) -> int:
    return len(text) - len(text.rstrip("\n"))


def _run(template: jinja2.Template, names: Names) -> Any:
    context = template.new_context({_NAMES: names})
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
        result = _run(_compiled(str(condition), True), names)
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


def render_file(source: str, shown: str, names: Names, syntax: FileSyntax = PLAIN) -> str:
    """The text of a template file; see `rendered_file`."""
    value = rendered_file(source, shown, names, syntax)
    if value is OMIT:
        raise TemplateFailure("a file cannot be left out: the template's text is `omit`", shown, 1)
    return _as_text(value)


def rendered_file(source: str, shown: str, names: Names, syntax: FileSyntax = PLAIN) -> Any:
    """What a template file comes to: text, or another value when the file is one expression.

    :param shown: how errors name the file.
    :param syntax: what the task asks for; a first line of options in the file wins.
    :raises TemplateFailure: with the template's own file and line.
    """
    if not syntax.occurs_in(source):
        return source
    folders = tuple(search.template_folders(shown, names.folders))
    body, used = _split(source, shown, syntax)
    try:
        value = _run(_file_template(_file_environment(used, folders), body), _FileNames(names, shown))
    except LocatedError:
        raise
    except Exception as error:
        raise _file_failure(error, shown, 0 if body == source else 1) from None
    return _with_newlines(value, source, syntax.newline_sequence)


def _split(source: str, shown: str, syntax: FileSyntax) -> tuple[str, FileSyntax]:
    try:
        return split(source, syntax)
    except ValueError as error:
        raise TemplateFailure(str(error), shown, 1) from None


class _FileNames:
    """Variables as a template file sees them: what it knows about itself wins over all others, as in Ansible."""

    def __init__(self, names: Names, path: str) -> None:
        self._names, self._path = names, path
        self.folders = names.folders

    def lookup(self, name: str) -> Any:
        """A value. :raises KeyError: when there is none."""
        if name not in FILE_NAMES:
            return self._names.lookup(name)
        if name == "template_host":
            return os.uname().nodename
        if name == "template_run_date":
            return datetime.datetime.now(tz=datetime.UTC).replace(tzinfo=None)
        if name in ("template_path", "template_fullpath"):
            return self._path if name == "template_path" else os.path.abspath(self._path)
        status = os.stat(self._path)
        if name == "template_mtime":
            return datetime.datetime.fromtimestamp(status.st_mtime)
        try:
            return pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            return status.st_uid


def _file_failure(error: BaseException, shown: str, before: int) -> TemplateFailure:
    """An error with its place: of an included file, that file's.

    :param before: lines of the file `shown` that Jinja has not seen.
    """
    if isinstance(error, jinja2.TemplateSyntaxError):
        file, line = error.filename, error.lineno
    else:
        file, line = _jinja_place(error) or (None, 1)
    return TemplateFailure(_sentence(error), file or shown, line + (before if file is None else 0))


def check_file_syntax(
    source: str,
    shown: str,
    folders: Sequence[Path] = (),
    syntax: FileSyntax = PLAIN,
    included: bool = False,
) -> None:
    """Compiles a template file; `render_file` with the same settings uses what was compiled here.

    :param folders: where what it includes is looked for.
    :param included: it is part of another file, and has no first line of options.
    :raises TemplateFailure: with its line.
    """
    body, used = (source, syntax) if included else _split(source, shown, syntax)
    try:
        _file_template(_file_environment(used, tuple(folders)), body)
        _check_lookups(parse_file_tree, body, used)
    except jinja2.TemplateSyntaxError as error:
        raise _file_failure(error, shown, 0 if body == source else 1) from None


def _jinja_place(error: BaseException) -> tuple[str | None, int] | None:
    """(file, line) of the template in which an error arose; no file for one that was not read from a file."""
    found = None
    trace = error.__traceback__
    while trace is not None:
        compiled = trace.tb_frame.f_globals.get("__jinja_template__")
        if compiled is not None:
            file = None if compiled.filename == "<template>" else compiled.filename
            found = file, compiled.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return found


def _sentence(error: BaseException) -> str:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"bad template: {error.message}"
    if isinstance(error, (jinja2.UndefinedError, jinja2.TemplateNotFound)):
        # Text that knows its place is text to whoever reads this.
        return str(error.message).replace("'tcpfleet.playbook.source.Text object'", "'str object'")
    if isinstance(error, RecursionError):
        return "the template refers to itself without end"
    return f"the template fails: {type(error).__name__}: {error}"


def _located(message: str, where: Where) -> TemplateFailure:
    return TemplateFailure(message, where.file, where.line, where.column)


def _fail(error: BaseException, source: str, where: Where) -> NoReturn:
    inner = getattr(error, "lineno", None) or (_jinja_place(error) or (None, 1))[1]
    if isinstance(source, Text) and hasattr(source, "where"):
        where = source.where
        line = source.first_line + inner - 1
        where = where if line == where.line else Where(where.file, line, 1)
    shown = " ".join(str(source).split())
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    kind = UndefinedVariable if isinstance(error, jinja2.UndefinedError) else TemplateFailure
    raise kind(f"{_sentence(error)} (in '{shown}')", where.file, where.line, where.column) from None
