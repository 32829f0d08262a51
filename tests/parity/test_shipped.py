"""The shipped playbooks: `inv tune`, `deploy-server`, `stop-server` against ansible-playbook on the same files.

The lab has sysctls that can be written, some that are read-only and some that are absent: what a tuner must tell
apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.parity import compare
from tests.parity.cases import TUNED, UNTUNED, Case, run_case
from tests.parity.conftest import FIRST, SECOND, Pair
from tests.parity.programs import Asked, run_ansible
from tests.running import ROOT, Inv, Lab

pytestmark = pytest.mark.lab

TUNE_FILES = (
    "/etc/sysctl.d/99-tcpfleet.conf",
    "/etc/security/limits.d/99-tcpfleet.conf",
    "/etc/systemd/system/tcpfleet-echo.service.d",
)
UNTUNE = f"rm -rf {' '.join(TUNE_FILES)}; systemctl daemon-reload; {UNTUNED}"
UNDEPLOY = (
    "systemctl disable --now tcpfleet-echo.service >/dev/null 2>&1; "
    "python3 /opt/tcpfleet/echo_server.py stop --pid-file /run/tcpfleet-echo.pid >/dev/null 2>&1; "
    "rm -rf /opt/tcpfleet /run/tcpfleet-echo.pid /var/log/tcpfleet-echo.log; "
    "rm -f /etc/systemd/system/tcpfleet-echo.service; systemctl daemon-reload; "
    "systemctl reset-failed tcpfleet-echo.service 2>/dev/null; true"
)

# They say process numbers and times.
TALK = ("Start the server", "Ask whether it runs", "Stop it")


@pytest.fixture
def tidy(pair: Pair) -> Iterator[None]:
    yield
    for host in (FIRST, SECOND):
        pair.lab.ssh(host, f"{UNDEPLOY}; {UNTUNE}")


def check(pair: Pair, case: Case) -> None:
    problems = run_case(pair, case)
    assert not problems, "\n".join(["ours and Ansible differ:", *compare.grouped(problems)])


def test_tune(pair: Pair, tidy: None) -> None:
    """Also that a new login has the new limit: it is part of the snapshot, which is a login of its own."""
    sysctls = tuple(sorted({*TUNED, *profile_keys()}))
    check(pair, Case("tune", {"limit": "node"}, task="tune", roots=("/etc",), sysctls=sysctls, reset=UNTUNE))


def profile_keys() -> list[str]:
    text = (ROOT / "playbooks/profiles/article.yml").read_text()
    return [row["name"] for row in yaml.safe_load(text)["sysctl_profile"]]


@pytest.mark.full
@pytest.mark.parametrize("profile", ["article", "c100k", "c1m", "client"])
def test_tune_on_the_whole_lab(running_lab: Lab, inv: Inv, peers: Path, pair: Pair, profile: str) -> None:
    """The acceptance, as the README has it: either directly after the other reports changed=0."""
    asked = Asked(
        ROOT / "playbooks/tune.yml",
        ROOT / "inventory",
        extra_vars=(f"profile={profile}",),
        options={"limit": "lab"},
    )
    try:
        for name in running_lab.hosts:
            running_lab.ssh(name, UNTUNE)
        ours = inv.json("tune", "--hosts", "lab", "--profile", profile)["hosts"]
        theirs = run_ansible(asked, peers, pair.home)
        assert {name: row["changed"] > 0 for name, row in ours.items()} == dict.fromkeys(running_lab.hosts, True)
        assert theirs.changed() == {name: [] for name in running_lab.hosts}
        assert [row["failed"] for row in theirs.recap.values()] == [0] * len(running_lab.hosts)
        for name in running_lab.hosts:
            running_lab.ssh(name, UNTUNE)
        theirs = run_ansible(asked, peers, pair.home)
        again = inv.json("tune", "--hosts", "lab", "--profile", profile)["hosts"]
        assert {name: row["changed"] for name, row in theirs.recap.items()} == {
            name: row["changed"] for name, row in ours.items()
        }
        assert {name: row["changed"] for name, row in again.items()} == dict.fromkeys(running_lab.hosts, 0)
    finally:
        for name in running_lab.hosts:
            running_lab.ssh(name, UNTUNE)


@pytest.mark.full
def test_deploy_and_stop(pair: Pair, tidy: None) -> None:
    roots = ("/opt", "/etc")
    deployed = ("server_hosts=node",)
    check(
        pair,
        Case(
            "deploy-server", task="deploy-server", extra_vars=deployed, roots=roots, reset=UNDEPLOY, own_words=TALK
        ),
    )


@pytest.mark.full
def test_stop(pair: Pair, tidy: None) -> None:
    """Each stops a server that the other's twin started; a second run finds none."""
    for host in (FIRST, SECOND):
        pair.lab.ssh(host, UNDEPLOY)
    deploy = Case("deploy-server", task="deploy-server", extra_vars=("server_hosts=node",)).asked()
    pair.both(deploy)
    check(
        pair,
        Case(
            "stop-server", task="stop-server", extra_vars=("server_hosts=node",), roots=("/opt",), own_words=TALK
        ),
    )
