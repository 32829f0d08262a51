"""What a report draws over time: shared machines once, many hosts few lines, bounded points, junk left out."""

import json

import pytest

from tcpfleet import report, report_run, report_time
from tcpfleet.report_data import View
from tests import report_samples as samples


def drawn(folder):
    return report.build(report.load(folder))["over_time"]


def lines(chart):
    return {line["name"]: dict(line["points"]) for line in chart["lines"]}


def test_machines_are_drawn_once_and_stacks_are_summed(tmp_path):
    found = drawn(samples.fill(tmp_path, samples.run()))
    assert list(lines(found["cpu"])) == ["s1, c1, c2"]  # all are one machine
    assert lines(found["states_server"])["ESTAB"][40.0] == 200000
    assert lines(found["states_client"])["ESTAB"][40.0] == 200000  # of both clients together
    assert "LISTEN" not in lines(found["states_client"])
    assert lines(found["server_connections"]) == {"s1": {t: int(200000 * min(1, t / 20)) if t < 57 else 20000
                                                         for t in map(float, range(61))}}  # fmt: skip
    assert found["memory"]["unit"] == "MiB"
    assert max(lines(found["cpu"])["s1, c1, c2"].values()) <= 100


def test_counters_are_per_second_and_of_each_kernel_once(tmp_path):
    (line,) = drawn(samples.fill(tmp_path, samples.run()))["counters"]["lines"]
    assert line["name"] == "TCPSynRetrans"
    assert sum(value for _, value in line["points"]) == 3 * 3 * 9  # three stacks, 3 in every seventh second


def test_many_hosts_are_few_lines(tmp_path):
    hosts = ["s1", *(f"c{number}" for number in range(49))]
    folder = samples.fill(tmp_path, samples.run(seconds=7200), hosts=hosts, one_machine=False)
    found = drawn(folder)
    words = ["other hosts: highest", "other hosts: median", "other hosts: lowest"]
    assert list(lines(found["cpu"])) == ["s1", *words]
    highest, median, lowest = (lines(found["memory"])[name] for name in words)
    assert all(highest[t] >= median[t] >= lowest[t] for t in median)
    for chart in found.values():
        assert len(chart["lines"]) <= 6
        assert all(len(line["points"]) <= report_time.POINTS + 2 for line in chart["lines"])


def test_a_host_that_died_does_not_go_on(tmp_path):
    folder = samples.fill(tmp_path, samples.run(), dead=("c2",), one_machine=False)
    found = drawn(folder)
    assert max(lines(found["cpu"])["c2"]) == 30
    assert lines(found["states_client"])["ESTAB"][50.0] == 100000


def test_a_spike_of_a_long_run_is_seen():
    rows = [{"t": float(t), "cpu_busy": 1.0 if t == 4321 else 0.1} for t in range(7200)]
    view = View({"hosts": ["a"]}, {})
    chart = report_time.charts(view, {"a": {"rows": rows}})["cpu"]
    assert len(chart["lines"][0]["points"]) <= report_time.POINTS + 1
    assert max(value for _, value in chart["lines"][0]["points"]) == 100


@pytest.mark.parametrize("junk", [None, 7, "text", [], [1, "x"], {}, {"t": 1, "states": [], "counters": 7}, True])
def test_junk_is_left_out(tmp_path, junk):
    samples.fill(tmp_path, samples.run())
    path = tmp_path / "samples/c1.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), rows=[junk], unavailable=junk)))
    (tmp_path / "samples/c2.json").write_text(json.dumps(junk))
    report.write_reports(tmp_path)


def test_what_the_samples_lack_is_said(tmp_path):
    samples.fill(tmp_path, samples.run())
    path = tmp_path / "samples/c1.json"
    path.write_text(path.read_text()[:50])
    rows = report.build(report.load(tmp_path))["unavailable"]
    said = {(row["host"], row["section"]): row["reason"] for row in rows}
    assert said["s1", "over time: slabs"] == "EACCES: Permission denied"
    assert said["c1", "over time: samples"].startswith("c1.json is damaged")


def test_spectra_count_every_measurement():
    run = samples.run()
    found = report_run.spectra(run)
    assert list(found) == ["connect", "service", "response"]
    for kind, bins in found.items():
        buckets = run["histograms"][kind]["buckets"]
        assert sum(count for _, count in bins) == sum(count for _, count in buckets)
        assert [value for value, _ in bins] == sorted(value for value, _ in bins) and len(bins) < 110
    run["histograms"]["service"] = run["histograms"]["response"] = {"scheme": "log-linear/7", "buckets": []}
    idle = report_run.spectra(run)
    assert list(idle) == ["connect", "service"]  # of the first echoes
    for broken in (
        None,
        [],
        {"scheme": "other", "buckets": [[1, 2]]},
        {"scheme": "log-linear/7", "buckets": [[1]]},
    ):
        run["histograms"] = dict.fromkeys(("connect", "first", "service", "response"), broken)
        assert report_run.spectra(run) == {}


def test_errors_are_grouped_by_what_happened():
    rows = [
        {"phase": "connect", "errno": "ETIMEDOUT", "count": n, "host": f"c{n}", "first": f"0{n}", "last": f"1{n}"}
        for n in range(1, 8)
    ]
    (row,) = report_run.errors({"errors": [*rows, 3]})
    assert (row["count"], row["first"], row["last"], row["hosts"][0]) == (
        28,
        "01",
        "17",
        {"host": "c7", "count": 7},
    )


def test_balance_of_workers(tmp_path):
    samples.fill(tmp_path, samples.run())
    found = report.build(report.load(tmp_path))["balance"]
    assert [(row["host"], row["side"], len(row["workers"]), row["ratio"]) for row in found] == [
        ("s1", "server", 11, 1.0),
        ("c1", "client", 3, 1.4),
        ("c2", "client", 3, 1.4),
    ]


def test_a_tuning_that_was_rolled_back_is_forgotten(tmp_path):
    report.save_tuning(tmp_path, "a/b", samples.tuned("a/b") | {"run": "r1"})
    for undone, left in (({"r0"}, ["a/b"]), (set(), ["a/b"]), ({"r1", "r0"}, []), ({"r1"}, [])):
        report.forget_tuning(tmp_path, "a/b", undone)
        assert list(report.load_tuning(tmp_path)) == left


def test_tuning_table(tmp_path):
    samples.fill(tmp_path, samples.run())
    asked = {"net.core.somaxconn": {"value": "1024", "file": "/etc/sysctl.d/50-x.conf", "line": 3}}
    found = samples.observation("c1", "client", sysctls_asked=asked)
    report.save_observation(tmp_path, "peak", "c1", {"observation": found})
    found["sysctls"] = {"net.core.somaxconn": "4096"}
    report.save_observation(tmp_path, "peak", "s1", {"observation": dict(found, sysctls_asked={})})
    rows = report.build(report.load(tmp_path))["tuning"]
    table = {
        (row["hosts"][0], row["key"]): (row["before"], row["asked"], row["after"], row["status"]) for row in rows
    }
    assert table == {
        ("s1", "net.core.somaxconn"): ("4096", "65535", "4096", "changed since"),
        ("s1", "net.ipv4.ip_local_port_range"): ("1025 65000", "1025 65000", None, "already"),
        ("s1", "net.core.rmem_max"): (None, "16777216", None, "read-only"),
        ("s1", "net.ipv4.tcp_fin_timeout"): ("60", "15", None, "refused"),
        ("c1", "net.core.somaxconn"): (None, "1024", "65535", "not in force"),
    }
    assert [row["status"] for row in rows][-1] == "already"  # what is as asked comes last
