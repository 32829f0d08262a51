"""echo_server: real sockets on loopback, the program in processes of its own, nothing left afterwards."""

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import daemon
import echo_identity
import echo_plan
import echo_port
import echo_reload
import echo_server
import pytest

from tests.unit.interpreters import INTERPRETERS

PAYLOAD = Path(__file__).parents[2] / "payload"
OLDEST, NEWEST = INTERPRETERS[0], INTERPRETERS[-1]
MARK = "TCPFLEET_TEST_MARK"
both = pytest.mark.parametrize("python", sorted({OLDEST, NEWEST}), ids=lambda p: p.parts[-3])


def wait_until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def client_socket() -> socket.socket:
    """Return a socket bound to an address of its own.

    A load test on this machine that planned every port of 127.0.0.1 (or its TIME_WAITs) leaves none for
    connect() to choose: it skips any port that somebody has bound, whatever the address.
    """
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.77.0.1", 0))
    return s


class Server:
    """One server in `directory`, driven by its command line only."""

    def __init__(self, directory: Path, python: Path = NEWEST, payload: Path = PAYLOAD) -> None:
        self.directory, self.python, self.payload = directory, python, payload
        self.pid_file, self.log_file = directory / "pid", directory / "log"
        self.port = free_port()
        self.mark = uuid.uuid4().hex
        self.sockets: list[socket.socket] = []
        self.clients: list[subprocess.Popen[str]] = []

    def call(self, *arguments: str, nofile: int | None = None) -> subprocess.CompletedProcess[str]:
        def limit() -> None:
            if nofile is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        return subprocess.run(
            [str(self.python), str(self.payload / "echo_server.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, MARK: self.mark},
            preexec_fn=limit,
        )

    def start(self, *options: str, nofile: int | None = None) -> subprocess.CompletedProcess[str]:
        return self.call(
            "start",
            *("--bind", "127.0.0.1", "--port", str(self.port)),
            *("--pid-file", str(self.pid_file), "--log-file", str(self.log_file), *options),
            nofile=nofile,
        )

    def started(self, *options: str, nofile: int | None = None) -> "Server":
        done = self.start(*options, nofile=nofile)
        assert done.returncode == 0, done.stderr
        return self

    def command(self, name: str) -> subprocess.CompletedProcess[str]:
        return self.call(name, "--pid-file", str(self.pid_file))

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.command("status").stdout))

    def log(self) -> str:
        return self.log_file.read_text()

    def connect(self, verify: bool = True, timeout: float = 5.0) -> socket.socket:
        s = client_socket()
        self.sockets.append(s)
        s.settimeout(timeout)
        s.connect(("127.0.0.1", self.port))
        if verify:
            exchange(s)
        return s

    def processes(self) -> list[int]:
        """Return every live process of this server, found by its environment."""
        needle = f"{MARK}={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if needle in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def close(self) -> None:
        for s in self.sockets:
            s.close()
        for client in self.clients:  # those of a test that failed
            client.terminate()
            client.communicate()
        self.command("stop")
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, "processes left behind"
        assert not [n for n in os.listdir(self.directory) if n.startswith("pid")], "files left behind"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    s = Server(tmp_path)
    yield s
    s.close()


def exchange(s: socket.socket, message: bytes | None = None) -> None:
    """Send a message and require the same bytes back."""
    message = message or os.urandom(24) + b"\0end"
    s.sendall(message)
    assert receive(s, len(message)) == message


def receive(s: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        piece = s.recv(min(1 << 20, size - len(got)))
        assert piece, f"closed after {len(got)} of {size} bytes"
        got += piece
    return bytes(got)


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# -- life as a daemon ------------------------------------------------------------------------------------


@both
def test_life(python: Path, tmp_path: Path) -> None:
    s = Server(tmp_path, python)
    not_running = s.command("status")
    assert (not_running.returncode, json.loads(not_running.stdout)) == (3, {"running": False})
    assert s.command("stop").returncode == 0

    begun = time.monotonic()
    s.started("--workers", "2")
    assert time.monotonic() - begun < 5
    exchange(s.connect(), bytes(range(256)))
    state = s.status()
    pid = int(s.pid_file.read_text().splitlines()[0])
    assert state["running"] and state["pid"] == pid and state["connections"] == 1
    assert state["listening"] == [f"127.0.0.1:{s.port}"]
    assert state["options"] == {
        "bind": "127.0.0.1",
        "port": s.port,
        "mode": "echo",
        "workers": 2,
        "max_connections": None,
        "user": None,
        "idle_timeout": 0.0,
        "keepalive": [],
        "max_buffered": 64 << 20,
        "verbose": False,
    }
    assert state["capacity"] == sum(w["limit"] for w in state["workers"]) > 0
    assert state["echoes"] == 2 and state["bytes"] == 28 + 256
    assert re.fullmatch("[0-9a-f]{12}", state["version"])
    assert sorted(s.processes()) == sorted([pid] + [w["pid"] for w in state["workers"]])
    for process in s.processes():
        assert os.getsid(process) not in (os.getsid(0), 0) and os.getsid(process) == os.getsid(pid)
        assert os.readlink(f"/proc/{process}/fd/0") == "/dev/null"
        assert {os.readlink(f"/proc/{process}/fd/{fd}") for fd in (1, 2)} == {str(s.log_file)}
    line = s.log().splitlines()[0]
    assert re.match(rf"\d{{4}}-\d\d-\d\dT[\d:.]+[+-]\d{{4}} \[{pid}\] listening on 127.0.0.1:{s.port}: ", line)
    stopped = s.command("stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"stopped pid {pid}\n")
    assert s.command("status").returncode == 3
    s.close()


def test_a_kernel_without_ipv6_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(daemon.DaemonError, match="cannot listen on :: port 7: Address family not supported"):
        echo_port.listen("::", 7)


def test_started_twice(server: Server) -> None:
    server.started()
    again = server.start()
    pid = server.status()["pid"]
    assert again.returncode == 1
    assert again.stderr == f"echo_server.py: already running as pid {pid} (pid file {server.pid_file})\n"


def test_two_starts_at_once(server: Server) -> None:
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: results.append(server.start())) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(r.returncode for r in results) == [0, 1]
    loser = next(r for r in results if r.returncode)
    pid = server.status()["pid"]
    assert f"already running as pid {pid}" in loser.stderr
    server.connect()


def test_a_stale_pid_file_of_a_killed_server(server: Server) -> None:
    server.started("--workers", "2")
    os.kill(server.status()["pid"], signal.SIGKILL)
    wait_until(lambda: not server.processes(), 2)  # its workers end with it
    assert server.command("status").returncode == 3
    server.started()
    server.connect()


def test_a_start_that_fails_leaves_the_files_of_the_one_that_runs(server: Server) -> None:
    server.started()
    content = server.pid_file.read_text()
    server.pid_file.unlink()  # by hand, so that only the port says that one runs
    assert "is in use by pid" in server.start().stderr
    server.pid_file.write_text(content)
    assert server.status()["running"]


def test_the_pid_file_of_another_program(server: Server) -> None:
    server.pid_file.write_text(f"{os.getpid()}\n")
    done = server.start()
    assert done.returncode == 1 and "belongs to another program" in done.stderr
    assert server.command("stop").stdout == "not running\n"  # and is never signalled
    server.pid_file.unlink()


def test_a_port_in_use_names_who_has_it(server: Server) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        begun = time.monotonic()
        done = server.start()
        assert time.monotonic() - begun < 2
        assert (echo_port.port_owner(server.port) or "").startswith(f"pid {os.getpid()} (")
        assert echo_port.port_owner(server.port, seconds=0) is None  # where there is too much to look through
    assert done.returncode == 1
    assert done.stderr.startswith(f"echo_server.py: 127.0.0.1 port {server.port} is in use by pid {os.getpid()} (")
    assert done.stderr.count("\n") == 1


def test_why_it_does_not_run_is_a_line_of_the_log(server: Server) -> None:
    """Like any other, with its time; it had none."""
    server.started()
    other = server.directory / "other.log"
    again = ("--bind", "127.0.0.1", "--port", str(server.port), "--log-file", str(other))
    assert server.call("run", *again).returncode == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+ \[\d+\] 127.0.0.1 port \d+ is in use.*\n", other.read_text())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--log-file", "/nowhere/log"], "cannot write the log /nowhere/log: No such file or directory"),
        (["--pid-file", "/nowhere/pid"], "cannot write the pid file /nowhere/pid: No such file or directory"),
        (["--bind", "192.0.2.1"], "cannot listen on 192.0.2.1 port"),
        (["--bind", "no such host"], "cannot bind no such host:"),
        (["--bind", "a..b"], "cannot bind a..b: it is neither an address nor a name"),
        (["--log-file", "/nowhere/f", "--pid-file", "/nowhere/f"], "/nowhere/f cannot be both the pid file and"),
        (["--workers", "0"], "'0' is not a number from 1 to 512"),
        (["--port", "70000"], "'70000' is not a number from 0 to 65535"),
        (["--max-connections", "many"], "'many' is not a number"),
        (["--user", "nosuch"], "there is no user nosuch"),
        (["--user", ""], "'' names no user"),
        (["--user", "\u00b2"], "there is no user \u00b2"),
        (["--user", "root:nosuch"], "there is no group nosuch"),
        (["--idle-timeout", "0.5"], "is not a number of seconds"),
        (["--idle-timeout", "nan"], "is not a number of seconds"),
        (["--keepalive", "1,2,3,4"], "is not IDLE"),
        (["--keepalive", "0,1"], "is not IDLE"),
        (["--mode", "gopher"], "invalid choice: 'gopher'"),
        (["--max-buffered", "1"], "is not a number from 65536"),
    ],
)
def test_what_cannot_start_says_why(options: list[str], sentence: str, server: Server) -> None:
    begun = time.monotonic()
    done = server.start(*options)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and time.monotonic() - begun < 2


def test_options_can_be_checked_while_a_server_runs(server: Server) -> None:
    server.started()
    check = ("check", "--bind", "127.0.0.1", "--port")
    assert server.call(*check, "0").returncode == 0
    for options, sentence in [
        ((str(server.port),), "is in use"),
        (("0", "--user", "nosuch"), "there is no user nosuch"),
        (("0", "--keepalive", "no"), "is not IDLE"),
    ]:
        refused = server.call(*check, *options)
        assert refused.returncode == 1 and sentence in refused.stderr and refused.stderr.count("\n") == 1
    server.connect()


def test_run_in_the_foreground_ends_on_ctrl_c(server: Server) -> None:
    command = [str(NEWEST), str(PAYLOAD / "echo_server.py"), "run", "--bind", "127.0.0.1", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--port", str(server.port), "--log-file", str(server.log_file)],
        start_new_session=True,
        env={**os.environ, MARK: server.mark},
    )
    wait_until(lambda: server.log_file.exists() and "listening" in server.log())
    server.connect()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all at once
    assert process.wait(5) == 0
    assert "Traceback" not in server.log() and server.log().endswith("] stopped\n")


def test_verbose_prints_what_is_read(server: Server) -> None:
    server.started("--verbose", "--workers", "1")
    exchange(server.connect(verify=False), b"look\0")
    assert ": 5 bytes: b'look\\x00'\n" in server.log()


def test_a_console_that_cannot_be_printed_on_costs_no_connection(server: Server) -> None:
    """A full disk behind --verbose ended every connection that sent something."""
    command = [str(NEWEST), str(PAYLOAD / "echo_server.py"), "run", "--bind", "127.0.0.1", "--verbose"]
    command += ["--port", str(server.port), "--pid-file", str(server.pid_file), "--workers", "1"]
    with open("/dev/full", "wb") as full:
        subprocess.Popen(command, stdout=full, stderr=full, env={**os.environ, MARK: server.mark})
    wait_until(lambda: server.command("status").returncode == 0)
    for _ in range(2):
        exchange(server.connect())
    assert server.status()["errors"] == 0


@both
def test_started_with_all_of_its_stdio_closed(python: Path, tmp_path: Path) -> None:
    """The pipe that says "ready" became the daemon's stdin, and start said that it had failed."""
    s = Server(tmp_path, python)
    options = f"--bind 127.0.0.1 --port {s.port} --workers 1 --pid-file {s.pid_file} --log-file {s.log_file}"
    shell = f"{python} {PAYLOAD}/echo_server.py start {options} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell], env={**os.environ, MARK: s.mark}).returncode == 0
    for pid in s.processes():
        assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)] == ["/dev/null", *[str(s.log_file)] * 2]
    assert "listening on" in s.log()
    s.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk to fill")
def test_a_full_disk_under_the_pid_file_is_a_sentence(server: Server) -> None:
    """The shared counters had a hole where the disk had no room: SIGBUS at the first count."""
    disk = server.directory / "disk"
    disk.mkdir()
    files = f"--pid-file {disk}/pid --log-file {server.log_file} --bind 127.0.0.1 --port {server.port}"
    start = f"{NEWEST} {PAYLOAD}/echo_server.py start {files} --workers 1; code=$?; ls {disk}; exit $code"
    for kilobytes, said in ((64, "pid.counters"), (4, "the pid file")):
        fill = f"head -c 4k /dev/zero > {disk}/fill 2>/dev/null"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size={kilobytes}k x {disk} && {fill}; {start}"],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 1 and said in done.stderr and "No space left on device" in done.stderr
        assert (done.stderr.count("\n"), done.stdout.split()) == (1, ["fill"])


def test_systemd_is_told_about_its_life(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(server.directory / "notify"))
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(server.directory / "notify"))
        command = [str(OLDEST), str(PAYLOAD / "echo_server.py"), "run", "--bind", "127.0.0.1", "--workers", "1"]
        command += ["--port", str(server.port), "--pid-file", str(server.pid_file)]
        process = subprocess.Popen(
            [*command, "--log-file", str(server.log_file)], env={**os.environ, MARK: server.mark}
        )
        listening = f"STATUS=listening on 127.0.0.1:{server.port}: "
        assert systemd.recv(4096).decode().startswith(f"READY=1\n{listening}")
        assert server.status()["manager"] == "systemd"
        process.send_signal(signal.SIGHUP)
        assert systemd.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(4096).decode().startswith(f"READY=1\n{listening}")
        second = subprocess.run([*command, "--pid-file", str(server.directory / "other")], capture_output=True)
        assert systemd.recv(4096).startswith(b"STATUS=127.0.0.1 port ")
        assert second.returncode == 1
        process.terminate()
        assert systemd.recv(4096) == b"STOPPING=1"
        assert process.wait(10) == 0


def test_ipv6(server: Server) -> None:
    server.started("--bind", "::1")
    with socket.create_connection(("::1", server.port), 5) as s:
        exchange(s)
    assert server.status()["listening"] == [f"[::1]:{server.port}"]


# -- echoing ---------------------------------------------------------------------------------------------


@both
def test_megabytes_past_a_slow_reader(python: Path, tmp_path: Path) -> None:
    s = Server(tmp_path, python).started("--workers", "1")
    other = s.connect()
    slow = client_socket()
    s.sockets.append(slow)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", s.port))
    data = os.urandom(24 << 20)
    sender = threading.Thread(target=slow.sendall, args=(data,))
    sender.start()
    wait_until(lambda: s.status()["backpressured"] == 1)
    exchange(other)  # nobody else waits
    memory = int(Path(f"/proc/{s.status()['workers'][0]['pid']}/statm").read_text().split()[1]) * 4096
    assert memory < 40 << 20
    got = receive(slow, len(data))
    sender.join()
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    wait_until(lambda: s.status()["backpressured"] == 0)
    exchange(slow)
    s.close()


def test_half_close_still_gets_everything(server: Server) -> None:
    server.started()
    s = server.connect()
    data = os.urandom(1 << 20)
    reader = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
    reader.start()
    assert receive(s, len(data)) == data
    assert s.recv(1) == b""
    reader.join()


def test_all_that_came_at_once_comes_back(server: Server) -> None:
    """More than one read takes, with urgent data in the middle, and the end."""
    server.started("--workers", "1")
    s, worker = server.connect(), server.status()["workers"][0]["pid"]
    os.kill(worker, signal.SIGSTOP)
    data = os.urandom(100_000)
    s.sendall(data[:50_000])
    s.send(b"!", socket.MSG_OOB)
    s.sendall(data[50_000:])
    s.shutdown(socket.SHUT_WR)
    time.sleep(0.1)
    os.kill(worker, signal.SIGCONT)
    assert receive(s, len(data)) == data
    assert s.recv(1) == b""


def test_resets_leave_nothing(server: Server) -> None:
    server.started("--workers", "2")
    keep = server.connect()
    descriptors = {w["pid"]: len(os.listdir(f"/proc/{w['pid']}/fd")) for w in server.status()["workers"]}
    for s in [server.connect() for _ in range(300)]:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
    wait_until(lambda: server.status()["connections"] == 1)
    assert {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in descriptors} == descriptors
    assert (server.status()["resets"], server.status()["errors"]) == (300, 0)
    exchange(keep)


# -- capacity and balance --------------------------------------------------------------------------------


@both
def test_full_and_room_again(python: Path, tmp_path: Path) -> None:
    """All capacity is usable, being full costs no CPU, and who waits is served when others leave."""
    s = Server(tmp_path, python).started("--workers", "2", nofile=64)
    capacity = s.status()["capacity"]
    assert capacity == 2 * (64 - echo_plan.RESERVED)
    clients = [s.connect(verify=False) for _ in range(capacity + 30)]
    for c in clients:
        c.sendall(b"hello")
    wait_until(lambda: s.status()["connections"] == capacity)
    assert [w["full"] for w in s.status()["workers"]] == [1, 1]
    before = cpu_seconds(s.processes())
    time.sleep(0.6)
    assert cpu_seconds(s.processes()) - before <= 0.03
    served, waiting = [], []
    for c in clients:
        c.settimeout(0.0)
        try:
            assert c.recv(5) == b"hello"
            served.append(c)
        except BlockingIOError:
            waiting.append(c)
    assert (len(served), len(waiting)) == (capacity, 30)
    for c in served[:30]:
        c.close()
    for c in waiting:
        c.settimeout(5)
        assert receive(c, 5) == b"hello"
    for c in served[30:]:
        c.settimeout(5)
        exchange(c)
    assert f"all {capacity} places are taken" in s.log()
    assert s.log().count("places are taken") == 1
    s.close()


def test_out_of_descriptors_is_no_spin(server: Server) -> None:
    """The limit sinks under the running worker: accept fails with EMFILE, pauses, and goes on."""
    server.started("--workers", "1")
    worker = server.status()["workers"][0]["pid"]
    open_now = len(os.listdir(f"/proc/{worker}/fd"))
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (open_now + 5, 1000))
    clients = [server.connect(verify=False) for _ in range(9)]
    wait_until(lambda: "accepting pauses" in server.log())
    before = cpu_seconds([worker])
    time.sleep(0.5)
    assert cpu_seconds([worker]) - before <= 0.02
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (1000, 1000))
    for c in clients:
        exchange(c)


def test_balance_over_workers(server: Server) -> None:
    server.started("--workers", "3")
    for _ in range(3000):
        server.connect(verify=False)
    wait_until(lambda: server.status()["connections"] == 3000)
    held = [w["connections"] for w in server.status()["workers"]]
    assert max(held) <= 1.25 * 1000, held
    for s in server.sockets:
        s.sendall(b"x")
    for s in server.sockets:
        assert s.recv(1) == b"x"


def test_a_stopped_worker_holds_up_nobody(server: Server) -> None:
    server.started("--workers", "2")
    stopped = server.status()["workers"][0]["pid"]
    os.kill(stopped, signal.SIGSTOP)
    try:
        for _ in range(150):
            server.connect(timeout=3.0)
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_connections_that_cannot_be_had_are_named(server: Server) -> None:
    done = server.start("--workers", "1", "--max-connections", "1_000", nofile=100)
    assert done.returncode == 0
    note = "max-connections reduced from 1000 to 76: 1 workers with 100 open files each hold no more"
    assert note in done.stdout and note in server.log()
    state = server.status()
    assert (state["note"], state["capacity"], state["nofile"]) == (note, 76, 100)


@pytest.mark.parametrize(
    ("cpus", "nofile", "workers", "most", "expected"),
    [
        (2, 20000, None, None, [19976, 19976]),
        (2, 20000, None, 1000, [500, 500]),
        (2, 20000, None, 3, [2, 1]),
        (2, 20000, 4, None, [19976] * 4),
        (64, 1024, None, None, [1000] * 64),
        (1, 1048576, None, 1000000, [1000000]),
        (2, 1048576, None, 1000000, [500000] * 2),
        (1, 100, 1, 1000, [76]),
    ],
)
def test_plan(cpus: int, nofile: int, workers: int | None, most: int | None, expected: list[int]) -> None:
    plan = echo_plan.make_plan(cpus, nofile, workers, most)
    assert list(plan.limits) == expected
    assert bool(plan.note) == (most is not None and sum(expected) < most)
    assert max(plan.limits) + echo_plan.RESERVED <= nofile


def test_plan_adds_workers_for_many_connections() -> None:
    assert len(echo_plan.make_plan(2, 20000, None, 200_000).limits) == 11
    million = echo_plan.make_plan(2, 20000, None, 1_000_000)
    assert sum(million.limits) == 1_000_000 and not million.note
    hopeless = echo_plan.make_plan(2, 1024, None, 10_000_000)
    assert hopeless.note and sum(hopeless.limits) == 1000 * echo_plan.MAX_WORKERS


def test_plan_without_room() -> None:
    with pytest.raises(echo_plan.PlanError, match="an open-files limit of 24 leaves no room"):
        echo_plan.make_plan(2, 24)


# -- signals ---------------------------------------------------------------------------------------------


def test_a_killed_worker_loses_only_its_own(server: Server) -> None:
    server.started("--workers", "2")
    clients = [server.connect() for _ in range(40)]
    victim = server.status()["workers"][0]["pid"]
    os.kill(victim, signal.SIGKILL)
    begun = time.monotonic()
    wait_until(lambda: server.status()["workers"][0]["pid"] not in (0, victim))
    assert time.monotonic() - begun < 1.5
    lost = 0
    for c in clients:
        try:
            exchange(c)
        except (AssertionError, ConnectionError):
            lost += 1
    assert 10 <= lost <= 30
    wait_until(lambda: server.status()["connections"] == 40 - lost)
    for _ in range(10):
        server.connect()
    assert "(killed by SIGKILL)" in server.log()


def test_a_signal_without_a_name_ends_a_worker_and_not_the_server(server: Server) -> None:
    server.started("--workers", "1")
    os.kill(server.status()["workers"][0]["pid"], signal.SIGRTMIN + 1)
    wait_until(lambda: f"(killed by signal {signal.SIGRTMIN + 1})" in server.log())
    wait_until(lambda: len(server.processes()) == 2)
    server.connect()


def test_a_listener_that_is_ended_from_outside_is_opened_again(server: Server) -> None:
    """`ss -K` on the port meant for connections: workers asked accept() for ever, and nobody listened any more."""
    server.started("--workers", "2")
    subprocess.run(["ss", "-K", "-ltn", f"sport = :{server.port}"], check=True, capture_output=True)
    try:
        wait_until(lambda: "the listener was ended from outside" in server.log(), 3)
    except AssertionError:
        if (
            os.geteuid() == 0
            and subprocess.run(["ss", "-ltnH", f"sport = :{server.port}"], capture_output=True).stdout
        ):
            pytest.skip("this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY)")
        raise
    wait_until(lambda: all(not w["full"] for w in server.status()["workers"]))
    server.connect()


def test_a_process_that_ends_before_it_is_told_to_stop_is_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was waited for for 20 s and then called one that did not stop."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(daemon.PidFile, "read", staticmethod(lambda path: gone.pid))
    monkeypatch.setattr(echo_server, "STOP_SECONDS", 0.1)
    assert echo_server.stop("/nowhere") == 0
    assert capsys.readouterr().out == f"stopped pid {gone.pid}\n"


def test_a_worker_that_dies_again_and_again_is_backed_off(server: Server) -> None:
    server.started("--workers", "1")
    for n in range(3):
        wait_until(lambda: server.status()["workers"][0]["pid"] and len(server.processes()) == 2)
        os.kill(server.status()["workers"][0]["pid"], signal.SIGKILL)
        wait_until(lambda n=n: server.log().count("next one") == n + 1)
    delays = re.findall(r"next one in ([\d.]+) s", server.log())
    assert delays == ["0.1", "0.2", "0.4"]
    wait_until(lambda: len(server.processes()) == 2)
    server.connect()


def test_stop_delivers_what_a_slow_reader_has_coming(server: Server) -> None:
    server.started("--workers", "1")
    idle, slow = server.connect(), server.connect()
    slow.setblocking(False)
    data, sent = os.urandom(64 << 20), 0

    def fill_until_it_stops_reading() -> bool:
        # One full send buffer is not enough to say so: the kernel goes on moving it into the reader's.
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while sent < len(data):
                sent += slow.send(data[sent : sent + 65536])
        return bool(server.status()["backpressured"] == 1)

    wait_until(fill_until_it_stops_reading, 15)
    time.sleep(0.2)
    echoed = server.status()["bytes"] - 2 * 28
    assert 0 < echoed < sent
    slow.settimeout(10)
    stopper = threading.Thread(target=server.command, args=("stop",))
    begun = time.monotonic()
    stopper.start()
    assert receive(slow, echoed) == data[:echoed]
    stopper.join()
    # It may have read and answered more meanwhile, which nobody takes: then it waits for DRAIN_SECONDS, no longer.
    assert time.monotonic() - begun < 15
    with contextlib.suppress(ConnectionResetError):
        assert idle.recv(1) == b""


def test_a_worker_that_is_dead_when_it_is_to_leave_leaves_no_mark_on_its_place(server: Server) -> None:
    """The next worker there counted as leaving for ever: the others thought they were fewer."""
    server.started("--workers", "2")
    pid = server.status()["pid"]
    for n in range(4):  # so that the next one is 0.8 s away
        wait_until(lambda: len(server.processes()) == 3 and server.status()["workers"][1]["pid"])
        os.kill(server.status()["workers"][1]["pid"], signal.SIGKILL)
        wait_until(lambda n=n: server.log().count("next one") == n + 1)
    os.kill(pid, signal.SIGTTOU)
    wait_until(lambda: "1 workers" in server.log())
    os.kill(pid, signal.SIGTTIN)
    wait_until(lambda: len(workers_of(server)) == 2)


def test_what_is_asked_after_a_stop_is_not_done(server: Server) -> None:
    """A reload asked for while it drained went on with a listener that was closed already."""
    server.started("--workers", "1")
    pid, worker = server.status()["pid"], server.status()["workers"][0]["pid"]
    os.kill(worker, signal.SIGSTOP)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: "stopping" in server.log())
    for number in (signal.SIGHUP, signal.SIGTTIN):
        os.kill(pid, number)
    os.kill(worker, signal.SIGCONT)
    wait_until(lambda: not server.processes())
    assert server.log().endswith("] stopped\n") and not server.pid_file.exists()


def test_quit_is_at_once(server: Server) -> None:
    server.started("--workers", "2")
    server.connect()
    begun = time.monotonic()
    os.kill(server.status()["pid"], signal.SIGQUIT)
    wait_until(lambda: not server.processes(), 2)
    assert time.monotonic() - begun < 1


def test_usr1_follows_a_log_rotation(server: Server) -> None:
    server.started("--workers", "2")
    client = server.connect()
    rotated = server.directory / "log.1"
    server.log_file.rename(rotated)
    os.kill(server.status()["pid"], signal.SIGUSR1)
    wait_until(lambda: {os.readlink(f"/proc/{p}/fd/2") for p in server.processes()} == {str(server.log_file)})
    exchange(client)
    server.command("stop")
    assert "listening" in rotated.read_text() and "stopped" in server.log()


def workers_of(server: Server) -> list[dict[str, Any]]:
    return [w for w in server.status()["workers"] if w["pid"] and not w["leaving"]]


@both
def test_more_and_fewer_workers_lose_no_connection(python: Path, tmp_path: Path) -> None:
    s = Server(tmp_path, python).started("--workers", "2", "--max-connections", "1000")
    clients = [s.connect() for _ in range(600)]
    slow = s.connect()
    slow.setblocking(False)
    data, sent = os.urandom(32 << 20), 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += slow.send(data[sent : sent + 65536])
    pid = s.status()["pid"]
    os.kill(pid, signal.SIGTTIN)
    wait_until(lambda: [w["limit"] for w in workers_of(s)] == [334, 333, 333])
    assert s.status()["capacity"] == 1000
    for left in (2, 1):
        os.kill(pid, signal.SIGTTOU)
        wait_until(lambda left=left: len(workers_of(s)) == left)
    wait_until(lambda: len(s.processes()) == 2)
    state = s.status()
    assert (state["connections"], state["capacity"]) == (601, 1000)
    assert [w["limit"] for w in state["workers"]] == [1000]
    for c in clients:
        exchange(c)
    slow.settimeout(10)
    assert receive(slow, sent) == data[:sent]
    exchange(slow)
    os.kill(pid, signal.SIGTTOU)
    wait_until(lambda: "the last worker stays" in s.log())
    os.kill(pid, signal.SIGTTIN)
    wait_until(lambda: len(workers_of(s)) == 2)
    clients += [s.connect() for _ in range(100)]
    assert workers_of(s)[1]["connections"] >= 50
    assert s.command("reload").returncode == 0
    for c in clients:
        exchange(c)
    assert s.status()["errors"] == s.status()["resets"] == 0
    s.close()


def test_what_the_others_cannot_hold_stays_with_the_leaving_worker(server: Server) -> None:
    server.started("--workers", "2", nofile=64)
    clients = [server.connect() for _ in range(70)]  # of 80; one worker holds 40
    os.kill(server.status()["pid"], signal.SIGTTOU)
    wait_until(lambda: max(w["connections"] for w in server.status()["workers"]) == 40)
    assert server.status()["capacity"] == 40
    for c in clients:
        exchange(c)
    assert server.command("reload").returncode == 0  # also in the middle of it
    waiting = server.connect(verify=False)
    for c in clients[:31]:
        c.close()
    wait_until(lambda: len(server.processes()) == 2)
    for c in [*clients[31:], waiting]:
        exchange(c)


def test_the_silent_are_closed_and_the_others_are_not(server: Server) -> None:
    server.started("--workers", "2", "--idle-timeout", "1")
    silent = [server.connect(verify=n % 2 == 0) for n in range(20)]
    alive = server.connect()
    deadline = time.monotonic() + 5
    while server.status()["idle_closed"] < 20:
        exchange(alive)
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for s in silent:
        assert s.recv(1) == b""
    exchange(alive)
    assert server.status()["connections"] == 1


@pytest.mark.full
def test_a_reader_that_takes_something_now_and_then_is_not_idle_but_one_that_never_does_is(server: Server) -> None:
    server.started("--workers", "1", "--idle-timeout", "3")
    data = bytes(1 << 20)
    never, sometimes = client_socket(), client_socket()
    for s in (never, sometimes):
        server.sockets.append(s)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        s.connect(("127.0.0.1", server.port))
        s.setblocking(False)

    def fill() -> bool:
        for s in (never, sometimes):
            with contextlib.suppress(BlockingIOError):
                while True:
                    s.send(data)
        return bool(server.status()["backpressured"] == 2)

    wait_until(fill, 20)
    stop = threading.Event()

    def take_a_little() -> None:
        while not stop.wait(0.02):  # not all at once: then it would be idle itself
            with contextlib.suppress(BlockingIOError):
                sometimes.recv(8192)

    reader = threading.Thread(target=take_a_little)
    reader.start()
    wait_until(lambda: server.status()["idle_closed"] == 1, 10)
    stop.set()
    reader.join()
    assert server.status()["connections"] == 1


def test_what_is_held_for_slow_readers_is_bounded_in_all(server: Server) -> None:
    """Beyond the bound nothing is read that could not be written at once; nobody loses a byte."""
    server.started("--workers", "1", "--max-buffered", "65536")
    slow = []
    for _ in range(30):
        s = client_socket()
        server.sockets.append(s)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", server.port))
        s.setblocking(False)
        slow.append(s)
    data, sent = os.urandom(12 << 20), [0] * 30

    def fill() -> bool:
        for n, s in enumerate(slow):
            with contextlib.suppress(BlockingIOError):
                while sent[n] < len(data):
                    sent[n] += s.send(data[sent[n] : sent[n] + 65536])
        return bool(server.status()["backpressured"] == 30)

    wait_until(fill, 30)
    # The read that reaches the bound is the last.
    assert server.status()["buffered"] <= 65536 + 16384
    exchange(server.connect(), bytes(5000))
    for n, s in enumerate(slow):
        s.settimeout(10)
        assert receive(s, sent[n]) == data[: sent[n]]
    assert server.status()["buffered"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_log_that_is_no_file_keeps_its_owner(server: Server) -> None:
    """--user gave it /dev/null, where that was the log."""
    device = server.directory / "null"
    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    server.started("--user", "nobody", "--workers", "1", "--log-file", str(device))
    server.connect()
    os.kill(server.status()["pid"], signal.SIGUSR1)
    server.command("stop")
    assert device.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_log_with_a_second_name_keeps_its_owner(server: Server) -> None:
    """Whoever may write in the log's folder could have root give him any file of the same file system."""
    other = server.directory / "shadow"
    other.touch(0o600)
    server.log_file.hardlink_to(other)
    server.started("--user", "nobody", "--workers", "1")
    server.connect()
    assert other.stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root has no limit of processes, and only root can become another")
def test_too_few_processes_for_all_workers_is_a_sentence(server: Server) -> None:
    def someone() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (3, 3))
        os.setgroups([])
        os.setgid(64321)
        os.setuid(64321)

    payload = Path("/tmp") / uuid.uuid4().hex  # where anybody may read it
    shutil.copytree(PAYLOAD, payload, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["/usr/bin/python3", str(payload / "echo_server.py"), "run", "--bind", "127.0.0.1", "--workers", "4"]
    try:
        done = subprocess.run(
            [*command, "--port", str(server.port)], capture_output=True, text=True, preexec_fn=someone, timeout=15
        )
    finally:
        shutil.rmtree(payload)
    assert done.returncode == 1
    assert "echo_server.py: only 2 of 4 workers could be started: no more processes" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("python", sorted({OLDEST, Path("/usr/bin/python3")}), ids=str)
def test_workers_run_as_another_user(python: Path, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents[:3]:
        if parent.stat().st_uid == os.getuid() and parent != Path("/tmp"):
            parent.chmod(0o755)
    payload = tmp_path / "payload"
    shutil.copytree(PAYLOAD, payload, ignore=shutil.ignore_patterns("__pycache__"))
    s = Server(tmp_path, python, payload)
    s.port = next(port for port in range(600, 1023) if is_free(port))  # one that nobody may not bind
    s.started("--user", "nobody", "--workers", "2")
    try:
        check_workers_of_nobody(s)
    finally:
        s.close()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def check_workers_of_nobody(s: Server) -> None:
    state = s.status()
    for w in state["workers"]:
        lines = Path(f"/proc/{w['pid']}/status").read_text().splitlines()
        facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert set(facts["Uid"].split()) == {"65534"} and set(facts["Gid"].split()) == {"65534"}
        assert int(facts["CapEff"], 16) == 0 and facts["Groups"].split() in ([], ["65534"])
    clients = [s.connect() for _ in range(100)]
    s.log_file.rename(s.directory / "log.1")
    os.kill(state["pid"], signal.SIGUSR1)
    wait_until(lambda: {os.readlink(f"/proc/{p}/fd/2") for p in s.processes()} == {str(s.log_file)})
    done = s.command("reload")
    # An interpreter in root's home cannot be run by nobody: then the reload is refused and nothing is lost.
    readable = (
        subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", str(s.python), "-c", ""]).returncode == 0
    )
    assert done.returncode == (0 if readable else 1), done.stderr
    for c in clients:
        exchange(c)
    os.kill(state["pid"], signal.SIGTTOU)
    wait_until(lambda: len(s.processes()) == 2)
    for c in clients:
        exchange(c)


def test_keepalive_reaches_the_connections(server: Server) -> None:
    server.started("--keepalive", "60,7,3")
    assert server.status()["options"]["keepalive"] == [60, 7, 3]
    client = server.connect()
    shown = subprocess.run(
        ["ss", "-tnoH", "state", "established", f"( sport = :{server.port} )"], capture_output=True, text=True
    ).stdout
    assert "timer:(keepalive," in shown, shown
    exchange(client)


def test_all_addresses_of_both_families(server: Server) -> None:
    for _ in range(10):  # any client's port on any address is one that `::` cannot have
        server.port = free_port()
        if server.start("--bind", "::").returncode == 0:
            break
    for address in ("::1", "127.0.0.1"):
        with socket.create_connection((address, server.port), 5) as s:
            exchange(s)


@both
def test_reload_loses_nothing(python: Path, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    shutil.copytree(PAYLOAD, payload, ignore=shutil.ignore_patterns("__pycache__"))
    s = Server(tmp_path, python, payload).started("--workers", "2")
    before = s.status()
    clients = [s.connect() for _ in range(200)]
    slow = s.connect()
    slow.setblocking(False)
    data, sent = os.urandom(32 << 20), 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += slow.send(data[sent : sent + 65536])
    for c in clients:
        c.sendall(b"on its way")
    log_module = payload / "echo_log.py"
    log_module.write_text(log_module.read_text() + "\n# a new version\n")
    done = s.command("reload")
    assert done.returncode == 0, done.stderr + s.log()
    for c in clients:
        assert receive(c, 10) == b"on its way"
    slow.settimeout(10)
    assert receive(slow, sent) == data[:sent]
    after = s.status()
    assert after["version"] != before["version"] and f"version {after['version']}" in done.stdout
    assert after["pid"] == before["pid"] and after["connections"] == 201
    assert [w["pid"] for w in after["workers"]] == [w["pid"] for w in before["workers"]]
    assert [w["generation"] for w in after["workers"]] == [2, 2]
    assert after["accepted"] == 201
    s.connect()
    for c in clients:
        c.close()
    wait_until(lambda: s.status()["connections"] == 2)
    victim = after["workers"][0]["pid"]
    os.kill(victim, signal.SIGKILL)  # the supervisor still minds them
    wait_until(lambda: s.status()["workers"][0]["pid"] not in (0, victim))
    s.close()


def test_reload_of_broken_code_keeps_the_old(server: Server) -> None:
    server.payload = server.directory / "payload"
    shutil.copytree(PAYLOAD, server.payload, ignore=shutil.ignore_patterns("__pycache__"))
    server.started("--workers", "2")
    client = server.connect()
    before = server.status()
    worker = server.payload / "echo_worker.py"
    good = worker.read_text()
    worker.write_text("raise RuntimeError('half an upload' * 2000)\n")  # too long for the status
    try:
        os.kill(before["pid"], signal.SIGHUP)
        wait_until(lambda: "not reloaded" in server.log())
    finally:
        worker.write_text(good)
    assert "the new code does not load: RuntimeError: half an upload" in server.log()
    exchange(client)
    after = server.status()
    assert (after["pid"], after["version"]) == (before["pid"], before["version"])
    assert after["reload"]["attempts"] == 1 and "half an upload" in after["reload"]["error"]
    assert server.command("reload").returncode == 0
    exchange(client)


def test_reloads_leave_no_descriptor(server: Server) -> None:
    """Each left one more behind, in every process: after twenty a worker could not hold its last connections."""
    server.started("--workers", "2")
    server.connect()

    def descriptors() -> dict[int, int]:
        return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in server.processes()}

    assert server.command("reload").returncode == 0
    before = descriptors()
    for _ in range(2):
        assert server.command("reload").returncode == 0
    assert descriptors() == before


@pytest.mark.parametrize("whom", ["supervisor", "worker"])
def test_a_stop_that_comes_with_a_reload_is_not_forgotten(whom: str, server: Server) -> None:
    server.started("--workers", "1")
    state = server.status()
    pid = state["pid"] if whom == "supervisor" else state["workers"][0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
        os.kill(pid, number)
    if whom == "supervisor":
        wait_until(lambda: not server.processes())
        assert server.log().endswith("] stopped\n")
    else:
        wait_until(lambda: "worker 0 ended (exit status 0)" in server.log())


def test_a_probe_that_cannot_become_the_user_refuses_the_reload() -> None:
    """It ended the supervisor."""
    nobody = echo_identity.Identity("nobody", -2, -2)
    assert "cannot run" in (echo_reload.probe([str(NEWEST), "-c", ""], nobody) or "")


def test_nothing_of_the_server_stays_in_the_table_of_processes(server: Server) -> None:
    server.started()
    pid = server.status()["pid"]
    server.command("stop")
    assert daemon.process_start_time(pid) is None and not server.processes()
