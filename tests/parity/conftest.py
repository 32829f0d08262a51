"""Two hosts of the lab in the same state, one for each program."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from tests.parity.programs import HERE, Asked, Run, close_connections, run_ansible, run_ours
from tests.running import ROOT, Lab

# The hosts that take turns; others of the lab stay as they are.
FIRST, SECOND = "c1", "c2"


@dataclass(frozen=True)
class Pair:
    """The lab's two hosts, and both programs.

    :ivar full: there is time for more than what must be seen on every run.
    :ivar inventories: host of the lab -> an inventory in which it has all the names of tests/parity/inventory.
    """

    lab: Lab
    peers: Path
    home: Path
    inventories: dict[str, Path]
    full: bool

    def both(self, asked: Asked, ours_on: str = FIRST, ansible_on: str = SECOND) -> tuple[Run, Run]:
        """Runs a playbook with ours and with Ansible, at the same time.

        :param asked: its inventory is replaced by that of the host.
        """
        with ThreadPoolExecutor(2) as pool:
            ours = pool.submit(run_ours, self._on(asked, ours_on, "ours"))
            theirs = pool.submit(run_ansible, self._on(asked, ansible_on, "ansible"), self.peers, self.home)
            return ours.result(), theirs.result()

    def _on(self, asked: Asked, host: str, who: str) -> Asked:
        fetched = self.home / "fetched" / who if asked.fetched else None
        return replace(asked, inventory=self.inventories[host], fetched=fetched)

    def fetched(self) -> list[dict[str, bytes]]:
        """What ours and Ansible brought to the controller: path -> content of each; then it is removed."""
        found = []
        for who in ("ours", "ansible"):
            folder = self.home / "fetched" / who
            files = [path for path in folder.rglob("*") if path.is_file()]
            found.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
            shutil.rmtree(folder, ignore_errors=True)
        return found


@pytest.fixture(scope="session")
def peers() -> Path:
    """The venv with ansible-playbook and pyinfra."""
    from tcpfleet import develop

    return develop.peers()


@pytest.fixture(scope="session")
def pair(running_lab: Lab, peers: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    # Short, for the paths of Unix sockets end at 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="parity-"))
    inventories = {}
    for host in (FIRST, SECOND):
        folder = home / host
        shutil.copytree(HERE / "inventory", folder)
        common = f"-o UserKnownHostsFile={ROOT}/.lab/known_hosts -o StrictHostKeyChecking=yes"
        settings = {
            "ansible_host": running_lab.hosts[host].address,
            "ansible_ssh_private_key_file": str(ROOT / ".lab/id_ed25519"),
            "ansible_ssh_common_args": common,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        (folder / "00-connection.yml").write_text(yaml.safe_dump({"all": {"vars": settings}}))
        inventories[host] = folder
    yield Pair(running_lab, peers, home, inventories, bool(request.config.getoption("--full")))
    close_connections(home)
    shutil.rmtree(home)
    assert not os.path.exists(home)
