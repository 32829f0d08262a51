"""The tasks that run playbooks: `play`, `deploy-server`, `stop-server`; tcpfleet/tune_tasks.py has `tune`.

In: what the user typed. Out: Answers with the recap. The engine is `tcpfleet.playbook`; this module chooses the
file, the variables and the hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcpfleet import deploy, rollback
from tcpfleet.cli import ROOT, Answer, Options
from tcpfleet.errors import BadInput, LocatedError
from tcpfleet.playbook import Options as Selection
from tcpfleet.playbook import Playbook, PlaybookErrors, Recap, load
from tcpfleet.playbook.arguments import free_form
from tcpfleet.playbook.console import ConsoleReporter
from tcpfleet.playbook.engine import is_chosen
from tcpfleet.playbook.nodes import NAME
from tcpfleet.playbook.parse import read_vars

if TYPE_CHECKING:
    from tcpfleet.fleet import Fleet

PLAYBOOKS = ROOT / "playbooks"


@dataclass(frozen=True)
class Choice:
    """Which part of a playbook to run.

    :ivar limit: a host pattern that counts beside --hosts, or ''.
    :ivar start_at: glob of the name of the first task, or ''.
    """

    limit: str = ""
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()
    start_at: str = ""


def words(values: Sequence[str]) -> tuple[str, ...]:
    """Tags as they are given: several times, or with commas between them.

    >>> words(["a, b", "c"])
    ('a', 'b', 'c')
    """
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())


def play(
    options: Options, playbook: str, extra_vars: Sequence[str], choice: Choice, show: Sequence[str] = ()
) -> Answer:
    """Anyone's playbook, on the hosts that its plays name and that --hosts and --limit leave.

    :param show: of ``syntax``, ``hosts``, ``tasks``, ``tags``: what to print instead of running it.
    """
    book = load(playbook, read_extra_vars(extra_vars))
    options.playbook_dir = book.folder
    limit = _limit(options, book, choice.limit)
    if show:
        return _show(options, book, limit, choice, show)
    hosts = book.hosts(options.inventory, limit)
    with options.fleet(hosts) as fleet:
        recap = run_on(options, book, fleet, limit, f"play {book.path.name}", choice)
    return Answer(recap.to_json(), recap.exit_code, recap.failed)


def _limit(options: Options, book: Playbook, pattern: str) -> list[str] | None:
    """Names of the hosts that --hosts and --limit both leave; None when neither is given.

    :raises PlaybookErrors: when the inventory has a mistake and the playbook has some too.
    :raises BadInput: when they leave no host.
    """
    try:
        inventory = options.inventory
    except LocatedError as error:
        if book.problems:
            raise PlaybookErrors([*book.problems, error]) from None
        raise
    patterns = {"--hosts": options.hosts, "--limit": pattern}
    left: list[str] | None = None
    for option, one in patterns.items():
        if not one:
            continue
        try:
            names = [host.name for host in inventory.select(one, with_files=True)]
        except BadInput as error:
            raise BadInput(f"{option}: {error}") from None
        left = names if left is None else [name for name in left if name in names]
    if left is not None and not left:
        raise BadInput(f"--hosts {options.hosts!r} and --limit {pattern!r} have no host in common")
    return left


def _show(
    options: Options, book: Playbook, limit: Sequence[str] | None, choice: Choice, what: Sequence[str]
) -> Answer:
    """What would run, in the form of ansible-playbook's --list-hosts, --list-tasks and --list-tags."""
    prepared = book.prepare(options.inventory, limit)
    chosen = Selection(tags=frozenset(choice.tags), skip_tags=frozenset(choice.skip_tags))
    options.say(f"\nplaybook: {book.path}")
    plays: list[dict[str, Any]] = []
    for number, one in enumerate(prepared, 1):
        tasks = [task for task in one.play.tasks if task.module.name != "meta" and is_chosen(task.tags, chosen)]
        tags = sorted({tag for task in tasks for tag in task.tags})
        plays.append({"name": one.play.title, "hosts": list(one.files), "tags": tags})
        plays[-1]["tasks"] = [{"name": task.title, "tags": sorted(task.tags)} for task in tasks]
        if list(what) == ["syntax"]:
            continue
        options.say(
            f"\n  play #{number} ({one.play.hosts}): {one.play.title}\tTAGS: [{', '.join(sorted(one.play.tags))}]"
        )
        if "hosts" in what:
            options.say(f"    pattern: {one.play.hosts.split(',')}\n    hosts ({len(one.files)}):")
            for name in one.files:
                options.say(f"      {name}")
        if "tasks" in what:
            options.say("    tasks:")
            for task in tasks:
                options.say(f"      {task.title}\tTAGS: [{', '.join(sorted(task.tags))}]")
        if "tags" in what:
            options.say(f"      TASK TAGS: [{', '.join(tags)}]")
    return Answer({"playbook": str(book.path), "plays": plays})


def deploy_server(
    options: Options,
    port: str = "",
    bind: str = "",
    max_connections: str = "",
    workers: str = "",
    mode: str = "",
    manager: str = "",
) -> Answer:
    """playbooks/deploy-server.yml on group `server`."""
    extra = deploy.variables(
        server_port=port,
        server_bind=bind,
        server_max_connections=max_connections,
        server_workers=workers,
        server_mode=mode,
        server_manager=manager,
    )
    return _on_servers(options, "deploy-server.yml", extra)


def stop_server(options: Options) -> Answer:
    """playbooks/stop-server.yml on group `server`."""
    return _on_servers(options, "stop-server.yml", {})


def _on_servers(options: Options, file: str, extra: dict[str, Any]) -> Answer:
    hosts = options.select("server")
    book = load(PLAYBOOKS / file, extra | {"server_hosts": "all"})
    with options.fleet(hosts) as fleet:
        recap = run_on(options, book, fleet, [host.name for host in hosts], book.path.stem)
    return Answer(recap.to_json(), recap.exit_code, recap.failed)


def run_on(
    options: Options,
    book: Playbook,
    fleet: Fleet,
    limit: str | Sequence[str] | None,
    command: str,
    choice: Choice = Choice(),
) -> Recap:
    """Runs a playbook under the common options, with its output on the console and a journal on the hosts.

    :param command: what `rollback --list` calls it.
    """
    return book.run(
        fleet,
        options.inventory,
        limit,
        check=options.check,
        diff=options.diff,
        reporter=ConsoleReporter(options.out, diff=options.diff),
        tags=choice.tags,
        skip_tags=choice.skip_tags,
        start_at=choice.start_at,
        become_password=options.sudo_password,
        journal=rollback.new_journal(command),
    )


def read_extra_vars(given: Sequence[str]) -> dict[str, Any]:
    """``-e`` as Ansible reads it: key=value pairs (text), a mapping in JSON or YAML, or @file with one.

    :raises BadInput: naming what is none of these.

    >>> read_extra_vars(["a=1 b='x y'", '{"c": [2]}', "{d: yes}"])
    {'a': '1', 'b': 'x y', 'c': [2], 'd': True}
    """
    found: dict[str, Any] = {}
    for one in given:
        text = one.strip()
        if text.startswith("@"):
            path = Path(text[1:]).expanduser()
            if not path.is_file():
                raise BadInput(f"--extra-vars {one}: there is no file {path}")
            values = read_vars(path)
        elif text[:1] in ("{", "["):
            values = _inline(one)
        else:
            values = free_form(text, None)
            stray = next((key for key, value in values.items() if value is None), None)
            if stray is not None:
                raise BadInput(f"--extra-vars {one!r}: {stray!r} is not key=value, a mapping in {{}}, or @file")
        for name in values:
            if not isinstance(name, str) or not NAME.match(name):
                raise BadInput(f"--extra-vars {one!r}: {name!r} is no variable name (letters, digits, _)")
        found |= values
    return found


def _inline(text: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"--extra-vars {text!r} is neither JSON nor YAML: {error}") from None
    if not isinstance(values, dict):
        raise BadInput(f"--extra-vars {text!r} does not hold a mapping")
    return values
