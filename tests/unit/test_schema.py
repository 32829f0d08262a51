"""docs/schema/: what run.json and report.json are, held against what the code writes."""

import json
from pathlib import Path

import pytest

from payload.histogram import Histogram
from tcpfleet import merge, report
from tests import report_samples as samples
from tests.unit.test_stress import result

jsonschema = pytest.importorskip("jsonschema", reason="comes with ./bootstrap, of requirements.lock")
FOLDER = Path(__file__).resolve().parents[2] / "docs/schema"


def check(name, data):
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    found = jsonschema.Draft202012Validator(schema).iter_errors(json.loads(json.dumps(data)))
    assert [f"{'/'.join(map(str, one.absolute_path))}: {one.message[:200]}" for one in found] == []


def test_the_run_that_is_written(tmp_path):
    point = Histogram()
    point.record(1500, 3)
    results = {0: result(100) | {"latency_timeline": [{"t": 0.5, "connect": point.point_ms(), "response": None}]}}
    record = merge.run_record(
        run_id="20260131-120000-a1b2",
        started="2026-01-31T12:00:00+00:00",
        targets=[{"host": "s1", "address": "10.77.0.11", "port": 1883}],
        command="inv stress",
        version="0.1.0",
        per_client=100,
        shares=[{"index": 0, "host": "c1"}, {"index": 1, "host": "c2"}],
        results=results,
        problems={},
        lost={"c2": "no sign of life"},
        observations={},
        interrupted=False,
    )
    check("run", record)
    assert record["wall"] and record["errors"] and record["latency_timeline"]


@pytest.mark.parametrize("missing", ["verdict", "connections", "wall", "timeline"])
def test_a_run_without_a_part_of_the_contract_is_none(missing):
    run = samples.run()
    run["hosts"] = [{"name": "s1", "roles": ["server"], "lost": None}]
    run["latency_ms"] = {kind: dict(row) for kind, row in run["latency_ms"].items()}
    check("run", run)
    del run[missing]
    with pytest.raises(AssertionError, match=missing):
        check("run", run)


@pytest.mark.parametrize(
    "sample",
    [
        {"record": samples.run("fail", failed=1234), "drops": 1234, "dead": ("c2",)},
        {"record": samples.run(), "one_machine": False},
        {"record": None},
        {"record": dict(samples.poison(samples.run("fail", failed=3)), schema="tcpfleet.run/1")},
    ],
    ids=["failed", "passed", "no run", "markup"],
)
def test_the_report_that_is_written(tmp_path, sample):
    report.write_reports(samples.fill(tmp_path, **sample))
    check("report", json.loads((tmp_path / "report.json").read_text()))


@pytest.mark.parametrize("junk", [None, 7, "text", [], [1, "x"], {}, {"x": []}, True])
def test_a_report_of_junk_keeps_its_schema(tmp_path, junk):
    fields = (
        "plan",
        "timeline",
        "errors",
        "latency_ms",
        "wall",
        "thresholds",
        "warnings",
        "histograms",
        "seconds",
    )
    samples.fill(tmp_path, samples.run() | dict.fromkeys(fields, junk))
    for index, section in enumerate(sound := samples.observation()):
        report.save_observation(tmp_path, "peak", f"h{index}", {"observation": dict(sound, **{section: junk})})
    check("report", report.build(report.load(tmp_path)))
