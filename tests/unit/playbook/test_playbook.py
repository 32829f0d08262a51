"""Playbooks, case by case: errors/*.yml say which located errors a playbook must give, runs/*.yml what a run does.

A case is a YAML mapping. Both kinds: `playbook`, `files` (name -> text beside it), `inventory`, `extra`. Errors:
`errors`, each the beginning of one line. Runs: `recap` (host -> counts that are not 0), `registered`
(name -> host -> fields), `reasons` (host -> part), `become`, `check`, `gone`, `absent` and `printed` (texts
that the output must not or must have), `exit`, `steps` (host -> its tasks in order, as one line), `picked` (tags,
skip_tags, start_at), `owed` (host -> play -> handlers that the next run is to run).
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tcpfleet.playbook import PlaybookErrors, load
from tcpfleet.playbook.console import ConsoleReporter, render_diff
from tcpfleet.secret import secret

from .fakes import FakeFleet, inventory_of

HERE = Path(__file__).parent


def cases(folder: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in sorted((HERE / folder).glob("*.yml"))]


def lay_out(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    case: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, text in {"play.yml": case["playbook"], **case.get("files", {})}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    return case


@pytest.mark.parametrize("path", cases("errors"))
def test_errors(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = lay_out(path, tmp_path, monkeypatch)
    with pytest.raises(PlaybookErrors) as caught:
        book = load("play.yml", case.get("extra"))
        inventory = inventory_of(tmp_path, case.get("inventory", "all: {hosts: {h1: }}"))
        fleet = FakeFleet(inventory)
        try:
            book.run(fleet, inventory)
        finally:
            assert not any(session.calls for session in fleet.sessions.values()), "a host was touched"
    lines = [line.replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()]
    expected = sorted(case["errors"], key=lambda line: line.split(":")[0])
    unmatched = [line for line in lines if not any(line.startswith(start) for start in expected)]
    missing = [start for start in expected if not any(line.startswith(start) for line in lines)]
    assert not unmatched and not missing, "\n".join(["got:", *lines, "missing:", *missing])
    assert len(lines) == len(expected)


@pytest.mark.parametrize("path", cases("runs"))
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = lay_out(path, tmp_path, monkeypatch)
    inventory = inventory_of(tmp_path, case["inventory"])
    fleet = FakeFleet(inventory, gone=case.get("gone", ()))
    out = io.StringIO()
    reporter = ConsoleReporter(out, diff=True, verbose=True)
    recap = load("play.yml", case.get("extra")).run(
        fleet, inventory, check=case.get("check", False), diff=True, reporter=reporter, **case.get("picked", {})
    )
    text = out.getvalue()
    counts = {host: {key: n for key, n in vars(one).items() if n} for host, one in recap.hosts.items()}
    assert counts == case["recap"], text
    assert recap.exit_code == case.get("exit", 0)
    for name, hosts in case.get("registered", {}).items():
        for host, fields in hosts.items():
            result = recap.registered(name)[host].result
            assert {key: result.get(key) for key in fields} == fields
    for host, steps in case.get("steps", {}).items():
        assert " ".join(record.task for record in recap.tasks if host in record.results) == steps
    for host, owed in case.get("owed", {}).items():
        assert fleet.sessions[host].owed == owed
    for host, part in case.get("reasons", {}).items():
        assert part in recap.reasons[host]
    for host, identities in case.get("become", {}).items():
        seen = [call.become for call in fleet.sessions[host].calls]
        assert [one and [one.user, one.password] for one in seen] == [
            one and [one[0], secret(one[1])] for one in identities
        ]
    everything = text + json.dumps(recap.to_json(), default=str)
    assert not [word for word in case.get("printed", ()) if word not in everything]
    assert not [word for word in case.get("absent", ()) if word in everything]


def test_recap_has_ansibles_columns(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks: [{ping: }]\n", encoding="utf-8"
    )
    inventory = inventory_of(tmp_path, "all: {hosts: {h1: }}")
    out = io.StringIO()
    load(tmp_path / "play.yml").run(FakeFleet(inventory), inventory, reporter=ConsoleReporter(out))
    assert out.getvalue().endswith(
        "h1                         : ok=1    changed=0    unreachable=0    failed=0    skipped=0    rescued=0    "
        "ignored=0\n"
    )


def test_diff_says_when_a_final_newline_is_missing() -> None:
    text = render_diff({"before": "a\nb", "after": "a\nc\n", "before_header": "/x", "after_header": "/x"})
    assert text == ("--- before: /x\n+++ after: /x\n@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+c\n")


def test_limit_and_tags(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - {ping: , tags: a}\n    - {ping: , tags: [b, never]}\n    - {ping: , tags: always}\n",
        encoding="utf-8",
    )
    inventory = inventory_of(tmp_path, "all: {hosts: {h1: , h2: , h3: }}")
    book = load(tmp_path / "play.yml")
    recap = book.run(FakeFleet(inventory), inventory, "h1,h3")
    assert {name: one.ok for name, one in recap.hosts.items()} == {"h1": 2, "h3": 2}
    recap = book.run(FakeFleet(inventory), inventory, ["h2"], tags=["b"])
    assert recap.hosts["h2"].ok == 2
    recap = book.run(FakeFleet(inventory), inventory, ["h2"], skip_tags=["a"])
    assert recap.hosts["h2"].ok == 1
    assert [host.name for host in book.hosts(inventory, "!h1")] == ["h2", "h3"]
