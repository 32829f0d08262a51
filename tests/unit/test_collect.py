"""inv collect-report and inv reports on folders that are not as a run leaves them, and beside other commands."""

import io
import json
import sys
import threading
import types

import invoke
import pytest

import tasks
from tcpfleet import collect, deploy, report, report_render, reports, runs, stress
from tcpfleet.cli import ROOT, Options, strict_json
from tcpfleet.errors import BadInput, HostFailed
from tests import report_samples as samples

RUN = "20260131-120001-a1b2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run's folder in a reports/ of its own; no host is looked at."""
    monkeypatch.setattr(runs, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(
        deploy, "observe", lambda session, port: {"observation": samples.observation(), "status": "ok"}
    )
    return runs.create(RUN)


def collected(**more):
    here = {"inventory": str(ROOT / "inventory/local.yml"), "hosts": "local"}
    return collect.collect_report(Options(here | more), RUN, "").data


@pytest.mark.parametrize(
    "change",
    [
        {"target": None, "connections": None, "hosts": None, "wall": "text"},
        {"target": {"port": "1883"}, "connections": {"verified": "all"}, "wall": {}, "hosts": ["local", 7, None]},
        {"target": [], "connections": {"verified": float("nan"), "requested": 10**30}, "wall": {"name": None}},
        {"hosts": [{"lost": "gone"}, {"name": "local", "lost": "gone"}], "verdict": ["pass"], "run_id": 7},
    ],
)
def test_a_record_that_somebody_changed_is_still_reported(folder, capsys, change):
    (folder / "run.json").write_text(json.dumps(samples.run() | change))
    assert sorted(collected()["hosts"]) == ["local"]
    assert "report.html" in capsys.readouterr().out
    assert reports.list_runs(Options({})).data["runs"][0]["run_id"] == RUN


@pytest.mark.parametrize(
    ("record", "ports"),
    [
        (None, (1883, 1883)),
        ({"target": {"host": "s1", "port": 7000}}, (7000, 7000)),
        ({"targets": [{"host": "s1", "port": 7000}, {"host": "s2", "port": 7001}]}, (7000, 7001)),
        ({"targets": [{"host": None, "port": 7000}], "target": {"port": 7000}}, (7000, 7000)),
        ({"targets": [{"host": "s2", "port": "x"}, {"port": 0}, {"port": 70000}], "target": []}, (1883, 1883)),
    ],
)
def test_each_host_is_looked_at_on_its_own_port(record, ports):
    assert tuple(collect.port_on(record, host) for host in ("s1", "s2")) == ports


def test_what_an_inventory_without_a_lost_host_cannot_fetch_is_reported_from_what_is_here(folder, capsys):
    record = samples.run()
    (folder / "run.json").write_text(json.dumps(record | {"hosts": [{"name": "c9", "lost": "no answer"}]}))
    (folder / "plan.json").write_text(json.dumps({"targets": [], "shares": [[0, "c9", 0, 1]]}))
    collected()
    assert "not fetched: " in capsys.readouterr().out and (folder / "report.html").exists()


def test_odd_files_in_a_folder_are_no_end_of_its_report(folder):
    samples.fill(folder, samples.run())
    (folder / "raw/notes.gz").write_text("mine")
    deep = folder / "raw/peak/s1/more/deeper.gz"
    deep.parent.mkdir(parents=True)
    deep.write_text("mine")
    (folder / "raw/peak/s1/gone.gz").symlink_to("nowhere")
    (folder / "observations/peak/folder.json").mkdir()
    (folder / "observations/peak/deep.json").write_text("[" * 100_000)
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "samples/long.json").write_text('{"rows": ' + "9" * 5000 + "}")
    (folder / "tuning").mkdir(exist_ok=True)
    (folder / "tuning/deep.json").write_text("[" * 100_000)
    (folder / "plan.json").write_text("[" * 100_000)
    report.write_reports(folder)
    written = json.loads((folder / "report.json").read_text())
    assert {"deep", "folder"} <= {row["host"] for row in written["hosts"]}
    assert any("long.json is damaged" in row["reason"] for row in written["unavailable"])


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e308, float("nan"), float("-inf"), 0, -1])
def test_numbers_that_cannot_be_are_no_traceback(folder, number):
    def changed(value):
        if isinstance(value, dict):
            return {key: changed(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [changed(inner) for inner in value]
        return number if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    samples.fill(folder, samples.run("fail", failed=3, seconds=2))
    kept = report.load(folder)
    parts = [changed(part) for part in (kept.run, kept.observations, kept.samples, kept.tuned)]
    for run, observations, series, tuned in (parts, [kept.run, *parts[1:]], [parts[0], kept.observations, {}, {}]):
        built = report.build(report.Kept(run, observations, series, tuned))
        assert report_render.render_html(built) and report_render.render_markdown(built)
        json.loads(strict_json(built), parse_constant=pytest.fail)


def test_what_is_written_is_json_for_every_reader(folder):
    odd = {"p50": float("nan"), "max": float("inf")}
    samples.fill(folder, samples.run() | {"latency_ms": {"connect": odd}, "plan": {"rate": float("-inf")}})
    listener = {"address": "0.0.0.0", "port": 1883, "accept_queue": float("nan"), "backlog": 10**400}
    seen = samples.observation(listeners=[listener], memory={"MemTotal": 10**400, "MemAvailable": float("inf")})
    report.save_observation(folder, "peak", "s1", {"observation": seen})
    report.write_reports(folder)
    files = reports.compare_reports(Options({}), RUN, RUN).data["files"]
    for file in (folder / "report.json", *(one for one in files if one.endswith(".json"))):
        json.loads(runs.Path(file).read_text(), parse_constant=pytest.fail)
    assert "nan" not in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}", '{"schema": "tcpfleet.run/2"}', "{", "\udcff"]
)
def test_a_run_that_cannot_be_read_is_named_and_hides_no_other(folder, text):
    samples.fill(runs.create("20260131-120000-a1b2"), samples.run())
    (folder / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match=r"run\.json"):
        report.load_run(folder)
    rows = reports.list_runs(Options({})).data["runs"]
    assert [row["verdict"] for row in rows] == ["damaged", "pass"] and rows[0]["note"]


def test_what_is_no_folder_of_a_run_is_not_listed(folder):
    (runs.REPORTS / "20260131-120009-a1b2").write_text("a file")
    (runs.REPORTS / "20260131-120008-a1b2").symlink_to("nowhere")
    (folder / "run.json").mkdir()
    (row,) = reports.list_runs(Options({})).data["runs"]
    assert (row["run_id"], row["verdict"]) == (RUN, "damaged")


def test_without_the_newest_run_the_one_before_is_the_newest(folder):
    refused = runs.create("20260131-120002-a1b2", latest=False)
    (refused / "plan.json").write_text('{"refused": "too few ports"}')
    runs.create("20260131-120003-a1b2").rmdir()
    assert runs.find("latest") == folder


def test_a_run_is_found_by_the_path_that_a_shell_completes(folder, monkeypatch):
    monkeypatch.chdir(runs.REPORTS.parent)
    for name in (
        f"reports/{RUN}",
        f"reports/{RUN}/",
        f"./reports/{RUN}",
        "reports/latest",
        str(folder),
        "latest",
        RUN,
    ):
        assert runs.find(name) == folder
    for name in (f"elsewhere/{RUN}", f"reports/{RUN[:15]}", RUN[:15], "../..", "reports/..", "/"):
        with pytest.raises(BadInput, match=r"there is no run .*: inv reports lists them"):
            runs.find(name)


def test_a_folder_that_cannot_be_written_is_said_before_any_host_is_asked(folder, monkeypatch):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(runs.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(collect.deploy, "observe", lambda *_: pytest.fail("asked"))
    with pytest.raises(BadInput, match=r"cannot write reports to .*: Read-only file system"):
        collected()


def test_a_run_that_another_command_leads_is_left_to_it(folder):
    with (
        runs.hold(folder, stress.COMMAND),
        pytest.raises(HostFailed, match="still going on, led by inv stress here"),
    ):
        collected()
    assert runs.holder(folder) is None


def test_two_at_a_time_take_turns(folder, capsys):
    samples.fill(folder, samples.run())
    held = runs.hold(folder, collect.COMMAND)
    second = threading.Thread(target=collected)
    second.start()
    second.join(1.0)
    assert second.is_alive() and not (folder / "report.html").exists()
    held.close()
    second.join(30)
    assert (folder / "report.html").exists()
    assert f"inv collect-report is at work on {RUN}: waiting for it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[]", "nonsense: it is a list"),
        ('{"running": true, "pid": 7, "workers": [{}]}', "started is missing"),
        ('"running"', "nonsense: it is a str"),
        ("", "said: nothing"),
    ],
)
def test_a_status_of_another_kind_is_that_hosts_failure(said, reason):
    def call(name, args, become):
        return {"stat": {"exists": True}} if name == "stat" else {"rc": 0, "stdout": said}

    host = types.SimpleNamespace(vars={})
    session = types.SimpleNamespace(call=call, host=host, hello={"executable": "python3"}, become=None)
    with pytest.raises(HostFailed, match=reason):
        deploy.server_status(session)


def test_a_terminal_without_a_character_gets_its_number(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(runs, "REPORTS", runs.Path("/nonexistent/–"))
    tasks.reports(invoke.Context(), json=False)
    terminal.flush()
    assert b"there is no run in /nonexistent/\\u2013" in terminal.buffer.getvalue()
