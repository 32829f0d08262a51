"""The tasks `tune` and `tune-status`: playbooks/tune.yml, and what became of it.

In: what the user typed. Out: Answers with a table per host. `tcpfleet.tune` makes the table of a run,
`tcpfleet.tune_status` the one of what has become of an earlier run.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcpfleet import plays, rollback, runs
from tcpfleet import report as report_files
from tcpfleet import tune as tuning
from tcpfleet import tune_status as drift
from tcpfleet.cli import Answer, Options
from tcpfleet.errors import EXIT_HOST_FAILED, BadInput, HostFailed, worst
from tcpfleet.fleet import exit_codes
from tcpfleet.playbook import Recap, load
from tcpfleet.playbook.console import ConsoleReporter
from tcpfleet.secret import printable, redact

if TYPE_CHECKING:
    from tcpfleet.fleet import Fleet
    from tcpfleet.inventory import Host
    from tcpfleet.link import Session


def tune(
    options: Options,
    profile: str = "",
    *,
    allow_lower: bool = False,
    allow_host_wide: bool = False,
    report: str = "",
    become: bool = True,
) -> Answer:
    """playbooks/tune.yml, then a table per host of what is in force, read back.

    :param profile: a file of playbooks/profiles/ or the path of one; empty: the inventory's `profile`, or article.
    :param report: file to write the tables to, in Markdown; empty: none.
    :param become: whether to use sudo where the login is not root.
    """
    hosts = options.select()
    extra = _profile(profile) | _allowed(allow_lower=allow_lower, allow_host_wide=allow_host_wide)
    if not become:
        extra["tune_become"] = False
    target = _report_file(report)
    book = load(plays.PLAYBOOKS / "tune.yml", extra)
    command = f"tune --profile {profile}" if profile else "tune"
    with options.fleet(hosts) as fleet:
        recap = plays.run_on(options, book, fleet, [host.name for host in hosts], command)
        readings = tuning.read_back(fleet, hosts, recap)
        logins: dict[str, tuning.LoginLimit] = {}
        if not options.check:
            logins = tuning.held_logins(fleet, _over_ssh(options, hosts), recap)
            written = [host for host in hosts if host.name in readings.keys() - logins.keys()]
            logins |= _try_logins(options, fleet, _over_ssh(options, written), recap)
    tables = tuning.summarise(recap, readings, logins)
    rollback.say_by_hand(options, recap)  # before the tables: what went wrong comes last
    options.say("")
    options.say(tuning.render(tables).rstrip("\n"))
    if not options.check:
        for name, table in tables.items():
            report_files.save_tuning(runs.REPORTS, name, {"run": recap.run, **table.to_json()})
    if target is not None:
        text = tuning.render_markdown(tables, f"Tuning, run {recap.run}")
        target.write_text(printable(redact(text)), encoding="utf-8")
        options.say(f"\nreport: {target}")
    data = {"tuning": {name: table.to_json() for name, table in tables.items()}} | recap.to_json()
    refused = [table.host for table in tables.values() if table.failed and table.host not in recap.reasons]
    codes = [EXIT_HOST_FAILED for _ in refused]
    return Answer(data, worst([recap.exit_code, *codes]), [*recap.failed, *refused])


def _allowed(**switches: bool) -> dict[str, Any]:
    """Switches as the play's variables; one that is off leaves the inventory's word."""
    return {name: True for name, on in switches.items() if on}


def _profile(given: str) -> dict[str, Any]:
    """``--profile`` as the play's variable.

    :raises BadInput: when there is no such file; names those that there are.
    """
    if not given:
        return {}
    folder = plays.PLAYBOOKS / "profiles"
    if "/" in given or given.endswith((".yml", ".yaml")):
        path = Path(given).expanduser().absolute()
        if not path.is_file():
            raise BadInput(f"--profile {given}: there is no file {path}")
        return {"profile": str(path)}
    if not (folder / f"{given}.yml").is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yml")))
        raise BadInput(f"--profile {given!r} is not a file of {folder}; there are: {known}; or give a path")
    return {"profile": given}


def _report_file(given: str) -> Path | None:
    """Where the report goes; looked at before any host is touched.

    :raises BadInput: when it could not be written.
    """
    if not given:
        return None
    path = Path(given).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise BadInput(f"--report {given}: {wrong}")
    return path


def _try_logins(
    options: Options, fleet: Fleet, hosts: Sequence[Host], recap: Recap
) -> dict[str, tuning.LoginLimit]:
    """Open-file limits of a login made after the tuning: limits.d counts only as seen there.

    A host that lets nobody in any more is not left so: while the connection that tuned it is still held, all that
    this run changed there is taken back, and the host has failed.
    """

    def enter(session: Session) -> tuning.LoginLimit:
        if session.become is not None:  # sudo opens a session of its own, with the same limits
            answer = session.call("ping", {}, become=session.become)
            if answer.get("failed"):
                raise HostFailed(str(answer.get("msg")))
        return tuning.LoginLimit(*session.hello["nofile"])

    with options.fleet(hosts) as trial:
        tried = trial.run(enter, last=True)
    shut = {name: str(one.error) for name, one in tried.items() if one.status != "ok"}

    def take_back(session: Session) -> str:
        undone = rollback.take_back(session, options.sudo_password, recap.run)
        left = "" if undone.complete else "; not everything could be: inv rollback"
        return f"all that this run changed here was taken back{left}"

    if shut:
        backs = fleet.run(take_back, [host for host in hosts if host.name in shut])
        for name, back in backs.items():
            what = back.value or f"and it could not be taken back ({back.error}): inv rollback --hosts {name}"
            recap.reasons[name] = f"a new login failed after the tuning ({shut[name]}); {what}"
            recap.hosts[name].failed += 1
    return {name: one.value for name, one in tried.items() if one.value is not None}


def _over_ssh(options: Options, hosts: Sequence[Host]) -> list[Host]:
    """Hosts where a session is a login; on this machine it is a child of ours."""
    return [host for host in hosts if options.inventory.connection(host).kind == "ssh"]


def tune_status(options: Options, profile: str = "", *, allow_host_wide: bool = False) -> Answer:
    """What has become of the tuning: asked, in force, on disk, after the next boot; changes nothing.

    :param profile: what to compare with; empty: on each host the profile that its sysctl file was written for.
    """
    hosts = options.select()
    given = _profile(profile)
    with options.fleet(hosts) as fleet:
        found = fleet.run(lambda session: session.call("sysctl_read", {"file": tuning.SYSCTL_FILE}))
        tables: dict[str, drift.HostState] = {}
        groups: dict[str, list[Host]] = {}
        for host in hosts:
            outcome = found[host.name]
            if outcome.value is None:
                tables[host.name] = drift.HostState(host.name, error=f"{outcome.status}: {outcome.error}")
            elif outcome.value.get("failed"):
                tables[host.name] = drift.HostState(host.name, error=str(outcome.value.get("msg")))
            else:
                groups.setdefault(given.get("profile") or outcome.value["profile"] or "", []).append(host)
        codes = exit_codes(found)
        for wanted, members in groups.items():
            tables |= _compare(options, fleet, members, wanted, allow_host_wide)
    ordered = {host.name: tables[host.name] for host in hosts}
    options.say(drift.render(ordered).rstrip("\n"))
    codes += [EXIT_HOST_FAILED for table in ordered.values() if table.drifted or table.error]
    failed = [name for name, table in ordered.items() if table.drifted or table.error]
    return Answer({"hosts": {name: table.to_json() for name, table in ordered.items()}}, worst(codes), failed)


def _compare(
    options: Options, fleet: Fleet, hosts: Sequence[Host], profile: str, allow_host_wide: bool
) -> Mapping[str, drift.HostState]:
    """Runs the play in check mode, unseen, for what it would ask of these hosts, and compares."""
    extra = ({"profile": profile} if profile else {}) | _allowed(allow_host_wide=allow_host_wide)
    book = load(plays.PLAYBOOKS / "tune.yml", extra)
    recap = book.run(
        fleet,
        options.inventory,
        [host.name for host in hosts],
        check=True,
        reporter=ConsoleReporter(io.StringIO()),
        become_password=options.sudo_password,
    )
    readings = tuning.read_back(fleet, hosts, recap)
    logins = fleet.run(lambda session: session.hello["nofile"], _over_ssh(options, hosts))
    seen = {name: tuning.LoginLimit(*one.value) for name, one in logins.items() if one.value}
    return drift.compare(recap, readings, seen)
