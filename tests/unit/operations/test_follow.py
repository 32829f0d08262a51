"""follow: lines as they are written, through rotation, truncation and half lines; live, on a real file."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from operations import OperationError, follow


class Context:
    """An agent's context whose controller goes when it has seen enough."""

    check = diff = False

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.gone = threading.Event()

    def progress(self, data: dict[str, list[str]]) -> None:
        self.lines += data["lines"]

    def stopping(self) -> bool:
        return self.gone.is_set()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.01)


def test_what_is_written_arrives_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_LOOK_SECONDS", 0.01)
    log = tmp_path / "log"
    log.write_text("old\nlast\n")
    context = Context()
    thread = threading.Thread(target=follow.run, args=({"path": str(log), "lines": 1, "follow": True}, context))
    thread.start()
    wait_until(lambda: context.lines == ["last"])
    with log.open("a") as f:
        f.write("half")
        f.flush()
        time.sleep(0.05)
        assert context.lines == ["last"]
        f.write(" line\n")
        f.flush()
        wait_until(lambda: context.lines[1:] == ["half line"])
        log.rename(tmp_path / "log.1")
        time.sleep(0.05)  # nothing has that name for a moment
        f.write("after the move\n")
        f.flush()
        wait_until(lambda: context.lines[2:] == ["after the move"])
    log.write_text("new\n")
    wait_until(lambda: context.lines[3:] == ["new"])
    log.write_text("")  # cut
    time.sleep(0.05)
    with log.open("a") as f:
        f.write("x\n" * 1000)
    wait_until(lambda: context.lines[4:] == ["x"] * 1000)
    context.gone.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_file_that_becomes_something_else_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_LOOK_SECONDS", 0.01)
    log = tmp_path / "log"
    log.write_text("")
    context = Context()
    timer = threading.Timer(0.05, lambda: (log.unlink(), log.mkdir()))
    timer.start()
    with pytest.raises(OperationError, match="not a regular file"):
        follow.run({"path": str(log), "follow": True}, context)
    timer.join()
