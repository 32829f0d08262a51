"""Tuning this very machine over the local link, and taking it back: whatever happens, it is put right again."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_rollback import DYING, JOURNAL, SNAPSHOT, differences, inv_with, without_counters


@pytest.fixture
def this_machine(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What this very machine is like; whatever a test leaves different is put back, and the test fails."""
    kept = tmp_path / "etc"
    subprocess.run(["cp", "-a", "/etc", str(kept)], check=True)
    before = local_snapshot()
    try:
        yield before
    finally:
        left = differences(before, local_snapshot())
        for path, (old, _) in left.items():
            with contextlib.suppress(OSError):
                put_back(path, old, kept)
    assert left == {}


def put_back(path: str, old: list[Any] | None, kept: Path) -> None:
    """By other means than those under test.

    :param old: as `SNAPSHOT` told of it; None: it was not there.
    :param kept: a copy of /etc.
    """
    if path.startswith("/proc/"):
        if old is not None and len(old) == 4:
            Path(path).write_text(ast.literal_eval(old[3]).decode())
    elif old is None:
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    elif os.path.isdir(path):
        os.chmod(path, old[0] & 0o7777)
        os.chown(path, old[1], old[2])
    else:
        copy = str(kept) + path.removeprefix("/etc")
        subprocess.run(["cp", "-a", "--remove-destination", copy, path], check=True)


def local_snapshot() -> dict[str, Any]:
    python = ["/usr/bin/python3", "-I", "-S", "-"]
    done = subprocess.run(python, input=SNAPSHOT, capture_output=True, text=True, check=True)
    return without_counters(json.loads(done.stdout))


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can tune this machine")
def test_this_machine_is_tuned_and_taken_back_also_killed_anywhere(
    tmp_path: Path, this_machine: dict[str, Any]
) -> None:
    # A journal of its own: what the machine's owner has run is not touched.
    own = JOURNAL.replace('"/var/lib/tcpfleet"', repr(str(tmp_path / "state")))
    assert own != JOURNAL
    killed, count = True, 0
    while killed:
        count += 1
        payload = tmp_path / "payload"
        done = inv_with(payload, own + DYING.format(count=count), "tune", "--hosts", "local")
        killed = done.returncode == 4
        assert killed or done.returncode == 0, done.stdout + done.stderr
        assert differences(this_machine, local_snapshot()) or count == 1
        done = inv_with(payload, own, "rollback", "--hosts", "local")
        assert done.returncode == 0, done.stdout + done.stderr
        assert differences(this_machine, local_snapshot()) == {}
    assert count > 15
