"""One dictionary to a page or to Markdown: the Jinja environments, and the escaping that every value goes through.

In: what `report.build` or `compare.compare` made. Out: text. Whatever a host sent is data: it is escaped on the
page and in Markdown, and control characters are shown instead of sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from tcpfleet import charts, report_charts, report_zh
from tcpfleet.errors import BadInput
from tcpfleet.said import said, translate

if TYPE_CHECKING:
    from jinja2 import Environment

LANGUAGES: dict[str, Mapping[str, str]] = {"en": {}, "zh": report_zh.TABLE}
"""Language -> English text -> its word."""

MOST_ROWS = 20  # of a table in Markdown that grows with the number of hosts
MOST_NAMES = 8  # of hosts in one cell
PHASE_WORDS = {
    "before": said("before"),
    "peak": said("at the peak"),
    "after": said("after"),
    "present": said("now"),
}
TEMPLATES = Path(__file__).resolve().parent.parent / "templates"

# Control characters (a terminal's escape sequences in a log line) are shown, not sent to whoever reads the file;
# so are the characters that reverse the direction of text. Newline and tab stay.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~#])")


def check_language(language: str) -> None:
    """
    :raises BadInput: for one that is not in LANGUAGES.
    """
    if language not in LANGUAGES:
        raise BadInput(f"--lang {language!r} is not one of {', '.join(LANGUAGES)}")


def render_html(report: Mapping[str, Any], language: str = "en") -> str:
    """The page of a report: one file, no script, nothing loaded.

    :param language: of LANGUAGES.
    """
    page = _page(language)
    drawn = report_charts.of_report(report, _speaker(LANGUAGES[language]))
    return page.get_template("report.html.j2").render(report=report, charts=drawn)


def render_markdown(report: Mapping[str, Any], language: str = "en") -> str:
    """The report for tickets and pull requests: tables, no images."""
    return _tidy(_text(language).get_template("report.md.j2").render(report=report))


def render_compare_html(compared: Mapping[str, Any], pair: report_charts.Pair, language: str = "en") -> str:
    """The page of a comparison.

    :param pair: one run of each side, for the charts.
    """
    page = _page(language)
    drawn = report_charts.of_pair(pair, _speaker(LANGUAGES[language]))
    return page.get_template("compare.html.j2").render(compared=compared, charts=drawn)


def render_compare_markdown(compared: Mapping[str, Any], language: str = "en") -> str:
    """The comparison as tables."""
    return _tidy(_text(language).get_template("compare.md.j2").render(compared=compared))


def _page(language: str) -> Environment:
    environment = _environment(language, autoescape=True)
    environment.filters["num"] = _html_number
    environment.globals["colour"] = charts.colour
    return environment


def _text(language: str) -> Environment:
    environment = _environment(language, autoescape=False)
    environment.finalize = _markdown
    environment.filters["num"] = lambda value: _number(value)
    environment.filters["fence"] = _fence
    environment.globals["strong"] = Markup("**")
    environment.globals["most"] = MOST_ROWS
    speak = _speaker(LANGUAGES[language])
    environment.globals["more"] = lambda rows: (
        speak("{n} more are in report.json.", n=len(rows) - MOST_ROWS) if len(rows) > MOST_ROWS else ""
    )
    return environment


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _environment(language: str, *, autoescape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,  # noqa: S701 (Markdown has its own escaping, in finalize)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mib"] = lambda value: value / 2**20 if isinstance(value, (int, float)) else value
    environment.filters["shown"] = shown
    speak = _speaker(LANGUAGES[language])
    environment.globals["_"] = speak
    environment.globals["hosts"] = lambda names: _hosts(names, speak)
    environment.globals["language"] = language
    environment.globals["phases"] = {name: speak(words) for name, words in PHASE_WORDS.items()}
    return environment


def _hosts(names: Sequence[Any], speak: Callable[..., str]) -> str:
    """Names of hosts, of many the first ones."""
    if len(names) <= MOST_NAMES:
        return ", ".join(map(str, names))
    first = ", ".join(map(str, names[: MOST_NAMES - 2]))
    return speak("{names} and {n} more", names=first, n=len(names) - MOST_NAMES + 2)


def _speaker(table: Mapping[str, str]) -> Callable[..., str]:
    """The templates' `_`: a text, or a template with its values, in the language of the table."""

    def speak(text: Any, **values: Any) -> str:
        if text is None:
            return "–"
        text = said(text, **values) if values else text if isinstance(text, str) else str(text)
        return translate(text, table)

    return speak


def shown(value: Any) -> str:
    """Text with control characters made visible, None as a dash."""
    if value is None:
        return "–"
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", str(value))


def _number(value: Any) -> str:
    """Numbers as `charts.number` prints them; anything else as text, since it came from elsewhere."""
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        return shown(value)
    return charts.number(value)


def _html_number(value: Any) -> Markup:
    """A number that programs can read too: ``<data value="200000">200,000</data>``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or _number(value) == charts.number(None):
        return escape(_number(value))
    return Markup('<data value="{}">{}</data>').format(value, _number(value))


def _markdown(value: Any) -> Any:
    """Escapes every expression of the Markdown template: one line, no markup, no HTML."""
    if isinstance(value, Markup):
        return value
    text = re.sub(r"\s+", " ", shown(value))  # spaces at its ends are the template's own: ", " between names
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", text)


def _fence(value: Any) -> Markup:
    """A code block that its content cannot end."""
    text = shown(value).rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}text\n{text}\n{fence}")  # noqa: S704 (not HTML)
