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
