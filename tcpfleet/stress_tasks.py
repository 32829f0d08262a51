"""The tasks around a stress run: `stress`, `stress-status`, `stop-stress`, and fetching a run's results later.

In: what the user typed. Out: Answers; the run itself is `tcpfleet.stress.Run`.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payload import stress_message, stress_threshold
from tcpfleet import merge, report, runs
from tcpfleet.cli import Answer, Options, number
from tcpfleet.errors import EXIT_INTERRUPTED, EXIT_VERDICT_FAIL, BadInput, HostFailed, worst
from tcpfleet.fleet import Outcome, exit_codes
from tcpfleet.progress import FORMS
from tcpfleet.stress import COMMAND, Request, Run, checked, resolve_targets, spread

if TYPE_CHECKING:
    from tcpfleet.link import Session


@dataclass(frozen=True)
class How:
    """How a load is led, beside what it is.

    :ivar fail_if: conditions under which the verdict is fail.
    :ivar plan: show the plan and take everything back.
    :ivar detach: start it and leave.
    :ivar attach: run id to follow; :ivar repeat: run id whose plan is run again.
    :ivar form: of the progress.
    """

    fail_if: Sequence[str] = ()
    plan: bool = False
    detach: bool = False
    attach: str = ""
    repeat: str = ""
    form: str = ""


MOST_CLIENTS = 1000
LONGEST_VALUE = 120_000  # Linux takes 128 KiB for one argument


def stress(
    options: Options,
    clients: str,
    per_client: str,
    target: str,
    allow_target: bool,
    client_options: Mapping[str, str | bool],
    how: How | None = None,
) -> Answer:
    """Run a load and say what came of it.

    :param client_options: name -> value of stress_client.py's own options, True for a switch; empty values are
        left to it.
    :param how: the rest of what was typed.
    """
    how = how or How()
    if how.form and how.form not in FORMS:
        raise BadInput(f"--progress {how.form!r} is not one of {', '.join(FORMS)}")
    typed: dict[str, object] = {
        "hosts": options.hosts,
        "clients": clients,
        "per-client": per_client,
        "target": target,
    }
    typed = {**typed, "allow-target": allow_target, "fail-if": how.fail_if, **client_options}
    refuse_beside(how, [f"--{name}" for name, value in typed.items() if value])
    if how.attach:
        return attach(options, how)
    if how.repeat:
        run = Run.from_folder(folder_of(how.repeat, "--repeat"), options.inventory)
        run = Run(run.request, run.shares, runs.new_run_id())
    else:
        run = planned(options, clients, per_client, target, allow_target, client_options, how.fail_if)
    runs.check_writable()
    each, count = run.request.per_client, run.request.clients
    where = ", ".join(
        f"{stress_message.bracketed(target.address)}:{target.port}" for target in run.request.targets
    )
    options.say(
        f"run {run.run_id}: {count} clients x {each:,} = {count * each:,} connections to "
        f"{where} from {', '.join(host.name for host in run.client_hosts)}"
    )
    with options.fleet(run.all_hosts) as fleet:
        if options.check or how.plan:
            run.check(fleet)
            for line in plan_words(run):
                options.say(line)
            options.say("check: every client's plan holds; nothing was connected and nothing is left running")
            plan = {"servers": run.server_plans, "clients": run.plans}
            return Answer({"check": True, "run_id": run.run_id, "plan": plan})
        if how.detach:
            run.detach(fleet)
            options.say(f"it runs without this command; inv stress --attach {run.run_id} follows it and reports")
            return Answer({"run_id": run.run_id, "detached": True})
        record = run.execute(fleet, how.form)
    return said(options, run, record)


def refuse_beside(how: How, typed: Sequence[str]) -> None:
    """What would be passed over in silence.

    :param typed: options that describe a load.
    :raises BadInput: there are some beside a run that is described already, or two ways to go about it.
    """
    ways = {"--attach": how.attach, "--repeat": how.repeat, "--plan": how.plan, "--detach": how.detach}
    taken = [name for name, value in ways.items() if value]
    if len(taken) > 1 and (how.attach or (how.plan and how.detach)):
        raise BadInput(f"{' and '.join(taken)} do not go together")
    if typed and (how.attach or how.repeat):
        raise BadInput(f"{taken[0]} takes the run as it was planned, so {typed[0]} does not go with it")


def planned(
    options: Options,
    clients: str,
    per_client: str,
    target: str,
    allow_target: bool,
    client_options: Mapping[str, str | bool],
    fail_if: Sequence[str],
) -> Run:
    """The run that was asked for, not started.

    :raises BadInput: an option that makes no sense.
    """
    try:
        thresholds = tuple(stress_threshold.parse(text).text for text in fail_if)
    except stress_threshold.ThresholdError as error:
        raise BadInput(str(error)) from None
    hosts = options.select("clients")
    count = number("--clients", clients or len(hosts), 1, MOST_CLIENTS)
    each = number("--per-client", per_client or "1000", 1, 10**7)
    where = resolve_targets(options.inventory, target, hosts, allow_outside=allow_target)
    typed = {"--clients": str(count), "--per-client": str(each), "--hosts": options.hosts, "--target": target}
    client_options = dict(client_options) | {"seed": client_options.get("seed") or str(secrets.randbits(32))}
    words = [f"{name} {shlex.quote(value)}" for name, value in typed.items() if value]
    for name, value in client_options.items():
        if value:
            words.append(f"--{name}" if value is True else f"--{name} {shlex.quote(str(value))}")
    words += [f"--fail-if {shlex.quote(text)}" for text in thresholds]
    command = " ".join(["inv stress", *words])
    request = Request(
        clients=count,
        per_client=each,
        targets=where,
        client_options=tuple(
            (f"--{name}", "" if value is True else _shipped(name, str(value)))
            for name, value in client_options.items()
            if value
        ),
        command=command + (" --allow-target" if allow_target else ""),
        thresholds=thresholds,
    )
    return Run(request, spread(count, hosts), runs.new_run_id())


def attach(options: Options, how: How) -> Answer:
    """Follow a run that goes on without its controller, fetch its results and say what came of it."""
    folder = folder_of(how.attach, "--attach")
    if (folder / "run.json").exists():
        raise BadInput(f"run {folder.name} is finished: inv collect-report --run {folder.name} shows it")
    if report.load_refused_plan(folder) is not None:
        raise BadInput(f"the plan of {folder.name} was refused, nothing was started")
    run = Run.from_folder(folder, options.inventory)
    other = runs.holder(folder)
    if other is not None:
        raise BadInput(f"{other} is at work on run {folder.name} here already")
    with runs.hold(folder, COMMAND), options.fleet(run.all_hosts) as fleet:
        record = run.attach(fleet, how.form)
    return said(options, run, record)


def folder_of(run_id: str, option: str) -> Path:
    """The folder of the run that an option names (`latest` is the newest), with its plan.

    :raises BadInput: there is none.
    """
    folder = runs.find(run_id)
    if folder is None or not (folder / "plan.json").exists():
        raise BadInput(f"{option} {run_id}: there is no load of that name")
    return folder


def plan_words(run: Run) -> list[str]:
    """The plan for people: a line per client, and one for the server."""
    lines = []
    for share in run.shares:
        plan = run.plans.get(share.index)
        if plan is None:
            lines.append(f"  {share.host.name}, client {share.index}: it told no plan")
            continue
        workers = plan["workers"]
        memory, nofile = plan["host"]["memory_available"], plan["nofile"]
        lines.append(
            f"  {share.host.name}, client {share.index}: {plan['connections']:,} connections from "
            f"{', '.join(plan['sources'][:4])}{' ...' if len(plan['sources']) > 4 else ''} ports {plan['ports']} "
            f"({plan['usable_ports']:,} usable, {plan['busy_ports']:,} busy), {len(workers)} workers of up to "
            f"{max((worker['connections'] for worker in workers), default=0):,} connections (open files: soft "
            f"{nofile['soft']:,}, hard {nofile['hard']:,}, reachable {nofile['reachable']:,})"
            + ("" if memory is None else f", {memory / 2**20:,.0f} MiB of memory free")
        )
    for name, facts in run.server_plans.items():
        known = [f"{key.replace('_', ' ')} {value}" for key, value in facts.items() if value is not None]
        lines.append(f"  {name}, server: {', '.join(known)}")
    return lines


def said(options: Options, run: Run, record: dict[str, Any]) -> Answer:
    """What came of a run, for people and as an answer."""
    options.say(merge.summary(record))
    options.say(f"run.json: {shown(run.folder)}/run.json   report: inv collect-report")
    codes = exit_codes(run.outcomes)
    if record["verdict"] != "pass":
        codes.append(EXIT_VERDICT_FAIL)
    if run.interrupted:
        codes.append(EXIT_INTERRUPTED)
    return Answer(record, worst(codes))


def _shipped(name: str, value: str) -> str:
    """An option's value as the client hosts need it: a file of this machine travels as its content.

    :raises BadInput: the file cannot be read, or is too long for a command line.
    """
    is_message = name in ("message", "first-message") and value.startswith("@")
    if not is_message and name != "tls-ca":
        return value
    path = Path(value[1:] if is_message else value)
    try:
        content = stress_message.as_hex(path.read_bytes()) if is_message else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--{name}: cannot read {path}: {error}") from None
    if len(content) > LONGEST_VALUE:
        raise BadInput(f"--{name}: {path} is too long to be sent to the clients: about 60,000 bytes can be")
    return content


def fetch_later(options: Options, folder: Path) -> dict[str, Any]:
    """Finish a run whose controller went away before it could: fetch its results, write its run.json.

    :raises HostFailed: its clients are still at work.
    """
    run = Run.from_folder(folder, options.inventory)
    with options.fleet(run.all_hosts) as fleet:
        busy = run.still_running(fleet)
        if busy:
            raise HostFailed(
                f"run {run.run_id} is still going on {', '.join(busy)}: wait for it (inv stress-status), "
                "or end it with inv stop-stress"
            )
        return run.finish(fleet)


def stop(options: Options) -> Answer:
    """Stop every stress client of every run on the hosts; graceful, so each writes what it reached."""
    hosts = options.select("clients")

    def stop_all(session: Session) -> int:
        stopped = 0
        for run_id, clients in checked(session.call("stress", {"action": "list"}))["runs"].items():
            if options.check:
                stopped += sum(1 for client in clients if client["alive"])
                continue
            got = checked(session.call("stress", {"action": "stop", "run_id": run_id, "timeout": 15}))
            stopped += got["stopped"]
        return stopped

    def say(outcome: Outcome[int]) -> None:
        if outcome.status != "ok":
            options.say(f"{outcome.host.name}: {outcome.status}: {outcome.error}")
        else:
            did = "would stop" if options.check else "stopped"
            said = f"{did} {outcome.value} clients" if outcome.value else "none was running"
            options.say(f"{outcome.host.name}: {said}")

    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(stop_all, on_outcome=say)
    stopped = {name: one.value for name, one in outcomes.items()}
    return Answer({"stopped": stopped}, worst(exit_codes(outcomes)), options.sum_up(outcomes))


def status(options: Options) -> Answer:
    """What stress clients of the login's user are doing on the hosts, whichever controller started them."""
    hosts = options.select("clients")

    def look(session: Session) -> dict[str, Any]:
        runs_here: dict[str, Any] = checked(session.call("stress", {"action": "list"}))["runs"]
        return runs_here

    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(look)
    for outcome in outcomes.values():
        name = outcome.host.name
        if outcome.status != "ok":
            options.say(f"{name}: {outcome.status}: {outcome.error}")
        elif not outcome.value:
            options.say(f"{name}: no run")
        for run_id, clients in (outcome.value or {}).items():
            for client in clients:
                counts = client.get("connections", {})
                options.say(
                    f"{name}: run {run_id} client {client['index']}: {client['state']}, "
                    f"{counts.get('verified', 0):,} of {counts.get('requested', 0):,} verified, "
                    f"{counts.get('open', 0):,} open, {counts.get('failed', 0):,} failed "
                    f"{client.get('message', '')}".rstrip()
                )
    found = {name: one.value for name, one in outcomes.items()}
    return Answer({"runs": found}, worst(exit_codes(outcomes)), options.sum_up(outcomes))


def shown(path: Path | None) -> str:
    """A path as short as it can be typed from here."""
    if path is None:
        return ""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
