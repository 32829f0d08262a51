"""Puts the checkout and payload/ on the path: payload modules import one another as top level, as on a host.

Also the options of the suite: tests marked `full` run only under `--full`, tests marked `lab` only where a lab
can be booted, and each says why it was skipped.
"""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for place in (ROOT, ROOT / "payload"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also the tests marked `full`: matrices, soaks, fuzzing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from tcpfleet import lab

    no_lab = lab.why_not()
    for item in items:
        if item.get_closest_marker("full") and not config.getoption("--full"):
            item.add_marker(pytest.mark.skip(reason="long: runs under `inv test --full`"))
        if item.get_closest_marker("lab") and no_lab:
            item.add_marker(pytest.mark.skip(reason=no_lab))


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """The whole run fails on a process, mount, interface, cgroup or descriptor that it leaves."""
    from tests import leaks

    before, descriptors = leaks.snapshot(), leaks.descriptors()
    yield
    gc.collect()
    assert leaks.left_since(before) == {}
    assert leaks.descriptors() <= descriptors
