"""Sentences that can be said in another language: an English text that remembers what it was made from.

`said("{n} of {of} failed", n=3, of=5)` is the English string wherever a string is wanted (JSON, the console), and
`translate` says it in another language by the table of that language, keyed by the English template. Texts that
come from run.json or from the hosts have lost their template: the same table finds them whole, or by the templates
among its keys that they fit.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

Table = Mapping[str, str]


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
    found = table.get(text)
    if found is not None:
        return found
    for pattern, template in _patterns(id(table), tuple(table)):
        match = pattern.fullmatch(text)
        if match:
            return table[template].format(**_each(match.groupdict(), table))
    return text


def _each(values: Mapping[str, Any], table: Table) -> dict[str, Any]:
    return {name: translate(one, table) if isinstance(one, str) else one for name, one in values.items()}


@functools.lru_cache(maxsize=4)
def _patterns(_: int, keys: tuple[str, ...]) -> list[tuple[re.Pattern[str], str]]:
    """What finished texts are recognised by: templates whose fixed words say enough, the longest first."""
    found = []
    for key in keys:
        parts = re.split(r"\{([a-z_]+)(?::[^}]*)?\}", key)
        fixed = "".join(parts[::2])
        if len(parts) == 1 or len(re.findall(r"[A-Za-z]{2,}", fixed)) < 2:
            continue
        names: set[str] = set()
        pattern = ""
        for number, part in enumerate(parts):
            if number % 2 == 0:
                pattern += re.escape(part)
            elif part in names:
                pattern += f"(?P={part})"
            else:
                names.add(part)
                pattern += f"(?P<{part}>.+?)"
        found.append((len(fixed), re.compile(pattern, re.DOTALL), key))
    return [(pattern, key) for _, pattern, key in sorted(found, key=lambda one: -one[0])]
