"""The parts of `inv bench` that need no lab: running programs, tables, the marks, bad use."""

import sys

import pytest

from benchmarks import playbook, report, stress
from tcpfleet import bench
from tcpfleet.cli import Options
from tcpfleet.errors import BadInput, HostFailed


def test_an_unknown_benchmark_is_told_what_there_is() -> None:
    with pytest.raises(BadInput, match="there is no benchmark 'nothing'; there are: playbook: "):
        bench.run(Options({}), "nothing", "3", "")


@pytest.mark.parametrize(("rounds", "only", "said"), [("0", "", "--rounds"), ("3", "tune,nothing", "'nothing'")])
def test_bad_options_are_refused_before_anything_runs(rounds: str, only: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        bench.run(Options({}), "playbook", rounds, only)


def test_cpu_time_is_that_of_the_program_and_its_children() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}]); print('done')"
    bench.timed([sys.executable, "-c", spin])  # its time must not be counted with the next one's
    took = bench.timed([sys.executable, "-c", parent])
    assert took.output == "done\n" and 0.3 <= took.cpu < 0.6 and took.seconds >= 0.3


def test_a_program_that_fails_is_no_measurement() -> None:
    with pytest.raises(HostFailed, match=r"ended with 3:\nwhy"):
        bench.timed([sys.executable, "-c", "print('why'); raise SystemExit(3)"])


@pytest.mark.parametrize(
    "document", ["", "<!-- x -->\n", "<!-- end of x -->\n<!-- x -->\n", "<!-- y -->\n<!-- end of y -->\n"]
)
def test_a_document_without_both_marks_is_refused(document: str) -> None:
    with pytest.raises(BadInput, match="missing"):
        bench.between_marks(document, "x", "text")


def test_a_table_written_twice_stands_there_once() -> None:
    document = bench.between_marks("head\n<!-- x -->\n<!-- end of x -->\ntail\n", "x", "a\n\nb")
    assert document == "head\n<!-- x -->\na\n\nb\n<!-- end of x -->\ntail\n"
    assert bench.between_marks(document, "x", "a\n\nb\n") == document


MARKS = [
    f"bench {what}, {part}"
    for what, one in (("playbook", playbook), ("stress", stress), ("report", report))
    for part in one.PARTS
]


@pytest.mark.parametrize("name", MARKS)
def test_the_marks_are_in_the_file(name: str) -> None:
    text = bench.RESULTS.read_text(encoding="utf-8")
    assert f"<!-- {name} -->\nnew\n" in bench.between_marks(text, name, "new")


def test_the_pace_is_read_between_samples() -> None:
    rows = [{"t": 0.0, "established": 0}, {"t": 1.0, "established": 100}, {"t": 3.0, "established": 200}]
    assert stress.pace(rows, 0, 100) == pytest.approx(100)
    assert stress.pace(rows, 100, 200) == pytest.approx(50)
    assert stress.pace(rows, 150, 200) == pytest.approx(50)
