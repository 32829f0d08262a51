"""Feature playbooks, as people write them: ours and ansible-playbook do the same, say the same, leave the same."""

from __future__ import annotations

import pytest

from tests.parity import compare
from tests.parity.cases import TUNED, UNTUNED, WORK, Case, reset, run_case
from tests.parity.conftest import Pair

pytestmark = pytest.mark.lab

THIRTY = ("/etc", "/opt/parity-broker", "/etc/parity-broker", "/var/lib/parity-broker", "/var/log/parity-broker",
          "/usr/local/bin")  # fmt: skip

UNDO_THIRTY = f"""
systemctl disable --now parity-broker 2>/dev/null
rm -rf {" ".join(THIRTY[1:5])} /usr/local/bin/parity-broker /etc/*/*parity-broker* /etc/*/*/*parity-broker*
systemctl daemon-reload
{UNTUNED}
"""
MADE = f"mkdir -p {WORK}"
CASES = (
    Case("thirty_tasks", extra_vars=("target=node",), roots=THIRTY, sysctls=TUNED,
         units=("parity-broker",), reset=UNDO_THIRTY),
    Case("blocks"),
    Case("handlers", quick=True, converges=False),
    Case("handlers_failing", converges=False, code=2),
    Case("loops", converges=False),
    Case("conditions", converges=False),
    Case("variables", extra_vars=("play_against_extra=extra which=second", '{"also": [1, {"x": null}]}')),
    Case("outcomes", converges=False),
    Case("expressions"),
    Case("templating"),
    Case("copying"),
    Case("files", converges=False),
    Case("lines"),
    Case("commands", converges=False),
    Case("looking", fetches=True, converges=False),
    Case("become", roots=("/srv",), reset="rm -rf /srv/parity /etc/parity-forbidden"),
    Case("units", roots=("/etc",), units=("parity", "parity-none"), converges=False,
         reset="systemctl disable --now parity 2>/dev/null; "
               "rm -f /etc/systemd/system/parity*; systemctl daemon-reload"),
    Case("kernel", roots=("/etc",), sysctls=TUNED, converges=False,
         reset=f"rm -f /etc/*/90-parity.conf* /etc/security/limits.d/9*.conf; {UNTUNED}; "
               "touch /etc/security/limits.d/90-parity.conf"),
    Case("facts"),
    Case("texts", converges=False, reset=MADE),
    Case("looking_back", converges=False, check=False, reset=MADE),
    Case("checking", converges=False, code=2, reset=MADE),
    Case("importing", converges=False),
    Case("importing", {"tags": "one"}, converges=False, check=False),
    Case("importing", {"skip_tags": "two,three"}, converges=False, check=False),
    Case("importing", {"tags": "inner,debugging"}, converges=False, check=False),
    Case("importing", {"start_at_task": "Own*"}, converges=False, check=False),
    Case("tier", converges=False, reset=MADE),
    Case("tier", {"tags": "blocked"}, converges=False, check=False, reset=MADE),
    Case("handler_corners", converges=False),
    Case("inheriting", converges=False, reset=MADE),
    Case("inheriting", {"tags": "inner,sub"}, converges=False, check=False, reset=MADE),
    Case("site", check=False, reset=MADE),
    Case("odds", converges=False, code=2, check=False, reset=MADE),
    Case("fatal_blocks", converges=False, code=2),
    Case("dropping", converges=False, code=2),
    Case("flushes", converges=False, code=2),
    *(
        Case("tagged_flushes", options, converges=False, check=False)
        for options in (
            {}, {"tags": "y"}, {"tags": "x"}, {"tags": "never"}, {"skip_tags": "always"}, {"skip_tags": "x"},
            {"skip_tags": "x,always"}, {"start_at_task": "u2"},
        )
    ),
    Case("tags", converges=False, check=False),
    *(
        Case("tags", options, converges=False, check=False)
        for options in (
            {"tags": "install"}, {"tags": "install,second"}, {"tags": "never"}, {"tags": "danger"},
            {"tags": "tagged"}, {"tags": "untagged"}, {"tags": "all"}, {"tags": "always"}, {"tags": "play_tag"},
            {"tags": "imported"}, {"skip_tags": "always"}, {"skip_tags": "install"}, {"skip_tags": "tagged"},
            {"skip_tags": "untagged"}, {"tags": "blocked", "skip_tags": "install"}, {"tags": "slow,never"},
            {"start_at_task": "Configure"}, {"start_at_task": "In the block with its own"},
            {"start_at_task": "Post"}, {"start_at_task": "Step tw*"},
        )
    ),
    Case("sections", converges=False),
    Case("sections", {"tags": "second_import"}, converges=False, check=False, reset=f"mkdir {WORK}"),
    Case("retries"),
    Case("blocks_failing", code=2),
    Case("blocks_failing", {"limit": "n1:n2:!n1"}, check=False),
    Case("blocks_failing", {"limit": "brokers:&replica"}, code=2, check=False),
    Case("once", converges=False),
    Case("serial", converges=False, code=2),
    Case("serial_goes_on", code=2),
    Case("fatal", code=2),
    Case("fatal_task", code=2),
)  # fmt: skip


def cases() -> list[object]:
    return [pytest.param(case, id=case.id, marks=() if case.quick else pytest.mark.full) for case in CASES]


@pytest.mark.parametrize("case", cases())
def test_feature(pair: Pair, case: Case) -> None:
    problems = run_case(pair, case)
    assert not problems, "\n".join(["ours and Ansible differ:", *compare.grouped(problems)])


@pytest.mark.full
def test_pending_handlers_run_later_here_and_never_there(pair: Pair) -> None:
    """The difference that docs/ansible.md gives a paragraph: a host fails between a change and its handler."""
    failing = Case("handlers_failing", extra_vars=("target=node",))
    mended = Case("handlers_failing", extra_vars=("target=node broken=false",))
    reset(pair, failing)
    ours, theirs = pair.both(failing.asked())
    assert ours.recap == theirs.recap and ours.recap["node"]["failed"] == 1
    ours, theirs = pair.both(mended.asked())
    assert ours.changed() == {"node": ["Restart"]} and theirs.changed() == {"node": []}
    ours, _ = pair.both(mended.asked())
    assert ours.changed() == {"node": []}
    reset(pair, failing)


# What docs/ansible.md says on purpose: task -> (ours, Ansible's status).
KNOWN = {
    "A range is a list": ("ok", "failed"),
    "A name that is not defined": ("ok", "ok"),
    "Bytes that are no text": ("changed", "failed"),
}


@pytest.mark.full
def test_known_differences_are_still_there(pair: Pair) -> None:
    case = Case("known_differences")
    reset(pair, case)
    ours, theirs = pair.both(case.asked())
    found = [{step.task: step for step in run.steps} for run in (ours, theirs)]
    assert {task: (found[0][task].status, found[1][task].status) for task in KNOWN} == KNOWN
    shown = [run["A name that is not defined"].result["nowhere"] for run in found]
    assert shown[0] == "VARIABLE IS NOT DEFINED!" and shown[1] != shown[0]
    titles = [step.task for run in (ours, theirs) for step in run.steps if step.result.get("results")]
    assert "Of {{ item }}" in titles and any("error" in title for title in titles)
    titles = [step.task for step in ours.steps if step.play == "In batches"]
    assert sorted(titles) == ["On n1", "On n2"]
    assert [step.task for step in theirs.steps if step.play == "In batches"] == ["On n1", "On n1"]
    reset(pair, case)
