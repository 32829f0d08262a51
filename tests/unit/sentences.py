"""Every text that a report says of its own: from the templates, from `said(...)`, and from the tables of words."""

import ast
import functools
import re
from pathlib import Path

from jinja2 import Environment, nodes

from tcpfleet import report_words

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ("report.html.j2", "report.md.j2", "compare.html.j2", "compare.md.j2")
SPEAKERS = {"_", "how", "chart", "fold", "head"}


def of_templates():
    """Texts given to `_` and to the macros that hand theirs to it."""
    found = set()
    for name in TEMPLATES:
        tree = Environment().parse((ROOT / "templates" / name).read_text(encoding="utf-8"))
        for call in tree.find_all(nodes.Call):
            if not isinstance(call.node, nodes.Name) or call.node.name not in SPEAKERS:
                continue
            for argument in call.args[1:] if call.node.name in ("chart", "fold") else call.args:
                found |= set(literals(argument))
    return found


def literals(argument):
    """The texts of an argument: itself, the items of a list, either side of an `if`."""
    if isinstance(argument, nodes.Const) and isinstance(argument.value, str):
        yield argument.value.replace("#", "")
    for part in {
        nodes.List: lambda: argument.items,
        nodes.CondExpr: lambda: [argument.expr1, argument.expr2],
    }.get(type(argument), list)():
        yield from literals(part)


@functools.cache
def constants(*folders):
    """Every string in the sources of these folders; formatted ones with ``{}`` for their values."""
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "report_zh.py":
                found |= {skeleton(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))}
    return found - {None}


def skeleton(node):
    """A string's text, a formatted one's with ``{}`` for each value; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return bare(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def bare(template):
    """A template without the names and forms of its values, of `format` or of `%`."""
    return re.sub(r"\{[^{}]*\}|%\(\w+\)[sdg]|%[sdg]", "{}", template)


def of_said():
    """Texts given to `said`."""
    found = set()
    for path in (ROOT / "tcpfleet").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(call, ast.Assign) and "template" in ast.unparse(call.targets[0])
            if named:
                values = call.value.elts if isinstance(call.value, ast.Tuple) else [call.value]
                found |= {one.value for one in values if isinstance(one, ast.Constant) and "{" in str(one.value)}
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("said", "speak") and call.args:
                argument = call.args[0]
                if isinstance(argument, ast.Constant):
                    found.add(argument.value)
    return found


def of_walls():
    """Names, evidence and fixes of the walls, as far as they are written in one piece; bare."""
    found = set()
    tree = ast.parse((ROOT / "tcpfleet/walls.py").read_text(encoding="utf-8"))
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "_wall":
            for argument in call.args:
                found |= {skeleton(argument)} if skeleton(argument) else set()
    return found


def of_words():
    """The tables of words."""
    states = {text for words in report_words.STATES.values() for text in words}
    return states | {words.meaning for words in report_words.COUNTERS.values()}


def everything():
    return of_templates() | of_said() | of_words()
