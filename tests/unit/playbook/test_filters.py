"""Templates give what ansible-core 2.19 gives: filters.yml and templates.yml hold its answers.

What is only ours is tested here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tcpfleet.errors import LocatedError
from tcpfleet.playbook import syntax, template
from tcpfleet.playbook.source import Where

HERE = Path(__file__).parent
TABLE: dict[str, Any] = yaml.safe_load((HERE / "filters.yml").read_text(encoding="utf-8"))
FILES: dict[str, Any] = yaml.safe_load((HERE / "templates.yml").read_text(encoding="utf-8"))
WHERE = Where("play.yml", 1, 1)


class Names:
    """Variables that are plain values."""

    def __init__(self, values: dict[str, Any], folder: Path = HERE) -> None:
        self._values, self.folders = values, [folder]

    def lookup(self, name: str) -> Any:
        """A value. :raises KeyError: when there is none."""
        return self._values[name]


@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: case["of"])
def test_as_in_ansible(case: dict[str, Any]) -> None:
    names = Names(TABLE["variables"] | {"omit": template.OMIT})
    if case.get("fails"):
        with pytest.raises(LocatedError):
            template.render(case["of"], names, WHERE)
        return
    value = template.render(case["of"], names, WHERE)
    plain = json.loads(json.dumps(value, default=str))
    assert plain == case["is"]
    assert type(plain) is type(case["is"])


@pytest.mark.parametrize("case", FILES["cases"], ids=lambda case: case["name"])
def test_template_files_as_in_ansible(case: dict[str, Any], tmp_path: Path) -> None:
    for name, text in case["files"].items():
        (tmp_path / name).write_bytes(text.encode())
    source, shown = case["files"]["t"], str(tmp_path / "t")
    names = Names(FILES["variables"] | {"omit": template.OMIT}, tmp_path)
    wanted = syntax.of_arguments(case.get("args", {}))
    if "fails" not in case:
        assert template.render_file(source, shown, names, wanted) == case["is"]
        return
    with pytest.raises(LocatedError, match=case["fails"]) as caught:
        template.render_file(source, shown, names, wanted)
    assert (caught.value.file, caught.value.line) == (shown, case["line"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 1 | json_query('a') }}", "bad template: No filter named 'json_query'."),
        ("{{ 1 is vault_encrypted }}", "bad template: No test named 'vault_encrypted'."),
        (
            "{{ lookup('first_found', []) }}",
            "bad template: no lookup is called 'first_found'; there are: env, file, ",
        ),
        ("{{ query('url', 'x') }}", "bad template: no lookup is called 'url'; there are: env, file, "),
    ],
)
def test_what_is_not_there_is_found_before_anything_runs(source: str, message: str) -> None:
    with pytest.raises(LocatedError) as caught:
        template.check_syntax(source, WHERE)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("condition", "value"),
    [(r"'a1' is match('a\\d$')", True), ("['a'] | length > 0", True), ("x is defined and x == 1", False)],
)
def test_conditions(condition: str, value: bool) -> None:
    assert template.holds(condition, Names({}), WHERE) is value


@pytest.mark.parametrize("condition", ["'text'", "1", "['a']", "none"])
def test_a_condition_is_a_bool(condition: str) -> None:
    with pytest.raises(LocatedError, match="must be true or false"):
        template.holds(condition, Names({}), WHERE)


def test_template_files_include_import_and_extend(tmp_path: Path) -> None:
    files = {
        "page.j2": "{% extends 'base.j2' %}\n{% from 'macros.j2' import line with context %}\n{% block body %}\n"
        "{% for one in many %}\n{% include 'part.j2' %}\n{% endfor %}\n{{ line('x') }}\n{% endblock %}\n",
        "templates/base.j2": "begin\n{% block body %}{% endblock %}\nend {{ none }}\n",
        "templates/macros.j2": "{% macro line(name) %}{{ name }}={{ known }}{% endmacro %}\n",
        "part.j2": "{{ one }} of {{ many | length }}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    names = Names({"many": [1, 2], "known": "k", "none": None}, tmp_path)
    text = template.render_file(files["page.j2"], str(tmp_path / "page.j2"), names)
    assert text == "begin\n1 of 22 of 2x=k\nend \n"  # as in Ansible, what is included loses its last newline


def test_an_error_in_an_included_file_is_located_there(tmp_path: Path) -> None:
    (tmp_path / "part.j2").write_text("fine\n{{ nowhere }}\n", encoding="utf-8")
    with pytest.raises(LocatedError) as caught:
        template.render_file("a\n{% include 'part.j2' %}", str(tmp_path / "page.j2"), Names({}, tmp_path))
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "part.j2"), 2)
    with pytest.raises(LocatedError) as caught:
        template.render_file("a\n{% include 'gone.j2' %}", str(tmp_path / "page.j2"), Names({}, tmp_path))
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "page.j2"), 2)
    assert "could not find the template 'gone.j2'; looked at " in caught.value.message


def test_an_error_has_its_line(tmp_path: Path) -> None:
    source = "{% for one in [1] %}\n{{ one }}\n{% if true %}\n{{ nowhere.x }}\n{% endif %}\n{% endfor %}\n"
    with pytest.raises(LocatedError) as caught:
        template.render_file(source, str(tmp_path / "page.j2"), Names({}, tmp_path))
    assert caught.value.line == 4


def test_template_files_know_themselves(tmp_path: Path) -> None:
    path = tmp_path / "page.j2"
    path.write_text("", encoding="utf-8")
    text = template.render_file(
        "{{ template_path }} {{ template_uid }} {{ template_mtime.year }}", str(path), Names({})
    )
    assert text.startswith(f"{path} {path.owner()} 20")


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ lookup('file', 'a.txt') }}", "text"),
        ("{{ lookup('template', 'a.j2') }}", "1 is one\n"),
        ("{{ query('file', 'a.txt', 'a.txt') }}", ["text", "text"]),
    ],
)
def test_lookups_search_as_tasks_do(source: str, value: Any, tmp_path: Path) -> None:
    for name, text in {"files/a.txt": "text\n\n", "templates/a.j2": "{{ one }} is one\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert template.render(source, Names({"one": 1}, tmp_path), WHERE) == value
