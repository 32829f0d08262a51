"""Runs on a lab host as ``python3 - WORD``: what playbooks/tune.yml touches, put back between passes.

``save`` keeps the values and files as they are now, ``fresh`` makes the host one that was never tuned, ``restore``
brings back what was saved. Standard library of Python 3.6 only.
"""

import json
import os
import shutil
import subprocess
import sys

SAVED = "/run/tcpfleet-bench.json"
FILES = (
    "/etc/sysctl.d/99-tcpfleet.conf",
    "/etc/security/limits.d/99-tcpfleet.conf",
    "/etc/systemd/system/tcpfleet-echo.service.d/nofile.conf",
)
UNIT_FOLDER = os.path.dirname(FILES[2])
THIRTY = "/opt/tcpfleet-thirty"  # what thirty_tasks.yml makes
# Those of the profile that belong to a host's network namespace; the others cannot be written in the lab.
KEYS = (
    "net/core/somaxconn",
    "net/core/optmem_max",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_fin_timeout",
)


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def remove():
    for path in FILES:
        if os.path.exists(path):
            os.unlink(path)
    shutil.rmtree(UNIT_FOLDER, ignore_errors=True)
    shutil.rmtree(THIRTY, ignore_errors=True)


def fresh():
    remove()
    # A new network namespace has the kernel's own defaults.
    for key in KEYS:
        value = subprocess.check_output(["unshare", "--net", "cat", "/proc/sys/" + key])
        write("/proc/sys/" + key, value.decode())
    subprocess.check_call(["systemctl", "daemon-reload"])


def save():
    state = {
        "values": {key: read("/proc/sys/" + key) for key in KEYS},
        "files": {path: read(path) for path in FILES if os.path.exists(path)},
    }
    write(SAVED, json.dumps(state))


def restore():
    remove()
    state = json.loads(read(SAVED))
    for key, value in state["values"].items():
        write("/proc/sys/" + key, value)
    for path, text in state["files"].items():
        if not os.path.isdir(os.path.dirname(path)):
            os.mkdir(os.path.dirname(path), 0o755)
        write(path, text)
        os.chmod(path, 0o644)
    subprocess.check_call(["systemctl", "daemon-reload"])
    os.unlink(SAVED)


{"save": save, "fresh": fresh, "restore": restore}[sys.argv[1]]()
