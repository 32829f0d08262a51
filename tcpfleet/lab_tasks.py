"""The tasks `lab-up`, `lab-down`, `lab-status` around `tcpfleet.lab`."""

from __future__ import annotations

from typing import Any

from tcpfleet import lab
from tcpfleet.cli import ROOT, Answer, Options
from tcpfleet.errors import EXIT_HOST_FAILED


def hosts_of(options: Options) -> list[lab.LabHost]:
    """The inventory's group `lab`, checked."""
    inventory = options.inventory
    group = inventory.groups.get(lab.GROUP)
    names = group.hosts if group else ()
    return lab.lab_hosts([(name, inventory.connection(name).address) for name in names])


def up(options: Options) -> Answer:
    """Boot exactly the hosts of group `lab`; exit 2 when one runs, but degraded by what is on its disk."""
    state = lab.up(hosts_of(options), ROOT, options.say)
    for host in state.hosts:
        if host.state != "running":
            options.say(f"{host.name}: {host.state} {host.detail}".rstrip())
    options.say(
        "lab is up. Log in: ssh -i .lab/id_ed25519 -o UserKnownHostsFile=.lab/known_hosts "
        f"root@{state.hosts[0].address}   (users ops, deploy; sudo password of ops: .lab/ops_password)"
    )
    return Answer(_data(state), _code(state))


def down(options: Options, *, anyones: bool) -> Answer:
    """Leave nothing of the lab."""
    was_up = lab.down(ROOT, options.say, anyones=anyones)
    options.say("lab is down" if was_up else "no lab was up")
    return Answer({"was_up": was_up})


def status(options: Options) -> Answer:
    """Exit 2 when a host of a lab is not running; 0 when all are, or when there is no lab."""
    state = lab.status()
    if state.owner is None:
        options.say("no lab is up on this machine: inv lab-up")
        return Answer(_data(state))
    mine = state.owner == ROOT
    options.say(
        f"lab of {'this checkout' if mine else state.owner}" + ("" if mine else " (inv lab-down --any ends it)")
    )
    for host in state.hosts:
        options.say(
            f"{host.name:<12} {host.address:<12} {host.state:<10} pid {host.pid or '-'} {host.detail}".rstrip()
        )
    if any(host.state == "down" for host in state.hosts):
        options.say("inv lab-up boots the hosts that are down again, with the disks that they had")
    return Answer(_data(state), _code(state))


def _code(state: lab.LabStatus) -> int:
    return EXIT_HOST_FAILED if any(host.state != "running" for host in state.hosts) else 0


def _data(state: lab.LabStatus) -> dict[str, Any]:
    return {
        "owner": str(state.owner) if state.owner else None,
        "hosts": [
            {
                "name": host.name,
                "address": host.address,
                "state": host.state,
                "pid": host.pid,
                "detail": host.detail,
            }
            for host in state.hosts
        ],
    }
