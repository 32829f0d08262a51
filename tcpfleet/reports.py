"""`inv reports` and `inv compare-reports`: the runs that are kept in reports/, one after another or side by side.

In: run ids, or paths of runs' folders. Out: a list, or compare.html, compare.md and compare.json in
reports/compare-A-B/. A folder that is damaged is shown as such.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tcpfleet import compare, report, report_render, report_run, runs, stress, stress_tasks
from tcpfleet.cli import Answer, Options, strict_json
from tcpfleet.errors import BadInput, LocatedError
from tcpfleet.report_charts import Pair
from tcpfleet.report_data import dig, number_at
from tcpfleet.secret import redacted

COMMAND = "inv compare-reports"
COLUMNS = ("run", "started", "verdict", "verified / requested", "wall", "duration", "size")


def list_runs(options: Options) -> Answer:
    """Every run in reports/, newest first."""
    latest = runs.find(None)
    rows = [_row(folder, folder == latest) for folder in runs.folders()]
    if not rows:
        options.say(f"there is no run in {runs.REPORTS}: inv stress makes one")
    else:
        lines = [COLUMNS, *(_cells(row) for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
        for line in lines:
            options.say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return Answer({"runs": rows})


def _row(folder: Path, latest: bool) -> dict[str, Any]:
    """One run. verdict: pass, fail, refused, running (a command here leads it), unfinished (no run.json yet), none
    (hosts were looked at without a run), damaged; `note` says what is wrong."""
    row: dict[str, Any] = {
        "run_id": folder.name,
        "latest": latest,
        "started": None,
        "verdict": "none",
        "note": None,
    }
    row |= {"verified": None, "requested": None, "wall": None, "seconds": None, "path": str(folder)}
    row["bytes"] = _bytes(folder)
    try:
        run = report.load_run(folder)
        plan = runs.read_json(folder / "plan.json") if (folder / "plan.json").exists() else None
    except (BadInput, OSError) as error:
        note = error.message if isinstance(error, LocatedError) else str(error)
        return row | {"verdict": "damaged", "note": note}
    started = dig(run, "started") or dig(plan, "started")
    row["started"] = str(started) if started else None
    if run is None:
        refused = dig(plan, "refused")
        if plan is not None:
            going_on = runs.holder(folder) == stress.COMMAND
            row["verdict"], row["note"] = ("running" if going_on else "unfinished"), None
            if refused:
                row["verdict"], row["note"] = "refused", str(refused)
            row["requested"] = compare.Loaded(folder.name, None, {}, plan).requested
        return row
    status = run.get("verdict")
    row["verdict"] = status if status in ("pass", "fail") else "none"
    row["wall"] = dig(run, "wall", "name")
    if status == "fail" and not row["wall"]:
        row["note"] = report_run.fail_reason(run)
    row["verified"], row["requested"] = (number_at(run, "connections", name) for name in ("verified", "requested"))
    row["seconds"] = _seconds(started, run.get("ended"))
    return row


def _bytes(folder: Path) -> int:
    """What the files of a folder hold, links not followed; a run that is going on may change them."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found += os.lstat(os.path.join(place, name)).st_size
    return found


def _seconds(started: Any, ended: Any) -> float | None:
    try:
        first, last = (
            datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")) for text in (started, ended)
        )
        return round((last - first).total_seconds(), 1)
    except (ValueError, TypeError):
        return None


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def plain(value: Any) -> str:
        return "-" if value is None else " ".join(report_render.shown(value).split())

    counts = [f"{row[name]:,.0f}" if row[name] is not None else "-" for name in ("verified", "requested")]
    seconds = row["seconds"]
    wall = plain(row["wall"] or row["note"]).removeprefix(f"{stress.REFUSED}: ")  # the verdict says it
    return (
        plain(row["run_id"]) + (" (latest)" if row["latest"] else ""),
        plain(row["started"])[:19].replace("T", " "),
        plain(row["verdict"]),
        " / ".join(counts),
        wall if len(wall) <= 70 else wall[:67] + "...",
        "-" if seconds is None else f"{seconds:,.1f} s",
        f"{row['bytes'] / 2**20:.1f} MiB" if row["bytes"] >= 2**20 else f"{row['bytes'] / 2**10:.1f} KiB",
    )


def compare_reports(options: Options, a: str, b: str, lang: str = "en") -> Answer:
    """
    :param a: one run or several with commas: run ids, `latest`, or paths of runs' folders; `b`: the other side.
    :param lang: of compare.html and compare.md.
    :raises BadInput: a run that is not there or is damaged.
    """
    report_render.check_language(lang)
    sides = [[_load(_folder(name.strip())) for name in side.split(",")] for side in (a, b)]
    compared = compare.compare(*sides)
    names = [side[0].run_id + (f"x{len(side)}" if len(side) > 1 else "") for side in sides]
    target = runs.REPORTS / report.safe_name(f"compare-{names[0]}-{names[1]}")
    runs.check_writable()
    texts = {
        "compare.html": report_render.render_compare_html(compared, Pair(*map(_drawn, sides)), lang),
        "compare.md": report_render.render_compare_markdown(compared, lang),
        "compare.json": strict_json(redacted(compared), 1) + "\n",
    }
    target.mkdir(exist_ok=True)
    with runs.hold(target, COMMAND):
        files = [report.write_text(target / name, text) for name, text in texts.items()]
    for sentence in [*compared["answer"], *compared["notes"]]:
        options.say(report_render.shown(sentence))
    for row in compared["results"]:
        if row["status"] in compare.CLAIMS:
            options.say(f"  {report_render.shown(compare.change(row))}")
    for file in files:
        options.say(f"  {stress_tasks.shown(file)}")
    return Answer({"files": [str(file) for file in files]} | compared)


def _folder(name: str) -> Path:
    path = Path(name)
    if "/" in name or (path / "run.json").exists() or (path / "plan.json").exists():
        if not path.is_dir():
            raise BadInput(f"there is no folder {name}")
        return path.resolve()
    found = runs.find(name) if name else None
    if found is None:
        raise BadInput(f"{name!r} is no run: give run ids (inv reports lists them), latest, or folders")
    return found


def _load(folder: Path) -> compare.Loaded:
    run = report.load_run(folder)
    plan = runs.read_json(folder / "plan.json") if (folder / "plan.json").exists() else None
    if run is None and plan is None:
        raise BadInput(f"{folder} holds neither run.json nor plan.json: there is nothing to compare")
    return compare.Loaded(folder.name, run, report.load_observations(folder), plan)


def _drawn(side: Sequence[compare.Loaded]) -> dict[str, Any] | None:
    """The run of a side that the charts show: its first that has a result."""
    return next((dict(one.run) for one in side if one.run is not None), None)
