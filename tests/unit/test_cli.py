"""Numbers as people write them, --json, exit codes, and the whole list of tasks."""

import fnmatch
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from invoke.context import Context

from tcpfleet import cli
from tcpfleet.errors import BadInput, LocatedError, worst
from tcpfleet.secret import STARS, Secret, redacted
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "value"), [("50000", 50000), ("50k", 50000), ("1.5k", 1500), ("1M", 10**6), ("5_0", 50), (7, 7)]
)
def test_numbers(text: object, value: int) -> None:
    assert cli.number("--n", text, 1, 10**7) == value


@pytest.mark.parametrize("text", ["", "many", "0", "1.5", "-1", "1e99", "nan", "inf", "11M", "0x10"])
def test_what_is_not_a_number(text: str) -> None:
    with pytest.raises(BadInput, match="--n"):
        cli.number("--n", text, 1, 10**7)


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([0], 0), ([3, 2], 2), ([2, 4], 4), ([4, 5], 5), ([5, 1], 1), ([1, 130, 4], 130), ([3], 3)],
)
def test_the_worst_code_wins(codes: list[int], code: int) -> None:
    assert worst(codes) == code


def test_a_located_error_reads_like_a_compiler_message() -> None:
    assert str(LocatedError("unknown key `hots`", "a.yml", 3, 5)) == "a.yml:3:5: unknown key `hots`"
    assert str(LocatedError("empty", "a.yml")) == "a.yml: empty"


def invoke(*words: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "invoke", *words],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_the_list_has_every_task_with_a_sentence() -> None:
    listed = json.loads(invoke("--list", "--list-format", "json").stdout)
    names = {task["name"]: task["help"] for task in listed["tasks"]}
    assert {"lab-up", "lab-down", "lab-status", "ping", "facts", "inventory", "play", "tune"} <= set(names)
    assert {
        "deploy-server",
        "server-status",
        "server-log",
        "reload-server",
        "stop-server",
        "stress",
        "stress-status",
        "stop-stress",
    } <= set(names)
    assert {"collect-report", "demo", "test", "lint"} <= set(names)
    assert all(len(text) > 20 for text in names.values())


@pytest.mark.parametrize(("unwanted", "kept"), [("", True), ("1", False)])
def test_bytecode_is_kept_unless_the_user_says_no(tmp_path: Path, unwanted: str, kept: bool) -> None:
    """Invoke turns it off for everybody."""
    own = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": unwanted}
    assert invoke("--list", env=os.environ | own).returncode == 0
    assert kept == bool([*tmp_path.rglob("tcpfleet/cli.*.pyc")])


def test_listing_does_not_load_the_heavy_libraries() -> None:
    code = (
        "import sys, tasks; heavy = {'fabric', 'paramiko', 'jinja2', 'rich', 'pygal'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_short_help_is_help() -> None:
    assert "Usage: inv" in invoke("stress", "--help").stdout
    begun = time.monotonic()
    assert invoke("ping", "-h", "x").returncode == 1  # -h is not --hosts
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("tune",), 1, "--hosts"),
        (("ping", "--hosts", "nosuch"), 1, "nosuch"),
        (("ping", "--inventory", "/nonexistent"), 1, "/nonexistent"),
        (("--dry", "ping"), 1, "--check"),
        (("stress", "--per-client", "many", "--hosts", "local"), 1, "'many' is not a number"),
        (("stress", "--hosts", "local", "--target", "192.0.2.1"), 1, "--allow-target"),
        (("collect-report", "--run", "../../etc"), 1, "there is no run"),
    ],
)
def test_bad_use_is_one_sentence_and_its_code(words: tuple[str, ...], code: int, said: str) -> None:
    done = invoke(*words)
    assert done.returncode == code and said in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_answer_of_many_hosts_is_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # As one text it once was the most that the controller of 500 hosts had in memory.
    secret = Secret("hidden in parts")
    results = {f"h{number}": {"status": "ok", "result": {"text": "x" * 1000}} for number in range(100)}
    odd = {1: [float("nan"), ("a",)], "hidden in parts": f"{secret.reveal()}!", "none": [], "nil": None}
    data = {"hosts": results, "tasks": [{"task": "t", "hosts": results}], "odd": odd}
    written: list[str] = []
    stream = io.StringIO()
    monkeypatch.setattr(stream, "write", written.append)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert cli._run(lambda _: cli.Answer(data), Context(), {"json": True}, {}) == 0
    assert json.loads("".join(written)) == json.loads(cli.strict_json(redacted(data) | {"exit_code": 0}))
    assert STARS in "".join(written) and "hidden" not in "".join(written)
    assert max(map(len, written)) < 2000


def test_json_is_one_object_on_stdout_even_for_errors() -> None:
    done = invoke("ping", "--hosts", "nosuch", "--json")
    assert json.loads(done.stdout) == {"error": done.stderr.strip().removeprefix("error: "), "exit_code": 1}


def test_stress_offers_every_option_of_the_client_under_its_name() -> None:
    import inspect

    import stress_client

    import tasks

    # What the controller itself decides for each client.
    own = {"--help", "--connections", "--slice", "--first-conn", "--json", "--plan", "--detach", "--barrier"}
    own |= {"--barrier-timeout", "--clients-here"}
    offered = {f"--{name.replace('_', '-')}" for name in inspect.signature(tasks.stress.body).parameters}
    asked = {option for action in stress_client.build_parser()._actions for option in action.option_strings}
    assert {option for option in asked if option.startswith("--")} - own <= offered


def test_the_profile_of_the_inventory_counts_when_none_is_named(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("all: {hosts: {here: {ansible_connection: local, profile: no-such}}}")
    done = invoke("tune", "--hosts", "here", "--check", "--inventory", str(inventory))
    assert done.returncode == 1 and "profiles/no-such.yml" in done.stderr and "article" in done.stderr


def test_the_failed_hosts_come_last_and_are_kept_for_the_next_run(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    sick = "ansible_connection: local, ansible_python_interpreter: /usr/bin/python9"
    well = "ansible_connection: local"
    inventory.write_text(f"all: {{hosts: {{one: {{{sick}}}, two: {{{well}}}, three: {{{sick}}}}}}}")
    retry = ROOT / "reports/ping.retry"
    done = invoke("ping", "--inventory", str(inventory))
    assert done.returncode == 2 and "inv ping ... --hosts @reports/ping.retry" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[-3] == "1 ok, 2 failed, 0 unreachable" and retry.read_text() == "one\nthree\n"
    assert [line.partition(":")[0] for line in lines[-2:]] == ["FAILED one", "FAILED three"]
    inventory.write_text(inventory.read_text().replace("python9", "python3"))
    again = json.loads(invoke("ping", "--inventory", str(inventory), "--hosts", f"@{retry}", "--json").stdout)
    assert list(again["hosts"]) == ["one", "three"] and again["exit_code"] == 0
    assert "failed_hosts" not in again and not retry.exists()


def test_the_readme_says_where_every_module_lives() -> None:
    section = (ROOT / "README.md").read_text().partition("## Where things live")[2]
    rows = [line.split("|")[2:4] for line in section.splitlines() if line.startswith("| ")]
    lost = []
    for column, folder in enumerate(("tcpfleet", "payload")):
        named = [name for row in rows for name in re.findall(r"`([^`]+)`", row[column])]
        named = [name + "*" if name.endswith("/") else name for name in named]
        modules = [str(path.relative_to(ROOT / folder))[:-3] for path in (ROOT / folder).rglob("*.py")]
        lost += [
            one for one in modules if one != "__init__" and not any(fnmatch.fnmatch(one, name) for name in named)
        ]
        lost += [name for name in named if "*" not in name and name not in modules]
    assert lost == []


def test_ctrl_c_while_invoke_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    """Nothing of ours has run by then: what ./bootstrap writes into `inv` makes it a quiet end."""
    (edit,) = re.findall(r"sed -i '([^']+)' ", (ROOT / "bootstrap").read_text())
    script = tmp_path / "inv"
    script.write_text("import re\nimport sys\nfrom invoke.main import program\nsys.exit(program.run())\n")
    subprocess.run(["sed", "-i", edit, script], check=True)
    slow = "print('importing', flush=True)\nimport time\ntime.sleep(30)\n"
    (tmp_path / "invoke").mkdir()
    (tmp_path / "invoke" / "__init__.py").write_text(slow)
    (tmp_path / "invoke" / "main.py").write_text("")
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run where it is ignored
    ) as inv:
        assert inv.stdout is not None and inv.stdout.readline() == "importing\n"
        inv.send_signal(signal.SIGINT)
        assert inv.communicate(timeout=10) == ("", "")
    assert inv.returncode == -signal.SIGINT
