"""A run's folder to report.html, report.md and report.json; all three are rendered from one dictionary.

In: reports/RUN_ID/run.json (may be absent: then there is no verdict) and the observations saved beside it by
`save_observation`. Out: the three files. Whatever a host sent is data: it never becomes a path outside the folder.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcpfleet import report_data, report_hosts, report_render, report_run, report_time
from tcpfleet.cli import strict_json
from tcpfleet.errors import BadInput, LocatedError
from tcpfleet.report_data import Observations, View, dig
from tcpfleet.runs import replace
from tcpfleet.secret import printable, redact, redacted

SCHEMA = "tcpfleet.report/1"
RUN_SCHEMA = "tcpfleet.run/1"


def safe_name(name: str) -> str:
    """A file name for any text: letters, digits, ``.``, ``_`` and ``-``; distinct for distinct texts.

    >>> safe_name("s1"), safe_name("../../etc/passwd")
    ('s1', '_.._etc_passwd-3754d6cb')
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:80]
    if plain == name and plain:
        return plain
    return f"{plain or 'unnamed'}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def save_observation(run_dir: Path, phase: str, host: str, outcome: Mapping[str, Any]) -> Path:
    """Keeps what came of observing one host.

    :param run_dir: reports/RUN_ID.
    :param phase: "before", "peak", "after" or "present".
    :param host: the host's name in the inventory; may hold any character.
    :param outcome: the result of the `observe` operation as it is (``{"observation", "raw", ...}`` or
        ``{"failed": True, "msg"}``), or ``{"status": "unreachable"|"failed", "error": sentence}``.
    :returns: the file written, observations/PHASE/HOST.json: ``{"host", "status": "ok", "observation"}`` or
        ``{"host", "status", "error"}``. Raw texts go to raw/PHASE/HOST/NAME.gz.
    :raises BadInput: for another phase.
    """
    if phase not in report_data.PHASES:
        raise BadInput(f"an observation is one of {', '.join(report_data.PHASES)}, not {phase!r}")
    status = outcome.get("status")
    saved: dict[str, Any] = {"host": host}
    if outcome.get("failed") or status in ("failed", "unreachable"):
        error = outcome.get("error") or outcome.get("msg") or "no reason given"
        saved.update(status=status if status == "unreachable" else "failed", error=str(error))
    elif isinstance(outcome.get("observation"), Mapping):
        saved.update(status="ok", observation=outcome["observation"])
    else:
        saved.update(status="failed", error="the answer holds no observation")
    folder = run_dir / "raw" / phase / safe_name(host)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier look, which had files that this one may lack
    raw = outcome.get("raw")
    for name, text in raw.items() if isinstance(raw, Mapping) and saved["status"] == "ok" else ():
        folder.mkdir(parents=True, exist_ok=True)
        data = gzip.compress(redact(str(text)).encode("utf-8", "replace"), mtime=0)
        write_text(folder / f"{safe_name(str(name))}.gz", data)
    path = run_dir / "observations" / phase / f"{safe_name(host)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(redacted(saved), indent=1) + "\n")
    return path


def load_run(run_dir: Path) -> dict[str, Any] | None:
    """run.json of a folder, or None when there is none.

    :raises LocatedError: when it is cut or otherwise no JSON: file, line and column.
    :raises BadInput: when it is JSON of another kind.
    """
    path = run_dir / "run.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise LocatedError(f"not a text in UTF-8 ({error.reason}): repeat the run", str(path)) from None
    try:
        run = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"not complete JSON ({error.msg}): the run did not end well, repeat it"
        raise LocatedError(message, str(path), error.lineno, error.colno) from None
    except (ValueError, RecursionError) as error:  # a number too long, lists too deep
        raise LocatedError(f"no JSON of ours ({error}): repeat the run", str(path)) from None
    if not isinstance(run, dict) or run.get("schema") != RUN_SCHEMA:
        found = run.get("schema") if isinstance(run, dict) else type(run).__name__
        raise BadInput(f"{path}: schema must be {RUN_SCHEMA!r}, not {found!r}")
    return run


def load_observations(run_dir: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Saved outcomes, phase -> host -> outcome. A damaged file is that host's gap, with the reason."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for phase in report_data.PHASES:
        for path in sorted((run_dir / "observations" / phase).glob("*.json")):
            host = path.stem
            try:
                outcome = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(outcome, dict):
                    raise ValueError("no JSON object")
                host = str(outcome.get("host") or host)
            except (OSError, ValueError, RecursionError) as error:
                outcome = {"status": "failed", "error": f"{path.name} is damaged: {error}"}
            found.setdefault(phase, {})[host] = outcome
    return found


def load_samples(run_dir: Path) -> dict[str, Any]:
    """What samples/HOST.json hold, host -> content; of a damaged file the reason."""
    found: dict[str, Any] = {}
    for path in sorted((run_dir / "samples").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("no JSON object")
            found[str(content.get("host") or path.stem)] = content
        except (OSError, ValueError, RecursionError) as error:
            found[path.stem] = {"unavailable": {"samples": f"{path.name} is damaged: {error}"}}
    return found


def save_tuning(folder: Path, host: str, table: Mapping[str, Any]) -> Path:
    """Keeps what a tuning did to a host, for the reports of the runs that follow: FOLDER/tuning/HOST.json."""
    path = folder / "tuning" / f"{safe_name(host)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, json.dumps(redacted({**table, "host": host}), indent=1) + "\n")


def forget_tuning(folder: Path, host: str, undone: Collection[str]) -> None:
    """Takes away what `save_tuning` kept of a host when its run is among those that were rolled back."""
    table = load_tuning(folder).get(host)
    if dig(table, "run") in undone:
        (folder / "tuning" / f"{safe_name(host)}.json").unlink()


def load_tuning(folder: Path) -> dict[str, Any]:
    """What `save_tuning` kept, host -> table; a damaged file is left out: it says nothing of the run."""
    found = {}
    for path in sorted((folder / "tuning").glob("*.json")):
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        found[str(dig(table, "host") or path.stem)] = table
    return found


def load_refused_plan(run_dir: Path) -> dict[str, Any] | None:
    """plan.json of a folder whose plan was refused; None when it was not, or when it cannot be read."""
    try:
        plan = json.loads((run_dir / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return plan if isinstance(plan, dict) and plan.get("refused") else None


@dataclass(frozen=True)
class Kept:
    """What a run's folder holds.

    :ivar run: run.json as read, or None when there was no run.
    :ivar observations: phase -> host -> saved outcome.
    :ivar samples: host -> what was seen of it during the run.
    :ivar tuned: host -> what the last tuning before the run did to it.
    :ivar refused: plan.json, when the plan was refused.
    :ivar raw_files: paths relative to the folder.
    """

    run: Mapping[str, Any] | None
    observations: Observations
    samples: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, Any] | None = None
    raw_files: Sequence[str] = ()


def build(kept: Kept) -> dict[str, Any]:
    """Everything a report says: report.json's content (docs/schema/report.schema.json).

    What each key holds is told by the function it comes from.
    """
    run, refused = kept.run, kept.refused
    view = View(run or refused, kept.observations)
    return {
        "schema": SCHEMA,
        "run_id": dig(run or refused, "run_id"),
        "verdict": report_run.verdict(run, view, dig(refused, "refused")),
        "run": run,
        "command": dig(run or refused, "command"),
        "facts": report_run.facts(run or refused),
        "plan": report_run.plan_rows(run),
        "thresholds": report_run.thresholds(run),
        "warnings": report_run.warnings(run),
        "hosts": view.host_rows(),
        "gaps": view.gaps(),
        "shared": view.shared(),
        "latency": report_run.latency_rows(run),
        "spectra": report_run.spectra(run),
        "timeline": report_run.timeline(run),
        "latency_timeline": report_run.latency_timeline(run),
        "over_time": report_time.charts(view, kept.samples),
        "errors": report_run.errors(run),
        "states": report_hosts.state_table(view),
        "listeners": report_hosts.listener_rows(view),
        "server": report_hosts.server_rows(view),
        "balance": sorted(
            report_hosts.server_balance(view) + report_run.balance(run),
            key=lambda row: (row["side"] != "server", -(row["ratio"] or 0)),
        ),
        "memory_each": report_hosts.memory_per_connection(view),
        "memory": report_hosts.memory_rows(view),
        "counters": (counters := report_hosts.counter_rows(view)),
        "counter_totals": report_hosts.counter_totals(counters),
        "machines": report_hosts.machine_rows(view),
        "ss": report_hosts.ss_text(view),
        "tuning": report_hosts.tuning_table(view, kept.tuned),
        "sysctls": report_hosts.sysctl_table(view),
        "logs": report_hosts.log_rows(view),
        "kernel_log": report_hosts.kernel_log_rows(view),
        "unavailable": report_hosts.unavailable_rows(view) + report_time.gaps(view, kept.samples),
        "raw_files": list(kept.raw_files),
    }


def load(run_dir: Path) -> Kept:
    """A run's folder, any part of which may be absent.

    :raises BadInput: when run.json is damaged (LocatedError) or of another schema.
    """
    run = load_run(run_dir)
    return Kept(
        run,
        load_observations(run_dir),
        load_samples(run_dir),
        load_tuning(run_dir),
        None if run else load_refused_plan(run_dir),
        sorted(str(path.relative_to(run_dir)) for path in (run_dir / "raw").rglob("*") if path.is_file()),
    )


def write_reports(run_dir: Path, language: str = "en") -> list[Path]:
    """Writes report.html, report.md and report.json into a run's folder, replacing older ones.

    :param run_dir: with run.json and observations/, either of which may be absent.
    :param language: of report.html and report.md: one of `report_render.LANGUAGES`.
    :returns: the three paths, html first.
    :raises BadInput: when run.json is damaged (LocatedError) or of another schema; nothing is written then.
    """
    kept = load(run_dir)
    report = build(kept)
    report["unavailable"] += _raw_problems(run_dir, kept.raw_files, kept.observations)
    texts = {
        "report.html": report_render.render_html(report, language),
        "report.md": report_render.render_markdown(report, language),
        "report.json": strict_json(redacted(report)) + "\n",
    }
    return [write_text(run_dir / name, text) for name, text in texts.items()]


def _raw_problems(run_dir: Path, raw_files: Sequence[str], observations: Observations) -> list[dict[str, Any]]:
    """Raw files that are not whole, as rows of what could not be read: cut on their host, or damaged since."""
    found = []
    for phase, hosts in observations.items():
        for host, outcome in hosts.items():
            cut = dig(outcome, "observation", "cut")
            for name, reason in cut.items() if isinstance(cut, Mapping) else ():
                found.append((host, str(name), f"cut: {reason}", phase))
    names = {safe_name(host): host for hosts in observations.values() for host in hosts}
    for path in raw_files:
        parts = Path(path).parts
        if len(parts) != 4 or not path.endswith(".gz"):
            continue  # somebody's own
        _, phase, folder, name = parts
        try:
            if not (run_dir / path).stat().st_size:
                raise EOFError("nothing is in it")
            with gzip.open(run_dir / path) as source:
                while source.read(1 << 20):
                    pass
        except (EOFError, OSError, zlib.error) as error:
            found.append((names.get(folder, folder), name, f"damaged: {error}", phase))
    return [
        {"host": host, "section": f"raw file {name}", "reason": reason, "phases": [phase]}
        for host, name, reason, phase in found
    ]


def write_text(path: Path, text: str | bytes) -> Path:
    """Replaces a file whole; text that is no valid UTF-8 (lone surrogates from JSON) is written as ``?``.

    What is no JSON, which was starred as data, gets stars for passwords; Markdown is often read on a terminal.
    """
    if isinstance(text, str) and path.suffix != ".json":
        text = redact(text)
    if isinstance(text, str) and path.suffix == ".md":
        text = printable(text)
    replace(path, text.encode("utf-8", "replace") if isinstance(text, str) else text)
    return path
