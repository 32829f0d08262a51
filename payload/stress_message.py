"""What the connections say: a message with placeholders, made into a fast function of connection and sequence.

In: the text of --message. Out: a `Message`. The default is the article's GET with one more header, unique per
connection and sequence, so that a server that crosses two connections' bytes is caught.
"""

import re
from typing import Callable, List, NamedTuple

DEFAULT = r"GET /msg_server HTTP/1.1\r\nConnection: keep-alive\r\nX-Tcpfleet: {conn}.{seq}\r\n\r\n"
LONGEST = 1 << 20
ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\", "{": "{", "}": "}"}
_TOKEN = re.compile(r"\\x[0-9a-fA-F]{2}|\\.|\\$|\{[^{}]*\}|[{}]", re.S)

Message = NamedTuple(
    "Message", [("text", str), ("render", Callable[[int, int], bytes]), ("longest", int), ("unique", bool)]
)
Message.__doc__ = """A compiled message.

text: as given; render(conn, seq) -> the bytes to send; longest: bytes at most (20-digit numbers);
unique: names both the connection and the sequence.
"""


class MessageError(ValueError):
    """The text is no message; the exception's text is one sentence for the user."""


def compile_message(text: str) -> Message:
    r"""The message for `text`.

    Escapes: \r \n \t \0 \\ \{ \} \xHH. Placeholders: {conn} (number of the connection) and {seq}
    (number of the message on it, from 0). Other text is sent as UTF-8.

    Raises MessageError for an unknown escape or placeholder, an empty message or one over 1 MiB.
    """
    literal = b""
    parts = []  # type: List[bytes]
    order = []  # type: List[str]
    at = 0
    for found in _TOKEN.finditer(text):
        literal += text[at : found.start()].encode("utf-8", "surrogateescape")
        at = found.end()
        token = found.group()
        if token.startswith("\\x") and len(token) == 4:
            literal += bytes([int(token[2:], 16)])
        elif token.startswith("\\"):
            if token[1:] not in ESCAPES:
                known = r"\r \n \t \0 \\ \{ \} \xHH"
                raise MessageError("--message has an unknown escape {}; known are {}".format(token, known))
            literal += ESCAPES[token[1:]].encode("ascii")
        elif token in ("{conn}", "{seq}"):
            parts.append(literal)
            order.append(token[1:-1])
            literal = b""
        else:
            known = r"{conn} and {seq}, and \{ is a brace"
            raise MessageError("--message has an unknown placeholder {}; known are {}".format(token, known))
    literal += text[at:].encode("utf-8", "surrogateescape")
    longest = sum(len(part) for part in parts) + len(literal) + 20 * len(order)
    if not longest:
        raise MessageError("--message is empty")
    if longest > LONGEST:
        raise MessageError("--message is longer than {:,} bytes".format(LONGEST))
    return Message(text, _renderer([*parts, literal], order), longest, {"conn", "seq"} <= set(order))


def _renderer(literals: List[bytes], order: List[str]) -> Callable[[int, int], bytes]:
    """A function (conn, seq) -> bytes; the common shapes take one formatting operation."""
    if not order:
        constant = literals[0]
        return lambda conn, seq: constant
    template = b"%d".join(part.replace(b"%", b"%%") for part in literals)
    if order == ["conn", "seq"]:
        return lambda conn, seq: template % (conn, seq)
    names = tuple(order)
    return lambda conn, seq: template % tuple(conn if name == "conn" else seq for name in names)
