"""Before a load: what the server's host has for it, and what it cannot hold.

In: the observation of the target's host before the load, what our server says of itself, and how many connections
are asked. Out: the facts for run.json's plan, and one sentence for each ceiling that is too low. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from payload.stress_plan import OBJECTS, PROCESS_BYTES
from tcpfleet.report_data import dig, number_at, rows_at


def facts(observation: Mapping[str, Any], capacity: int | None, port: int) -> dict[str, Any]:
    """The server's part of the plan; None where something could not be read.

    :param observation: of the host, before the load.
    :param capacity: what our server says that it can hold, None for another's server.
    """
    listeners = [row for row in rows_at(observation, "listeners") if row.get("port") in (port, str(port))]
    processes = rows_at(observation, "server", "processes")
    limits = [value for row in processes if (value := number_at(row, "nofile", "soft")) is not None]
    files = dig(observation, "files")
    used, most = number_at(files, "open"), number_at(files, "max")
    table = dig(observation, "conntrack")
    entries, room = number_at(table, "count"), number_at(table, "max")
    sysctls = dig(observation, "sysctls")

    def sysctl(name: str) -> str | None:
        value = dig(sysctls, name)
        return value if isinstance(value, str) else None

    return {
        "capacity": capacity,
        "processes": len(processes) or None,
        "nofile_per_process": min(limits) if limits else None,
        "backlog": max((int(number_at(row, "backlog") or 0) for row in listeners), default=None),
        "accept_queue": sum(int(number_at(row, "accept_queue") or 0) for row in listeners) if listeners else None,
        "somaxconn": sysctl("net.core.somaxconn"),
        "tcp_max_syn_backlog": sysctl("net.ipv4.tcp_max_syn_backlog"),
        "tcp_syncookies": sysctl("net.ipv4.tcp_syncookies"),
        "tcp_mem": sysctl("net.ipv4.tcp_mem"),
        "files_free": max(0, int(most - used)) if most is not None and used is not None else None,
        "memory_available": number_at(observation, "memory", "MemAvailable"),
        "bytes_per_connection": connection_bytes(observation),
        # A table with no entry at all tracks nothing in this network namespace.
        "conntrack_free": max(0, int(room - entries)) if room is not None and entries else None,
        "boot_id": dig(observation, "identity", "boot_id"),
    }


def connection_bytes(observation: Mapping[str, Any]) -> int:
    """Memory of one end of an idle connection in bytes: the kernel's objects on this host, and its process."""
    sizes = (number_at(observation, "slabs", name, "object_bytes") or usual for name, usual in OBJECTS)
    return int(sum(sizes)) + PROCESS_BYTES


def refusals(plan: Mapping[str, Any], wanted: int, ends_here: int) -> list[str]:
    """One sentence for each ceiling of the server's host that is below what is asked.

    :param plan: what `facts` returned.
    :param wanted: connections of the whole run.
    :param ends_here: ends of connections that this machine holds: `wanted`, and those of clients on it.
    """
    found = []
    checks = (
        ("capacity", "the server can hold", wanted, f"`inv deploy-server --max-connections {wanted}`"),
        ("files_free", "open files (fs.file-max) are free:", ends_here, "raise fs.file-max with `inv tune`"),
        ("conntrack_free", "free entries in the conntrack table:", wanted, "raise net.netfilter.nf_conntrack_max"),
    )
    for name, words, need, fix in checks:
        have = plan.get(name)
        if have is not None and have < need:
            found.append(
                f"the server can hold {have:,} connections, {need:,} are asked: {fix}"
                if name == "capacity"
                else f"{words} {have:,}, {need:,} are needed for {wanted:,} connections: {fix}"
            )
    memory = plan.get("memory_available")
    need = ends_here * int(plan["bytes_per_connection"])
    if memory is not None and memory < need:
        found.append(
            f"{need / 2**20:,.0f} MiB of memory are needed for {ends_here:,} ends of connections at "
            f"{plan['bytes_per_connection']:,} bytes, {memory / 2**20:,.0f} MiB are free: use fewer connections, "
            "or a machine with more memory"
        )
    return found
