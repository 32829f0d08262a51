"""What every part of a report asks of plain data: values at paths, and the observations of a run's hosts (`View`).

Pure. The observations come from other machines, so any field may be missing or of another type; what cannot be
used is a gap in the report, never a traceback. What is made of them: `report_run` (run.json), `report_hosts` (the
observations), `report_time` (what was sampled during the run); `report.build` puts the parts together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tcpfleet.said import Said, said

PHASES = ("before", "peak", "after", "present")
SIDES = ("server", "client")
PHASE_NAMES = {"before": said("before"), "peak": said("peak"), "after": said("after"), "present": said("present")}
NOT_OBSERVED = said("it was not observed")
LARGEST = 10**30
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
    """The number at a path, or None; JSON as Python reads it knows NaN, Infinity and numbers of any length, which
    are none: nothing that is counted or measured here comes near LARGEST."""
    value = dig(data, *keys)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if -LARGEST <= value <= LARGEST else None


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


class View:
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

    def shared(self) -> list[Said]:
        """Sentences about what was counted once for several hosts."""
        out = []
        for hosts in self.groups("machine").values():
            if len(hosts) > 1:
                out.append(
                    said(
                        "{hosts} are one machine (one kernel): memory, CPU, open files and packet queues are "
                        "counted once.",
                        hosts=", ".join(hosts),
                    )
                )
        for hosts in self.groups("stack").values():
            if len(hosts) > 1:
                out.append(
                    said(
                        "{hosts} share one network stack: sockets and network counters are counted once.",
                        hosts=", ".join(hosts),
                    )
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

    def gaps(self) -> list[Said]:
        """One sentence per host and phase without an answer."""
        out = []
        for host in self.hosts:
            for phase in self.phases:
                if self.get(phase, host) is not None:
                    continue
                outcome = dig(self.observations, phase, host)
                reason = dig(outcome, "error") or (NOT_OBSERVED if outcome is None else said("no reason given"))
                status = str(dig(outcome, "status") or said("missing"))
                out.append(
                    said(
                        "{host}, {phase}: {status}: {reason}",
                        host=host,
                        phase=PHASE_NAMES[phase],
                        status=status,
                        reason=reason,
                    )
                )
            if not self.phases:
                out.append(said("{host}: {reason}", host=host, reason=NOT_OBSERVED))
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
