"""New code without losing a connection: a process executes the program's files anew, in place.

exec keeps the process id and every descriptor that is not close-on-exec, so the connections, the epoll
set and the listener simply stay. What only lived in memory is small (a slow reader's unsent bytes, who
runs in which slot) and travels as JSON in a nameless file. New code is probed in a process of its own
before anything is given up for it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any, Dict, Iterable, List, Optional

from echo_identity import Identity, become
from echo_plan import PROBE_OPTION

# Raise this when WorkerSetup, a saved state or the counters' columns change their meaning: running
# processes then refuse the reload instead of handing the new code something it cannot read.
STATE_FORMAT = 4
PROBE_SECONDS = 10.0
PROBE_SAYS = 500  # characters of an error: it is written into the status, which has its bounds


def command(script: str) -> List[str]:
    """Return the argv that runs `script` (an absolute path) with this interpreter and its flags."""
    return [sys.executable, *subprocess._args_from_interpreter_flags(), script]  # type: ignore


def probe(program: List[str], identity: Optional[Identity] = None) -> Optional[str]:
    """Load the program's present files in a process of its own; return None if they work, else why not.

    identity: who the workers are, since they have to be able to read the files too.
    """
    try:
        process = subprocess.Popen(
            [*program, PROBE_OPTION, str(STATE_FORMAT)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=(lambda: become(identity)) if identity is not None else None,
        )
    except (OSError, subprocess.SubprocessError) as e:  # the latter: it cannot become that user
        return "cannot run %s: %s" % (" ".join(program), getattr(e, "strerror", None) or e)
    try:
        errors = process.communicate(timeout=PROBE_SECONDS)[1].decode("utf-8", "replace").strip()
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "the new code did not load within %g s" % PROBE_SECONDS
    if process.returncode != 0:
        return "the new code does not load: %s" % (errors.splitlines() or ["no message"])[-1][:PROBE_SAYS]
    return None


def answer_probe(state_format: str) -> int:
    """The new code's side of `probe`: it has been imported; return 0 if it can take over the state."""
    if int(state_format) != STATE_FORMAT:
        print("state format %s is not %d: restart instead" % (state_format, STATE_FORMAT), file=sys.stderr)
        return 1
    return 0


def exec_in_place(program: List[str], option: str, state: Dict[str, Any], keep: Iterable[int]) -> None:
    """Replace this process's code by `program`, called with `option FD`; FD holds `state` (JSON).

    The descriptors in `keep` stay open, and stdio. All signals are blocked across it, since their handlers
    are lost: the new code unblocks them once it has its own. `state` is written after that, so that a list in it
    to which handlers add is complete. Returns only by raising OSError, with the signals as they were.
    """
    every = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, every)
    try:
        with tempfile.TemporaryFile() as f:
            f.write(json.dumps(state).encode())
            f.flush()
            os.lseek(f.fileno(), 0, os.SEEK_SET)
            for fd in (*keep, f.fileno()):
                os.set_inheritable(fd, True)
            os.execv(program[0], [*program, option, str(f.fileno())])  # noqa: S606 - no shell is wanted
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def read_state(fd: int) -> Dict[str, Any]:
    """Return the state that `exec_in_place` left in `fd`, and close that."""
    with os.fdopen(fd, "rb") as f:
        return dict(json.loads(f.read().decode()))
