"""Dealing clients to hosts, finding the target, and merging what clients report: pure functions by tables."""

import json
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from operations import stress as operation

from payload.histogram import Histogram
from tcpfleet import merge, report, runs, stress, stress_tasks
from tcpfleet.cli import Options
from tcpfleet.errors import BadInput, Refused
from tcpfleet.inventory import Host, Inventory
from tcpfleet.stress import resolve_target, spread

HOSTS = [Host(name, {}, ()) for name in ("a", "b", "c")]


@pytest.mark.parametrize(
    ("clients", "expected"),
    [
        (1, ["a 0/1"]),
        (3, ["a 0/1", "b 0/1", "c 0/1"]),
        (5, ["a 0/2", "b 0/2", "c 0/1", "a 1/2", "b 1/2"]),
    ],
)
def test_spread(clients: int, expected: list[str]) -> None:
    assert [f"{s.host.name} {s.position}/{s.of}" for s in spread(clients, HOSTS)] == expected


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    file = tmp_path / "hosts.yml"
    file.write_text(
        "server: {hosts: {s1: {ansible_host: 10.77.0.11}}}\n"
        "clients: {hosts: {c1: {ansible_host: 10.77.0.21}}}\n"
        "here: {hosts: {local: {ansible_connection: local}}}\n"
    )
    return Inventory.load(file)


@pytest.mark.parametrize(
    ("text", "client", "expected"),
    [
        ("", "c1", ("s1", "10.77.0.11", 1883)),
        ("", "local", ("local", "127.0.0.1", 1883)),
        ("s1:7", "c1", ("s1", "10.77.0.11", 7)),
        ("10.77.0.11:7", "c1", ("s1", "10.77.0.11", 7)),
        ("local", "c1", ("local", "127.0.0.1", 1883)),
    ],
)
def test_target(inventory: Inventory, text: str, client: str, expected: tuple[str, str, int]) -> None:
    found = resolve_target(inventory, text, [inventory.hosts[client]], allow_outside=False)
    assert (found.host and found.host.name, found.address, found.port) == expected


@pytest.mark.parametrize("text", ["s1:0", "s1:70000", "s1:x", ":80", "10.77.0.99", "example.org:80"])
def test_bad_targets(inventory: Inventory, text: str) -> None:
    with pytest.raises(BadInput, match="--target"):
        resolve_target(inventory, text, [inventory.hosts["c1"]], allow_outside=False)


def test_several_targets_are_taken_in_turn(inventory: Inventory) -> None:
    clients = [inventory.hosts["c1"]]
    found = stress.resolve_targets(inventory, "s1:7, 10.77.0.21:8", clients, allow_outside=False)
    assert [(target.address, target.port) for target in found] == [("10.77.0.11", 7), ("10.77.0.21", 8)]
    request = stress.Request(5, 10, found, (), "inv stress")
    assert [request.wanted(target) for target in found] == [30, 20]
    assert (request.port_on("c1"), request.port_on("s1"), request.port_on("other")) == (8, 7, 7)
    for text in ("s1,s1", "s1,", ",s1"):
        with pytest.raises(BadInput, match="twice, or none"):
            stress.resolve_targets(inventory, text, clients, allow_outside=False)


def test_clients_of_a_host_share_ports_only_towards_the_same_target(inventory: Inventory) -> None:
    """Two targets, 63,976 ports: 60,000 connections to each were refused."""
    targets = stress.resolve_targets(inventory, "s1:7,s1:8", [], allow_outside=False)
    run = stress.Run(stress.Request(5, 10, targets, (), "inv stress"), spread(5, HOSTS[:2]), "r")
    said = {share.index: " ".join(run._arguments(share)) for share in run.shares}
    # Clients 0, 2, 4 are host a's, 1 and 3 host b's; 0, 2 and 4 have the first target.
    assert [text.split("--slice ")[1].split(" --first")[0] for text in said.values()] == [
        "0/3 --clients-here 3",
        "0/2 --clients-here 2",
        "1/3 --clients-here 3",
        "1/2 --clients-here 2",
        "2/3 --clients-here 3",
    ]
    run = stress.Run(stress.Request(4, 10, targets, (), "inv stress"), spread(4, HOSTS[:1]), "r")
    said = {share.index: " ".join(run._arguments(share)) for share in run.shares}
    assert [text.split("--slice ")[1].split()[0] for text in said.values()] == ["0/2", "0/2", "1/2", "1/2"]


def test_a_stage_that_is_repeated_does_not_look_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{"status": "failed", "error": "gone"}, {"status": "ok", "at": 1}, {"status": "ok", "at": 2}])
    monkeypatch.setattr(stress.deploy, "observe", lambda session, port: next(looks))
    target = stress.Target(None, "10.77.0.11", 1883)
    run = stress.Run(stress.Request(1, 10, (target,), (), "inv stress"), spread(1, HOSTS), "r")
    session = SimpleNamespace(host=HOSTS[0])
    for _ in range(3):
        run._observe(session, "peak")  # type: ignore[arg-type]
    assert run.observed["peak"]["a"] == {"status": "ok", "at": 1}


def result(verified: int, failed: int = 0, *, latency_us: int = 1000, step: float = 0.1) -> dict:
    histogram = Histogram()
    histogram.record(latency_us, verified)
    empty = Histogram().to_dict()
    errors = []
    if failed:
        row = {"phase": "connect", "errno": "ECONNREFUSED", "count": failed, "host": "x", "sample": "first"}
        errors.append(row | {"first": "2026-01-01T00:00:00.000Z", "last": "2026-01-01T00:00:01.000Z"})
    return {
        "connections": {
            "requested": verified + failed,
            "established": verified,
            "verified": verified,
            "failed": failed,
            "peak": verified,
        },
        "rate": {"connects_per_second": 100.0, "echoes_per_second": 100.0, "asked": None},
        "echoes": {"sent": verified, "verified": verified, "mismatched": 0, "lost": 0, "steady": 0},
        "seconds": {"ramp": 1.0, "hold": 2.0, "ramp_span": [0.5, 1.5]},
        "interrupted": False,
        "errors": errors,
        "wall": {"name": "nothing listens", "evidence": "e", "fix": "f"} if failed else None,
        "warnings": ["slow"] if failed else [],
        "hosts": [{"host": "x", "pid": 1, "workers": [{"index": 0, "pid": 2}]}],
        "timeline": [
            {
                "t": round(step * n, 3),
                "time": 0,
                "established": min(verified, 10 * n),
                "open": min(verified, 10 * n),
            }
            | {"failed": failed, "echoes": min(verified, 10 * n)}
            for n in range(1, 21)
        ],
        "plan": {"workers": 1},
        "histograms": {"connect": histogram.to_dict(), "first": histogram.to_dict(), "service": empty}
        | {"response": empty},
        "options": {},
        "ended": "2026-01-01T00:00:09.000Z",
    }


def record(results: dict[int, dict], clients: int, **changes: object) -> dict:
    arguments: dict = {
        "run_id": "r",
        "started": "2026-01-01T00:00:00.000Z",
        "targets": [{"host": "s1", "address": "10.77.0.11", "port": 1883}],
        "command": "inv stress",
        "version": "0",
        "per_client": 100,
        "shares": [{"index": index, "host": f"c{index}"} for index in range(clients)],
        "results": results,
        "problems": {},
        "lost": {},
        "observations": {},
        "interrupted": False,
    }
    return merge.run_record(**(arguments | changes))


def test_all_verified_is_a_pass() -> None:
    run = record({0: result(100), 1: result(100, latency_us=9000)}, 2)
    assert run["verdict"] == "pass" and run["wall"] is None
    assert run["connections"] == {"requested": 200, "established": 200, "verified": 200, "failed": 0, "peak": 200}
    assert run["latency_ms"]["connect"]["count"] == 200
    assert run["latency_ms"]["connect"]["p50"] == pytest.approx(1.0, rel=0.02)
    assert run["latency_ms"]["connect"]["max"] == pytest.approx(9.0, rel=0.02)
    assert [host["name"] for host in run["hosts"]] == ["c0", "c1", "s1"]


@pytest.mark.parametrize(("year", "said"), [(2027, "31,536,000 s ahead of"), (2025, "31,536,000 s behind")])
def test_a_client_whose_clock_is_a_year_off_is_told_and_moves_no_moment_of_the_run(year: int, said: str) -> None:
    results = {n: result(50, 50) | {"started": "2026-01-01T00:00:00.400Z"} for n in range(2)}
    results[1] = json.loads(json.dumps(results[1]).replace('"2026-', f'"{year}-'))
    run = record(results, 2)
    assert run["ended"] == "2026-01-01T00:00:09.000Z"
    assert all(row[end].startswith(("2026-01-01T00:0", "2025-12-31T23:59:59.6")) for row in run["errors"]
               for end in ("first", "last"))  # fmt: skip
    assert f"c1, client 1: its clock is {said} the controller's; its times were moved" in run["warnings"]
    assert not any("c0" in text and "clock" in text for text in run["warnings"])


def test_the_ramp_is_that_of_all_clients_together() -> None:
    turns = {0: result(100), 1: result(100)}
    turns[1]["seconds"]["ramp_span"] = [1.5, 4.5]
    run = record(turns, 2)
    assert run["seconds"]["ramp"] == 4.0 and run["rate"]["connects_per_second"] == 50.0
    assert run["rate"]["echoes_per_second"] == 50.0  # nothing was sent after the ramp
    for one in turns.values():
        one["echoes"]["steady"] = 10
    assert record(turns, 2)["rate"]["echoes_per_second"] == 200.0  # the steady phases are at the same time


def test_failures_are_counted_located_and_named() -> None:
    run = record({0: result(100), 1: result(60, failed=40)}, 2)
    assert run["verdict"] == "fail" and run["wall"]["name"] == "nothing listens"
    assert run["connections"]["verified"] + run["connections"]["failed"] == run["connections"]["requested"] == 200
    assert [(row["host"], row["errno"], row["count"]) for row in run["errors"]] == [("c1", "ECONNREFUSED", 40)]
    assert run["warnings"] == ["c1, client 1: slow"]


def test_the_share_of_a_lost_host_is_failed() -> None:
    run = record({0: result(100)}, 2, lost={"c1": "c1: connection lost: no sign of life for 30 s"})
    assert run["verdict"] == "fail" and run["wall"]["name"] == "a client host was lost"
    assert run["connections"]["requested"] == 200 and run["connections"]["failed"] == 100
    assert run["errors"][0]["errno"] == "UNREACHABLE" and run["errors"][0]["count"] == 100


def test_why_a_host_was_given_up_comes_before_what_is_missing() -> None:
    run = record({0: result(100)}, 2, lost={"c1": "no space left"}, problems={1: "it left no result"})
    assert run["errors"][0]["sample"] == "no space left; it left no result"


def test_an_agent_that_leads_already_writes_nothing(tmp_path: Path) -> None:
    """The disk of a client's host may become full in the middle of a load."""
    operation._lead(tmp_path)
    before = (tmp_path / "leader").stat()
    operation._lead(tmp_path)
    assert (tmp_path / "leader").stat() == before
    (tmp_path / "leader").write_text("1 another\n")
    operation._lead(tmp_path)
    assert (tmp_path / "leader").read_text().split()[0] == str(os.getpid())


def test_a_client_that_was_stopped_early_makes_no_pass() -> None:
    cpu = {"user": 0.0, "nice": 0.0, "system": 0.0, "idle": 0.0, "iowait": 0.0, "irq": 0.0, "softirq": 0.0}
    busy = [{"c1": {"status": "ok", "observation": {"cpu": cpu | {"user": at}}}} for at in (0.0, 9.0)]
    seen = {"before": busy[0], "peak": busy[1]}
    cut = result(60, failed=40) | {"interrupted": True, "wall": None, "warnings": []}
    cut["errors"][0]["errno"] = "ECANCELED"
    ended = record({0: result(100), 1: cut}, 2, observations=seen)
    assert ended["connections"]["failed"] == 40 and ended["wall"] is None
    run = record({0: result(100), 1: result(100) | {"interrupted": True}}, 2, observations=seen)
    assert run["verdict"] == "fail" and run["interrupted"] is True and run["wall"] is None
    assert run["warnings"] == ["c1, client 1: was stopped after 2 s of hold"]


def test_no_result_at_all_is_a_fail() -> None:
    run = record({}, 2, problems={0: "no result: killed", 1: "no result: killed"})
    assert run["verdict"] == "fail" and run["connections"]["failed"] == 200
    assert {row["errno"] for row in run["errors"]} == {"CLIENT_DIED"}


def test_timelines_of_different_steps_lie_over_each_other() -> None:
    rows = merge.merge_timelines([result(100)["timeline"], result(100, step=0.2)["timeline"]])
    assert max(row["open"] for row in rows) == 200 and rows[-1]["established"] == 200
    assert rows[-1]["open"] == 100 and rows[-1]["t"] == pytest.approx(4.0)  # the first client ended at 2 s
    assert all(later["established"] >= earlier["established"] for earlier, later in pairwise(rows))
    assert sum(row["connects_per_second"] * 0.2 for row in rows) == pytest.approx(200, rel=0.1)
    assert merge.merge_timelines([]) == []


def test_a_peak_between_two_rows_of_the_timeline_counts() -> None:
    short = result(100)
    at = [(0.1, 40), (0.2, 90), (0.25, 100), (0.3, 0)]  # held for no time: it closed before the next row
    short["timeline"] = [{"t": t, "established": 100, "open": o, "failed": 0, "echoes": 100} for t, o in at]
    assert record({0: short}, 1)["connections"]["peak"] == 100


def test_latencies_over_time_are_those_of_the_worst_client() -> None:
    def row(t: float, p99: float, count: int = 1) -> dict:
        return {"t": t, "connect": None, "response": {"p50": 1.0, "p99": p99, "max": 2 * p99, "count": count}}

    rows = merge.merge_latency_timelines([[row(0.5, 3.0), row(1.0, 4.0)], [row(0.4, 9.0, 2), row(7.3, 1.0)], []])
    assert [one["t"] for one in rows] == [0.5, 1.0, 7.5]
    assert rows[0]["response"] == {"p50": 1.0, "p99": 9.0, "max": 18.0, "count": 3} and rows[0]["connect"] is None
    long = [row(number / 2, number % 2) for number in range(14400)]
    assert len(merge.merge_latency_timelines([long, long])) <= merge.MOST_LATENCIES + 1
    assert merge.merge_latency_timelines([[], []]) == []


def test_the_last_fraction_of_a_step_has_no_rate_of_its_own() -> None:
    rows = [
        {"t": t, "established": 0, "open": 0, "failed": 0, "echoes": e} for t, e in ((1, 100), (2, 200), (3, 300))
    ]
    rows.append({"t": 3.01, "established": 0, "open": 0, "failed": 0, "echoes": 350})  # what came at the close
    merged = merge.merge_timelines([rows])
    assert merged[-1]["t"] == 3.01 and merged[-1]["echoes"] == 350
    assert max(row["echoes_per_second"] for row in merged) < 160


def test_a_disk_that_is_full_is_named_with_the_file_which_stays_as_it_was(tmp_path: Path) -> None:
    """It was "error: [Errno 28] No space left on device", and the half of a file."""
    for name, write in (("run.json", runs.write_json), ("report.md", report.write_text)):
        file = tmp_path / name
        file.write_text("old")
        (tmp_path / f".{name}.new").symlink_to("/dev/full")
        with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
            write(file, {"new": 1} if name == "run.json" else "new")  # type: ignore[operator]
        assert [path.name for path in tmp_path.glob(f"*{name}*")] == [name] and file.read_text() == "old"


def test_a_refused_plan_is_kept_and_is_not_the_latest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "REPORTS", tmp_path / "reports")
    passed = runs.create("20260131-120000-a1b2")
    target = stress.Target(HOSTS[0], "10.77.0.11", 1883)
    run = stress.Run(
        stress.Request(2, 70000, (target,), (), "inv stress"), spread(2, HOSTS[1:]), "20260131-120001-a1b2"
    )

    def refuse(fleet: object) -> None:
        run.observed["before"] = {
            "a": {"status": "ok", "observation": {"nofile": {"soft": 1, "hard": 2}}, "raw": {}}
        }
        raise Refused("the plan was refused, nothing was started: too few ports")

    monkeypatch.setattr(run, "_start", refuse)
    monkeypatch.setattr(run, "_stop", lambda fleet: None)
    with pytest.raises(Refused, match="too few ports"):
        run.execute(None)
    assert runs.find("latest") == passed
    folder = runs.find(run.run_id)
    plan = runs.read_json(folder / "plan.json")
    assert plan["refused"] == "the plan was refused, nothing was started: too few ports"
    assert [(row["name"], row["roles"]) for row in plan["hosts"]] == [
        ("a", ["server"]),
        ("b", ["client"]),
        ("c", ["client"]),
    ]
    assert report.load_observations(folder)["before"]["a"]["status"] == "ok"
    report.write_reports(folder)
    with pytest.raises(BadInput, match="was refused, nothing was started"):
        stress_tasks.attach(Options({}), stress_tasks.How(attach=run.run_id))


@pytest.mark.parametrize(
    ("how", "typed", "words"),
    [
        (
            {"repeat": "latest"},
            {"client_options": {"hold": "5"}},
            "--repeat takes the run as it was planned, so --hold",
        ),
        ({"repeat": "latest"}, {"per_client": "5"}, "so --per-client does not go with it"),
        ({"attach": "latest"}, {"client_options": {"tls": True}}, "--attach .* so --tls does not go with it"),
        ({"attach": "latest", "fail_if": ["failed > 3"]}, {}, "so --fail-if does not go with it"),
        ({"attach": "latest", "detach": True}, {}, "--attach and --detach do not go together"),
        ({"plan": True, "detach": True}, {}, "--plan and --detach do not go together"),
    ],
)
def test_what_would_be_passed_over_in_silence_is_bad_use(how: dict, typed: dict, words: str) -> None:
    given = {"clients": "", "per_client": "", "target": "", "allow_target": False, "client_options": {}} | typed
    with pytest.raises(BadInput, match=words):
        stress_tasks.stress(Options({}), how=stress_tasks.How(**how), **given)
