"""Every parser of `observe` on recorded input: one file per case under cases/.

A case is ``{"parser", "input", "arguments": [...], "expected" | "raises"}``; the input is text, a list of
lines, or ``{"hex": [...]}``.
"""

import json
from pathlib import Path

import observe_netlink
import observe_parse
import pytest

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))


def netlink_sockets(data):
    """All that `parse_messages` finds in a recorded answer, as plain data."""
    found = []

    def on_socket(family, state, sport, dport, src, dst, recv_q, send_q):
        found.append([family, state, sport.hex(), dport.hex(), src.hex(), dst.hex(), recv_q, send_q])

    done, interrupted = observe_netlink.parse_messages(data, len(data), on_socket)
    return {"done": done, "interrupted": interrupted, "sockets": found}


def parser_of(name):
    return netlink_sockets if name == "netlink_sockets" else getattr(observe_parse, name)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path):
    case = json.loads(path.read_text())
    given = case["input"]
    if isinstance(given, dict):
        given = bytes.fromhex("".join(given["hex"]))
    parse = parser_of(case["parser"])
    arguments = [given, *case.get("arguments", [])]
    if "raises" in case:
        with pytest.raises((ValueError, OSError), match=case["raises"]):
            parse(*arguments)
        return
    assert json.loads(json.dumps(parse(*arguments))) == case["expected"]


def test_every_parser_has_a_case():
    named = {json.loads(path.read_text())["parser"] for path in CASES}
    parsers = {name for name in vars(observe_parse) if name.startswith("parse_")}
    assert parsers <= named
