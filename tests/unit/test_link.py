"""Sessions over the local link: a real agent process, its start, its end, and what can be wrong with it."""

import json
import marshal
import os
import socket
import stat
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from payload import wire
from tcpfleet import lab, link
from tcpfleet.errors import HostFailed, Unreachable
from tcpfleet.fleet import Fleet
from tcpfleet.inventory import Connection, Host
from tests.sshd import stranger
from tests.unit.interpreters import INTERPRETERS

HOST = Host("here", {}, ())


def local(python: str | None = None) -> Connection:
    return Connection("here", "local", "here", python=python)


@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: path.parent.parent.name)
def test_an_agent_runs_on_every_python(python: Path) -> None:
    session = link.open_session(HOST, local(str(python)))
    try:
        assert tuple(int(part) for part in session.hello["python"].split(".")[:2]) >= (3, 6)
        result = session.call("ping", {})
        assert result["ping"] == "pong" and not result.get("failed")
    finally:
        session.close()
    assert not Path(f"/proc/{session.hello['pid']}").exists()


@pytest.mark.parametrize("settings", [{}, {"LC_ALL": "C"}, {"LANG": "POSIX"}], ids=str)
@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: path.parent.parent.name)
def test_names_of_files_in_a_login_without_a_locale(
    settings: dict[str, str], python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    session = link.open_session(HOST, local(str(python)))
    try:
        made = session.call("copy", {"dest": f"{tmp_path}/é", "content_b64": "eA=="})
        shown = session.call("command", {"argv": ["ls", str(tmp_path)]})
    finally:
        session.close()
    assert made.get("changed") and shown.get("stdout") == "é"
    assert (tmp_path / "é").read_text() == "x"


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("/usr/bin/python9", "cannot start /usr/bin/python9: No such file"),
        ("/bin/false", "did not start .exit status 1"),
        ("/bin/cat", "did not start"),
    ],
)
def test_no_python_is_one_sentence(python: str, said: str) -> None:
    with pytest.raises(HostFailed, match=said):
        link.open_session(HOST, local(python), connect_timeout=3)


@pytest.mark.parametrize(
    ("says", "closes", "tries", "said"),
    [
        (b"", True, 3, "SSH to 127.0.0.1"),
        (b"Exceeded MaxStartups\r\n", True, 3, "SSH to 127.0.0.1"),
        (b"SSH-1.0-old\r\n", False, 1, "ncompatible"),
        (b"", False, 1, "SSH to 127.0.0.1"),  # silent: its connect timeout, once
    ],
    ids=["closed", "MaxStartups", "another protocol", "silence"],
)
def test_only_a_connection_that_was_dropped_at_its_beginning_is_tried_again(
    says: bytes, closes: bool, tries: int, said: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, stranger(listener, says, closes=closes) as held:
        how = Connection("sick", "ssh", "127.0.0.1", port=listener.getsockname()[1])
        with pytest.raises(Unreachable, match=said):
            link.open_session(HOST, how, connect_timeout=1)
    assert len(held) == tries


def script(tmp_path: Path, body: str) -> str:
    path = tmp_path / "python3"
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return str(path)


def test_an_agent_that_is_killed_at_its_start_is_said_to_be(tmp_path: Path) -> None:
    python = script(
        tmp_path, 'shift 4; echo noise; printf "\\n%s need\\n" "$1"; head -c "$3" >/dev/null; kill -9 $$'
    )
    with pytest.raises(HostFailed, match=r"did not start \(killed\): noise$"):
        link.open_session(HOST, local(python), connect_timeout=3)


def test_an_old_python_is_named(tmp_path: Path) -> None:
    # The stub's own arguments are -I -S -c CODE TOKEN ...; this stands for a Python that it turns away.
    python = script(tmp_path, 'shift 4; printf "\\n%s old 3.5.9\\n" "$1"')
    with pytest.raises(HostFailed, match=r"is Python 3\.5\.9, tcpfleet needs 3\.6"):
        link.open_session(HOST, local(python), connect_timeout=3)


NO_AGENT = {
    "python 2": (
        "echo 'Unknown option: -I' >&2; echo 'usage: x' >&2; exit 2",
        "python3 is Python 2 or 3.3, tcpfleet",
    ),
    "not there": ('echo "sh: 1: $0: not found" >&2; exit 127', "there is no /.*python3 on this host; install"),
    "not there, and nobody says so": ("exit 127", "there is no /.*python3 on this host; install"),
    "a login that starts another shell": (
        "echo 'exec: zsh: not found' >&2; exit 127",
        r"did not start \(exit status 127\): exec: zsh: not found",
    ),
    "on a noexec mount": (
        "echo 'sh: Permission denied' >&2; exit 126",
        "python3 cannot be run on this host; set .*denied",
    ),
    "a traceback": (
        "echo 'Traceback (most recent call last):' >&2; echo '  File' >&2; echo 'OSError: [Errno 24]' >&2; exit 1",
        r"did not start \(exit status 1\): OSError: \[Errno 24\]$",
    ),
    "many lines": ("echo one >&2; echo two >&2; exit 3", r"did not start \(exit status 3\): one two$"),
    "a terminal": (
        'shift 4; printf "\\r\\n\\n%s have\\r\\n" "$1"; sleep 5',
        r"'have\\r'; its login changes what is sent",
    ),
}


@pytest.mark.parametrize(("body", "said"), NO_AGENT.values(), ids=NO_AGENT)
def test_why_there_is_no_agent_is_one_line(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises((HostFailed, Unreachable), match=said) as caught:
        link.open_session(HOST, local(script(tmp_path, body)), connect_timeout=5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('shift 4; printf "\\n%s have\\nGARBAGE-GARBAGE" "$1"; sleep 5', "nonsense"),
        ('shift 4; printf "\\n%s have\\n\\0\\0\\0\\2{}" "$1"; sleep 5', "unknown message type None"),
        ('shift 4; printf "\\n%s surprise\\n" "$1"; sleep 5', "surprise"),
        ("yes noise", "prints without end"),
        ("sleep 30", "did not start in 1 s"),
    ],
    ids=["garbage", "no hello", "unknown word", "endless noise", "silence"],
)
def test_a_sick_host_cannot_hold_the_controller(tmp_path: Path, body: str, said: str) -> None:
    begun = time.monotonic()
    with pytest.raises(Unreachable, match=said):
        link.open_session(HOST, local(script(tmp_path, body)), connect_timeout=1)
    assert time.monotonic() - begun < 20


def test_login_noise_before_the_agent_is_passed_over(tmp_path: Path) -> None:
    python = script(tmp_path, 'echo "Welcome to $(hostname)!"; echo; exec /usr/bin/python3 "$@"')
    session = link.open_session(HOST, local(python))
    try:
        assert session.call("ping", {})["ping"] == "pong"
    finally:
        session.close()


def test_the_payload_is_sent_once_and_only_trusted_as_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.path.expanduser("~"))
    data, digest = link.archive()
    copy = home / ".cache" / "tcpfleet" / f"agent-{digest}"
    copy.unlink(missing_ok=True)
    link.open_session(HOST, local()).close()
    assert copy.read_bytes() == data
    assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    copy.write_bytes(b"tampered")
    session = link.open_session(HOST, local())
    assert session.call("ping", {})["ping"] == "pong"  # the damaged copy was not run but replaced
    session.close()
    assert copy.read_bytes() == data


def test_compiled_code_is_kept_and_only_used_when_nobody_else_can_have_written_it() -> None:
    digest = link.archive()[1]
    name = f"code-{digest}-{sys.implementation.cache_tag}-{sys.hexversion:x}"
    kept = Path(os.path.expanduser("~")) / ".cache" / "tcpfleet" / name
    kept.unlink(missing_ok=True)

    def ping() -> object:
        session = link.open_session(HOST, local(sys.executable))
        try:
            return session.call("ping", {})["ping"]
        finally:
            session.close()

    assert ping() == "pong"
    body = kept.read_bytes()[4:]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    names, code = marshal.loads(body)
    other = compile("def run(args, context):\n    return {'changed': False, 'ping': 'kept'}\n", "ping", "exec")
    body = marshal.dumps((names, {**code, "operations/ping": marshal.dumps(other)}))
    whole = zlib.crc32(body).to_bytes(4, "big") + body
    kept.write_bytes(whole)
    assert ping() == "kept"
    kept.chmod(0o620)  # someone else may have written it
    assert ping() == "pong"
    for damaged in (whole[: len(whole) // 2], whole[:3], whole[:4], b"", whole[:-1] + b"x"):
        kept.write_bytes(damaged)
        kept.chmod(0o600)
        assert ping() == "pong"
    kept.unlink()
    kept.symlink_to("/dev/null")
    assert ping() == "pong" and not kept.is_symlink()


def test_unknown_operations_and_bugs_are_results() -> None:
    with Fleet([HOST], lambda host: local()) as fleet:
        outcome = fleet.run(lambda session: (session.call("nonsense", {}), session.call("stress", {"action": 5})))
    unknown, bad = outcome["here"].value or ({}, {})
    assert unknown["failed"] and "no operation 'nonsense'" in unknown["msg"]
    assert bad["failed"] and "unknown action" in bad["msg"]


def test_the_agent_ends_when_the_controller_vanishes() -> None:
    session = link.open_session(HOST, local())
    pid = session.hello["pid"]
    session._stream._in.close()  # type: ignore[attr-defined]  # as when the controller is killed
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.05)
    assert Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"  # ended; ours to collect
    session.gone = "test"
    session._stream._process.wait()  # type: ignore[attr-defined]


def test_an_agent_that_was_asked_for_nothing_answers_beats_and_has_imported_little() -> None:
    session = link.open_session(HOST, local())
    try:
        for _ in range(2):
            session.beat()
            assert session._decode(session._stream.receive(5)) == [{"type": "beat"}]
        with open(f"/proc/{session.hello['pid']}/status") as status:
            assert "Threads:\t1\n" in status.read()
        assert session.call("ping", {})["ping"] == "pong"
    finally:
        session.close()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import agent; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-I", "-S", "-c", code, link.PAYLOAD], text=True).split()
    assert not {"threading", "collections", "re", "enum", "json", "hashlib", "journal"} & {*modules}


def test_a_dead_host_does_not_stop_the_others() -> None:
    hosts = [Host(f"h{number}", {}, ()) for number in range(6)]

    def how(host: Host) -> Connection:
        return Connection(host.name, "local", host.name, python="/nonexistent" if host.name == "h3" else None)

    seen = []
    with Fleet(hosts, how, forks=2) as fleet:
        outcomes = fleet.run(lambda session: session.call("ping", {})["ping"], on_outcome=seen.append)
        again = fleet.run(lambda session: session.hello["pid"])
    assert [name for name, outcome in outcomes.items() if outcome.status == "ok"] == ["h0", "h1", "h2", "h4", "h5"]
    assert outcomes["h3"].status == "failed" and "/nonexistent" in str(outcomes["h3"].error)
    assert len(seen) == 6 and list(outcomes) == [host.name for host in hosts]
    assert again["h3"].error == outcomes["h3"].error


@pytest.mark.parametrize(
    ("name", "running", "said"),
    [("c2", {}, "; this lab host is powered off: inv lab-up"), ("c2", {"c2": 1}, ""), ("x", {}, "")],
)
def test_a_lab_host_without_power_says_how_it_gets_it(
    name: str, running: dict[str, int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path / "owner"
    owner.write_text(json.dumps({"checkout": str(tmp_path), "hosts": [["c2", "127.0.0.1"]]}))
    monkeypatch.setattr(lab, "OWNER", owner)
    monkeypatch.setattr(lab, "_machines", lambda: running)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    how = Connection("c2", "ssh", "127.0.0.1", port=port)
    with Fleet([Host(name, {}, ("lab",))], lambda host: how) as fleet:
        outcome = fleet.run(lambda session: session.call("ping", {}))[name]
    assert outcome.error == f"no connection to 127.0.0.1:{port}: Connection refused{said}"


def test_bad_input_from_a_worker_reaches_the_caller() -> None:
    def broken(session: link.Session) -> None:
        raise ZeroDivisionError("a bug")

    with Fleet([HOST], lambda host: local()) as fleet, pytest.raises(ZeroDivisionError):
        fleet.run(broken)


BATCHES = {
    "all run, in order": ([("true", 1, False), ("true", 2, False)], [0, 0]),
    "later tasks do not run after a failure": (
        [("true", 1, False), ("false", 2, False), ("true", 3, False)],
        [0, 1],
    ),
    "a task that may fail stops nothing": ([("false", 1, True), ("true", 2, False)], [1, 0]),
    "a failed task runs to its end": ([("false", 1, False), ("true", 1, False), ("true", 2, False)], [1, 0]),
}


@pytest.mark.parametrize(("steps", "codes"), BATCHES.values(), ids=BATCHES)
def test_many_steps_in_one_message(steps: list[tuple[str, int, bool]], codes: list[int]) -> None:
    session = link.open_session(HOST, local())
    got: list[tuple[int, int]] = []
    try:
        session.run(
            [link.Step("command", {"argv": [word]}, task=task, go_on=go_on) for word, task, go_on in steps],
            lambda index, result: got.append((index, result["rc"])),
        )
        assert got == list(enumerate(codes))
        assert session.call("ping", {})["ping"] == "pong"  # the agent is ready for the next message
    finally:
        session.close()


def test_equal_texts_of_many_answers_are_kept_once():
    answers = [wire.Decoder(None, link._shared).feed(wire.pack({"stat": {"path": "/etc/x"}}))[0] for _ in range(2)]
    first, second = answers
    assert first == second == {"stat": {"path": "/etc/x"}}
    assert first["stat"] is not second["stat"] and first["stat"]["path"] is second["stat"]["path"]
    assert next(iter(first["stat"])) is next(iter(second["stat"]))
