"""deploy: options of deploy-server as variables, the table of workers, and when logind ends a daemon."""

from typing import Any

import echo_logind
import pytest

from tcpfleet import deploy
from tcpfleet.errors import BadInput


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"server_port": "2000", "server_mode": "", "server_workers": "auto"}, {"server_port": 2000}),
        ({"server_max_connections": "50k"}, {"server_max_connections": 50000}),
        ({"server_mode": "http", "server_manager": "daemon"}, {"server_mode": "http", "server_manager": "daemon"}),
        ({"server_manager": "auto"}, {}),
    ],
)
def test_variables(asked: dict[str, str], expected: dict[str, Any]) -> None:
    assert deploy.variables(**asked) == expected


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"server_mode": "gopher"}, "--mode 'gopher' is none of echo, http"),
        ({"server_manager": "init"}, "--manager 'init' is none of auto, systemd, daemon"),
        ({"server_workers": "513"}, "--workers"),
        ({"server_max_connections": "0"}, "--max-connections: 0 is outside 1 to 100,000,000"),
    ],
)
def test_variables_that_cannot_be(asked: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        deploy.variables(**asked)


def test_a_reload_in_check_mode_reloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It did reload."""
    monkeypatch.setattr(deploy, "server_status", lambda session: {"running": True, "pid": 7, "version": "cafe"})
    session: Any = None  # nothing may be called
    assert deploy._reload(session, check=True) == "pid 7 would be reloaded, now version cafe"


def test_table_of_workers() -> None:
    row = {"pid": 7, "connections": 1500, "limit": 2000, "accepted": 1501, "echoes": 9, "bytes": 2048}
    row |= {"backpressured": 0, "full": 1, "leaving": 0}
    first: dict[str, Any] = {**row, "errors_by_errno": {"ECONNRESET": 2, "EPIPE": 1}}
    second: dict[str, Any] = {**row, "pid": 0, "full": 0, "errors_by_errno": {}}
    assert deploy.worker_table([first, second]) == [
        "worker  connections  limit  accepted  echoes  bytes  slow readers  state     errors",
        "     7        1,500  2,000     1,501       9  2,048             0  full      ECONNRESET 2, EPIPE 1",
        "     0        1,500  2,000     1,501       9  2,048             0  starting  -",
    ]


@pytest.mark.parametrize(
    ("user", "properties", "killed"),
    [
        ("ann", ["b true", "as 0", 'as 1 "root"'], True),
        ("root", ["b true", "as 0", 'as 1 "root"'], False),
        ("root", ["b true", "as 0", "as 0"], True),
        ("ann", ["b false", "as 0", "as 0"], False),
        ("ann", ["b true", 'as 1 "bob"', "as 0"], False),
        ("ann", ["b true", 'as 2 "bob" "ann"', "as 0"], True),
    ],
)
def test_when_logind_ends_a_daemon(user: str, properties: list[str], killed: bool) -> None:
    assert echo_logind.is_killed(user, properties) is killed
