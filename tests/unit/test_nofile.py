"""nofile: what can be reached, and raising to it; in child processes, as limits cannot be taken back."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import nofile
import pytest

PAYLOAD = Path(__file__).parents[2] / "payload"


def in_child(expression: str, soft: int, hard: int) -> object:
    """Evaluate `expression` (nofile imported) in a process with these limits."""
    code = (
        f"import sys, json; sys.path.insert(0, {str(PAYLOAD)!r}); import nofile; print(json.dumps({expression}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        check=True,
        timeout=20,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    return json.loads(out.stdout)


MAY_RAISE_HARD = nofile.reachable() > resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("nofile.current()", 100),
        ("nofile.reachable(50)", 50),
        ("nofile.reachable(300)", 300),
        ("nofile.raise_nofile(200)", 200),
        ("nofile.raise_nofile(400)", 400),
        ("nofile.raise_nofile(40)", 100),  # never lowered
        ("[nofile.raise_nofile(150), nofile.raise_nofile(350)]", [150, 350]),  # the hard limit stays
    ],
)
def test_within_the_hard_limit(expression: str, expected: object) -> None:
    assert in_child(expression, 100, 400) == expected


def test_beyond_the_hard_limit() -> None:
    expected = 500 if MAY_RAISE_HARD else 400
    assert in_child("nofile.raise_nofile(500)", 100, 400) == expected
    assert in_child("nofile.reachable(500)", 100, 400) == expected


def test_asking_changes_nothing() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert nofile.reachable() >= before[0]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_reachable_is_really_reachable() -> None:
    assert in_child("nofile.raise_nofile(nofile.reachable()) == nofile.reachable()", 100, 400) is True
    assert int(os.popen("cat /proc/sys/fs/nr_open").read()) >= nofile.reachable()
