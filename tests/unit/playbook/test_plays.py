"""What `inv play` makes of its options, as far as no host is needed."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

from tcpfleet import plays
from tcpfleet.cli import Options
from tcpfleet.errors import BadInput

PLAY = """
- name: First
  hosts: all
  gather_facts: false
  tags: whole
  tasks:
    - name: one
      ping:
      tags: [a]
    - meta: flush_handlers
    - debug: {msg: "{{ beside }}"}
      tags: [b, never]
- hosts: db
  tasks: []
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text(
        "all: {children: {web: {hosts: {w1: , w2: }}, db: {hosts: {d1: }}}}", encoding="utf-8"
    )
    (tmp_path / "books/group_vars").mkdir(parents=True)
    (tmp_path / "books/group_vars/all.yml").write_text("beside: the playbook\n", encoding="utf-8")
    (tmp_path / "books/play.yml").write_text(PLAY, encoding="utf-8")
    return tmp_path


def options_of(site: Path, **values: Any) -> Options:
    return Options({"inventory": str(site / "hosts.yml"), **values})


def test_doctests() -> None:
    assert doctest.testmod(plays).failed == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["a=1 b='x y'"], {"a": "1", "b": "x y"}),
        (["a={{ b | default('c d') }} e=f"], {"a": "{{ b | default('c d') }}", "e": "f"}),
        (['a="it\'s"'], {"a": "it's"}),
        (["a=", "b==x"], {"a": "", "b": "=x"}),
        (['{"a": [1, null], "b": {"c": true}}'], {"a": [1, None], "b": {"c": True}}),
        (["{a: [1, x], b: yes}"], {"a": [1, "x"], "b": True}),
        (["a=1", "a=2"], {"a": "2"}),
        (["@vars.yml", "b=2"], {"a": [1], "b": "2"}),
        (["@vars.json"], {"a": {"b": 1}}),
        ([], {}),
    ],
)
def test_extra_vars(
    words: list[str], found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vars.yml").write_text("a: [1]\nb: 1\n", encoding="utf-8")
    (tmp_path / "vars.json").write_text(json.dumps({"a": {"b": 1}}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert plays.read_extra_vars(words) == found


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("word", "--extra-vars 'word': 'word' is not key=value, a mapping in {}, or @file"),
        ("a=1 word", "--extra-vars 'a=1 word': 'word' is not key=value"),
        ("[1]", "--extra-vars '[1]' does not hold a mapping"),
        ("{a: ", "--extra-vars '{a: ' is neither JSON nor YAML: "),
        ("{a-b: 1}", "--extra-vars '{a-b: 1}': 'a-b' is no variable name"),
        ("@gone.yml", "--extra-vars @gone.yml: there is no file gone.yml"),
        ("@list.yml", "list.yml:1:1: a file of variables is a mapping of names to values"),
    ],
)
def test_bad_extra_vars(word: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.yml").write_text("- a\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        plays.read_extra_vars([word])
    assert str(caught.value).startswith(message)


def test_what_would_run_is_shown(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choice = plays.Choice(limit="w*", tags=("a",))
    answer = plays.play(options_of(site), str(site / "books/play.yml"), [], choice, ["hosts", "tasks", "tags"])
    assert answer.data["plays"] == [
        {
            "name": "First",
            "hosts": ["w1", "w2"],
            "tags": ["a", "whole"],
            "tasks": [{"name": "one", "tags": ["a", "whole"]}],
        },
        {"name": "db", "hosts": [], "tags": [], "tasks": []},
    ]
    lines = capsys.readouterr().out.splitlines()
    assert "  play #1 (all): First\tTAGS: [whole]" in lines
    assert "      one\tTAGS: [a, whole]" in lines
    assert "      TASK TAGS: [a, whole]" in lines
    assert lines[lines.index("    hosts (2):") + 1 :][:2] == ["      w1", "      w2"]


@pytest.mark.parametrize(
    ("hosts", "limit", "message"),
    [
        ("w1", "d1", "--hosts 'w1' and --limit 'd1' have no host in common"),
        ("", "nohost", "--limit: "),
        ("nohost", "", "--hosts: "),
        ("", "@failed", "--limit: @failed: cannot read failed: No such file or directory"),
    ],
)
def test_bad_limits(hosts: str, limit: str, message: str, site: Path) -> None:
    with pytest.raises(BadInput) as caught:
        plays.play(
            options_of(site, hosts=hosts), str(site / "books/play.yml"), [], plays.Choice(limit), ["syntax"]
        )
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [("books", " is a directory; a playbook is a file"), ("books/gone.yml", "; there are: play.yml")],
)
def test_no_playbook(name: str, message: str, site: Path) -> None:
    with pytest.raises(BadInput, match=message):
        plays.play(options_of(site), str(site / name), [], plays.Choice())


def test_mistakes_of_playbook_and_inventory_come_together(site: Path) -> None:
    (site / "books/play.yml").write_text("- hosts: all\n  task: []\n", encoding="utf-8")
    (site / "hosts.yml").write_text("all: {host: {}}\n", encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        plays.play(options_of(site), str(site / "books/play.yml"), [], plays.Choice())
    assert "unknown key 'task' in a play" in str(caught.value)
    assert "hosts.yml:1:" in str(caught.value)
