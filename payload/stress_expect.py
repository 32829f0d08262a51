r"""What counts as the right reply, and where it ends.

In: --expect and the framing options. Out: an `Expect` that a worker asks. A reply is one of

  exact    its bytes are known before it comes: echo (the message itself), text:, hex:. Its length frames it.
  framed   its end is found in what has come so far (a `frame` function), then its content is judged.
  none     no reply is awaited; the message counts as verified once the kernel has taken all of it.

Pure functions of bytes. To add a framing, write a function (bytes so far) -> length of the first whole reply in
them or None, and add a row to FRAMES.
"""

import re
from typing import Callable, NamedTuple, Optional

from stress_message import MessageError, compile_message

LONGEST_REPLY = 16 << 20
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n", re.I)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*\bchunked[ \t]*\r\n", re.I)
_BODILESS = re.compile(rb"HTTP/1\.[01] (?:1\d\d|204|304)\b")

Expect = NamedTuple(
    "Expect",
    [
        ("text", str),
        ("exact", bool),
        ("reply_to", Optional[Callable[[int, int], Optional[bytes]]]),
        ("frame", Optional[Callable[[bytes], Optional[int]]]),
        ("judge", Callable[[bytes], Optional[str]]),
        ("longest", int),
        ("loose", bool),
        ("silent", bool),
    ],
)
Expect.__doc__ = """What is expected.

text: as asked; exact: the reply's bytes are known: reply_to(conn, seq), or the message itself where that is None;
frame(data) -> length of the first whole reply in data or None, where not exact (None: no reply is expected);
judge(reply) -> None, or what is wrong with it in a few words; longest: bytes of a reply at most; loose: bytes that
no message asked for are nothing wrong; silent: no reply is awaited.
"""


class FrameError(ValueError):
    """What came cannot be the beginning of a reply; the text says why."""


def compile_expect(text: str, frame: str = "", option: str = "--expect", host: str = "", seed: int = 0) -> Expect:
    """The expectation for `text`: echo, any, none, text:T, hex:H or regex:R (searched in the reply, bytes).

    :param frame: "" or a row of FRAMES with its argument: "bytes:10", "delimiter:\\r\\n", "http", "mqtt".

    Raises MessageError for anything else.
    """
    kind, colon, rest = text.partition(":")
    framing = compile_frame(frame) if frame else None
    if text == "none":
        if framing:
            raise MessageError("{} none awaits no reply, so there is nothing to frame".format(option))
        return Expect(text, False, _nothing, None, _fine, 0, True, True)
    if text == "echo" or (colon and kind in ("text", "hex")):
        if framing:
            raise MessageError("{} {}: the reply's length is known, it needs no framing".format(option, text))
        if text == "echo":
            return Expect(text, True, None, None, _fine, 0, False, False)
        content = rest if kind == "text" else text
        if kind == "text" and rest.startswith(("hex:", "@")):
            content = "\\x{:02x}".format(ord(rest[0])) + rest[1:]
        message = compile_message(content, option, host, seed)
        return Expect(text, True, message.render, None, _fine, message.longest, False, False)
    if text == "any":
        return Expect(text, False, _nothing, framing or _whatever, _fine, LONGEST_REPLY, not framing, False)
    if colon and kind == "regex":
        if not rest:
            raise MessageError("{} is empty".format(option))  # it would match before anything has come
        try:
            pattern = re.compile(rest.encode("utf-8", "surrogateescape"), re.S)
        except (re.error, OverflowError, RecursionError) as e:
            raise MessageError("{} {}: not a regular expression: {}".format(option, text, e))

        def judge(reply: bytes) -> Optional[str]:
            if pattern.search(reply):
                return None
            return "the reply does not match {}: {!r}".format(rest, reply[:80])

        def until_match(data: bytes) -> Optional[int]:
            # Without framing the reply is whole once it matches; until then more may come.
            return len(data) if pattern.search(data) else None

        return Expect(text, False, _nothing, framing or until_match, judge, LONGEST_REPLY, not framing, False)
    known = "echo, any, none, text:T, hex:H and regex:R"
    raise MessageError("{} {} is not known; known are {}".format(option, text, known))


def compile_frame(text: str) -> Callable[[bytes], Optional[int]]:
    """The framing function for a row of FRAMES and its argument. Raises MessageError."""
    name, _, argument = text.partition(":")
    if name not in FRAMES:
        raise MessageError("there is no framing {}; known are {}".format(text, ", ".join(sorted(FRAMES))))
    return FRAMES[name](argument)


def _nothing(conn: int, seq: int) -> None:
    return None


def _fine(reply: bytes) -> None:
    return None


def _whatever(data: bytes) -> Optional[int]:
    """What has arrived is a reply."""
    return len(data) or None


def by_bytes(argument: str) -> Callable[[bytes], Optional[int]]:
    """Every reply has so many bytes."""
    if not re.match(r"^[1-9][0-9]{0,7}$", argument) or int(argument) > LONGEST_REPLY:
        raise MessageError("--reply-bytes {} is not a number from 1 to {:,}".format(argument, LONGEST_REPLY))
    size = int(argument)
    return lambda data: size if len(data) >= size else None


def by_delimiter(argument: str) -> Callable[[bytes], Optional[int]]:
    """A reply ends with the first occurrence of the delimiter (which belongs to it)."""
    end = compile_message(argument, "--delimiter").render(0, 0)

    def frame(data: bytes) -> Optional[int]:
        at = data.find(end)
        return None if at < 0 else at + len(end)

    return frame


def by_http(argument: str) -> Callable[[bytes], Optional[int]]:
    """HTTP/1.x responses (RFC 9112, 6.3): headers, then a body by Content-Length or in chunks. A body that ends
    with the connection is none that a connection survives."""

    def frame(data: bytes) -> Optional[int]:
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise FrameError("not an HTTP response: {!r}".format(data[:40]))
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        head, body = data[: end + 2], end + 4
        if _BODILESS.match(head):
            return body
        if _CHUNKED.search(head):
            return _chunks_end(data, body)
        length = _CONTENT_LENGTH.search(head)
        if not length:
            raise FrameError("the HTTP response tells no length: {!r}".format(head[:200]))
        total = body + int(length.group(1))
        return total if len(data) >= total else None

    return frame


def _chunks_end(data: bytes, at: int) -> Optional[int]:
    """Where the chunked body that begins at `at` ends (its trailers included), None while it has not."""
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        digits = data[at:line].split(b";")[0].strip()
        if not re.match(rb"[0-9A-Fa-f]{1,16}\Z", digits):  # int() takes a sign too: backwards, for ever
            raise FrameError("not a chunk size: {!r}".format(data[at : at + 20]))
        size = int(digits, 16)
        if size == 0:
            if data[line : line + 4] == b"\r\n\r\n":
                return line + 4
            end = data.find(b"\r\n\r\n", line)
            return None if end < 0 else end + 4
        at = line + 2 + size + 2
        if len(data) < at:
            return None


def by_mqtt(argument: str) -> Callable[[bytes], Optional[int]]:
    """MQTT control packets (3.1.1, section 2.2): a byte, the remaining length in 1 to 4 bytes of 7 bits."""

    def frame(data: bytes) -> Optional[int]:
        size = 0
        for place in range(4):
            if len(data) < place + 2:
                return None
            byte = data[place + 1]
            size |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                total = place + 2 + size
                return total if len(data) >= total else None
        raise FrameError("not an MQTT packet: {!r}".format(data[:8]))

    return frame


FRAMES = {
    "bytes": by_bytes,
    "delimiter": by_delimiter,
    "http": by_http,
    "mqtt": by_mqtt,
}  # type: Dict[str, Callable[[str], Callable[[bytes], Optional[int]]]]
