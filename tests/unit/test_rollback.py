"""What rollback prints: equal hosts once, refusals with their difference, runs by the controller's clock."""

from __future__ import annotations

from typing import Any

from tcpfleet.fleet import Outcome
from tcpfleet.inventory import Host
from tcpfleet.rollback import HostRollback, Undone, render

RUN: dict[str, Any] = {
    "run": "20261123-141453-879757-d1d3", "started": 1795443294.4, "command": "tune", "user": "me@h",
    "entries": 2, "not_reversible": 0, "state": "can be undone", "msg": "",
}  # fmt: skip


def outcome(name: str, value: HostRollback | None, error: str = "") -> Outcome[HostRollback]:
    return Outcome(Host(name), "ok" if value else "unreachable", value, error)


def test_hosts_of_which_the_same_is_told_share_it() -> None:
    diff = {"before": "a\nmine\n", "after": "a\n", "before_header": "/etc/f", "after_header": "/etc/f"}
    entries = [{"what": "/etc/f", "status": "refused", "msg": "was changed since by someone else", "diff": diff}]
    refused = HostRollback(undone=[Undone(RUN["run"], "tune", entries, complete=False)])
    outcomes = {
        "a": outcome("a", HostRollback()), "b": outcome("b", refused), "c": outcome("c", HostRollback()),
        "d": outcome("d", None, "no answer"),
    }  # fmt: skip
    assert render(outcomes, listing=False) == (
        "a, c\n"
        "  nothing to undo\n"
        "\n"
        "b\n"
        "  run 20261123-141453-879757-d1d3 (tune)\n"
        "    refused         /etc/f: was changed since by someone else\n"
        "      --- before: /etc/f\n"
        "      +++ after: /etc/f\n"
        "      @@ -1,2 +1 @@\n"
        "       a\n"
        "      -mine\n"
        "    not everything was undone: run it again when what is in the way is gone, or --force\n"
        "\n"
        "d\n"
        "  unreachable: no answer\n"
    )


def test_the_list_tells_the_time_of_the_controller() -> None:
    runs = [RUN, {**RUN, "run": "own", "started": 0.0, "command": None, "not_reversible": 1, "state": "undone"}]
    late = [{**one, "started": 1795443299.9} for one in runs[:1]]
    assert render(
        {"a": outcome("a", HostRollback(runs[:1])), "b": outcome("b", HostRollback(late))}, listing=True
    ) == (
        "a, b\n  20261123-141453-879757-d1d3  2026-11-23 14:14:53 UTC  tune  by me@h  2 changes  can be undone\n"
    )
    assert render({"a": outcome("a", HostRollback(runs[1:]))}, listing=True) == (
        "a\n  own  an unknown time  ?  by me@h  2 changes (1 not reversible)  undone\n"
    )
