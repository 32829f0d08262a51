"""The tasks that run playbooks: `play`, `tune`, `deploy-server`, `stop-server`.

In: what the user typed. Out: Answers with the recap. The engine is `tcpfleet.playbook`; this module chooses the
file, the variables and the hosts, and for `tune` adds what was read back from the hosts afterwards.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcpfleet import deploy
from tcpfleet import tune as tuning
from tcpfleet.cli import ROOT, Answer, Options
from tcpfleet.errors import BadInput
from tcpfleet.playbook import Playbook, Recap, load
from tcpfleet.playbook.console import ConsoleReporter

if TYPE_CHECKING:
    from tcpfleet.fleet import Fleet
    from tcpfleet.inventory import Host

PLAYBOOKS = ROOT / "playbooks"


def play(options: Options, playbook: str, extra_vars: Sequence[str]) -> Answer:
    """Anyone's playbook, on the hosts that its plays name; --hosts limits them."""
    recap, _ = _run(options, Path(playbook), read_extra_vars(extra_vars), options.hosts or None)
    return Answer(recap.to_json(), recap.exit_code)


def tune(options: Options, profile: str, *, become: bool = True) -> Answer:
    """playbooks/tune.yml, then a table per host of what is in force, read back.

    :param profile: a file of playbooks/profiles/; empty for the inventory's `profile`, or article.
    :param become: whether to use sudo where the login is not root.
    """
    hosts = options.select()
    if profile and not (PLAYBOOKS / "profiles" / f"{profile}.yml").is_file():
        known = ", ".join(sorted(path.stem for path in (PLAYBOOKS / "profiles").glob("*.yml")))
        raise BadInput(f"--profile {profile!r} is not a file of {PLAYBOOKS / 'profiles'}; there are: {known}")
    names = [host.name for host in hosts]
    extra: dict[str, Any] = {"profile": profile} if profile else {}
    if not become:
        extra["tune_become"] = False
    book = load(PLAYBOOKS / "tune.yml", extra)
    with options.fleet(hosts) as fleet:
        recap = _run_on(options, book, fleet, names)
        readings = tuning.read_back(fleet, hosts, recap)
    logins = {} if options.check else _new_logins(options, [host for host in hosts if host.name in readings])
    tables = tuning.summarise(recap, readings, logins)
    options.say("")
    options.say(tuning.render(tables).rstrip("\n"))
    data = {"tuning": {name: table.to_json() for name, table in tables.items()}} | recap.to_json()
    return Answer(data, recap.exit_code)


def _new_logins(options: Options, hosts: Sequence[Host]) -> dict[str, tuning.LoginLimit]:
    """Open-file limits of a login made after the tuning: limits.d counts only as seen there."""
    over_ssh = [host for host in hosts if options.inventory.connection(host).kind == "ssh"]
    with options.fleet(over_ssh) as fleet:
        outcomes = fleet.run(lambda session: session.hello["nofile"])
    return {name: tuning.LoginLimit(*outcome.value) for name, outcome in outcomes.items() if outcome.value}


def deploy_server(
    options: Options, port: str = "", bind: str = "", max_connections: str = "", workers: str = ""
) -> Answer:
    """playbooks/deploy-server.yml on group `server`."""
    extra = deploy.variables(
        server_port=port, server_bind=bind, server_max_connections=max_connections, server_workers=workers
    )
    return _on_servers(options, "deploy-server.yml", extra)


def stop_server(options: Options) -> Answer:
    """playbooks/stop-server.yml on group `server`."""
    return _on_servers(options, "stop-server.yml", {})


def _on_servers(options: Options, file: str, extra: dict[str, Any]) -> Answer:
    pattern = options.hosts or "server"
    recap, hosts = _run(options, PLAYBOOKS / file, extra | {"server_hosts": pattern}, None)
    if not hosts:
        raise BadInput(f"the pattern {pattern!r} matches no host")
    return Answer(recap.to_json(), recap.exit_code)


def _run(options: Options, path: Path, extra: dict[str, Any], limit: str | None) -> tuple[Recap, list[Host]]:
    book = load(path, extra)
    hosts = book.hosts(options.inventory, limit)
    with options.fleet(hosts) as fleet:
        return _run_on(options, book, fleet, limit), hosts


def _run_on(options: Options, book: Playbook, fleet: Fleet, limit: str | Sequence[str] | None) -> Recap:
    return book.run(
        fleet,
        options.inventory,
        limit,
        check=options.check,
        diff=options.diff,
        reporter=ConsoleReporter(options.out, diff=options.diff),
        become_password=options.sudo_password,
    )


def read_extra_vars(words: Sequence[str]) -> dict[str, Any]:
    """``-e`` as Ansible reads it: key=value pairs (strings), one JSON object, or @file with YAML or JSON.

    :raises BadInput: naming the word that is none of these.

    >>> read_extra_vars(["a=1 b='x y'", '{"c": [2]}'])
    {'a': '1', 'b': 'x y', 'c': [2]}
    """
    found: dict[str, Any] = {}
    for word in words:
        if word.startswith("@"):
            import yaml

            try:
                values = yaml.safe_load(Path(word[1:]).read_text(encoding="utf-8"))
            except (OSError, yaml.YAMLError) as error:
                raise BadInput(f"--extra-vars {word}: {error}") from None
        elif word.lstrip().startswith("{"):
            try:
                values = json.loads(word)
            except ValueError as error:
                raise BadInput(f"--extra-vars {word!r} is not JSON: {error}") from None
        else:
            try:
                pairs = [part.partition("=") for part in shlex.split(word)]
            except ValueError as error:
                raise BadInput(f"--extra-vars {word!r}: {error}") from None
            if not all(key and equals for key, equals, _ in pairs):
                raise BadInput(f"--extra-vars {word!r} is not key=value, a JSON object or @file")
            values = {key: value for key, _, value in pairs}
        if not isinstance(values, dict):
            raise BadInput(f"--extra-vars {word!r} does not hold a mapping")
        found |= values
    return found
