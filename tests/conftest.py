"""Puts the checkout and payload/ on the path: payload modules import one another as top level, as on a host.

Also the options of the suite: tests marked `full` run only under `--full`, tests marked `lab` only where a lab
can be booted, and each says why it was skipped. The lab is here since several
packages share it.
"""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.running import Inv, Lab

ROOT = Path(__file__).resolve().parent.parent
for place in (ROOT, ROOT / "payload"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also the tests marked `full`: matrices, soaks, fuzzing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from tcpfleet import lab

    no_lab = lab.why_not()
    # Those that boot a lab of their own come before the others' lab is up.
    items.sort(key=lambda item: "no_lab" not in getattr(item, "fixturenames", ()))
    for item in items:
        if item.get_closest_marker("full") and not config.getoption("--full"):
            item.add_marker(pytest.mark.skip(reason="long: runs under `inv test --full`"))
        if item.get_closest_marker("lab") and no_lab:
            item.add_marker(pytest.mark.skip(reason=no_lab))


@pytest.fixture(autouse=True)
def no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one process every password is starred in all that is printed; each test has its own."""
    monkeypatch.setattr("tcpfleet.secret._forms", set())


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """The whole run fails on a process, mount, interface, cgroup or descriptor that it leaves."""
    from tests import leaks

    before, descriptors = leaks.snapshot(), leaks.descriptors()
    yield
    gc.collect()
    assert leaks.left_since(before) == {}
    assert leaks.descriptors() <= descriptors


@pytest.fixture(scope="session")
def inv() -> "Inv":
    from tests.running import Inv

    return Inv()


@pytest.fixture(scope="session")
def running_lab(inv: "Inv") -> Iterator["Lab"]:
    """Boots the lab once, unless it is up already; takes down what it booted and checks that nothing is left."""
    from tcpfleet import lab
    from tests import leaks
    from tests.running import Lab

    before = leaks.snapshot()
    was_up = lab.status().owner is not None
    inv("lab-up")
    state = lab.status()
    yield Lab({host.name: lab.LabHost(host.name, host.address) for host in state.hosts})
    if not was_up:
        inv("lab-down")
        assert leaks.left_since(before) == {}
        assert not lab.STATE.exists() and not (ROOT / ".lab").exists()
