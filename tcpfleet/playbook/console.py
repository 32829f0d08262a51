"""Prints a run as ansible-playbook does: banners, a line per host and item, unified diffs, the recap."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from tcpfleet.playbook.engine import Reporter
from tcpfleet.playbook.model import Play, Task
from tcpfleet.playbook.results import ItemResult, Recap, Status, TaskResult, plain
from tcpfleet.secret import printable

_WIDTH = 79


class ConsoleReporter(Reporter):
    """Writes plain text to a stream, line by line.

    :param stream: where to.
    :param diff: show diffs.
    :param verbose: also say why hosts did nothing, and show skipped ones.
    """

    def __init__(self, stream: TextIO, *, diff: bool = False, verbose: bool = False) -> None:
        self._stream, self._diff, self._verbose = stream, diff, verbose

    def play_start(self, play: Play, hosts: Sequence[str]) -> None:
        """``PLAY [name] ***``."""
        self._banner(f"PLAY [{play.title}]")
        if not hosts:
            self._line("skipping: no hosts matched")

    def task_start(self, title: str, task: Task, handler: bool) -> None:
        """``TASK [name] ***`` or ``RUNNING HANDLER [name] ***``."""
        self._banner(f"{'RUNNING HANDLER' if handler else 'TASK'} [{title}]")

    def host_result(self, task: Task, result: TaskResult) -> None:
        """A line for each host or item that changed or failed, and what debug says; when verbose for all."""
        for item in result.items:
            if self._diff:
                self._line(render_diff(item.result.get("diff")), end="")
            if self._verbose or item.status in ("changed", "failed"):
                self._line(_item_line(result.host, item))
        if result.items and result.status in ("ok", "changed", "skipped"):
            return
        if self._diff:
            self._line(render_diff(result.result.get("diff")), end="")
        # What debug prints is what it is for.
        speaks = result.module == "ansible.builtin.debug" and result.status == "ok"
        if self._verbose or speaks or result.status not in ("ok", "skipped"):
            self._line(_host_line(result, self._verbose))

    def note(self, host: str, text: str) -> None:
        """A line of its own."""
        self._line(text if text.startswith("FAILED - RETRYING") else f"note: [{host}]: {text}")

    def play_end(self, recap: Recap) -> None:
        """The recap, and why hosts failed, last so that it is what one sees."""
        self._banner("PLAY RECAP")
        self._line(render_recap(recap), end="")
        if recap.reasons:
            self._line("")
            for host, reason in sorted(recap.reasons.items()):
                word = "UNREACHABLE" if recap.hosts[host].unreachable else "FAILED"
                self._line(f"{word} {host}: {reason}")
        for host, names in sorted(recap.pending.items()):
            self._line(f"PENDING {host}: handlers kept for the next run of this play: {', '.join(names)}")

    def _banner(self, text: str) -> None:
        self._line(f"\n{text} " + "*" * max(3, _WIDTH - len(text)))

    def _line(self, text: str, end: str = "\n") -> None:
        if text or end:
            self._stream.write(printable(text) + end)
            self._stream.flush()


def render_recap(recap: Recap) -> str:
    """A line per host in Ansible's columns."""
    width = max([26, *(len(name) for name in recap.hosts)])
    lines = []
    for name, one in sorted(recap.hosts.items()):
        columns = (
            f"ok={one.ok:<4} changed={one.changed:<4} unreachable={one.unreachable:<4} failed={one.failed:<4} "
            f"skipped={one.skipped:<4} rescued={one.rescued:<4} ignored={one.ignored:<4}"
        )
        lines.append(f"{name:<{width}} : {columns}".rstrip() + "\n")
    return "".join(lines)


def render_diff(diff: Any) -> str:
    """Unified diffs of a result's ``diff``: one dict, a list of them, or nothing."""
    if not diff:
        return ""
    if isinstance(diff, list):
        return "".join(render_diff(one) for one in diff)
    before, after = (str(diff.get(side, "")).splitlines(keepends=True) for side in ("before", "after"))
    lines = list(
        difflib.unified_diff(
            before,
            after,
            f"before: {diff.get('before_header', '')}".rstrip(": "),
            f"after: {diff.get('after_header', '')}".rstrip(": "),
        )
    )
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


_WORDS: Mapping[Status, str] = {
    "ok": "ok",
    "changed": "changed",
    "skipped": "skipping",
    "failed": "fatal",
    "ignored": "fatal",
    "rescued": "fatal",
    "unreachable": "fatal",
}


def _host_line(result: TaskResult, verbose: bool) -> str:
    line = f"{_WORDS[result.status]}: [{result.host}]"
    if result.status == "unreachable":
        return f"{line}: UNREACHABLE! => {result.message}"
    if result.status in ("failed", "ignored", "rescued"):
        line += f": FAILED! => {describe(result.result)}"
        return line + ("\n...ignoring" if result.status == "ignored" else "")
    if result.module == "ansible.builtin.debug" and result.status == "ok":
        shown = {key: value for key, value in result.result.items() if key not in ("changed", "failed")}
        if len(shown) > 1:
            shown.pop("msg", None)
        return f"{line} => {json.dumps(plain(shown), indent=4, default=str, ensure_ascii=False)}"
    return f"{line} => {result.message}" if verbose and result.message else line


def _item_line(host: str, item: ItemResult) -> str:
    word = "failed" if item.status == "failed" else _WORDS[item.status]
    line = f"{word}: [{host}] => (item={item.label})"
    if item.status == "failed":
        return f"{line} => {describe(item.result)}"
    message = item.result.get("msg")
    return f"{line} => {message}" if message and item.status == "changed" else line


def describe(result: Mapping[str, Any]) -> str:
    """A failed result for people: its sentence, the exit status and what the program said."""
    if "censored" in result:
        return str(result["censored"])
    parts = [str(result.get("msg") or "failed")]
    if result.get("rc") is not None:
        parts.append(f"rc={result['rc']}")
    for key in ("stderr", "stdout"):
        if result.get(key):
            parts.append(f"{key}: {result[key]}")
    return "; ".join(parts)
