"""Host patterns as Ansible reads them: `all`, `web*`, `lab:!s1`, `clients:&rack1`, `~web\\d`, `lab[0:2]`.

Unlike Ansible, a part that matches nothing that exists is an error, in `!part` too: a misspelt
exclusion would run on the very host it was to spare.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import BadInput
from .names import is_host_expression

MAX_LENGTH = 65536

_SUBSCRIPT = re.compile(r"(.+)\[(?:(-?[0-9]{1,9})|([0-9]{1,9}):([0-9]{0,9}))\]", re.DOTALL)
_COLON_PARTS = re.compile(r"(?:[^\s:\[\]]|\[[^\[\]]*\])+")
# Ansible once read [x-y] as a slice, and still will not read it as a glob.
_DASHED = re.compile(r".+\[[0-9]+-[0-9]*\]", re.DOTALL)
_GLOB = frozenset(".?*[")


def split(pattern: str) -> list[str]:
    """The single patterns in `pattern`, separated by commas, or by colons when there is no comma.

    >>> split("clients:&rack1:!c2"), split("2001:db8::1"), split("a, b[0:2]")
    (['clients', '&rack1', '!c2'], ['2001:db8::1'], ['a', 'b[0:2]'])

    :raises BadInput: a bracket without its counterpart.
    """
    if "," in pattern:
        parts = pattern.split(",")
    elif is_host_expression(pattern.strip()):
        parts = [pattern]
    else:
        parts = _COLON_PARTS.findall(pattern)
        if _COLON_PARTS.sub("", pattern).strip(" \t\r\n\f\v:"):
            raise BadInput(f"the host pattern {_short(pattern)} has a bracket without its counterpart")
    return [part.strip() for part in parts if part.strip()]


def select(
    pattern: str,
    hosts: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    *,
    with_files: bool = False,
) -> list[str]:
    """The hosts that `pattern` selects, each once, in Ansible's order.

    Parts without a sign are joined in the order written; then `&` parts restrict, then `!` parts exclude.

    :param hosts: every host, in inventory order.
    :param groups: the hosts of every group, its children's included.
    :param with_files: a part ``@FILE`` stands for the lines of that file.
    :raises BadInput: malformed, or a part matches nothing that exists.
    """
    if len(pattern) > MAX_LENGTH:
        raise BadInput(f"this host pattern is longer than {MAX_LENGTH} characters")
    parts = split(pattern)
    if with_files:
        parts = [one for part in parts for one in (_lines(part[1:]) if part[0] == "@" else [part])]
    if not parts:
        raise BadInput("the host pattern is empty: name a host, a group or `all`")
    known = set(hosts)

    def matches(part: str) -> list[str]:
        return [part] if part in known else _match(part, hosts, groups, pattern)

    wanted = [part for part in parts if part[0] not in "&!"] or ["all"]
    chosen = dict.fromkeys(host for part in wanted for host in matches(part))
    for sign, keep in (("&", True), ("!", False)):
        for part in parts:
            if part[0] == sign:
                named = set(matches(part[1:].strip()))
                chosen = {host: None for host in chosen if (host in named) is keep}
    return list(chosen)


def _lines(file: str) -> list[str]:
    """The patterns in a file of failed hosts, one a line, as Ansible's --limit reads them."""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInput(f"@{file}: cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    parts = [line.strip() for line in text.splitlines() if line.strip()]
    if not parts:
        raise BadInput(f"@{file}: the file names no host")
    return parts


def _match(part: str, hosts: Sequence[str], groups: Mapping[str, Sequence[str]], whole: str) -> list[str]:
    """The hosts of one part that is not the plain name of a host."""
    if not part:
        raise BadInput(f"the host pattern {_short(whole)} has a sign without a name after it")
    if part[0] != "~" and _DASHED.fullmatch(part):
        raise BadInput(
            f"the host pattern {_short(part)}: Ansible takes neither slices nor globs with a dash between "
            "numbers at the end: write [first:last], or a regular expression after ~"
        )
    expression, pick = part, None
    if part[0] != "~" and (subscript := _SUBSCRIPT.fullmatch(part)):
        expression, pick = subscript[1], subscript
    test = _matcher(expression, whole)
    matched_groups = [group for group in groups if test(group)]
    found = dict.fromkeys(host for group in matched_groups for host in groups[group])
    # As in Ansible: the plain name of a group is only that group, anything else may be hosts as well.
    if not matched_groups or expression[0] == "~" or _GLOB & set(expression):
        matched_hosts = [host for host in hosts if test(host)]
        found.update(dict.fromkeys(matched_hosts))
        if not matched_groups and not matched_hosts:
            raise BadInput(_nothing_like(expression, whole, hosts, groups))
    return _pick(list(found), pick, part) if pick else list(found)


def _matcher(expression: str, whole: str) -> Callable[[str], object]:
    try:
        if expression[0] == "~":
            return re.compile(expression[1:]).match
        return re.compile(fnmatch.translate(expression)).match
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(f"the host pattern {_short(whole)} is not valid: {_short(expression)}: {error}") from error


def _pick(found: list[str], subscript: re.Match[str], part: str) -> list[str]:
    """`[n]`, `[first:last]` or `[first:]`, last included, counting from 0."""
    single, first, last = subscript[2], subscript[3], subscript[4]
    if single is not None:
        if not -len(found) <= int(single) < len(found):
            raise BadInput(f"the host pattern {_short(part)} counts beyond its {len(found)} hosts")
        return [found[int(single)]]
    picked = found[int(first) : int(last) + 1 if last else None]
    if not picked:
        raise BadInput(f"the host pattern {_short(part)} picks none of its {len(found)} hosts")
    return picked


def _nothing_like(expression: str, whole: str, hosts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    message = f"no host or group matches {_short(expression)}"
    if expression != whole.strip():
        message += f" in the host pattern {_short(whole)}"
    close = difflib.get_close_matches(expression[:100], [*groups, *hosts][:2000], n=3)
    if close:
        message += f"; did you mean {' or '.join(close)}?"
    if "," not in whole and whole.count(":") > 2:
        message += "; separate patterns by commas when one is an IPv6 address"
    message += f"; groups: {_listed(list(groups))}; hosts: {_listed(hosts)}"
    return message


def _listed(names: Sequence[str]) -> str:
    """At most ten names: enough to see what is there."""
    shown = ", ".join(names[:10]) or "none"
    return f"{shown} and {len(names) - 10:,} more" if len(names) > 10 else shown


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
