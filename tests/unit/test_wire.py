"""Frames: whole messages out however the bytes arrive, and nothing else accepted."""

import json
import struct

import pytest
import wire

MESSAGES = [{"type": "beat"}, {"text": '中文 \udce4 \x00 " \\'}, {"deep": [[[{}]]], "n": 1.5}]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_messages_survive_any_split(size: int) -> None:
    stream = b"".join(wire.pack(message) for message in MESSAGES)
    decoder, out = wire.Decoder(), []
    for start in range(0, len(stream), size):
        out += decoder.feed(stream[start : start + size])
    assert out == MESSAGES


def test_a_flat_message_is_packed_as_any_other() -> None:
    flat = {"type": "hello", "id": -5, "text": MESSAGES[1]["text"], "nofile": [1, 2**63], "none": None}
    assert wire.Decoder().feed(wire.pack_flat(flat)) == [flat]


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", wire.MAX_FRAME + 1),
        struct.pack(">I", 4) + b"nope",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 2) + b"\xff\xfe",
        struct.pack(">I", 200_000) + b"[" * 200_000,
        struct.pack(">I", 0),
    ],
    ids=["oversized", "not JSON", "not an object", "not UTF-8", "too deep", "empty"],
)
def test_anything_else_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.Decoder().feed(data)


def test_a_message_over_the_limit_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME", 100)
    with pytest.raises(wire.ProtocolError, match="over the limit of 100"):
        wire.pack({"text": "x" * 100})
    assert json.loads(wire.pack({"text": "x"})[4:]) == {"text": "x"}


RUN = {"type": "run", "id": 1, "steps": [{"op": "ping", "args": {}, "become": {"user": "u", "exe": "sudo"}}]}
RESULT = {"type": "result", "id": 1, "step": 0, "result": {"changed": True, "diff": [{}], "own": [1], "msg": "x"}}


@pytest.mark.parametrize(("message", "kinds"), [(RUN, wire.FROM_CONTROLLER), (RESULT, wire.FROM_AGENT)])
def test_messages_are_for_one_direction(message: dict, kinds: dict) -> None:
    wire.check(message, kinds)
    for other in (wire.FROM_CONTROLLER, wire.FROM_AGENT):
        if other is not kinds:
            with pytest.raises(wire.ProtocolError, match="unknown message type"):
                wire.Decoder(other).feed(wire.pack(message))


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"type": None}, "unknown message type None"),
        ({"type": {}}, "unknown message type"),
        ({"type": "x" * 1000}, "unknown message type 'x{59}"),
        ({**RUN, "steps": {}}, "run: steps is a dict"),
        ({**RUN, "steps": ["ping"]}, "step: unknown field 'ping'"),
        ({**RUN, "steps": [{"op": "ping"}]}, "step: args is a NoneType"),
        ({**RUN, "steps": [{"op": "ping", "args": {}, "check": 1}]}, "step: check is a int"),
        ({**RUN, "steps": [{"op": "ping", "args": {}, "become": {"user": "u"}}]}, "become: exe is a NoneType"),
        ({**RUN, "id": 1.5}, "run: id is a float"),
        ({**RUN, "version": 2}, "run: unknown field 'version'"),
    ],
)
def test_what_no_controller_sends(message: dict, said: str) -> None:
    with pytest.raises(wire.ProtocolError, match=said):
        wire.Decoder(wire.FROM_CONTROLLER).feed(wire.pack(message))


def test_a_frame_of_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_VALUES", 10)
    assert wire.Decoder().feed(wire.pack({"a": [0] * 9}))
    for value in ([0] * 11, [[]] * 11, [{}] * 11):
        with pytest.raises(wire.ProtocolError, match="over 10 values"):
            wire.Decoder().feed(wire.pack({"a": value}))
