"""`inv find-limit`: the largest load that holds, by doubling until one does not and bisecting between.

In: what `inv stress` takes, and where to begin and end. Out: every try, the largest that held, and the wall above
it. `next_try` decides, and is pure; a try is an ordinary run with its own run.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tcpfleet import runs
from tcpfleet.cli import Answer, Options, number
from tcpfleet.errors import EXIT_VERDICT_FAIL, BadInput, Interrupted, NothingListens, Refused, TcpfleetError
from tcpfleet.stress_tasks import planned

GROWS = ("connections", "rate")
REACHED = 0.95  # of the asked rate: less did not hold
MOST_TRIES = 40


@dataclass(frozen=True)
class Try:
    """One load: its size (connections, or connects/s, of all clients), whether it held, and why."""

    size: int
    held: bool
    why: str
    run_id: str | None = None
    wall: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Search:
    """Where to look.

    :ivar start: the first size; :ivar most: the last; :ivar precision: share of the size at which to stop.
    """

    start: int
    most: int
    precision: float


def next_try(tries: Sequence[Try], search: Search) -> int | None:
    """The next size, or None when the limit is known within the precision, or `most` held.

    >>> next_try([], Search(100, 10**6, 0.1))
    100
    >>> next_try([Try(100, True, ""), Try(200, False, "")], Search(100, 10**6, 0.1))
    150
    """
    if not tries:
        return min(search.start, search.most)
    held = max((one.size for one in tries if one.held), default=0)
    failed = min((one.size for one in tries if not one.held), default=None)
    if failed is None:
        return None if held >= search.most else min(2 * held, search.most)
    if failed <= 1 or failed - held <= max(1, search.precision * failed):
        return None
    return (held + failed) // 2


def find_limit(
    options: Options,
    grow: str,
    sizes: tuple[str, str, str],
    clients: str,
    per_client: str,
    target: str,
    allow_target: bool,
    client_options: Mapping[str, str | bool],
    fail_if: Sequence[str],
) -> Answer:
    """Try loads until the limit is known.

    :param grow: one of GROWS. With rate, each try has `per_client` connections per client and --rate.
    :param sizes: start, most and precision (percent) as typed.
    """
    if grow not in GROWS:
        raise BadInput(f"--grow {grow!r} is not one of {', '.join(GROWS)}")
    if grow == "connections" and per_client:
        raise BadInput("--per-client is what --grow connections looks for: leave it out, or say --grow rate")
    if grow == "rate" and client_options.get("rate"):
        raise BadInput("--rate is what --grow rate looks for: leave it out, or say --grow connections")
    start, most, precision = sizes
    search = Search(
        number("--start", start or "1000", 1, 10**8),
        number("--most", most or "1M", 1, 10**8),
        number("--precision", (precision or "5").rstrip("%"), 0.1, 100, whole=False) / 100,
    )
    count = number("--clients", clients or len(options.select("clients")), 1, 1000)
    if search.most < count:
        raise BadInput(f"--most {search.most} is less than one for each of {count} clients")
    search = dataclasses.replace(search, start=max(search.start, count))
    runs.check_writable()
    tries: list[Try] = []

    def once(size: int) -> Try | None:
        each = max(1, size // count)
        asked, extra = (per_client, {"rate": str(each)}) if grow == "rate" else (str(each), {})
        options_of_run = dict(client_options) | extra
        run = planned(options, str(count), asked, target, allow_target, options_of_run, fail_if)
        with options.fleet(run.all_hosts) as fleet:
            try:
                record = run.execute(fleet)
            except NothingListens:
                raise
            except Refused as refused:
                return Try(each * count, False, f"refused: {refused}")
        return None if record["interrupted"] else judge(each * count, grow, record)

    while (size := next_try(tries, search)) is not None and len(tries) < MOST_TRIES:
        options.say(f"try {len(tries) + 1}: {size:,} {'connects/s' if grow == 'rate' else 'connections'}")
        try:
            result = once(size)
        except TcpfleetError as error:  # the server, or a host, did not outlive the try before
            if not tries:
                raise
            return _answer(options, grow, tries, ended=error)
        if result is None:  # what it would have come to nobody knows
            return _answer(options, grow, tries, ended=Interrupted("interrupted"))
        if tries and any(one.size == result.size for one in tries):
            break  # the share of a client cannot be cut any finer
        tries.append(result)
        options.say(f"  {'held' if result.held else 'did not hold'}: {result.why}")
    return _answer(options, grow, tries)


def judge(size: int, grow: str, record: Mapping[str, Any]) -> Try:
    """Whether a run held, and what there is to say of it."""
    counts, wall = record["connections"], record["wall"]
    why = f"{counts['verified']:,} of {counts['requested']:,} verified"
    held = record["verdict"] == "pass"
    if grow == "rate":
        got = record["churn"]["per_second"] if record["churn"] else record["rate"]["connects_per_second"]
        why += f", {got:,.0f} connects/s"
        if held and got < REACHED * size:
            held = False
            wall = wall or {
                "name": "the asked rate was not reached",
                "evidence": f"{got:,.0f} of {size:,} connects/s; " + "; ".join(record["warnings"][:2]),
                "fix": "more client hosts or workers, or a faster server: see the CPU of both ends in the report",
            }
    failed = [row["text"] for row in record["thresholds"] if row["failed"]]
    if failed:
        why += "; " + ", ".join(failed)
    return Try(size, held, why, record["run_id"], None if held else wall)


def _answer(options: Options, grow: str, tries: Sequence[Try], ended: TcpfleetError | None = None) -> Answer:
    """What is known.

    :param ended: why the search ended before the limit was found.
    """
    unit = "connects/s" if grow == "rate" else "connections"
    held = max((one.size for one in tries if one.held), default=0)
    above = min((one for one in tries if not one.held), key=lambda one: one.size, default=None)
    options.say(f"the largest that held: {held:,} {unit}")
    if ended:
        options.say(f"not searched any further: {ended}")
    if above is None:
        if not ended:
            options.say("no wall up to --most")
    elif above.wall:
        options.say(f"wall at {above.size:,}: {above.wall['name']}: {above.wall['evidence']}")
        options.say(f"fix: {above.wall['fix']}")
    else:
        options.say(f"at {above.size:,}: {above.why}")
    data = {
        "grow": grow,
        "limit": held,
        "wall": dict(above.wall) if above and above.wall else None,
        "above": {"size": above.size, "why": above.why} if above else None,
        "ended": str(ended) if ended else None,
        "tries": [
            {"size": one.size, "held": one.held, "why": one.why, "run_id": one.run_id, "wall": one.wall}
            for one in tries
        ],
    }
    return Answer(data, ended.exit_code if ended else 0 if held else EXIT_VERDICT_FAIL)
