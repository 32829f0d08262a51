"""Frames between the controller and an agent: a 4-byte big-endian length, then that many bytes of JSON.

Both sides use this module, so the two ends cannot disagree. A frame is one JSON object. What arrives is bounded
(MAX_FRAME, MOST_VALUES) before anything is allocated for it; what is no frame, and a message with a type, a field
or a kind of value that the tables below do not have, is a ProtocolError.
"""

TYPE_CHECKING = False  # typing's, without its import: that would take a tenth of an agent's start
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

VERSION = 1
_HEAD = 4  # bytes of a frame's length
MAX_FRAME = 32 * 1024 * 1024  # bytes; the largest thing sent is an observation, bounded at 2 MiB, or a copied file
MOST_VALUES = 4000000  # in one frame: 32 MiB of "[],[],..." would become 700 MB of lists

# Message type -> field -> the types of its value; type(None) is for a field that may be absent.
_NONE = type(None)
FROM_CONTROLLER = {
    "run": {"id": (int,), "steps": (list,)},
    "beat": {},
}  # type: Dict[str, Dict[str, Any]]
FROM_AGENT = {
    "hello": {
        "protocol": (int,),
        "pid": (int,),
        "uid": (int,),
        "python": (str,),
        "executable": (str,),
        "boot_id": (str,),
        "nofile": (list,),
        "uncached": (str, _NONE),
    },
    "progress": {"id": (int,), "step": (int,), "data": (dict,)},
    "result": {"id": (int,), "step": (int,), "result": (dict,)},
    "end": {"id": (int,)},
    "beat": {},
}  # type: Dict[str, Dict[str, Any]]
STEP = {
    "op": (str,),
    "args": (dict,),
    "check": (bool, _NONE),
    "diff": (bool, _NONE),
    "become": (dict, _NONE),
    "task": (int, _NONE),
    "go_on": (bool, _NONE),
    "notify": (dict, _NONE),
    "journal": (dict, _NONE),
    "hidden": (bool, _NONE),
}  # type: Dict[str, Any]
BECOME = {"user": (str,), "exe": (str,), "password": (str, _NONE)}  # type: Dict[str, Any]
# What the controller reads of any result; an operation's own fields are its caller's business.
RESULT = {
    "changed": (bool, _NONE),
    "failed": (bool, _NONE),
    "skipped": (bool, _NONE),
    "msg": (str, _NONE),
    "rc": (int, _NONE),
    "stdout": (str, _NONE),
    "stderr": (str, _NONE),
    "exception": (str, _NONE),
    "ansible_facts": (dict, _NONE),
    "diff": (dict, list, _NONE),
    "warnings": (list, _NONE),
    "undo_by_hand": (list, _NONE),
}  # type: Dict[str, Any]
_LISTS = (("diff", dict), ("warnings", str), ("undo_by_hand", str))


class ProtocolError(Exception):
    """The other side sent something that is not a frame of this protocol."""


def pack(message: "Dict[str, Any]") -> bytes:
    """The bytes of one frame.

    :param message: a dict of JSON types; a date, which YAML knows and JSON does not, goes as its text.
    :raises ProtocolError: it would be larger than MAX_FRAME bytes.
    """
    import json  # late: it would take a third of an agent's start

    body = json.dumps(message, separators=(",", ":"), default=_plain).encode("utf-8", "surrogatepass")
    if len(body) > MAX_FRAME:
        raise ProtocolError("a message of {} bytes is over the limit of {}".format(len(body), MAX_FRAME))
    return len(body).to_bytes(_HEAD, "big") + body


def pack_flat(message: "Dict[str, Any]") -> bytes:
    """As `pack`, without json, for an object of texts, whole numbers, lists of whole numbers, and None."""
    try:
        from _json import encode_basestring_ascii as quoted  # what json takes it from, where there is one
    except ImportError:
        from json.encoder import encode_basestring_ascii as quoted

    def shown(value: "Any") -> str:
        return "null" if value is None else quoted(value) if isinstance(value, str) else str(value)

    body = ",".join(quoted(name) + ":" + shown(value) for name, value in message.items())
    return (len(body) + 2).to_bytes(_HEAD, "big") + b"{" + body.encode("ascii") + b"}"


def _plain(value: "Any") -> str:
    import datetime  # late: few messages need it

    if isinstance(value, datetime.date):
        return str(value)
    raise TypeError("{} cannot be sent".format(type(value).__name__))


def check(message: "Dict[str, Any]", kinds: "Dict[str, Dict[str, Any]]") -> None:
    """Whether a message is one that this side is to get.

    :raises ProtocolError: naming the type or the field that is not.
    """
    kind = message.get("type")
    fields = kinds.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise ProtocolError("unknown message type {!r:.60}".format(kind))
    _check_fields(kind, {name: value for name, value in message.items() if name != "type"}, fields)
    if kind == "result":
        check_result(message["result"])
    for step in message.get("steps", ()) if kind == "run" else ():
        _check_fields("step", step, STEP)
        if step.get("become") is not None:
            _check_fields("become", step["become"], BECOME)


def check_result(result: "Dict[str, Any]") -> None:
    """Whether what every result may have is what it is taken for.

    :raises ProtocolError: naming the field that is not.
    """
    _check_types("result", result, RESULT)
    for name, kind in _LISTS:
        value = result.get(name)
        for one in value if isinstance(value, list) else ():
            if not isinstance(one, kind):
                raise ProtocolError("result: {} has a {}".format(name, type(one).__name__))


def _check_fields(what: "Any", found: "Any", fields: "Dict[str, Any]") -> None:
    if not isinstance(found, dict) or not found.keys() <= fields.keys():
        unknown = sorted(found.keys() - fields.keys())[0] if isinstance(found, dict) else found
        raise ProtocolError("{}: unknown field {!r:.60}".format(what, unknown))
    _check_types(what, found, fields)


def _check_types(what: "Any", found: "Dict[str, Any]", fields: "Dict[str, Any]") -> None:
    for name, types in fields.items():
        if type(found.get(name)) not in types:
            raise ProtocolError("{}: {} is a {}".format(what, name, type(found.get(name)).__name__))


class Decoder:
    """Bytes in, whole messages out, in order.

    >>> Decoder(FROM_AGENT).feed(pack({"type": "beat"}))
    [{'type': 'beat'}]

    :param kinds: what may come: FROM_AGENT or FROM_CONTROLLER; None for any object.
    :param make: makes an object of its (name, value) pairs; None: as dict does.
    """

    def __init__(
        self,
        kinds: "Optional[Dict[str, Dict[str, Any]]]" = None,
        make: "Optional[Callable[[List[Tuple[str, Any]]], Dict[str, Any]]]" = None,
    ) -> None:
        self._buffer = bytearray()
        self._kinds, self._make = kinds, make

    def feed(self, data: bytes) -> "List[Dict[str, Any]]":
        """All messages completed by `data`, a list of dicts.

        :raises ProtocolError: for an oversized length, bytes that are not JSON, JSON that is not an object, and
            messages of other kinds.
        """
        import json  # late, as in `pack`

        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEAD:
            length = int.from_bytes(self._buffer[:_HEAD], "big")
            if length > MAX_FRAME:
                raise ProtocolError("a frame claims {} bytes, the limit is {}".format(length, MAX_FRAME))
            if len(self._buffer) < _HEAD + length:
                break
            body = bytes(self._buffer[_HEAD : _HEAD + length])
            del self._buffer[: _HEAD + length]
            if body.count(b",") + body.count(b"[") + body.count(b"{") > MOST_VALUES:
                raise ProtocolError("a frame of {} bytes has over {} values".format(length, MOST_VALUES))
            try:
                message = json.loads(body.decode("utf-8", "surrogatepass"), object_pairs_hook=self._make)
            except (ValueError, RecursionError) as error:
                raise ProtocolError("a frame is not JSON: {}".format(error))
            if not isinstance(message, dict):
                raise ProtocolError("a frame is not a JSON object")
            if self._kinds is not None:
                check(message, self._kinds)
            messages.append(message)
        return messages
