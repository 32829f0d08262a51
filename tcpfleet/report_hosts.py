"""What a report says from the observations of the hosts: sockets, server, counters, memory, settings, logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tcpfleet.report_data import SIDES, View, dig, number_at, rows_at, why_missing
from tcpfleet.report_run import spread
from tcpfleet.report_words import COUNTERS, GAUGES, STATES
from tcpfleet.said import said


def state_table(view: View) -> dict[str, Any]:
    """The eleven states by side and phase, summed over hosts; a network stack shared by hosts counts once.

    :returns: ``{"rows": [{"state", "meaning", "high", "server": {phase: n|None}, "client": {...}}], "hosts":
        [{"host", "phase", "source", "seconds", "server": {state: n}, "client": {...}, "problem"}], "sources"}``.
    """
    rows = []
    totals: dict[tuple[str, str, str], int] = {}
    for phase in view.phases:
        counted: set[str] = set()
        for host in view.hosts:
            states = dig(view.get(phase, host), "states")
            if states is None or why_missing(states) or view.stack(host) in counted:
                continue
            counted.add(view.stack(host))
            for side in SIDES:
                for state in STATES:
                    count = number_at(states, side, state)
                    if count is not None:
                        key = (side, state, phase)
                        totals[key] = totals.get(key, 0) + int(count)
    for state, words in STATES.items():
        row: dict[str, Any] = {"state": state, "meaning": words.meaning, "high": words.high}
        for side in SIDES:
            row[side] = {phase: totals.get((side, state, phase)) for phase in view.phases}
        rows.append(row)
    hosts = []
    for phase, host, found in view.each():
        states = dig(found, "states")
        hosts.append(
            {
                "host": host,
                "phase": phase,
                "problem": why_missing(states),
                "source": dig(states, "source"),
                "not_used": rows_at(states, "not_used"),
                "seconds": number_at(states, "seconds"),
                **{side: {state: number_at(states, side, state) for state in STATES} for side in SIDES},
            }
        )
    return {"rows": rows, "hosts": hosts, "phases": view.phases}


def listener_rows(view: View) -> list[dict[str, Any]]:
    """Accept queue (connections waiting) and backlog (its limit) per listener and phase."""
    rows: list[dict[str, Any]] = []
    counted: set[tuple[str, str]] = set()
    for phase, host, found in view.each():
        if (phase, view.stack(host)) in counted:
            continue
        counted.add((phase, view.stack(host)))
        for one in rows_at(found, "listeners"):
            rows.append(
                {
                    "host": host,
                    "phase": phase,
                    "address": f"{one.get('address')}:{one.get('port')}",
                    "accept_queue": one.get("accept_queue"),
                    "backlog": one.get("backlog") if why_missing(one.get("backlog")) is None else None,
                }
            )
    return rows


def server_rows(view: View) -> list[dict[str, Any]]:
    """The server's processes per host and phase: how many, descriptors, memory, limit of open files."""
    rows = []
    for phase, host, found in view.each():
        server = dig(found, "server")
        if number_at(server, "pid") is None:
            continue
        limit = dig(server, "limits", "Max open files")
        rows.append(
            {
                "host": host,
                "phase": phase,
                "pid": number_at(server, "pid"),
                "processes": len(rows_at(server, "processes")),
                "fds": number_at(server, "fds"),
                "rss_bytes": number_at(server, "rss_bytes"),
                "nofile_soft": number_at(limit, "soft"),
                "nofile_hard": number_at(limit, "hard"),
                "nofile_unlimited": isinstance(limit, Mapping) and limit.get("soft", 0) is None,
                "lsof": _lsof_words(dig(found, "lsof")),
            }
        )
    return rows


def _lsof_words(lsof: Any) -> str:
    reason = why_missing(lsof)
    if reason:
        return said("unavailable: {reason}", reason=reason)
    types = dig(lsof, "counted", "types")
    words = ", ".join(f"{count} {name}" for name, count in types.items()) if isinstance(types, Mapping) else ""
    cut = dig(lsof, "truncated")
    words = words or said("no descriptors")
    return said("{words} (cut: {cut})", words=words, cut=str(cut)) if cut else words


def counter_rows(view: View) -> list[dict[str, Any]]:
    """Kernel counters that moved between the observations before and after, those that tell of a wall first.

    Network counters belong to a network stack, softnet to a machine; each is counted once however many hosts
    of the inventory share it.

    :returns: ``[{"hosts", "scope": "network stack"|"machine", "counter", "before", "after", "delta", "meaning",
        "trouble"}]``; a host that booted in between has ``{"hosts", "problem"}``.
    """
    rows: list[dict[str, Any]] = []
    done: set[str] = set()
    for host in view.hosts:
        old, new = view.get("before", host), view.get("after", host)
        if old is None or new is None:
            continue
        if dig(old, "identity", "boot_id") != dig(new, "identity", "boot_id"):
            rows.append(
                {"hosts": [host], "problem": said("booted between the observations: counters began at 0 again")}
            )
            continue
        for scope, key, tables in (
            (said("network stack"), view.stack(host), ("netstat", "snmp")),
            (said("machine"), view.machine(host), ("softnet_stat",)),
        ):
            if key in done:
                continue
            done.add(key)
            members = view.groups("machine" if scope == "machine" else "stack").get(key, [host])
            for name, start, end in _moved(old, new, tables):
                words = COUNTERS.get(name.rpartition(".")[2])
                rows.append(
                    {
                        "hosts": members,
                        "scope": scope,
                        "counter": name,
                        "before": start,
                        "after": end,
                        "delta": end - start,
                        "meaning": words.meaning if words else "",
                        "trouble": bool(words and words.trouble),
                    }
                )
    return sorted(rows, key=lambda row: (not row.get("problem"), not row.get("trouble"), not row.get("meaning")))


def counter_totals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `counter_rows` by counter, in their order.

    :returns: ``[{"counter", "meaning", "trouble", "delta": over all hosts, "hosts": [{"hosts", "delta"}]}]``, the
        hosts with most first.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "counter" in row:
            total = found.setdefault(
                row["counter"],
                {key: row[key] for key in ("counter", "meaning", "trouble")} | {"delta": 0, "hosts": []},
            )
            total["delta"] += row["delta"]
            total["hosts"].append({"hosts": row["hosts"], "delta": row["delta"]})
    for total in found.values():
        total["hosts"].sort(key=lambda one: -one["delta"])
    return list(found.values())


def _moved(old: Any, new: Any, tables: Iterable[str]) -> Iterable[tuple[str, int | float, int | float]]:
    for table in tables:
        groups = dig(new, "counters", table)
        if not isinstance(groups, Mapping) or why_missing(groups):
            continue
        nested = groups if table != "softnet_stat" else {"softnet": groups}
        for group, values in nested.items():
            for name in values if isinstance(values, Mapping) else ():
                if name in GAUGES or name == "cpus":
                    continue
                path = (table, str(group), str(name)) if table != "softnet_stat" else (table, str(name))
                start, end = number_at(old, "counters", *path), number_at(new, "counters", *path)
                if start is not None and end is not None and end != start:
                    yield f"{group}.{name}", start, end


def machine_rows(view: View) -> list[dict[str, Any]]:
    """Memory, TCP memory, open files and load per machine and phase."""
    rows = []
    for hosts in view.groups("machine").values():
        for phase in view.phases:
            found = next((one for one in (view.get(phase, host) for host in hosts) if one is not None), None)
            if found is None:
                continue
            rows.append(
                {
                    "hosts": hosts,
                    "phase": phase,
                    "memory_total_bytes": number_at(found, "memory", "MemTotal"),
                    "memory_available_bytes": number_at(found, "memory", "MemAvailable"),
                    "tcp_slab_bytes": tcp_slab_bytes(found),
                    "open_files": number_at(found, "files", "open"),
                    "open_files_max": number_at(found, "files", "max"),
                    "conntrack": number_at(found, "conntrack", "count"),
                    "conntrack_max": number_at(found, "conntrack", "max"),
                    "load_1min": number_at(found, "load", "1min"),
                    "cpus": number_at(found, "cpu", "cpus"),
                }
            )
    return rows


# What memory per connection is made of; the whole machine's holds the two others and what nobody counts.
SERVER_MEMORY, KERNEL_MEMORY = said("server processes"), said("TCP objects in the kernel")
MACHINE_MEMORY = said("whole machine")
MEMORY = (SERVER_MEMORY, KERNEL_MEMORY, MACHINE_MEMORY)
FEWEST = 10000  # connections from which on memory is told from what else goes on on a machine


def memory_rows(view: View) -> list[dict[str, Any]]:
    """What a connection took, from the growth between the observations before the load and at its peak.

    :returns: ``[{"hosts", "what": one of MEMORY, "bytes": growth, "connections": ends of connections that it is
        for, "each": bytes per end, None below FEWEST of them}]``; a connection inside one machine has two ends.
    """
    rows = []
    for hosts in view.groups("machine").values():
        stacks = {view.stack(host): host for host in reversed(hosts)}
        servers = ends = 0
        for host in stacks.values():
            held = [number_at(view.get("peak", host), "states", side, "ESTAB") or 0 for side in SIDES]
            servers, ends = servers + int(held[0]), ends + int(sum(held))
        grown = {
            SERVER_MEMORY: (_grown(view, list(stacks.values()), "server", "rss_bytes", everywhere=True), servers),
            KERNEL_MEMORY: (_grown_slabs(view, hosts), ends),
            MACHINE_MEMORY: (_grown(view, hosts, "memory", "MemAvailable", sign=-1), ends),
        }
        for what, (amount, count) in grown.items():
            if amount is not None and count:
                each = round(amount / count, 1) if count >= FEWEST else None
                rows.append({"hosts": hosts, "what": what, "bytes": amount, "connections": count, "each": each})
    return rows


def memory_per_connection(view: View) -> dict[str, float]:
    """What each of MEMORY took per end of a connection, in bytes, over all machines; left out where unknown."""
    rows = memory_rows(view)
    found: dict[str, float] = {}
    for what in MEMORY:
        mine = [row for row in rows if row["what"] == what]
        count = sum(row["connections"] for row in mine)
        if count >= FEWEST:
            found[what] = round(sum(row["bytes"] for row in mine) / count, 1)
    return found


def _grown(view: View, hosts: list[str], *path: str, sign: int = 1, everywhere: bool = False) -> float | None:
    """Growth of a figure of a machine from before to the peak; `everywhere`: summed over its hosts."""
    found = []
    for host in hosts:
        old, new = number_at(view.get("before", host), *path), number_at(view.get("peak", host), *path)
        if old is not None and new is not None:
            found.append(sign * (new - old))
    if not found:
        return None
    return sum(found) if everywhere else found[0]


def _grown_slabs(view: View, hosts: list[str]) -> float | None:
    for host in hosts:
        old, new = (tcp_slab_bytes(view.get(phase, host)) for phase in ("before", "peak"))
        if old is not None and new is not None:
            return new - old
    return None


def tcp_slab_bytes(observation: Any) -> float | None:
    """Bytes of the kernel's objects for TCP connections; None where slabs could not be read."""
    slabs = dig(observation, "slabs")
    if why_missing(slabs) is not None:
        return None
    return sum(number_at(slabs, name, "bytes") or 0 for name in _SLABS)


_SLABS = ("TCP", "TCPv6", "tw_sock_TCP", "tw_sock_TCPv6", "sock_inode_cache", "eventpoll_epi")


def ss_text(view: View) -> list[dict[str, Any]]:
    """``ss -s`` of each server at the peak (else the latest), as the tool printed it."""
    rows = []
    for host in view.servers() or view.hosts[:1]:
        best = view.best(host)
        if best:
            text = dig(best[1], "ss", "text")
            reason = why_missing(dig(best[1], "ss"))
            rows.append(
                {
                    "host": host,
                    "phase": best[0],
                    "text": text if isinstance(text, str) else None,
                    "problem": reason,
                    "tcp": dig(best[1], "ss", "tcp"),
                }
            )
    return rows


def sysctl_table(view: View) -> dict[str, Any]:
    """Values in force under load, hosts with equal values in one column.

    :returns: ``{"columns": [{"hosts", "phase", "nofile_soft", "nofile_hard"}], "rows": [{"key", "values": [str],
        "differ"}]}``; a value that could not be read is its reason in brackets.
    """
    columns: list[dict[str, Any]] = []
    keys: list[str] = []
    for host in view.hosts:
        best = view.best(host)
        if best is None:
            continue
        sysctls = dig(best[1], "sysctls")
        if not isinstance(sysctls, Mapping) or why_missing(sysctls):
            continue
        values = {
            str(key): said("[{reason}]", reason=why_missing(value)) if why_missing(value) else str(value)
            for key, value in sysctls.items()
        }
        soft, hard = dig(best[1], "nofile", "soft"), dig(best[1], "nofile", "hard")
        keys.extend(key for key in values if key not in keys)
        same = next(
            (
                column
                for column in columns
                if column["values"] == values and (column["nofile_soft"], column["nofile_hard"]) == (soft, hard)
            ),
            None,
        )
        if same:
            same["hosts"].append(host)
        else:
            columns.append(
                {"hosts": [host], "phase": best[0], "values": values, "nofile_soft": soft, "nofile_hard": hard}
            )
    rows = []
    for key in keys:
        row = [column["values"].get(key, said("[not read]")) for column in columns]
        rows.append({"key": key, "values": row, "differ": len(set(row)) > 1})
    return {"columns": [{k: v for k, v in c.items() if k != "values"} for c in columns], "rows": rows}


CHANGED_SINCE, IN_FORCE, NOT_IN_FORCE = said("changed since"), said("in force"), said("not in force")


def tuning_table(view: View, tuned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What tuning asked for and what became of it; hosts with equal rows share one.

    :param tuned: host -> what the last `inv tune` before the run said of it (tcpfleet.tune.HostTuning as JSON);
        of other hosts what the files of sysctl.d ask is compared with what is in force.
    :returns: ``[{"hosts", "key", "before", "asked", "after", "status", "note"}]``. before: found by the tuning,
        None when it is not known; after: in force under load, None when it was not read. status: as `inv tune`
        says it, or CHANGED_SINCE; without it IN_FORCE or NOT_IN_FORCE. Those that are as asked come last.
    """
    found: dict[tuple[Any, ...], list[str]] = {}
    for host in view.hosts:
        best = view.best(host)
        seen = best[1] if best else None
        asked = dig(seen, "sysctls_asked")
        listed = {} if why_missing(asked) or not isinstance(asked, Mapping) else dict(asked)
        for row in rows_at(tuned.get(host), "keys"):
            key, status = str(row.get("key")), str(row.get("status"))
            listed.pop(key, None)
            after = _in_force(seen, key)
            read_back = row.get("in_force")
            before = row.get("before")
            if before is None and status not in ("applied", "overridden"):
                before = read_back  # what could not be written, or needed not, is as it was
            if after is not None and read_back is not None and _tidy(after) != _tidy(read_back):
                status = CHANGED_SINCE
            texts = [None if value is None else _tidy(value) for value in (before, row.get("asked"))]
            found.setdefault((key, *texts, after, status, str(row.get("note") or "")), []).append(host)
        for key, said_there in listed.items():
            value, after = dig(said_there, "value"), _in_force(seen, str(key))
            if value is None or after is None:
                continue
            status = IN_FORCE if _tidy(value) == _tidy(after) else NOT_IN_FORCE
            note = f"{dig(said_there, 'file')}:{dig(said_there, 'line')}"
            found.setdefault((str(key), None, _tidy(value), after, status, note), []).append(host)
    rows = [
        dict(zip(("key", "before", "asked", "after", "status", "note"), row, strict=True)) | {"hosts": hosts}
        for row, hosts in found.items()
    ]
    fine = (IN_FORCE, "applied", "already", "already (higher)")
    return sorted(rows, key=lambda row: (row["status"] in fine, row["key"]))


def _in_force(observation: Any, key: str) -> str | None:
    sysctls = dig(observation, "sysctls")
    value = sysctls.get(key) if isinstance(sysctls, Mapping) else None
    return _tidy(value) if isinstance(value, (str, int)) else None


def _tidy(value: Any) -> str:
    return " ".join(str(value).split())


def server_balance(view: View) -> list[dict[str, Any]]:
    """How evenly each server's workers were loaded at the peak, as `report_run.balance` has it: connections by the
    server's own word, else descriptors of its processes."""
    found = []
    for host in view.hosts:
        seen = view.get("peak", host) or view.get("present", host)
        rows = rows_at(seen, "server_status", "workers")
        by, key = ("connections", "connections") if rows else ("descriptors", "fds")
        # Without its own word the first process is taken for the supervisor, which holds no connection.
        rows = rows or rows_at(seen, "server", "processes")[1:]
        workers = [
            {
                "name": str(row.get("pid")),
                "connections": None,
                "descriptors": None,
                by: number_at(row, key),
                "cpu_seconds": None,
                "longest_turn_ms": None,
                "failed": None,
                "died": None,
            }
            for row in rows
        ]
        if workers:
            found.append({"host": host, "side": "server"} | spread(workers, by))
    return found


def log_rows(view: View) -> list[dict[str, Any]]:
    """Tail of each server's log, from the latest observation that has one."""
    rows = []
    for host in view.hosts:
        for phase in reversed(view.phases):
            log = dig(view.get(phase, host), "log")
            lines = dig(log, "lines")
            if isinstance(lines, list):
                rows.append(
                    {
                        "host": host,
                        "phase": phase,
                        "path": dig(log, "path"),
                        "truncated": bool(dig(log, "truncated")),
                        "text": "\n".join(str(line) for line in lines),
                    }
                )
                break
    return rows


def kernel_log_rows(view: View) -> list[dict[str, Any]]:
    """Lines of the kernel log that name a wall, once per machine, from its latest observation."""
    rows = []
    for hosts in view.groups("machine").values():
        for phase in reversed(view.phases):
            logs = [dig(view.get(phase, host), "kernel_log") for host in hosts]
            log = next((one for one in logs if isinstance(dig(one, "lines"), list)), None)
            if log is not None:
                for line in rows_at(log, "lines"):
                    rows.append(
                        {"hosts": hosts, **{key: line.get(key) for key in ("seconds", "message", "means")}}
                    )
                break
    return rows


def unavailable_rows(view: View) -> list[dict[str, Any]]:
    """What could not be read, by host and reason; phases that say the same are one row.

    A server's section missing on a host without a server is no gap and is left out.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    servers = set(view.servers())
    for phase, host, observation in view.each():
        sections = observation.items() if isinstance(observation, Mapping) else ()
        for name, value in sections:
            reason = why_missing(value)
            if reason in (None, "not asked for") or (name in ("server", "log", "lsof") and host not in servers):
                continue
            found.setdefault((host, str(name), str(reason)), []).append(phase)
    return [
        {"host": host, "section": name, "reason": reason, "phases": phases}
        for (host, name, reason), phases in found.items()
    ]
