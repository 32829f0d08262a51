#!/usr/bin/env python3
"""Many TCP connections to one server, each verified byte for byte.

    python3 stress_client.py HOST PORT --connections N [--mode heartbeat --interval 1] [--hold 10] [--json]

Alone it prints a summary (or one JSON object, --json) and exits 0 for pass, 3 for fail, 1 for bad use, 5 for a
plan that cannot work, 130 when interrupted. With --detach DIR it becomes a daemon that is led through files in
DIR (`pid`, `log`, `status.json`, `result.json`; `go` and `hold` with --barrier). Any Python from 3.6, standard
library only.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the rest is imported: an end without a traceback

import argparse
import itertools
import json
import os
import re
import socket
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

import daemon
import stress_facts
import stress_plan
import stress_ports
import stress_probe
import stress_talk
import stress_threshold
import stress_tls
from stress_message import PLACEHOLDERS, MessageError, bracketed
from stress_modes import MODES
from stress_plan import PlanRefused, Request
from stress_slots import Slots
from stress_supervisor import Course, Supervisor
from stress_worker import Settings

OK, BAD_USE, FAILED, REFUSED, INTERRUPTED = 0, 1, 3, 5, 130
LONGEST_SECONDS = 7 * 86400.0
MIXED = (
    "the server mixes up messages that arrive at once (tried before the load: {}), so only one connection was on "
    "its way at a time; --in-flight N forces more"
)


class BadUse(Exception):
    """Options that make no sense; the text is one sentence."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise BadUse(message)


def count(text: str) -> int:
    """A whole number from 1; 50k and 1m are understood."""
    match = re.match(r"^([0-9][0-9_,]*)([km]?)$", text.strip().lower())
    value = (
        int(re.sub("[_,]", "", match.group(1))) * {"": 1, "k": 1000, "m": 10**6}[match.group(2)] if match else 0
    )
    if not 1 <= value <= 10**8:
        raise argparse.ArgumentTypeError("{!r} is not a number from 1 to 100,000,000".format(text))
    return value


def seconds(text: str) -> float:
    """Seconds, 0 to a week; 500ms, 10s, 5m and 2h are understood."""
    match = re.match(r"^([0-9]*\.?[0-9]+)(ms|s|m|h|)$", text.strip().lower())
    value = (
        float(match.group(1)) * {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600}[match.group(2)] if match else -1
    )
    if not 0 <= value <= LONGEST_SECONDS:
        raise argparse.ArgumentTypeError("{!r} is not a time (seconds, or 500ms, 5m, 2h)".format(text))
    return value


def positive_seconds(text: str) -> float:
    """Seconds as `seconds`, but not 0."""
    value = seconds(text)
    if value < 0.001:
        raise argparse.ArgumentTypeError("{!r} is too short; at least 1 ms".format(text))
    return value


def rate(text: str) -> float:
    """Connects per second, > 0; 5k is understood."""
    match = re.match(r"^([0-9]*\.?[0-9]+)(k?)$", text.strip().lower())
    value = float(match.group(1)) * (1000 if match.group(2) else 1) if match else 0
    if not 0.001 <= value <= 1e7:
        raise argparse.ArgumentTypeError("{!r} is not a rate in connects per second".format(text))
    return value


def whole(text: str) -> int:
    """A number from 0."""
    if not re.match(r"^[0-9]{1,18}$", text):
        raise argparse.ArgumentTypeError("{!r} is not a whole number".format(text))
    return int(text)


def port(text: str) -> int:
    """A TCP port."""
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("{!r} is not a port from 1 to 65535".format(text))
    return int(text)


def port_range(text: str) -> Tuple[int, int]:
    """A-B."""
    match = re.match(r"^(\d{1,5})-(\d{1,5})$", text)
    if not match or not 1 <= int(match.group(1)) <= int(match.group(2)) <= 65535:
        raise argparse.ArgumentTypeError("{!r} is not a port range such as 10000-60000".format(text))
    return int(match.group(1)), int(match.group(2))


def slice_of(text: str) -> Tuple[int, int]:
    """K/N, K from 0."""
    match = re.match(r"^(\d{1,6})/(\d{1,6})$", text)
    if not match or int(match.group(1)) >= int(match.group(2)):
        raise argparse.ArgumentTypeError("{!r} is not K/N with K from 0 to N-1".format(text))
    return int(match.group(1)), int(match.group(2))


def build_parser() -> argparse.ArgumentParser:
    """The options. Raises BadUse instead of exiting on bad ones."""
    p = _Parser(prog="stress_client.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    p.add_argument("host", metavar="HOST")
    p.add_argument("port", metavar="PORT", type=port)
    p.add_argument(
        "--connections", type=count, required=True, metavar="N", help="of this client; 50k is understood"
    )
    p.add_argument("--rate", type=rate, metavar="R", help="connects per second of this client (unlimited)")
    text = "at most N connections between connect and first verified echo (follows the delay)"
    p.add_argument("--in-flight", type=count, metavar="N", help=text)
    p.add_argument("--hold", type=seconds, default=10.0, metavar="S", help="seconds to hold after the ramp (10)")
    p.add_argument("--mode", choices=sorted(MODES), default="idle", help="; ".join(_mode_lines()) + " (idle)")
    text = "of heartbeat and timer, seconds (10)"
    p.add_argument("--interval", type=positive_seconds, default=10.0, metavar="S", help=text)
    text = r"text with \r \n \xHH; hex:...; @FILE; placeholders: " + PLACEHOLDERS
    p.add_argument("--message", metavar="M", help=text)
    p.add_argument("--first-message", metavar="M", help="sent once per connection, before the others")
    text = "echo (the same bytes), any, none, text:T, hex:H, regex:R (echo)"
    p.add_argument("--expect", metavar="E", help=text)
    p.add_argument("--first-expect", metavar="E", help="of the first message (as --expect)")
    p.add_argument("--delimiter", metavar="T", help="a reply ends with this text, for --expect any and regex")
    p.add_argument("--reply-bytes", metavar="N", help="a reply has N bytes, for --expect any and regex")
    p.add_argument("--preset", choices=sorted(stress_talk.PRESETS), help="; ".join(_preset_lines()))
    p.add_argument("--seed", type=whole, metavar="N", help="of {rand:N}; equal seeds, equal messages (by chance)")
    p.add_argument(
        "--tls", action="store_true", help="speak TLS (so do all --tls-...); the certificate is checked"
    )
    p.add_argument("--tls-insecure", action="store_true", help="speak TLS with whoever answers")
    p.add_argument("--tls-name", metavar="NAME", help="of the server in its certificate (HOST)")
    p.add_argument("--tls-ca", metavar="FILE", help="authorities to check against (the system's)")
    text = "addresses to connect from: IP, network/LENGTH or auto, all of this host (the kernel's route; towards"
    text += " loopback as many of 127.0.0.0/8 as are needed)"
    p.add_argument("--source", metavar="IP[,IP]", help=text)
    p.add_argument("--ports", type=port_range, metavar="A-B", help="source ports (the host's ip_local_port_range)")
    p.add_argument("--workers", type=count, metavar="N", help="processes (as the nofile limit and CPUs demand)")
    p.add_argument("--connect-timeout", type=positive_seconds, default=15.0, metavar="S", help="(15)")
    p.add_argument("--reply-timeout", type=positive_seconds, default=15.0, metavar="S", help="(15)")
    close = "rst frees ports on both ends at once; fin leaves each in TIME_WAIT here for 60 s; hold waits, at most"
    close += " --reply-timeout, for the server to close first, so that TIME_WAIT is there (rst)"
    p.add_argument("--close", choices=("rst", "fin", "hold"), default="rst", help=close)
    text = "this is client K (from 0) of N equal ones on this host that have the same target (0/1)"
    p.add_argument("--slice", type=slice_of, default=(0, 1), metavar="K/N", help=text)
    text = "of this run, which share memory, files and processes; they may have several targets (the N of --slice)"
    p.add_argument("--clients-here", type=count, metavar="N", help=text)
    p.add_argument(
        "--first-conn", type=whole, metavar="N", help="number of the first connection (K x connections)"
    )
    text = "the verdict is fail if so, such as 'p99_response_ms > 50'; may be given several times"
    p.add_argument("--fail-if", action="append", default=[], metavar="C", help=text)
    p.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    p.add_argument("--plan", action="store_true", help="print the plan as JSON and exit")
    p.add_argument("--detach", metavar="DIR", help="run as a daemon led through files in DIR")
    p.add_argument("--barrier", action="store_true", help="wait for DIR/go before, DIR/hold after the ramp")
    p.add_argument("--barrier-timeout", type=positive_seconds, default=120.0, metavar="S", help="(120)")
    return p


def _preset_lines() -> List[str]:
    return ["{}: {}".format(name, preset.help) for name, preset in sorted(stress_talk.PRESETS.items())]


def _mode_lines() -> List[str]:
    return ["{}: {}".format(mode.name, mode.help) for mode in MODES.values()]


def prepare(options: argparse.Namespace) -> Supervisor:
    """From options to a run that is planned and can start; asks the server whether it keeps connections apart.

    Raises BadUse, stress_facts.FactsError (both exit 1) and PlanRefused (exit 5).
    """
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(4), "big")
    try:
        talk = stress_talk.compile_talk(
            options.preset,
            options.message,
            options.expect,
            options.first_message,
            options.first_expect,
            options.delimiter,
            options.reply_bytes,
            bracketed(options.host),
            options.seed,
        )
        secure = None
        if options.tls or options.tls_insecure or options.tls_ca or options.tls_name:
            name = options.tls_name or options.host
            secure = stress_tls.make_secure(name, options.tls_insecure, options.tls_ca)
    except MessageError as e:
        raise BadUse(str(e))
    try:
        thresholds = [stress_threshold.parse(text) for text in options.fail_if]
    except stress_threshold.ThresholdError as e:
        raise BadUse(str(e))
    if options.mode == "flood" and talk.expect.silent:
        raise BadUse("--mode flood sends after each reply, and --expect none awaits none; --mode timer has a rate")
    if options.barrier and not options.detach:
        raise BadUse("--barrier waits for files in a run directory; it needs --detach DIR")
    family, target = stress_facts.resolve(options.host, options.port)
    index, slices = options.slice
    loopback = family == socket.AF_INET and target[0].startswith("127.")
    if options.source or loopback:
        needed = stress_facts.addresses_needed(options.connections * slices, options.ports)
        sources = stress_facts.parse_sources(options.source or "auto", family, target[0], needed)
    else:
        sources = (stress_facts.route_source(family, target),)
    facts = stress_facts.read_facts(family, target, sources, options.ports)
    if secure:
        facts = facts._replace(socket_bytes=facts.socket_bytes + stress_tls.BYTES)
    here = options.clients_here or slices
    request = Request(options.connections, sources, index, slices, options.workers, options.ports, here)
    plan = stress_plan.make_plan(request, facts)
    first = options.first_conn if options.first_conn is not None else index * options.connections
    in_flight, notes = options.in_flight, []  # type: Optional[int], List[str]
    judged = talk.unique_echo and secure is None and options.connections >= stress_probe.FROM
    # Under a controller nothing may connect before its `go`.
    if judged and not (options.plan or in_flight or options.barrier):
        ports = tuple(itertools.islice(stress_plan.each_port(plan.workers[0].blocks), stress_probe.CONNECTIONS))
        found = stress_probe.probe(family, target, ports, talk.render, first)
        if found.mixed:
            in_flight = 1
            notes.append(MIXED.format(found.sample))
            # More would share the rate, each with a connection on its way.
            request = request._replace(workers=options.workers or stress_plan.fewest_workers(request, facts))
            plan = stress_plan.make_plan(request, facts)
    at_once = workers = len(plan.workers)
    if options.rate:
        if options.in_flight and options.in_flight < workers:
            raise BadUse(
                "--in-flight {} with --rate is less than the {} workers".format(options.in_flight, workers)
            )
    else:
        # More than the processors would only take turns on them, a few connects each; so they queue instead.
        at_once = min(workers, facts.cpus, in_flight or workers)
    settings = Settings(
        family=family,
        target=target,
        mode=options.mode,
        talk=talk,
        secure=secure,
        ports_by=stress_ports.choose(
            family, plan.ports, facts.port_range, sources == (stress_facts.route_source(family, target),)
        ),
        interval=options.interval,
        connect_timeout=options.connect_timeout,
        reply_timeout=options.reply_timeout,
        rate=options.rate,
        in_flight=in_flight,
        close=options.close,
        first_conn=first,
        connections=options.connections,
        workers=workers,
        at_once=at_once,
    )
    show = {k: v for k, v in sorted(vars(options).items()) if k not in ("json", "detach", "plan")}
    quiet = lambda status: None  # noqa: E731
    course = Course(options.hold, None, None, None, None, options.barrier_timeout, quiet, show, notes, thresholds)
    return Supervisor(plan, facts, settings, course)


def run_here(run: Supervisor, as_json: bool) -> int:
    """Run in the foreground: progress on stderr, the result on stdout. Returns the exit code."""
    shown = [None]  # type: List[Any]

    def progress(status: Dict[str, Any]) -> None:
        second = (status["state"], int(status["elapsed"]))
        if second != shown[0]:
            shown[0] = second
            sys.stderr.write(progress_line(status) + "\n")
            sys.stderr.flush()

    run.course = run.course._replace(on_status=progress)
    run.start()
    result = run.run()
    try:
        text = json.dumps(result) + "\n" if as_json else summary(result)
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads; the exit code still counts
    return exit_code(result)


def exit_code(result: Dict[str, Any]) -> int:
    """The contract's code for a result."""
    if result["interrupted"]:
        return INTERRUPTED
    return OK if result["verdict"] == "pass" else FAILED


def progress_line(status: Dict[str, Any]) -> str:
    """One line about a status."""
    c, r = status["connections"], status["rate"]
    text = "{:8.1f} s  {:<7}  open {:>9,}  failed {:>7,}  {:>9,.0f} connects/s  {:>9,.0f} echoes/s"
    rates = r["connects_per_second"], r["echoes_per_second"]
    line = text.format(status["elapsed"], status["state"], c["open"], c["failed"], *rates)
    p99 = status["p99_ms"]["service"]
    return line if p99 is None else line + "  p99 {:.2f} ms".format(p99)


def summary(result: Dict[str, Any]) -> str:
    """The result for people."""
    c, e, r = result["connections"], result["echoes"], result["rate"]
    lines = [
        "{}: {:,} of {:,} connections to {} verified, {:,} failed, at most {:,} open".format(
            result["verdict"].upper(), c["verified"], c["requested"], result["target"], c["failed"], c["peak"]
        ),
        "echoes: {:,} sent, {:,} verified, {:,} mismatched, {:,} lost".format(
            e["sent"], e["verified"], e["mismatched"], e["lost"]
        ),
        "rate: {:,.0f} connects/s over {:.2f} s, {:,.0f} echoes/s".format(
            r["connects_per_second"], result["seconds"]["ramp"], r["echoes_per_second"]
        ),
    ]
    for name in ("connect", "service", "response"):
        row = result["latency_ms"][name]
        if row["count"]:
            values = "  ".join("{} {:.3f}".format(k, row[k]) for k in ("p50", "p90", "p99", "p999", "max"))
            lines.append("{} ms: {}".format(name, values))
    for row in result["errors"]:
        lines.append("error: {phase} {errno} x {count}, {first} to {last}: {sample}".format(**row))
    lines.extend(stress_threshold.sentence(row) for row in result["thresholds"])
    if result["wall"]:
        lines.append("wall: {name}: {evidence}. Fix: {fix}".format(**result["wall"]))
    lines.extend("note: " + text for text in result["warnings"])
    if result["message"]:
        lines.append("note: " + result["message"])
    return "\n".join(lines) + "\n"


def run_detached(run: Supervisor, directory: str, barrier: bool) -> int:
    """Become a daemon that reports in `directory`; returns, in the caller, once the workers are ready."""
    directory = os.path.abspath(directory)
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        raise BadUse("the run directory {} exists already".format(directory))
    except OSError as e:
        raise BadUse("cannot create the run directory {}: {}".format(directory, e.strerror))

    def path(name: str) -> str:
        return os.path.join(directory, name)

    def main(ready: daemon.Readiness) -> int:
        wait_go = wait_hold = alone = slots = None
        if barrier:
            if run.settings.rate is None:
                slots = Slots(os.path.dirname(directory), run.facts.cpus)
            alone = Leader(os.path.join(os.path.dirname(directory), "leader")).gone
            wait_go = lambda: os.path.exists(path("go"))  # noqa: E731
            wait_hold = lambda: os.path.exists(path("hold"))  # noqa: E731
        unwritten = []  # type: List[str]

        def on_status(status: Dict[str, Any]) -> None:
            try:
                write_json(path("status.json"), status)
            except OSError as e:  # a disk that is full for a while ends no load
                if not unwritten:
                    unwritten.append("its progress could not be written: {}".format(e.strerror))
                    run.course.notes.extend(unwritten)

        run.course = run.course._replace(
            wait_go=wait_go, wait_hold=wait_hold, alone=alone, slots=slots, on_status=on_status
        )
        pid_file = daemon.PidFile(path("pid"))
        pid_file.acquire()
        try:
            run.start()
            write_json(path("plan.json"), stress_plan.plan_to_dict(run.plan, run.facts))
            write_json(path("status.json"), run.status())
            ready()
            result = run.run(lambda outcome: write_json(path("result.json"), outcome))
            return exit_code(result)
        finally:
            pid_file.release()

    started = daemon.start_daemon(main, path("log"))
    if not started.ok:
        sys.stderr.write("stress_client.py: {}\n".format(started.message))
        return 2
    return OK


class Leader:
    """Who opens the barriers: a process named by a file (its number and start time), which it writes anew each
    time it looks at the run.

    :param path: of that file; while there is none, nobody is missed.
    """

    ALONE_SECONDS = 15.0  # a controller that lost its connection is back by then, through another process

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen = time.monotonic()

    def gone(self) -> bool:
        """Whether that process has been dead for ALONE_SECONDS."""
        now = time.monotonic()
        try:
            with open(self.path) as f:
                pid, born = f.read().split()
        except (OSError, ValueError):
            return False
        if str(daemon.process_start_time(int(pid))) == born:
            self.seen = now
        return now - self.seen > self.ALONE_SECONDS


def write_json(path: str, value: Dict[str, Any]) -> None:
    """Write a file that readers see whole: a temporary name, then rename."""
    temporary = "{}.{}".format(path, os.getpid())
    with open(temporary, "w") as f:
        json.dump(value, f)
    os.rename(temporary, path)


def main(arguments: Optional[List[str]] = None) -> int:
    """The program; returns its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        options = build_parser().parse_args(arguments)
        run = prepare(options)
        if options.plan:
            print(json.dumps(stress_plan.plan_to_dict(run.plan, run.facts)))
            return OK
        if options.detach:
            return run_detached(run, options.detach, options.barrier)
        return run_here(run, options.json)
    except (BadUse, stress_facts.FactsError, daemon.DaemonError) as e:
        sys.stderr.write("stress_client.py: {}\n".format(e))
        return BAD_USE
    except PlanRefused as e:
        sys.stderr.write("stress_client.py: refused: {}\n".format(e))
        return REFUSED
    except OSError as e:
        sys.stderr.write("stress_client.py: cannot start: {}\n".format(e.strerror or e))
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
