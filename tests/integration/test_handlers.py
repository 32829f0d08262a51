"""Handlers that are owed: on real hosts, across a failure, a controller that is killed, and another login."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.running import Inv, Lab

STATE = "/var/lib/tcpfleet/handlers.json"
PLAYBOOK = """
- name: Configure
  hosts: c3
  gather_facts: false
  tasks:
    - copy: {content: "{{ wanted }}", dest: /root/owed.conf}
      notify: [restart, topic]
    - command: "{{ then }}"
      changed_when: false
  handlers:
    - name: restart
      shell: echo restarted >> /root/owed.log
    - name: reload
      listen: topic
      shell: echo reloaded >> /root/owed.log
"""


@pytest.fixture
def playbook(tmp_path: Path, running_lab: Lab) -> Path:
    path = tmp_path / "owed.yml"
    path.write_text(PLAYBOOK)
    running_lab.ssh("c3", f"rm -f /root/owed.* {STATE}")
    return path


def test_a_failure_between_change_and_handler(inv: Inv, running_lab: Lab, playbook: Path) -> None:
    failed = inv.json("play", str(playbook), "-e", "wanted=1 then=false", code=2)
    assert failed["pending_handlers"] == {"c3": ["restart", "topic"]}
    assert running_lab.ssh("c3", f"stat -c %a {STATE}").strip() == "600"
    again = inv.json("play", str(playbook), "-e", "wanted=1 then=true")
    assert again["hosts"]["c3"]["ok"] == 4 and not again["pending_handlers"]
    assert running_lab.ssh("c3", "cat /root/owed.log") == "restarted\nreloaded\n"
    running_lab.ssh("c3", f"test ! -e {STATE}")
    third = inv.json("play", str(playbook), "-e", "wanted=1 then=true")
    assert third["hosts"]["c3"]["ok"] == 2


def test_a_controller_killed_between_change_and_handler(inv: Inv, running_lab: Lab, playbook: Path) -> None:
    process = inv.start("play", str(playbook), "-e", "wanted=2", "-e", '{"then": "sleep 3"}')
    deadline = time.monotonic() + 30
    while running_lab.ssh("c3", f"cat {STATE} 2>/dev/null", check=False) == "":
        assert time.monotonic() < deadline and process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    while running_lab.ssh("c3", "pgrep -f '[s]leep 3' || true").strip():
        assert time.monotonic() < deadline, "the agent outlives its controller"
        time.sleep(0.2)
    assert running_lab.ssh("c3", "cat /root/owed.log 2>/dev/null || true") == ""
    inv("play", str(playbook), "-e", "wanted=2 then=true")
    assert running_lab.ssh("c3", "cat /root/owed.log") == "restarted\nreloaded\n"
