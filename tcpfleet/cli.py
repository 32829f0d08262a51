"""What every task shares: common options, output, signals and exit codes; `tasks.py` stays one screen per task.

A task is a function ``(options, ...own options) -> Answer | None`` under ``@task(...)``. It prints what a person
wants to read through `options.say`, and returns what a machine wants as `Answer.data`. This module turns that
into an Invoke task: common flags, `--json` (exactly one object on stdout, everything else on stderr), clean-up
on SIGINT, SIGTERM and SIGHUP, one sentence per known error, and the exit code.
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from invoke.context import Context
from invoke.parser.argument import Argument
from invoke.tasks import Task
from invoke.tasks import task as invoke_task

from tcpfleet import secret, signals
from tcpfleet.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, BadInput, TcpfleetError

if TYPE_CHECKING:
    from tcpfleet.fleet import Fleet, Outcome
    from tcpfleet.inventory import Host, Inventory

ROOT = Path(__file__).resolve().parent.parent

COMMON: dict[str, tuple[Any, str]] = {
    "hosts": ("", "Ansible pattern: all, group, host, a:b, a:&b, a:!b, globs; @FILE: one of these a line"),
    "inventory": ("", "inventory file or folder (default: inventory/ of this checkout)"),
    "forks": ("20", "hosts at work at the same time"),
    "check": (False, "change nothing, say what would be changed"),
    "diff": (False, "show the difference in every file and value"),
    "json": (False, "one JSON object on stdout, everything else on stderr"),
    "ask_pass": (False, "ask for the user's password once: for logins, and for sudo unless it has its own"),
    "password_command": ("", "as --ask-pass, from the first line that this program prints (no shell)"),
    "ask_sudo_pass": (False, "ask for the sudo password once, before anything starts"),
}
FLEET = tuple(COMMON)
LOCAL = ("inventory", "json")


@dataclass
class Answer:
    """What a task hands back.

    :ivar data: the object that `--json` prints.
    :ivar code: the exit code; see `tcpfleet.errors`.
    :ivar failed: hosts on which it is worth to run the same task again; their names are kept for --hosts @FILE.
    """

    data: dict[str, Any] = field(default_factory=dict)
    code: int = 0
    failed: list[str] = field(default_factory=list)


class Options:
    """The common options of one command, and what follows from them."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.hosts: str = str(values.get("hosts") or "")
        self.inventory_path = Path(values["inventory"]) if values.get("inventory") else ROOT / "inventory"
        self.forks = number("--forks", values.get("forks", "20"), 1, 1000)
        self.check = bool(values.get("check"))
        self.diff = bool(values.get("diff"))
        self.json = bool(values.get("json"))
        # Its group_vars/ and host_vars/ count too, beside the inventory's; set before `inventory` is used.
        self.playbook_dir: Path | None = None
        command = str(values.get("password_command") or "")
        if command and values.get("ask_pass"):
            raise BadInput("--ask-pass and --password-command are two ways to the same password: take one")
        self.password: secret.Secret | None = None
        if command:
            self.password = secret.from_command("--password-command", command)
        elif values.get("ask_pass"):
            self.password = _ask("--ask-pass", "password: ")
        # Who logs in with a password has told it to the host already.
        self.sudo_password = self.password
        if values.get("ask_sudo_pass"):
            self.sudo_password = _ask("--ask-sudo-pass", "sudo password: ")

    @property
    def out(self) -> TextIO:
        """Where text for people goes."""
        return sys.stderr if self.json else sys.stdout

    def say(self, line: str = "") -> None:
        print(secret.printable(line), file=self.out, flush=True)

    @functools.cached_property
    def inventory(self) -> Inventory:
        from tcpfleet.inventory import Inventory

        inventory = Inventory.load(self.inventory_path, self.playbook_dir)
        for warning in inventory.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        return inventory

    def select(self, default: str | None = None) -> list[Host]:
        """The hosts of `--hosts`, or of `default`.

        :raises BadInput: there is no default and no `--hosts`, or the pattern matches nothing.
        """
        pattern = self.hosts or default
        if not pattern:
            raise BadInput(
                "this task changes hosts and `all` holds this machine too: name them with --hosts PATTERN"
            )
        hosts = self.inventory.select(pattern, with_files=True)
        if not hosts:
            raise BadInput(f"the pattern {pattern!r} matches no host")
        return hosts

    def sum_up(self, outcomes: Mapping[str, Outcome[Any]]) -> list[str]:
        """Says why hosts failed once more, last, with counts, as the recap of a playbook does.

        :returns: their names.
        """
        failed = [outcome for outcome in outcomes.values() if outcome.status != "ok"]
        if failed and len(outcomes) > 1:
            counts = Counter(outcome.status for outcome in outcomes.values())
            self.say("\n" + ", ".join(f"{counts[status]} {status}" for status in ("ok", "failed", "unreachable")))
            for outcome in failed:
                self.say(f"{outcome.status.upper()} {outcome.host.name}: {outcome.error}")
        return [outcome.host.name for outcome in failed]

    def fleet(self, hosts: Sequence[Host]) -> Fleet:
        from tcpfleet.fleet import Fleet

        return Fleet(
            hosts,
            self.inventory.connection,
            forks=self.forks,
            become_password=self.sudo_password,
            password=self.password,
        )


def strict_json(data: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and Infinity, which Python writes and nobody else reads, become null.

    >>> strict_json({"a": float("nan"), "b": "NaN"})
    '{"a": null, "b": "NaN"}'
    """
    try:
        return json.dumps(data, default=str, indent=indent, allow_nan=False)
    except ValueError:
        plain = json.loads(json.dumps(data, default=str), parse_constant=lambda _: None)
        return json.dumps(plain, indent=indent)


def json_pieces(data: Any, depth: int = 4) -> Iterator[str]:
    """What `strict_json` makes of `data`, without Secrets, part by part: an answer of 500 hosts has 17 MB as text.

    :param depth: so many levels of objects and lists are taken apart; four lead to one host in one task's results.

    >>> "".join(json_pieces({"a": [1, {"b": float("nan")}], "c": {}}))
    '{"a": [1, {"b": null}], "c": {}}'
    """
    if not (depth and data and isinstance(data, (dict, list, tuple))):
        yield strict_json(secret.redacted(data))
        return
    as_object = isinstance(data, dict)
    before = "{" if as_object else "["
    for one in data:
        yield f"{before}{strict_json({secret.redacted(one): 0})[1:-2]}" if as_object else before
        yield from json_pieces(data[one] if as_object else one, depth - 1)
        before = ", "
    yield "}" if as_object else "]"


def _ask(option: str, question: str) -> secret.Secret:
    try:
        return secret.ask(question)
    except EOFError:
        raise BadInput(f"{option}: there is no terminal to ask on, and no line on stdin") from None


def number(option: str, value: Any, least: float, most: float, *, whole: bool = True) -> Any:
    """A number as people write it: 50000, 50k, 1.5M, 50_000.

    :raises BadInput: naming the option, when it is not one or not within [least, most].

    >>> number("--per-client", "50k", 1, 10**6)
    50000
    """
    text = str(value).strip().replace("_", "")
    factor = {"k": 10**3, "K": 10**3, "m": 10**6, "M": 10**6}.get(text[-1:], 1)
    try:
        amount = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        raise BadInput(f"{option}: {value!r} is not a number (write 50000, 50k or 1M)") from None
    if not least <= amount <= most:  # nan is outside too
        raise BadInput(f"{option}: {value} is outside {least:,.12g} to {most:,.12g}")
    if whole and amount != int(amount):
        raise BadInput(f"{option}: {value!r} is not a whole number")
    return int(amount) if whole else amount


class _Task(Task[Any]):
    """An Invoke task some of whose options have a short flag.

    :ivar shorts: option -> its letter.
    """

    shorts: Mapping[str, str] = {}

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """As Invoke's, with the short flags."""
        arguments: list[Argument] = super().get_arguments(ignore_unknown_help)
        for argument in arguments:
            short = self.shorts.get(argument.attr_name or argument.name or "")
            if short:
                argument.names = (*argument.names, short)
        return arguments


def task(
    *,
    common: Sequence[str] = FLEET,
    help: dict[str, str] | None = None,
    positional: Sequence[str] = (),
    iterable: Sequence[str] = (),
    shorts: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Answer | None]], Task[Any]]:
    """Make an Invoke task of a function ``(options, **own)``.

    :param common: which of COMMON it takes.
    :param help: option name -> text, for its own options.
    :param positional: own options given without a flag.
    :param iterable: own options that may be given several times.
    :param shorts: own option -> its one-letter flag, for the few that have one.
    """

    def wrap(function: Callable[..., Answer | None]) -> Task[Any]:
        @functools.wraps(function)
        def body(context: Context, **values: Any) -> None:
            shared = {name: values.pop(name) for name in common}
            code = _run(function, context, shared, values)
            if code:
                raise SystemExit(code)

        own = list(inspect.signature(function).parameters.values())[1:]
        parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        parameters += own
        parameters += [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=COMMON[name][0])
            for name in common
        ]
        body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        texts = {name: COMMON[name][1] for name in common} | (help or {})
        # Short flags would give -h to --hosts, and people expect help there.
        made: _Task = invoke_task(  # type: ignore[assignment]
            body,
            positional=list(positional),
            iterable=list(iterable),
            help=texts,
            auto_shortflags=False,
            klass=_Task,
        )
        made.shorts = shorts or {}
        return made

    return wrap


def _keep_failed(task: str, answer: Answer) -> None:
    """Writes the failed hosts to a file for `--hosts @FILE`, as Ansible's retry files; none failed: it goes."""
    from tcpfleet.runs import REPORTS

    file = REPORTS / f"{task}.retry"
    try:
        if not answer.failed:
            file.unlink(missing_ok=True)
            return
        REPORTS.mkdir(exist_ok=True)
        file.write_text("".join(f"{name}\n" for name in answer.failed), encoding="utf-8")
    except OSError as error:
        print(f"warning: cannot keep the names of failed hosts in {file}: {error.strerror}", file=sys.stderr)
        return
    answer.data = {**answer.data, "failed_hosts": answer.failed, "retry_file": str(file)}
    print(f"to run it again where it failed: inv {task} ... --hosts @{os.path.relpath(file)}", file=sys.stderr)


def _run(
    function: Callable[..., Answer | None], context: Context, shared: dict[str, Any], own: dict[str, Any]
) -> int:
    as_json = bool(shared.get("json"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no such character
    with signals.interruptible(), secret.kept_from_output():
        try:
            if context.config.run.dry:
                raise BadInput("inv --dry would still run tasks: use the task's own --check")
            answer = function(Options(shared), **own) or Answer()
            _keep_failed(function.__name__.replace("_", "-"), answer)
        except TcpfleetError as error:
            print(f"error: {secret.printable(str(error))}", file=sys.stderr)
            answer = Answer({"error": str(error)}, error.exit_code)
        except KeyboardInterrupt:
            print("interrupted; cleaned up", file=sys.stderr)
            answer = Answer({"error": "interrupted"}, EXIT_INTERRUPTED)
        except BrokenPipeError:
            # `inv ... | head`: the reader has gone; do not let the interpreter complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BAD_INPUT
        except OSError as error:
            # A full disk, a folder of ours that cannot be written: the machine's fault, named as it names it.
            print(f"error: {error}", file=sys.stderr)
            answer = Answer({"error": str(error)}, EXIT_BAD_INPUT)
    with signals.interruptible():
        if as_json:
            try:
                sys.stdout.writelines(json_pieces(answer.data | {"exit_code": answer.code}))
                print(flush=True)
            except OSError as error:
                print(f"error: cannot write the answer: {error.strerror}", file=sys.stderr)
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return answer.code or EXIT_BAD_INPUT
    return answer.code
