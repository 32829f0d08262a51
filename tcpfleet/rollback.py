"""The way back: `rollback`, and the ids and undo commands of the runs that it takes back.

In: hosts whose journals (payload/journal.py) hold what earlier runs changed. Out: an Answer with what became of
every change. The work is done on the hosts by payload/operations/rollback.py; this module chooses the run and the
identities whose journals count, and prints.
"""

from __future__ import annotations

import datetime
import getpass
import platform
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tcpfleet import report, runs
from tcpfleet.cli import Answer, Options
from tcpfleet.errors import EXIT_HOST_FAILED, HostFailed, worst
from tcpfleet.fleet import Outcome, exit_codes
from tcpfleet.link import Become
from tcpfleet.secret import Secret

if TYPE_CHECKING:
    from tcpfleet.link import Session
    from tcpfleet.playbook import Recap

STATUSES = ("restored", "would-restore", "already", "gone", "refused", "failed", "not-reversible")
_STATES = ("damaged", "under way", "can be undone", "undone")  # of a run; the first that one of its parts is in


def new_journal(command: str) -> dict[str, str]:
    """What hosts write at the head of a run's journal: its id, which sorts by time, and who did what.

    :param command: the task and what it ran, without variables: they may be secret.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    run = f"{now:%Y%m%d-%H%M%S}-{now.microsecond:06d}-{secrets.token_hex(2)}"
    return {"run": run, "command": command, "user": f"{getpass.getuser()}@{platform.node()}"}


@dataclass
class Undone:
    """One run that was undone on one host, as far as it could be.

    :ivar entries: what became of each change, newest first: ``what``, ``kind``, ``status``, ``msg``, ``diff``.
    :ivar complete: nothing of it is left to undo.
    """

    run: str
    command: str
    entries: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = True


@dataclass
class HostRollback:
    """What was found and done on one host.

    :ivar listed: all runs there, newest first.
    :ivar notes: what was not looked at, and why.
    """

    listed: list[dict[str, Any]] = field(default_factory=list)
    undone: list[Undone] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """Status -> how many changes have it."""
        return Counter(entry["status"] for one in self.undone for entry in one.entries)

    @property
    def incomplete(self) -> bool:
        """Something could not be undone, or somebody else's change is in the way."""
        return not all(one.complete for one in self.undone)


def rollback(options: Options, *, listing: bool, everything: bool, force: bool, user: str) -> Answer:
    """Undoes the newest run, or all, on every host; or lists them.

    :param user: whose journal is looked at beside root's and the login's own.
    """
    hosts = options.select()

    def work(session: Session) -> HostRollback:
        found = HostRollback()
        journals = _journals(session, options.sudo_password, user, found)
        found.listed = _listed(journals)
        if not listing:
            _undo(session, options, journals, found, everything, force)
        return found

    ended: dict[str, Outcome[HostRollback]] = {}
    try:
        with options.fleet(hosts) as fleet:
            outcomes = fleet.run(work, on_outcome=lambda one: ended.update({one.host.name: one}))
    finally:  # also what was done when a Ctrl-C came
        if ended:
            told = {host.name: ended[host.name] for host in hosts if host.name in ended}
            options.say(render(told, listing=listing).rstrip("\n"))
    for name, done in ended.items() if not options.check else ():
        if done.value is not None:
            report.forget_tuning(runs.REPORTS, name, {one.run for one in done.value.undone})
    if not listing:
        options.say("\nROLLBACK RECAP" + (" (check: nothing was changed)" if options.check else ""))
        for name, outcome in outcomes.items():
            options.say(_recap_line(name, outcome))
    codes = exit_codes(outcomes)
    codes += [EXIT_HOST_FAILED for one in outcomes.values() if one.value is not None and one.value.incomplete]
    failed = [name for name, one in outcomes.items() if one.value is None or one.value.incomplete]
    return Answer({"hosts": {name: _to_json(one) for name, one in outcomes.items()}}, worst(codes), failed)


@dataclass
class _Journals:
    """One identity's journals on a host."""

    become: Become | None
    runs: list[dict[str, Any]]


def identities(session: Session, password: Secret | None, user: str) -> list[tuple[Become | None, bool]]:
    """Those who may have kept something on a host: the login, root or whom the inventory says to become, `user`.

    :returns: each with whether it is only tried: root, where nobody asked for it, may not be had.
    """
    asked: list[tuple[Become | None, bool]] = [(None, False)]
    if session.become is not None:
        asked.append((session.become, False))
    elif session.hello["uid"] != 0:
        asked.append((Become("root", password=password), True))
    if user:
        asked.append(((session.become or Become(password=password))._replace(user=user), False))
    return asked


def _journals(session: Session, password: Secret | None, user: str, found: HostRollback) -> list[_Journals]:
    """The journals of the login, of root (or whom the inventory says to become), and of `user`.

    :raises HostFailed: when an identity that was asked for cannot be had, or a folder cannot be read.
    """
    journals: dict[str, _Journals] = {}
    for become, is_implied in identities(session, password, user):
        answer = session.call("rollback", {"action": "list"}, become=become)
        if not answer.get("failed"):
            journals.setdefault(answer["place"], _Journals(become, answer["runs"]))
        elif is_implied:
            found.notes.append(f"the journal of root was not looked at: {answer.get('msg')}")
        else:
            raise HostFailed(str(answer.get("msg")))
    return list(journals.values())


def _listed(journals: list[_Journals]) -> list[dict[str, Any]]:
    """One entry per run, newest first, though several users may have a part in it."""
    merged: dict[str, dict[str, Any]] = {}
    for journal in journals:
        for run in journal.runs:
            one = merged.setdefault(run["run"], {**run, "entries": 0, "not_reversible": 0})
            for count in ("entries", "not_reversible"):
                one[count] += run[count]
            states = (one["state"], run["state"])
            one["state"] = next(state for state in _STATES if state in states)
            one["msg"] = one["msg"] or run["msg"]
    return sorted(merged.values(), key=lambda one: str(one["run"]), reverse=True)


def _undo(
    session: Session,
    options: Options,
    journals: list[_Journals],
    found: HostRollback,
    everything: bool,
    force: bool,
) -> None:
    waiting = [run for run in found.listed if run["state"] != "undone"]
    for run in waiting if everything else waiting[:1]:
        if run["state"] == "damaged":
            if found.undone:
                found.notes.append(str(run["msg"]))
                found.undone.append(Undone(run["run"], "", complete=False))
                return
            raise HostFailed(str(run["msg"]))
        done = _undo_run(session, journals, run, force, options.check, options.diff)
        found.undone.append(done)


def _undo_run(
    session: Session,
    journals: list[_Journals],
    run: Mapping[str, Any],
    force: bool,
    check: bool = False,
    diff: bool = False,
) -> Undone:
    """Undoes one run on one host, whoever's journals have a part of it."""
    parts = [one for one in journals if any(_is_open(mine, run["run"]) for mine in one.runs)]
    answers: dict[int, dict[str, Any]] = {}
    # A user's files may lie in a folder that root made, or the other way round: what was refused since the
    # other's part was still there gets a second look.
    for number in [*range(len(parts)), *(range(len(parts)) if len(parts) > 1 else ())]:
        if number in answers and answers[number]["undone"]:
            continue
        args = {"action": "undo", "run": run["run"], "force": force}
        answer = session.call("rollback", args, check=check, diff=diff, become=parts[number].become)
        if answer.get("failed"):
            raise HostFailed(str(answer.get("msg")))
        answers[number] = answer
    return Undone(
        run["run"],
        str(run["command"] or ""),
        [entry for number in sorted(answers) for entry in answers[number]["entries"]],
        all(answer["undone"] for answer in answers.values()),
    )


def take_back(session: Session, password: Secret | None, run: str) -> Undone:
    """Undoes a run over the very connection that made it.

    :raises HostFailed: when that cannot be done, or nothing was journalled.
    """
    journals = _journals(session, password, "", HostRollback())
    for one in _listed(journals):
        if one["run"] == run and one["state"] in ("can be undone", "under way"):
            return _undo_run(session, journals, one, False)
    raise HostFailed(f"there is no journal of the run {run}")


def _is_open(run: Mapping[str, Any], ident: str) -> bool:
    return bool(run["run"] == ident and run["state"] != "undone")


# ---------------------------------------------------------------- for people


def render(outcomes: Mapping[str, Outcome[HostRollback]], *, listing: bool) -> str:
    """What came of the hosts, as text; those of which the same is to be told share it."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, outcome in outcomes.items():
        groups.setdefault(tuple(_lines(outcome, listing=listing)), []).append(name)
    return "\n".join("\n".join([", ".join(names), *lines]) + "\n" for lines, names in groups.items())


def _lines(outcome: Outcome[HostRollback], *, listing: bool) -> list[str]:
    from tcpfleet.playbook.console import render_diff

    if outcome.value is None:
        return [f"  {outcome.status}: {outcome.error}"]
    lines = [f"  note: {note}" for note in outcome.value.notes]
    if listing:
        return lines + ([f"  {_run_line(run)}" for run in outcome.value.listed] or ["  no runs"])
    if not outcome.value.undone:
        lines.append("  nothing to undo")
    for one in outcome.value.undone:
        lines.append(f"  run {one.run} ({one.command})")
        for entry in one.entries:
            lines.append(f"    {entry['status']:<14}  {entry['what']}: {entry['msg']}")
            diff = render_diff(entry.get("diff"))
            if diff:
                lines += [f"      {line}" for line in diff.rstrip("\n").split("\n")]
        if not one.complete:
            lines.append("    not everything was undone: run it again when what is in the way is gone, or --force")
    return lines


def _run_line(run: Mapping[str, Any]) -> str:
    text = f"{run['run']}  {_when(run)}  {run.get('command') or '?'}  by {run.get('user') or '?'}"
    text += f"  {run['entries']} changes"
    if run["not_reversible"]:
        text += f" ({run['not_reversible']} not reversible)"
    return f"{text}  {run['state']}" + (f": {run['msg']}" if run["msg"] else "")


def _when(run: Mapping[str, Any]) -> str:
    """When a run was started by the controller's clock, which its id tells; else by the host's."""
    try:
        moment = datetime.datetime.strptime(str(run["run"])[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        if not run.get("started"):
            return "an unknown time"
        try:
            moment = datetime.datetime.fromtimestamp(run["started"], datetime.timezone.utc)
        except (ValueError, OverflowError, OSError):
            return "an unknown time"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _recap_line(name: str, outcome: Outcome[HostRollback]) -> str:
    if outcome.value is None:
        return f"{name:<26} : {outcome.status}"
    counts = outcome.value.counts
    shown = [f"{status}={counts[status]}" for status in STATUSES if counts[status] or status == "restored"]
    return f"{name:<26} : {'  '.join(shown)}"


def _to_json(outcome: Outcome[HostRollback]) -> dict[str, Any]:
    if outcome.value is None:
        return {"status": outcome.status, "error": outcome.error}
    found = outcome.value
    return {
        "status": "failed" if found.incomplete else "ok",
        "runs": found.listed,
        "undone": [
            {"run": one.run, "command": one.command, "complete": one.complete, "entries": one.entries}
            for one in found.undone
        ],
        "counts": dict(found.counts),
        "notes": found.notes,
    }


def say_by_hand(options: Options, recap: Recap) -> None:
    """Prints the shell commands that would undo a run by hand, once for all hosts where they are equal."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for host in recap.undo:
        groups.setdefault(tuple(recap.by_hand(host)), []).append(host)
    for lines, hosts in groups.items():
        options.say(f"\nTo undo run {recap.run}: inv rollback --hosts {','.join(hosts)}; or there, by hand:")
        for line in lines:
            options.say(f"  {line}")
