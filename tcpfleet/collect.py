"""`inv collect-report`: look at every host of a run once more and write its report.

In: a run's folder (the newest by default), or none at all. Out: report.html, report.md and report.json in it, made
of the observations taken during the run and of the present one. A host that does not answer is a visible gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcpfleet import deploy, report, report_render, report_run, runs, stress, stress_tasks
from tcpfleet.charts import number as figure
from tcpfleet.cli import Answer, Options, number
from tcpfleet.errors import BadInput, HostFailed, worst
from tcpfleet.fleet import exit_codes
from tcpfleet.report_data import View, dig, number_at, rows_at

if TYPE_CHECKING:
    from tcpfleet.inventory import Host
    from tcpfleet.link import Session


COMMAND = "inv collect-report"


def collect_report(options: Options, run_id: str, port: str, lang: str = "en") -> Answer:
    """
    :param run_id: empty for the newest run; with no run at all the report has the hosts' state and no verdict.
    :param lang: of report.html and report.md.
    """
    report_render.check_language(lang)
    wanted = number("--port", port, 1, 65535) if port else None
    folder = runs.find(run_id or None)
    runs.check_writable(folder)
    if folder is None:
        return _collect(options, None, wanted, lang)
    other = runs.holder(folder)
    if other == stress.COMMAND:
        raise HostFailed(f"run {folder.name} is still going on, led by {other} here: wait for it to end")
    if other is not None:
        options.say(f"{other} is at work on {folder.name}: waiting for it")
    with runs.hold(folder, COMMAND):
        return _collect(options, folder, wanted, lang)


def _collect(options: Options, folder: Path | None, wanted: int | None, lang: str) -> Answer:
    record = _record(options, folder) if folder is not None else None
    refused = report.load_refused_plan(folder) if folder is not None and record is None else None
    names = View(record or refused, {}).hosts  # of the run
    hosts = _hosts(options, names)

    def look(session: Session) -> dict[str, Any]:
        return deploy.observe(session, wanted or port_on(record or refused, session.host.name))

    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(look, at_once=True)
    if folder is None:
        folder = runs.create(runs.new_run_id())
        options.say("there is no run yet: the report shows the hosts as they are, without a verdict")
    for name in () if options.hosts else _not_in(options, names):
        gap = {"status": "unreachable", "error": "this inventory has no such host"}
        report.save_observation(folder, "present", name, gap)
        options.say(f"{name}: {gap['error']}")
    for name, outcome in outcomes.items():
        seen = outcome.value or {"status": outcome.status, "error": str(outcome.error)}
        report.save_observation(folder, "present", name, seen)
        if seen["status"] != "ok":
            options.say(f"{name}: {seen['status']}: {seen['error']}")
    files = report.write_reports(folder, lang)
    if record is not None:
        verified, requested = (
            figure(number_at(record, "connections", name)) for name in ("verified", "requested")
        )
        options.say(
            f"run {folder.name}: verdict {dig(record, 'verdict')}, {verified} of {requested} connections verified"
        )
        wall = dig(record, "wall")
        if wall:
            options.say(f"wall: {dig(wall, 'name')}; {dig(wall, 'fix')}")
        elif dig(record, "verdict") == "fail" and (why := report_run.fail_reason(record)):
            options.say(why)
    if refused is not None:
        options.say(f"run {folder.name}: {refused['refused']}")
    for file in files:
        options.say(f"  {stress_tasks.shown(file)}")
    data = {
        "run_id": folder.name,
        "verdict": dig(record, "verdict"),
        "files": [str(file) for file in files],
        "hosts": {name: (one.value or {"status": one.status})["status"] for name, one in outcomes.items()},
    }
    return Answer(data, worst(exit_codes(outcomes)))


def _record(options: Options, folder: Path) -> dict[str, Any] | None:
    """The run's record, fetched now where the controller of the run went away before it could."""
    if report.load_refused_plan(folder) is not None:
        return None
    planned = (folder / "plan.json").exists()
    record = report.load_run(folder)
    if record is None:
        return stress_tasks.fetch_later(options, folder) if planned else None
    lost = [str(host.get("name")) for host in rows_at(record, "hosts") if host.get("lost")]
    if not lost or not planned:
        return record
    options.say(f"{', '.join(lost)} had not answered at the end of the run: trying again")
    try:
        return stress_tasks.fetch_later(options, folder)
    except BadInput as error:
        options.say(f"not fetched: {error}")  # what is here is reported all the same
        return record


def port_on(record: Mapping[str, Any] | None, host: str) -> int:
    """The port to look at on a host: its own as a target of the run, else that of the first target, else 1883."""
    targets = [*rows_at(record, "targets"), dig(record, "target")]
    mine = [row for row in targets if dig(row, "host") == host]
    ports = (number_at(row, "port") for row in (*mine, *targets))
    return next((int(port) for port in ports if port and 0 < port < 65536), stress.DEFAULT_PORT)


def _hosts(options: Options, names: Sequence[str]) -> list[Host]:
    """Where to look: --hosts, else the hosts of the run, else all."""
    if options.hosts or not names:
        return options.select("all")
    missing = _not_in(options, names)
    if len(missing) == len(names):
        raise BadInput(f"this inventory has none of the hosts of the run ({', '.join(names)})")
    return [options.inventory.hosts[name] for name in names if name not in missing]


def _not_in(options: Options, names: Sequence[str]) -> list[str]:
    """Hosts of the run that this inventory has not: gaps in the report."""
    return [name for name in names if name not in options.inventory.hosts]
