"""clean: what is ours goes, what a rollback could still put back stands in the way, others' things are left."""

import collections
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import daemon
import journal
import pytest
from operations import OperationError, clean, stress

from tests.running import ROOT

SOURCES = {path.stem: path.read_text() for path in (ROOT / "payload").glob("*.py")}
Completed = collections.namedtuple("Completed", "returncode stdout stderr timed_out")


class Context:
    sources, sent_for_this, diff = SOURCES, False, False

    def __init__(self, check: bool = False) -> None:
        self.check = check

    def run_command(self, argv: list[str], **_: Any) -> Completed:
        raise AssertionError(f"no unit is there, yet {argv} is called")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    state, cache = tmp_path / "home/.local/state/tcpfleet", tmp_path / "home/.cache/tcpfleet"
    for module, name in ((journal, "state_folder"), (stress, "state_directory")):
        monkeypatch.setattr(module, name, lambda: str(state))
    monkeypatch.setattr(clean, "_cache", lambda: str(cache))
    monkeypatch.setattr(clean, "UNIT_FILE", str(tmp_path / "etc/tcpfleet-echo.service"))
    monkeypatch.setattr(clean, "DROP_IN", str(tmp_path / "etc/tcpfleet-echo.service.d/nofile.conf"))
    monkeypatch.setattr(clean, "TUNED", (str(tmp_path / "etc/99-tcpfleet.conf"),))
    (tmp_path / "home").mkdir()
    (tmp_path / "etc").mkdir()
    server = {
        "dir": tmp_path / "opt/tcpfleet",
        "pid_file": tmp_path / "echo.pid",
        "log_file": tmp_path / "echo.log",
    }
    made = SimpleNamespace(top=tmp_path, state=state, cache=cache, server=server, daemons=[])
    yield made
    for pid in made.daemons:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def ask(place: SimpleNamespace, *, check: bool = False) -> list[tuple[str, str]]:
    args = {"server": {name: str(path) for name, path in place.server.items()}}
    result: dict[str, Any] = clean.run(args, Context(check))
    json.dumps(result)
    statuses = [(entry["status"], entry["what"].replace(str(place.top), "")) for entry in result["entries"]]
    assert result["changed"] is any(status not in ("left", "failed") for status, _ in statuses)
    return statuses


def paths(place: SimpleNamespace) -> set[str]:
    return {str(path.relative_to(place.top)) for path in place.top.rglob("*")}


def deploy(place: SimpleNamespace) -> None:
    place.server["dir"].mkdir(parents=True)
    for name, source in SOURCES.items():
        (place.server["dir"] / f"{name}.py").write_text(source)


def start(place: SimpleNamespace, pid_file: Path) -> int:
    command = [sys.executable, str(place.server["dir"] / "echo_server.py"), "start", "--bind", "127.0.0.1"]
    command += ["--port", "0", "--workers", "1", "--pid-file", str(pid_file)]
    subprocess.run([*command, "--log-file", str(place.server["log_file"])], check=True, capture_output=True)
    pid = int(pid_file.read_text().split()[0])
    place.daemons.append(pid)
    return pid


def journalled(place: SimpleNamespace, *entries: dict[str, Any], run: str = "20260101-000000-abcd") -> None:
    one = journal.Journal({"run": run, "command": "tune", "user": "me"})
    for entry in entries:
        one.append(entry)
    one.close()


def test_a_host_without_anything(place: SimpleNamespace) -> None:
    assert ask(place) == [] and paths(place) == {"home", "etc"}
    (place.top / "home/.local/state").mkdir(parents=True)  # as a play leaves it that owed handlers, and ran them
    assert ask(place) == [] and paths(place) == {"home", "etc"}


def test_a_daemon_its_files_state_and_cache_go_and_nothing_else(place: SimpleNamespace) -> None:
    before = paths(place)
    deploy(place)
    for path in (
        place.cache / "agent-0",
        place.state / "runs/r/client-0/status.json",
        place.state / "handlers.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    pid = start(place, place.server["pid_file"])
    asked, there = ask(place, check=True), paths(place)
    assert {status for status, _ in asked} == {"would-stop", "would-remove"} and Path(f"/proc/{pid}").exists()
    assert paths(place) == there
    done = ask(place)
    assert [what for _, what in done] == [what for _, what in asked if what != "/echo.pid"]
    assert daemon.process_start_time(pid) is None and paths(place) == before | {"opt"}
    assert ask(place) == []


def test_others_files_are_left_and_named(place: SimpleNamespace) -> None:
    deploy(place)
    (place.server["dir"] / "notes.txt").write_text("mine")
    (place.cache.parent / "other").mkdir(parents=True)
    place.cache.mkdir()
    assert ask(place) == [
        ("removed", "/opt/tcpfleet"),
        ("left", "/opt/tcpfleet"),
        ("removed", "/home/.cache/tcpfleet"),
    ]
    assert paths(place) == {"home", "home/.cache", "home/.cache/other", "etc", "opt", "opt/tcpfleet"} | {
        "opt/tcpfleet/notes.txt"
    }


def test_a_server_started_by_hand_is_named_and_keeps_its_files(place: SimpleNamespace) -> None:
    deploy(place)
    pid = start(place, place.top / "other.pid")
    there = paths(place)
    assert [status for status, _ in ask(place)] == ["failed"]
    assert Path(f"/proc/{pid}").exists() and paths(place) == there


def test_state_that_is_a_symlink_is_left(place: SimpleNamespace) -> None:
    (place.top / "elsewhere").mkdir()
    place.cache.parent.mkdir()
    place.cache.symlink_to(place.top / "elsewhere")
    assert ask(place) == [("left", "/home/.cache/tcpfleet")] and (place.top / "elsewhere").is_dir()


ABSENT, FILE = {"kind": "absent"}, {"kind": "file", "sha256": "0"}


@pytest.mark.parametrize(
    ("entries", "refused"),
    [
        ([{"kind": "kernel", "name": "net/core/somaxconn", "before": "1", "asked": "2"}], True),
        ([{"kind": "path", "path": "/etc/sysctl.d/99-tcpfleet.conf", "before": ABSENT, "after": FILE}], True),
        ([{"kind": "unit", "unit": "tcpfleet-echo.service", "verb": "start"}], False),
        ([{"kind": "unit", "unit": "broker.service", "verb": "restart"}], True),
        ([{"kind": "command", "command": "true"}], False),
        ([{"kind": "path", "path": "DIR/daemon.py", "before": ABSENT, "after": FILE}], False),
        ([{"kind": "path", "path": "DIR/daemon.py", "before": FILE, "after": FILE}], True),  # somebody's daemon.py
        (
            [{"kind": "path", "path": "DIR/daemon.py", "before": was, "after": FILE} for was in (ABSENT, FILE)],
            False,
        ),
        ([{"kind": "path", "path": "DIR/other.txt", "before": ABSENT, "after": FILE}], True),
    ],
)
def test_what_rollback_could_put_back_stands_in_the_way(
    place: SimpleNamespace, entries: list[dict[str, Any]], refused: bool
) -> None:
    deploy(place)
    where = str(place.server["dir"])
    journalled(
        place, *[{**one, "path": one["path"].replace("DIR", where)} if "path" in one else one for one in entries]
    )
    there = paths(place)
    if refused:
        with pytest.raises(
            OperationError, match=r"run 20260101-000000-abcd \(tune\) is not rolled back"
        ) as caught:
            ask(place)
        assert caught.value.fields["waiting"][0]["run"] == "20260101-000000-abcd" and paths(place) == there
    else:
        ask(place)
        assert not place.state.exists() and not place.server["dir"].exists()


def test_runs_that_are_undone_or_damaged(place: SimpleNamespace) -> None:
    journalled(place, {"kind": "kernel", "name": "a/b", "before": "1", "asked": "2"})
    kept = place.state / "journal/20260101-000000-abcd.jsonl"
    kept.rename(kept.with_name("20260101-000000-abcd.undone.jsonl"))
    (place.state / "journal/x.jsonl").write_text("no json\n")
    with pytest.raises(OperationError, match="damaged in line 1"):
        ask(place)
    (place.state / "journal/x.jsonl").unlink()
    assert ask(place) == [("removed", "/home/.local/state/tcpfleet")]


def test_tuning_without_a_journal_is_named(place: SimpleNamespace) -> None:
    Path(clean.TUNED[0]).write_text("net.core.somaxconn = 1\n")
    with pytest.raises(OperationError, match="remove it by hand"):
        ask(place)


def test_a_socket_where_the_log_should_be_is_removed_and_a_folder_is_not(place: SimpleNamespace) -> None:
    place.server["pid_file"].mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.server["log_file"]))
    assert ask(place) == [("left", "/echo.pid"), ("removed", "/echo.log")]
