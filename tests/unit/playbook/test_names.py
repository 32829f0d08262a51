"""What plays lead to: fine/*.yml are playbooks without mistakes, with the facts and the barriers of their plays.

A case: `playbook`, `files`, `inventory`, `extra`, and `plays`: `facts` (sorted; null: any) and `barriers`
(numbers of tasks) of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tcpfleet.playbook import load

from .fakes import inventory_of

CASES = sorted((Path(__file__).parent / "fine").glob("*.yml"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_fine(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, text in {"play.yml": case["playbook"], **case.get("files", {})}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    prepared = load("play.yml", case.get("extra")).prepare(inventory_of(tmp_path, case["inventory"]))
    found = [
        {"facts": None if one.facts is None else sorted(one.facts), "barriers": sorted(one.barriers)}
        for one in prepared
    ]
    assert found == case["plays"]
