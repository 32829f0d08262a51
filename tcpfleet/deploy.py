"""The echo server on the hosts: deploy, status, stop, and looking at it while a load runs.

`inv deploy-server` and `inv stop-server` are playbooks (playbooks/deploy-server.yml, stop-server.yml); this module
chooses their variables. The server's own word, `echo_server.py status`, is what all else is built on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tcpfleet.cli import Answer, Options, number
from tcpfleet.errors import HostFailed, worst
from tcpfleet.fleet import Outcome, exit_codes

if TYPE_CHECKING:
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
    }
    result = session.call("observe", arguments, become=session.become)
    if result.get("failed"):
        return {"status": "failed", "error": str(result.get("msg"))}
    return {"status": "ok", "observation": result["observation"], "raw": result["raw"]}


def server_status(session: Session) -> dict[str, Any]:
    """`echo_server.py status` of a host: its JSON, or {"running": False} where none runs or none is deployed.

    :raises HostFailed: the program is there and cannot say.
    """
    program = f"{place(session, 'server_dir')}/echo_server.py"
    there = session.call("stat", {"path": program}, become=session.become)
    if not there.get("failed") and not there["stat"]["exists"]:
        return {"running": False, "reason": f"not deployed: there is no {program}"}
    argv = [session.hello["executable"], "-E", "-s", "-S", program, "status"]
    argv += ["--pid-file", place(session, "server_pid_file")]
    result = session.call("command", {"argv": argv}, become=session.become)
    if result.get("rc") == NOT_RUNNING:
        return {"running": False, "reason": "not running"}
    try:
        status: dict[str, Any] = json.loads(result.get("stdout") or "")
    except ValueError:
        said = result.get("stderr") or result.get("msg") or "nothing"
        raise HostFailed(f"echo_server.py status said: {said}") from None
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
    return Answer({"servers": {n: o.value or {"error": o.error} for n, o in outcomes.items()}}, worst(codes))


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
        for worker in status["workers"]:
            options.say(
                f"  worker {worker['pid']}: {worker['connections']:,} of {worker['limit']:,} connections, "
                f"{worker['accepted']:,} accepted, {worker['echoes']:,} echoes"
            )


def variables(**asked: str) -> dict[str, Any]:
    """--port and the like as variables of the playbook; what was not asked keeps the playbook's own default."""
    limits = {"server_port": (1, 65535), "server_max_connections": (1, 10**8), "server_workers": (1, 4096)}
    found: dict[str, Any] = {}
    for name, value in asked.items():
        if not value or value == "auto":
            continue
        option = "--" + name.removeprefix("server_").replace("_", "-")
        found[name] = number(option, value, *limits[name]) if name in limits else value
    return found
