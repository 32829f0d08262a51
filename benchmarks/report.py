"""`inv bench report`: what collecting costs while the lab's server holds 200,000 connections.

The load runs detached on the lab's four client hosts. Beside it, on the server's host: a raw ``ss -tan``; from a
client host: 50 connections with an echo every 100 ms, alone and with something else that runs all the time: the
raw ``ss`` on the server's host, the same by a login each time, `inv collect-report` of that host, and of all five.
The lab is one machine: what five hosts do at once shares its processors.
"""

from __future__ import annotations

import itertools
import json
import shlex
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from tcpfleet import lab, runs
from tcpfleet.bench import Took, machine, median, own_lab, own_program, publish, table, timed
from tcpfleet.cli import ROOT, Answer, Options
from tcpfleet.errors import HostFailed, Refused

CONNECTIONS = 200_000
PORT = 1883
PROBE_SECONDS = 12
PARTS = {"collect": "observing, sampling and rendering at 200,000 connections"}


def measure(options: Options, rounds: int, only: list[str]) -> Answer:
    """:param rounds: of ``ss -tan``; collecting is repeated for as long as the probe runs.

    :raises BadInput: there is no such part.
    :raises Refused: the lab is not up.
    """
    hosts = own_lab(only, PARTS)
    if "s1" not in hosts:
        raise Refused("the lab has no s1, whose server this measures")
    inv = own_program("inv")
    timed([inv, "tune", "--hosts", "lab"])
    timed([inv, "deploy-server"])
    timed([inv, "stress", "--per-client", "10", "--hold", "1"])  # a run to collect for
    small = str(runs.find("latest"))
    timed([inv, "stress", "--clients", "4", "--per-client", str(CONNECTIONS // 4), "--hold", "600", "--detach"])
    run = Path(str(runs.find("latest")))
    try:
        found = _at_full_load(hosts, inv, Path(small).name, run.name, rounds, options)
    finally:
        timed([inv, "stop-stress"])
    fetched = timed([inv, "collect-report", "--run", run.name])
    found["samples"] = json.loads((run / "samples/s1.json").read_text())
    text = _words(found)
    publish("bench report, collect", f"{text}\n\n{machine()}; {rounds} rounds.")
    options.say(text)
    options.say(fetched.output)
    return Answer({name: value for name, value in found.items() if name != "samples"})


def _at_full_load(
    hosts: dict[str, lab.LabHost], inv: Path, small: str, run_id: str, rounds: int, options: Options
) -> dict[str, Any]:
    _until_held(hosts["s1"])
    options.say("200,000 connections are held")
    raw = [float(_ssh(hosts["s1"], "TIMEFORMAT=%R; time ss -tan > /dev/null")) for _ in range(rounds)]
    loop = f"end=$((SECONDS + {PROBE_SECONDS + 1})); while [ $SECONDS -lt $end ]; do ss -tan > /dev/null; done"
    collect: list[Path | str] = [inv, "collect-report", "--run", small]
    beside: dict[str, list[Path | str]] = {
        "nothing": [],
        "`ss -tan > /dev/null` on s1": _remote(hosts["s1"], loop),
        "`ssh s1 'ss -tan > /dev/null'`": _remote(hosts["s1"], "ss -tan > /dev/null"),
        "`inv collect-report --hosts s1`": [*collect, "--hosts", "s1"],
        "`inv collect-report`, five hosts": collect,
    }
    echoes, collected = {}, []
    for name, argv in beside.items():
        echoes[name], collected = _probe(hosts["c1"], hosts["s1"].address, argv)
    seen = json.loads((runs.REPORTS / small / "observations/present/s1.json").read_text())["observation"]
    sampler = "/proc/$(head -1 /var/lib/tcpfleet/samples/" + run_id + "/s1/pid)"
    stat, memory = _ssh(hosts["s1"], f"cat {sampler}/stat; grep VmRSS {sampler}/status").strip().splitlines()
    fields = stat.rpartition(")")[2].split()
    return {
        "sockets": seen["states"]["sockets"],
        "ss": raw,
        "observed": sum(seen["seconds"].values()),
        "states": seen["states"]["seconds"],
        "collect": [took.seconds for took in collected],
        "memory": max(took.memory for took in collected),
        "echoes": echoes,
        "sampler_cpu": sum(int(ticks) for ticks in fields[11:15]) / 100,
        "sampler_kib": int(memory.split()[1]),
    }


def _until_held(server: lab.LabHost) -> None:
    deadline = time.monotonic() + 90
    while int(_ssh(server, "sed -n 's/^TCP: inuse \\([0-9]*\\).*/\\1/p' /proc/net/sockstat")) < CONNECTIONS:
        if time.monotonic() > deadline:
            raise HostFailed("the load did not reach 200,000 connections within 90 s")
        time.sleep(1)
    time.sleep(5)  # until the ramp's last work is done


def _probe(client: lab.LabHost, server: str, beside: list[Path | str]) -> tuple[dict[str, float], list[Took]]:
    """Percentiles (ms) of echoes on 50 connections; `beside` is run again and again meanwhile."""
    program = "$(ls -t /var/lib/tcpfleet/programs/*/stress_client.py | head -1)"
    words = f"python3 {program} {server} {PORT} --connections 50 --rate 100 --mode heartbeat --interval 0.1"
    argv = [*lab.ssh_command(client, ROOT), f"{words} --hold {PROBE_SECONDS} --json"]
    probe = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    collected = []
    while beside and probe.poll() is None:
        collected.append(timed(beside))
    out, _ = probe.communicate(timeout=60)
    return dict(json.loads(out)["latency_ms"]["service"]), collected


def _remote(host: lab.LabHost, script: str) -> list[Path | str]:
    return [*lab.ssh_command(host, ROOT), f"bash -c {shlex.quote('exec 2>&1; ' + script)}"]


def _ssh(host: lab.LabHost, script: str) -> str:
    return subprocess.run(_remote(host, script), capture_output=True, text=True, check=True).stdout


def _words(found: dict[str, Any]) -> str:
    counting = found["samples"]["states_counting"]
    rows = found["samples"]["rows"]
    gaps = sorted(b["t"] - a["t"] for a, b in itertools.pairwise(rows))
    states = [row["t"] for row in rows if "states" in row]
    return table(
        ["at 200,000 connections", "measured"],
        [
            ["sockets of the port on s1", f"{found['sockets']:,}"],
            ["`ss -tan > /dev/null` on s1", f"{median(found['ss']):.2f} s"],
            ["one look at s1 (`observe`), all sections", f"{found['observed']:.2f} s"],
            ["of that, counting states by netlink", f"{found['states']:.2f} s"],
            ["`inv collect-report`, five hosts, start to end", f"{median(found['collect']):.2f} s"],
            ["memory of the controller, most", f"{found['memory'] / 2**20:.0f} MiB"],
            *(
                [f"echo p50, p99, beside {name}", f"{echo['p50']:.2f}, {echo['p99']:.2f} ms"]
                for name, echo in found["echoes"].items()
            ),
            [
                "sampler on s1: CPU in all, memory",
                f"{found['sampler_cpu']:.2f} s in {rows[-1]['t']:.0f} s, {found['sampler_kib'] / 1024:.0f} MiB",
            ],
            [
                "sampler on s1: rows, states in",
                f"{len(rows)} rows, {statistics.median(gaps):.2f} s apart (at most {gaps[-1]:.2f} s); "
                f"{len(states)} with states, {counting['cpu_seconds']:.2f} s of CPU",
            ],
        ],
    )
