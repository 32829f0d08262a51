"""A host's samples at the controller: their zero, thinning, what a lost host leaves."""

import contextlib
import datetime
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tcpfleet import runs, samples
from tcpfleet.fleet import Fleet
from tcpfleet.inventory import Connection, Host

STARTED = "2026-01-01T00:00:00.000+00:00"
ZERO = 1767225600.0  # the same
HEAD = {"epoch": ZERO + 5.0, "interval": 1.0, "states_share": 0.05}


def answer(*lines, alive=True, log="", now=ZERO, offset=7):
    return {"lines": list(lines), "alive": alive, "log": log, "now": now, "offset": offset}


def series(*lines, **more):
    found = samples.Series("s1")
    found.take(answer(HEAD, *lines, **more), 0.0)
    return found


@pytest.mark.parametrize(
    ("host_clock", "t"), [(ZERO, 5.5), (ZERO - 3600, 3605.5), (ZERO + 5, 0.5), (ZERO + 5.7, 0.0)]
)
def test_t_is_counted_from_the_start_by_the_controllers_clock(host_clock, t):
    """The sampler began at host time ZERO + 5; when the controller's clock showed ZERO the host's showed this."""
    found = series({"t": 0.5}, now=host_clock)
    assert found.to_dict()["rows"] == [{"t": t}]


def test_rows_merge_by_what_they_mean():
    rows = [
        {"t": 1.0, "files": 5, "cpu_busy": 1.0, "counters": {"a": 1}, "states": {"server": {"ESTAB": 1}}},
        {"t": 2.0, "files": 7, "cpu_busy": 0.5, "counters": {"a": 2, "b": 1}, "server_cpu": 2.0},
        {"t": 4.0, "cpu_busy": 0.25, "counters": {}},
    ]
    assert samples.merged(rows, 0.0) == {
        "t": 4.0,
        "files": 7,
        "cpu_busy": 0.5,
        "server_cpu": 2.0,
        "counters": {"a": 3, "b": 1},
        "states": {"server": {"ESTAB": 1}},
    }


@pytest.mark.parametrize("seconds", [2, 1199, 1200, 7200, 21600])
def test_a_run_of_any_length_has_a_bounded_number_of_rows(seconds):
    found = series()
    for second in range(seconds):
        found.take(answer({"t": float(second), "cpu_busy": 0.5, "counters": {"a": 2}}), 0.0)
    data = found.to_dict()
    assert min(seconds, samples.MOST_ROWS // 2) <= len(data["rows"]) <= samples.MOST_ROWS
    assert sum(row["counters"]["a"] for row in data["rows"]) == 2 * seconds  # nothing is lost by thinning
    assert data["rows"][-1]["t"] == seconds - 1 + 5.0
    gaps = {b["t"] - a["t"] for a, b in zip(data["rows"], data["rows"][1:-1], strict=False)}
    assert gaps <= {data["interval_seconds"]}
    assert all(row["cpu_busy"] == 0.5 for row in data["rows"][1:])


def test_what_is_missing_is_named_once_and_counting_is_told():
    proc = {"source": "proc", "cpu": 0.5, "not_used": [{"source": "ss", "reason": "ENOENT"}], "t": 1.1}
    state = {"server": {"ESTAB": 3}, "client": {}}
    found = series(
        {"unavailable": {"server_rss": "gone"}},
        {"unavailable": {"server_rss": "other"}},
        {"t": 1.0, "states": state, "count": proc},
        {"t": 2.0},
        {"t": 3.0, "states": state, "count": proc | {"t": 2.2}},  # took until after the next row
    ).to_dict()
    assert found["unavailable"] == {"server_rss": "gone", "states by ss": "ENOENT; counted by proc"}
    counting = {"times": 2, "cpu_seconds": 1.0, "source": "proc", "cpu_share_at_most": 0.05}
    assert found["states_counting"] == counting
    assert found["rows"] == [{"t": 6.0, "states": state}, {"t": 7.0, "states": state}, {"t": 8.0}]
    assert (found["schema"], found["host"], found["interval_seconds"]) == ("tcpfleet.samples/1", "s1", 1.0)


@pytest.mark.parametrize(
    ("lines", "log", "said"),
    [
        ([{"ended": "told to"}], "", {}),
        ([], "No space left", {"rows after 6.0 s": "the sampler died: No space left"}),
        ([], "", {"rows after 6.0 s": "the sampler died: its log is empty"}),
    ],
)
def test_a_sampler_that_died_is_a_gap(lines, log, said):
    found = series({"t": 1.0}, *lines)
    found.take(answer(alive=False, log=log), 0.0)
    assert found.ended and found.to_dict()["unavailable"] == said


def test_a_host_that_was_lost_keeps_its_rows(tmp_path):
    found = series({"t": 1.0}, {"t": 2.0})
    found.lost("connection lost")
    found.save(tmp_path)
    data = json.loads((tmp_path / "samples/s1.json").read_text())
    assert [row["t"] for row in data["rows"]] == [6.0, 7.0]
    assert data["unavailable"] == {"rows after 7.0 s": "connection lost"}
    again = samples.Series("s1")  # when results are fetched later and it does not answer
    again.lost("no answer")
    again.save(tmp_path)
    assert json.loads((tmp_path / "samples/s1.json").read_text()) == data


def test_rows_of_the_time_after_a_load_are_left_out():
    found = series({"t": 1.0}, {"t": 200.0})
    assert [row["t"] for row in found.to_dict(until=16.0)["rows"]] == [6.0]


def session(answers, asked):
    def call(op, args, become=None):
        asked.append(args["action"])
        return answers[args["action"]].pop(0)

    return SimpleNamespace(host=SimpleNamespace(name="s1", vars={}), call=call, become=None)


def test_a_host_whose_sampler_cannot_start_is_a_gap_and_asked_no_more(tmp_path):
    asked = []
    found = samples.Series("s1")
    there = session(
        {"start": [{"failed": True, "msg": "cannot write"}], "end": [{}], "remove": [{}]},
        asked,
    )
    samples.start(there, "r", found, 1883, server=True)
    samples.read(there, "r", found, STARTED)
    samples.finish(there, "r", found, STARTED)
    assert asked == ["start", "end", "remove"]
    found.save(tmp_path)
    data = json.loads((tmp_path / "samples/s1.json").read_text())
    assert data["rows"] == [] and data["unavailable"] == {"samples": "cannot write"}


def test_everything_is_read_in_pieces_before_it_is_removed():
    asked = []
    pieces = [answer(HEAD, {"t": 1.0}), answer({"t": 2.0}, {"ended": "told to"}, alive=False), answer(alive=False)]
    there = session({"end": [{}], "read": pieces, "remove": [{}]}, asked)
    found = samples.Series("s1")
    samples.finish(there, "r", found, STARTED)
    assert asked == ["end", "read", "read", "read", "remove"]
    assert len(found.to_dict()["rows"]) == 2 and found.ended and found.to_dict()["unavailable"] == {}


def test_a_slow_line_is_not_asked_for_ever():
    """By each answer the sampler has written another row."""
    asked = []
    rows = [answer({"t": float(n)}, offset=n + 1) for n in range(1, 9)]
    found = samples.Series("s1")
    samples.read(session({"read": [answer(HEAD, offset=1), *rows]}, asked), "r", found, STARTED)
    assert asked == ["read"]


def test_a_sampler_that_is_killed_on_a_host_leaves_its_rows_and_a_gap(tmp_path):
    """Over the local link: a real agent, a real sampler."""
    run_id = runs.new_run_id()
    found = samples.Series("here")
    started = datetime.datetime.now(datetime.timezone.utc).isoformat()

    def work(there):
        samples.start(there, run_id, found, 1, server=True)
        samples.read(there, run_id, found, started)
        (pid,) = sampler_of(run_id)
        os.kill(pid, signal.SIGKILL)
        while sampler_of(run_id):
            time.sleep(0.01)
        samples.read(there, run_id, found, started)
        samples.finish(there, run_id, found, started)

    host = Host("here", {}, ())
    with Fleet([host], lambda host: Connection("here", "local", "here")) as fleet:
        outcome = fleet.run(work)["here"]
    assert outcome.status == "ok", outcome.error
    data = found.to_dict()
    first = data["rows"][0]
    assert 0 <= first["t"] < 5 and first["mem_available"] > 0 and first["files"] > 0
    assert data["unavailable"].pop(f"rows after {data['rows'][-1]['t']:.1f} s") == (
        "the sampler died: its log is empty"
    )
    assert set(data["unavailable"]) == {"server_rss", "server_cpu", "server_connections"}  # nothing has port 1


def sampler_of(run_id):
    """Pids of the run's sampler."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if b"observe_sampler.py" in command and run_id.encode() in command:
                    found.append(int(entry.name))
    return found
