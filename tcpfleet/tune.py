"""What became of every setting that tune.yml asked for, host by host and key by key.

In: the recap of a run of playbooks/tune.yml, and what was read back from the hosts afterwards. Out: a
`HostTuning` per host. A setting counts only as read back: what a write claimed is checked against /proc/sys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from tcpfleet.cli import ROOT
from tcpfleet.errors import HostFailed
from tcpfleet.link import Session
from tcpfleet.playbook import Recap, TaskResult
from tcpfleet.playbook.engine import Fleet

APPLIED, ALREADY, HIGHER, ABSENT, READ_ONLY = "applied", "already", "already (higher)", "absent", "read-only"
REFUSED, OVERRIDDEN, HOST_WIDE, UNKNOWN = "refused", "overridden", "host-wide", "unknown"
_PLAIN = (ABSENT, READ_ONLY, HIGHER)  # their notes say no more than they do
PROFILES = ROOT / "playbooks" / "profiles"
SYSCTL_FILE = "/etc/sysctl.d/99-tcpfleet.conf"
LIMITS_FILE = "/etc/security/limits.d/99-tcpfleet.conf"
# What the play's script prints; a host whose shell prints more, or another number, has told nothing.
_PROBED = re.compile(r"\d{1,15}\n\d{1,15}\n\S+(\n\d{1,15} \d{1,15}(:\w+)? \d{1,15})*\s*", re.ASCII)


@dataclass(frozen=True)
class KeyTuning:
    """One kernel setting on one host.

    :ivar status: applied; already; already (higher): the host had more, and the profile only raises; absent;
        read-only; refused; overridden: in force, but another file sets it at the next boot; host-wide: not
        written, as it belongs to the machine that this container shares; would-apply (check mode); unknown (its
        task gave no result).
    :ivar asked: the value asked for; `in_force`: the value read from /proc/sys at the end, None when there is
        none; `before`: the value found, None when not known; `profile`: what the profile or an override says.
    :ivar after_boot: the value that the next boot will set, None: no file sets it, or it was not looked at;
        `boot_source`: ``FILE:LINE``.
    :ivar errno: name of the error the kernel gave, for refused ones.
    :ivar note: one sentence, where the status alone does not say enough.
    :ivar warning: what the profile says is wrong with the value; empty: nothing.
    :ivar mistaken: the profile or override is wrong, so that the host has failed.
    """

    key: str
    status: str
    asked: str
    in_force: str | None
    before: str | None = None
    errno: str | None = None
    note: str = ""
    profile: str | None = None
    after_boot: str | None = None
    boot_source: str = ""
    warning: str = ""
    mistaken: bool = False


@dataclass(frozen=True)
class LoginLimit:
    """Open-file limits as a new login session sees them; -1 is unlimited."""

    soft: int
    hard: int


class Probe(NamedTuple):
    """Open files, as the play's script prints them; soft limits.

    :ivar granted: the most that a login or unit can have; `asked`: what the profile wants.
    :ivar servers: (pid, what it is to have, what it has) of each process of a server that has less.
    """

    granted: int
    asked: int
    servers: list[tuple[int, int, int]]


@dataclass(frozen=True)
class ServerLimit:
    """The soft limit of a process of a server that ran during the tuning; `now` None: it has gone."""

    pid: int
    before: int
    now: int | None


@dataclass(frozen=True)
class NofileTuning:
    """The open-file limit on one host.

    :ivar asked: what the profile wants; `granted`: what limits.d and the units got, the most that can be had.
    :ivar login: what a new login session has, None when nobody looked.
    :ivar servers: processes whose limit was raised while they ran.
    :ivar note: what follows when granted is less than asked, or a login does not show it.
    """

    asked: int
    granted: int
    login: LoginLimit | None = None
    note: str = ""
    servers: tuple[ServerLimit, ...] = ()


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

    @property
    def failed(self) -> bool:
        """The host did not get what was asked though it could be had: a value was refused, a key misspelt."""
        return self.error is not None or any(key.mistaken for key in self.keys)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class Asked:
    """What the play worked out for one host.

    :ivar values: key -> value asked for; `profile`: key -> what profile and overrides say.
    :ivar warnings: key -> what is wrong with the profile's value.
    :ivar left_alone: keys that belong to the machine this container shares.
    """

    values: Mapping[str, str]
    profile: Mapping[str, str]
    warnings: Mapping[str, str]
    left_alone: frozenset[str]


def asked(recap: Recap) -> dict[str, Asked]:
    """Host name -> what was asked of it, for every host that got as far as working it out."""
    return dict(_each_asked(recap))


def _each_asked(recap: Recap) -> Iterator[tuple[str, Asked]]:
    for host, result in recap.registered("sysctl_facts").items():
        facts = result.result.get("ansible_facts")
        if facts:
            yield (
                host,
                Asked(
                    {str(key): tidy(value) for key, value in facts["sysctl_asked"].items()},
                    {str(key): tidy(value) for key, value in facts["sysctl_told"].items()},
                    {str(key): tidy(value) for key, value in facts["sysctl_warnings"].items()},
                    frozenset(facts["sysctl_left_alone"]),
                ),
            )


def read_back(fleet: Fleet, hosts: Sequence[Any], recap: Recap) -> dict[str, dict[str, Any]]:
    """Reads from each host what is now in force, and what the next boot will set.

    :returns: host name -> result of the operation ``sysctl_read``; hosts that cannot be read are left out.
    """
    wanted = {host: list(one.values) for host, one in _each_asked(recap)}

    def read(session: Session) -> dict[str, Any]:
        name = session.host.name
        found = probed(recap, name)
        args = {
            "names": wanted[name],
            "file": SYSCTL_FILE,
            "limits_file": LIMITS_FILE,
            "processes": [pid for pid, *_limits in found.servers] if found else [],
        }
        result = session.call("sysctl_read", args)
        if not result.get("failed") and result["settings"].keys() != set(wanted[name]):
            raise HostFailed("sysctl_read left out settings that were asked for")
        return result

    outcomes = fleet.run(read, [host for host in hosts if host.name in wanted])
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
    wanted, looked = asked(recap), recap.registered("sysctl_keys")
    written = recap.registered("sysctl_set")
    tables = {}
    for host in recap.hosts:
        results = {str(item["item"]): item for item in _items(written.get(host))}
        stats = {str(item["item"]): item.get("stat", {}) for item in _items(looked.get(host))}
        reading = readings.get(host, {})
        settings, mine = reading.get("settings", {}), wanted.get(host)
        keys = [
            key_tuning(key, value, stats.get(key, {}), results.get(key), settings.get(key), mine)
            for key, value in (mine.values if mine else {}).items()
        ]
        tables[host] = HostTuning(
            host,
            tuple(keys),
            _nofile(probed(recap, host), (logins or {}).get(host), reading),
            recap.reasons.get(host),
        )
    return tables


def key_tuning(
    key: str,
    value: str,
    stat: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    reading: Mapping[str, Any] | None,
    wanted: Asked | None = None,
) -> KeyTuning:
    """One row: what the look, the write and the reading back say together.

    :param value: asked for.
    :param stat: of its path in /proc/sys, before the write.
    :param result: of ``ansible.posix.sysctl``, None when it was not run.
    :param reading: of ``sysctl_read``, None when nothing could be read.
    """
    row = _row(key, value, stat, result, reading, wanted)
    boot = (reading or {}).get("boot")
    source = f"{boot['file']}:{boot['line']}" if boot else ""
    row = replace(
        row,
        profile=wanted.profile.get(key) if wanted else None,
        after_boot=tidy(boot["value"]) if boot else None,
        boot_source=source,
        warning=wanted.warnings.get(key, "") if wanted else "",
    )
    if row.status in (APPLIED, ALREADY, HIGHER) and boot and boot["file"] != SYSCTL_FILE:
        # Under --check the file is not there yet; then only what has a say after it counts.
        later = (reading or {}).get("listed") or boot["file"].rpartition("/")[2] > SYSCTL_FILE.rpartition("/")[2]
        if later and not same(boot["value"], value):
            note = f"in force now; at the next boot {source} sets {tidy(boot['value'])}"
            return replace(row, status=OVERRIDDEN, note=note)
    note = by_system(reading or {}, value) if row.status in (APPLIED, ALREADY, HIGHER) else ""
    return replace(row, note="; ".join(part for part in (row.note, note) if part))


def by_system(reading: Mapping[str, Any], value: str) -> str:
    """What ``sysctl --system`` would make of a key that is on disk, where that is not what is asked; else ''."""
    system = reading.get("system")
    if not system or not reading.get("listed") or same(system["value"], value):
        return ""
    return f"`sysctl --system` would set {tidy(system['value'])} ({system['file']}:{system['line']})"


def later_limits(reading: Mapping[str, Any]) -> str:
    """The lines of limits.d that have a say after the tool's own, as the end of a sentence."""
    later = [f"{one['file']}:{one['line']} ({one['text']})" for one in reading.get("limits", ())]
    return f": {', '.join(later)} come later" if later else ""


def _row(
    key: str,
    value: str,
    stat: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    reading: Mapping[str, Any] | None,
    wanted: Asked | None,
) -> KeyTuning:
    in_force = None if reading is None else reading.get("value")
    fits = in_force is not None and same(in_force, value)
    more = wanted is not None and not same(wanted.profile.get(key, value), value)
    if not stat.get("exists"):
        near = _meant(key, (reading or {}).get("near") or ())
        if near:
            return KeyTuning(
                key, ABSENT, value, in_force, note=f"no such key is known; is {near} meant?", mistaken=True
            )
        return KeyTuning(key, ABSENT, value, in_force, note="this kernel has no such key here")
    if not stat.get("writeable"):
        if fits:
            return KeyTuning(key, HIGHER if more and _is_number(value) else ALREADY, value, in_force)
        return KeyTuning(key, READ_ONLY, value, in_force, note="cannot be written on this host")
    if wanted is not None and key in wanted.left_alone:
        if fits:
            return KeyTuning(key, ALREADY, value, in_force)
        note = "belongs to the whole machine that this container shares; --allow-host-wide writes it"
        return KeyTuning(key, HOST_WIDE, value, in_force, note=note)
    if result is None or "status" not in result:
        return KeyTuning(key, UNKNOWN, value, in_force, note=str((result or {}).get("msg") or "was not tried"))
    status, before = str(result["status"]), result.get("before")
    note = str(result.get("msg", "")) if status in (REFUSED, READ_ONLY, ABSENT) else ""
    if status in (APPLIED, ALREADY) and reading is not None and not fits:
        status, note = REFUSED, f"was {status}, but reads back as {in_force}"
    if status == ALREADY and more and _is_number(value):
        status, note = HIGHER, f"the profile says {wanted.profile[key] if wanted else ''} and only raises"
    return KeyTuning(key, status, value, in_force, before, result.get("errno"), note, mistaken=status == REFUSED)


def _is_number(value: str) -> bool:
    """One number or several, not a list of ports."""
    return all(word.isdigit() for word in value.split())


def _meant(key: str, near: Sequence[str]) -> str:
    """The key that an unknown one was probably meant to be; '' when it may well be one of another kernel.

    Keys of the shipped profiles are known to exist somewhere.
    """
    import difflib

    from tcpfleet.playbook.parse import read_vars

    folder, _, name = key.replace("/", ".").rpartition(".")
    if not near or name in near:
        return ""
    for path in sorted(PROFILES.glob("*.yml")):
        if any(entry["name"] == key for entry in read_vars(path)["sysctl_profile"]):
            return ""
    found = difflib.get_close_matches(name, near, 1, 0.85)
    return f"{folder}.{found[0]}" if found else ""


def probed(recap: Recap, host: str) -> Probe | None:
    """What the play found out about open files on a host; None when it did not get so far."""
    result = recap.registered("nofile_probe").get(host)
    said = "" if result is None else str(result.result.get("stdout", ""))
    if not _PROBED.fullmatch(said):
        return None
    granted, asked_for, _, *servers = said.splitlines()
    rows = [[int(word.partition(":")[0]) for word in line.split()] for line in servers if line.strip()]
    return Probe(int(granted), int(asked_for), [(pid, due, has) for pid, due, has in rows])


def _nofile(probe: Probe | None, login: LoginLimit | None, reading: Mapping[str, Any]) -> NofileTuning | None:
    if probe is None:
        return None
    granted, wanted = probe.granted, probe.asked
    notes = []
    if granted < wanted:
        notes.append(
            f"{wanted} was asked for, {granted} is the most that can be had: {-(-wanted // granted)} processes "
            f"are needed for {wanted} connections"
        )
    if login is not None and 0 <= login.soft < granted:
        notes.append(f"a new login has {login.soft}, not {granted}{later_limits(reading)}")
    seen = reading.get("processes", {})
    servers = tuple(ServerLimit(pid, before, seen.get(str(pid))) for pid, _asked, before in probe.servers)
    return NofileTuning(wanted, granted, login, "; ".join(notes), servers)


def _items(result: TaskResult | None) -> list[Mapping[str, Any]]:
    """Results of a loop's items."""
    return [] if result is None else [item.result for item in result.items]


def same(left: object, right: object) -> bool:
    """Equal but for the kind of white space: the kernel prints tabs."""
    return str(left).split() == str(right).split()


def shown(value: object) -> str:
    """A value for people: a long list is cut, `--json` has all of it.

    >>> shown("1883,2049,2379-2380,3306,5432,5672"), shown(None)
    ('1883,2049,2379-2380,... (6)', '-')
    """
    text = "-" if value is None else tidy(value)
    parts = text.split(",")
    return text if len(text) <= 32 or len(parts) < 4 else f"{','.join(parts[:3])},... ({len(parts)})"


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
            told = f"asked {shown(key.asked):<24}  in force {shown(key.in_force)}"
            lines.append(f"  {key.key:<{width}}  {status:<18}  {told}")
            if key.note and (key.mistaken or key.status not in _PLAIN):
                lines.append(f"  {'':<{width}}  {key.note}")
        if nofile is not None:
            seen = f", a new login has {nofile.login.soft}" if nofile.login else ""
            lines.append(f"  open files: asked {nofile.asked}, granted {nofile.granted}{seen}")
            for one in nofile.servers:
                now = "is gone" if one.now is None else f"has {one.now}"
                lines.append(f"    process {one.pid} of a server had {one.before}, {now}")
            if nofile.note:
                lines.append(f"    {nofile.note}")
        if error:
            lines.append(f"  {error}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts + _render_warnings(tables))


def _render_warnings(tables: Mapping[str, HostTuning]) -> list[str]:
    """What the profile says is wrong with its values, once for all hosts, of values that are now in force."""
    applied = (APPLIED, ALREADY, HIGHER, OVERRIDDEN, "would-apply")
    groups: dict[tuple[str, str], list[str]] = {}
    for name, table in tables.items():
        for key in table.keys:
            if key.warning and key.status in applied:
                groups.setdefault((key.key, key.warning), []).append(name)
    if not groups:
        return []
    lines = ["warnings of the profile (docs/tuning.md has the long story)"]
    lines += [f"  {key}: {warning} [{', '.join(names)}]" for (key, warning), names in groups.items()]
    return ["\n".join(lines) + "\n"]


def render_markdown(tables: Mapping[str, HostTuning], title: str) -> str:
    """The tables for tickets and pull requests: before, asked, after and status of every key of every host."""
    lines = [f"# {title}", ""]
    for name, table in tables.items():
        lines += [f"## {name}", ""]
        if table.error:
            lines += [f"**{_cell(table.error)}**", ""]
        if table.keys:
            lines += [
                "| key | before | asked | in force | after the next boot | status | note |",
                "|" + "---|" * 7,
            ]
        for key in table.keys:
            status = f"{key.status} ({key.errno})" if key.errno else key.status
            before = key.in_force if key.before is None else key.before
            note = "; ".join(part for part in (key.note, key.warning and f"warning: {key.warning}") if part)
            cells = (key.key, before, key.asked, key.in_force, key.after_boot, status, note)
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        if table.nofile is not None:
            nofile = table.nofile
            seen = f", a new login has {nofile.login.soft}" if nofile.login else ""
            lines += [
                "",
                f"Open files: asked {nofile.asked}, granted {nofile.granted}{seen}. {_cell(nofile.note)}",
            ]
        lines.append("")
    return "\n".join(lines)


def _cell(value: object) -> str:
    """Text that does not end a cell or start markup."""
    text = "-" if value is None else tidy(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
