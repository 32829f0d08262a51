"""handlers: what a play owes a host is kept in one file until it has run."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from operations import OperationError, handlers


class Context:
    check = diff = False


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(handlers, "place", lambda: str(tmp_path / "state" / "tcpfleet"))
    return tmp_path / "state" / "tcpfleet"


def ask(action: str, *names: str, play: str = "p") -> list[str]:
    result: dict[str, Any] = handlers.run({"play": play, "action": action, "names": list(names)}, Context())
    assert result["changed"] is False
    return list(result["names"])


def test_names_are_kept_in_order_until_done(place: Path) -> None:
    assert ask("read") == [] and not place.exists()
    assert ask("add", "b", "a") == ["b", "a"]
    assert ask("add", "a", "c") == ["b", "a", "c"]
    assert ask("add", "x", play="q") == ["x"]
    kept = place / "handlers.json"
    assert json.loads(kept.read_text()) == {"p": ["b", "a", "c"], "q": ["x"]}
    assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600 and stat.S_IMODE(os.stat(place).st_mode) == 0o700
    assert ask("done", "a", "never") == ["b", "c"]
    assert ask("done", "b", "c") == []
    assert ask("read", play="q") == ["x"]
    assert ask("done", "x", play="q") == []
    assert not place.exists()


def test_a_damaged_file_is_named_and_left_alone(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "handlers.json").write_text("[]")
    with pytest.raises(OperationError, match=r"handlers\.json.*is damaged"):
        ask("add", "a")
    assert (place / "handlers.json").read_text() == "[]"


def test_a_place_that_cannot_be_written_is_named(place: Path) -> None:
    place.parent.mkdir()
    place.write_text("a file is in the way")
    with pytest.raises(OperationError, match=r"tcpfleet must be a folder .* nothing is kept there"):
        ask("add", "a")


@pytest.mark.parametrize("how", ["others can write to it", "a link"])
def test_a_folder_that_someone_else_may_have_filled_is_not_read(how: str, place: Path) -> None:
    place.mkdir(parents=True)
    (place / "handlers.json").write_text('{"p": ["planted"]}')
    if how == "a link":
        place.rename(place.with_name("elsewhere"))
        place.symlink_to("elsewhere")
    else:
        place.chmod(0o777)
    for action in ("read", "add"):
        with pytest.raises(OperationError, match="only this user can write to"):
            ask(action, "a")
