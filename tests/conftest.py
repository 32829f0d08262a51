"""Puts the checkout and payload/ on the path: payload modules import one another as top level, as on a host.

Also the options of the suite: tests marked `full` run only under `--full`, tests marked `lab` only where a lab
can be booted, and each says why it was skipped. The lab is here since several packages share it; under
`pytest -n 2` one process has all tests of the lab, for there is one, and another the rest.
"""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

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


class LabApart(LoadScopeScheduling):
    """A file's tests stay in one process, and all files of the packages that share the lab in the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = nodeid.split("::", 1)[0]
        return "lab" if file.startswith(("tests/integration/", "tests/parity/")) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LabApart:
    return LabApart(config, log)


@pytest.fixture(autouse=True)
def no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one process every password is starred in all that is printed; each test has its own."""
    monkeypatch.setattr("tcpfleet.secret._forms", set())


BEFORE = pytest.StashKey[dict[str, set[str]]]()
LEFT = pytest.StashKey[dict[str, set[str]]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    from tests import leaks

    if not hasattr(session.config, "workerinput"):
        session.config.stash[BEFORE] = leaks.snapshot()


@pytest.hookimpl(trylast=True)  # after the fixtures' and the other processes' end
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The whole run fails on a process, mount, interface or cgroup that it leaves, whichever process left it."""
    from tests import leaks

    if not hasattr(session.config, "workerinput"):
        left = session.config.stash[LEFT] = leaks.left_since(session.config.stash[BEFORE])
        if left and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for kind, what in config.stash.get(LEFT, {}).items():
        terminalreporter.write_line(f"ERROR left behind: {kind}: {', '.join(sorted(what))}", red=True)


@pytest.fixture(scope="session", autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    from tests import leaks

    before = leaks.descriptors()
    yield
    gc.collect()
    assert leaks.descriptors() <= before


@pytest.fixture(scope="session")
def packages() -> dict[str, str]:
    """The environment of other people's servers and load tools, from the distribution's packages."""
    from tests.packages import NotHere, environment

    try:
        return environment()
    except NotHere as problem:
        pytest.skip(str(problem))


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
        assert leaks.left_since(before, leaks.LAB) == {}
        assert not lab.STATE.exists() and not (ROOT / ".lab").exists()
