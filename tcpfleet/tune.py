"""What became of every setting that tune.yml asked for, host by host and key by key.

In: the recap of a run of playbooks/tune.yml, and what was read back from the hosts afterwards. Out: a
`HostTuning` per host. A setting counts only as read back: what a write claimed is checked against /proc/sys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tcpfleet.link import Session
from tcpfleet.playbook import Recap, TaskResult
from tcpfleet.playbook.engine import Fleet

APPLIED, ALREADY, ABSENT, READ_ONLY = "applied", "already", "absent", "read-only"
REFUSED, UNKNOWN = "refused", "unknown"


@dataclass(frozen=True)
class KeyTuning:
    """One kernel setting on one host.

    :ivar status: applied, already, absent, read-only, refused, would-apply (check mode), unknown (its task
        gave no result).
    :ivar asked: the value asked for; `in_force`: the value read from /proc/sys at the end, None when there is
        none; `before`: the value found, None when not known.
    :ivar errno: name of the error the kernel gave, for refused ones.
    :ivar note: one sentence, where the status alone does not say enough.
    """

    key: str
    status: str
    asked: str
    in_force: str | None
    before: str | None = None
    errno: str | None = None
    note: str = ""


@dataclass(frozen=True)
class LoginLimit:
    """Open-file limits as a new login session sees them; -1 is unlimited."""

    soft: int
    hard: int


@dataclass(frozen=True)
class NofileTuning:
    """The open-file limit on one host.

    :ivar asked: what the profile wants; `granted`: what limits.d and the unit got, the most that can be had.
    :ivar login: what a new login session has, None when nobody looked.
    :ivar note: what follows when granted is less than asked, or a login does not show it.
    """

    asked: int
    granted: int
    login: LoginLimit | None = None
    note: str = ""


@dataclass(frozen=True)
class HostTuning:
    """All settings of one host.

    :ivar error: why the host has no or no complete table: it failed or was unreachable.
    """

    host: str
    keys: tuple[KeyTuning, ...] = ()
    nofile: NofileTuning | None = None
    error: str | None = None

    def count(self, status: str) -> int:
        """How many keys have a status."""
        return sum(key.status == status for key in self.keys)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


def asked_keys(recap: Recap) -> dict[str, dict[str, str]]:
    """Host name -> key -> value asked for, of every host that got as far as looking at its keys."""
    return {
        host: {str(item["item"]["key"]): tidy(item["item"]["value"]) for item in _items(result)}
        for host, result in recap.registered("sysctl_keys").items()
        if _items(result)
    }


def read_back(fleet: Fleet, hosts: Sequence[Any], recap: Recap) -> dict[str, dict[str, Any]]:
    """Reads from /proc/sys of each host what is now in force.

    :returns: host name -> result of the operation ``sysctl_read``; hosts that cannot be read are left out.
    """
    asked = asked_keys(recap)

    def read(session: Session) -> dict[str, Any]:
        return session.call("sysctl_read", {"names": list(asked[session.host.name])})

    outcomes = fleet.run(read, [host for host in hosts if host.name in asked])
    return {
        name: outcome.value
        for name, outcome in outcomes.items()
        if outcome.status == "ok" and not outcome.value.get("failed")
    }


def held_logins(fleet: Fleet, hosts: Sequence[Any], recap: Recap) -> dict[str, LoginLimit]:
    """Limits of this command's own login, where it was made after the limits were last written.

    On a host whose limits file this run found as it should be, the login that the run itself holds was made
    under that file: another one would show the same.
    """
    written = recap.registered("limits_written")
    unchanged = [host for host in hosts if host.name in written and not written[host.name].changed]
    outcomes = fleet.run(lambda session: session.hello["nofile"], unchanged)
    return {name: LoginLimit(*outcome.value) for name, outcome in outcomes.items() if outcome.status == "ok"}


def summarise(
    recap: Recap,
    readings: Mapping[str, Mapping[str, Any]],
    logins: Mapping[str, LoginLimit] | None = None,
) -> dict[str, HostTuning]:
    """The table of every host of a tune run.

    :param recap: of playbooks/tune.yml.
    :param readings: `read_back`'s, taken after the run.
    :param logins: host name -> limits of a login session opened after the run, where one could be opened.
    :returns: host name -> `HostTuning`, in the recap's order.
    """
    asked, looked = asked_keys(recap), recap.registered("sysctl_keys")
    written, probes = recap.registered("sysctl_set"), recap.registered("nofile_probe")
    tables = {}
    for host in recap.hosts:
        results = {str(item["item"]): item for item in _items(written.get(host))}
        stats = {str(item["item"]["key"]): item.get("stat", {}) for item in _items(looked.get(host))}
        settings = readings.get(host, {}).get("settings", {})
        tables[host] = HostTuning(
            host,
            tuple(
                key_tuning(key, value, stats.get(key, {}), results.get(key), settings.get(key))
                for key, value in asked.get(host, {}).items()
            ),
            _nofile(probes.get(host), (logins or {}).get(host)),
            recap.reasons.get(host),
        )
    return tables


def key_tuning(
    key: str,
    asked: str,
    stat: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    reading: Mapping[str, Any] | None,
) -> KeyTuning:
    """One row: what the look, the write and the reading back say together.

    :param stat: of its path in /proc/sys, before the write.
    :param result: of ``ansible.posix.sysctl``, None when it was not run.
    :param reading: of ``sysctl_read``, None when nothing could be read.
    """
    in_force = None if reading is None else reading.get("value")
    if not stat.get("exists"):
        return KeyTuning(key, ABSENT, asked, in_force, note="this kernel has no such key here")
    if not stat.get("writeable"):
        if in_force is not None and same(in_force, asked):
            return KeyTuning(key, ALREADY, asked, in_force, note="cannot be written here, and need not be")
        return KeyTuning(key, READ_ONLY, asked, in_force, note="cannot be written on this host")
    if result is None or "status" not in result:
        return KeyTuning(key, UNKNOWN, asked, in_force, note=str((result or {}).get("msg") or "was not tried"))
    status, before = str(result["status"]), result.get("before")
    note = str(result.get("msg", "")) if status in (REFUSED, READ_ONLY, ABSENT) else ""
    if status in (APPLIED, ALREADY) and reading is not None and not (in_force and same(in_force, asked)):
        status, note = REFUSED, f"was {status}, but reads back as {in_force}"
    return KeyTuning(key, status, asked, in_force, before, result.get("errno"), note)


def _nofile(probe: TaskResult | None, login: LoginLimit | None) -> NofileTuning | None:
    lines = [] if probe is None else str(probe.result.get("stdout", "")).split()
    if len(lines) != 2:
        return None
    granted, asked = int(lines[0]), int(lines[1])
    notes = []
    if granted < asked:
        notes.append(
            f"{asked} was asked for, {granted} is the most that can be had: {-(-asked // granted)} processes are "
            f"needed for {asked} connections"
        )
    if login is not None and 0 <= login.soft < granted:
        notes.append(f"a new login has {login.soft}, not {granted}")
    return NofileTuning(asked, granted, login, "; ".join(notes))


def _items(result: TaskResult | None) -> list[Mapping[str, Any]]:
    """Results of a loop's items."""
    return [] if result is None else [item.result for item in result.items]


def same(left: object, right: object) -> bool:
    """Equal but for the kind of white space: the kernel prints tabs."""
    return str(left).split() == str(right).split()


def tidy(value: object) -> str:
    """A value as people write it, with single blanks."""
    return " ".join(str(value).split())


def render(tables: Mapping[str, HostTuning]) -> str:
    """The tables as text; hosts whose tables are equal share one."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, table in tables.items():
        groups.setdefault((table.keys, table.nofile, table.error), []).append(name)
    parts = []
    for (keys, nofile, error), names in groups.items():
        lines = [", ".join(names)]
        width = max((len(key.key) for key in keys), default=0)
        for key in keys:
            status = f"{key.status} ({key.errno})" if key.errno else key.status
            in_force = "-" if key.in_force is None else key.in_force
            lines.append(f"  {key.key:<{width}}  {status:<18}  asked {key.asked:<24}  in force {in_force}")
        if nofile is not None:
            seen = f", a new login has {nofile.login.soft}" if nofile.login else ""
            lines.append(f"  open files: asked {nofile.asked}, granted {nofile.granted}{seen}")
            if nofile.note:
                lines.append(f"    {nofile.note}")
        if error:
            lines.append(f"  {error}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
