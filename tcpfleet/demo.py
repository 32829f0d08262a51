"""`inv demo`: the whole story at a small size: lab, tune, deploy, stress, report.

What it booted or started is taken down again; a lab that was up before stays up, and tuned.

On the lab if it can be booted here; else on this machine over a local link, where tuning is only checked: a
demo does not change someone's machine.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from tcpfleet import collect, deploy, lab, lab_tasks, plays, runs, stress_tasks, tune_tasks
from tcpfleet.cli import COMMON, ROOT, Answer, Options
from tcpfleet.errors import worst

LAB_LOAD = ("4", "2500")  # clients, connections of each: seconds, not minutes, on two cores
LOCAL_LOAD = ("2", "1000")


def run(options: Options, *, local: bool) -> Answer:
    """Tell the story; the answer is the run's record, its code the worst of all steps."""
    reason = "--local was given" if local else _why_no_lab(options)
    if reason is None:
        answer = _on_lab(options)
    else:
        options.say(f"demo on this machine over a local link ({reason}); tuning is only checked")
        answer = _on_local(options)
    if "run_id" in answer.data:
        options.say(f"\nthe report: {runs.REPORTS / answer.data['run_id'] / 'report.html'}")
    return answer


def _why_no_lab(options: Options) -> str | None:
    reason = lab.why_not()
    owner = lab.status().owner
    if reason is None and owner is not None and owner != ROOT:
        reason = f"a lab of {owner} is up on this machine"
    return reason


def _with(options: Options, **changes: object) -> Options:
    """The same command-line options, as another task would see them."""
    values = {name: default for name, (default, _) in COMMON.items()}
    return Options(values | {"inventory": str(options.inventory_path), "json": options.json} | changes)


def _on_lab(options: Options) -> Answer:
    was_up = lab.status().owner is not None
    try:
        options.say("$ inv lab-up")
        lab_tasks.up(_with(options))
        # In a lab that is being used, a server that runs is used and left; only one of the demo's own is stopped.
        served = was_up and deploy.status_task(_with(options)).code == 0
        before = [("inv tune --hosts lab", lambda: tune_tasks.tune(_with(options, hosts="lab")))]
        if not served:
            before.append(("inv deploy-server", lambda: plays.deploy_server(_with(options))))
        stop = [("inv stop-server", lambda: plays.stop_server(_with(options)))]
        return _story(options, before, clients=LAB_LOAD, hosts="", after=stop if was_up and not served else [])
    finally:
        if not was_up:
            options.say("$ inv lab-down")
            lab_tasks.down(_with(options), anyones=False)


def _on_local(options: Options) -> Answer:
    with tempfile.TemporaryDirectory(prefix="tcpfleet-demo-") as scratch:
        # An inventory of its own keeps the server's files out of the system's folders, so that nobody needs root.
        inventory = Path(scratch) / "local.yml"
        inventory.write_text(
            "workstation:\n  hosts:\n    local:\n      ansible_connection: local\n      server_become: false\n"
            f"      server_dir: {scratch}/server\n      server_pid_file: {scratch}/echo.pid\n"
            f"      server_log_file: {scratch}/echo.log\n"
        )
        here = {"hosts": "local", "inventory": str(inventory)}
        server = _free_port()

        def deploy() -> Answer:
            return plays.deploy_server(_with(options, **here), str(server), "127.0.0.1", "5000")

        return _story(
            options,
            [
                (
                    "inv tune --hosts local --check",
                    lambda: tune_tasks.tune(_with(options, **here, check=True), become=os.geteuid() == 0),
                ),
                (f"inv deploy-server --hosts local --port {server} --bind 127.0.0.1", deploy),
            ],
            clients=LOCAL_LOAD,
            hosts="local",
            target=f"local:{server}",
            inventory=str(inventory),
            after=[("inv stop-server --hosts local", lambda: plays.stop_server(_with(options, **here)))],
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _story(
    options: Options,
    before: list[tuple[str, Callable[[], Answer]]],
    *,
    clients: tuple[str, str],
    hosts: str,
    after: list[tuple[str, Callable[[], Answer]]],
    target: str = "",
    inventory: str = "",
) -> Answer:
    shared = {"hosts": hosts} | ({"inventory": inventory} if inventory else {})
    codes = []
    try:
        for command, step in before:
            options.say(f"\n$ {command}")
            codes.append(step().code)
            if codes[-1]:
                return Answer({"failed": command}, worst(codes))
        options.say(
            f"\n$ inv stress --clients {clients[0]} --per-client {clients[1]} --hold 5"
            + (f" --hosts {hosts} --target {target}" if hosts else "")
        )
        load = stress_tasks.stress(_with(options, **shared), *clients, target, False, {"hold": "5"})
        codes.append(load.code)
        options.say("\n$ inv collect-report")
        codes.append(collect.collect_report(_with(options, **shared), "", "").code)
        return Answer(load.data, worst(codes))
    finally:
        for command, step in after:
            options.say(f"\n$ {command}")
            if step().code:
                options.say(f"warning: `{command}` failed; see above")
