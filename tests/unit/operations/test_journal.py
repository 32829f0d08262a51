"""The journal and the way back: killed at every call, read by others, damaged, in nobody's way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import journal
import pytest
from operations import TABLE, OperationError, _kernel, handlers, rollback, systemd

from tests.unit.interpreters import INTERPRETERS
from tests.unit.operations import kill_cases
from tests.unit.operations.kill_cases import RUN, SCENARIOS, Context, fill

HERE = Path(__file__).parent
# CI kills at every so manyeth call, the oldest and the newest Python; the whole matrix is for --full.
STRIDE = 11


def run_cases(python: Path, stride: int) -> None:
    done = subprocess.run(
        [str(python), "-B", "-I", "-S", str(HERE / "kill_cases.py"), str(stride)],
        capture_output=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answer = json.loads(done.stdout)
    assert answer["failures"] == []
    assert answer["kills"] > 100


@pytest.mark.parametrize("python", [INTERPRETERS[0], INTERPRETERS[-1]], ids=lambda path: path.parent.parent.name)
def test_killed_anywhere_it_can_be_undone(python: Path) -> None:
    run_cases(python, STRIDE)


@pytest.mark.full
@pytest.mark.parametrize("python", INTERPRETERS, ids=lambda path: path.parent.parent.name)
def test_killed_everywhere_it_can_be_undone(python: Path) -> None:
    run_cases(python, 1)


def test_every_operation_that_changes_something_is_killed_somewhere() -> None:
    used = {op for steps in SCENARIOS.values() for op, _ in steps}
    harmless = {"fetch", "follow", "observe", "ping", "setup", "slurp", "stat", "sysctl_read", "wait_for"}
    not_of_plays = {"clean", "handlers", "rollback", "sample", "stress", "upload"}
    assert set(TABLE) - used - harmless - not_of_plays == set()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder laid out as in kill_cases, with a journal of its own."""
    for module, name in ((journal, "state_folder"), (_kernel, "PROC_SYS"), (_kernel, "put"), (systemd, "_RUNTIME"),
                         (systemd, "_LINKS"), (journal, "_UNIT_FOLDERS")):  # fmt: skip
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    old = os.umask(0o022)
    monkeypatch.setattr(_kernel, "put", kill_cases.put)
    one = kill_cases.Place(str(tmp_path.resolve() / "place"))
    one.__enter__()
    yield Path(one.root)
    os.umask(old)
    shutil.rmtree(one.top)


def perform(
    place: Path, *steps: tuple[str, dict[str, Any]], run: str = RUN["run"], hidden: bool = False
) -> list[str]:
    """Runs operations with a journal, and lets go of it as the agent's end does."""
    import importlib

    book = journal.Journal({**RUN, "run": run})
    undo: list[str] = []
    try:
        for op, args in steps:
            with journal.recording(book, hidden):
                module = importlib.import_module("operations." + TABLE[op])
                try:
                    module.run(fill(args, str(place)), Context(str(place)))
                finally:
                    undo += book.undo
    finally:
        book.close()
    return undo


def undo(place: Path, run: str = RUN["run"], check: bool = False, **args: Any) -> dict[str, Any]:
    answer: dict[str, Any] = rollback.run({"action": "undo", "run": run, **args}, Context(str(place), check))
    return answer


def statuses(answer: dict[str, Any]) -> list[str]:
    return [one["status"] for one in answer["entries"]]


def book_of(run: str = RUN["run"]) -> Path:
    return Path(journal.folder()) / f"{run}.jsonl"


LINE = ("lineinfile", {"path": "$T/etc/conf", "line": "c=3"})


def test_the_journal_is_private(place: Path) -> None:
    perform(place, LINE)
    assert stat.S_IMODE(book_of().stat().st_mode) == 0o600
    assert stat.S_IMODE(book_of().parent.stat().st_mode) == 0o700
    lines = [json.loads(line) for line in book_of().read_text().splitlines()]
    assert lines[0]["kind"] == "begin" and lines[0]["command"] == "play x" and lines[0]["version"] == 1
    assert [line["kind"] for line in lines[1:]] == ["path"]


def test_no_change_no_journal(place: Path) -> None:
    perform(place, ("lineinfile", {"path": "$T/etc/conf", "line": "a=1"}), ("ping", {}))
    assert not book_of().exists() and journal.runs() == []


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_commands_by_hand_do_the_same(place: Path, name: str) -> None:
    before = kill_cases.snapshot(str(place))
    commands = perform(place, *SCENARIOS[name])
    done = subprocess.run(
        ["sh", "-e"], input="\n".join(reversed(commands)).replace("systemctl", "true systemctl"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = [line for line in commands if line.startswith("# ")]
    assert done.returncode == 0 or "sysctl" in done.stderr or told, done.stderr
    left = kill_cases.differences(before, kill_cases.snapshot(str(place)))
    # Kernel values and units of this test are files that sysctl and systemctl do not know.
    left = [one for one in left if not one.startswith(("proc/", "active/", "units/")) and "user.note" not in one]
    assert left == [] or told or name in ("sysctl",), left


def test_what_someone_changed_since_is_refused_with_the_difference(place: Path) -> None:
    perform(place, LINE, ("file", {"path": "$T/etc/noend", "mode": "0644"}))
    with (place / "etc/conf").open("a") as conf:
        conf.write("mine=1\n")
    answer = undo(place)
    assert statuses(answer) == ["restored", "refused"] and not answer["undone"]
    refused = answer["entries"][1]
    assert refused["msg"] == "was changed since by someone else"
    assert refused["diff"]["before"] == "a=1\nb=2\nc=3\nmine=1\n" and refused["diff"]["after"] == "a=1\nb=2\n"
    assert "mine=1" in (place / "etc/conf").read_text()
    assert statuses(undo(place)) == ["already", "refused"]
    assert statuses(undo(place, check=True, force=True)) == ["already", "would-restore"]
    answer = undo(place, force=True)
    assert statuses(answer) == ["already", "restored"] and answer["undone"]
    assert (place / "etc/conf").read_text() == "a=1\nb=2\n"


@pytest.mark.parametrize("how", ["removed", "a link", "a folder", "mode"])
def test_other_ways_of_changing_it(place: Path, how: str) -> None:
    perform(place, LINE)
    conf = place / "etc/conf"
    if how == "mode":
        conf.chmod(0o666)
    else:
        conf.unlink()
    if how == "a link":
        conf.symlink_to("noend")
    if how == "a folder":
        conf.mkdir()
    assert statuses(undo(place)) == ["refused"]
    assert statuses(undo(place, force=True)) == ["restored"]
    assert conf.read_text() == "a=1\nb=2\n" and stat.S_IMODE(conf.lstat().st_mode) == 0o640


def test_a_folder_that_holds_what_others_put_there_stays(place: Path) -> None:
    perform(place, ("file", {"path": "$T/n/m", "state": "directory"}))
    (place / "n/m/theirs").write_text("x")
    answer = undo(place)
    assert statuses(answer) == ["refused", "refused"] and "it holds theirs" in answer["entries"][0]["msg"]
    answer = undo(place, force=True)
    assert statuses(answer) == ["not-reversible", "not-reversible"] and answer["undone"]
    assert (place / "n/m/theirs").read_text() == "x"


@pytest.mark.parametrize(("name", "goes"), [("own.cpython-311.pyc", True), ("theirs.cpython-311.pyc", False)])
def test_bytecode_of_a_program_that_the_run_put_there(place: Path, name: str, goes: bool) -> None:
    program = ("copy", {"dest": "$T/n/own.py", "content_b64": kill_cases.b64("pass")})
    perform(place, ("file", {"path": "$T/n", "state": "directory"}), program)
    (place / "n/__pycache__").mkdir()
    (place / "n/__pycache__" / name).write_bytes(b"\0")
    assert statuses(undo(place, check=True)) == ["would-restore", "would-restore" if goes else "refused"]
    answer = undo(place)
    assert statuses(answer) == ["restored", "restored" if goes else "refused"]
    assert answer["undone"] == goes and (place / "n").exists() != goes


def test_a_folder_that_leads_elsewhere_now(place: Path) -> None:
    perform(place, LINE)
    (place / "etc").rename(place / "moved")
    (place / "etc").symlink_to("moved")
    answer = undo(place, force=True)
    assert statuses(answer) == ["refused"] and "leads elsewhere" in answer["entries"][0]["msg"]
    assert "c=3" in (place / "moved/conf").read_text()


def test_kernel_values(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = {"name": "net.rmem", "value": "1 2 3", "sysctl_set": True, "reload": False, "sysctl_file": "$T/etc/s"}
    perform(place, ("sysctl", key))
    rmem = place / "proc/net/rmem"
    rmem.write_text("7 7 7\n")
    answer = undo(place)
    assert statuses(answer) == ["restored", "refused"] and "is 7 7 7" in answer["entries"][1]["msg"]
    with monkeypatch.context() as patch:
        patch.setattr(journal, "boot_id", lambda: "another")
        assert statuses(undo(place, check=True)) == ["already", "gone"]  # not in force because of this run
    rmem.write_text("1\t2\t3\n")
    assert statuses(undo(place)) == ["already", "restored"]
    assert rmem.read_text() == "4096\t131072\t6291456\n"


def test_after_a_reboot_that_set_what_the_run_had_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = {"name": "net.max", "value": "9", "sysctl_set": True, "reload": False, "sysctl_file": "$T/etc/s"}
    perform(place, ("sysctl", key))
    monkeypatch.setattr(journal, "boot_id", lambda: "another")
    assert statuses(undo(place)) == ["restored", "restored"]
    assert (place / "proc/net/max").read_text() == "128\n"


def test_a_reboot_between_two_rollbacks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = {"name": "net.max", "value": "9", "sysctl_set": True, "reload": False, "sysctl_file": "$T/etc/s"}
    perform(place, ("sysctl", key))
    with (place / "etc/s").open("a") as file:
        file.write("mine\n")
    assert statuses(undo(place)) == ["refused", "restored"]
    assert statuses(undo(place)) == ["refused", "already"]
    # The file that was left sets the value again at the next boot.
    (place / "proc/net/max").write_text("9\n")
    monkeypatch.setattr(journal, "boot_id", lambda: "another")
    assert statuses(undo(place, force=True)) == ["restored", "restored"]
    assert (place / "proc/net/max").read_text() == "128\n"


def test_a_key_that_is_gone(place: Path) -> None:
    key = {"name": "net.max", "value": "9", "sysctl_set": True, "reload": False, "sysctl_file": "$T/etc/s"}
    perform(place, ("sysctl", key))
    (place / "proc/net/max").unlink()
    answer = undo(place)
    assert statuses(answer) == ["restored", "gone"] and answer["undone"]


def test_keys_that_change_along_are_put_back_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = place / "proc/net/ipv4/conf"
    for name in ("all", "default", "eth0.1"):
        (conf / name).mkdir(parents=True)
        (conf / name / "forwarding").write_text("0\n" if name != "eth0.1" else "1\n")
    (conf / "all/accept_redirects").write_text("1\n")
    (conf.parent / "ip_forward").write_text("0\n")

    def propagate(name: str, value: str) -> None:
        kill_cases.put(name, value)
        if name.endswith("ip_forward"):
            for one in conf.glob("*/forwarding"):
                one.write_text(value + "\n")
            (conf / "all/accept_redirects").write_text(str(1 - int(value)) + "\n")

    monkeypatch.setattr(_kernel, "put", propagate)
    before = kill_cases.snapshot(str(place))
    key = {"name": "net.ipv4.ip_forward", "value": "1", "sysctl_set": True, "reload": False}
    perform(place, ("sysctl", {**key, "sysctl_file": "$T/etc/s"}))
    assert (conf / "all/accept_redirects").read_text() == "0\n"
    assert undo(place)["undone"]
    assert kill_cases.differences(before, kill_cases.snapshot(str(place))) == []


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_no_change(place: Path, cut: int) -> None:
    perform(place, LINE)
    whole = book_of().read_bytes()
    begin = whole.index(b"\n") + 1
    book_of().write_bytes(whole[: begin + cut])
    assert undo(place)["entries"] == [] and not book_of().exists()


def test_a_torn_line_goes_before_more_is_written(place: Path) -> None:
    perform(place, LINE)
    with book_of().open("ab") as book:
        book.write(b'{"kind": "pa')
    perform(place, ("lineinfile", {"path": "$T/etc/noend", "line": "z"}))
    assert statuses(undo(place)) == ["restored", "restored"]


@pytest.mark.parametrize(
    ("commands", "refused"),
    [(("tune --profile a", "tune"), True), (("tune", "play x.yml"), False), (("play x.yml", "play x.yml"), False)],
)
def test_a_second_tune_of_a_host_is_refused(place: Path, commands: tuple[str, str], refused: bool) -> None:
    entry = {"kind": "command", "command": "true"}
    one, other, same = (
        journal.Journal({"run": run, "command": command, "user": "ann@here"})
        for run, command in (("r1", commands[0]), ("r2", commands[1]), ("r1", commands[0]))
    )
    try:
        one.append(entry)
        same.append(entry)  # the host has another name in the inventory
        if refused:
            with pytest.raises(OperationError, match=r"another tune .* \(run r1 by ann@here\); nothing"):
                other.append(entry)
            assert [run.ident for run in journal.runs()] == ["r1"]
            same.close()
        one.close()
        other.append(entry)  # it has ended
    finally:
        for book in (one, other, same):
            book.close()


@pytest.mark.parametrize("full", [False, True], ids=["killed", "disk full"])
def test_half_a_line_is_gone_before_another_agent_writes_behind_it(
    place: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = journal.Journal(RUN), journal.Journal(RUN)
    real = os.write
    try:
        for book in (one, other):
            book.append({"kind": "command", "command": "first"})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:20]))
            if not full:  # nobody is left to take it back
                patch.setattr(os, "ftruncate", lambda *_: None)
            with pytest.raises(OperationError, match="No space left"):
                one.append({"kind": "command", "command": "half"})
        assert book_of().read_bytes().endswith(b"\n") is full
        other.append({"kind": "command", "command": "behind"})
    finally:
        one.close()
        other.close()
    (run,) = journal.runs()
    assert [entry["command"] for entry in run.load().entries] == ["first", "first", "behind"]


@pytest.mark.parametrize("damage", [b"no json\n", b'{"kind": "other", "id": "1"}\n', b"{}\n", b"[]\n", b"\xff\n"])
def test_a_damaged_journal_is_named_and_not_guessed_about(place: Path, damage: bytes) -> None:
    perform(place, LINE)
    with book_of().open("ab") as book:
        book.write(damage)
    with pytest.raises(
        OperationError, match=r"20260101-000000-abcd\.jsonl is damaged in line 3: nothing was undone"
    ):
        undo(place)
    assert "c=3" in (place / "etc/conf").read_text()
    listed = rollback.run({"action": "list"}, Context(str(place)))["runs"]
    assert [one["state"] for one in listed] == ["damaged"]


def test_a_journal_of_a_later_version(place: Path) -> None:
    perform(place, LINE)
    book_of().write_text(book_of().read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(OperationError, match="is of version 2, this agent knows 1"):
        undo(place)


def test_a_run_under_way_is_not_undone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perform(place, LINE)
    with book_of().open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        (listed,) = rollback.run({"action": "list"}, Context(str(place)))["runs"]
        assert listed["state"] == "under way" and listed["entries"] == 1
        with monkeypatch.context() as patch:
            patch.setattr(rollback, "_PATIENCE", 0.1)
            with pytest.raises(OperationError, match="under way"):
                undo(place)
        # The agent of a run whose controller was killed ends a moment later.
        threading.Timer(0.3, lambda: fcntl.flock(held, fcntl.LOCK_UN)).start()
        assert undo(place)["undone"]


def test_two_rollbacks_at_once(place: Path) -> None:
    perform(place, LINE)
    with book_of().open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def other() -> None:
            book_of().rename(book_of().with_suffix(".undone.jsonl"))
            fcntl.flock(held, fcntl.LOCK_UN)

        threading.Timer(0.2, other).start()
        with pytest.raises(OperationError, match="has been undone meanwhile"):
            undo(place)


def test_a_folder_that_others_can_write_to_or_a_link_in_its_place(place: Path) -> None:
    top = Path(journal.folder())
    top.mkdir(parents=True, mode=0o700)
    top.chmod(0o777)
    with pytest.raises(OperationError, match="only this user can write to"):
        perform(place, LINE)
    with pytest.raises(OperationError, match="only this user can write to"):
        journal.runs()
    top.rmdir()
    (place.parent / "trap").mkdir()
    top.symlink_to(place.parent / "trap")
    with pytest.raises(OperationError, match="only this user can write to"):
        perform(place, LINE)
    assert (place / "etc/conf").read_text() == "a=1\nb=2\n" and os.listdir(place.parent / "trap") == []


def test_a_link_in_place_of_the_journal(place: Path) -> None:
    Path(journal.folder()).mkdir(parents=True, mode=0o700)
    book_of().symlink_to(place / "etc/noend")
    with pytest.raises(OperationError, match=r"cannot write the journal .*; nothing was changed"):
        perform(place, LINE)
    assert (place / "etc/noend").read_bytes() == b"x\r\ny" and "c=3" not in (place / "etc/conf").read_text()


def test_secrets_are_not_shown(place: Path) -> None:
    commands = perform(place, LINE, ("command", {"argv": ["true", "hunter2"]}), hidden=True)
    assert not any("hunter2" in line or "a=1" in line for line in commands)
    (place / "etc/conf").write_text("pass=word\n")
    answer = undo(place)
    assert "hunter2" not in json.dumps(answer) and "pass=word" not in json.dumps(answer)
    assert statuses(answer) == ["not-reversible", "refused"]


def test_a_daemon_that_the_run_started_is_named(place: Path) -> None:
    program = "import time; print('up', flush=True); time.sleep(60)"
    old = subprocess.Popen([sys.executable, "-c", program, str(place / "etc/new")])
    try:
        time.sleep(0.05)  # the kernel counts the start of processes in ticks
        perform(
            place,
            ("copy", {"dest": "$T/etc/new", "content_b64": kill_cases.b64(program)}),
            ("command", {"argv": ["x"]}),
        )
        new = subprocess.Popen([sys.executable, "-S", str(place / "etc/new"), "a b"], stdout=subprocess.PIPE)
        assert new.stdout is not None and new.stdout.readline() == b"up\n"
        try:
            for check in (True, False):
                *_, told = undo(place, check=check)["entries"]
                assert told["what"] == f"process {new.pid} ({sys.executable} -S {place}/etc/new a b)"
                assert told["status"] == "not-reversible" and f"kill {new.pid} ends it" in told["msg"]
            assert not (place / "etc/new").exists() and not book_of().exists()
        finally:
            new.kill()
            new.communicate()
    finally:
        old.kill()
        old.wait()


def test_a_tree_too_large_for_the_journal_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MOST_PATHS", 3)
    with pytest.raises(OperationError, match=r"more than 3 paths .* nothing was changed"):
        perform(place, ("file", {"path": "$T/d", "state": "absent"}))
    assert (place / "d/sub/deep/three").exists()


def test_runs_one_after_the_other(place: Path) -> None:
    ids = ["20260101-000000-000001-aaaa", "20260101-000000-000002-aaaa"]
    for number, run in enumerate(ids):
        perform(place, ("lineinfile", {"path": "$T/etc/conf", "regexp": "^a=", "line": f"a=new{number}"}), run=run)
    assert [(one.ident, one.undone) for one in journal.runs()] == [(ids[1], False), (ids[0], False)]
    # The older one's file is not as that one left it.
    assert statuses(undo(place, run=ids[0])) == ["refused"]
    assert undo(place, run=ids[1])["undone"]
    assert undo(place, run=ids[0])["undone"]
    assert (place / "etc/conf").read_text() == "a=1\nb=2\n"
    assert [one["state"] for one in rollback.run({"action": "list"}, Context(str(place)))["runs"]] == [
        "undone"
    ] * 2
    with pytest.raises(OperationError, match="no journal of a run"):
        undo(place, run=ids[0])


def test_undone_runs_are_kept_up_to_a_number(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollback, "KEPT", 2)
    for number in range(4):
        run = f"20260101-000000-00000{number}-aaaa"
        perform(place, LINE, run=run)
        assert undo(place, run=run)["undone"]
    assert [one.ident[-6:-5] for one in journal.runs()] == ["3", "2"]


def test_large_contents_go_when_the_run_is_undone(place: Path) -> None:
    perform(place, *SCENARIOS["copy: large"])
    beside = Path(journal.blobs(RUN["run"]))
    assert len(list(beside.iterdir())) == 1
    assert undo(place)["undone"]
    assert not beside.exists()


def test_two_agents_on_one_host_begin_one_journal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host may have several names in an inventory, and then has several agents of one run."""
    real = journal.boot_id

    def slow() -> str:
        time.sleep(0.05)
        return real()

    monkeypatch.setattr(journal, "boot_id", slow)
    books = [journal.Journal(RUN) for _ in range(4)]
    entry = {"kind": "command", "command": "true"}
    threads = [threading.Thread(target=book.append, args=(entry,)) for book in books]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for book in books:
        book.close()
    kinds = [json.loads(line)["kind"] for line in book_of().read_text().splitlines()]
    assert kinds == ["begin", *["command"] * 4]


def test_a_journal_that_rollback_has_just_moved_away_is_not_written_to(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    perform(place, LINE)
    real, moved = fcntl.flock, book_of().with_name(f"{RUN['run']}.undone.jsonl")

    def flock(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_SH and not moved.exists():
            book_of().rename(moved)
        real(descriptor, how)

    monkeypatch.setattr(journal.fcntl, "flock", flock)
    perform(place, ("lineinfile", {"path": "$T/etc/noend", "line": "z"}))
    assert len(moved.read_text().splitlines()) == len(book_of().read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("home", "writable", "where"),
    [
        ("$T", True, "$T/.local/state/tcpfleet"),
        ("$T", False, "/var/tmp/tcpfleet-4711"),
        ("$T/kept", False, "$T/kept/.local/state/tcpfleet"),  # it is there already
        ("/nonexistent", True, "/var/tmp/tcpfleet-4711"),
        ("", True, "/var/tmp/tcpfleet-4711"),
        (None, True, "/var/tmp/tcpfleet-4711"),  # a number without a name
    ],
)
def test_users_without_a_home_have_a_journal(
    home: str | None, writable: bool, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept/.local/state/tcpfleet").mkdir(parents=True)

    def getpwuid(_uid: int) -> Any:
        if home is None:
            raise KeyError
        return type("Entry", (), {"pw_dir": fill(home, str(tmp_path))})

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "geteuid", lambda: 4711)
        patch.setattr(journal.pwd, "getpwuid", getpwuid)
        patch.setattr(journal.os, "access", lambda *_: writable)
        assert journal.state_folder() == fill(where, str(tmp_path))


def test_a_link_in_a_folder_that_is_filled_again_is_not_followed(place: Path) -> None:
    perform(place, ("file", {"path": "$T/d", "state": "absent"}))
    outside = place / "outside"
    outside.mkdir(mode=0o711)
    (place / "d").mkdir()
    (place / "d/sub").symlink_to(outside)
    assert statuses(undo(place)) == ["refused"]
    assert statuses(undo(place, force=True)) == ["restored"]
    assert list(outside.iterdir()) == [] and stat.S_IMODE(outside.stat().st_mode) == 0o711
    assert (place / "d/sub").is_dir() and not (place / "d/sub").is_symlink()
    assert (place / "d/sub/deep/three").exists()


def test_a_folder_swapped_for_a_link_while_it_is_put_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perform(place, LINE)
    outside = place / "outside"
    outside.mkdir()
    real = rollback._place

    def swap(*args: Any) -> None:
        (place / "etc").rename(place / "moved")
        (place / "etc").symlink_to(outside)
        real(*args)

    monkeypatch.setattr(rollback, "_place", swap)
    assert statuses(undo(place)) == ["restored"]
    assert list(outside.iterdir()) == []
    assert (place / "moved/conf").read_text() == "a=1\nb=2\n"


def test_the_mode_of_what_a_link_leads_to_stays(place: Path) -> None:
    status = (place / "etc/conf").lstat()
    (place / "etc/l").symlink_to("conf")
    state = {"uid": os.geteuid(), "gid": os.getegid(), "mode": 0o777}
    rollback._set_attributes(str(place / "etc/l"), state)
    assert (place / "etc/conf").lstat().st_mode == status.st_mode


def test_one_attribute_that_cannot_be_read_hides_no_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getxattr(_path: str, name: str, **_: Any) -> bytes:
        if name == "user.secret":
            raise PermissionError(errno.EACCES, "no")
        return b"x"

    monkeypatch.setattr(journal.os, "listxattr", lambda *_, **__: ["user.secret", "system.posix_acl_access"])
    monkeypatch.setattr(journal.os, "getxattr", getxattr)
    assert journal.xattrs("/x") == {"system.posix_acl_access": "eA=="}


@pytest.mark.parametrize("inline", [1 << 20, 0])
def test_a_file_that_grows_while_it_is_kept(inline: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "INLINE", inline)
    conf, real = place / "etc/conf", journal.sha256

    def growing(content: Any) -> str:
        digest: str = real(content)
        with conf.open("a") as more:
            more.write("appended\n")
        return digest

    before = conf.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(journal, "sha256", growing)
        book = journal.Journal(RUN)
        with journal.recording(book):
            journal.path(str(conf), {"kind": "absent"})
        book.close()
    conf.unlink()
    assert statuses(undo(place)) == ["restored"]
    assert conf.read_text() == before


def test_another_agents_line_outlives_a_line_that_finds_no_room(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = journal.Journal(RUN), journal.Journal(RUN)
    for book in (ours, theirs):
        book.append({"kind": "command", "command": "first"})
    real = os.write

    children = []

    def write(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(journal.os, "write", real)
        children.append(os.fork())
        if not children[0]:
            theirs.append({"kind": "command", "command": "theirs"})
            os._exit(0)
        time.sleep(0.2)  # it waits for its turn
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(journal.os, "write", write)
    with pytest.raises(OperationError, match="No space left"):
        ours.append({"kind": "command", "command": "ours"})
    os.waitpid(children[0], 0)
    ours.append({"kind": "command", "command": "again"})
    lines = [json.loads(line).get("command") for line in book_of().read_text().splitlines()[1:]]
    ours.close(), theirs.close()
    assert lines == ["first", "first", "theirs", "again"]


def test_a_journal_that_could_not_be_flushed_takes_no_more(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = journal.Journal(RUN)
    book.append({"kind": "command", "command": "first"})

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "fsync", fail)
        with pytest.raises(OperationError, match="Input/output error"):
            book.append({"kind": "command", "command": "lost"})
    with pytest.raises(OperationError, match="Input/output error"):
        book.append({"kind": "command", "command": "after it"})
    book.close()
    assert "lost" not in book_of().read_text() and len(book_of().read_text().splitlines()) == 2


def test_contents_that_a_kill_has_left_go_with_their_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollback, "KEPT", 2)
    ids = ["20260101-000000-000001-aaaa", "20260101-000000-000002-aaaa"]
    for run in ids:
        perform(place, LINE, run=run)
        assert undo(place, run=run)["undone"]
        Path(journal.blobs(run)).mkdir()
    perform(place, LINE)
    assert undo(place)["undone"]
    assert [Path(journal.blobs(run)).exists() for run in ids] == [False, True]


def test_many_contents_do_not_all_go_into_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kill_cases.snapshot(str(place))
    monkeypatch.setattr(journal, "MOST_INLINE", 4)
    perform(place, ("file", {"path": "$T/d", "state": "absent"}))
    assert len(os.listdir(journal.blobs(RUN["run"]))) > 0
    assert undo(place)["undone"]
    assert kill_cases.differences(before, kill_cases.snapshot(str(place))) == []


def test_a_disk_is_not_filled_with_what_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "INLINE", 0)
    monkeypatch.setattr(journal, "SPARE", 1 << 60)
    with pytest.raises(OperationError, match=r"cannot keep 8 bytes .* No space left .*; nothing was changed"):
        perform(place, LINE)
    assert os.listdir(journal.blobs(RUN["run"])) == []


def test_names_that_are_no_text(place: Path) -> None:
    name = os.path.join(os.fsencode(place / "d"), b"\xff\xfe")
    with open(name, "wb") as target:
        target.write(b"\xff")
    perform(place, ("file", {"path": "$T/d", "state": "absent"}))
    assert not os.path.exists(name)
    assert undo(place)["undone"]
    with open(name, "rb") as source:
        assert source.read() == b"\xff"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("$T/l/conf", "$T/etc/conf"), ("$T/l", "$T/l"), ("$T/l/", "$T/l"), ("$T/l/.", "$T/etc"), ("$T/l/..", "$T")],
)
def test_what_a_path_means_later(asked: str, meant: str, place: Path) -> None:
    (place / "l").symlink_to("etc")
    assert journal.canonical(fill(asked, str(place))) == fill(meant, str(place))


def test_handlers_and_journal_share_a_folder() -> None:
    assert handlers.place() == journal.state_folder()
