"""From a run and its observations to the one dictionary that every form of the report is rendered from.

Pure: plain data in, plain data out (`build`). The observations come from other machines, so any field may be
missing or of another type; what cannot be used is a gap in the report, never a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tcpfleet.report_words import COUNTERS, GAUGES, STATES

SCHEMA = "tcpfleet.report/1"
PHASES = ("before", "peak", "after", "present")
SIDES = ("server", "client")
PERCENTILES = ("p50", "p90", "p99", "p999", "max")

# phase -> host -> {"status": ..., "observation" | "error": ...}
Observations = Mapping[str, Mapping[str, Mapping[str, Any]]]


def dig(data: Any, *keys: str) -> Any:
    """The value at a path of keys, or None as soon as something on the way is no mapping."""
    for key in keys:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data


def number_at(data: Any, *keys: str) -> int | float | None:
    """The number at a path, or None."""
    value = dig(data, *keys)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def rows_at(data: Any, *keys: str) -> list[Mapping[str, Any]]:
    """The mappings in the list at a path; empty when there is no list."""
    value = dig(data, *keys)
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def why_missing(value: Any) -> str | None:
    """The reason given by ``{"unavailable": reason}``, or None for a value that is there."""
    if value is None:
        return "not observed"
    reason = dig(value, "unavailable")
    return str(reason) if reason is not None else None


def build(run: Mapping[str, Any] | None, observations: Observations, raw_files: Sequence[str]) -> dict[str, Any]:
    """Everything a report says.

    :param run: run.json as read, or None when there was no run.
    :param observations: phase -> host -> saved outcome.
    :param raw_files: paths relative to the run's folder.
    :returns: report.json's content; docs are the keys below and in the functions they come from.
    """
    view = _View(run, observations)
    return {
        "schema": SCHEMA,
        "run_id": dig(run, "run_id"),
        "verdict": verdict(run, view),
        "run": run,
        "plan": plan_rows(run),
        "hosts": view.host_rows(),
        "gaps": view.gaps(),
        "shared": view.shared(),
        "latency": latency_rows(run),
        "timeline": timeline(run),
        "errors": rows_at(run, "errors"),
        "states": state_table(view),
        "listeners": listener_rows(view),
        "server": server_rows(view),
        "counters": counter_rows(view),
        "machines": machine_rows(view),
        "ss": ss_text(view),
        "sysctls": sysctl_table(view),
        "logs": log_rows(view),
        "kernel_log": kernel_log_rows(view),
        "unavailable": unavailable_rows(view),
        "raw_files": list(raw_files),
    }


class _View:
    """The observations with the questions that several panels ask of them."""

    def __init__(self, run: Mapping[str, Any] | None, observations: Observations) -> None:
        self.run = run
        self.observations = observations
        named: list[str] = []
        self.roles: dict[str, list[str]] = {}
        listed = dig(run, "hosts")
        for one in listed if isinstance(listed, list) else []:
            name = one if isinstance(one, str) else dig(one, "name") or dig(one, "host")
            if name is None:
                continue
            named.append(str(name))
            roles = dig(one, "roles") or dig(one, "role") or []
            self.roles[str(name)] = [str(role) for role in (roles if isinstance(roles, list) else [roles])]
        seen = (host for phase in PHASES for host in observations.get(phase, {}))
        self.hosts = list(dict.fromkeys([*named, *sorted(seen)]))
        self.phases = [phase for phase in PHASES if observations.get(phase)]
        self.machines: dict[str, str] = {}
        for host in self.hosts:
            twin = next((one for one in self.machines if self._one_kernel(one, host)), None)
            self.machines[host] = self.machines[twin] if twin else f"machine of {host}"

    def get(self, phase: str, host: str) -> Any:
        """The observation of a host, or None when it was not made."""
        outcome = dig(self.observations, phase, host)
        return dig(outcome, "observation") if dig(outcome, "status") == "ok" else None

    def each(self, *phases: str) -> Iterable[tuple[str, str, Any]]:
        """(phase, host, observation) of all that were made, hosts first."""
        for host in self.hosts:
            for phase in phases or self.phases:
                found = self.get(phase, host)
                if found is not None:
                    yield phase, host, found

    def best(self, host: str) -> tuple[str, Any] | None:
        """The observation that shows a host under load, or failing that its latest state."""
        for phase in ("peak", "present", "after", "before"):
            found = self.get(phase, host)
            if found is not None:
                return phase, found
        return None

    def machine(self, host: str) -> str:
        """What is equal for hosts on one kernel, and only for them."""
        return self.machines[host]

    def _one_kernel(self, a: str, b: str) -> bool:
        """Whether two hosts are one machine: equal boot id, or what only one kernel can show twice.

        systemd-nspawn gives each container a boot id of its own; but the second of boot, the memory and (in one
        phase, so at nearly the same moment) the count of context switches are the machine's.
        """
        boot = self._identity(a, "boot_id")
        if boot is not None and boot == self._identity(b, "boot_id"):
            return True
        for phase in self.phases:
            one, other = self.get(phase, a), self.get(phase, b)
            equal = all(
                dig(one, *path) is not None and dig(one, *path) == dig(other, *path)
                for path in (("cpu", "boot_epoch"), ("memory", "MemTotal"), ("identity", "kernel"))
            )
            x, y = number_at(one, "cpu", "context_switches"), number_at(other, "cpu", "context_switches")
            if equal and x is not None and y is not None and abs(x - y) <= max(x, y) / 100:
                return True
        return False

    def stack(self, host: str) -> str:
        """What is equal for hosts on one network stack: kernel and network namespace."""
        namespace = self._identity(host, "network_namespace")
        return f"{self.machine(host)} {namespace or f'host {host}'}"

    def _identity(self, host: str, key: str) -> str | None:
        for phase in PHASES:
            value = dig(self.get(phase, host), "identity", key)
            if isinstance(value, str):
                return value
        return None

    def groups(self, by: str) -> dict[str, list[str]]:
        """machine or stack -> its hosts, observed ones only."""
        key = self.machine if by == "machine" else self.stack
        found: dict[str, list[str]] = {}
        for host in self.hosts:
            if self.best(host):
                found.setdefault(key(host), []).append(host)
        return found

    def shared(self) -> list[str]:
        """Sentences about what was counted once for several hosts."""
        out = []
        for hosts in self.groups("machine").values():
            if len(hosts) > 1:
                out.append(
                    f"{', '.join(hosts)} are one machine (one kernel): memory, CPU, open files and "
                    "packet queues are counted once."
                )
        for hosts in self.groups("stack").values():
            if len(hosts) > 1:
                out.append(
                    f"{', '.join(hosts)} share one network stack: sockets and network counters are counted once."
                )
        return out

    def host_rows(self) -> list[dict[str, Any]]:
        """Per host: roles, kernel, and per phase whether and when it answered."""
        rows = []
        for host in self.hosts:
            phases = {}
            for phase in self.phases:
                outcome = dig(self.observations, phase, host)
                status = dig(outcome, "status")
                phases[phase] = {
                    "status": str(status) if status else "not observed",
                    "error": str(dig(outcome, "error")) if dig(outcome, "error") else None,
                    "time": dig(outcome, "observation", "time", "iso"),
                }
            best = self.best(host)
            rows.append(
                {
                    "host": host,
                    "roles": self.roles.get(host, []),
                    "kernel": dig(best[1], "identity", "kernel") if best else None,
                    "hostname": dig(best[1], "identity", "hostname") if best else None,
                    "phases": phases,
                }
            )
        return rows

    def gaps(self) -> list[str]:
        """One sentence per host and phase without an answer."""
        out = []
        for host in self.hosts:
            for phase in self.phases:
                if self.get(phase, host) is not None:
                    continue
                outcome = dig(self.observations, phase, host)
                reason = dig(outcome, "error") or ("it was not observed" if outcome is None else "no reason given")
                out.append(f"{host}, {phase}: {dig(outcome, 'status') or 'missing'}: {reason}")
            if not self.phases:
                out.append(f"{host}: it was not observed")
        return out

    def servers(self) -> list[str]:
        """Hosts with a server: those named so by the run, those with a listener on the port."""
        return [
            host
            for host in self.hosts
            if "server" in self.roles.get(host, [])
            or any(
                (number_at(self.get(phase, host), "states", "server", "LISTEN") or 0) > 0
                or dig(self.get(phase, host), "server", "pid")
                for phase in self.phases
            )
        ]


def verdict(run: Mapping[str, Any] | None, view: _View) -> dict[str, Any]:
    """``{"status": "pass"|"fail"|"none", "line", "wall", "evidence", "fix"}``: the report's first lines."""
    from tcpfleet.charts import number

    if run is None:
        hosts = len(view.hosts)
        line = (
            f"No verdict: no run was made; this is the present state of {hosts} host{'s' if hosts != 1 else ''}."
        )
        return {"status": "none", "line": line, "wall": None, "evidence": None, "fix": None}
    status = dig(run, "verdict")
    requested, verified, failed = (
        number_at(run, "connections", name) for name in ("requested", "verified", "failed")
    )
    counts = (
        f"{number(verified)} of {number(requested)} connections held, every first echo verified; "
        f"{number(failed)} failed."
    )
    wall = dig(run, "wall", "name")
    if status == "pass":
        line = f"PASS: {counts}"
        line += f" First limit in sight: {wall}." if wall else " No wall was met."
    elif status == "fail":
        line = f"FAIL: {counts} "
        line += f"The wall: {wall}." if wall else "The wall was not identified: see the errors and counters below."
    else:
        status, line = "none", f"No verdict in run.json. {counts}"
    return {
        "status": status,
        "line": line,
        "wall": wall,
        "evidence": dig(run, "wall", "evidence"),
        "fix": dig(run, "wall", "fix"),
    }


def plan_rows(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """``[{"name", "value"}]`` of run.json's plan: its own fields, then one row per client."""
    plan = dig(run, "plan")
    if not isinstance(plan, Mapping):
        return []
    rows = []
    for name, value in plan.items():
        if name == "servers" and isinstance(value, Mapping):
            for server, facts in value.items():
                known = facts.items() if isinstance(facts, Mapping) else ()
                words = (f"{str(key).replace('_', ' ')} {_count(one)}" for key, one in known if one is not None)
                rows.append({"name": f"server {server}", "value": ", ".join(words)})
            continue
        if name == "shares":
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
        elif isinstance(value, list):
            value = ", ".join(str(one) for one in value)
        rows.append({"name": str(name).replace("_", " "), "value": value})
    for share in rows_at(plan, "shares"):
        own = share.get("plan")
        name = f"client {share.get('index')} on {share.get('host')}"
        if not isinstance(own, Mapping):
            rows.append({"name": name, "value": "left no plan"})
            continue
        sources = own.get("sources")
        workers = own.get("workers")
        rows.append(
            {
                "name": name,
                "value": f"{_count(own.get('connections'))} connections from "
                f"{', '.join(map(str, sources)) if isinstance(sources, list) else sources}, "
                f"ports {own.get('ports')} ({_count(own.get('usable_ports'))} usable, "
                f"{_count(own.get('busy_ports'))} busy), "
                f"{len(workers) if isinstance(workers, list) else workers} processes, "
                f"nofile {_count(dig(own, 'nofile', 'reachable'))}",
            }
        )
    return rows


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def latency_rows(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Percentiles in milliseconds per kind of latency, from run.json unchanged."""
    rows = []
    for kind in ("connect", "service", "response"):
        values = dig(run, "latency_ms", kind)
        if isinstance(values, Mapping):
            rows.append({"kind": kind, **{name: values.get(name) for name in (*PERCENTILES, "count")}})
    return rows


TIMELINE = ("open", "established", "failed", "connects_per_second", "echoes_per_second")


def timeline(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows over time: t in seconds since the start, and `TIMELINE`: connections, and rates per second."""
    return [
        {"t": row["t"], **{name: number_at(row, name) for name in TIMELINE}}
        for row in rows_at(run, "timeline")
        if number_at(row, "t") is not None
    ]


def state_table(view: _View) -> dict[str, Any]:
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


def listener_rows(view: _View) -> list[dict[str, Any]]:
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


def server_rows(view: _View) -> list[dict[str, Any]]:
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
        return f"unavailable: {reason}"
    types = dig(lsof, "counted", "types")
    words = ", ".join(f"{count} {name}" for name, count in types.items()) if isinstance(types, Mapping) else ""
    cut = dig(lsof, "truncated")
    return f"{words or 'no descriptors'}{f' (cut: {cut})' if cut else ''}"


def counter_rows(view: _View) -> list[dict[str, Any]]:
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
            rows.append({"hosts": [host], "problem": "booted between the observations: counters began at 0 again"})
            continue
        for scope, key, tables in (
            ("network stack", view.stack(host), ("netstat", "snmp")),
            ("machine", view.machine(host), ("softnet_stat",)),
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


def machine_rows(view: _View) -> list[dict[str, Any]]:
    """Memory, TCP memory, open files and load per machine and phase."""
    rows = []
    for hosts in view.groups("machine").values():
        for phase in view.phases:
            found = next((one for one in (view.get(phase, host) for host in hosts) if one is not None), None)
            if found is None:
                continue
            slab = [
                number_at(found, "slabs", name, "bytes") or 0
                for name in ("TCP", "TCPv6", "tw_sock_TCP", "tw_sock_TCPv6", "sock_inode_cache", "eventpoll_epi")
            ]
            rows.append(
                {
                    "hosts": hosts,
                    "phase": phase,
                    "memory_total_bytes": number_at(found, "memory", "MemTotal"),
                    "memory_available_bytes": number_at(found, "memory", "MemAvailable"),
                    "tcp_slab_bytes": sum(slab) if why_missing(dig(found, "slabs")) is None else None,
                    "open_files": number_at(found, "files", "open"),
                    "open_files_max": number_at(found, "files", "max"),
                    "conntrack": number_at(found, "conntrack", "count"),
                    "conntrack_max": number_at(found, "conntrack", "max"),
                    "load_1min": number_at(found, "load", "1min"),
                    "cpus": number_at(found, "cpu", "cpus"),
                }
            )
    return rows


def ss_text(view: _View) -> list[dict[str, Any]]:
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


def sysctl_table(view: _View) -> dict[str, Any]:
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
            str(key): f"[{why_missing(value)}]" if why_missing(value) else str(value)
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
        row = [column["values"].get(key, "[not read]") for column in columns]
        rows.append({"key": key, "values": row, "differ": len(set(row)) > 1})
    return {"columns": [{k: v for k, v in c.items() if k != "values"} for c in columns], "rows": rows}


def log_rows(view: _View) -> list[dict[str, Any]]:
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


def kernel_log_rows(view: _View) -> list[dict[str, Any]]:
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


def unavailable_rows(view: _View) -> list[dict[str, Any]]:
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
