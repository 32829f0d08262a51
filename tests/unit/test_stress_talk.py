"""Messages, expectations, framings and presets: pure functions by tables."""

import pytest
from stress_expect import FrameError, compile_expect, compile_frame
from stress_message import MessageError, as_hex, compile_message
from stress_talk import PRESETS, compile_talk

MESSAGES = [
    # text, what connection 7 says as message 3
    (r"a\r\n\x41\{\}", b"a\r\nA{}"),
    ("{conn}.{seq}", b"7.3"),
    ("{conn:5}|{seq:2}|100%", b"00007|03|100%"),
    ("hex:0a 0B{conn}ff", b"\x0a\x0b7\xff"),
    ("Host: {host}", b"Host: example.net"),
    ("@FILE", b"{json} % 7 \\r\n\xff"),
]


@pytest.mark.parametrize(("text", "expected"), MESSAGES)
def test_messages(tmp_path, text, expected):
    file = tmp_path / "file"
    file.write_bytes(b"{json} % {conn} \\r\n\xff")
    message = compile_message(text.replace("FILE", str(file)), host="example.net")
    assert message.render(7, 3) == expected
    assert message.longest >= len(expected)


def test_a_file_travels_as_hex(tmp_path):
    content = b"{json} % {conn}{rand:4} \r\n\xff"
    (tmp_path / "file").write_bytes(content)
    there, here = compile_message(as_hex(content)), compile_message(f"@{tmp_path}/file")
    assert there.render(7, 3) == here.render(7, 3)


def test_random_text_depends_on_seed_connection_sequence_and_place_alone():
    message = compile_message("{rand:8}-{rand:8}-{rand:3}", seed=1)
    one = message.render(5, 0)
    assert one == compile_message("{rand:8}-{rand:8}-{rand:3}", seed=1).render(5, 0)
    assert len(one) == 8 + 1 + 8 + 1 + 3 == message.longest
    others = {message.render(5, 1), message.render(6, 0), compile_message(message.text, seed=2).render(5, 0), one}
    assert len(others) == 4
    assert one[:8] != one[9:17]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (r"\q", "escape"),
        ("{x}", "{x}"),
        ("{rand}", "{rand}"),
        ("hex:0", "hexadecimal"),
        ("@/no/such", "No such file"),
        ("{conn:0}", "{conn:0}"),
        ("x" * (1 << 20) + "y", "longer than"),
    ],
)
def test_messages_that_are_none(text, words):
    with pytest.raises(MessageError, match=r"--m(: | )") as caught:
        compile_message(text, "--m")
    assert words in str(caught.value)


BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nTrail: er\r\n\r\n"
)
FRAMES = [
    ("bytes:3", b"abc"),
    (r"delimiter:\r\n", b"abc\r\n"),
    ("http", BODY),
    ("http", CHUNKED),
    ("http", CHUNKED.replace(b"Trail: er\r\n", b"")),
    ("http", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
    ("mqtt", b"\x20\x02\x00\x00"),
    ("mqtt", b"\x30\x80\x01" + b"x" * 128),
]


@pytest.mark.parametrize(("frame", "reply"), FRAMES)
def test_a_frame_ends_where_the_reply_does(frame, reply):
    end = compile_frame(frame)
    assert [end(reply[:size]) for size in range(len(reply))] == [None] * len(reply)
    assert end(reply) == end(reply + b"more") == len(reply)


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        ("http", b"SSH-2.0"),
        ("http", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
        ("http", CHUNKED.replace(b"3\r\n", b"zz\r\n")),
        ("mqtt", b"\x20\xff\xff\xff\xff\x01"),
    ],
)
def test_what_cannot_be_a_reply(frame, data):
    with pytest.raises(FrameError):
        compile_frame(frame)(data)


BAD = [
    {"expect": "sometimes"},
    {"expect": "regex:("},
    {"expect": "echo", "delimiter": "x"},
    {"expect": "none", "reply_bytes": "5"},
    {"expect": "any", "reply_bytes": "0"},
    {"expect": "any", "reply_bytes": "5", "delimiter": "x"},
    {"expect": "text:"},
]
NOTHING = dict.fromkeys(
    ("preset", "message", "expect", "first_message", "first_expect", "delimiter", "reply_bytes"), None
) | {"host": "h", "seed": 0}


@pytest.mark.parametrize("options", BAD, ids=lambda options: str(options))
def test_options_that_make_no_sense(options):
    with pytest.raises(MessageError):
        compile_talk(**(NOTHING | options))


def test_the_default_is_a_unique_echo_and_presets_can_be_overridden():
    assert compile_talk(**NOTHING).unique_echo
    talk = compile_talk(**(NOTHING | {"preset": "redis"}))
    assert not talk.unique_echo
    assert talk.expect.reply_to(1, 2) == b"$23\r\n000000000001.0000000002\r\n"
    assert talk.render(1, 2).endswith(talk.expect.reply_to(1, 2))
    talk = compile_talk(**(NOTHING | {"preset": "http", "message": "GET /x HTTP/1.1\\r\\n\\r\\n"}))
    assert talk.render(0, 0).startswith(b"GET /x") and talk.expect.frame(BODY) == len(BODY)
    assert talk.expect.judge(BODY) is None and "500" in talk.expect.judge(BODY.replace(b"200", b"500"))
    assert not compile_talk(**(NOTHING | {"preset": "http", "expect": "echo"})).expect.frame


def test_the_mqtt_connect_packet_has_the_length_that_it_says():
    talk = compile_talk(**(NOTHING | {"preset": "mqtt"}))
    for conn in (0, 10**9 + 5, 10**12 - 1):
        packet = talk.first_render(conn, 0)
        assert compile_frame("mqtt")(packet) == len(packet)
        assert packet[12:14] == b"\x00\x16" and len(packet[14:]) == 22
    assert talk.render(0, 1) == b"\xc0\x00" and talk.expect.reply_to(0, 1) == b"\xd0\x00"


def test_every_preset_compiles():
    for name in PRESETS:
        compile_talk(**(NOTHING | {"preset": name}))


def test_a_reply_tells_whose_it_is():
    talk = compile_talk(**NOTHING)
    assert talk.owner(talk.render(12, 3)) == (12, 3)
    assert talk.owner(talk.render(12, 3)[:-1]) is None
    assert talk.owner(talk.render(12, 3).replace(b".3", b".03")) is None
    redis = compile_talk(**(NOTHING | {"preset": "redis"}))
    assert redis.owner(redis.expect.reply_to(7, 8)) == (7, 8)
    twice = compile_talk(**(NOTHING | {"message": "{seq}.{conn}.{seq}"}))
    assert twice.owner(b"5.6.5") == (6, 5) and twice.owner(b"5.6.7") is None
    for message in ("{conn} {seq} {rand:4}", "constant"):
        talk = compile_talk(**(NOTHING | {"message": message}))
        assert talk.owner(talk.render(1, 2)) is None


def test_text_that_looks_like_another_form_is_text():
    assert compile_expect("text:hex:00").reply_to(0, 0) == b"hex:00"
    assert compile_expect("text:@x").reply_to(0, 0) == b"@x"
