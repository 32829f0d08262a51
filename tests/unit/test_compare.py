"""inv reports and inv compare-reports from synthetic runs: what is claimed, what not, refused and damaged ones."""

import itertools
import json
import random
import re

import pytest

from tcpfleet import compare, report, reports, runs, stress
from tcpfleet.cli import Options
from tcpfleet.errors import BadInput
from tests import report_samples as samples

SIZE = 200000


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """reports/ in a folder of its own; call it to keep a run."""
    monkeypatch.setattr(runs, "REPORTS", tmp_path / "reports")
    numbers = itertools.count(1)

    def keep(record=None, plan=None, **more):
        run_id = f"20260131-1200{next(numbers):02d}-a1b2"
        folder = runs.create(run_id)
        if record is not None:
            samples.fill(folder, dict(record, run_id=run_id), **more)
        if plan is not None:
            (folder / "plan.json").write_text(json.dumps(dict(plan, run_id=run_id)))
        return run_id

    return keep


def listed(capsys):
    answer = reports.list_runs(Options({}))
    return answer.data["runs"], capsys.readouterr().out


def compared(a, b):
    answer = reports.compare_reports(Options({}), a, b)
    page, text, data = (runs.REPORTS.parent.joinpath(file).read_text() for file in answer.data["files"])
    return answer.data, page, text, json.loads(data)


def noisy(dice, factor=1.0):
    """A run as a busy machine gives it: rates and latencies scatter."""
    run = samples.run()
    run["rate"] = {name: round(value * dice.lognormvariate(0, 0.2), 1) for name, value in run["rate"].items()}
    for kind in run["latency_ms"].values():
        for name in ("p50", "p90", "p99", "p999", "max"):
            kind[name] = round(kind[name] * factor * dice.lognormvariate(0, 0.08), 3)
    return run


@pytest.mark.parametrize(
    ("a", "b", "kind", "status"),
    [
        ([5], [5], "rate", "same"),
        ([1000], [2400], "rate", "none"),
        ([1000], [2600], "rate", "beyond allowance"),
        ([1.0], [900.0], "worst", "none"),
        ([0], [200], "count", "none"),  # a thousandth of the connections
        ([0], [201], "count", "beyond allowance"),
        ([0, 0, 0], [201, 201, 201], "count", "difference"),
        ([0], [3.0], "median", "beyond allowance"),
        ([10, 11], [30, 31], "rate", "beyond allowance"),  # two runs do not tell the spread
        ([10, 11], [20, 21], "rate", "none"),
        ([10, 11, 12], [12, 13, 14], "rate", "none"),  # the ranges touch
        ([10, 11, 12], [17, 18, 17], "rate", "none"),  # apart, not by three times the range
        ([10, 11, 12], [18, 18, 18], "rate", "difference"),
        ([10, 11, 12, 11], [16, 16, 16, 16], "rate", "difference"),  # four runs: twice
        ([100, 100, 100], [103, 103, 103], "rate", "none"),  # 3% is not worth a word
        ([1.0], [200.0], "memory", "none"),  # so much takes a server for itself
        ([100.0], [400.0], "memory", "beyond allowance"),
    ],
)
def test_judge(a, b, kind, status):
    found, words = compare.judge(a, b, kind, least=200)
    assert found == status, words
    assert compare.judge(b, a, kind, least=200)[0] == status


@pytest.mark.parametrize("runs_a_side", [3, 4, 5, 6, 8])
def test_figures_that_only_scatter_are_hardly_ever_called_different(runs_a_side):
    dice = random.Random(1)
    claimed = 0
    for _ in range(4000):
        a, b = ([dice.lognormvariate(0, 0.5) for _ in range(runs_a_side)] for _ in "ab")
        claimed += compare.judge(a, b, "tail", 0)[0] in compare.CLAIMS
    assert claimed <= 12


def test_the_same_run_twice_claims_nothing(kept):
    one = kept(samples.run(), drops=9)
    data, page, text, saved = compared(one, one)
    assert data["answer"] == [
        "All settings that were seen are equal.",
        f"No measurable effect with so few runs: none of {len(data['results'])} figures is beyond the allowance.",
    ]
    assert {row["status"] for row in data["results"]} == {"same"}
    assert "Both sides hold the same run." in text
    assert not any(row["differ"] for row in data["settings"])
    assert saved["answer"] == data["answer"] and data["answer"][-1] in page


@pytest.mark.parametrize("count", [1, 3])
def test_runs_that_are_set_alike_claim_nothing(kept, count):
    dice = random.Random(7)
    sides = [",".join(kept(noisy(dice)) for _ in range(count)) for _ in "ab"]
    data, _, text, _ = compared(*sides)
    assert data["answer"][-1].startswith("No measurable effect"), data["answer"]
    assert "spread is unknown" in text if count == 1 else "3 times the larger range" in text


def test_what_a_setting_changed(kept):
    dice = random.Random(7)
    before = ",".join(kept(noisy(dice)) for _ in range(3))
    tuned = samples.observation()["sysctls"] | {"net.core.somaxconn": "128"}
    after = []
    for _ in range(3):
        after.append(kept(noisy(dice, 10)))
        for phase in ("before", "peak", "after", "present"):
            found = samples.observation(sysctls=tuned, open_now=SIZE if phase == "peak" else 0)
            report.save_observation(runs.find(after[-1]), phase, "s1", {"observation": found})
    data, page, text, _ = compared(before, ",".join(after))
    (changed,) = [row for row in data["settings"] if row["differ"]]
    assert changed == {
        "group": "sysctl",
        "name": "net.core.somaxconn",
        "where": ["s1"],
        "a": ["65535"],
        "b": ["128"],
        "differ": True,
    }
    claimed = {row["name"] for row in data["results"] if row["status"] in compare.CLAIMS}
    assert {"connect p50", "service p99"} <= claimed and not any("/s" in name for name in claimed)
    assert data["answer"][-1].startswith("Figures that differ beyond the run-to-run spread")
    row = next(row for row in data["results"] if row["name"] == "service p99")
    for number in (row["a"]["median"], row["b"]["median"], row["difference"]):
        assert report.report_render._number(number) in text
        assert f'<data value="{number}">' in page


def test_numbers_of_a_comparison_are_those_of_the_runs(kept):
    one, other = samples.run(), samples.run("fail", failed=1234)
    data, _, _, _ = compared(kept(one, one_machine=False), kept(other, drops=1234))
    figures = {(row["group"], row["name"]): row for row in data["results"]}
    failed = figures["connections", "failed"]
    assert failed["a"]["values"] == [0] and failed["b"]["values"] == [1234] and failed["difference"] == 1234
    assert failed["status"] == "beyond allowance"
    assert figures["errors", "connect: ETIMEDOUT"]["b"]["values"] == [1234]
    assert figures["counters", "TcpExt.ListenOverflows"]["b"]["values"] == [1234]
    assert figures["memory", "TCP objects in the kernel"]["a"]["median"] == 2368.0
    assert data["answer"][0] == "Verdicts: A pass; B fail."


def test_a_refused_plan_is_compared(kept):
    plan = {
        "started": "2026-01-31T11:00:00+00:00",
        "clients": 1,
        "per_client": 300000,
        "client_options": [["--hold", "10"]],
        "refused": "the plan was refused, nothing was started: <b>c1</b>: 300,000 connections need ports",
        "hosts": [{"name": "s1", "roles": ["server"]}],
    }
    refused, passed = kept(plan=plan), kept(samples.run())
    report.save_observation(runs.find(refused), "before", "s1", {"observation": samples.observation()})
    data, page, text, _ = compared(refused, passed)
    assert data["answer"][0].startswith(
        f"A ({refused}) was refused before anything connected: the plan was refused"
    )
    assert data["answer"][-1] == "There are no results to compare: one side has none."
    assert "&lt;b&gt;c1&lt;/b&gt;" in page and "&lt;b&gt;c1&lt;/b&gt;" in text
    assert [row["name"] for row in data["settings"] if row["where"] == ["s1"] and row["differ"]] == []
    assert {row["status"] for row in data["results"]} == {"not comparable"}
    report.write_reports(runs.find(refused))
    assert json.loads((runs.find(refused) / "report.json").read_text())["verdict"]["status"] == "refused"


def test_runs_of_different_size_are_not_compared_by_counts(kept):
    data, _, _, _ = compared(kept(samples.run(total=1000)), kept(samples.run(total=2000)))
    (row,) = [row for row in data["results"] if (row["group"], row["name"]) == ("connections", "established")]
    assert row["status"] == "not comparable"


def test_markup_in_every_field_stays_text(kept):
    run = dict(samples.poison(samples.run("fail", failed=5000)), schema="tcpfleet.run/1", verdict="fail")
    _, page, text, _ = compared(kept(run), kept(samples.run()))
    assert "<script" not in page and "<b onclick" not in page + text and "\x1b" not in page + text
    widths = {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| **")}
    assert len(widths) <= 1


@pytest.mark.parametrize("junk", [None, 7, "text", [], [1, "x"], {}, {"x": []}, True])
def test_junk_in_any_field_is_no_traceback(kept, junk):
    sound = samples.run(seconds=2)
    fields = ("rate", "echoes", "latency_ms", "errors", "wall", "timeline", "plan", "connections", "targets")
    plan = {"plans": junk, "shares": junk, "servers": junk, "client_options": junk, "thresholds": junk}
    compared(kept(sound | dict.fromkeys(fields, junk), plan=plan), kept(sound))


def test_list(kept, capsys):
    samples_of = [
        kept(samples.run("fail", failed=7)),
        kept(samples.run(ended="2026-01-31T12:01:03.500+00:00")),
        kept(plan={"clients": 2, "per_client": 100}),
        kept(plan={"clients": 2, "per_client": 100, "refused": f"{stress.REFUSED}: no\x1b[31m ports\nat all"}),
        kept(),
        kept(samples.run()),
    ]
    damaged = runs.find(samples_of[-1]) / "run.json"
    damaged.write_text(damaged.read_text()[:200])
    rows, out = listed(capsys)
    assert [row["run_id"] for row in rows] == samples_of[::-1]
    assert [row["verdict"] for row in rows] == ["damaged", "none", "refused", "unfinished", "pass", "fail"]
    assert [row["requested"] for row in rows] == [None, None, 200, 200, SIZE, SIZE]
    assert rows[4]["seconds"] == 63.5 and rows[5]["wall"] == "accept queue of the server"
    assert rows[0]["latest"] and not rows[1]["latest"]
    assert stress.REFUSED not in out and "31m ports at all" in out
    assert "(latest)" in out and "not complete JSON" in out and "\x1b" not in out
    assert len(out.splitlines()) == 7


def test_a_median_and_its_range_are_not_one_number(kept):
    runs_of = [
        kept(samples.run(rate={"connects_per_second": n, "echoes_per_second": 1.0}))
        for n in (10, 11, 12, 90, 91, 92)
    ]
    _, page, _, _ = compared(",".join(runs_of[:3]), ",".join(runs_of[3:]))
    assert "11 (10 – 12) → 91 (90 – 92) connects/s (+727.3%)" in " ".join(re.sub("<[^>]*>", "", page).split())


def test_a_change_below_a_percent_is_not_rounded_up_to_one(kept, capsys):
    compared(kept(samples.run()), kept(samples.run("fail", failed=1234)))
    assert "connections established: 200,000 -> 198,766 connections (-0.6%)" in capsys.readouterr().out


def test_an_empty_list_says_how_to_make_a_run(kept, capsys):
    rows, out = listed(capsys)
    assert rows == [] and "inv stress" in out


@pytest.mark.parametrize("name", ["", "20260131-120000-ffff", "../..", "/nonexistent/run", "a,"])
def test_what_is_no_run_is_refused(kept, name):
    one = kept(samples.run())
    with pytest.raises(BadInput):
        reports.compare_reports(Options({}), name, one)


def test_a_folder_elsewhere_is_a_run_too(kept, tmp_path):
    folder = samples.fill(tmp_path / "from a colleague", samples.run())
    data, _, _, _ = compared(str(folder), kept(samples.run()))
    assert data["sides"]["a"]["runs"][0]["run_id"] == "from a colleague"
