"""`inv collect-report`: look at every host of a run once more and write its report.

In: a run's folder (the newest by default), or none at all. Out: report.html, report.md and report.json in it, made
of the observations taken during the run and of the present one. A host that does not answer is a visible gap.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcpfleet import deploy, report, report_render, runs, stress_tasks
from tcpfleet.cli import Answer, Options, number
from tcpfleet.errors import BadInput, worst
from tcpfleet.fleet import exit_codes
from tcpfleet.stress import DEFAULT_PORT

if TYPE_CHECKING:
    from tcpfleet.inventory import Host


def collect_report(options: Options, run_id: str, port: str, lang: str = "en") -> Answer:
    """
    :param run_id: empty for the newest run; with no run at all the report has the hosts' state and no verdict.
    :param lang: of report.html and report.md.
    """
    report_render.check_language(lang)
    folder = runs.find(run_id or None)
    wanted = number("--port", port, 1, 65535) if port else None
    record: dict[str, Any] | None = None
    if folder is not None:
        record = _record(options, folder)
        wanted = wanted or (record["target"]["port"] if record else None)
    refused = report.load_refused_plan(folder) if folder is not None and record is None else None
    hosts = _hosts(options, record or refused)
    if folder is None:
        folder = runs.create(runs.new_run_id())
        options.say("there is no run yet: the report shows the hosts as they are, without a verdict")
    target = folder
    listen = wanted or DEFAULT_PORT

    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(lambda session: deploy.observe(session, listen), at_once=True)
    for name in _not_in(options, record or refused):
        gap = {"status": "unreachable", "error": "this inventory has no such host"}
        report.save_observation(target, "present", name, gap)
        options.say(f"{name}: {gap['error']}")
    for name, outcome in outcomes.items():
        seen = outcome.value or {"status": outcome.status, "error": str(outcome.error)}
        report.save_observation(target, "present", name, seen)
        if seen["status"] != "ok":
            options.say(f"{name}: {seen['status']}: {seen['error']}")
    files = report.write_reports(target, lang)
    if record is not None:
        counts = record["connections"]
        options.say(
            f"run {record['run_id']}: verdict {record['verdict']}, {counts['verified']:,} of "
            f"{counts['requested']:,} connections verified"
        )
        if record["wall"]:
            options.say(f"wall: {record['wall']['name']}; {record['wall']['fix']}")
    if refused is not None:
        options.say(f"run {target.name}: {refused['refused']}")
    for file in files:
        options.say(f"  {stress_tasks.shown(file)}")
    data = {
        "run_id": target.name,
        "verdict": record["verdict"] if record else None,
        "files": [str(file) for file in files],
        "hosts": {name: (one.value or {"status": one.status})["status"] for name, one in outcomes.items()},
    }
    return Answer(data, worst(exit_codes(outcomes)))


def _record(options: Options, folder: Path) -> dict[str, Any] | None:
    """The run's record, fetched now where the controller of the run went away before it could."""
    if report.load_refused_plan(folder) is not None:
        return None
    unfinished = (folder / "plan.json").exists() and not (folder / "run.json").exists()
    if (folder / "run.json").exists():
        record = runs.read_run(folder)
        lost = [host["name"] for host in record["hosts"] if host.get("lost")]
        if not lost or not (folder / "plan.json").exists():
            return record
        options.say(f"{', '.join(lost)} had not answered at the end of the run: trying again")
        unfinished = True
    return stress_tasks.fetch_later(options, folder) if unfinished else None


def _hosts(options: Options, record: dict[str, Any] | None) -> list[Host]:
    if options.hosts or record is None:
        return options.select("all")
    inventory = options.inventory
    if len(_not_in(options, record)) == len(record["hosts"]):
        names = ", ".join(row["name"] for row in record["hosts"])
        raise BadInput(f"this inventory has none of the hosts of run {record['run_id']} ({names})")
    return [inventory.hosts[row["name"]] for row in record["hosts"] if row["name"] in inventory.hosts]


def _not_in(options: Options, record: dict[str, Any] | None) -> list[str]:
    """Hosts of the run that this inventory has not: gaps in the report."""
    rows = record["hosts"] if record and not options.hosts else []
    return [row["name"] for row in rows if row["name"] not in options.inventory.hosts]
