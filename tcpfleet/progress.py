"""Live progress of a stress run on stderr: a table that redraws on a terminal, plain lines, or JSON lines.

In: each host's client statuses as they are polled (any thread). Out: one row per host and a total.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

PLAIN_EVERY = 2.0  # seconds between lines on a pipe
FORMS = ("rich", "plain", "json")


class Progress:
    """Use as a context manager around the time in which `update` is called.

    :param requested: connections of the whole run.
    :param form: a name of FORMS; empty for rich on a terminal and plain elsewhere.
    """

    def __init__(self, requested: int, form: str = "") -> None:
        self._requested = requested
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._started = self._printed = time.monotonic()
        console = Console(stderr=True)
        self._live = (
            Live(console=console, get_renderable=self._table, refresh_per_second=4)
            if (form or ("rich" if console.is_terminal else "plain")) == "rich"
            else None
        )
        self._json = form == "json"
        self._last_line = ""

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._print_line()

    def update(self, host: str, clients: list[dict[str, Any]]) -> None:
        with self._lock:
            self._rows[host] = clients
            due = time.monotonic() - self._printed >= PLAIN_EVERY
        if self._live is None and due:
            self._print_line()

    def _print_line(self) -> None:
        with self._lock:
            total = _add([client for clients in self._rows.values() for client in clients])
            self._printed = time.monotonic()
            if self._json:
                hosts = {host: _add(clients) for host, clients in sorted(self._rows.items())}
                row = {"seconds": round(self._printed - self._started, 1), "requested": self._all(total)}
                print(json.dumps(row | {"total": total, "hosts": hosts}), file=sys.stderr, flush=True)
                return
            line = (
                f"{total['state']}: {total['open']:,} open, {total['verified']:,} of {self._all(total):,} "
                f"verified, {total['failed']:,} failed, {total['connects']:,.0f} connects/s, "
                f"{total['echoes']:,.0f} echoes/s"
                + ("" if total["p99"] is None else f", p99 {total['p99']:.1f} ms")
            )
            if line != self._last_line:
                self._last_line = line
                print(f"{self._printed - self._started:6.1f} s  {line}", file=sys.stderr, flush=True)

    def _all(self, total: dict[str, Any]) -> int:
        """Connections of the whole run; churn begins more than were asked at first."""
        return max(self._requested, int(total["requested"]))

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("host", "state"):
            table.add_column(name)
        for name in ("open", "verified", "failed", "connects/s", "echoes/s", "p99 ms"):
            table.add_column(name, justify="right")
        with self._lock:
            rows = {host: _add(clients) for host, clients in sorted(self._rows.items())}
            everything = _add([client for clients in self._rows.values() for client in clients])
        for host, row in rows.items():
            table.add_row(host, *_cells(row))
        if len(rows) > 1:
            table.add_row(f"all of {self._all(everything):,}", *_cells(everything), style="bold")
        return table


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["state"],
        f"{row['open']:,}",
        f"{row['verified']:,}",
        f"[red]{row['failed']:,}[/red]" if row["failed"] else "0",
        f"{row['connects']:,.0f}",
        f"{row['echoes']:,.0f}",
        f"{row['p99']:.1f}" if row["p99"] is not None else "-",
    ]


def _add(clients: list[dict[str, Any]]) -> dict[str, Any]:
    """One row for several clients: counts and rates add up, the slowest p99 and the earliest state count."""
    order = ("failed", "ready", "ramp", "ramped", "hold", "closing", "done")
    states = [client.get("state", "ready") for client in clients]
    p99s = [(client.get("p99_ms") or {}).get("service") for client in clients]
    known = [value for value in p99s if value is not None]

    def total(part: str, key: str) -> float:
        return round(sum((client.get(part) or {}).get(key) or 0 for client in clients), 1)

    return {
        "state": min(states, key=lambda state: order.index(state) if state in order else 0, default="starting"),
        "requested": int(total("connections", "requested")),
        "open": int(total("connections", "open")),
        "verified": int(total("connections", "verified")),
        "failed": int(total("connections", "failed")),
        "connects": total("rate", "connects_per_second"),
        "echoes": total("rate", "echoes_per_second"),
        "p99": max(known) if known else None,
    }
