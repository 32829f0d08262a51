"""`observe` against real loopback sockets, under every supported Python; the three sources must agree."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.interpreters import INTERPRETERS

ROOT = Path(__file__).resolve().parents[3]
COUNT = 40


@pytest.fixture(scope="module", params=INTERPRETERS, ids=lambda path: path.parts[-3])
def seen(request):
    command = [str(request.param), "-B", "-W", "error", str(Path(__file__).with_name("live.py"))]
    done = subprocess.run(
        [*command, str(ROOT / "payload"), str(COUNT)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def present(counts):
    return {state: count for state, count in counts.items() if count}


@pytest.mark.parametrize("source", ["netlink", "ss", "proc"])
def test_states(seen, source):
    if source == "ss" and not shutil.which("ss"):
        pytest.skip("ss is not installed")
    states = seen[source]["states"]
    assert states["source"] == source
    # 3 wait in the accept queue: established for the kernel, on both sides
    assert present(states["server"]) == {"LISTEN": 1, "ESTAB": COUNT - 2 + 3, "CLOSE-WAIT": 1}
    client = present(states["client"])
    assert client.pop("TIME-WAIT") == 1
    assert client == {"ESTAB": COUNT - 2 + 3, "FIN-WAIT-2": 1}
    assert len(states["server"]) == len(states["client"]) == 11
    peer = {"address": "127.83.7.2", "sockets": COUNT - 1 + 3}
    assert states["peers"]["server"]["top"] == [peer]


@pytest.mark.parametrize("source", ["netlink", "ss", "proc"])
def test_listener_queue(seen, source):
    if source == "ss" and not shutil.which("ss"):
        pytest.skip("ss is not installed")
    (listener,) = seen[source]["listeners"]
    assert listener["address"] == "127.83.7.1"
    assert listener["port"] == seen["port"]
    assert listener["accept_queue"] == 3
    assert listener["backlog"] == (7 if source != "proc" else {"unavailable": "not in /proc/net/tcp"})


def test_listener_drops(seen):
    """Of four, the queue takes one; what other listeners of the machine drop is not theirs."""
    assert (seen["listener_drops"]["drops"], len(seen["listener_drops"]["sockets"])) == (3, 1)
    assert seen["whole"]["observation"]["listener_drops"]["drops"] == 0


def test_server_section(seen):
    server = seen["whole"]["observation"]["server"]
    assert server["pid"] == seen["pid"]
    assert server["fds"] == server["processes"][0]["fds"] == seen["fds"]
    assert server["rss_bytes"] > 1 << 20
    assert server["limits"]["Max open files"] == server["processes"][0]["nofile"]


def test_sysctls_tell_what_is_missing(seen):
    found = seen["whole"]["observation"]["sysctls"]
    assert int(found["net.core.somaxconn"]) > 0
    assert found["net.no.such"]["unavailable"].startswith("ENOENT")
    assert "not the name of a sysctl" in found["../../etc/passwd"]["unavailable"]


def test_log_tail(seen):
    log = seen["whole"]["observation"]["log"]
    assert log["lines"] == [f"line {number}" for number in range(95, 100)]
    assert log["truncated"] is True


def test_whole_observation(seen):
    result = seen["whole"]
    assert result["changed"] is False
    observation = result["observation"]
    assert observation["schema"] == "tcpfleet.observation/1"
    assert observation["counters"]["netstat"]["TcpExt"]
    assert observation["memory"]["MemTotal"] > 0
    assert len(result["raw"]["proc-net-netstat.txt"]) > 100
    assert all(len(text.encode()) <= 256 * 1024 for text in result["raw"].values())


def test_what_files_ask_and_what_the_server_says(seen):
    observation = seen["whole"]["observation"]
    assert set(observation["sysctls_asked"]) <= {"net.core.somaxconn"}
    assert observation["server_status"] == {"running": False, "reason": "there is no /nonexistent/echo_server.py"}


def test_a_raw_text_that_is_cut_is_named(seen):
    whole = seen["whole"]
    (why,) = whole["observation"]["cut"].values()
    assert why in ("line limit of 3", "time limit of 2 s") and f"[stopped: {why}]" in whole["raw"]["lsof.txt"]


def test_missing_tools_are_said(seen):
    observation = seen["no_tools"]
    assert observation["states"]["source"] == "proc"
    assert observation["states"]["not_used"][0]["source"] == "ss"
    assert observation["states"]["not_used"][0]["reason"].startswith("ENOENT")
    assert observation["ss"]["unavailable"].startswith("ENOENT")
    assert observation["lsof"]["unavailable"].startswith("ENOENT")


def test_sections_not_asked_for_are_said(seen):
    assert seen["proc"]["memory"] == {"unavailable": "not asked for"}


def test_bad_arguments_are_named(seen):
    port, section, unknown, kind = seen["refused"]
    assert "port" in port and "port" in kind
    assert "sections: x" in section
    assert "what" in unknown
