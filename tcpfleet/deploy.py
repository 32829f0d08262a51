"""The echo server on the hosts: deploy, status, log, reload, and looking at it while a load runs.

`inv deploy-server` and `inv stop-server` are playbooks (playbooks/deploy-server.yml, stop-server.yml); this module
chooses their variables. The server's own word, `echo_server.py status`, is what all else is built on.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from tcpfleet.answers import SERVER_STATUS, misfit
from tcpfleet.cli import Answer, Options, number
from tcpfleet.errors import BadInput, HostFailed, worst
from tcpfleet.fleet import Outcome, exit_codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcpfleet.link import Session

# Where playbooks/deploy-server.yml puts things unless the inventory says otherwise under these names.
DEFAULTS = {
    "server_dir": "/opt/tcpfleet",
    "server_pid_file": "/run/tcpfleet-echo.pid",
    "server_log_file": "/var/log/tcpfleet-echo.log",
}
NOT_RUNNING = 3  # exit status of `echo_server.py status`


def place(session: Session, name: str) -> str:
    """A path of the server on this host: the inventory's, or the default."""
    return str(session.host.vars.get(name, DEFAULTS[name]))


def observe(session: Session, port: int) -> dict[str, Any]:
    """One host's state as `report.save_observation` takes it; a failure is part of the picture, not an end."""
    arguments = {
        "port": port,
        "pid_file": place(session, "server_pid_file"),
        "log_file": place(session, "server_log_file"),
        "log_lines": 50,
        "server_program": _script(session),
    }
    result = session.call("observe", arguments, become=session.become)
    if result.get("failed"):
        return {"status": "failed", "error": str(result.get("msg"))}
    return {"status": "ok", "observation": result["observation"], "raw": result["raw"]}


def _script(session: Session) -> str:
    return f"{place(session, 'server_dir')}/echo_server.py"


def _program(session: Session, command: str) -> list[str]:
    """The argv of a command about the server that runs on this host."""
    python = [session.hello["executable"], "-E", "-s", "-S"]
    return [*python, _script(session), command, "--pid-file", place(session, "server_pid_file")]


def server_status(session: Session) -> dict[str, Any]:
    """`echo_server.py status` of a host: its JSON, or {"running": False} where none runs or none is deployed.

    :raises HostFailed: the program is there and cannot say.
    """
    program = _script(session)
    there = session.call("stat", {"path": program}, become=session.become)
    if not there.get("failed") and not there["stat"]["exists"]:
        return {"running": False, "reason": f"not deployed: there is no {program}"}
    result = session.call("command", {"argv": _program(session, "status")}, become=session.become)
    if result.get("rc") == NOT_RUNNING:
        return {"running": False, "reason": "not running"}
    return _parsed(str(result.get("stdout") or ""), result.get("stderr") or result.get("msg") or "nothing")


def _parsed(text: str, otherwise: str) -> dict[str, Any]:
    """:raises HostFailed: it is not the status of a server that runs."""
    try:
        status: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        raise HostFailed(f"echo_server.py status said: {otherwise}") from None
    wrong = misfit(SERVER_STATUS, status)
    if wrong or not status["running"]:
        raise HostFailed(
            f"echo_server.py status said nonsense: {wrong or 'a server that does not run'}; "
            "is it of another version? deploy it again"
        )
    return status


def server_state(session: Session, address: str, port: int) -> dict[str, Any]:
    """What a load needs to know of a server: does anything listen, and what is our server's capacity.

    :returns: {"listening": bool, "capacity": connections or None when the listener is not our server}.
    """
    reached = session.call("wait_for", {"host": address, "port": port, "timeout": 1, "state": "started"})
    state: dict[str, Any] = {"listening": not reached.get("failed"), "capacity": None}
    status = server_status(session)
    if status.get("running") and any(place.endswith(f":{port}") for place in status.get("listening", [])):
        state["capacity"] = status["capacity"]
    return state


def status_task(options: Options) -> Answer:
    """A line per server, and a table of its workers."""
    hosts = options.select("server")
    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(server_status, on_outcome=lambda outcome: _say_status(options, outcome))
    codes = exit_codes(outcomes)
    if any(outcome.value and not outcome.value["running"] for outcome in outcomes.values()):
        codes.append(HostFailed.exit_code)
    data = {"servers": {n: o.value or {"error": o.error} for n, o in outcomes.items()}}
    return Answer(data, worst(codes), options.sum_up(outcomes))


def _say_status(options: Options, outcome: Outcome[dict[str, Any]]) -> None:
    name, status = outcome.host.name, outcome.value
    if status is None:
        options.say(f"{name}: {outcome.status}: {outcome.error}")
    elif not status["running"]:
        options.say(f"{name}: {status['reason']}")
    else:
        options.say(
            f"{name}: running since {status['started']} as pid {status['pid']}, listens on "
            f"{', '.join(status['listening'])}; {status['connections']:,} connections of {status['capacity']:,}, "
            f"{status['accepted']:,} accepted; nofile {status['nofile']:,}; version {status['version']}"
        )
        for line in worker_table(status["workers"]):
            options.say(f"  {line}")


def worker_table(workers: list[dict[str, Any]]) -> list[str]:
    """The workers of a status as lines of a table, the heading first.

    >>> row = {"pid": 7, "connections": 1500, "limit": 2000, "accepted": 1501, "echoes": 9, "bytes": 2048}
    >>> row |= {"backpressured": 0, "full": 1, "leaving": 0, "errors_by_errno": {"ECONNRESET": 2}}
    >>> print("\\n".join(worker_table([row])))
    worker  connections  limit  accepted  echoes  bytes  slow readers  state  errors
         7        1,500  2,000     1,501       9  2,048             0  full   ECONNRESET 2
    """
    head = ["worker", "connections", "limit", "accepted", "echoes", "bytes", "slow readers", "state", "errors"]
    rows = [head]
    for w in workers:
        state = "leaving" if w.get("leaving") else "full" if w["full"] else "-" if w["pid"] else "starting"
        errors = ", ".join(f"{name} {count:,}" for name, count in w.get("errors_by_errno", {}).items()) or "-"
        counts = [w[key] for key in ("connections", "limit", "accepted", "echoes", "bytes", "backpressured")]
        rows.append([str(w["pid"]), *(f"{count:,}" for count in counts), state, errors])
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    texts = ("state", "errors")
    return [
        "  ".join(
            f"{cell:<{width}}" if name in texts else f"{cell:>{width}}"
            for name, cell, width in zip(head, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def log_task(options: Options, lines: str, *, follow: bool) -> Answer:
    """The end of each server's log and, with `follow`, what comes until Ctrl-C; each line after its host's name.

    :param lines: how many of the last lines, 0 to 10000.
    :raises BadInput: what is no such number; --follow with --json, which has one object at the end.
    """
    if follow and options.json:
        raise BadInput("--follow goes on until it is interrupted, --json prints one object at the end: choose one")
    wanted = number("--lines", lines, 0, 10000)
    hosts = options.select("server")
    width = max(len(host.name) for host in hosts)

    def show(news: tuple[str, list[str]]) -> None:
        for line in news[1]:
            options.say(f"{news[0]:{width}}  {line}")

    def read(session: Session, tell: Callable[[tuple[str, list[str]]], None]) -> list[str]:
        name = session.host.name
        result = session.call(
            "follow",
            {"path": place(session, "server_log_file"), "lines": wanted, "follow": follow},
            become=session.become,
            on_progress=lambda data: tell((name, data["lines"])),
        )
        if result.get("failed"):
            raise HostFailed(str(result.get("msg")))
        if not follow:
            tell((name, result["lines"]))
        return list(result["lines"])

    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(
            read, on_news=show, on_outcome=lambda outcome: _say_error(options, outcome), at_once=follow
        )
    data = {n: {"lines": o.value} if o.error is None else {"error": o.error} for n, o in outcomes.items()}
    return Answer({"servers": data}, worst(exit_codes(outcomes)), options.sum_up(outcomes))


def reload_task(options: Options) -> Answer:
    """Each server executes the files that are on its host now; connections stay."""
    hosts = options.select("server")
    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(
            partial(_reload, check=options.check),
            on_outcome=lambda outcome: _say_error(options, outcome, outcome.value),
        )
    data = {
        n: {"reloaded": not options.check, "message": o.value}
        if o.error is None
        else {"reloaded": False, "error": o.error}
        for n, o in outcomes.items()
    }
    return Answer({"servers": data}, worst(exit_codes(outcomes)), options.sum_up(outcomes))


def _reload(session: Session, *, check: bool) -> str:
    state = server_status(session)
    if not state["running"]:
        raise HostFailed(str(state["reason"]))
    if check:
        return f"pid {state['pid']} would be reloaded, now version {state['version']}"
    result = session.call("command", {"argv": _program(session, "reload")}, become=session.become)
    if result.get("failed") or result.get("rc"):
        said = str(result.get("stderr") or result.get("msg")).strip().splitlines()
        raise HostFailed(said[-1].removeprefix("echo_server.py: ") if said else "it does not say why")
    return str(result.get("stdout") or "")


def _say_error(options: Options, outcome: Outcome[Any], otherwise: str | None = None) -> None:
    text = f"{outcome.status}: {outcome.error}" if outcome.error is not None else otherwise
    if text is not None:
        options.say(f"{outcome.host.name}: {text}")


def variables(**asked: str) -> dict[str, Any]:
    """--port and the like as variables of the playbook; what was not asked keeps the playbook's own default.

    :raises BadInput: a value that the option cannot have.
    """
    limits = {"server_port": (1, 65535), "server_max_connections": (1, 10**8), "server_workers": (1, 512)}
    choices = {"server_mode": ("echo", "http"), "server_manager": ("auto", "systemd", "daemon")}
    found: dict[str, Any] = {}
    for name, value in asked.items():
        option = "--" + name.removeprefix("server_").replace("_", "-")
        if value and value not in choices.get(name, (value,)):
            raise BadInput(f"{option} {value!r} is none of {', '.join(choices[name])}")
        if not value or value == "auto":
            continue
        found[name] = number(option, value, *limits[name]) if name in limits else value
    return found
