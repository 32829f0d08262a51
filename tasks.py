"""tcpfleet: how many TCP connections can a server hold, what stops it, and what to tune.

    inv tune --hosts lab                        # sysctl and nofile limits, verified
    inv deploy-server                           # the pure-Python epoll server, as a daemon
    inv stress --clients 4 --per-client 50000   # 200,000 connections from four client hosts
    inv collect-report                          # one report that names the wall

Each task leads to one module of the package tcpfleet/. Exit codes: 0 fine, 1 bad use, 2 a host failed, 3 the
verdict is fail, 4 a host was unreachable, 5 the plan was refused, 130 interrupted.
"""

import atexit
import gc
import sys

from invoke.collection import Collection

# Invoke lets Python keep no bytecode: every command would compile all that it imports anew, 60 ms for `ping`.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
# Nearly all that a command makes stays to its end. Looking for garbage among it took a tenth of the CPU time of
# `ping` on 50 hosts, and as much again at the end, when it all goes anyway.
gc.set_threshold(20_000)
atexit.register(gc.freeze)

from tcpfleet.cli import LOCAL, ROOT, Answer, Options, task  # noqa: E402

# Modules are imported inside the tasks: `inv --list` must not wait for Fabric, Jinja and the rest.


@task(common=LOCAL)
def lab_up(options: Options) -> Answer:
    """Boot the hosts of group `lab` on this machine: real systemd and sshd on 10.77.0.0/24."""
    from tcpfleet import lab_tasks

    return lab_tasks.up(options)


@task(common=LOCAL, help={"any": "also take down a lab that belongs to another checkout"})
def lab_down(options: Options, any: bool = False) -> Answer:
    """Take the lab down and leave nothing: no process, mount, bridge or file."""
    from tcpfleet import lab_tasks

    return lab_tasks.down(options, anyones=any)


@task(common=LOCAL)
def lab_status(options: Options) -> Answer:
    """Say whose lab runs on this machine and what each host is doing."""
    from tcpfleet import lab_tasks

    return lab_tasks.status(options)


@task(help={"vars": "show group and host variables"})
def inventory(options: Options, vars: bool = False) -> Answer:
    """Print the inventory as a graph: groups, hosts and, with --vars, variables."""
    from tcpfleet import hosts

    return hosts.show(options, with_vars=vars)


@task()
def ping(options: Options) -> Answer:
    """Connect to every host and start an agent there; say who answers."""
    from tcpfleet import hosts

    return hosts.ping(options)


@task()
def facts(options: Options) -> Answer:
    """Show what the hosts are: Ansible's facts, and the limits that matter to connections."""
    from tcpfleet import hosts

    return hosts.facts(options)


@task(
    positional=["playbook"],
    help={
        "playbook": "file",
        "extra_vars": "key=value pairs, JSON or YAML in {}, or @file; may be given several times",
        "limit": "host pattern: only these of the hosts that the plays name (and of --hosts)",
        "tags": "only tasks with one of these tags, comma separated; may be given several times",
        "skip_tags": "no task with one of these tags",
        "start_at_task": "name of the task to begin with; * stands for any text",
        "syntax_check": "look for mistakes, run nothing",
        "list_hosts": "show the hosts of each play, run nothing",
        "list_tasks": "show the tasks that would run, run nothing",
        "list_tags": "show all tags, run nothing",
    },
    iterable=["extra_vars", "tags", "skip_tags"],
    shorts={"extra_vars": "e", "limit": "l", "tags": "t"},
)
def play(
    options: Options,
    playbook: str,
    extra_vars: list[str],
    tags: list[str],
    skip_tags: list[str],
    limit: str = "",
    start_at_task: str = "",
    syntax_check: bool = False,
    list_hosts: bool = False,
    list_tasks: bool = False,
    list_tags: bool = False,
) -> Answer:
    """Run a playbook in (a subset of) Ansible's format on the hosts it names."""
    from tcpfleet import plays

    shown = {"syntax": syntax_check, "hosts": list_hosts, "tasks": list_tasks, "tags": list_tags}
    choice = plays.Choice(limit, plays.words(tags), plays.words(skip_tags), start_at_task)
    return plays.play(options, playbook, extra_vars, choice, [name for name, wanted in shown.items() if wanted])


PROFILE = ", ".join(sorted(path.stem for path in (ROOT / "playbooks" / "profiles").glob("*.yml")))


@task(
    help={
        "profile": f"values to apply: {PROFILE}, or the path of a file of your own (the inventory's, or article)",
        "allow_lower": "also lower what the profile only raises",
        "allow_host_wide": "in a container, also write what belongs to the whole machine",
        "report": "write before, asked, after and status of every key to this file, in Markdown",
    }
)
def tune(
    options: Options,
    profile: str = "",
    allow_lower: bool = False,
    allow_host_wide: bool = False,
    report: str = "",
) -> Answer:
    """Apply sysctls and nofile limits to --hosts; each value is read back, each key gets a status."""
    from tcpfleet import tune_tasks

    return tune_tasks.tune(
        options, profile, allow_lower=allow_lower, allow_host_wide=allow_host_wide, report=report
    )


@task(
    common=("hosts", "inventory", "forks", "json", "ask_sudo_pass"),
    help={
        "profile": f"values to compare with: {PROFILE}, or a path (those that each host was tuned with)",
        "allow_host_wide": "in a container, count what belongs to the whole machine too",
    },
)
def tune_status(options: Options, profile: str = "", allow_host_wide: bool = False) -> Answer:
    """Asked, in force, on disk and after the next boot, of every key on --hosts; exit 2 on drift."""
    from tcpfleet import tune_tasks

    return tune_tasks.tune_status(options, profile, allow_host_wide=allow_host_wide)


@task(
    help={
        "list": "show what can be undone, and what has been; undo nothing",
        "all": "every run that is not undone yet, newest first; else the newest alone",
        "force": "also what someone else changed since",
        "user": "also the journal of this user, for tasks that ran as another user than root",
    }
)
def rollback(
    options: Options, list: bool = False, all: bool = False, force: bool = False, user: str = ""
) -> Answer:
    """Take back what the newest tune, play or deploy-server changed on --hosts, from the journals there."""
    from tcpfleet import rollback as rolling

    return rolling.rollback(options, listing=list, everything=all, force=force, user=user)


@task(
    common=("hosts", "inventory", "forks", "check", "json", "ask_sudo_pass"),
    help={"user": "also what is there of this user, for tasks that ran as another user than root"},
)
def clean(options: Options, user: str = "") -> Answer:
    """Stop server and clients and remove all that tcpfleet keeps on --hosts; roll back first."""
    from tcpfleet import clean as cleaning

    return cleaning.clean(options, user)


@task(
    common=("json",),
    help={
        "out": "folder to write into (the current one)",
        "connections": "connections to one target (64510, the most that one address has ports for)",
        "force": "overwrite files of an earlier run",
    },
)
def windows_tuning(options: Options, out: str = "", connections: str = "", force: bool = False) -> Answer:
    """Write a .reg and a PowerShell script that let a Windows machine open many connections."""
    from tcpfleet import windows

    return windows.windows_tuning(options, out, connections, force=force)


@task(
    help={
        "port": "port to listen on (1883)",
        "bind": "address to listen on (0.0.0.0)",
        "max_connections": "connections it must be able to hold (262144)",
        "workers": "processes (auto: as CPUs and nofile demand)",
        "mode": "echo, or http: 200 to every request (echo)",
        "manager": "who minds it: systemd, daemon, or auto: systemd where it runs (auto)",
    }
)
def deploy_server(
    options: Options,
    port: str = "",
    bind: str = "",
    max_connections: str = "",
    workers: str = "",
    mode: str = "",
    manager: str = "",
) -> Answer:
    """Start the echo server on group `server`; unchanged when it already runs as asked."""
    from tcpfleet import plays

    return plays.deploy_server(options, port, bind, max_connections, workers, mode, manager)


@task()
def server_status(options: Options) -> Answer:
    """Show the servers: connections, capacity, workers; exit 2 when one is not running."""
    from tcpfleet import deploy

    return deploy.status_task(options)


@task(help={"lines": "how many of the last lines (10)", "follow": "and what comes, until Ctrl-C"})
def server_log(options: Options, lines: str = "10", follow: bool = False) -> Answer:
    """Show the end of the servers' logs, also across a rotation."""
    from tcpfleet import deploy

    return deploy.log_task(options, lines, follow=follow)


@task()
def reload_server(options: Options) -> Answer:
    """Have the servers execute the files on their hosts anew; no connection is refused or lost."""
    from tcpfleet import deploy

    return deploy.reload_task(options)


@task()
def stop_server(options: Options) -> Answer:
    """Stop the echo server, gracefully."""
    from tcpfleet import plays

    return plays.stop_server(options)


@task(
    help={
        "clients": "stress clients, spread over the hosts (default: one per host)",
        "per_client": "connections of each client (1000); 50k is understood",
        "target": "HOST[:PORT], several with commas: clients take them in turn (group `server`, port 1883)",
        "allow_target": "the target may be outside the inventory",
        "rate": "connects per second of each client (unlimited)",
        "hold": "seconds to hold all connections after the ramp (10)",
        "mode": "idle, heartbeat, timer, flood or churn: see docs/stress.md",
        "interval": "seconds between a connection's messages in modes heartbeat and timer (10)",
        "message": r"text with \r \n \xHH, hex:... or @FILE, with {conn} {seq} {host} {rand:8}; the article's GET",
        "first_message": "sent once per connection, before the others",
        "expect": "echo (the same bytes), any, none, text:T, hex:H or regex:R",
        "first_expect": "of the first message (as --expect)",
        "delimiter": "a reply ends with this text, for --expect any and regex",
        "reply_bytes": "a reply has so many bytes, for --expect any and regex",
        "preset": "http, redis or mqtt: ready-made messages and expectations",
        "seed": "of {rand:N}: equal seeds give equal messages",
        "tls": "speak TLS; the server's certificate is checked",
        "tls_insecure": "speak TLS with whoever answers",
        "tls_name": "the server's name in its certificate (the target's address)",
        "tls_ca": "file of the authorities to check against (those of each client host)",
        "source": "addresses to connect from: IPs, networks, or auto, all of each host (the kernel's route)",
        "ports": "source ports A-B (default: each host's ip_local_port_range)",
        "workers": "processes per client",
        "in_flight": "first echoes outstanding at a time (default: as the round trip asks for)",
        "connect_timeout": "seconds (15)",
        "reply_timeout": "seconds (15)",
        "close": "rst, fin or hold: who keeps TIME_WAIT, see docs/stress.md",
        "fail_if": "the verdict is fail if so, such as 'p99_response_ms > 50'; may be given several times",
        "plan": "show what each host would do, start nothing",
        "detach": "start it and leave; --attach follows it",
        "attach": "run id (or latest): follow a run that goes on without its controller",
        "repeat": "run id (or latest): the same plan again, its messages too",
        "progress": "rich, plain or json, on stderr (rich on a terminal)",
    },
    iterable=["fail_if"],
)
def stress(
    options: Options,
    fail_if: list[str],
    clients: str = "",
    per_client: str = "",
    target: str = "",
    allow_target: bool = False,
    rate: str = "",
    hold: str = "",
    mode: str = "",
    interval: str = "",
    message: str = "",
    first_message: str = "",
    expect: str = "",
    first_expect: str = "",
    delimiter: str = "",
    reply_bytes: str = "",
    preset: str = "",
    seed: str = "",
    tls: bool = False,
    tls_insecure: bool = False,
    tls_name: str = "",
    tls_ca: str = "",
    source: str = "",
    ports: str = "",
    workers: str = "",
    in_flight: str = "",
    connect_timeout: str = "",
    reply_timeout: str = "",
    close: str = "",
    plan: bool = False,
    detach: bool = False,
    attach: str = "",
    repeat: str = "",
    progress: str = "",
) -> Answer:
    """Hold N x M verified connections to the target from group `clients`; writes reports/RUN_ID/run.json."""
    from tcpfleet import stress_tasks

    client: dict[str, str | bool] = {"rate": rate, "hold": hold, "mode": mode, "interval": interval}
    client |= {"message": message, "first-message": first_message, "expect": expect, "first-expect": first_expect}
    client |= {"delimiter": delimiter, "reply-bytes": reply_bytes, "preset": preset, "seed": seed}
    client |= {"tls": tls, "tls-insecure": tls_insecure, "tls-name": tls_name, "tls-ca": tls_ca}
    client |= {"source": source, "ports": ports, "workers": workers, "close": close}
    client |= {"in-flight": in_flight, "connect-timeout": connect_timeout, "reply-timeout": reply_timeout}
    how = stress_tasks.How(fail_if, plan, detach, attach, repeat, progress)
    return stress_tasks.stress(options, clients, per_client, target, allow_target, client, how)


@task(
    help={
        "grow": "what grows: connections, or rate (connects per second of all clients)",
        "start": "first size (1000)",
        "most": "last size (1M)",
        "precision": "percent within which the limit is found (5)",
        "clients": "stress clients, spread over the hosts (default: one per host)",
        "per_client": "connections of each client, with --grow rate (1000)",
        "target": "HOST[:PORT], several with commas: clients take them in turn (group `server`, port 1883)",
        "allow_target": "the target may be outside the inventory",
        "hold": "seconds to hold each load (5)",
        "mode": "idle, heartbeat, timer, flood or churn",
        "interval": "seconds between a connection's messages in modes heartbeat and timer (10)",
        "preset": "http, redis or mqtt",
        "source": "addresses to connect from, comma separated, or auto",
        "rate": "connects per second of each client, with --grow connections",
        "reply_timeout": "seconds (15)",
        "fail_if": "a load does not hold if so, such as 'p99_response_ms > 50'; may be given several times",
    },
    iterable=["fail_if"],
)
def find_limit(
    options: Options,
    fail_if: list[str],
    grow: str = "connections",
    start: str = "",
    most: str = "",
    precision: str = "",
    clients: str = "",
    per_client: str = "",
    target: str = "",
    allow_target: bool = False,
    hold: str = "5",
    mode: str = "",
    interval: str = "",
    preset: str = "",
    source: str = "",
    rate: str = "",
    reply_timeout: str = "",
) -> Answer:
    """Double, then bisect the load until a wall: prints the largest that held, and the wall above it."""
    from tcpfleet import limit

    client: dict[str, str | bool] = {"hold": hold, "mode": mode, "interval": interval, "preset": preset}
    client |= {"source": source, "rate": rate, "reply-timeout": reply_timeout}
    sizes = (start, most, precision)
    return limit.find_limit(options, grow, sizes, clients, per_client, target, allow_target, client, fail_if)


@task()
def stress_status(options: Options) -> Answer:
    """Show what stress clients of this login are doing on the hosts, whichever controller started them."""
    from tcpfleet import stress_tasks

    return stress_tasks.status(options)


@task()
def stop_stress(options: Options) -> Answer:
    """Stop every stress client on the hosts; each writes what it reached."""
    from tcpfleet import stress_tasks

    return stress_tasks.stop(options)


@task(
    help={
        "run": "run id (default: the newest run)",
        "port": "port to look at (the run's own; 1883 when there is none)",
        "lang": "of report.html and report.md: en or zh",
    }
)
def collect_report(options: Options, run: str = "", port: str = "", lang: str = "en") -> Answer:
    """Gather all hosts' state into reports/RUN_ID/: report.html, report.md, report.json and raw files."""
    from tcpfleet import collect

    return collect.collect_report(options, run, port, lang)


@task(common=("json",))
def reports(options: Options) -> Answer:
    """List the runs in reports/, newest first: verdict, connections, wall, duration, size."""
    from tcpfleet import reports as kept

    return kept.list_runs(options)


@task(
    common=("json",),
    positional=["a", "b"],
    help={
        "a": "run id, latest, or a run's folder; several runs that are set alike with commas",
        "b": "the same, for the other side",
        "lang": "of compare.html and compare.md: en or zh",
    },
)
def compare_reports(options: Options, a: str, b: str, lang: str = "en") -> Answer:
    """Put two runs side by side: what was set differently, and what it changed beyond chance."""
    from tcpfleet import reports as kept

    return kept.compare_reports(options, a, b, lang)


@task(common=("inventory", "json"), help={"local": "use this machine without SSH even if the lab could be booted"})
def demo(options: Options, local: bool = False) -> Answer:
    """Run the whole story in under two minutes: lab, tune, deploy, stress, report."""
    from tcpfleet import demo as story

    return story.run(options, local=local)


@task(common=(), help={"full": "also whole fault matrices, soaks and long fuzzing", "only": "pytest's -k"})
def test(options: Options, full: bool = False, only: str = "") -> Answer:
    """Run all tests: unit, integration on the lab, the report page in headless Chromium."""
    from tcpfleet import develop

    return develop.test(full=full, only=only)


@task(common=())
def lint(options: Options) -> Answer:
    """Check style, types, and that payload/ needs no more than Python 3.6."""
    from tcpfleet import develop

    return develop.lint()


@task(
    common=("hosts", "json"),
    positional=["what"],
    help={
        "what": "playbook, stress or fleet",
        "rounds": "how often each figure is taken; medians count (3)",
        "only": "parts of it, comma separated; the others' tables stay",
    },
)
def bench(options: Options, what: str, rounds: str = "3", only: str = "") -> Answer:
    """Measure against other tools on the lab; writes the tables into benchmarks/README.md."""
    from tcpfleet import bench as benchmarks

    return benchmarks.run(options, what, rounds, only)


namespace = Collection()
for made in [one for one in list(globals().values()) if hasattr(one, "body")]:
    namespace.add_task(made)
