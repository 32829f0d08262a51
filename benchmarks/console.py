#!/usr/bin/env python3
"""What it costs to hold a server on an SSH console, as a daemon and as `run --verbose` in a window.

    inv lab-up; .venv/bin/python benchmarks/console.py [--seconds 5] [--connections 200]; inv lab-down

The load is the same each time: stress_client on host c1 in mode flood. Measured on server host s1:

* a daemon;
* `run --verbose` over `ssh -tt`, its output read and thrown away as fast as it comes (a quick window);
* the same where nobody reads (a window that is held: a selection, Ctrl-S, a link that has gone).

Prints a table in Markdown.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tcpfleet import lab  # noqa: E402 - after the path

PORT = 1977
SERVER = "/tmp/tcpfleet-console/echo_server.py"


def ssh(host: str, *options: str) -> list[str]:
    """The argv of a shell on a host; the script is to be appended."""
    hosts = {one.name: one for one in lab.status().hosts}
    command = lab.ssh_command(hosts[host], ROOT)
    return [command[0], *options, *command[1:-1], f"root@{hosts[host].address}"]


def load(connections: int, seconds: float) -> dict[str, float]:
    """Echoes per second and their median and 99th percentile (ms) of a flood from c1."""
    address = next(one.address for one in lab.status().hosts if one.name == "s1")
    script = (
        f"python3 /tmp/tcpfleet-console/stress_client.py {address} {PORT} --connections {connections} "
        f"--mode flood --hold {seconds} --reply-timeout 3 --message 0123456789abcdef --json"
    )
    done = subprocess.run([*ssh("c1"), script], capture_output=True, text=True, timeout=120)
    run = json.loads(done.stdout)
    service = run["latency_ms"]["service"]
    return {
        "rate": run["rate"]["echoes_per_second"],
        "p50": service["p50"],
        "p99": service["p99"],
        "lost": run["echoes"]["lost"] + run["connections"]["failed"],
    }


def main() -> None:
    """Measure the three, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=200)
    a = parser.parse_args()
    for host in ("s1", "c1"):
        subprocess.run([*ssh(host), "rm -rf /tmp/tcpfleet-console; mkdir /tmp/tcpfleet-console"], check=True)
        pack = subprocess.Popen(["tar", "c", "-C", str(ROOT / "payload"), "."], stdout=subprocess.PIPE)
        subprocess.run([*ssh(host), "tar x -C /tmp/tcpfleet-console"], stdin=pack.stdout, check=True)
        pack.wait()
    stop = f"python3 {SERVER} stop --pid-file /tmp/tcpfleet-console/pid"
    place = f"--port {PORT} --pid-file /tmp/tcpfleet-console/pid"
    rows = {}

    start = f"python3 {SERVER} start {place} --log-file /tmp/tcpfleet-console/log"
    subprocess.run([*ssh("s1"), start], check=True, capture_output=True)
    rows["daemon"] = load(a.connections, a.seconds)
    subprocess.run([*ssh("s1"), stop], check=True, capture_output=True)

    for name, sink in (
        ("console that is read", subprocess.DEVNULL),
        ("console that nobody reads", subprocess.PIPE),
    ):
        held = subprocess.Popen(
            [*ssh("s1", "-tt"), f"exec python3 {SERVER} run --verbose {place}"],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(2)
        rows[name] = load(a.connections, a.seconds)
        subprocess.run(
            [*ssh("s1"), f"kill -QUIT $(head -1 /tmp/tcpfleet-console/pid); {stop}"], capture_output=True
        )
        held.kill()
        held.wait()
    print("| server | echoes/s | p50 | p99 | lost or failed |\n|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['rate']:,.0f} | {row['p50']} ms | {row['p99']} ms | {row['lost']:,} |")


if __name__ == "__main__":
    main()
