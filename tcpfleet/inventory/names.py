"""Names of hosts and groups: what is a valid one, ranges such as ``web[01:10]``, and ``host:port``.

The forms are Ansible's (https://docs.ansible.com/ansible/latest/inventory_guide/intro_inventory.html).
Stricter than Ansible on purpose: a name that no pattern could select, or that could not be the name of
a file in a report, is refused.
"""

from __future__ import annotations

import ipaddress
import re
import string

# More hosts than this in one inventory is a typing error in a range, not a fleet.
MAX_HOSTS = 50_000
MAX_NAME_BYTES = 200

_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_RANGE = re.compile(r"\[([^\[\]]*)\]")
_BRACKETED_PORT = re.compile(r"\[(.+)\]:([0-9]+)", re.DOTALL)
_PORT = re.compile(r"((?:[^:\[\]]|\[[^\[\]]*\])+):([0-9]+)", re.DOTALL)
# A whole host expression as it may stand in a pattern: labels of letters, digits, dash and ranges.
_LABEL = r"(?:\w|\[R\])(?:[\w-]|\[R\])*(?<![_-])".replace(
    r"\[R\]", r"\[(?:[a-z]:[a-z]|[0-9]+:[0-9]+)(?::[0-9]+)?\]"
)
_HOST_EXPRESSION = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)
_ADDRESS_RANGE = re.compile(r"\[[0-9a-f]+:[0-9a-f]+(?::[0-9]+)?\]", re.IGNORECASE)


def is_address(text: str) -> bool:
    """Is `text` an IPv4 or IPv6 address (without zone, port or brackets)?"""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def is_host_expression(text: str) -> bool:
    """Could `text`, as a whole, be one host, address or range, with or without a port?

    Decides whether the colons in a pattern separate patterns or belong to one (``2001:db8::1``,
    ``web[0:3]``, ``web:22``), by the same rule as Ansible.
    """
    match = _BRACKETED_PORT.fullmatch(text) or _PORT.fullmatch(text)
    if match:
        text = match[1]
    return bool(_HOST_EXPRESSION.fullmatch(text)) or is_address(_ADDRESS_RANGE.sub("1", text))


def check_name(name: str, what: str) -> None:
    """Refuse a name that cannot be used.

    :param what: "host" or "group", for the message.
    :raises ValueError: with a sentence.
    """
    if not name:
        raise ValueError(f"a {what} needs a name")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"this {what} name is longer than {MAX_NAME_BYTES} bytes")
    if _NAME.fullmatch(name) or (what == "host" and is_address(name)):
        return
    raise ValueError(
        f"{name!r} cannot be the name of a {what}: letters, digits, '_', '-' and '.', starting with a "
        "letter, digit or '_'" + (", or an IP address" if what == "host" else "")
    )


def expand(expression: str) -> tuple[list[str], int | None]:
    """The hosts that a host line or key names, and the port after them.

    >>> expand("web[08:10:2].example:2222")
    (['web08.example', 'web10.example'], 2222)
    >>> expand("[2001:db8::1]:22")
    (['2001:db8::1'], 22)

    :raises ValueError: with a sentence, when it is not a host, a range is wrong, or the port is.
    """
    if len(expression) > 4 * MAX_NAME_BYTES:
        raise ValueError("this host name is too long")
    port = None
    if match := _BRACKETED_PORT.fullmatch(expression) or _PORT.fullmatch(expression):
        expression, port = match[1], checked_port(match[2])
    elif expression.endswith(":"):
        raise ValueError(f"{expression!r} ends in ':' but no port follows")
    names = [""]
    position = 0
    for match in _RANGE.finditer(expression):
        part = expression[position : match.start()]
        choices = _expand_range(match[1], MAX_HOSTS // len(names))
        names = [name + part + choice for name in names for choice in choices]
        position = match.end()
    names = [name + expression[position:] for name in names]
    for name in names:
        check_name(name, "host")
    return names, port


def checked_port(value: object) -> int:
    """`value` (int or decimal text) as a TCP port.

    :raises ValueError: with a sentence.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and re.fullmatch(r"\s*[0-9]{1,5}\s*", text, re.ASCII) and 0 < int(text) < 65536:
        return int(text)
    raise ValueError(f"{str(value)[:20]!r} is not a port: 1 to 65535")


def _expand_range(inside: str, room: int) -> list[str]:
    """The values of one ``[first:last]`` or ``[first:last:step]``, at most `room` of them."""
    shown = f"[{inside}]"
    bounds = inside.split(":")
    if len(bounds) not in (2, 3):
        raise ValueError(f"the range {shown} must be [first:last] or [first:last:step]")
    first, last = bounds[0] or "0", bounds[1]
    step_text = bounds[2] if len(bounds) == 3 else "1"
    if not last:
        raise ValueError(f"the range {shown} must say where it ends")
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", step_text):
        raise ValueError(f"the step of the range {shown} must be a whole number above 0")
    step = int(step_text)
    letters = string.ascii_letters
    if len(first) == len(last) == 1 and first in letters and last in letters:
        values = [*letters[letters.index(first) : letters.index(last) + 1 : step]]
    elif re.fullmatch(r"[0-9]{1,12}", first) and re.fullmatch(r"[0-9]{1,12}", last):
        width = len(first) if first.startswith("0") and len(first) > 1 else 0
        if width and width != len(last):
            raise ValueError(f"the ends of the range {shown} must have the same number of digits")
        numbers = range(int(first), int(last) + 1, step)
        if len(numbers) > room:
            raise ValueError(f"the range {shown} makes more than {MAX_HOSTS:,} hosts")
        values = [str(number).zfill(width) for number in numbers]
    else:
        raise ValueError(f"the range {shown} must go from number to number or from letter to letter")
    if not values:
        raise ValueError(f"the range {shown} is empty: its end comes before its start")
    if len(values) > room:
        raise ValueError(f"the range {shown} makes more than {MAX_HOSTS:,} hosts")
    return values
