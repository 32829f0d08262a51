"""Free-form arguments, and what the docstrings of the playbook modules promise."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tcpfleet.playbook import load
from tcpfleet.playbook.arguments import free_form, split_words

MODULES = ("arguments", "results", "catalogue", "template", "names")


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"tcpfleet.playbook.{name}")).failed == 0


@pytest.mark.parametrize(
    ("text", "raw", "found"),
    [
        ("touch /x creates=/x", "cmd", {"cmd": "touch /x", "creates": "/x"}),
        ("A=1 env chdir=/tmp", "cmd", {"cmd": "A=1 env", "chdir": "/tmp"}),
        ("echo 'a  b' {{ x | default('c d') }}", "cmd", {"cmd": "echo 'a  b' {{ x | default('c d') }}"}),
        ("path='/a b' mode=0644", None, {"path": "/a b", "mode": "0644"}),
        ("src={{ a + ' b' }} dest=/x", None, {"src": "{{ a + ' b' }}", "dest": "/x"}),
        ("stray", None, {"stray": None}),
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
