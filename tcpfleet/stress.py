"""`inv stress`: fan stress clients out over hosts, watch them, and bring their results together.

In: a Request (how many clients, against what, with which client options) and the hosts. Out: the run's folder
with run.json (tcpfleet.merge) and an observation of every host before the load, at its peak and after it.

The life of a run: observe and start the clients (each plans its own ports and limits, and waits at a barrier;
one refusal stops all before a single connect) -> release `go` -> follow until every client has ramped ->
release `hold` and observe the peak while they hold -> follow to the end -> observe, fetch, merge. The clients
are daemons that keep their state in files, so a lost SSH connection costs nothing but a reconnect.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from payload import stress_threshold
from tcpfleet import __version__, ceilings, deploy, merge, report, runs, samples
from tcpfleet.errors import BadInput, HostFailed, Interrupted, NothingListens, Refused, Unreachable
from tcpfleet.fleet import Fleet, Outcome
from tcpfleet.progress import Progress
from tcpfleet.report_data import dig

if TYPE_CHECKING:
    from tcpfleet.inventory import Host, Inventory
    from tcpfleet.link import Session

COMMAND = "inv stress"
DEFAULT_PORT = 1883
POLL = 0.5  # seconds between looks at the clients' status files
FETCH = 1.0  # seconds between looks at what the samplers wrote
PATIENCE = 20.0  # seconds to win a lost host back before the others go on without it
FINAL = ("done", "failed")
REFUSED = "the plan was refused, nothing was started"

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """What is connected to.

    :ivar host: the inventory's host, or None for an address outside it.
    :ivar address: as the clients connect to it.
    """

    host: Host | None
    address: str
    port: int


@dataclass(frozen=True)
class Request:
    """One `inv stress`.

    :ivar targets: the clients take them in turn.
    :ivar client_options: options of stress_client.py, passed through under the same names.
    :ivar command: the command line that repeats it.
    :ivar thresholds: conditions under which the verdict is fail, as typed.
    """

    clients: int
    per_client: int
    targets: tuple[Target, ...]
    client_options: tuple[tuple[str, str], ...]
    command: str
    thresholds: tuple[str, ...] = ()

    def target_of(self, client: int) -> Target:
        """What client number `client` connects to."""
        return self.targets[client % len(self.targets)]

    def wanted(self, target: Target) -> int:
        """Connections that target gets."""
        return self.per_client * sum(self.target_of(client) == target for client in range(self.clients))

    def port_on(self, host: str) -> int:
        """The port to look at on a host: its own as a target, else that of the first."""
        return next((one.port for one in self.targets if one.host and one.host.name == host), self.targets[0].port)


@dataclass(frozen=True)
class Share:
    """One stress client: its number in the run, its host, and which of that host's clients it is."""

    index: int
    host: Host
    position: int
    of: int


def spread(clients: int, hosts: Sequence[Host]) -> list[Share]:
    """Deal N clients over the hosts, in turn, so that no host has two more than another."""
    used = [hosts[index % len(hosts)] for index in range(clients)]
    counts = {host.name: sum(1 for other in used if other.name == host.name) for host in hosts}
    seen: dict[str, int] = {}
    shares = []
    for index, host in enumerate(used):
        position = seen.get(host.name, 0)
        seen[host.name] = position + 1
        shares.append(Share(index, host, position, counts[host.name]))
    return shares


def resolve_targets(
    inventory: Inventory, text: str, clients: Sequence[Host], *, allow_outside: bool
) -> tuple[Target, ...]:
    """Turn --target, one or several with commas, into addresses; as `resolve_target`."""
    parts = [part.strip() for part in text.split(",")]
    found = [resolve_target(inventory, part, clients, allow_outside=allow_outside) for part in parts]
    for place, target in enumerate(found):
        if target in found[:place] or (len(parts) > 1 and not parts[place]):
            raise BadInput(f"--target {text!r} names a target twice, or none between two commas")
    return tuple(found)


def resolve_target(inventory: Inventory, text: str, clients: Sequence[Host], *, allow_outside: bool) -> Target:
    """Turn one target into an address.

    :param text: HOST[:PORT]; empty for the group `server`, or for this machine when all clients run on it.
    :raises BadInput: an unknown host without --allow-target, no server, or several.
    """
    if not text:
        connections = [inventory.connection(host) for host in clients]
        if all(how.kind == "local" for how in connections):
            return Target(clients[0], "127.0.0.1", DEFAULT_PORT)
        servers = inventory.select("server")
        if len(servers) != 1:
            names = ", ".join(host.name for host in servers)
            raise BadInput(f"group `server` has several hosts ({names}): say which with --target HOST[:PORT]")
        return Target(servers[0], _address(inventory, servers[0]), DEFAULT_PORT)
    name, port = _host_and_port(text)
    if name in inventory.hosts:
        host = inventory.hosts[name]
        return Target(host, _address(inventory, host), port)
    for host in inventory.hosts.values():
        if _address(inventory, host) == name:
            return Target(host, name, port)
    if not allow_outside:
        raise BadInput(
            f"--target {name} is not in the inventory: a load test of a host that is not yours is an attack. "
            "Add it to the inventory, or say --allow-target"
        )
    return Target(None, name, port)


def _host_and_port(text: str) -> tuple[str, int]:
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, port = text.split(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise BadInput(f"--target {text!r} is not HOST or HOST:PORT")
    return host, int(port)


def _address(inventory: Inventory, host: Host) -> str:
    how = inventory.connection(host)
    return "127.0.0.1" if how.kind == "local" and how.address == host.name else how.address


# ---------------------------------------------------------------- one run


class Run:
    """One run in progress; `execute` is its life from top to bottom."""

    def __init__(self, request: Request, shares: Sequence[Share], run_id: str) -> None:
        self.request, self.shares, self.run_id = request, shares, run_id
        self.client_hosts = list({share.host.name: share.host for share in shares}.values())
        hosts = {host.name: host for host in self.client_hosts}
        hosts |= {one.host.name: one.host for one in request.targets if one.host}
        self.all_hosts = list(hosts.values())
        self.folder: Path | None = None
        self._kept = contextlib.ExitStack()  # what this command holds while it leads the run
        self.started = ""
        self.begun: set[str] = set()  # hosts on which clients may have been started; final once cancelled
        self.cancelled = threading.Event()
        self._starting = threading.Lock()
        self.interrupted = False
        self.capacity: dict[Target, int | None] = {}
        self.plans: dict[int, Any] = {}
        self.server_plans: dict[str, dict[str, Any]] = {}
        self.refused: str | None = None
        self.lost: dict[str, str] = {}
        self.observed: dict[str, dict[str, Any]] = {}
        self.outcomes: dict[str, Outcome[None]] = {}
        self.samples: dict[str, samples.Series] = {}
        self.sampled = False  # whether samplers may have been started
        self.at_work: set[str] = set()  # client hosts that are not done with the stage that goes on

    def execute(self, fleet: Fleet, form: str = "") -> dict[str, Any]:
        """Run it all; returns what run.json holds. Nothing of it is left running, whatever happens.

        :param form: of the progress, see `tcpfleet.progress.FORMS`.
        """

        def load(progress: Progress) -> None:
            self._start_or_keep(fleet)
            self._begin(fleet)
            with progress:
                self._each(fleet, lambda session: self._ramp(session, progress), self.all_hosts)
                self._each(fleet, lambda session: self._hold(session, progress), self.all_hosts)

        return self._led(fleet, form, load)

    def detach(self, fleet: Fleet) -> None:
        """Start it and leave it to its hosts: `attach` follows it and fetches what came of it."""
        with self._kept:
            try:
                self._start_or_keep(fleet)
                self._begin(fleet)
                # Nobody is there to say that all have ramped: each holds from the end of its own ramp.
                self._each(fleet, self._release_all)
            except BaseException:
                self._stop(fleet)
                raise

    def attach(self, fleet: Fleet, form: str = "") -> dict[str, Any]:
        """Follow a run of an earlier command to its end, and finish it."""
        self.begun = {host.name for host in self.client_hosts}
        clients = set(self.begun)

        def follow(session: Session, progress: Progress) -> None:
            if session.host.name not in clients:
                self._observe(session, "peak")
                self._watch(session)
                return
            self._follow(session, progress, ("ramped", "hold", "closing", *FINAL))
            self._observe(session, "peak")
            self._follow(session, progress, FINAL)

        def load(progress: Progress) -> None:
            with progress:
                self._each(fleet, lambda session: follow(session, progress), self.all_hosts)

        return self._led(fleet, form, load)

    def _led(self, fleet: Fleet, form: str, load: Callable[[Progress], None]) -> dict[str, Any]:
        """Do `load`, end the clients when it is interrupted, and finish."""
        with self._kept:
            try:
                load(Progress(self.request.clients * self.request.per_client, form))
            except KeyboardInterrupt:
                self.interrupted = True
                print("\nstopping the clients ... (Ctrl-C again to stop waiting for them)", file=sys.stderr)
                self._stop_or_say(fleet)
                if self.folder is None:
                    raise
            except BaseException:
                self._stop(fleet)
                raise
            return self.finish(fleet)

    def check(self, fleet: Fleet) -> None:
        """Everything up to the first connect, then take it all back.

        :raises Refused: and the rest of what `execute` raises before it connects.
        """
        try:
            self._start(fleet)
        finally:
            self._stop(fleet)

    # -- the stages ------------------------------------------------------------------------------

    def _start_or_keep(self, fleet: Fleet) -> None:
        """`_start`; a plan that is refused is kept with what was seen of the hosts, to be shown and compared."""
        try:
            self._start(fleet)
        except Refused as refusal:
            self.refused = str(refusal)
            folder = self._make_folder(latest=False)
            print(f"the refused plan is kept as {folder.name}", file=sys.stderr)
            raise

    def _start(self, fleet: Fleet) -> None:
        """Observe every host and bring every client to its barrier; refuse before anything connects."""
        self._check_server(fleet)
        answers: list[dict[str, Any]] = []

        def start(session: Session) -> None:
            self._observe(session, "before")
            mine = [share for share in self.shares if share.host.name == session.host.name]
            if not mine:
                return
            with self._starting:
                if self.cancelled.is_set():
                    return
                self.begun.add(session.host.name)
            clients = [{"index": share.index, "arguments": self._arguments(share)} for share in mine]
            got = checked(session.call("stress", {"action": "start", "run_id": self.run_id, "clients": clients}))
            answers.extend(answer | {"host": session.host.name} for answer in self._own(session, got["clients"]))

        outcomes = fleet.run(start, self.all_hosts, at_once=True)
        self.plans = {int(answer["index"]): answer["plan"] for answer in answers}
        refused = _by_message([a for a in answers if a["code"] == Refused.exit_code])
        failed = _by_message([a for a in answers if a["code"] not in (0, Refused.exit_code)])
        said = {
            status: [f"{name}: {outcome.error}" for name, outcome in outcomes.items() if outcome.status == status]
            for status in ("unreachable", "failed")
        }
        unreachable, broken = said["unreachable"], said["failed"]
        refused += self._plan_server()
        if refused:
            raise Refused(_because(REFUSED, refused + unreachable))
        if unreachable:
            raise Unreachable(_because("nothing was started", unreachable))
        if broken or failed:
            kind = BadInput if any(a["code"] == BadInput.exit_code for a in answers) else HostFailed
            raise kind(_because("nothing was started", broken + failed))

    def _check_server(self, fleet: Fleet) -> None:
        """Refuse what a server says it cannot hold, before a client is started."""
        for target in self.request.targets:
            self._check_target(fleet, target)

    def _check_target(self, fleet: Fleet, target: Target) -> None:
        wanted = self.request.wanted(target)
        if target.host is None:
            return

        def look(session: Session) -> dict[str, Any]:
            return deploy.server_state(session, target.address, target.port)

        outcome = fleet.run(look, [target.host])[target.host.name]
        if outcome.value is None:
            kind = Unreachable if outcome.status == "unreachable" else HostFailed
            raise kind(f"nothing was started: {target.host.name}: {outcome.error}")
        state = outcome.value
        self.capacity[target] = state["capacity"]
        if not state["listening"]:
            raise NothingListens(
                f"{target.host.name}: nothing listens on port {target.port}: "
                "start the server with `inv deploy-server`"
            )
        capacity = state["capacity"]
        if capacity is not None and capacity < wanted:
            raise Refused(
                f"{target.host.name}: the server can hold {capacity:,} connections, {wanted:,} are asked: "
                f"`inv deploy-server --max-connections {wanted}`"
            )

    def _plan_server(self) -> list[str]:
        """What the servers' hosts cannot hold, a sentence each; keeps the facts for run.json."""
        before = {name: seen.get("observation") or {} for name, seen in self.observed.get("before", {}).items()}
        found: list[str] = []
        for target in self.request.targets:
            host = target.host
            if host is None or host.name not in before:
                continue
            facts = ceilings.facts(before[host.name], self.capacity.get(target), target.port)
            self.server_plans[f"{host.name}:{target.port}"] = facts
            machine = facts["boot_id"]
            clients_here = sum(
                machine is not None and dig(before.get(share.host.name), "identity", "boot_id") == machine
                for share in self.shares
            )
            wanted = self.request.wanted(target)
            sentences = ceilings.refusals(facts, wanted, wanted + clients_here * self.request.per_client)
            found += [f"{host.name}: {sentence}" for sentence in sentences]
        return found

    def _begin(self, fleet: Fleet) -> None:
        """Samplers first, so that they see all of it; then the run begins."""
        self.sampled = True
        self._each(fleet, self._start_samples, self.all_hosts)
        self._open_folder()

    def _open_folder(self) -> None:
        """From here on there is a run; plan.json is all that it takes to fetch its results later."""
        self.folder = self._make_folder(latest=True)
        self._kept.enter_context(
            runs.hold(self.folder, COMMAND)
        )  # from collect-report, until this command has fetched

    def _make_folder(self, *, latest: bool) -> Path:
        self.started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        folder = runs.create(self.run_id, latest=latest)
        runs.write_json(folder / "plan.json", self._to_plan())
        for phase, hosts in self.observed.items():
            for name, outcome in hosts.items():
                report.save_observation(folder, phase, name, outcome)
        names = {host.name for host in self.all_hosts}
        for name, table in report.load_tuning(runs.REPORTS).items():
            if name in names:
                report.save_tuning(folder, name, table)
        return folder

    def _ramp(self, session: Session, progress: Progress) -> None:
        if not self._has_clients(session):
            self._watch(session)
            return
        self._release(session, "go")
        self._follow(session, progress, ("ramped", *FINAL))

    def _hold(self, session: Session, progress: Progress) -> None:
        if self._has_clients(session):
            self._release(session, "hold")
        self._observe(session, "peak")
        if self._has_clients(session):
            self._follow(session, progress, FINAL)
        else:
            self._watch(session)

    def finish(self, fleet: Fleet) -> dict[str, Any]:
        """After the load: observe, fetch every client's result, write run.json, clean the hosts' run folders."""
        assert self.folder is not None
        fetched = self.folder / "clients"
        fetched.mkdir(exist_ok=True)
        problems: dict[int, str] = {}
        clients = {host.name for host in self.client_hosts}
        seen = self.observed.get("after", {})
        # When results are fetched later, hosts that were done with the first time stay as they were then.
        hosts = [host for host in self.all_hosts if seen.get(host.name, {}).get("status") != "ok"]

        def finish(session: Session) -> None:
            samples.finish(session, self.run_id, self._series(session), self.started)
            if session.host.name not in clients:
                self._observe(session, "after")
                return
            got = checked(session.call("stress", {"action": "result", "run_id": self.run_id}))
            for entry in self._own(session, got["clients"]):
                if entry["result"] is None:
                    problems[entry["index"]] = entry["message"]
                else:  # kept here before the host forgets it
                    runs.write_json(fetched / f"{entry['index']}.json", entry["result"])
            checked(session.call("stress", {"action": "remove", "run_id": self.run_id}))
            self._observe(session, "after")

        self.cancelled.clear()
        self.outcomes = self._each(fleet, finish, hosts)
        for outcome in self.outcomes.values():
            if outcome.status != "ok":
                self._keep("after", outcome.host.name, {"status": outcome.status, "error": str(outcome.error)})
        results = {int(path.stem): runs.read_json(path) for path in sorted(fetched.glob("[0-9]*.json"))}
        end = max((row["t"] for result in results.values() for row in result["timeline"]), default=None)
        for name, series in self.samples.items():
            if name in self.lost:
                series.lost(self.lost[name])
            series.save(self.folder, None if end is None else end + samples.AFTERWARDS)
        run = merge.run_record(
            run_id=self.run_id,
            started=self.started,
            targets=[_target_row(target) for target in self.request.targets],
            command=self.request.command,
            version=__version__,
            per_client=self.request.per_client,
            shares=[{"index": share.index, "host": share.host.name} for share in self.shares],
            results=results,
            problems=problems,
            lost=self.lost,
            observations=self.observed,
            interrupted=self.interrupted,
            thresholds=[stress_threshold.parse(text) for text in self.request.thresholds],
            plans=self.plans,
            server_plans=self.server_plans,
            samples=report.load_samples(self.folder),
        )
        runs.write_json(self.folder / "run.json", run)
        return run

    def _to_plan(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "started": self.started,
            "clients": self.request.clients,
            "per_client": self.request.per_client,
            "targets": [_target_row(target) for target in self.request.targets],
            "client_options": [list(pair) for pair in self.request.client_options],
            "command": self.request.command,
            "thresholds": list(self.request.thresholds),
            "refused": self.refused,
            "hosts": _plan_hosts(self.request.targets, self.shares),
            "servers": self.server_plans,
            "plans": {str(index): plan for index, plan in sorted(self.plans.items())},
            "shares": [[share.index, share.host.name, share.position, share.of] for share in self.shares],
        }

    @classmethod
    def from_folder(cls, folder: Path, inventory: Inventory) -> Run:
        """A run that an earlier command started, so that its results can be fetched now.

        :raises BadInput: plan.json is missing or damaged, or names hosts that the inventory has not.
        """
        plan = runs.read_json(folder / "plan.json")
        try:
            hosts = inventory.hosts
            targets = tuple(
                Target(hosts[where["host"]] if where["host"] else None, where["address"], where["port"])
                for where in plan["targets"]
            )
            request = Request(
                plan["clients"],
                plan["per_client"],
                targets,
                tuple((name, value) for name, value in plan["client_options"]),
                plan["command"],
                tuple(plan["thresholds"]),
            )
            shares = [Share(index, hosts[name], position, of) for index, name, position, of in plan["shares"]]
            run = cls(request, shares, plan["run_id"])
            run.started = plan["started"]
            run.server_plans = plan["servers"]
            run.plans = {int(index): one for index, one in plan["plans"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{folder / 'plan.json'} does not fit this inventory: {error}") from None
        run.folder = folder
        run.observed = report.load_observations(folder)
        if (folder / "run.json").exists():
            before = runs.read_run(folder)
            try:
                run.interrupted = bool(before["interrupted"])
                run.lost = {host["name"]: host["lost"] for host in before["hosts"] if host.get("lost")}
            except (AttributeError, KeyError, TypeError) as error:
                raise BadInput(f"{folder / 'run.json'} is damaged: {error!r}") from None
        return run

    def still_running(self, fleet: Fleet) -> list[str]:
        """Names of hosts on which clients of this run are still at work."""

        def look(session: Session) -> bool:
            got = checked(session.call("stress", {"action": "poll", "run_id": self.run_id}))
            return any(client["state"] not in FINAL for client in got["clients"])

        return [name for name, outcome in fleet.run(look, self.client_hosts).items() if outcome.value]

    def _stop_or_say(self, fleet: Fleet) -> None:
        """`_stop`, and where the user will not wait for it, what is left and how to end it."""
        try:
            self._stop(fleet)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; clients of run {self.run_id} may still run on {', '.join(sorted(self.begun))}: "
                "inv stop-stress ends them, inv collect-report fetches what they reached"
            ) from None

    def _stop(self, fleet: Fleet) -> None:
        """End every client of this run on every host, gracefully first; safe to call at any point."""
        with self._starting:
            self.cancelled.set()
        self.at_work.clear()

        def stop(session: Session) -> dict[str, Any]:
            stopped = session.call("stress", {"action": "stop", "run_id": self.run_id, "timeout": 15})
            if self.folder is None:  # nothing was started that anyone would want to look at
                session.call("stress", {"action": "remove", "run_id": self.run_id})
            return stopped

        begun = [host for host in self.client_hosts if host.name in self.begun]
        for outcome in fleet.run(stop, begun, reconnect=True, at_once=True).values():
            if outcome.status == "unreachable":
                print(
                    f"warning: {outcome.host.name}: {outcome.error}; clients there end by themselves, at the "
                    "latest after their plan",
                    file=sys.stderr,
                )
        if self.folder is None and self.sampled:

            def discard(session: Session) -> None:
                samples.discard(session, self.run_id)

            fleet.run(discard, self.all_hosts, reconnect=True, at_once=True)

    # -- parts of stages -------------------------------------------------------------------------

    def _each(
        self, fleet: Fleet, function: Callable[[Session], T], hosts: Sequence[Host] | None = None
    ) -> dict[str, Outcome[T]]:
        """Run a stage on the client hosts, winning hosts that it loses back for PATIENCE seconds."""
        lost_before = set(self.lost)
        wanted = self.client_hosts if hosts is None else hosts
        clients = {host.name for host in self.client_hosts}

        def done(outcome: Outcome[T]) -> None:
            self.at_work.discard(outcome.host.name)

        def run(some: Sequence[Host]) -> dict[str, Outcome[T]]:
            self.at_work = clients & {host.name for host in some}
            return fleet.run(function, some, on_outcome=done, reconnect=True, at_once=True)

        outcomes = run(wanted)
        deadline = time.monotonic() + PATIENCE
        while True:
            gone = [outcome.host for outcome in outcomes.values() if outcome.status == "unreachable"]
            gone = [host for host in gone if host.name not in lost_before]  # those had their time
            if not gone or time.monotonic() > deadline:
                break
            time.sleep(1.0)
            outcomes.update(run(gone))
        for name, outcome in outcomes.items():
            if outcome.status == "ok":
                self.lost.pop(name, None)
            else:
                self.lost[name] = str(outcome.error)
        return outcomes

    def _arguments(self, share: Share) -> list[str]:
        target = self.request.target_of(share.index)
        arguments = [target.address, str(target.port)]
        # Towards another target the same source ports can be used once more.
        several = len(self.request.targets)
        mine = [
            other.index
            for other in self.shares
            if other.host.name == share.host.name and (other.index - share.index) % several == 0
        ]
        arguments += ["--connections", str(self.request.per_client)]
        arguments += ["--slice", f"{mine.index(share.index)}/{len(mine)}", "--clients-here", str(share.of)]
        arguments += ["--first-conn", str(share.index * self.request.per_client)]
        for name, value in self.request.client_options:
            # One word: a value may begin with a dash. A switch has no value.
            arguments.append(f"{name}={value}" if value else name)
        return arguments

    def _own(self, session: Session, clients: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """What a host says of clients, unless they are not its own.

        :raises HostFailed: it speaks of another host's, whose results these would replace.
        """
        mine = {share.index for share in self.shares if share.host.name == session.host.name}
        for client in clients:
            if client["index"] not in mine:
                raise HostFailed(f"it answers for client {client['index']}, which does not run there")
        return clients

    def _release(self, session: Session, barrier: str) -> None:
        if not self.cancelled.is_set():
            checked(session.call("stress", {"action": "release", "run_id": self.run_id, "barrier": barrier}))

    def _release_all(self, session: Session) -> None:
        self._release(session, "hold")
        self._release(session, "go")

    def _follow(self, session: Session, progress: Progress, until: Sequence[str]) -> None:
        while not self.cancelled.is_set():
            got = checked(session.call("stress", {"action": "poll", "run_id": self.run_id, "wait": POLL}))
            progress.update(session.host.name, got["clients"])
            if all(client["state"] in until for client in got["clients"]):
                return
            self._fetch_samples(session)

    def _watch(self, session: Session) -> None:
        """Fetch a host's samples for as long as clients on other hosts are at work."""
        at_work = self.at_work
        while at_work and not self.cancelled.wait(0.1):
            self._fetch_samples(session)

    def _has_clients(self, session: Session) -> bool:
        return any(host.name == session.host.name for host in self.client_hosts)

    def _series(self, session: Session) -> samples.Series:
        name = session.host.name
        return self.samples.setdefault(name, samples.Series(name))

    def _fetch_samples(self, session: Session) -> None:
        series = self._series(session)
        if time.monotonic() - series.asked > FETCH:
            samples.read(session, self.run_id, series, self.started)

    def _start_samples(self, session: Session) -> None:
        name = session.host.name
        is_target = any(target.host and target.host.name == name for target in self.request.targets)
        series = self._series(session)
        samples.start(session, self.run_id, series, self.request.port_on(name), server=is_target)

    def _observe(self, session: Session, phase: str) -> None:
        if self.observed.get(phase, {}).get(session.host.name, {}).get("status") == "ok":
            return  # a stage that is repeated after a lost connection comes too late to look again
        self._keep(phase, session.host.name, deploy.observe(session, self.request.port_on(session.host.name)))

    def _keep(self, phase: str, host: str, outcome: dict[str, Any]) -> None:
        self.observed.setdefault(phase, {})[host] = outcome
        if self.folder is not None:
            report.save_observation(self.folder, phase, host, outcome)


def _plan_hosts(targets: Sequence[Target], shares: Sequence[Share]) -> list[dict[str, Any]]:
    """The hosts of a plan with their roles, as run.json has them."""
    roles: dict[str, list[str]] = {}
    for name, role in [(one.host.name, "server") for one in targets if one.host] + [
        (share.host.name, "client") for share in shares
    ]:
        mine = roles.setdefault(name, [])
        if role not in mine:
            mine.append(role)
    return [{"name": name, "roles": mine} for name, mine in roles.items()]


def _target_row(target: Target) -> dict[str, Any]:
    return {"host": target.host.name if target.host else None, "address": target.address, "port": target.port}


def checked(result: dict[str, Any]) -> dict[str, Any]:
    """An operation's result, unless it failed.

    :raises HostFailed: with the operation's own words.
    """
    if result.get("failed"):
        raise HostFailed(str(result.get("msg")))
    return result


def _by_message(answers: Sequence[dict[str, Any]]) -> list[str]:
    """What clients said, each sentence once, with the hosts that said it."""
    said: dict[str, list[str]] = {}
    for answer in sorted(answers, key=lambda answer: int(answer["index"])):
        hosts = said.setdefault(_plain(answer["message"]), [])
        if answer["host"] not in hosts:
            hosts.append(answer["host"])
    return [f"{', '.join(hosts)}: {message}" for message, hosts in said.items()]


def _because(what: str, reasons: Sequence[str]) -> str:
    """One sentence for one reason, a line for each of several."""
    return f"{what}: {reasons[0]}" if len(reasons) == 1 else "\n  ".join([f"{what}:", *reasons])


def _plain(message: str) -> str:
    """A client's own last sentence without its prefix."""
    line = message.strip().splitlines()[-1] if message.strip() else "ended without a word"
    return line.removeprefix("stress_client.py: ").removeprefix("refused: ").removeprefix("error: ")
