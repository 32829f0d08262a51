"""Synthetic runs for the report's tests: a folder as a run leaves it, of any length and number of hosts.

The observations start from one that a real host gave (this one, without its server) and differ in the numbers.
"""

import copy
import json
import math
import random
from pathlib import Path

from payload.histogram import Histogram
from tcpfleet.report import safe_name, save_observation, save_tuning
from tcpfleet.report_words import STATES

MARKUP = "<b onclick=alert(1)>\"x\" & 'y' $(id) `id` |</b><script>alert(2)</script>\x1b[31m"
WARNING = "c1, client 0: 12 connects took 1 s or more, a SYN retransmission: a full accept queue, or lost packets"
SS = """Total: 200203
TCP:   200003 (estab 200000, closed 0, orphaned 0, timewait 0)

Transport Total     IP        IPv6
RAW\t  0         0         0
UDP\t  0         0         0
TCP\t  200003    200003    0
INET\t  200003    200003    0
FRAG\t  0         0         0
"""


def observation(host="s1", side="server", open_now=0, time_wait=0, drops=0, boot="machine-a", netns=None, **more):
    """One host's observation; `more` replaces whole sections."""
    states = {one: dict.fromkeys(STATES, 0) for one in ("server", "client")}
    states[side]["ESTAB"] = open_now
    states[side]["TIME-WAIT"] = time_wait
    if side == "server":
        states["server"]["LISTEN"] = 1
    found = {
        "schema": "tcpfleet.observation/1",
        "port": 1883,
        "time": {"iso": "2026-01-31T12:00:00.000Z", "epoch": 1769860800.0},
        "identity": {
            "hostname": host,
            "boot_id": boot,
            "network_namespace": netns or f"net:[{host}]",
            "kernel": "Linux 6.18.0 x86_64",
        },
        "ss": {
            "total": open_now + 203,
            "tcp": {"total": open_now + 3, "estab": open_now, "timewait": time_wait},
            "text": SS.replace("200000", str(open_now)),
        },
        "states": {
            **states,
            "sockets": open_now + time_wait,
            "source": "netlink",
            "not_used": [],
            "seconds": 0.412,
        },
        "listeners": [{"address": "0.0.0.0", "port": 1883, "accept_queue": 17, "backlog": 65535}]
        if side == "server"
        else [],
        "counters": {
            "netstat": {
                "TcpExt": {
                    "ListenOverflows": drops,
                    "ListenDrops": drops,
                    "TW": time_wait,
                    "TCPOrigDataSent": open_now,
                }
            },
            "snmp": {"Tcp": {"PassiveOpens": open_now, "CurrEstab": open_now, "RetransSegs": drops}},
            "softnet_stat": {"cpus": 2, "processed": open_now * 3, "dropped": 0, "time_squeeze": 0},
        },
        "server": {
            "pid": 4242,
            "limits": {"Max open files": {"soft": 1048576, "hard": 1048576, "unit": "files"}},
            "processes": [{"pid": 4242 + i, "fds": open_now // 12} for i in range(12)],
            "fds": open_now + 96,
            "rss_bytes": 211 * 2**20,
        }
        if side == "server"
        else {"unavailable": "no pid file was given for this host"},
        "lsof": {"lines": 1000, "truncated": "line limit of 1000", "counted": {"types": {"IPv4": 988, "REG": 3}}}
        if side == "server"
        else {"unavailable": "no pid file was given for this host"},
        "files": {"open": open_now * 2 + 1500, "unused": 0, "max": 2097152},
        "conntrack": {"unavailable": "ENOENT: No such file or directory"},
        "memory": {"MemTotal": 24 * 2**30, "MemAvailable": 22 * 2**30 - open_now * 6300},
        "slabs": {"TCP": {"active": open_now, "total": open_now, "object_bytes": 2368, "bytes": open_now * 2368}},
        "load": {"1min": 1.5},
        "cpu": {"cpus": 2},
        "nofile": {"soft": 1048576, "hard": 1048576},
        "sysctls": {
            "net.core.somaxconn": "65535",
            "net.ipv4.ip_local_port_range": "1025 65000",
            "net.core.rmem_max": {"unavailable": "ENOENT: No such file or directory"},
        },
        "log": {
            "path": "/var/log/tcpfleet-echo.log",
            "lines": ["2026-01-31T11:59:58Z listening on 0.0.0.0:1883", "12 workers, 19,900 connections each"],
            "truncated": False,
        }
        if side == "server"
        else {"unavailable": "no log file was given for this host"},
        "kernel_log": {"records": 100, "matching": 0, "lines": []},
    }
    found.update(more)
    return found


def timeline(seconds, total, step=1.0):
    """Rows of a run that ramps for a third of its time, holds, and closes."""
    rows, before = [], 0
    for index in range(int(seconds / step) + 1):
        t = index * step
        share = min(1.0, t / max(seconds / 3, step))
        established = int(total * share)
        wobble = 1 + 0.08 * math.sin(index / 3)
        rows.append(
            {
                "t": t,
                "open": established if t < seconds * 0.95 else int(total * 0.1),
                "established": established,
                "connects_per_second": (established - before) / step,
                "echoes_per_second": round(established * 0.2 * wobble, 1),
                "failed": 0,
            }
        )
        before = established
    return rows


def series(host, side, seconds, peak, interval=1.0, sparse=1, **more):
    """samples/HOST.json: a host while a run ramps for a third of its time, holds, and closes."""
    rows = []
    for index in range(int(seconds / interval) + 1):
        t = round(index * interval, 3)
        share = min(1.0, t / max(seconds / 3, interval)) if t < seconds * 0.95 else 0.1
        count = int(peak * share)
        row = {
            "t": t,
            "cpu_busy": round(0.1 + 0.8 * share * (1 + 0.1 * math.sin(index)), 3),
            "mem_available": 22 * 2**30 - count * 6300,
            "tcp_mem": count * 12,
            "files": count * 2 + 1500,
            "tcp_inuse": count + 3,
            "tcp_tw": 0,
            "tcp_orphan": 0,
            "counters": {"TCPSynRetrans": 3} if index % 7 == 1 else {},
        }
        if side == "server":
            row |= {"server_rss": 40 * 2**20 + count * 90, "server_connections": count, "server_cpu": share * 1.5}
        if index % sparse == 0:
            row["states"] = {one: {} for one in ("server", "client")}
            row["states"][side] = {"ESTAB": count, "SYN-RECV": int(count * 0.01)} | (
                {"LISTEN": 1} if side == "server" else {}
            )
        rows.append(row)
    found = {"schema": "tcpfleet.samples/1", "host": host, "interval_seconds": interval, "rows": rows}
    return found | {"unavailable": {"slabs": "EACCES: Permission denied"}} | more


def histogram(seed, count):
    """A histogram as run.json has it, of two humps."""
    dice, found = random.Random(seed), Histogram()
    for _ in range(2000):
        found.record(int(dice.lognormvariate(6.5, 0.6)), count // 2000)
    for _ in range(20):
        found.record(int(dice.lognormvariate(11, 0.3)))
    return found.to_dict()


def latencies(seconds, step=0.5):
    """latency_timeline of run.json."""
    rows = []
    for index in range(1, int(seconds / step) + 1):
        slow = 1 + 2 * math.sin(index / 5) ** 2
        point = {"p50": 0.4 * slow, "p99": 7 * slow, "max": 60 * slow, "count": 900}
        rows.append(
            {"t": index * step, "connect": point if index * step < seconds / 3 else None, "response": point}
        )
    return rows


def tuned(host):
    """tuning/HOST.json: what `inv tune` said of a host."""
    keys = [
        ("net.core.somaxconn", "applied", "65535", "65535", "4096", ""),
        ("net.ipv4.ip_local_port_range", "already", "1025 65000", "1025 65000", "1025 65000", ""),
        ("net.core.rmem_max", "read-only", "16777216", None, None, "EROFS"),
        ("net.ipv4.tcp_fin_timeout", "refused", "15", "60", "60", "EPERM"),
    ]
    names = ("key", "status", "asked", "in_force", "before", "note")
    return {"host": host, "keys": [dict(zip(names, key, strict=True)) for key in keys]}


def run(verdict="pass", total=200000, failed=0, seconds=60, **more):
    """A run.json."""
    good = total - failed
    latency = {
        "connect": {"p50": 0.81, "p90": 2.204, "p99": 14.75, "p999": 61.3, "max": 1013.221, "count": good},
        "service": {"p50": 0.412, "p90": 1.9, "p99": 7.05, "p999": 22.125, "max": 88.0, "count": good * 5},
        "response": {"p50": 0.5, "p90": 2.5, "p99": 11.0, "p999": 40.0, "max": 120.75, "count": good * 5},
    }
    found = {
        "schema": "tcpfleet.run/1",
        "run_id": "20260131-120000-a1b2",
        "started": "2026-01-31T12:00:00+00:00",
        "verdict": verdict,
        "command": "inv stress --clients 4 --per-client 50000",
        "connections": {"requested": total, "established": good, "verified": good, "failed": failed, "peak": good},
        "rate": {"connects_per_second": 31250.125, "echoes_per_second": 40321.5},
        "echoes": {"sent": good * 5, "verified": good * 5, "mismatched": 0, "lost": 0},
        "latency_ms": latency,
        "errors": [],
        "wall": None,
        "hosts": ["s1", "c1", "c2"],
        "version": "0.1.0",
        "ended": "2026-01-31T12:01:03.500+00:00",
        "seconds": {"ramp": seconds / 3, "hold": seconds * 2 / 3},
        "warnings": [WARNING],
        "thresholds": [
            {"text": "p99_response_ms > 50", "value": 11.0, "failed": False},
            {"text": "failed_percent >= 1%", "value": 100 * failed / total, "failed": 100 * failed / total >= 1},
        ],
        "histograms": {
            "connect": histogram(1, good),
            "first": histogram(2, good),
            "service": histogram(3, good * 5),
            "response": histogram(4, good * 5),
        },
        "latency_timeline": latencies(seconds, 0.5 if seconds <= 600 else seconds / 1200),
        "timeline": timeline(seconds, good, 0.2 if seconds < 10 else 1.0),
        "plan": {
            "clients": 4,
            "per_client": 50000,
            "target": "10.77.0.11:1883",
            "hold": 10,
            "sources": ["10.77.0.21"],
        },
    }
    if failed:
        found["errors"] = [{"phase": "connect", "errno": "ETIMEDOUT", "count": failed, "host": "c1"}]
        found["wall"] = {
            "name": "accept queue of the server",
            "evidence": f"ListenOverflows rose by {failed:,} on s1",
            "fix": "raise net.core.somaxconn and the server's backlog with `inv tune`",
        }
    found.update(more)
    return found


def host_row(host, index, total):
    """A host of run.json; all but the first have the workers of one client."""
    workers = [
        {"client": index - 1, "index": number, "pid": 100 + number, "connections": total // 40}
        | {
            "established": total // 40,
            "failed": 0,
            "cpu_seconds": 1.5 + number,
            "longest_turn_ms": 3.25,
            "died": None,
        }
        for number in range(3 if index else 0)
    ]
    return {"name": host, "roles": ["client" if index else "server"], "workers": workers, "lost": None}


def fill(folder, record=None, hosts=("s1", "c1", "c2"), total=200000, drops=0, dead=(), one_machine=True):
    """Write a run's folder.

    :param record: run.json's content, or None for no run.
    :param hosts: the first is the server.
    :param dead: hosts unreachable from the peak on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if record is not None:
        rows = record.get("timeline")
        seconds = rows[-1]["t"] if isinstance(rows, list) and rows and isinstance(rows[-1], dict) else 5
        record = dict(record, hosts=[host_row(host, index, total) for index, host in enumerate(hosts)])
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "samples").mkdir(exist_ok=True)
        for index, host in enumerate(hosts):
            side, share = ("client", total // max(1, len(hosts) - 1)) if index else ("server", total)
            lasts = seconds / 2 if host in dead else seconds
            content = series(host, side, lasts, share, max(1.0, seconds / 1200), 1 if seconds < 600 else 20)
            (folder / "samples" / f"{safe_name(host)}.json").write_text(json.dumps(content))
        save_tuning(folder, hosts[0], tuned(hosts[0]))
    clients = max(1, len(hosts) - 1)
    for phase in ("before", "peak", "after", "present") if record is not None else ("present",):
        for index, host in enumerate(hosts):
            if host in dead and phase != "before":
                save_observation(
                    folder,
                    phase,
                    host,
                    {"status": "unreachable", "error": "connection lost: no sign of life for 30 s"},
                )
                continue
            share = total if index == 0 else total // clients
            found = observation(
                host,
                "server" if index == 0 else "client",
                open_now=share if phase == "peak" else 0,
                time_wait=share // 100 if phase == "after" and index else 0,
                drops=drops if phase in ("after", "present") and index == 0 else 0,
                boot="machine-a" if one_machine else f"machine-{host}",
            )
            answer = {"changed": False, "msg": "", "observation": found, "raw": {"ss-s.txt": found["ss"]["text"]}}
            save_observation(folder, phase, host, answer)
    return folder


def poison(value):
    """A copy of plain data in which every text is markup and shell characters (structure and numbers stay)."""
    if isinstance(value, dict):
        return {key: poison(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poison(inner) for inner in value]
    return f"{MARKUP}{value}" if isinstance(value, str) else copy.copy(value)
