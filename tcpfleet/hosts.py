"""The tasks that look at the fleet and change nothing: `inventory`, `ping`, `facts`."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from tcpfleet import inventory as inventories
from tcpfleet.cli import Answer, Options
from tcpfleet.errors import HostFailed, worst
from tcpfleet.fleet import Outcome, exit_codes

if TYPE_CHECKING:
    from tcpfleet.link import Session


def show(options: Options, *, with_vars: bool) -> Answer:
    """The inventory as a graph; with --hosts, the hosts that the pattern selects."""
    inventory = options.inventory
    if options.hosts:
        selected = options.select()
        for host in selected:
            options.say(host.name)
        return Answer({"hosts": [host.name for host in selected]})
    options.say(inventories.graph(inventory, show_vars=with_vars).rstrip("\n"))
    return Answer({"inventory": inventories.to_json(inventory)})


def ping(options: Options) -> Answer:
    """Start an agent on every host: the whole way that every other task takes."""
    hosts = options.select("all")
    begun = time.monotonic()

    def greet(session: Session) -> dict[str, Any]:
        return session.hello | {"seconds": round(time.monotonic() - begun, 3)}

    def say(outcome: Outcome[dict[str, Any]]) -> None:
        if outcome.value is None:
            options.say(f"{outcome.host.name}: {outcome.status}: {outcome.error}")
        else:
            hello = outcome.value
            note = f"; payload could not be kept there ({hello['uncached']})" if hello["uncached"] else ""
            options.say(
                f"{outcome.host.name}: ok, Python {hello['python']}, uid {hello['uid']}, "
                f"{hello['seconds']:.2f} s{note}"
            )

    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(greet, on_outcome=say, last=True)
    return Answer(_by_host(outcomes), worst(exit_codes(outcomes)), options.sum_up(outcomes))


def facts(options: Options) -> Answer:
    """What `setup` finds, one JSON object per host."""
    hosts = options.select("all")

    def gather(session: Session) -> dict[str, Any]:
        result = session.call("setup", {})
        if result.get("failed"):
            raise HostFailed(str(result.get("msg")))
        found: dict[str, Any] = result["ansible_facts"]
        return found

    def say(outcome: Outcome[dict[str, Any]]) -> None:
        if outcome.value is None:
            options.say(f"{outcome.host.name}: {outcome.status}: {outcome.error}")
        else:
            options.say(f"{outcome.host.name}: {json.dumps(outcome.value, indent=2, sort_keys=True)}")

    with options.fleet(hosts) as fleet:
        outcomes = fleet.run(gather, on_outcome=say, last=True)
    return Answer(_by_host(outcomes), worst(exit_codes(outcomes)), options.sum_up(outcomes))


def _by_host(outcomes: dict[str, Outcome[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "hosts": {
            name: {"status": outcome.status}
            | (outcome.value if outcome.value is not None else {"error": outcome.error})
            for name, outcome in outcomes.items()
        }
    }
