"""Many hosts are connected to at the same time: what the threads share must bear it."""

import sys
import threading
from pathlib import Path

import pytest

from tcpfleet.fleet import Fleet
from tcpfleet.inventory import Inventory
from tcpfleet.keys import Keyring
from tcpfleet.route import route


def test_connections_made_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    """fabric.Connection writes into the Config that it is given, which empties and refills it for all others."""
    path = tmp_path / "hosts.yml"
    path.write_text("all: {hosts: {h: {ansible_host: 10.0.0.1, ansible_user: root}}}\n")
    inventory = Inventory.load(path)
    how = inventory.connection(inventory.select("h")[0])
    route(how, 3, Keyring())  # imports done: they would hold the others up
    errors: list[BaseException] = []

    def connect() -> None:
        try:
            route(how, 3, Keyring())
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=connect) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []


def test_what_an_interrupted_command_closes_beneath_a_thread_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a host was being looked at ended with a traceback of that host's thread."""
    path = tmp_path / "hosts.yml"
    path.write_text("all: {hosts: {h: {ansible_connection: local}}}\n")
    inventory = Inventory.load(path)
    with Fleet(inventory.select("h"), inventory.connection) as fleet:
        monkeypatch.setattr(fleet, "_session", lambda *arguments: None)

        def work(session: object) -> None:
            fleet.close()  # as the main thread does meanwhile
            raise ValueError("I/O operation on closed epoll object")

        with pytest.raises(ValueError, match="closed epoll"):
            fleet.run(work)
    assert capsys.readouterr().err == ""
