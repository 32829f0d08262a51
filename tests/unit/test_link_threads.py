"""Many hosts are connected to at the same time: what the threads share must bear it."""

import sys
import threading
from pathlib import Path

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
