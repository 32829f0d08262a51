"""daemon: leaving the console, reporting readiness, and the pid file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import daemon
import pytest

from tests.unit.interpreters import INTERPRETERS

PAYLOAD = Path(__file__).parents[2] / "payload"


def wait_until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.01)


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Pids of daemons; they are killed and must be gone afterwards."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if daemon.process_start_time(pid) is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: daemon.process_start_time(pid) is None)


SCRIPT = """
import os, subprocess, sys, time
sys.path.insert(0, {payload!r})
import daemon
def main(ready):
    print("to the log")
    sys.stderr.write("errors too\\n")
    ready("at work")
    time.sleep(30)
result = daemon.start_daemon(main, "log" if {log} else None)
assert result.ok and result.message == "at work", result
print(result.pid)
"""


@pytest.mark.parametrize("python", [INTERPRETERS[0], INTERPRETERS[-1]], ids=lambda p: p.parts[-3])
@pytest.mark.parametrize("log", [True, False])
def test_nothing_ties_the_daemon_to_its_console(
    python: Path, log: bool, tmp_path: Path, started: list[int]
) -> None:
    script = SCRIPT.format(payload=str(PAYLOAD), log=log)
    receive, send = os.pipe()  # an SSH channel that would stay open as long as anybody has it
    begun = time.monotonic()
    out = subprocess.run(
        ["nohup", str(python), "-c", script],
        cwd=tmp_path,
        capture_output=True,
        pass_fds=[send],
        timeout=20,
    )
    os.close(send)
    assert out.returncode == 0, out.stderr
    pid = int(out.stdout)
    started.append(pid)
    assert os.read(receive, 1) == b"", "the daemon holds an inherited descriptor"
    os.close(receive)
    assert time.monotonic() - begun < 5
    assert os.getsid(pid) not in (os.getsid(0), pid), "own session, and not as its leader"
    assert os.getpgid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    target = str(tmp_path / "log") if log else "/dev/null"
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (1, 2)} == {target}
    if log:
        assert (tmp_path / "log").read_text() == "to the log\nerrors too\n"
        assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert fields["Umask"] == "0027"
    assert int(fields["SigIgn"], 16) & 1 << signal.SIGHUP - 1 == 0, "nohup's ignoring is undone"


def fail_by_exception(ready: daemon.Readiness) -> None:
    raise daemon.DaemonError("the disk is square")


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (fail_by_exception, "the disk is square"),
        (lambda ready: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda ready: sys.exit("no luck"), "no luck"),
        (lambda ready: sys.exit(7), "the daemon ended with status 7 before it was ready"),
        (lambda ready: 4, "the daemon ended with status 4 before it was ready"),
        (lambda ready: ready.failed("said so"), "said so"),
    ],
)
def test_a_failure_comes_back_as_a_sentence(main: Callable, message: str) -> None:
    result = daemon.start_daemon(main, None)
    assert (result.ok, result.message) == (False, message)
    assert daemon.process_start_time(result.pid) is None


def test_a_daemon_that_dies_silently(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    result = daemon.start_daemon(lambda ready: os._exit(0), log)
    assert not result.ok
    assert result.message == f"the daemon (pid {result.pid}) died before it was ready; its log is {log}"


@pytest.mark.parametrize("looked_late", [False, True])
def test_a_daemon_that_dies_while_its_child_holds_the_pipe(
    monkeypatch: pytest.MonkeyPatch, looked_late: bool
) -> None:
    real, caller = daemon.process_start_time, os.getpid()

    def after_its_death(pid: int) -> int | None:
        if os.getpid() == caller:
            wait_until(lambda: real(pid) is None)
        return real(pid)

    if looked_late:
        monkeypatch.setattr(daemon, "process_start_time", after_its_death)

    def main(ready: daemon.Readiness) -> None:
        if os.fork() == 0:
            time.sleep(30)
        os._exit(1)

    begun = time.monotonic()
    result = daemon.start_daemon(main, None)
    assert not result.ok and "died" in result.message
    assert time.monotonic() - begun < 2


def test_a_daemon_that_is_never_ready_is_ended() -> None:
    result = daemon.start_daemon(lambda ready: time.sleep(30), None, timeout=0.3)
    assert (result.ok, result.message) == (False, "the daemon was not ready within 0.3 s")
    wait_until(lambda: daemon.process_start_time(result.pid) is None)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "No such file or directory"),
        (lambda p: (p.parent.mkdir(), p.mkdir()), "Is a directory"),
        (lambda p: (p.parent.mkdir(), p.symlink_to("/etc/passwd")), "it is a symbolic link"),
    ],
)
def test_an_unwritable_log_is_told_before_anything_starts(make: Callable, reason: str, tmp_path: Path) -> None:
    log = tmp_path / "dir" / "log"
    make(log)
    assert daemon.start_daemon(lambda ready: None, str(log)) == (
        False,
        0,
        f"cannot write the log {log}: {reason}",
    )


def test_process_start_time() -> None:
    assert daemon.process_start_time(os.getpid()) == daemon.process_start_time(os.getpid())
    child = subprocess.Popen(["true"])
    wait_until(lambda: daemon.process_start_time(child.pid) is None)  # a zombie is not alive
    child.wait()
    assert daemon.process_start_time(child.pid) is None


class TestPidFile:
    def test_life(self, tmp_path: Path) -> None:
        path = tmp_path / "pid"
        pid_file = daemon.PidFile(str(path))
        pid_file.acquire()
        assert path.read_text().splitlines()[0] == str(os.getpid())
        assert daemon.PidFile.read(str(path)) == os.getpid()
        assert os.listdir(tmp_path) == ["pid"]
        if os.fork() == 0:
            pid_file.release()  # a child's clean-up is not the owner's
            os._exit(0)
        os.wait()
        assert path.exists()
        pid_file.release()
        assert not path.exists()
        assert daemon.PidFile.read(str(path)) is None

    def test_a_live_holder_is_named(self, tmp_path: Path) -> None:
        with subprocess.Popen(["sleep", "30"]) as holder:
            start = daemon.process_start_time(holder.pid)
            (tmp_path / "pid").write_text(f"{holder.pid}\nstart={start}\n")
            with pytest.raises(daemon.DaemonError, match=f"already running as pid {holder.pid} "):
                daemon.PidFile(str(tmp_path / "pid")).acquire()
            holder.kill()

    @pytest.mark.parametrize("content", ["{dead}\nstart=5\n", "{dead}\n", "1\nstart=99999999999\n", ""])
    def test_a_stale_file_is_replaced(self, content: str, tmp_path: Path) -> None:
        child = subprocess.Popen(["true"])
        child.wait()
        path = tmp_path / "pid"
        path.write_text(content.format(dead=child.pid))
        assert daemon.PidFile.read(str(path)) is None
        pid_file = daemon.PidFile(str(path))
        pid_file.acquire()
        assert daemon.PidFile.read(str(path)) == os.getpid()
        pid_file.release()

    def test_the_file_of_another_program_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "pid"
        with subprocess.Popen(["sleep", "30"]) as other:
            path.write_text(f"{other.pid}\n")
            with pytest.raises(daemon.DaemonError, match=rf"another program: .* pid {other.pid} \(sleep 30\)"):
                daemon.PidFile(str(path)).acquire()
            other.kill()
        assert path.read_text() == f"{other.pid}\n"

    def test_what_is_no_pid_file_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "precious"
        path.write_text("12 monkeys\n")
        with pytest.raises(daemon.DaemonError, match="is not a pid file"):
            daemon.PidFile(str(path)).acquire()
        assert path.read_text() == "12 monkeys\n"

    def test_symlinks_and_fifos_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "target")
        with pytest.raises(daemon.DaemonError, match="it is a symbolic link"):
            daemon.PidFile(str(tmp_path / "link")).acquire()
        assert not (tmp_path / "target").exists()
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(daemon.DaemonError, match="not a regular file"):
            daemon.PidFile(str(tmp_path / "fifo")).acquire()

    def test_of_many_at_once_one_wins(self, tmp_path: Path) -> None:
        path = str(tmp_path / "pid")
        go, come = os.pipe()
        children = []
        for _ in range(12):
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(come)
                    os.read(go, 1)
                    daemon.PidFile(path).acquire()
                except daemon.DaemonError as e:
                    os._exit(1 if "already running" in str(e) else 2)
                time.sleep(1.0)
                os._exit(0)
            children.append(pid)
        os.close(come)
        os.close(go)
        exits = sorted(os.WEXITSTATUS(os.waitpid(pid, 0)[1]) for pid in children)
        assert exits == [0] + [1] * 11
        assert os.listdir(tmp_path) == ["pid"]
