"""What has become of a tuning: asked, in force, on disk, after the next boot.

In: a run of tune.yml in check mode, which says what would be asked of each host now, and what was read from the
hosts. Out: a `HostState` per host. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tcpfleet.playbook import Recap
from tcpfleet.tune import SYSCTL_FILE, Asked, LoginLimit, asked, by_system, later_limits, probed, same, shown, tidy

LASTING, ABSENT, READ_ONLY, HOST_WIDE = "lasting", "absent", "read-only", "host-wide"
DRIFT, OVERRIDDEN, NOT_ON_DISK, FILE_CHANGED = "drift", "overridden", "not on disk", "file changed"
DRIFTED = (DRIFT, OVERRIDDEN, NOT_ON_DISK, FILE_CHANGED)
# Files of the play by the name of the task that writes them, as it is registered.
_FILES = {"limits_written": "the limits of logins", "units_written": "the limits of units"}


@dataclass(frozen=True)
class KeyState:
    """One kernel setting on one host.

    :ivar status: lasting: in force, and after the next boot too; drift: another value is in force; overridden:
        in force, but another file sets it at the next boot; not on disk: in force, but no file sets it;
        file changed: in force, but the tool's own file says otherwise by now; absent, read-only, host-wide: it
        cannot be had here.
    :ivar asked: what tune would ask for now; `in_force`: value in /proc/sys, None: there is none.
    :ivar on_disk: what the tool's own file says, None: nothing; `after_boot`: what the next boot will set, None:
        no file does, or none can, so that the kernel's or the machine's counts; `boot_source`: ``FILE:LINE``.
    """

    key: str
    status: str
    asked: str
    in_force: str | None
    on_disk: str | None
    after_boot: str | None
    boot_source: str = ""
    note: str = ""


@dataclass(frozen=True)
class HostState:
    """All settings of one host.

    :ivar profile: what was compared with; `tuned`: the tool's file is there.
    :ivar notes: sentences on open-file limits that are not as asked.
    :ivar error: why there is no table.
    """

    host: str
    profile: str = ""
    tuned: bool = False
    keys: tuple[KeyState, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def drifted(self) -> bool:
        """Something is not as asked, or will not be after the next boot."""
        return bool(self.notes) or any(key.status in DRIFTED for key in self.keys)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self) | {"drifted": self.drifted}


def compare(
    recap: Recap, readings: Mapping[str, Mapping[str, Any]], logins: Mapping[str, LoginLimit]
) -> dict[str, HostState]:
    """The state of every host of a run of tune.yml in check mode.

    :param readings: `tcpfleet.tune.read_back`'s.
    :param logins: host name -> limits of a login made just now.
    """
    wanted = asked(recap)
    tables = {}
    for host in recap.hosts:
        mine, reading = wanted.get(host), readings.get(host)
        if mine is None or reading is None or host in recap.reasons:
            tables[host] = HostState(host, error=recap.reasons.get(host) or "its settings could not be read")
            continue
        keys = tuple(key_state(key, value, reading["settings"][key], mine) for key, value in mine.values.items())
        notes = _limits(recap, host, reading, logins.get(host))
        tables[host] = HostState(host, reading["profile"] or "", reading["profile"] is not None, keys, notes)
    return tables


def key_state(key: str, value: str, reading: Mapping[str, Any], wanted: Asked) -> KeyState:
    """One row.

    :param value: asked for.
    :param reading: of the operation ``sysctl_read``.
    """
    in_force, boot, listed = reading.get("value"), reading.get("boot"), reading.get("listed")
    fits = in_force is not None and same(in_force, value)
    source = f"{boot['file']}:{boot['line']}" if boot else ""
    status, note = LASTING, ""
    if not reading.get("exists"):
        status = ABSENT
    elif not fits and not reading.get("writeable"):
        status = READ_ONLY
    elif not fits and key in wanted.left_alone:
        status = HOST_WIDE
    elif not fits:
        status = DRIFT
    elif not reading.get("writeable") or key in wanted.left_alone:
        pass  # the machine outside decides, now and at the next boot
    elif boot is None:
        status = NOT_ON_DISK
    elif not same(boot["value"], value):
        status = FILE_CHANGED if boot["file"] == SYSCTL_FILE else OVERRIDDEN
        note = f"{source} sets {tidy(boot['value'])}"
    if status == LASTING:
        note = by_system(reading, value)
    if boot is not None and not (reading.get("exists") and reading.get("writeable")):
        boot, source = None, ""  # whatever the file says, boot cannot set it here
    return KeyState(
        key,
        status,
        value,
        None if in_force is None else tidy(in_force),
        tidy(listed["value"]) if listed else None,
        tidy(boot["value"]) if boot else None,
        source,
        note,
    )


def _limits(recap: Recap, host: str, reading: Mapping[str, Any], login: LoginLimit | None) -> tuple[str, ...]:
    """What is not as asked about open files."""
    notes = []
    for name, what in _FILES.items():
        result = recap.registered(name).get(host)
        if result is not None and result.changed:
            notes.append(f"{what} are not on disk as asked")
    probe = probed(recap, host)
    if probe is None:
        return (*notes, "the open-file limit that can be had was not found out")
    if login is not None and 0 <= login.soft < probe.granted:
        notes.append(f"a new login has {login.soft} open files, not {probe.granted}{later_limits(reading)}")
    notes += [f"process {pid} of a server has {has} open files, not {due}" for pid, due, has in probe.servers]
    return tuple(notes)


def render(tables: Mapping[str, HostState]) -> str:
    """The tables as text; hosts whose tables are equal share one."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, table in tables.items():
        groups.setdefault((table.profile, table.tuned, table.keys, table.notes, table.error), []).append(name)
    parts = []
    for (profile, tuned, keys, notes, error), names in groups.items():
        about = "" if error else f": profile {profile}" if tuned else ": never tuned, or rolled back"
        lines = [", ".join(names) + about]
        if error:
            lines.append(f"  {error}")
        rows = [("key", "status", "asked", "in force", "on disk", "after next boot")]
        rows += [
            (key.key, key.status, *map(shown, (key.asked, key.in_force, key.on_disk, key.after_boot)))
            for key in keys
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row, one in zip(rows, (None, *keys), strict=True):
            if keys:
                lines.append("  " + "  ".join(map(str.ljust, row, widths)).rstrip())
            if one is not None and one.note:
                lines.append(f"  {'':<{widths[0]}}  {one.note}")
        lines += [f"  {note}" for note in notes]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
