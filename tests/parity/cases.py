"""A playbook as a case: how it is run on two hosts in the same state, and all that has to be alike.

Each playbook runs on two hosts, ours on one and Ansible on the other: in check mode, then for real, then once more
with the hosts swapped, so that each program finds what the other left.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.parity import compare, snapshot
from tests.parity.conftest import FIRST, SECOND, Pair
from tests.parity.programs import HERE, Asked, Run
from tests.running import ROOT

WORK = "/root/parity"
# What the playbooks set, and what the kernel has before.
SYSCTLS = {
    "net.core.somaxconn": "4096",
    "net.ipv4.tcp_rmem": "4096 131072 33554432",
    "net.ipv4.tcp_wmem": "4096 16384 4194304",
    "net.core.optmem_max": "131072",
    "net.ipv4.ip_local_port_range": "32768 60999",
    "net.ipv4.tcp_max_syn_backlog": "2048",
    "net.ipv4.tcp_fin_timeout": "60",
}
TUNED = (*SYSCTLS, "net.core.rmem_max", "net.ipv4.tcp_mem")
UNTUNED = "; ".join(f"echo {value} > /proc/sys/{key.replace('.', '/')}" for key, value in SYSCTLS.items())


@dataclass(frozen=True)
class Case:
    """One playbook with its options.

    :ivar name: the playbook's file, without .yml.
    :ivar task: for one of ours, the task that runs it: `inv TASK --hosts node`; else it is one of the suite's.
    :ivar options: for both programs, as ``tags="a,b"``.
    :ivar code: Ansible's exit status of the first run. Ours is 0 exactly when it is.
    :ivar roots, sysctls, units: what is compared besides WORK.
    :ivar reset: a shell script that brings a host to the state the playbook starts from.
    :ivar converges: a second run changes nothing.
    :ivar check: also in check mode, where there is time for that: with --full.
    :ivar fetches: it brings files to the controller, to the folder in the variable `fetched`.
    :ivar own_words: tasks whose output differs by nature: process numbers, times.
    :ivar quick: runs on every `inv test`, not only with --full.
    """

    name: str
    options: dict[str, str] = field(default_factory=dict)
    extra_vars: tuple[str, ...] = ()
    code: int = 0
    roots: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    reset: str = ""
    converges: bool = True
    check: bool = True
    fetches: bool = False
    own_words: tuple[str, ...] = ()
    quick: bool = False
    task: str = ""

    def asked(self) -> Asked:
        """What both programs are told, but for the inventory."""
        return Asked(
            (ROOT / "playbooks" if self.task else HERE / "playbooks") / f"{self.name}.yml",
            HERE,
            extra_vars=self.extra_vars,
            options=self.options,
            fetched=HERE if self.fetches else None,
            task=self.task,
        )

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def run_case(pair: Pair, case: Case) -> list[str]:
    """All differences that a case shows, each as a sentence that begins with the pass."""
    asked = case.asked()
    checked = replace(asked, check=True)
    problems: list[str] = []

    def look(host: str) -> snapshot.Snapshot:
        return snapshot.take(pair.lab, host, roots=(WORK, *case.roots), sysctls=case.sysctls, units=case.units)

    def told(what: str, ours: Run, theirs: Run) -> None:
        found = compare.recaps(ours, theirs) + compare.steps(ours, theirs, case.own_words)
        mine, other = pair.fetched()
        found += snapshot.differences(mine, other)
        if (ours.code == 0) != (theirs.code == 0):
            found.append(f"exit status: ours {ours.code}, Ansible {theirs.code}")
        problems.extend(f"[{what}] {line}" for line in found)

    reset(pair, case)
    first, second = look(FIRST), look(SECOND)
    if case.check and pair.full:
        told("check", *pair.both(checked))
        for host, before in ((FIRST, first), (SECOND, second)):
            problems += [f"[check] {host} was changed: {line}" for line in snapshot.changes(before, look(host))]
        reset(pair, case)
    ours, theirs = pair.both(asked)
    told("first", ours, theirs)
    if theirs.code != case.code:
        why = [f"{step.task}: {step.result.get('msg')}" for step in theirs.steps if step.status == "failed"]
        problems.append(f"[first] Ansible was expected to exit with {case.code}, not {theirs.code}: {why}")
    left = [snapshot.changes(before, look(host)) for host, before in ((FIRST, first), (SECOND, second))]
    problems += [f"[first] {line}" for line in snapshot.differences(*left)]
    ours, theirs = pair.both(asked, ours_on=SECOND, ansible_on=FIRST)
    told("crossed", ours, theirs)
    if case.converges:
        for who, run in (("ours after Ansible", ours), ("Ansible after ours", theirs)):
            problems += [
                f"[crossed] {who}: {host} changed by {names}" for host, names in run.changed().items() if names
            ]
    left = [snapshot.changes(before, look(host)) for host, before in ((FIRST, first), (SECOND, second))]
    problems += [f"[crossed] {line}" for line in snapshot.differences(*left)]
    reset(pair, case)
    return problems


def reset(pair: Pair, case: Case) -> None:
    """Both hosts in the state that the playbook starts from."""
    for host in (FIRST, SECOND):
        pair.lab.ssh(host, f"rm -rf {WORK}\n{case.reset}")
