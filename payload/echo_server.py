#!/usr/bin/env python3
"""A TCP echo server for very many connections: epoll, prefork workers, a daemon with a pid file.

    echo_server.py run    --bind 0.0.0.0 --port 1883 [--workers auto|N] [--mode echo|http] [--max-connections N]
    echo_server.py start  --pid-file F --log-file F [the same]    returns once it accepts, or fails
    echo_server.py check  [the same]                              whether one could be started; starts none
    echo_server.py status --pid-file F                            JSON; exit 3 if it is not running
    echo_server.py reload --pid-file F                            new code, no connection lost
    echo_server.py stop   --pid-file F

Signals to the supervisor (the pid in the pid file): TERM and INT stop gracefully, QUIT stops at once,
HUP reloads the code, USR1 reopens the log, TTIN and TTOU add and remove a worker. Exit status: 0 fine, 1 an error
(one sentence on stderr), 3 not running, 70 a defect.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any, List, Optional, Tuple

import echo_log
import echo_logind
import echo_notify
import echo_status
from daemon import DaemonError, PidFile, Readiness, open_stdio, process_start_time, start_daemon
from echo_plan import (
    MAX_WORKERS,
    MODES,
    PROBE_OPTION,
    RESUME_SUPERVISOR_OPTION,
    RESUME_WORKER_OPTION,
    Options,
)

NOT_RUNNING = 3
MAX_BUFFERED = 64 << 20
BROKEN = 70  # exit status of `run` after a defect (EX_SOFTWARE): systemd restarts it then, and not after a refusal
START_SECONDS = 30.0
STOP_SECONDS = 20.0
RELOAD_SECONDS = 60.0
ANYWHERE = "0.0.0.0"  # noqa: S104 - a load test is driven from other hosts
SCRIPT = os.path.abspath(__file__)  # now: a daemon changes its directory
_SUFFIXES = {"k": 1000, "m": 1000000}


def program_version() -> str:
    """Return the first 12 hex digits of the SHA-256 over the program's own files (names and content)."""
    directory = os.path.dirname(SCRIPT)
    names = [n for n in os.listdir(directory) if n.startswith("echo_") and n.endswith(".py")]
    digest = hashlib.sha256()
    for name in sorted([*names, "daemon.py", "nofile.py"]):
        with open(os.path.join(directory, name), "rb") as f:
            content = f.read()
        digest.update(b"%s %d\n" % (name.encode(), len(content)))
        digest.update(content)
    return digest.hexdigest()[:12]


def _supervisor(options: Options) -> Any:
    # Not at the top of the file: status, reload and stop have to work whatever the server's new files are worth.
    import echo_reload
    from echo_supervisor import Supervisor

    return Supervisor(options, program_version(), echo_reload.command(SCRIPT))


def run(options: Options) -> int:
    """Serve in the foreground until stopped; return the exit status."""
    open_stdio()
    if options.log_file:
        echo_log.redirect_to(options.log_file)
    return _supervisor(options).run(lambda message: None)


def start(options: Options) -> int:
    """Start the daemon; return 0 once it accepts connections, else print why not and return 1."""
    supervisor = _supervisor(options)
    os.environ.pop("NOTIFY_SOCKET", None)  # it is for the process that a unit of systemd started, not for a daemon

    def main(ready: Readiness) -> int:
        try:
            return supervisor.run(ready)
        except DaemonError as e:
            echo_log.log(str(e))
            ready.failed(str(e))
            return 1

    result = start_daemon(main, options.log_file, START_SECONDS)
    if not result.ok:
        raise DaemonError(result.message)
    print("pid %d: %s" % (result.pid, result.message))
    warning = echo_logind.warning()
    if warning:
        print("warning: %s" % warning)
    return 0


def check(options: Options) -> int:
    """Return 0 if a server could listen with these options, as that user.

    Raises DaemonError where there is no such user or the address is not to be had.
    """
    import echo_identity
    import echo_port

    if options.user is not None:
        echo_identity.find(options.user)
    echo_port.listen(options.bind, options.port).close()
    print("a server can be started with these options")
    return 0


def reload(pid_file: str) -> int:
    """Have the server run the program's present files, keeping every connection; return 0 once it does.

    Raises DaemonError when none runs or the new code does not work (the old code then keeps running).
    """
    before = echo_status.read(pid_file)
    if before is None:
        raise DaemonError("no server runs with the pid file %s" % pid_file)
    try:
        os.kill(before["pid"], signal.SIGHUP)
    except OSError as e:
        raise DaemonError("cannot reload pid %d: %s" % (before["pid"], e.strerror))
    deadline = time.monotonic() + RELOAD_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.02)
        now = echo_status.read(pid_file)
        if now is None:
            if PidFile.read(pid_file) is None:
                raise DaemonError("the server ended during the reload; its log is %s" % before["log_file"])
        elif now["reload"]["attempts"] > before["reload"]["attempts"]:
            if now["reload"]["error"]:
                raise DaemonError("not reloaded: %s" % now["reload"]["error"])
            print("reloaded pid %d: version %s" % (now["pid"], now["version"]))
            return 0
    raise DaemonError("pid %d did not reload within %g s" % (before["pid"], RELOAD_SECONDS))


def stop(pid_file: str) -> int:
    """Stop the server gracefully and wait for its end; return 0, also if none was running."""
    pid = PidFile.read(pid_file)
    if pid is None:
        print("not running")
        return 0
    born = process_start_time(pid)
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except OSError as e:
        raise DaemonError("cannot stop pid %d: %s" % (pid, e.strerror))
    deadline = time.monotonic() + STOP_SECONDS
    while born is not None and process_start_time(pid) == born:
        if time.monotonic() > deadline:
            raise DaemonError("pid %d did not stop within %g s" % (pid, STOP_SECONDS))
        time.sleep(0.01)
    print("stopped pid %d" % pid)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Bad use is exit status 1 throughout, not argparse's 2."""
        self.exit(1, "%s: %s\n" % (self.prog, message))


def _number(least: int, most: int) -> Any:
    """Return a parser of whole numbers such as 50000, 50_000 and 50k within these bounds."""

    def parse(text: str) -> int:
        plain = text.strip().lower().replace("_", "")
        factor = _SUFFIXES.get(plain[-1:], 1)
        digits = plain[:-1] if factor > 1 else plain
        if not digits.isdigit() or not least <= int(digits) * factor <= most:
            raise argparse.ArgumentTypeError("%r is not a number from %d to %d" % (text, least, most))
        return int(digits) * factor

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value == 0 or 1 <= value <= 10**7):  # NaN is neither
        raise argparse.ArgumentTypeError("%r is not a number of seconds (0: never; else at least 1)" % text)
    return value


def _keepalive(text: str) -> Tuple[int, ...]:
    """Parse IDLE[,INTERVAL[,COUNT]]; the kernel's ranges are those of tcp(7)."""
    if text == "0":
        return ()
    given = text.split(",")
    bounds = (32767, 32767, 127)[: len(given)]
    if len(given) > 3 or not all(one.isdigit() and 1 <= int(one) <= bounds[n] for n, one in enumerate(given)):
        raise argparse.ArgumentTypeError("%r is not IDLE[,INTERVAL[,COUNT]] in seconds, or 0" % text)
    return tuple(int(one) for one in given) + (10, 5)[len(given) - 1 :]


def _workers(text: str) -> Optional[int]:
    return None if text == "auto" else _number(1, MAX_WORKERS)(text)


def _arguments(argv: List[str]) -> argparse.Namespace:
    parser = _Parser(prog="echo_server.py", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="run|start|check|status|reload|stop")
    helps = {"run": "serve in the foreground", "start": "start the daemon", "check": "try the options"}
    for name in helps:
        p = commands.add_parser(name, help=helps[name])
        p.add_argument("--bind", default=ANYWHERE, metavar="ADDRESS", help="default 0.0.0.0; :: is all")
        p.add_argument("--port", type=_number(0, 65535), default=1883, help="default 1883; 0: any free one")
        p.add_argument("--workers", type=_workers, default=None, metavar="auto|N", help="default auto")
        p.add_argument("--max-connections", type=_number(1, 10**9), default=None, metavar="N")
        p.add_argument("--mode", choices=MODES, default="echo", help="default echo; http: always 200")
        p.add_argument("--user", metavar="USER[:GROUP]", help="workers run as this user; needs root")
        p.add_argument(
            "--idle-timeout",
            type=_seconds,
            default=0.0,
            metavar="S",
            help="end silent connections; default 0: no",
        )
        p.add_argument(
            "--keepalive",
            type=_keepalive,
            default=(),
            metavar="IDLE[,EVERY,COUNT]",
            help="let the kernel probe silent peers (seconds, seconds, probes); default 0: off",
        )
        p.add_argument(
            "--max-buffered",
            type=_number(65536, 10**12),
            default=MAX_BUFFERED,
            metavar="BYTES",
            help="held for slow peers by all workers together; default 64 MiB",
        )
        p.add_argument(
            "--verbose", action="store_true", help="print a line for all that is read: for a look, not a load"
        )
        p.add_argument("--pid-file", required=name == "start", metavar="F")
        p.add_argument("--log-file", required=name == "start", metavar="F")
    helps = {"status": "print the state as JSON", "reload": "run new code", "stop": "stop the daemon"}
    for name in ("status", "reload", "stop"):
        p = commands.add_parser(name, help=helps[name])
        p.add_argument("--pid-file", required=True, metavar="F")
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.error("say what to do: run, start, check, status, reload or stop")
    return arguments


def _answer_probe(state_format: str) -> int:
    import echo_reload
    import echo_supervisor  # noqa: F401 - whether it can be imported, with all that it imports, is the question

    return echo_reload.answer_probe(state_format)


def _resume_worker(fd: str) -> int:
    import echo_worker

    return echo_worker.resume(int(fd))


def _resume_supervisor(fd: str) -> int:
    import echo_reload
    import echo_supervisor

    return echo_supervisor.resume(int(fd), program_version(), echo_reload.command(SCRIPT))


_INTERNAL = {
    PROBE_OPTION: _answer_probe,
    RESUME_WORKER_OPTION: _resume_worker,
    RESUME_SUPERVISOR_OPTION: _resume_supervisor,
}


def main(argv: List[str]) -> int:
    """Run the command line `argv` (without the program's name); return the exit status."""
    if argv and argv[0] in _INTERNAL:  # how a reload calls the new code; not for users
        return _INTERNAL[argv[0]](argv[1])
    a = _arguments(argv)
    try:
        if a.command == "status":
            state = echo_status.read(a.pid_file)
            print(json.dumps({"running": False} if state is None else state))
            return NOT_RUNNING if state is None else 0
        if a.command in ("reload", "stop"):
            return (reload if a.command == "reload" else stop)(a.pid_file)
        options = Options(
            bind=a.bind,
            port=a.port,
            workers=a.workers,
            max_connections=a.max_connections,
            pid_file=os.path.abspath(a.pid_file) if a.pid_file else None,
            log_file=os.path.abspath(a.log_file) if a.log_file else None,
            mode=a.mode,
            user=a.user,
            idle_timeout=a.idle_timeout,
            keepalive=a.keepalive,
            max_buffered=a.max_buffered,
            verbose=a.verbose,
        )
        if options.pid_file and options.pid_file == options.log_file:
            raise DaemonError("%s cannot be both the pid file and the log" % options.pid_file)
        return {"run": run, "start": start, "check": check}[a.command](options)
    except DaemonError as e:
        if a.command == "run" and a.log_file:
            echo_log.log(str(e))  # stderr is the log, whose lines have a time
        else:
            print("echo_server.py: %s" % e, file=sys.stderr)
        echo_notify.notify("STATUS=%s" % e)
        return 1
    except Exception:
        traceback.print_exc()
        return BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
