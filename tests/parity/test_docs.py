"""docs/ansible.md says what the code does, and the suite's own tools do what they say."""

import doctest

import pytest

from tests.parity import compare, doc_tables, snapshot
from tests.parity.programs import COLUMNS, Run, Step


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    page = doc_tables.PAGE.read_text(encoding="utf-8")
    assert doc_tables.with_tables(page) == page, "run: python -m tests.parity.doc_tables"


@pytest.mark.parametrize("module", [compare, snapshot])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0


def run(**result: object) -> Run:
    return Run(
        0, {"h": dict.fromkeys(COLUMNS, 0)}, [Step("play", "task", "h", "ok", {"action": "command", **result})]
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "differences"),
    [
        ({"rc": 0}, {"rc": 0}, 0),
        ({"rc": 0, "more": 1}, {"rc": 0}, 0),
        ({"rc": 0}, {"rc": 1}, 1),
        ({"rc": "0"}, {"rc": 0}, 1),
        ({}, {"rc": 0}, 1),
        ({}, {"delta": "0:01", "msg": "x"}, 0),
        ({"msg": "a"}, {"msg": "b", "action": "debug"}, 1),
        ({"results": [{"rc": 0}]}, {"results": [{"rc": 1}]}, 1),
        ({"results": [{"rc": 0}]}, {"results": []}, 1),
        ({"stat": {"exists": True, "mtime": 1}}, {"stat": {"exists": True, "mtime": 2}}, 0),
        ({"stat": {"exists": True}}, {"stat": {"exists": False}}, 1),
        ({"changed": False}, {}, 0),
        ({}, {"changed": True}, 1),
    ],
)
def test_what_counts_as_a_difference(ours: dict[str, object], theirs: dict[str, object], differences: int) -> None:
    assert len(compare.steps(run(**ours), run(**theirs))) == differences


def test_every_column_of_the_recap_counts() -> None:
    for column in COLUMNS:
        one, other = run(), run()
        other.recap["h"][column] = 1
        assert len(compare.recaps(one, other)) == 1


def test_a_task_too_many_is_a_difference() -> None:
    one, other = run(), run()
    other.steps.append(other.steps[0])
    assert len(compare.steps(one, other)) == len(compare.steps(other, one)) == 1
