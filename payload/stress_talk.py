r"""The whole conversation of a connection: first message and its reply, later messages and theirs; and presets.

In: the options --preset, --message, --first-message, --expect, --first-expect, --delimiter, --reply-bytes, --seed.
Out: a `Talk`, which all workers share. Pure.
"""

import re
from typing import Callable, NamedTuple, Optional, Tuple

from stress_expect import Expect, compile_expect
from stress_message import DEFAULT, MessageError, compile_message

CHUNK = 65536  # bytes read at once where the reply's length is not known before

Talk = NamedTuple(
    "Talk",
    [
        ("render", Callable[[int, int], bytes]),
        ("first_render", Callable[[int, int], bytes]),
        ("expect", Expect),
        ("first_expect", Expect),
        ("read_size", int),
        ("unique_echo", bool),
        ("owner", Callable[[bytes], Optional[Tuple[int, int]]]),
    ],
)
Talk.__doc__ = """render(conn, seq) -> message, first_render the same for message 0 of a connection; expect,
first_expect: of their replies; read_size: bytes to read at once: one more than any expected reply, to see one that
is too long;
unique_echo: every message is unique and is expected back; owner(reply) -> (conn, seq) of the message that
it would be the right reply to, where replies are unique."""

Preset = NamedTuple(
    "Preset",
    [
        ("message", str),
        ("expect", str),
        ("frame", str),
        ("first_message", str),
        ("first_expect", str),
        ("help", str),
    ],
)
PRESETS = {
    "http": Preset(
        r"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive\r\nX-Tcpfleet: {conn}.{seq}\r\n\r\n",
        r"regex:\AHTTP/1\.[01] 200 ",
        "http",
        "",
        "",
        "GET / with keep-alive, expects whole responses of status 200",
    ),
    "redis": Preset(
        # PING with an argument returns it, so that crossed connections are caught.
        r"*2\r\n$4\r\nPING\r\n$23\r\n{conn:12}.{seq:10}\r\n",
        r"text:$23\r\n{conn:12}.{seq:10}\r\n",
        "",
        "",
        "",
        "PING with an argument, expects it back",
    ),
    "mqtt": Preset(
        # PINGREQ -> PINGRESP; before them CONNECT (clean session, no keep-alive, client id of 22 characters) ->
        # CONNACK, accepted.
        "hex:c000",
        "hex:d000",
        "",
        r"\x10\x22\x00\x04MQTT\x04\x02\x00\x00\x00\x16tf{conn:12}{rand:8}",
        "hex:20020000",
        "MQTT 3.1.1: CONNECT, then PINGREQ",
    ),
}
"""Ready-made message options; an option that is given takes the place of the preset's."""


def compile_talk(
    preset: Optional[str],
    message: Optional[str],
    expect: Optional[str],
    first_message: Optional[str],
    first_expect: Optional[str],
    delimiter: Optional[str],
    reply_bytes: Optional[str],
    host: str,
    seed: int,
) -> Talk:
    """The conversation; None is "not given". Raises MessageError with one sentence."""
    ready = PRESETS[preset] if preset else Preset(DEFAULT, "echo", "", "", "", "")
    if delimiter is not None and reply_bytes is not None:
        raise MessageError("--delimiter and --reply-bytes say both where a reply ends; give one")
    framed = expect is None or expect == "any" or expect.startswith("regex:")
    frame = ready.frame if framed else ""
    if delimiter is not None:
        frame = "delimiter:" + delimiter
    elif reply_bytes is not None:
        frame = "bytes:" + reply_bytes
    if message is None and first_message is None:
        first_message = ready.first_message or None
        first_expect = first_expect or ready.first_expect or None
    said = compile_message(message if message is not None else ready.message, "--message", host, seed)
    wanted = compile_expect(expect or ready.expect, frame, "--expect", host, seed)
    first_said, first_wanted = said, wanted
    if first_message is not None:
        first_said = compile_message(first_message, "--first-message", host, seed)
    if first_expect is not None:
        first_wanted = compile_expect(first_expect, "", "--first-expect", host, seed)
    longest = [
        (message.longest if expected.text == "echo" else expected.longest) if expected.exact else CHUNK - 1
        for message, expected in ((said, wanted), (first_said, first_wanted))
    ]
    unique = said.unique and first_said.unique and wanted.text == first_wanted.text == "echo"
    owner = find_owner(wanted.reply_to or said.render) if wanted.exact and said.unique else _nobody
    return Talk(said.render, first_said.render, wanted, first_wanted, max(longest) + 1, unique, owner)


def find_owner(
    reply_to: Callable[[int, int], Optional[bytes]],
) -> Callable[[bytes], Optional[Tuple[int, int]]]:
    """A function that reads connection and sequence out of a reply of the form that `reply_to` gives."""
    conn, seq = 982451653982, 961748941961  # as good as never part of the text around them
    form = reply_to(conn, seq) or b""
    pattern = re.escape(form)
    for name, number in (("conn", conn), ("seq", seq)):
        mark = re.escape(b"%d" % number)
        if mark not in pattern:
            return _nobody
        pattern = pattern.replace(mark, b"(?P<" + name.encode() + b">[0-9]+)", 1)
        pattern = pattern.replace(mark, b"(?P=" + name.encode() + b")")
    compiled = re.compile(pattern + rb"\Z", re.S)

    def owner(reply: bytes) -> Optional[Tuple[int, int]]:
        found = compiled.match(reply)
        if not found:
            return None
        whose = int(found.group("conn")), int(found.group("seq"))
        return whose if reply_to(*whose) == reply else None  # "7.01" is nobody's

    return owner


def _nobody(reply: bytes) -> None:
    return None
