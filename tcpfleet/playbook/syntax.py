"""How a template file is to be read: its delimiters and white space, as the task and the file's first line say.

As in Ansible, a first line ``#jinja2: trim_blocks: False, variable_start_string: '[%'`` is no part of the text.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

HEADER = "#jinja2:"
_NEWLINES = {"\\n": "\n", "\\r": "\r", "\\r\\n": "\r\n"}


@dataclass(frozen=True)
class FileSyntax:
    """Jinja's options for one template file, under Jinja's names.

    :raises ValueError: when two kinds of tags begin alike.
    """

    block_start_string: str = "{%"
    block_end_string: str = "%}"
    variable_start_string: str = "{{"
    variable_end_string: str = "}}"
    comment_start_string: str = "{#"
    comment_end_string: str = "#}"
    line_statement_prefix: str | None = None
    line_comment_prefix: str | None = None
    trim_blocks: bool = True
    lstrip_blocks: bool = False
    newline_sequence: str = "\n"
    keep_trailing_newline: bool = False

    def __post_init__(self) -> None:
        if len(set(self._starts())) < 3:
            raise ValueError("blocks, variables and comments must begin differently")

    def _starts(self) -> tuple[str, str, str]:
        return self.block_start_string, self.variable_start_string, self.comment_start_string

    def occurs_in(self, text: str) -> bool:
        """Whether a text has anything to render; if not, it stays as it is, its line ends too."""
        return text.startswith(HEADER) or any(start in text for start in self._starts())

    def options(self) -> dict[str, Any]:
        """What Jinja's environment takes."""
        return asdict(self)


PLAIN = FileSyntax()
_KINDS: Mapping[str, tuple[type, ...]] = {
    one.name: (bool,) if isinstance(one.default, bool) else (str, type(None)) if one.default is None else (str,)
    for one in fields(FileSyntax)
}
# Options that arguments of the module template give; the others only a file's first line can.
ARGUMENTS = tuple(
    name
    for name in _KINDS
    if name not in ("line_statement_prefix", "line_comment_prefix", "keep_trailing_newline")
)


def of_arguments(args: Mapping[str, Any]) -> FileSyntax:
    """What a template task asks for.

    :param args: rendered; others than `ARGUMENTS` are left alone.
    :raises ValueError: when it makes no sense.
    """
    given = {name: args[name] for name in ARGUMENTS if args.get(name) is not None}
    if "newline_sequence" in given:
        given["newline_sequence"] = _NEWLINES.get(given["newline_sequence"], given["newline_sequence"])
    return FileSyntax(**given)


def of_written(args: Mapping[str, Any]) -> FileSyntax | None:
    """As `of_arguments`, for arguments as they are written; None where only the run knows what they say."""
    for name in ARGUMENTS:
        value = args.get(name)
        if value is not None and (not isinstance(value, _KINDS[name]) or "{{" in str(value)[2:]):
            return None
    try:
        return of_arguments(args)
    except ValueError:
        return None  # said when the task runs


def split(text: str, syntax: FileSyntax) -> tuple[str, FileSyntax]:
    """A file's text without its first line, where that gives options, and the options that hold then.

    >>> split("#jinja2: trim_blocks: False\\nrest", FileSyntax())[0]
    'rest'

    :raises ValueError: with what is wrong in the first line.
    """
    if not text.startswith(HEADER):
        return text, syntax
    line, newline, rest = text.removeprefix(HEADER).partition("\n")
    if not newline:
        raise ValueError(f"a line that begins with {HEADER} must be followed by others")
    found: dict[str, Any] = {}
    for pair in line.split(","):
        key, colon, value = (part.strip() for part in pair.partition(":"))
        if not colon:
            raise ValueError(f"{HEADER} takes `option: value` with commas between them, not '{pair.strip()}'")
        if key not in _KINDS:
            raise ValueError(f"{HEADER} has no option '{key}'; there are: {', '.join(_KINDS)}")
        try:
            found[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ValueError(f"{HEADER} {key}: {value} is no value; write True, False or text in quotes") from None
        if not isinstance(found[key], _KINDS[key]):
            wanted = "True or False" if _KINDS[key] == (bool,) else "text in quotes"
            raise ValueError(f"{HEADER} {key} must be {wanted}, not {value}")
    if found.get("newline_sequence", "\n") not in _NEWLINES.values():
        raise ValueError(rf"{HEADER} newline_sequence must be '\n', '\r' or '\r\n'")
    return rest, replace(syntax, **found)
