"""Sentences that can be said in another language: an English text that remembers what it was made from.

`said("{n} of {of} failed", n=3, of=5)` is the English string wherever a string is wanted (JSON, the console), and
`translate` says it in another language by the table of that language, keyed by the English template. Texts that
come from run.json or from the hosts have lost their template: the same table finds them whole, or by the templates
among its keys that they fit; of several put together with semicolons each for itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

Table = Mapping[str, str]
LONGEST = 1000  # a finished text that is longer is nobody's sentence


class Said(str):
    """A finished English sentence with its template and values; values may be sentences themselves."""

    template: str
    values: Mapping[str, Any]

    def __new__(cls, template: str, values: Mapping[str, Any]) -> Said:
        self = super().__new__(cls, template.format(**values) if values else template)
        self.template, self.values = template, values
        return self


def said(template: str, **values: Any) -> Said:
    """The sentence in English. A template without values is taken as it is, braces and all."""
    return Said(template, values)


def translate(text: str, table: Table) -> str:
    """The text in the language of `table`, as it is where the table has no word for it."""
    if isinstance(text, Said):
        template = table.get(text.template)
        if template is None:
            return str(text)
        return template.format(**_each(text.values, table)) if text.values else template
    if not table or len(text) > LONGEST:
        return text
    parts = text.split("; ")
    known = [_recognised(part, table) for part in parts]
    if text in table or len(parts) == 1 or not any(known):
        return _recognised(text, table) or text
    return "；".join(part if one is None else one for part, one in zip(parts, known, strict=True))


def _recognised(text: str, table: Table) -> str | None:
    if text in table:
        return table[text]
    for key, names, fixed in _templates(tuple(table)):
        values = _fits(text, fixed)
        if values is not None:
            return table[key].format(**_each(dict(zip(names, values, strict=True)), table))
    return None


def _each(values: Mapping[str, Any], table: Table) -> dict[str, Any]:
    return {name: translate(one, table) if isinstance(one, str) else one for name, one in values.items()}


@functools.lru_cache(maxsize=4)
def _templates(keys: tuple[str, ...]) -> list[tuple[str, list[str], list[str]]]:
    """(template, names of its values, fixed texts around them) of those with fixed words enough to recognise a
    finished text by, the longest first."""
    found = []
    for key in keys:
        parts = re.split(r"\{([a-z_]+)(?::[^}]*)?\}", key)
        words = re.findall(r"[A-Za-z]{2,}", " ".join(parts[::2]))
        if len(parts) > 1 and len(words) >= (1 if parts[0] else 2):
            found.append((key, parts[1::2], parts[::2]))
    # What begins with a value fits whatever stands before it: it comes after what begins with words.
    return sorted(found, key=lambda one: (not one[2][0], -sum(map(len, one[2]))))


def _fits(text: str, fixed: list[str]) -> list[str] | None:
    """What stands between the fixed texts, each value as short as can be; None when the text is another one."""
    if not text.startswith(fixed[0]) or not text.endswith(fixed[-1]):
        return None
    values, at = [], len(fixed[0])
    for part in fixed[1:-1]:
        place = text.find(part, at + 1)
        if place < 0:
            return None
        values.append(text[at:place])
        at = place + len(part)
    end = len(text) - len(fixed[-1])
    return [*values, text[at:end]] if end > at else None
