"""Frames between the controller and an agent: a 4-byte big-endian length, then that many bytes of JSON.

Both sides use this module, so the two ends cannot disagree. A frame is one JSON object. What arrives is
bounded (MAX_FRAME) before anything is allocated for it, and anything that is not a frame is a ProtocolError.
"""

import json
import struct

TYPE_CHECKING = False  # typing's, without its import: that would take a tenth of an agent's start
if TYPE_CHECKING:
    from typing import Any, Dict, List

VERSION = 1
MAX_FRAME = 32 * 1024 * 1024  # bytes; the largest thing sent is an observation, bounded at 2 MiB, or a copied file

_HEAD = struct.Struct(">I")


class ProtocolError(Exception):
    """The other side sent something that is not a frame of this protocol."""


def pack(message: "Dict[str, Any]") -> bytes:
    """The bytes of one frame.

    :param message: a dict of JSON types; a date, which YAML knows and JSON does not, goes as its text.
    :raises ProtocolError: it would be larger than MAX_FRAME bytes.
    """
    body = json.dumps(message, separators=(",", ":"), default=_plain).encode("utf-8", "surrogatepass")
    if len(body) > MAX_FRAME:
        raise ProtocolError("a message of {} bytes is over the limit of {}".format(len(body), MAX_FRAME))
    return _HEAD.pack(len(body)) + body


def _plain(value: "Any") -> str:
    import datetime  # late: few messages need it

    if isinstance(value, datetime.date):
        return str(value)
    raise TypeError("{} cannot be sent".format(type(value).__name__))


class Decoder:
    """Bytes in, whole messages out, in order.

    >>> Decoder().feed(pack({"type": "beat"}))
    [{'type': 'beat'}]
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> "List[Dict[str, Any]]":
        """All messages completed by `data`, a list of dicts.

        :raises ProtocolError: for an oversized length, bytes that are not JSON, or JSON that is not an object.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ProtocolError("a frame claims {} bytes, the limit is {}".format(length, MAX_FRAME))
            if len(self._buffer) < _HEAD.size + length:
                break
            body = bytes(self._buffer[_HEAD.size : _HEAD.size + length])
            del self._buffer[: _HEAD.size + length]
            try:
                message = json.loads(body.decode("utf-8", "surrogatepass"))
            except (ValueError, RecursionError) as error:
                raise ProtocolError("a frame is not JSON: {}".format(error))
            if not isinstance(message, dict):
                raise ProtocolError("a frame is not a JSON object")
            messages.append(message)
        return messages
