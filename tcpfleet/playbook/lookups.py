"""``lookup`` and ``query``: what templates may read on the controller. Names and meaning are Ansible's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tcpfleet.playbook import search


class _Names(Protocol):
    @property
    def folders(self) -> Sequence[Path]: ...
    def lookup(self, name: str) -> Any: ...


@dataclass(frozen=True)
class Place:
    """Where a lookup happens.

    :ivar names: the variables there.
    :ivar undefined: makes the value of what is not defined, from a sentence.
    :ivar render_file: renders the text of a template file: (text, path) -> text.
    """

    names: _Names
    undefined: Callable[[str], Any]
    render_file: Callable[[str, str], str]


def _env(term: str, place: Place, default: Any = "") -> Any:
    return os.environ.get(term.split()[0], default)


def _read(term: str, kind: str, place: Place) -> tuple[str, Path]:
    path = search.find(term, kind, place.names.folders)
    if path is None:
        looked = ", ".join(str(one) for one in search.places(term, kind, place.names.folders))
        raise ValueError(f"could not find '{term}' on the controller; looked at {looked}")
    return path.read_text(encoding="utf-8"), path


def _file(term: str, place: Place, lstrip: bool = False, rstrip: bool = True) -> str:
    text, _path = _read(term, "files", place)
    text = text.lstrip() if lstrip else text
    return text.rstrip() if rstrip else text


def _template(term: str, place: Place) -> str:
    text, path = _read(term, "templates", place)
    return place.render_file(text, str(path))


def _pipe(term: str, place: Place) -> str:
    folder = place.names.folders[-1] if place.names.folders else None
    # The command is the playbook's, as in a shell task; this is what the lookup is for.
    done = subprocess.run(  # noqa: S602
        term, shell=True, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise ValueError(f"the command of lookup('pipe') exits {done.returncode}: {term}")
    return done.stdout.decode("utf-8").rstrip()


def _lines(term: str, place: Place) -> list[str]:
    return _pipe(term, place).splitlines()


def _vars(term: str, place: Place, default: Any = None) -> Any:
    try:
        return place.names.lookup(term)
    except KeyError:
        return place.undefined(f"'{term}' is undefined") if default is None else default


# Lookups of one term; `lines` gives several values for it.
_LOOKUPS: Mapping[str, Callable[..., Any]] = {
    "env": _env,
    "file": _file,
    "lines": _lines,
    "pipe": _pipe,
    "template": _template,
    "vars": _vars,
}
NAMES = tuple(_LOOKUPS)


def unknown(name: str) -> str | None:
    """What is wrong with a lookup's name; None when there is such a lookup."""
    if name.removeprefix("ansible.builtin.") in _LOOKUPS:
        return None
    return f"no lookup is called '{name}'; there are: {', '.join(NAMES)}"


def run(name: str, terms: Sequence[Any], options: Mapping[str, Any], place: Place) -> list[Any]:
    """The values of a lookup, one or more for each term.

    :raises ValueError: when there is no such lookup, or it fails.
    """
    wrong = unknown(name)
    if wrong:
        raise ValueError(wrong)
    function = _LOOKUPS[name.removeprefix("ansible.builtin.")]
    found: list[Any] = []
    flat = [one for term in terms for one in (term if isinstance(term, list) else [term])]
    for term in flat:
        value = function(str(term), place, **options)
        found.extend(value) if function is _lines else found.append(value)
    return found


def joined(values: Sequence[Any]) -> Any:
    """What ``lookup`` gives where ``query`` gives a list: the one value, or texts with commas between them."""
    if len(values) == 1:
        return values[0]
    if all(isinstance(value, str) for value in values):
        return ",".join(values)
    return list(values)
