"""What the connections say: a message with placeholders, made into a fast function of connection and sequence.

In: the text of --message. Out: a `Message`. The default is the article's GET with one more header, unique per
connection and sequence, so that a server that crosses two connections' bytes is caught.
"""

import hashlib
import re
from typing import Any, Callable, List, NamedTuple, Tuple

DEFAULT = r"GET /msg_server HTTP/1.1\r\nConnection: keep-alive\r\nX-Tcpfleet: {conn}.{seq}\r\n\r\n"
LONGEST = 1 << 20
ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\", "{": "{", "}": "}"}
PLACEHOLDERS = "{conn}, {seq} ({conn:12}: with leading zeros), {host} and {rand:8}"
_TOKEN = re.compile(r"\\x[0-9a-fA-F]{2}|\\.|\\$|\{[^{}]*\}|[{}]", re.S)
_PLACEHOLDER = re.compile(r"\{(?:(conn|seq)(?::([1-9][0-9]?))?|(host)|(rand):([1-9][0-9]{0,5}))\}")

Message = NamedTuple(
    "Message", [("text", str), ("render", Callable[[int, int], bytes]), ("longest", int), ("unique", bool)]
)
Message.__doc__ = """A compiled message.

text: as given; render(conn, seq) -> the bytes to send; longest: bytes at most (20-digit numbers);
unique: names both the connection and the sequence.
"""


class MessageError(ValueError):
    """The text is no message; the exception's text is one sentence for the user."""


def compile_message(text: str, option: str = "--message", host: str = "", seed: int = 0) -> Message:
    r"""The message for `text`.

    Three forms. `@FILE`: the file's bytes; `hex:0a 1b`: these bytes; else the text itself as UTF-8, with the
    escapes \r \n \t \0 \\ \{ \} \xHH. Placeholders in all of them: {conn} (number of the connection), {seq}
    (number of the message on it, from 0), {conn:12} (the same with leading zeros), {host} and {rand:8} (so many
    hexadecimal digits that depend on seed, connection and sequence alone). In a file, other braces are just bytes.

    :param option: named in errors.
    :param host: what {host} stands for.
    :param seed: of {rand:N}: equal seeds give equal messages.

    Raises MessageError for an unknown escape or placeholder, an unreadable file, an empty message, one over 1 MiB.
    """
    if text.startswith("@"):
        pieces = _split(_read(text[1:], option), lambda raw: raw.encode("latin-1"))
    elif text.startswith("hex:"):
        pieces = _split(text[4:], lambda digits: _unhex(digits, option))
    else:
        pieces = _parse(text, option)
    template, order, longest = b"", [], 0  # type: bytes, List[Tuple[str, int]], int
    for piece in pieces:
        if isinstance(piece, tuple) and piece[0] == "host":
            piece = host.encode("utf-8")
        if isinstance(piece, bytes):
            template += piece.replace(b"%", b"%%")
            longest += len(piece)
            continue
        kind, width = piece
        order.append(piece)
        template += b"%s" if kind == "rand" else b"%%0%dd" % width if width else b"%d"
        longest += width if kind == "rand" else max(20, width)
    if not longest:
        raise MessageError("{} is empty".format(option))
    if longest > LONGEST:
        raise MessageError("{} is longer than {:,} bytes".format(option, LONGEST))
    unique = {"conn", "seq"} <= {kind for kind, _ in order}
    return Message(text, _renderer(template, order, seed), longest, unique)


def bracketed(host: str) -> str:
    """A host as URLs have it, so that a port or a path can follow: an IPv6 address in brackets."""
    return "[{}]".format(host) if ":" in host else host


def as_hex(content: bytes) -> str:
    """The `hex:` form that says the same as a file with this content, placeholders included."""
    parts = _split(content.decode("latin-1"), lambda raw: raw.encode("latin-1"))
    names = iter(found.group() for found in _PLACEHOLDER.finditer(content.decode("latin-1")))
    return "hex:" + "".join(part.hex() if isinstance(part, bytes) else next(names) for part in parts)


def _parse(text: str, option: str) -> List[Any]:
    """Literal bytes and (placeholder, width) in turn."""
    out, at = [], 0  # type: List[Any], int
    for found in _TOKEN.finditer(text):
        out.append(text[at : found.start()].encode("utf-8", "surrogateescape"))
        at = found.end()
        token = found.group()
        named = _PLACEHOLDER.match(token)
        if token.startswith("\\x") and len(token) == 4:
            out.append(bytes([int(token[2:], 16)]))
        elif token.startswith("\\"):
            if token[1:] not in ESCAPES:
                known = r"\r \n \t \0 \\ \{ \} \xHH"
                raise MessageError("{} has an unknown escape {}; known are {}".format(option, token, known))
            out.append(ESCAPES[token[1:]].encode("ascii"))
        elif named:
            out.append(_placeholder(named))
        else:
            text = "{} has an unknown placeholder {}; known are {}, and \\{{ is a brace"
            raise MessageError(text.format(option, token, PLACEHOLDERS))
    out.append(text[at:].encode("utf-8", "surrogateescape"))
    return out


def _split(text: str, literal: Callable[[str], bytes]) -> List[Any]:
    """As `_parse`, where only whole placeholders mean anything."""
    out, at = [], 0  # type: List[Any], int
    for found in _PLACEHOLDER.finditer(text):
        out.append(literal(text[at : found.start()]))
        out.append(_placeholder(found))
        at = found.end()
    out.append(literal(text[at:]))
    return out


def _placeholder(found: Any) -> Tuple[str, int]:
    number, width, host, rand, digits = found.groups()
    return (number or host or rand, int(width or digits or 0))


def _unhex(digits: str, option: str) -> bytes:
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise MessageError("{}: {!r} is not an even number of hexadecimal digits".format(option, digits[:40]))


def _read(path: str, option: str) -> str:
    """A file's bytes as characters 0 to 255."""
    try:
        with open(path, "rb") as source:
            return source.read(LONGEST + 1).decode("latin-1")
    except OSError as e:
        raise MessageError("{}: cannot read {}: {}".format(option, path, e.strerror))


def _renderer(template: bytes, order: List[Tuple[str, int]], seed: int) -> Callable[[int, int], bytes]:
    """A function (conn, seq) -> bytes; the common shapes take one formatting operation."""
    if not order:
        constant = template.replace(b"%%", b"%")
        return lambda conn, seq: constant
    names = [kind for kind, _ in order]
    if names == ["conn", "seq"]:
        return lambda conn, seq: template % (conn, seq)

    def render(conn: int, seq: int) -> bytes:
        values = []  # type: List[Any]
        for place, (kind, width) in enumerate(order):
            if kind == "rand":
                source = hashlib.shake_128(b"%d %d %d %d" % (seed, conn, seq, place))
                values.append(source.hexdigest((width + 1) // 2)[:width].encode("ascii"))
            else:
                values.append(conn if kind == "conn" else seq)
        return template % tuple(values)

    return render
