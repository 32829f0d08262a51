"""Fan out: run one function on many hosts at once, bounded, and let no dead host stop the others.

In: hosts and a function of a Session. Out: an Outcome per host, as they come. Threads are daemons that put
their outcomes on a queue the caller's thread reads, so Ctrl-C is answered at once (a ThreadPoolExecutor would
keep it waiting for every host).
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from tcpfleet import lab
from tcpfleet.errors import HostFailed, TcpfleetError, Unreachable
from tcpfleet.keys import Keyring
from tcpfleet.link import BEAT, CONNECT_TIMEOUT, Become, Session, open_session
from tcpfleet.secret import Secret
from tcpfleet.secret import ask as ask_user

if TYPE_CHECKING:
    from tcpfleet.inventory import Connection, Host

T = TypeVar("T")
DEFAULT_FORKS = 20


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of one function on one host.

    :ivar value: what the function returned, when status is ok.
    :ivar error: one sentence, when it is not; without the host's name.
    """

    host: Host
    status: Literal["ok", "failed", "unreachable"]
    value: T | None = None
    error: str | None = None


@dataclass(frozen=True)
class _News:
    content: Any


@dataclass(frozen=True)
class _Question:
    """Asked by a thread, answered by the caller's, for there Ctrl-C ends a prompt and gives the terminal back."""

    text: str
    answer: queue.Queue[Secret | EOFError]


class Fleet:
    """Sessions on some hosts, opened when first needed and kept until the end of the command, or their last use.

    Use as a context manager; leaving it ends every agent.

    :param connection: tells how to reach a host: `Inventory.connection`.
    :param forks: at most so many hosts at work at a time.
    :param connect_timeout: seconds.
    :param become_password: for sudo, where the inventory gives none.
    :param password: for logins, where the inventory gives none.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        connection: Callable[[Host], Connection],
        *,
        forks: int = DEFAULT_FORKS,
        connect_timeout: float = CONNECT_TIMEOUT,
        become_password: Secret | None = None,
        password: Secret | None = None,
    ) -> None:
        self.hosts = list(hosts)
        self._connection = connection
        self._forks = forks
        self._connect_timeout = connect_timeout
        self._become_password, self._password = become_password, password
        self._keys = Keyring()
        self._sessions: dict[str, Session] = {}
        self._gone: dict[str, str] = {}
        self._closers: set[threading.Thread] = set()
        self._closed = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        function: Callable[..., T],
        hosts: Sequence[Host] | None = None,
        *,
        on_outcome: Callable[[Outcome[T]], None] | None = None,
        on_news: Callable[[Any], None] | None = None,
        reconnect: bool = False,
        at_once: bool = False,
        last: bool = False,
    ) -> dict[str, Outcome[T]]:
        """Run `function(session)` on each host; every host gets an outcome.

        :param hosts: a part of the fleet; all of it by default.
        :param on_outcome: called in this thread with each outcome as it comes.
        :param on_news: called in this thread with what functions tell on their way: they are then called as
            `function(session, tell)`. All news of a host come before its outcome.
        :param reconnect: try hosts again that were lost earlier in this command; else they are unreachable
            at once.
        :param at_once: all hosts at a time whatever `forks` says: for functions that wait for one another's
            hosts, as the stages of a load do.
        :param last: the command wants no more of a host after this: its session ends, and with it some 70 KB here,
            a thread and a descriptor, when the function has returned and not at the command's end.
        :returns: host name -> outcome, in the order of `hosts`.
        """
        wanted = list(self.hosts if hosts is None else hosts)
        outcomes: dict[str, Outcome[T]] = {}
        results: queue.Queue[Outcome[T] | BaseException | _News | _Question] = queue.Queue()
        work = function
        if on_news is not None:

            def work(session: Session) -> T:
                return function(session, lambda news: results.put(_News(news)))

        def ask(text: str) -> Secret:
            question = _Question(text, queue.Queue())
            results.put(question)
            answer = question.answer.get()
            if isinstance(answer, EOFError):
                raise answer
            return answer

        waiting = list(reversed(wanted))
        most = len(wanted) if at_once else self._forks
        running = 0
        while waiting or running:
            while waiting and running < most:
                host = waiting.pop()
                threading.Thread(
                    target=lambda host=host: results.put(self._one(work, host, reconnect, ask)), daemon=True
                ).start()
                running += 1
            outcome = results.get()
            if isinstance(outcome, _News):
                assert on_news is not None
                on_news(outcome.content)
                continue
            if isinstance(outcome, _Question):
                try:
                    outcome.answer.put(ask_user(outcome.text))
                except EOFError as error:
                    outcome.answer.put(error)
                continue
            running -= 1
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes[outcome.host.name] = outcome
            if last and outcome.host.name in self._sessions:
                self._end(self._sessions.pop(outcome.host.name))
            if on_outcome is not None:
                on_outcome(outcome)
        return {host.name: outcomes[host.name] for host in wanted}

    def _one(
        self, function: Callable[[Session], T], host: Host, reconnect: bool, ask: Callable[[str], Secret]
    ) -> Outcome[T] | BaseException:
        """Everything that can happen to one host; a bug or bad input travels to the caller's thread."""
        try:
            return Outcome(host, "ok", function(self._session(host, reconnect, ask)))
        except Unreachable as error:
            self._gone[host.name] = str(error)
            return Outcome(host, "unreachable", error=str(error))
        except HostFailed as error:
            return Outcome(host, "failed", error=str(error))
        except TcpfleetError as error:
            return error
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if self._closed.is_set():  # the session was closed beneath it: the command is being interrupted
                return error
            # A host that answers nonsense does not end the command for the others; a bug of ours is seen as well.
            traceback.print_exc()
            return Outcome(host, "failed", error=f"its answer is of no use: {type(error).__name__}: {error}")
        except BaseException as error:
            return error

    def _session(self, host: Host, reconnect: bool, ask: Callable[[str], Secret]) -> Session:
        if host.name in self._gone:
            if not reconnect:
                raise Unreachable(self._gone[host.name])
            del self._gone[host.name]
            lost = self._sessions.pop(host.name, None)
            if lost is not None:
                lost.close()
        session = self._sessions.get(host.name)
        if session is None:
            how = self._connection(host)
            if lab.GROUP in host.groups and lab.is_down_for(how.address):
                # Without the bridge the packets would leave this machine for whoever has that address out there.
                raise Unreachable("the lab is not up on this machine: inv lab-up")
            if how.password is None:
                how = replace(how, password=self._password)
            try:
                session = open_session(host, how, connect_timeout=self._connect_timeout, keys=self._keys, ask=ask)
            except Unreachable as error:
                if lab.GROUP in host.groups and lab.is_off(host.name, how.address):
                    raise Unreachable(f"{error}; this lab host is powered off: inv lab-up") from None
                raise
            if how.become:
                password = how.become_password or self._become_password
                session.become = Become(how.become_user, how.become_method, password, how.become_exe or "sudo")
            self._sessions[host.name] = session
        return session

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            for session in list(self._sessions.values()):
                session.beat()

    def _end(self, session: Session) -> None:
        """End an agent while others go on: a slow host does not hold them up."""

        def work() -> None:
            session.close()
            self._closers.discard(closer)

        closer = threading.Thread(target=work, daemon=True)
        self._closers.add(closer)
        closer.start()

    def close(self) -> None:
        """End all agents, side by side."""
        self._closed.set()
        for session in self._sessions.values():
            self._end(session)
        for closer in list(self._closers):
            closer.join(20)
        self._sessions.clear()


def exit_codes(outcomes: Mapping[str, Outcome[Any]]) -> list[int]:
    """The exit codes that these outcomes call for; see `tcpfleet.errors.worst`."""
    codes = {"failed": HostFailed.exit_code, "unreachable": Unreachable.exit_code}
    return [codes[outcome.status] for outcome in outcomes.values() if outcome.status != "ok"]
