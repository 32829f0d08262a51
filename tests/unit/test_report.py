"""The report from synthetic runs: verdicts, gaps, escaping, equal numbers, shared machines."""

import gzip
import html.parser
import json
import re
from pathlib import Path

import pytest

from tcpfleet import charts, report, report_data, report_run
from tcpfleet.errors import BadInput, LocatedError
from tests import report_samples as samples


def write(folder):
    paths = report.write_reports(folder)
    assert [path.name for path in paths] == ["report.html", "report.md", "report.json"]
    page, text, data = (path.read_text(encoding="utf-8") for path in paths)
    return page, text, json.loads(data)


class Page(html.parser.HTMLParser):
    """What a page holds: its tags, ids with the number under them, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.numbers, self.cells, self.text, self.attributes = [], {}, {}, [], []
        self._id = self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.attributes.extend(found)
        if "data-state" in found:
            self._cell = (found["data-side"], found["data-state"], found["data-phase"])
        elif "id" in found:
            self._id = found["id"]
        if tag == "data":
            if self._cell:
                self.cells[self._cell] = json.loads(found["value"])
            elif self._id:
                self.numbers.setdefault(self._id, json.loads(found["value"]))

    def handle_endtag(self, tag):
        if tag == "td":
            self._cell = None
        if tag == "b":
            self._id = None

    def handle_data(self, data):
        self.text.append(data)


def test_pass(tmp_path):
    page, text, data = write(samples.fill(tmp_path, samples.run()))
    line = "PASS: 200,000 of 200,000 connections held, every first echo verified; 0 failed. No wall was met."
    assert data["verdict"]["line"] == line
    assert line in page and f"**{line}**" in text
    assert page.index(line) < page.index("Kernel counters")
    assert data["gaps"] == []


def test_a_chart_of_one_line_names_it(tmp_path):
    page, _, data = write(samples.fill(tmp_path, samples.run()))
    (counter,) = data["over_time"]["counters"]["lines"]
    assert counter["name"] == "TCPSynRetrans" and "</span>TCPSynRetrans</span>" in page


def test_descriptors_of_a_server_without_a_word_of_its_own_are_not_called_connections(tmp_path):
    _, text, data = write(samples.fill(tmp_path, samples.run()))
    (server,) = (row for row in data["balance"] if row["side"] == "server")
    assert server["by"] == "descriptors" and server["workers"][0]["connections"] is None
    assert "| s1 | server | 11 | descriptors | 16,666 |" in text


def test_an_empty_raw_text_is_not_a_damaged_file(tmp_path):
    samples.fill(tmp_path, samples.run())
    raw = {"kernel-log.txt": "", "ss-s.txt": "text"}
    report.save_observation(tmp_path, "peak", "s1", {"observation": samples.observation(), "raw": raw})
    (tmp_path / "raw/peak/s1/ss-s.txt.gz").write_bytes(b"")
    _, _, data = write(tmp_path)
    (row,) = (row for row in data["unavailable"] if row["section"].startswith("raw file"))
    assert row["section"] == "raw file ss-s.txt.gz" and row["reason"] == "damaged: nothing is in it"


def test_fail_names_wall_and_fix_first(tmp_path):
    page, text, data = write(samples.fill(tmp_path, samples.run("fail", failed=1234), drops=1234))
    assert data["verdict"]["line"].endswith("The wall: accept queue of the server.")
    for words in ("raise net.core.somaxconn", "ListenOverflows rose by 1,234"):
        assert words in page and words in text.replace("\\", "")
    assert "ETIMEDOUT" in page and "ETIMEDOUT" in text
    (first, *_) = data["counters"]
    assert (first["counter"], first["delta"], first["trouble"]) == ("TcpExt.ListenOverflows", 1234, True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"interrupted": True}, "0 failed. The run was stopped before its end."),
        (
            {"echoes": {"sent": 9, "verified": 8, "mismatched": 0, "lost": 1}},
            "Echoes were lost or came back altered",
        ),
        (
            {"thresholds": [{"text": "p99_response_ms > 5", "value": 11.0, "failed": True}]},
            "A threshold was crossed",
        ),
        ({"connections": {"requested": 9, "verified": 8, "failed": 1}}, "The wall was not identified"),
        ({"echoes": None, "connections": {"failed": 0}, "thresholds": 7}, "The wall was not identified"),
    ],
)
def test_a_failure_without_a_wall_says_why(tmp_path, more, words):
    page, text, data = write(samples.fill(tmp_path, samples.run("fail", **more)))
    assert words in data["verdict"]["line"] and words in page and words in text


def test_without_a_run_there_is_no_verdict(tmp_path):
    page, text, data = write(samples.fill(tmp_path, None))
    assert data["verdict"]["status"] == "none"
    assert data["verdict"]["line"] == "No verdict: no run was made; this is the present state of the hosts (3)."
    assert "Latency" not in page and "Latency" not in text
    assert list(data["states"]["rows"][0]["server"]) == ["present"]


def test_an_empty_folder_is_a_report_too(tmp_path):
    page, _, data = write(tmp_path)
    assert data["hosts"] == [] and "No host was observed" in page


def test_a_dead_host_is_a_gap(tmp_path):
    page, text, data = write(samples.fill(tmp_path, samples.run(), dead=("c2",)))
    assert data["gaps"] == [
        f"c2, {phase}: unreachable: connection lost: no sign of life for 30 s"
        for phase in ("peak", "after", "present")
    ]
    assert data["gaps"][0] in page and data["gaps"][0] in text
    by_state = {row["state"]: row for row in data["states"]["rows"]}
    assert by_state["ESTAB"]["client"] == {"before": 0, "peak": 100000, "after": 0, "present": 0}


def test_a_host_of_the_run_that_was_never_observed_is_a_gap(tmp_path):
    samples.fill(tmp_path, samples.run())
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(
        json.dumps(dict(run, hosts=[*run["hosts"], {"name": "c9", "role": "clients"}]))
    )
    _, _, data = write(tmp_path)
    assert "c9, peak: missing: it was not observed" in data["gaps"]
    assert data["hosts"][-1]["roles"] == ["clients"]


@pytest.mark.parametrize("tool", ["lsof", "ss"])
def test_a_missing_tool_is_said(tmp_path, tool):
    samples.fill(tmp_path, samples.run())
    reason = f"ENOENT: No such file or directory: {tool}"
    found = samples.observation(**{tool: {"unavailable": reason}})
    report.save_observation(tmp_path, "peak", "s1", {"observation": found})
    page, text, data = write(tmp_path)
    assert {"host": "s1", "section": tool, "reason": reason, "phases": ["peak"]} in data["unavailable"]
    assert reason in page and reason in text


def test_counting_by_another_source_is_said(tmp_path):
    samples.fill(tmp_path, samples.run())
    states = samples.observation()["states"]
    refused = [{"source": "netlink", "reason": "EPERM: no"}, {"source": "ss", "reason": "ENOENT: no ss"}]
    found = samples.observation(states=dict(states, source="proc", not_used=refused))
    report.save_observation(tmp_path, "peak", "s1", {"observation": found})
    page, text, _ = write(tmp_path)
    assert "counted by proc" in text
    for words in ("not netlink: EPERM: no", "not ss: ENOENT: no ss"):
        assert words in page and words in text


def test_numbers_are_equal_everywhere(tmp_path):
    run = samples.run("fail", failed=1234)
    page, text, data = write(samples.fill(tmp_path, run))
    parsed = Page(page)
    for group in ("connections", "rate", "echoes"):
        for name, value in run[group].items():
            assert parsed.numbers[f"{group}-{name}"] == value == data["run"][group][name]
            assert f"| {charts.number(value)} |" in text
    for kind, values in run["latency_ms"].items():
        (row,) = [row for row in data["latency"] if row["kind"] == kind]
        assert {name: row[name] for name in values} == values
        line = next(line for line in text.splitlines() if line.startswith(f"| {kind} |"))
        assert line.count("|") == 8
        for value in values.values():
            assert f" {charts.number(value)} |" in line
            assert f'<data value="{value}">{charts.number(value)}</data>' in page
    assert len(parsed.cells) == 11 * 2 * 4
    for row in data["states"]["rows"]:
        for side in ("server", "client"):
            for phase, count in row[side].items():
                assert parsed.cells[side, row["state"], phase] == count


def test_the_other_panels_have_equal_numbers_too(tmp_path):
    run = samples.run("fail", failed=1234)
    page, text, data = write(samples.fill(tmp_path, run, drops=1234))
    figures = [row["value"] for row in data["thresholds"]] + [row["count"] for row in data["errors"]]
    figures += [row[key] for row in data["memory"] for key in ("connections", "each")]
    figures += [row[key] for row in data["balance"] for key in ("mean", "busiest", "ratio")]
    figures += [row["delta"] for row in data["counter_totals"] if row["meaning"]]
    figures += [one["delta"] for row in data["counter_totals"] if row["meaning"] for one in row["hosts"][:4]]
    figures += [row[key] for row in data["listeners"] for key in ("accept_queue", "backlog")]
    figures += [fact["value"] for fact in data["facts"] if isinstance(fact["value"], (int, float))]
    assert len(figures) > 35 and run["thresholds"][1]["value"] in figures
    for value in (one for one in figures if one is not None):
        assert f'<data value="{value}">{charts.number(value)}</data>' in page, value
        assert f" {charts.number(value)} " in text, value


def test_markdown_keeps_the_space_between_names_and_ends_with_a_line(tmp_path):
    _, text, _ = write(samples.fill(tmp_path, samples.run()))
    for words in (
        "c1 1,000, c2 1,000",
        "- s1, conntrack (before, at the peak, after, now): ENOENT",
        "read-only (EROFS)",
    ):
        assert words in text
    assert text.endswith("Raw files: 12\n")


def test_every_row_of_a_markdown_table_has_its_columns(tmp_path):
    for folder, record in (
        ("a", samples.run("fail", failed=5)),
        ("b", None),
        ("c", samples.poison(samples.run())),
    ):
        if record and folder == "c":
            record = dict(record, schema="tcpfleet.run/1")
        _, text, _ = write(samples.fill(tmp_path / folder, record, dead=("c2",), drops=5))
        width = None
        for line in text.splitlines():
            columns = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
            assert columns is None or width is None or columns == width, line
            width = columns


def test_markup_shows_literally(tmp_path):
    run = dict(samples.poison(samples.run("fail", failed=3)), schema="tcpfleet.run/1", verdict="fail")
    host = f"../../{samples.MARKUP}"
    (tmp_path / "run.json").write_text(json.dumps(dict(run, hosts=[host])))
    for phase in report_data.PHASES:
        found = samples.poison(samples.observation(drops=0 if phase == "before" else 3))
        found["kernel_log"]["lines"] = [
            {"seconds": samples.MARKUP, "message": samples.MARKUP, "means": samples.MARKUP}
        ]
        found["states"]["not_used"] = [{"source": samples.MARKUP, "reason": samples.MARKUP}]
        found["counters"]["netstat"][samples.MARKUP] = {samples.MARKUP: 0 if phase == "before" else 7}
        raw = {f"../../../{samples.MARKUP}": samples.MARKUP, "": "x"}
        report.save_observation(tmp_path, phase, host, {"observation": found, "raw": raw})
    report.save_observation(tmp_path, "after", samples.MARKUP, {"status": "unreachable", "error": samples.MARKUP})
    (tmp_path / "samples").mkdir()
    series = samples.poison(samples.series(host, "server", 5, 100, unavailable={samples.MARKUP: samples.MARKUP}))
    (tmp_path / "samples/s.json").write_text(json.dumps(dict(series, host=host)))
    (tmp_path / "samples/t.json").write_text(json.dumps(dict(series, host=samples.MARKUP)))
    report.save_tuning(tmp_path, host, samples.poison(samples.tuned(host)))
    page, text, data = write(tmp_path)
    assert data["over_time"]["cpu"]["lines"][0]["name"] == host and data["tuning"]
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert not [name for name in parsed.attributes if name.startswith("on")]
    assert parsed.tags.count("b") == 11  # the tiles' own
    shown = "<b onclick=alert(1)>\"x\" & 'y' $(id) `id` |</b><script>alert(2)</script>\\x1b[31m"
    assert shown in "".join(parsed.text)
    outside_code = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert "<script" not in outside_code and "<b " not in outside_code
    assert "\x1b" not in page + text
    inside = {path.resolve() for path in tmp_path.rglob("*")}
    assert all(path.is_relative_to(tmp_path.resolve()) for path in inside)
    assert not list(tmp_path.parent.glob("*.json")) and not list(Path(tmp_path.anchor).glob("*onclick*"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s1", "s1"),
        ("web-01.example.org", "web-01.example.org"),
        ("..", "unnamed-"),
        ("", "unnamed-"),
        ("/etc/passwd", "_etc_passwd-"),
        ("a\0b", "a_b-"),
        ("主机", "__-"),
        ("x" * 300, "x" * 80 + "-"),
    ],
)
def test_safe_name(name, expected):
    found = report.safe_name(name)
    assert found == expected or (
        expected.endswith("-") and re.fullmatch(re.escape(expected) + "[0-9a-f]{8}", found)
    )
    assert "/" not in found and found not in (".", "..")


def test_safe_names_differ_when_names_do():
    assert len({report.safe_name(name) for name in ("a/b", "a_b", "a b", "a:b", ".a_b")}) == 5


def test_a_truncated_run_is_a_located_error(tmp_path):
    samples.fill(tmp_path, samples.run())
    path = tmp_path / "run.json"
    path.write_text(path.read_text()[:300])
    with pytest.raises(LocatedError, match=r"run\.json:1:\d+: not complete JSON .*repeat it"):
        report.write_reports(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ["[]", '"x"', '{"schema": "other/1"}', "{}"])
def test_another_kind_of_json_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(BadInput, match=r"schema must be 'tcpfleet\.run/1'"):
        report.write_reports(tmp_path)


def test_run_with_only_its_schema_is_shown(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": "tcpfleet.run/1"}')
    page, _, data = write(tmp_path)
    assert "No verdict in run.json" in data["verdict"]["line"]
    assert "no timeline" in page


def test_a_damaged_observation_is_that_hosts_gap(tmp_path):
    samples.fill(tmp_path, samples.run())
    path = tmp_path / "observations" / "peak" / "c1.json"
    path.write_text(path.read_text()[:100])
    _, _, data = write(tmp_path)
    assert [gap for gap in data["gaps"] if gap.startswith("c1, peak: failed: c1.json is damaged")]


@pytest.mark.parametrize("junk", [None, 7, "text", [], [1, "x"], {}, {"x": []}, True])
def test_junk_in_any_section_is_no_traceback(tmp_path, junk):
    sound = samples.observation()
    samples.fill(
        tmp_path, dict(samples.run(), **dict.fromkeys(("plan", "timeline", "errors", "latency_ms", "wall"), junk))
    )
    for index, section in enumerate(sound):
        for phase in report_data.PHASES:
            report.save_observation(tmp_path, phase, f"h{index}", {"observation": dict(sound, **{section: junk})})
    write(tmp_path)


def test_hosts_of_one_machine_are_counted_once(tmp_path):
    samples.fill(tmp_path, samples.run(), drops=9)
    for phase in ("before", "after"):
        # a second name for s1: same kernel, same network namespace
        found = samples.observation("alias", drops=9 if phase == "after" else 0, netns="net:[s1]")
        report.save_observation(tmp_path, phase, "alias", {"observation": found})
    _, _, data = write(tmp_path)
    assert len([row for row in data["counters"] if row.get("counter") == "TcpExt.ListenOverflows"]) == 1
    assert any("s1, alias share one network stack" in sentence for sentence in data["shared"])
    assert any(sentence.startswith("s1, c1, c2, alias are one machine") for sentence in data["shared"])
    assert {tuple(row["hosts"]) for row in data["machines"]} == {("s1", "c1", "c2", "alias")}
    listen = next(row for row in data["states"]["rows"] if row["state"] == "LISTEN")
    assert listen["server"]["before"] == 1


@pytest.mark.parametrize(("switches", "machines"), [(7_077_773, 1), (9_000_000, 2), (None, 2)])
def test_containers_with_boot_ids_of_their_own(tmp_path, switches, machines):
    for host, count in (("s1", 7_075_721), ("c1", switches)):
        cpu = {"cpus": 2, "boot_epoch": 1795412497, "context_switches": count}
        found = samples.observation(host, boot=f"own-{host}", cpu=cpu)
        report.save_observation(tmp_path, "present", host, {"observation": found})
    _, _, data = write(tmp_path)
    assert len(data["machines"]) == machines
    assert len(data["shared"]) == (machines == 1)


def test_a_host_that_booted_in_between_is_said(tmp_path):
    samples.fill(tmp_path, samples.run(), one_machine=False)
    report.save_observation(
        tmp_path, "after", "c1", {"observation": samples.observation("c1", "client", boot="new")}
    )
    _, _, data = write(tmp_path)
    assert {"hosts": ["c1"], "problem": "booted between the observations: counters began at 0 again"} in data[
        "counters"
    ]


def test_page_is_self_contained(tmp_path):
    page, _, _ = write(samples.fill(tmp_path, samples.run()))
    assert not re.findall(r"(?:src|href|@import|url\()\s*=?\s*[\"']?(?:https?:)?//", page)
    assert "<script" not in page
    links = re.findall(r'<a href="([^"]+)"', page)
    assert links and all((tmp_path / link).is_file() for link in links)


def test_the_same_run_gives_the_same_page(tmp_path):
    samples.fill(tmp_path, samples.run())
    assert write(tmp_path) == write(tmp_path)


def test_raw_files_are_compressed_and_what_is_not_whole_is_said(tmp_path):
    found = samples.observation(cut={"lsof.txt": "line limit of 1000"})
    raw = {"lsof.txt": "x\n" * 1000, "ss-s.txt": samples.SS, "meminfo.txt": "MemTotal: 1 kB\n" * 100}
    report.save_observation(tmp_path, "peak", "s1", {"observation": found, "raw": raw})
    folder = tmp_path / "raw/peak/s1"
    assert {path.name: gzip.decompress(path.read_bytes()).decode() for path in folder.iterdir()} == {
        f"{name}.gz": text for name, text in raw.items()
    }
    (folder / "ss-s.txt.gz").write_bytes((folder / "ss-s.txt.gz").read_bytes()[:40])
    (folder / "meminfo.txt.gz").write_bytes(b"")
    (folder / "old.txt").write_text("of a run before files were compressed")
    page, text, data = write(tmp_path)
    told = {row["section"]: row["reason"] for row in data["unavailable"] if row["section"].startswith("raw file")}
    assert told["raw file lsof.txt"] == "cut: line limit of 1000"
    assert told["raw file ss-s.txt.gz"].startswith("damaged: Compressed file ended")
    assert told["raw file meminfo.txt.gz"] == "damaged: nothing is in it" and len(told) == 3
    assert "ss-s.txt.gz" in page and "damaged: Compressed" in page and "damaged: Compressed" in text


def test_raw_files_of_an_earlier_look_do_not_stay(tmp_path):
    for name in ("lsof.txt", "ss-s.txt"):
        answer = {"observation": samples.observation(), "raw": {name: "x"}}
        report.save_observation(tmp_path, "present", "s1", answer)
    assert [path.name for path in (tmp_path / "raw/present/s1").iterdir()] == ["ss-s.txt.gz"]


def test_operation_failure_is_saved_as_failed(tmp_path):
    path = report.save_observation(
        tmp_path, "peak", "s1", {"failed": True, "msg": "observe: port must be", "changed": False}
    )
    assert json.loads(path.read_text()) == {"host": "s1", "status": "failed", "error": "observe: port must be"}
    with pytest.raises(BadInput, match="one of before, peak, after, present"):
        report.save_observation(tmp_path, "../x", "s1", {})


def test_long_runs_are_thinned_and_keep_their_spikes():
    points = [(float(t), 5.0 if t != 4321 else 99.0) for t in range(7200)]
    kept = charts.thin(points)
    assert len(kept) <= charts.MAX_POINTS + 10
    assert (4321.0, 99.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]


def test_rows_of_the_timeline_without_a_time_are_left_out():
    rows = [{"t": 0.5, "open": 7, "echoes_per_second": "x"}, {"t": "x"}, 3, {"open": 8}]
    (row,) = report_run.timeline({"timeline": rows})
    assert row == {"t": 0.5, "open": 7, **dict.fromkeys(report_run.TIMELINE[1:])}


@pytest.mark.parametrize("highest", [0, 0.003, 1, 7, 9.99, 10, 198766, 1_000_000, 3.3e9])
def test_ticks_reach_the_highest_value(highest):
    found = charts.ticks(highest)
    assert found[0] == 0 and found[-1] >= highest and 2 <= len(found) <= 8
