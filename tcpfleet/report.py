"""A run's folder to report.html, report.md and report.json; all three are rendered from one dictionary.

In: reports/RUN_ID/run.json (may be absent: then there is no verdict) and the observations saved beside it by
`save_observation`. Out: the three files. Whatever a host sent is data: it is escaped on the page and never
becomes a path outside the folder.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from tcpfleet import charts, report_data
from tcpfleet.errors import BadInput, LocatedError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
RUN_SCHEMA = "tcpfleet.run/1"

# Control characters (a terminal's escape sequences in a log line) are shown, not sent to whoever reads the file;
# so are the characters that reverse the direction of text. Newline and tab stay.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~#])")


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
        data = gzip.compress(str(text).encode("utf-8", "replace"), mtime=0)
        _write(folder / f"{safe_name(str(name))}.gz", data)
    path = run_dir / "observations" / phase / f"{safe_name(host)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(saved, indent=1) + "\n")
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
            except (OSError, ValueError) as error:
                outcome = {"status": "failed", "error": f"{path.name} is damaged: {error}"}
            found.setdefault(phase, {})[host] = outcome
    return found


def write_reports(run_dir: Path) -> list[Path]:
    """Writes report.html, report.md and report.json into a run's folder, replacing older ones.

    :param run_dir: with run.json and observations/, either of which may be absent.
    :returns: the three paths, html first.
    :raises BadInput: when run.json is damaged (LocatedError) or of another schema; nothing is written then.
    """
    run = load_run(run_dir)
    raw_files = sorted(str(path.relative_to(run_dir)) for path in (run_dir / "raw").rglob("*") if path.is_file())
    observations = load_observations(run_dir)
    report = report_data.build(run, observations, raw_files)
    report["unavailable"] += _raw_problems(run_dir, raw_files, observations)
    texts = {
        "report.html": render_html(report),
        "report.md": render_markdown(report),
        "report.json": json.dumps(report, indent=1) + "\n",
    }
    return [_write(run_dir / name, text) for name, text in texts.items()]


def _raw_problems(
    run_dir: Path, raw_files: Sequence[str], observations: report_data.Observations
) -> list[dict[str, Any]]:
    """Raw files that are not whole, as rows of what could not be read: cut on their host, or damaged since."""
    found = []
    for phase, hosts in observations.items():
        for host, outcome in hosts.items():
            cut = report_data.dig(outcome, "observation", "cut")
            for name, reason in cut.items() if isinstance(cut, Mapping) else ():
                found.append((host, str(name), f"cut: {reason}", phase))
    names = {safe_name(host): host for hosts in observations.values() for host in hosts}
    for path in raw_files:
        _, phase, folder, name = Path(path).parts
        if not name.endswith(".gz"):
            continue  # of a run before they were compressed
        try:
            with gzip.open(run_dir / path) as source:
                if not source.read(1 << 20):
                    raise EOFError("nothing is in it")
                while source.read(1 << 20):
                    pass
        except (EOFError, OSError, zlib.error) as error:
            found.append((names.get(folder, folder), name, f"damaged: {error}", phase))
    return [
        {"host": host, "section": f"raw file {name}", "reason": reason, "phases": [phase]}
        for host, name, reason, phase in found
    ]


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a report: one file, no script, nothing loaded."""
    environment = _environment(autoescape=True)
    environment.filters["num"] = _html_number
    environment.globals["colour"] = charts.colour
    return environment.get_template("report.html.j2").render(report=report, charts=_charts(report))


def render_markdown(report: Mapping[str, Any]) -> str:
    """The report for tickets and pull requests: tables, no images."""
    environment = _environment(autoescape=False)
    environment.finalize = _markdown
    environment.filters["num"] = lambda value: _number(value)
    environment.filters["fence"] = _fence
    environment.globals["strong"] = Markup("**")
    text = environment.get_template("report.md.j2").render(report=report)
    return re.sub(r"\n{3,}", "\n\n", text)


def _write(path: Path, text: str | bytes) -> Path:
    """Replaces a file whole; text that is no valid UTF-8 (lone surrogates from JSON) is written as ``?``."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(text.encode("utf-8", "replace") if isinstance(text, str) else text)
    draft.replace(path)
    return path


def _environment(autoescape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,  # noqa: S701 (Markdown has its own escaping, in finalize)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mib"] = lambda value: value / 2**20 if isinstance(value, (int, float)) else value
    environment.filters["shown"] = _shown
    environment.globals["phases"] = {
        "before": "before",
        "peak": "at the peak",
        "after": "after",
        "present": "now",
    }
    return environment


def _shown(value: Any) -> str:
    """Text with control characters made visible, None as a dash."""
    if value is None:
        return "–"
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", str(value))


def _number(value: Any) -> str:
    """Numbers as `charts.number` prints them; anything else as text, since it came from elsewhere."""
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        return _shown(value)
    return charts.number(value)


def _html_number(value: Any) -> Markup:
    """A number that programs can read too: ``<data value="200000">200,000</data>``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escape(_number(value))
    return Markup('<data value="{}">{}</data>').format(value, _number(value))


def _markdown(value: Any) -> Any:
    """Escapes every expression of the Markdown template: one line, no markup, no HTML."""
    if isinstance(value, Markup):
        return value
    text = " ".join(_shown(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def _fence(value: Any) -> Markup:
    """A code block that its content cannot end."""
    text = _shown(value).rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}text\n{text}\n{fence}")  # noqa: S704 (not HTML)


def _charts(report: Mapping[str, Any]) -> dict[str, Markup | None]:
    rows = report["timeline"]

    def points(name: str) -> list[charts.Point]:
        return [(row["t"], row[name]) for row in rows]

    kinds = report["latency"]
    return {
        "connections": charts.time_chart(
            "connections",
            "Connections over time",
            "connections",
            {name: points(name) for name in ("established", "failed", "open")},
        ),
        "connects": charts.time_chart(
            "connects", "Connects per second", "connects/s", {"connects/s": points("connects_per_second")}
        ),
        "echoes": charts.time_chart(
            "echoes", "Echoes per second", "echoes/s", {"echoes/s": points("echoes_per_second")}
        ),
        "latency": charts.percentile_chart(
            "latency",
            "Latency by percentile",
            "ms, log scale",
            report_data.PERCENTILES,
            {row["kind"]: [report_data.number_at(row, name) for name in report_data.PERCENTILES] for row in kinds},
        ),
    }
