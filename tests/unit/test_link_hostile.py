"""Hosts that send garbage, floods or nothing at all, and caches that somebody else could have written.

Each hostile host is a fake agent: a program in the place of the host's Python. It must not hang, crash or fill the
controller; it is unreachable, with a sentence that says why.
"""

import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tcpfleet import link
from tcpfleet.errors import TcpfleetError, Unreachable
from tcpfleet.fleet import Fleet
from tcpfleet.inventory import Connection, Host
from tests.conftest import ROOT

HOST = Host("here", {}, ())
PRELUDE = f"""#!{sys.executable}
import json, os, struct, sys, time
sys.path.insert(0, {str(ROOT / "payload")!r})
token, size = sys.argv[-3], int(sys.argv[-1])
hello = {{"type": "hello", "protocol": 1, "pid": 1, "uid": 0, "python": "3.9.1", "executable": "/p",
         "boot_id": "b", "nofile": [1, 2], "uncached": None}}
def raw(data):
    while data:
        data = data[os.write(1, data):]
def say(message):
    body = json.dumps(message).encode()
    raw(struct.pack(">I", len(body)) + body)
def word(text):
    raw(b"\\n" + token.encode() + b" " + text + b"\\n")
def answer(**more):
    say(dict({{"type": "result", "id": 1, "step": 0, "result": {{"changed": False, "ping": "pong"}}}}, **more))
def heard(count=1):
    while count > 0:
        count -= len(os.read(0, 1 << 20))
def forever(*_):
    while True:
        time.sleep(60)
"""

AT_THE_START = {
    "another version": ("word(b'have'); say(dict(hello, protocol=2)); forever()", "not a hello of protocol 1"),
    "a field too many": ("word(b'have'); say(dict(hello, more=1)); forever()", "hello: unknown field 'more'"),
    "a field too few": ("del hello['uid']; word(b'have'); say(hello); forever()", "hello: uid is a NoneType"),
    "a number as text": ("word(b'have'); say(dict(hello, pid='1')); forever()", "hello: pid is a str"),
    "a result first": ("word(b'have'); answer(); forever()", "not a hello"),
    "damage on the way": ("word(b'need'); heard(size); word(b'corrupt'); forever()", "arrived damaged"),
    "the payload is not read": ("word(b'need'); forever()", "payload could not be sent"),
    "a word without end": ("raw(b'\\n' + token.encode() + b' ' + b'x' * 200000); forever()", "prints without end"),
    "a word that trickles": (
        "raw(b'\\n' + token.encode() + b' ')\nwhile True: raw(b'x'); time.sleep(0.01)",
        "did not start in",
    ),
    "a hello that trickles": (
        "word(b'have'); raw(b'\\1\\0\\0\\0')\nwhile True: raw(b'x'); time.sleep(0.01)",
        "did not start in",
    ),
}
AT_WORK = {
    "garbage": ("raw(os.urandom(5000)); forever()", "nonsense"),
    "an oversized frame": ("raw(b'\\xff' * 4); forever()", "claims 4294967295 bytes"),
    "a frame of brackets": (
        "body = b'{\"type\":\"beat\",\"x\":[' + b'[],' * 5000000 + b'[]]}'\n"
        "raw(struct.pack('>I', len(body)) + body); forever()",
        "over 4000000 values",
    ),
    "silence": ("forever()", "no sign of life"),
    "half a frame": ("raw(b'\\0\\1\\0\\0{'); forever()", "no sign of life"),
    "a frame that trickles": ("raw(b'\\1\\0\\0\\0')\nwhile True: raw(b' '); time.sleep(0.01)", "no sign of life"),
    "a flood of beats": ("while True: say({'type': 'beat'})", "floods"),
    "a flood of progress": ("while True: say({'type':'progress','id':1,'step':0,'data':{}})", "floods"),
    "a flood on stderr": ("while True: os.write(2, b'x' * 65536)", "no sign of life"),
    "an unknown type": ("say({'type': 'exec', 'id': 1}); forever()", "unknown message type 'exec'"),
    "a type that is none": ("say({'type': ['beat']}); forever()", "unknown message type"),
    "an unknown field": ("answer(path='/etc/passwd'); forever()", "result: unknown field 'path'"),
    "a result that is none": ("answer(result=[1]); forever()", "result: result is a list"),
    "a diff that is none": ("answer(result={'diff': 5}); forever()", "result: diff is a int"),
    "diffs that are none": ("answer(result={'diff': [{}, 5]}); forever()", "result: diff has a int"),
    "facts that are none": ("answer(result={'ansible_facts': []}); forever()", "result: ansible_facts is a list"),
    "true for a number": ("answer(id=True); forever()", "result: id is a bool"),
    "another step's result": ("answer(step=1); forever()", "not one that was asked for"),
    "a step's result twice": ("answer(); answer(); forever()", "not one that was asked for"),
    "a later call's result": ("answer(id=2); forever()", "not one that was asked for"),
    "another hello": ("say(hello); forever()", "not one that was asked for"),
    "an end without a result": ("say({'type': 'end', 'id': 1}); forever()", "did not run ping"),
    "death": ("sys.stderr.write('Killed'); sys.exit(137)", "ended during ping: Killed"),
    "a result that lacks what was asked": ("answer(result={}); forever()", "answer to ping: ping is missing"),
    "a closed pipe": ("os.close(1); forever()", "ended during ping"),
}


def fake(folder: Path, body: str) -> Connection:
    path = folder / "python3"
    path.write_text(PRELUDE + body + "\n")
    path.chmod(0o755)
    return Connection("here", "local", "here", python=str(path))


@pytest.mark.parametrize(("body", "said"), AT_THE_START.values(), ids=AT_THE_START)
def test_a_hostile_host_at_the_start(
    tmp_path: Path, body: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "UPLOAD_TIMEOUT", 1.0)
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=said):
        link.open_session(HOST, fake(tmp_path, body), connect_timeout=1)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(("body", "said"), AT_WORK.values(), ids=AT_WORK)
def test_a_hostile_host_at_work(tmp_path: Path, body: str, said: str) -> None:
    how = fake(tmp_path, "word(b'have'); say(hello); heard()\n" + body)
    session = link.open_session(HOST, how, connect_timeout=5)
    session.idle_timeout = 1.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    try:
        with pytest.raises(Unreachable, match=said):
            session.call("ping", {})
        with pytest.raises(Unreachable, match=said):
            session.call("ping", {})  # and is not spoken to again
    finally:
        session._stream._process.kill()  # type: ignore[attr-defined]
        session.close()
    assert time.monotonic() - begun < 25
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_a_host_whose_answer_is_nonsense_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hosts = [Host("sick", {}, ()), Host("well", {}, ())]
    how = {
        "sick": fake(tmp_path, "word(b'have'); say(hello); heard(); answer(result={'ping': 5}); forever()"),
        "well": Connection("here", "local", "here"),
    }
    with Fleet(hosts, lambda host: how[host.name]) as fleet:
        outcomes = fleet.run(lambda session: session.call("ping", {})["ping"])
        fleet._sessions["sick"]._stream._process.kill()  # type: ignore[attr-defined]
    assert outcomes["well"].value == "pong"
    assert outcomes["sick"].status == "unreachable"
    assert "speaks nonsense: answer to ping: ping is a int" in str(outcomes["sick"].error)
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_about_one_host_is_seen_and_ends_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    hosts = [Host("one", {}, ()), Host("well", {}, ())]
    with Fleet(hosts, lambda host: Connection("here", "local", "here")) as fleet:
        outcomes = fleet.run(lambda session: {"well": "pong"}[session.host.name])
    assert outcomes["well"].value == "pong"
    assert outcomes["one"].status == "failed" and "KeyError: 'one'" in str(outcomes["one"].error)
    assert "Traceback" in capsys.readouterr().err


def test_a_host_that_does_not_read(tmp_path: Path) -> None:
    session = link.open_session(HOST, fake(tmp_path, "word(b'have'); say(hello); forever()"), connect_timeout=5)
    session.idle_timeout = 1.0
    try:
        with pytest.raises(Unreachable, match="nothing could be sent for 1 s"):
            session.call("ping", {"x": "x" * 1_000_000})
    finally:
        session._stream._process.kill()  # type: ignore[attr-defined]
        session.close()


@pytest.mark.parametrize(
    "message",
    [
        '{"type":"exec"}',
        '{"type":"run","id":1}',
        '{"type":"run","id":1,"steps":[],"as":"root"}',
        '{"type":"run","id":1,"steps":[{"op":"ping","args":{},"env":{}}]}',
        '{"type":"run","id":1,"steps":[{"op":"ping","args":{},"become":{"user":"root","exe":["rm"]}}]}',
    ],
)
def test_an_agent_takes_no_message_that_it_does_not_know(message: str) -> None:
    session = link.open_session(HOST, Connection("here", "local", "here"))
    try:
        session._stream.send(len(message).to_bytes(4, "big") + message.encode(), 1)
        with pytest.raises((Unreachable, TcpfleetError), match=r"unknown|is a NoneType|is a list"):
            session.call("ping", {})
    finally:
        session.close()


# -- the cache on the host -------------------------------------------------------------------------------------


def stub(home: Path, archive: bytes | None) -> tuple[str, bytes]:
    """Runs the stub with this archive and another home; returns its word and what it had kept at the end."""
    data, digest = link.archive()
    code = (
        f"import pwd\npwd.getpwuid = lambda uid: type('E', (), {{'pw_dir': {str(home)!r}}})\n" + link._stub_code()
    )
    argv = [sys.executable, "-I", "-S", "-c", code, "token", digest, str(len(data))]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(data if archive is None else archive, timeout=20)
    assert b"Traceback" not in err, err
    return [line for line in out.split(b"\n") if line.startswith(b"token ")][-1].decode()[6:], out


def test_the_archive_is_checked_before_anything_of_it_runs(tmp_path: Path) -> None:
    data, _ = link.archive()
    word, _ = stub(tmp_path, bytes(len(data)))
    assert word == "corrupt" and not (tmp_path / ".cache").exists()
    word, _ = stub(tmp_path, data[:-1] + bytes([data[-1] ^ 1]))
    assert word == "corrupt" and not (tmp_path / ".cache").exists()
    assert stub(tmp_path, None)[0] == "need" and stub(tmp_path, b"")[0] == "have"


def _symlink(place: Path) -> None:
    place.rename(place.with_name("real"))
    place.symlink_to(place.with_name("real"))


def _fifo(copy: Path) -> None:
    copy.unlink()
    os.mkfifo(copy)


def _give_away(path: Path) -> None:
    os.chown(path, 65534, 65534)


def _replace_by_file(place: Path) -> None:
    place.rename(place.with_name("x"))
    place.touch()


def _link_to_copy(copy: Path) -> None:
    copy.rename(copy.with_name("other"))
    copy.symlink_to(copy.with_name("other"))


# What was done to ~, ~/.cache, ~/.cache/tcpfleet or the copy in it, and what a hello then says of keeping one.
TAMPERED: dict[str, tuple[str, Callable[[Path], None], str | None]] = {
    "a home that others can write": (".", lambda path: path.chmod(0o777), "can be written by others"),
    "a home that a group can write": (".", lambda path: path.chmod(0o770), "can be written by others"),
    "a .cache that others can write": (".cache", lambda path: path.chmod(0o1777), "can be written by others"),
    "a .cache that is a symlink": (".cache", _symlink, "Not a directory|symbolic links"),
    "another's .cache": (".cache", _give_away, "can be written by others"),
    "a directory that others can write": (".cache/tcpfleet", lambda path: path.chmod(0o757), "can be written"),
    "a directory that is a symlink": (".cache/tcpfleet", _symlink, "Not a directory|symbolic links"),
    "another's directory": (".cache/tcpfleet", _give_away, "can be written by"),
    "a file": (
        ".cache/tcpfleet",
        _replace_by_file,
        "Not a directory",
    ),
    "a copy that others can write": ("copy", lambda path: path.chmod(0o606), None),
    "another's copy": ("copy", _give_away, None),
    "a copy that is a symlink": ("copy", _link_to_copy, None),
    "a copy that is a FIFO": ("copy", _fifo, None),
    "a copy that is damaged": ("copy", lambda path: path.write_bytes(b"x"), None),
}


@pytest.mark.parametrize(("where", "tamper", "said"), TAMPERED.values(), ids=TAMPERED)
def test_no_cache_that_others_can_write(
    tmp_path: Path, where: str, tamper: Callable[[Path], None], said: str | None
) -> None:
    if os.geteuid() and tamper is _give_away:
        pytest.skip("only root can give files away")
    data, digest = link.archive()
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    assert stub(home, None)[0] == "need"
    copy = home / ".cache" / "tcpfleet" / f"agent-{digest}"
    assert copy.read_bytes() == data and stat.S_IMODE(copy.stat().st_mode) == 0o600
    tamper(copy if where == "copy" else home / where)
    word, out = stub(home, None)
    assert word == "need"  # it is not used ...
    if said is None:  # ... but replaced, or nothing is kept there
        assert copy.read_bytes() == data and stat.S_IMODE(copy.lstat().st_mode) == 0o600
        assert copy.stat().st_uid == os.geteuid() and stub(home, b"")[0] == "have"
    else:
        hello = out.decode(errors="replace").partition('"uncached":')[2]
        assert hello.split(",")[0].strip('"}') and any(part in hello for part in said.split("|")), hello
