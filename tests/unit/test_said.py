"""Sentences and their translation: every text of a report has a Chinese one, and the table holds nothing else."""

import html
import json
import os
import re
from pathlib import Path

import pytest

from payload import stress_threshold
from tcpfleet import compare, report, report_render, report_zh, reports, runs
from tcpfleet.charts import number
from tcpfleet.cli import Options
from tcpfleet.errors import BadInput
from tcpfleet.said import said, translate
from tests import report_samples as samples
from tests.unit import sentences
from tests.unit.test_report import Page

TABLE = {"{n} of {of} failed": "{of} 个中失败 {n} 个", "because {why}": "因为{why}", "no route": "没有路由"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (said("{n} of {of} failed", n=3, of=5), "5 个中失败 3 个"),
        ("3 of 5 failed", "5 个中失败 3 个"),  # its template is forgotten
        (said("because {why}", why=said("no route")), "因为没有路由"),
        ("because no route", "因为没有路由"),
        ("3 of 5 failed; because of rain; no route", "5 个中失败 3 个；因为of rain；没有路由"),
        ("what nobody knows", "what nobody knows"),
        ("a; b", "a; b"),
        (said("braces {} stay"), "braces {} stay"),
        (said("because {why}", why="{n} of {of} failed {0}"), "因为{n} of {of} failed {0}"),
        ("", ""),
    ],
)
def test_translate(text, expected):
    assert translate(text, TABLE) == expected
    assert translate(text, {}) == str(text)


def test_a_sentence_is_a_string_wherever_one_is_wanted():
    text = said("{n} of {of} failed", n=3, of=5)
    assert text == "3 of 5 failed" and json.dumps([text]) == '["3 of 5 failed"]'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "the plan was refused, nothing was started: c1: 70,000 connections need as many source ports, but "
            "10.77.0.21 allows 28,232: net.ipv4.ip_local_port_range is 32768-60999, less 0 reserved and 0 busy; "
            "give at least 3 source addresses (--source IP,IP,...), or 2 after `inv tune` has widened the range.",
            "计划被拒绝，没有启动任何程序：c1：70,000 条连接需要同样多的源端口，而 10.77.0.21 只允许 28,232 个：",
        ),
        (
            "s1: nothing listens on port 7: start the server with `inv deploy-server`",
            "s1：端口 7 上没有程序在监听：用",
        ),
        (
            "c1, c2: 9 connections need 8 bytes of memory, but 7 are free, enough for 7 connections; use fewer",
            "c1, c2：9 条连接需要 8 字节内存，",
        ),
    ],
)
def test_what_comes_finished(text, expected):
    assert translate(text, report_zh.TABLE).startswith(expected)


def test_hostile_texts_are_looked_up_in_no_time():
    for text in ("1 of " * 20000, "on " * 20000, "; " * 300, "ListenOverflows grew by " * 5000):
        translate(text, report_zh.TABLE)


def test_every_text_has_a_chinese_one():
    assert sentences.of_templates() and sentences.of_said()  # or nothing would be compared
    ours = sentences.of_templates() | sentences.of_said() | sentences.of_words()
    assert ours - set(report_zh.OURS) - {""} == set()


def test_no_chinese_text_is_left_over():
    ours = sentences.of_templates() | sentences.of_said() | sentences.of_words()
    assert set(report_zh.OURS) - ours == set()
    texts = "\n".join([*sentences.constants("tcpfleet", "payload"), *map(os.strerror, range(1, 40))])
    for key in report_zh.OUTSIDE:
        # Long sentences are put together in the sources: their longest fixed piece must be somewhere.
        pieces = [
            piece for part in sentences.bare(key).split("{}") for piece in re.split(": |, or |, | and ", part)
        ]
        assert max(pieces, key=len).strip(" .") in texts, key


def test_walls_have_chinese_words():
    outside = {sentences.bare(key) for key in report_zh.OUTSIDE}
    for wall in sentences.of_walls():
        parts = [wall, *wall.split("; ")]
        assert wall in outside or set(parts[1:]) <= outside, wall


def test_values_of_a_translation_are_those_of_its_key():
    for key, value in report_zh.TABLE.items():
        names = re.findall(r"\{(\w+)", key)
        assert sorted(re.findall(r"\{(\w+)", value)) == sorted(names), key


WORDS = (
    "失败：",
    "瓶颈：服务端的全连接队列",
    "s1 上 ListenOverflows 增加 5,000；其全连接队列长度为 128",
    "s1, c1（同一台机器，只计一次） 的 CPU",
)
FIX = "raise net.core.somaxconn with `inv tune`, then start the server anew, or connect more slowly (--rate)"
CPU = {
    "name": "CPU of s1, c1 (one machine, counted once)",
    "evidence": "its processors were 95% busy or more in 3.0 of 4.0 s of the hold",
}
# What may stay as it is in Chinese: names, keys, commands, raw texts. Three words of English in a row may not.
ENGLISH = re.compile(r"(?:\b[a-z]{2,}[ ,]+){2,}[a-z]{2,}\b")


def prose(page):
    page = re.sub(r"<(pre|code|style|svg|header|title)\b.*?</\1>", "", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", "\n", page))


@pytest.fixture
def failed(tmp_path):
    """A run with all that a report can hold."""
    run = samples.run("fail", failed=5000)
    run["wall"] = {
        "name": "the server's accept queue",
        "evidence": "ListenOverflows grew by 5,000 on s1; its accept queue holds 128 (net.core.somaxconn 128)",
        "fix": FIX,
        "also": [
            {
                "name": "CPU of s1, c1 (one machine, counted once)",
                "evidence": "its processors were 95% busy or more in 3.0 of 4.0 s of the hold",
            }
        ],
    }
    return samples.fill(tmp_path / "run", run, drops=5000, dead=("c2",))


def test_the_page_is_wholly_chinese(failed):
    page, text, data = report.write_reports(failed, "zh")
    assert ENGLISH.findall(prose(page.read_text())) == []
    code = re.compile(r"^(`{3,})text\n.*?\n\1$", re.S | re.M)
    assert ENGLISH.findall(code.sub("", text.read_text())) == []
    for words in WORDS:
        assert words in page.read_text(), words
    assert json.loads(data.read_text())["verdict"]["line"].startswith("FAIL: ")  # for programs it stays English


def test_numbers_are_the_same_in_both_languages(failed):
    pages = [Page(report.write_reports(failed, language)[0].read_text()) for language in ("en", "zh")]
    assert pages[0].numbers == pages[1].numbers and pages[0].cells == pages[1].cells
    text = (failed / "report.md").read_text()
    for group in ("connections", "rate", "echoes"):
        for value in json.loads((failed / "run.json").read_text())[group].values():
            assert f"| {number(value)} |" in text


def test_a_comparison_in_chinese(tmp_path, monkeypatch, failed):
    monkeypatch.setattr(runs, "REPORTS", tmp_path / "reports")
    other = samples.fill(tmp_path / "other", samples.run())
    answer = reports.compare_reports(Options({}), str(failed), str(other), "zh")
    page, text, data = (Path(file).read_text() for file in answer.data["files"])
    assert ENGLISH.findall(prose(page)) == []
    assert "结论：A 为 失败；B 为 通过。" in text or "结论：A 为 fail；B 为 pass。" in text
    assert json.loads(data)["schema"] == compare.SCHEMA


def test_another_language_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BadInput, match="--lang 'de' is not one of en, zh"):
        report_render.check_language("de")


def test_units_of_thresholds():
    for name in stress_threshold.NAMES:
        run = {"thresholds": [{"text": f"{name} > 5", "value": 7, "failed": True}]}
        (row,) = report.report_run.thresholds(run)
        assert (row["unit"] == "ms") == name.endswith("_ms")
