"""What is sent together and what waits: how many messages a host gets, and what comes of a failure among many.

A case: a play's tasks (and handlers), how many operations each message to the host must hold, and the recap.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from tcpfleet.playbook import load
from tcpfleet.playbook.console import ConsoleReporter
from tcpfleet.playbook.results import Recap

from .fakes import FakeFleet, inventory_of


def run(
    folder: Path, play: str, hosts: str = "h1", fleet: FakeFleet | None = None, **options: Any
) -> tuple[Recap, FakeFleet, str]:
    (folder / "play.yml").write_text(play, encoding="utf-8")
    inventory = inventory_of(folder, "all: {hosts: {" + ", ".join(f"{host}: " for host in hosts.split()) + "}}")
    fleet = fleet or FakeFleet(inventory)
    out = io.StringIO()
    recap = load(folder / "play.yml").run(fleet, inventory, reporter=ConsoleReporter(out), **options)
    return recap, fleet, out.getvalue()


def play_of(tasks: str, handlers: str = "", **keys: Any) -> str:
    play: dict[str, Any] = {"hosts": "all", "gather_facts": False, "tasks": yaml.safe_load(tasks), **keys}
    if handlers:
        play["handlers"] = yaml.safe_load(handlers)
    return yaml.safe_dump([play], sort_keys=False)


def counts(recap: Recap) -> dict[str, dict[str, int]]:
    return {host: {key: n for key, n in vars(one).items() if n} for host, one in recap.hosts.items()}


MESSAGES = {
    "independent tasks go together": (
        "[{ping: }, {command: 'true'}, {ping: , when: false}, {debug: {msg: x}}, {ping: }]",
        [3],
        {"ok": 4, "changed": 1, "skipped": 1},
    ),
    "a loop is one message": ("[{command: 'echo {{ item }}', loop: [1, 2, 3]}]", [3], {"ok": 1, "changed": 1}),
    "a registered result is waited for, once": (
        (
            "[{command: echo 1, register: a}, {ping: }, {command: 'echo {{ a.stdout }}'}, "
            "{command: 'echo {{ a.rc }}'}]"
        ),
        [2, 2],
        {"ok": 4, "changed": 3},
    ),
    "also through a variable": (
        (
            "[{command: echo 1, register: a}, {ping: , vars: {b: '{{ a.stdout }}'}}, "
            "{debug: {var: b}, vars: {b: '{{ a.rc }}'}}, {ping: }]"
        ),
        [2, 1],
        {"ok": 4, "changed": 1},
    ),
    "set_fact of what is known costs nothing": (
        "[{set_fact: {a: 1}}, {ping: }, {command: 'echo {{ a }}'}, {set_fact: {a: 2}}, {command: 'echo {{ a }}'}]",
        [1, 1, 1],
        {"ok": 5, "changed": 2},
    ),
    "set_fact in a loop sees the items before": (
        "[{set_fact: {a: '{{ a | default([]) + [item] }}'}, loop: [1, 2]}, {assert: {that: 'a == [1, 2]'}}]",
        [],
        {"ok": 2},
    ),
    "an expression over the result is waited for": (
        (
            "[{command: 'false', register: a, failed_when: a.rc > 1}, {ping: }, "
            "{command: 'true', register: b, changed_when: b.rc == 1}, {ping: }]"
        ),
        [1, 2, 1],
        {"ok": 4, "changed": 1},
    ),
    "words that need no look are not": (
        (
            "[{command: 'false', failed_when: false}, {command: 'false', ignore_errors: true}, "
            "{command: 'true', changed_when: false}]"
        ),
        [3],
        {"ok": 3, "changed": 2, "ignored": 1},
    ),
    "nothing runs after a failure": (
        "[{ping: }, {command: 'false'}, {command: touch never}, {set_fact: {a: 1}}]",
        [2],
        {"ok": 1, "failed": 1},
    ),
    "a failure known beforehand still comes after what is before it": (
        "[{ping: }, {fail: {msg: no}}, {command: touch never}]",
        [1],
        {"ok": 1, "failed": 1},
    ),
    "a rescue is found from the middle of a batch": (
        (
            "[{block: [{command: 'false'}, "
            "{command: touch never}], rescue: [{command: 'echo {{ ansible_failed_result.rc }}'}], always: "
            "[{ping: }]}, "
            "{ping: }]"
        ),
        [1, 3],
        {"ok": 3, "changed": 1, "rescued": 1},
    ),
    "a failed loop ends its items first": (
        "[{command: '{{ item }}', loop: ['true', 'false', 'true']}, {command: touch never}]",
        [3],
        {"failed": 1},
    ),
}


@pytest.mark.parametrize(("tasks", "messages", "recap"), MESSAGES.values(), ids=MESSAGES)
def test_messages(tmp_path: Path, tasks: str, messages: list[int], recap: dict[str, int]) -> None:
    got, fleet, text = run(tmp_path, play_of(tasks))
    assert fleet.sessions["h1"].messages == messages, text
    assert counts(got) == {"h1": recap}, text
    assert not Path("never").exists()


def test_facts_come_in_the_first_message_and_only_those_used(tmp_path: Path) -> None:
    play = "- hosts: all\n  tasks: [{ping: }, {command: 'echo {{ ansible_hostname }}'}, {ping: }]\n"
    _, fleet, _ = run(tmp_path, play)
    session = fleet.sessions["h1"]
    assert session.messages == [2, 2]
    assert session.calls[0].op == "setup" and session.calls[0].args["filter"] == ["hostname"]
    recap, fleet, _ = run(tmp_path, "- hosts: all\n  tasks: [{ping: }]\n")
    assert [call.op for call in fleet.sessions["h1"].calls] == ["ping"]
    assert counts(recap) == {"h1": {"ok": 2}}  # as in Ansible, gathering counts


def test_handlers_and_sections_cost_a_message_only_when_something_was_notified(tmp_path: Path) -> None:
    handlers = "[{name: h, ping: }, {name: i, ping: }]"
    _, fleet, _ = run(
        tmp_path, play_of("[{ping: }]", handlers, pre_tasks=[{"ping": None}], post_tasks=[{"ping": None}])
    )
    assert fleet.sessions["h1"].messages == [3]
    _, fleet, _ = run(
        tmp_path, play_of("[{command: 'true', notify: [h, i]}]", handlers, post_tasks=[{"ping": None}])
    )
    assert [call.op for call in fleet.sessions["h1"].calls] == ["command", "ping", "ping", "ping"]
    assert fleet.sessions["h1"].messages == [1, 3]


def test_a_host_that_cannot_say_what_it_owes_is_warned_about_and_goes_on(tmp_path: Path) -> None:
    _, fleet, _ = run(tmp_path, play_of("[]"))
    damaged = {"changed": False, "failed": True, "msg": "handlers.json is damaged"}
    for session in fleet.sessions.values():
        session.canned["handlers"] = damaged
    tasks = "[{ping: }, {command: 'true', notify: h}, {ping: }]"
    recap, _, text = run(tmp_path, play_of(tasks, "[{name: h, ping: }]"), fleet=fleet)
    assert counts(recap) == {"h1": {"ok": 4, "changed": 1}}
    assert "note: [h1]: warning: handlers.json is damaged" in text


KEY = "play.yml: all"


def test_handlers_pending_at_a_failure_run_next_time(tmp_path: Path) -> None:
    tasks = "[{command: 'true', notify: [restart, topic]}, {command: '{{ how }}'}]"
    handlers = "[{name: restart, command: echo restarted}, {name: reload, listen: topic, command: echo reloaded}]"

    def play(how: str, changes: bool) -> str:
        return play_of(tasks, handlers, vars={"how": how}).replace(
            "notify:", f"changed_when: {changes}\n    notify:"
        )

    recap, fleet, text = run(tmp_path, play("false", True))
    assert fleet.sessions["h1"].owed == {KEY: ["restart", "topic"]}
    assert recap.pending == {"h1": ["restart", "topic"]} and recap.to_json()["pending_handlers"] == recap.pending
    assert text.endswith("PENDING h1: handlers kept for the next run of this play: restart, topic\n")

    recap, _, text = run(tmp_path, play("true", False), fleet=fleet, check=True)
    assert fleet.sessions["h1"].owed == {KEY: ["restart", "topic"]}  # nothing was done
    assert "handlers kept from an earlier run: restart, topic" in text

    recap, _, _ = run(tmp_path, play("false", False), fleet=fleet)  # fails again, notifies nothing
    assert fleet.sessions["h1"].owed == {KEY: ["restart", "topic"]}

    recap, _, text = run(tmp_path, play("true", False), fleet=fleet)
    assert "RUNNING HANDLER [restart]" in text and "RUNNING HANDLER [reload]" in text
    assert counts(recap) == {"h1": {"ok": 4, "changed": 3}}
    assert fleet.sessions["h1"].owed == {KEY: []} and not recap.pending

    recap, _, text = run(tmp_path, play("true", False), fleet=fleet)
    assert "HANDLER" not in text


def test_what_an_expression_makes_changed_is_owed_too(tmp_path: Path) -> None:
    tasks = """
    - {command: echo 1, register: a, changed_when: a.stdout == '1', notify: h}
    - {command: "false"}
    """
    recap, fleet, _ = run(tmp_path, play_of(tasks, "[{name: h, ping: }]"))
    assert fleet.sessions["h1"].owed == {KEY: ["h"]} and recap.pending == {"h1": ["h"]}


@pytest.mark.parametrize("keys", [{"serial": 1}, {"strategy": "linear"}, {"any_errors_fatal": True}, {}], ids=str)
def test_handlers_run_once_where_every_task_is_a_barrier_too(tmp_path: Path, keys: dict[str, Any]) -> None:
    tasks = "[{debug: {msg: t}, changed_when: true, notify: h}, {debug: {msg: o}}]"
    play = play_of(tasks, "[{name: h, debug: {msg: h}}]", post_tasks=[{"ping": None}], **keys)
    for _ in range(2):
        recap, fleet, text = run(tmp_path, play)
        assert counts(recap) == {"h1": {"ok": 4, "changed": 1}}, text
        assert fleet.sessions["h1"].owed == {KEY: []}


def test_a_handler_that_fails_is_owed(tmp_path: Path) -> None:
    recap, fleet, _ = run(
        tmp_path, play_of("[{command: 'true', notify: a}]", "[{name: a, command: 'false'}, {name: b, ping: }]")
    )
    assert counts(recap) == {"h1": {"ok": 1, "changed": 1, "failed": 1}}
    assert fleet.sessions["h1"].owed == {KEY: ["a"]}


def test_output_is_in_the_order_of_tasks_although_hosts_go_ahead(tmp_path: Path) -> None:
    _, _, text = run(tmp_path, play_of("[{name: a, command: 'true'}, {name: b, command: 'true'}]"), "h1 h2 h3")
    lines = [line.split(" **")[0] for line in text.splitlines() if line.startswith(("TASK", "changed"))]
    hosts = ["changed: [h1]", "changed: [h2]", "changed: [h3]"]
    assert lines == ["TASK [a]", *hosts, "TASK [b]", *hosts]


BARRIERS = {
    "run_once gives its result to all": (
        "[{command: echo 1, register: a, run_once: true}, {assert: {that: a.stdout == '1'}}]",
        {},
        {"h1": {"ok": 2, "changed": 1}, "h2": {"ok": 1}, "h3": {"ok": 1}},
    ),
    "run_once set_fact too": (
        "[{set_fact: {a: '{{ inventory_hostname }}'}, run_once: true}, {assert: {that: a == 'h1'}}]",
        {},
        {"h1": {"ok": 2}, "h2": {"ok": 1}, "h3": {"ok": 1}},
    ),
    "a failure under run_once is everyone's": (
        "[{command: 'false', run_once: true}, {ping: }]",
        {},
        {"h1": {"failed": 1}, "h2": {}, "h3": {}},
    ),
    "run_once skipped on the first host is skipped": (
        "[{ping: , run_once: true, when: inventory_hostname == 'h2'}, {ping: }]",
        {},
        {"h1": {"ok": 1, "skipped": 1}, "h2": {"ok": 1}, "h3": {"ok": 1}},
    ),
    "any_errors_fatal stops all": (
        "[{ping: }, {command: 'false', when: inventory_hostname == 'h2'}, {ping: }]",
        {"any_errors_fatal": True},
        {"h1": {"ok": 1, "skipped": 1}, "h2": {"ok": 1, "failed": 1}, "h3": {"ok": 1, "skipped": 1}},
    ),
    "without it the others go on": (
        "[{ping: }, {command: 'false', when: inventory_hostname == 'h2'}, {ping: }]",
        {},
        {"h1": {"ok": 2, "skipped": 1}, "h2": {"ok": 1, "failed": 1}, "h3": {"ok": 2, "skipped": 1}},
    ),
    "serial: a batch that fails whole ends the run": (
        "[{command: 'false', when: inventory_hostname == 'h1'}, {ping: }]",
        {"serial": 1},
        {"h1": {"failed": 1}, "h2": {}, "h3": {}},
    ),
    "serial by steps and percent": (
        "[{assert: {that: 'ansible_play_batch == expected[inventory_hostname]'}}]",
        {"serial": [1, "70%"], "vars": {"expected": {"h1": ["h1"], "h2": ["h2", "h3"], "h3": ["h2", "h3"]}}},
        {"h1": {"ok": 1}, "h2": {"ok": 1}, "h3": {"ok": 1}},
    ),
    "hostvars of others are those of the task before": (
        (
            "[{set_fact: {a: '{{ inventory_hostname }}'}}, {assert: {that: \"hostvars['h3'].a == 'h3'\"}}, "
            "{set_fact: {a: x}}]"
        ),
        {},
        {"h1": {"ok": 3}, "h2": {"ok": 3}, "h3": {"ok": 3}},
    ),
    "ansible_play_batch too": (
        "[{command: 'false', when: inventory_hostname == 'h2'}, "
        "{assert: {that: \"ansible_play_batch == ['h1', 'h3']\"}}]",
        {},
        {"h1": {"ok": 1, "skipped": 1}, "h2": {"failed": 1}, "h3": {"ok": 1, "skipped": 1}},
    ),
    "ansible_play_hosts loses who failed": (
        (
            "[{command: 'false', when: inventory_hostname == 'h2'}, "
            "{assert: {that: \"ansible_play_hosts == ['h1', 'h3']\"}}]"
        ),
        {},
        {"h1": {"ok": 1, "skipped": 1}, "h2": {"failed": 1}, "h3": {"ok": 1, "skipped": 1}},
    ),
}


@pytest.mark.parametrize(("tasks", "keys", "expected"), BARRIERS.values(), ids=BARRIERS)
def test_barriers(tmp_path: Path, tasks: str, keys: dict[str, Any], expected: dict[str, Any]) -> None:
    recap, _, text = run(tmp_path, play_of(tasks, **keys), "h1 h2 h3")
    assert counts(recap) == expected, text


def test_a_play_after_one_that_lost_all_its_hosts_does_not_run(tmp_path: Path) -> None:
    play = (
        "- {hosts: h1, gather_facts: false, tasks: [{command: 'false'}]}\n"
        "- {hosts: h2, gather_facts: false, tasks: [{ping: }]}\n"
    )
    recap, fleet, _ = run(tmp_path, play, "h1 h2")
    assert not fleet.sessions["h2"].calls and recap.exit_code == 2


def test_until(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    command = f"sh -c 'echo x >> {seen}; wc -l < {seen}'"
    tasks = [
        {"command": command, "register": "a", "until": "a.stdout | int >= 3", "retries": 5, "delay": 0},
        {"assert": {"that": ["a.attempts == 3", "a.stdout == '3'"]}},
        {
            "command": "false",
            "register": "b",
            "until": "b.rc == 0",
            "retries": 2,
            "delay": 0,
            "ignore_errors": True,
        },
        {"assert": {"that": ["b.attempts == 2", "b is failed"]}},
        {"command": "true", "register": "c", "retries": 3, "delay": 0},
        {"assert": {"that": "c.attempts == 1"}},
    ]
    recap, fleet, text = run(tmp_path, play_of(yaml.safe_dump(tasks)))
    assert counts(recap) == {"h1": {"ok": 6, "changed": 3, "ignored": 1}}, text
    assert len(fleet.sessions["h1"].calls) == 3 + 3 + 1
    assert "FAILED - RETRYING: [h1]: command (5 retries left)." in text


def test_start_at_task(tmp_path: Path) -> None:
    play = play_of("[{name: a, ping: }, {name: b one, ping: }, {name: c, ping: }]")
    assert counts(run(tmp_path, play, start_at="b*")[0]) == {"h1": {"ok": 2}}
    from tcpfleet.errors import BadInput

    with pytest.raises(BadInput, match="no task is called 'd'; there are: 'a', 'b one', 'c'"):
        run(tmp_path, play, start_at="d")


def test_a_host_that_is_lost_keeps_what_it_had_done(tmp_path: Path) -> None:
    from tcpfleet.errors import Unreachable

    inventory = inventory_of(tmp_path, "all: {hosts: {h1: , h2: }}")
    fleet = FakeFleet(inventory)
    fleet.sessions["h2"].canned = {"stat": Unreachable("connection lost: no sign of life for 30 s")}
    tasks = "[{name: a, ping: }, {name: b, stat: {path: /}}, {name: c, ping: }]"
    recap, _, text = run(tmp_path, play_of(tasks), "h1 h2", fleet=fleet)
    assert counts(recap) == {"h1": {"ok": 3}, "h2": {"ok": 1, "unreachable": 1}}
    assert "fatal: [h2]: UNREACHABLE! => connection lost" in text.split("TASK [c]")[0].split("TASK [b]")[1]
    assert recap.exit_code == 4


def test_hostvars_of_a_host_that_is_at_the_same_task(tmp_path: Path) -> None:
    # Both register `a` again while each looks at the other's: what counts is the value from before.
    tasks = """
    - {command: 'echo {{ inventory_hostname }}', register: a}
    - {command: "echo {{ hostvars['h1'].a.stdout }}{{ hostvars['h2'].a.stdout }}", register: a}
    - {assert: {that: a.stdout == 'h1h2'}}
    """
    recap, _, text = run(tmp_path, play_of(tasks), "h1 h2")
    assert not recap.reasons, text


TAGS = "a", "never b", "always", "always never", ""
CHOSEN = {
    ("", ""): "a|always|always never|",
    ("a", ""): "a|always|always never",
    ("b", ""): "never b|always|always never",
    ("all", ""): "a|always|always never|",
    ("tagged", ""): "a|always|always never",
    ("untagged", ""): "always|always never|",
    ("", "tagged"): "",
    ("", "always"): "a|",
    ("", "all"): "always|always never",
    ("", "untagged"): "a|always|always never",
}


@pytest.mark.parametrize(("asked", "expected"), CHOSEN.items(), ids=str)
def test_tags_as_ansible_reads_them(tmp_path: Path, asked: tuple[str, str], expected: str) -> None:
    tasks = [{"name": f"tags {tags}", "ping": None, "tags": tags.split()} for tags in TAGS]
    recap, _, _ = run(tmp_path, play_of(yaml.safe_dump(tasks)), tags=asked[0].split(), skip_tags=asked[1].split())
    assert "|".join(record.task.removeprefix("tags").strip() for record in recap.tasks) == expected
