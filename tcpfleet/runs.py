"""The folder `reports/`: one sub-folder per run, `latest` a symlink to the newest.

In: a run's parts as they come. Out: reports/RUN_ID/run.json and what lies beside it. The newest run is the one
that was created last; a folder appears whole or not at all in `latest`.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import IO, Any

from tcpfleet.cli import ROOT, strict_json
from tcpfleet.errors import BadInput
from tcpfleet.secret import redacted

REPORTS = ROOT / "reports"
_RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")


def new_run_id() -> str:
    """A sortable name, UTC: 20260131-235959-a1b2."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def check_writable(folder: Path | None = None) -> None:
    """Find out before the work, not at its end.

    :param folder: of a run; reports/ without one.
    :raises BadInput: it cannot be written.
    """
    try:
        REPORTS.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder or REPORTS):
            pass
    except OSError as error:
        raise BadInput(f"cannot write reports to {folder or REPORTS}: {error.strerror}") from None


def hold(folder: Path, who: str) -> IO[str]:
    """Keep a folder to this command until what is returned is closed; waits while another command holds it.

    Two that write there at a time would mix up each other's files.

    :param who: the command, for `holder`.
    """
    file = open(folder / ".lock", "a", encoding="utf-8")  # noqa: SIM115 (the caller closes it)
    fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(who)
    file.flush()
    return file


def holder(folder: Path) -> str | None:
    """The command that holds a folder; None when nobody does."""
    try:
        with open(folder / ".lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return (folder / ".lock").read_text(encoding="utf-8") or "another command"
    return None


def create(run_id: str, *, latest: bool = True) -> Path:
    """Make the run's folder and point `latest` at it, unless there was only a plan."""
    folder = REPORTS / run_id
    folder.mkdir(parents=True)
    if not latest:
        return folder
    link = REPORTS / f".latest-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(run_id)
    link.replace(REPORTS / "latest")
    return folder


def find(run_id: str | None) -> Path | None:
    """The folder of a run, or of the newest one; None when there is no run at all.

    :param run_id: or its folder's path, as a shell completes it.
    :raises BadInput: a run id that does not exist.
    """
    if run_id and run_id != "latest":
        above, name = os.path.split(os.path.realpath(run_id)) if "/" in run_id else ("", run_id)
        name = name if not above or above == os.path.realpath(REPORTS) else run_id
        folder = REPORTS / name
        if not _RUN_ID.fullmatch(name) or not folder.is_dir():
            raise BadInput(f"there is no run {run_id!r} in {REPORTS}: inv reports lists them")
        return folder
    latest = REPORTS / "latest"
    if latest.is_dir():
        return latest.resolve()
    return next((folder for folder in folders() if not _is_refused(folder)), None)  # the newest one was deleted


def _is_refused(folder: Path) -> bool:
    try:
        return bool(read_json(folder / "plan.json").get("refused"))
    except BadInput:
        return False


def folders() -> list[Path]:
    """The folders of all runs, newest first."""
    if not REPORTS.is_dir():
        return []
    return sorted(
        (path for path in REPORTS.iterdir() if _RUN_ID.fullmatch(path.name) and path.is_dir()), reverse=True
    )


def write_json(path: Path, data: dict[str, Any], indent: int | None = 1) -> None:
    """Replace a JSON file whole, as `replace`."""
    replace(path, (strict_json(redacted(data), indent) + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    """Replace a file whole: a reader sees the old one or the new one.

    :raises OSError: naming the file, also when the disk is full, of which Python tells no name.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file of ours.

    :raises BadInput: it is missing or damaged, naming the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} is damaged: not a JSON object")
    return data


def read_run(folder: Path) -> dict[str, Any]:
    """The run's run.json.

    :raises BadInput: it is missing, damaged, or of another schema, naming the file.
    """
    data = read_json(folder / "run.json")
    if data.get("schema") != "tcpfleet.run/1":
        raise BadInput(f"{folder / 'run.json'} is not a run of schema tcpfleet.run/1")
    return data
