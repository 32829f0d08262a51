"""Free-form arguments, and what the docstrings of the playbook modules promise."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tcpfleet.playbook import load
from tcpfleet.playbook.arguments import free_form, split_words

MODULES = ("arguments", "results", "catalogue", "template", "names", "syntax")


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"tcpfleet.playbook.{name}")).failed == 0


@pytest.mark.parametrize(
    ("text", "raw", "found"),
    [
        ("touch /x creates=/x", "cmd", {"cmd": "touch /x", "creates": "/x"}),
        ("A=1 env chdir=/tmp", "cmd", {"cmd": "A=1 env", "chdir": "/tmp"}),
        ("echo 'a  b' {{ x | default('c d') }}", "cmd", {"cmd": "echo 'a  b' {{ x | default('c d') }}"}),
        ("  a\nb  \n", "cmd", {"cmd": "  a\nb  \n"}),
        ("  a chdir=/tmp  \n", "cmd", {"cmd": "  a", "chdir": "/tmp"}),
        ("  ", "cmd", {}),
        ("path='/a b' mode=0644", None, {"path": "/a b", "mode": "0644"}),
        ("src={{ a + ' b' }} dest=/x", None, {"src": "{{ a + ' b' }}", "dest": "/x"}),
        ("stray", None, {"stray": None}),
        ("echo a\n  echo b\n", "cmd", {"cmd": "echo a\n  echo b\n"}),
        ("mode=0644 path=/x\n", None, {"path": "/x", "mode": "0644"}),
        (" \n", None, {}),
    ],
)
def test_free_form(text: str, raw: str | None, found: dict[str, str]) -> None:
    assert free_form(text, raw) == found


def test_words_keep_their_blanks() -> None:
    text = "a  'b c'\n d\\ e {{ f }}"
    assert "".join(split_words(text)) == text


def test_inheritance_from_blocks(tmp_path: Path) -> None:
    (tmp_path / "p.yml").write_text(
        """
- hosts: all
  become: true
  tags: play
  tasks:
    - block:
        - ping:
          when: b
          vars: {y: 2}
          tags: [own]
      when: a
      vars: {x: 1, y: 1}
      become_user: deploy
      ignore_errors: true
      tags: block
    - ping:
""",
        encoding="utf-8",
    )
    inner, outer = load(tmp_path / "p.yml").plays[0].tasks
    assert (inner.when, inner.vars, inner.tags) == (("a", "b"), {"x": 1, "y": 2}, {"play", "block", "own"})
    assert (inner.become, inner.become_user, inner.ignore_errors) == (True, "deploy", True)
    assert (outer.when, outer.vars, outer.become_user) == ((), {}, None)


def test_imports_hand_on_what_they_say(tmp_path: Path) -> None:
    files = {
        "p.yml": "- hosts: all\n  vars: {which: more, v: play}\n  tasks:\n    - ping:\n"
        "    - import_tasks: sub/{{ which }}.yml\n      vars: {v: import}\n      when: a\n"
        "      tags: t\n      become: true\n"
        "  handlers:\n    - import_tasks: handlers.yml\n"
        "- import_playbook: sub/other.yml\n  vars: {v: import}\n  when: c\n  tags: o\n",
        "sub/more.yml": "- import_tasks: deep/last.yml\n  when: b\n- import_tasks: handlers.yml\n",
        "sub/deep/last.yml": "- ping:\n  vars: {w: 1}\n  tags: own\n",
        "handlers.yml": "- name: H\n  ping:\n",
        "sub/other.yml": "- hosts: all\n  vars: {v: own, x: 1}\n  tasks:\n    - ping:\n      when: d\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    first, second = load(tmp_path / "p.yml").plays
    _, task, beside_playbook = first.tasks
    assert (task.when, task.vars, task.tags, task.become) == (
        ("a", "b"),
        {"v": "import", "w": 1},
        {"t", "own"},
        True,
    )
    assert Path(task.where.file).name == "last.yml" and beside_playbook.name == "H"
    assert [one.number for one in (*first.tasks, *first.handlers, *second.tasks)] == [1, 2, 3, 4, 5]
    assert first.handlers[0].name == "H"
    assert (second.vars, second.tags, second.gather_when) == ({"v": "import", "x": 1}, {"o"}, ("c",))
    assert second.tasks[0].when == ("c", "d")
    assert (first.folder, second.folder) == (tmp_path.resolve(), tmp_path.resolve() / "sub")


def test_serial_and_strategy(tmp_path: Path) -> None:
    (tmp_path / "p.yml").write_text(
        "- {hosts: all, serial: [1, '30%', '{{ n }}'], vars: {n: 2}, strategy: linear, any_errors_fatal: true}\n",
        encoding="utf-8",
    )
    book = load(tmp_path / "p.yml")
    assert not book.problems
    play = book.plays[0]
    assert (play.serial, play.strategy, play.any_errors_fatal) == ((1, "30%", 2), "linear", True)
