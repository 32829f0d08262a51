"""Everything that reads what others wrote, fed with what nobody meant: an error with its place, never a traceback.

A row of TARGETS is a reader, the samples that its input is bent from, the errors that it may give, and its share
of the million cases that `inv test --full` runs; an ordinary run does a few hundred of each. In the full run the
memory of the process must not grow. What was found is a row of FOUND.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import gc
import json
import random
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import histogram
import journal
import observe_netlink
import observe_parse
import pytest
import stress_expect
import stress_facts
import stress_message
import stress_threshold
import wire
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from operations import OperationError, _host, _sysctl_order, systemd

from tcpfleet import (
    answers,
    deploy,
    hostkeys,
    link,
    merge,
    progress,
    report,
    report_data,
    report_render,
    rollback,
    runs,
    samples,
    ssh_config,
    stress_tasks,
    tune,
    tune_status,
)
from tcpfleet.cli import Options, number
from tcpfleet.errors import BadInput, HostFailed, LocatedError, Unreachable
from tcpfleet.fleet import Outcome
from tcpfleet.inventory import Host, Inventory, graph, to_json
from tcpfleet.playbook import PlaybookErrors, load
from tcpfleet.playbook.parse import read_vars
from tcpfleet.stress import Request, Run, Share
from tests import report_samples
from tests.running import ROOT

HERE = Path(__file__).parent
FEW = 250  # cases of each in an ordinary run
BATCH = 5000  # hypothesis remembers what it tried; a new engine forgets it
GROWTH = 64 << 20  # bytes of memory that a full run may add: allocators keep some
NUMBERS = ("0", "-1", "1", "4294967296", "99999999999999999999", "1e999", "nan", "0x10", "٣", "1.5", "")
VALUES = (None, True, False, 0, -1, 1 << 70, 1.5, float("nan"), float("inf"), "", "x", "1", "\ud800", [], [1], {})
VALUES += ({"a": 1}, [[]], [None], [{}], {"": None}, {"unavailable": "why"}, "<script>", "x" * 2000)
PIECES = (
    *NUMBERS,
    "\0",
    "\n",
    "\r\n",
    "\t",
    " ",
    ":",
    ",",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "{{",
    "}}",
    "{%",
    "%}",
    "'",
    '"',
)
PIECES += (
    "\\",
    "#",
    "!",
    "&a",
    "*a",
    "<<: ",
    "?",
    "|",
    ">",
    "@",
    "%",
    "é",
    "\ud800",
    "\u2028",
    "\ufeff",
    "~",
    "null",
)
PIECES += ("true", "all", "hosts", "vars", "x" * 300, "(", ")", "*", "=", "/", "..")


# ---------------------------------------------------------------- bending samples

# One draw of bytes tells all that is done to a sample: ten times as fast as a draw for each edit.
codes = st.binary(max_size=26)


def bend(samples: Sequence[str], code: bytes) -> str:
    """A sample with up to five pieces cut out, put in, doubled or replaced; sometimes a text of any kind."""
    if code[:1] == b"\xff":
        return code[1:].decode("latin-1")
    text = samples[code[0] % len(samples)] if code else samples[0]
    for start in range(1, len(code) - 4, 5):
        kind, high, low, length, which = code[start : start + 5]
        at = (high << 8 | low) * (len(text) + 1) >> 16
        length = length if length < 64 else 1
        piece = PIECES[which] if which < len(PIECES) else chr(which)
        if kind % 4 == 0:
            text = text[:at] + text[at + length :]
        elif kind % 4 == 1:
            text = text[:at] + piece + text[at:]
        elif kind % 4 == 2:
            text = text[:at] + piece + text[at + length :]
        else:
            text = text[: at + length] + text[at:]
    return text


def bent(*samples: str) -> st.SearchStrategy[str]:
    return codes.map(partial(bend, samples))


def bent_bytes(*samples: bytes) -> st.SearchStrategy[bytes]:
    texts = [sample.decode("latin-1") for sample in samples]
    return codes.map(lambda code: bend(texts, code).encode("latin-1", "replace"))


def swap(samples: Sequence[Any], code: bytes) -> Any:
    """A JSON value in which up to four nodes, found by walking down by numbers, are other values or gone."""
    top = {"": copy.deepcopy(samples[code[0] % len(samples)] if code else samples[0])}
    for start in range(1, len(code) - 5, 6):
        *path, which = code[start : start + 6]
        node: Any = top
        key: Any = ""
        for step in path:
            inner = node[key]
            if step % 8 == 0 or not isinstance(inner, (dict, list)) or not inner:
                break
            node, key = inner, (list(inner)[step % len(inner)] if isinstance(inner, dict) else step % len(inner))
        if which % (len(VALUES) + 1) < len(VALUES):
            node[key] = copy.deepcopy(VALUES[which % (len(VALUES) + 1)])
        elif node is not top:
            del node[key]
    return top[""]


def swapped(*samples: Any) -> st.SearchStrategy[Any]:
    return codes.map(partial(swap, samples))


# ---------------------------------------------------------------- readers


class Target(NamedTuple):
    """:ivar share: cases of a full run, in thousands."""

    name: str
    cases: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    raises: tuple[type[BaseException], ...]
    share: int


class Scratch:
    """A folder in memory for readers of files; made anew for each test."""

    folder: Path


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[Any], object]:
    def put(content: Any) -> object:
        path = Scratch.folder / name
        path.parent.mkdir(exist_ok=True)
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return read(path)

    return put


def located(read: Callable[[Any], object]) -> Callable[[Any], object]:
    """Every mistake of a file must tell its place."""

    def check(case: Any) -> object:
        try:
            return read(case)
        except PlaybookErrors as errors:
            assert errors.errors and all(one.file for one in errors.errors)
            raise
        except LocatedError as error:
            assert error.file and "\n" not in str(error)[:200]
            raise

    return check


def read_inventory(path: Path) -> None:
    inventory = Inventory.load(path)
    graph(inventory)
    to_json(inventory)
    for host in inventory.hosts.values():
        inventory.connection(host)


def read_playbook(path: Path) -> None:
    inventory = path.with_name("hosts.yml")
    inventory.write_text("web: {hosts: {w1: {a: 1}, w2: }}\nserver: {hosts: {s1: }}\nclients: {hosts: {c1: }}")
    load(path).prepare(Inventory.load(inventory))


def read_profile(path: Path) -> None:
    inventory = path.with_name("hosts.yml")
    inventory.write_text("server: {hosts: {s1: }}")
    load(ROOT / "playbooks/tune.yml", {"profile": str(path)}).prepare(Inventory.load(inventory))


def feed(data: bytes) -> None:
    for kinds in (wire.FROM_CONTROLLER, wire.FROM_AGENT):
        with contextlib.suppress(wire.ProtocolError):
            decoder = wire.Decoder(kinds)
            for start in range(0, len(data), 7):
                decoder.feed(data[start : start + 7])


def a_certificate() -> tuple[bytes, str]:
    """A host certificate for h as it travels, and a line of known_hosts that trusts its authority."""
    authority, key = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    made = serialization.SSHCertificateBuilder().public_key(key.public_key()).serial(1).key_id(b"k")
    made = made.type(serialization.SSHCertificateType.HOST).valid_principals([b"h"])
    signed = made.valid_after(0).valid_before(1 << 40).sign(authority)
    line = authority.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return base64.b64decode(signed.public_bytes().split()[1]), f"@cert-authority * {line.decode()}\n"


CERTIFICATE, AUTHORITY = a_certificate()
KNOWN_HOSTS = (
    f"h,!x*,[h]:2222 {AUTHORITY.split(' ', 2)[2]}{hostkeys.hashed('h')} ssh-rsa AAAA\n@revoked * {AUTHORITY[16:]}"
)


def show(shown: bytes) -> None:
    """What a host shows; the one that it was made from is good."""
    path = Scratch.folder / "known_hosts"
    path.write_text(AUTHORITY)
    hostkeys.Trust("h", 22, "strict", [path]).judge(shown, 1e9)


class Said:
    """A stream on which a host has said something and ended."""

    def __init__(self, data: bytes) -> None:
        self._data = [data]

    def send(self, data: bytes, timeout: float) -> None: ...
    def receive(self, timeout: float) -> bytes:
        return self._data.pop() if self._data else b""

    def last_words(self) -> tuple[int | None, str]:
        return None, ""

    def close(self, patience: float) -> None: ...


ANSWERS = [
    {"type": "beat"},
    {"type": "progress", "id": 1, "step": 0, "data": {"lines": []}},
    {"type": "result", "id": 1, "step": 0, "result": {"changed": False, "msg": "", "ping": "pong"}},
    {"type": "end", "id": 1},
]


def hear(messages: Any) -> None:
    """A session whose host answers with these messages."""
    frames = (
        b"".join(wire.pack(one) for one in messages if isinstance(one, dict))
        if isinstance(messages, list)
        else b"?"
    )
    session = link.Session(Host("sick", {}, ()), Said(frames), {}, link.wire.Decoder(link.wire.FROM_AGENT))
    result = session.call("ping", {}, on_progress=lambda data: data.get("lines"))
    assert isinstance(result.get("failed"), (object, type(None)))


HIST = histogram.Histogram()
HIST.record(1200, 5)
MOMENT = "2026-01-31T12:00:00.000Z"


SSH_CONFIG = (
    "Include %s\nHost h* !x\n  Port 22\n  IdentityFile=~/k\nMatch host h user me\n  User 'a b'\nInclude no\n"
)


def read_ssh_config(path: Path) -> None:
    ssh_config._load.__wrapped__(str(path)).lookup("h")


def sample_of(shape: Any) -> Any:
    """Something that has a shape of tcpfleet.answers."""
    if isinstance(shape, tuple):
        return sample_of(shape[0])
    if isinstance(shape, dict):
        return {name.strip("?*") or "x": sample_of(one) for name, one in shape.items()}
    if isinstance(shape, list):
        return [sample_of(one) for one in shape * (2 if len(shape) == 1 else 1)]
    if isinstance(shape, frozenset):
        return sorted(shape)[0]
    plain = {str: "a\t7", int: 7, float: 1.5, bool: True, None: None}
    return plain[shape] if shape in plain else MOMENT if shape is answers._moment else HIST.to_dict()


def merged(result: Any) -> dict[str, Any]:
    """The record of a run with two clients, of which one is sound."""
    sound = sample_of(answers._RESULT)
    record = merge.run_record(
        run_id="r",
        started="2025-01-31T12:00:00.000Z",
        targets=[{"host": "s1", "address": "a", "port": 1}],
        command="c",
        version="v",
        per_client=7,
        shares=[{"index": 0, "host": "c1"}, {"index": 1, "host": "c2"}],
        results={0: result, 1: sound},
        problems={},
        lost={},
        observations={},
        interrupted=False,
    )
    merge.summary(record)
    return record


def each_sample(answer: Any) -> None:
    series = samples.Series("c1")
    series.take(answer, 5.0)
    series.to_dict(3.0)


def a_plan(answer: Any) -> None:
    host = Host("c1", {}, ())
    run = Run(Request(1, 7, (), (), "inv stress"), [Share(0, host, 0, 1)], "r")
    run.plans = {0: answer["clients"][0]["plan"]} if answer["clients"] else {}
    stress_tasks.plan_words(run)


def a_reading(answer: Any) -> None:
    asked = tune.Asked({"x": "7"}, {"x": "7"}, {}, frozenset())
    for reading in answer["settings"].values():
        tune_status.key_state("x", "7", reading, asked)
        tune.key_tuning("x", "7", {"exists": True, "writeable": True}, {"status": "applied"}, reading, asked)
    tune.later_limits(answer)


def undone(answer: Any) -> None:
    found = rollback.HostRollback(undone=[rollback.Undone("r", "tune", answer["entries"], answer["undone"])])
    outcome = Outcome(Host("c1", {}, ()), "ok", found)
    rollback.render({"c1": outcome}, listing=False)
    json.dumps(rollback._to_json(outcome))


# What is done with an operation's answer in the thread that tells of all hosts.
USES: dict[str, Callable[[Any], object]] = {
    "stress start": a_plan,
    "stress poll": lambda answer: progress._cells(progress._add(answer["clients"])),
    "stress list": lambda answer: [progress._add(one) for one in answer["runs"].values()],
    "stress result": lambda answer: [merged(one["result"]) for one in answer["clients"] if one["result"]],
    "sample read": each_sample,
    "sysctl_read": a_reading,
    "rollback undo": undone,
    "rollback list": lambda answer: [
        rollback._run_line(one) for one in rollback._listed([rollback._Journals(None, answer["runs"])])
    ],
}
ANSWERED = {name: sample_of(shape) for name, shape in answers.RESULTS.items()}
STATUS = sample_of(answers.SERVER_STATUS)


def answered(name: str, answer: Any) -> None:
    """An answer that is not refused is used as any other is."""
    op, _, action = name.partition(" ")
    sound = isinstance(answer, dict) and answers.wrong_result(op, {"action": action}, answer) is None
    if sound and not (answer.get("failed") or answer.get("skipped")):
        USES.get(name, lambda one: one)(answer)


def a_server(status: Any) -> None:
    options = Options({})
    options.say = lambda text: None  # type: ignore[method-assign]
    told = deploy._parsed(json.dumps(status), "")
    deploy._say_status(options, Outcome(Host("s1", {}, ()), "ok", told))


def netlink(data: bytes) -> None:
    observe_netlink.parse_messages(bytearray(data), len(data), lambda *_: None)


def build_report(pair: tuple[Any, Any]) -> dict[str, Any]:
    run, observation = pair
    seen = {
        phase: {"s1": {"host": "s1", "status": "ok", "observation": observation}} for phase in report_data.PHASES
    }
    return report.build(report.Kept(run if isinstance(run, dict) else None, seen))


def render_report(pair: tuple[Any, Any]) -> None:
    built = build_report(pair)
    report_render.render_html(built)
    report_render.render_markdown(built)


def resume(path: Path) -> None:
    inventory = path.parent.parent / "hosts.yml"
    inventory.write_text("server: {hosts: {s1: }}\nclients: {hosts: {c1: }}")
    Run.from_folder(path.parent, Inventory.load(inventory))


PLAN = {
    "clients": 1, "per_client": 10, "targets": [{"host": "s1", "address": "10.77.0.11", "port": 1883}],
    "client_options": [["--hold", "1"]], "command": "inv stress", "thresholds": ["p99_response_ms > 50"],
    "shares": [[0, "c1", 0, 1]], "run_id": "20260131-120000-a1b2", "started": "2026-01-31T12:00:00+00:00",
    "servers": {}, "plans": {"0": {"workers": []}},
}  # fmt: skip


def cases_of(folder: str, *keys: str) -> list[str]:
    """Texts of the data-driven cases of a reader."""
    texts = []
    for path in sorted((HERE / folder).glob("*.yml")):
        case = yaml.safe_load(path.read_text())
        for key in keys:
            found = case.get(key) if isinstance(case, dict) else None
            texts += list(found.values()) if isinstance(found, dict) else [found] if found else []
    return [text for text in texts if isinstance(text, str)]


def parsers() -> Iterator[Target]:
    """Every parser of `observe` with its recorded inputs."""
    samples: dict[str, list[Any]] = {}
    for path in sorted((HERE / "observe/cases").glob("*.json")):
        case = json.loads(path.read_text())
        samples.setdefault(case["parser"], []).append(case["input"])
    extra: dict[str, tuple[Any, ...]] = {"parse_cpu": (100,)}
    for name, inputs in sorted(samples.items()):
        if name == "netlink_sockets":
            recorded = [bytes.fromhex("".join(one["hex"])) for one in inputs]
            yield Target(name, bent_bytes(*recorded), netlink, (ValueError, OSError), 100)
            continue
        parse, more = getattr(observe_parse, name), extra.get(name, ())
        texts = ["\n".join(one) if isinstance(one, list) else one for one in inputs]
        if name == "parse_lsof":
            yield Target(name, bent(*texts), lambda text, parse=parse: parse(text.splitlines()), (), 30)
        else:
            yield Target(
                name, bent(*texts), lambda text, parse=parse, more=more: parse(text, *more), (ValueError,), 20
            )


INI = "[web]\nw1 ansible_host=10.0.0.1 a='x y'\nw[1:3]\n[web:vars]\nb=1\n[all:children]\nweb\n"
PLAYBOOKS = [path.read_text() for path in sorted((ROOT / "tests/parity/playbooks").glob("*.yml"))]
OBSERVATION = report_samples.observation()
RECORD = report_samples.run(failed=5, seconds=3)

PROFILES = [path.read_text() for path in sorted((ROOT / "playbooks/profiles").glob("*.yml"))]
INVENTORIES = [*cases_of("inventory_cases", "files"), INI]
BOOKS = [*cases_of("playbook/errors", "playbook"), *cases_of("playbook/runs", "playbook"), *PLAYBOOKS]
HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=1\r\nok\r\n0\r\n\r\n"
UNIT = "Id=x\nExecStart={ path=/a ;\n b }\nMainPID=3\n"
RESOLV = "nameserver 10.0.0.1\nsearch a b\noptions ndots:2 x\n"
SYSCTL_D = "net.core.somaxconn = 5\n-net.ipv4.*=1\n# c\n; d\n"
MISTAKES = (LocatedError, PlaybookErrors)
WORDS = (stress_message.MessageError,)
FRAMES = (stress_expect.FrameError,)


JOURNAL = (
    '{"boot": "b", "command": "tune", "kind": "begin", "run": "r", "started": 1.5, "user": "me", "version": 1}\n'
    '{"after": {"kind": "file"}, "before": {"kind": "absent"}, "id": "00", "kind": "path", "path": "/etc/x"}\n'
    '{"kind": "made", "of": "00", "what": {}}\n{"boot": "b", "kind": "undid", "of": "00"}\n'
)


def read_journal(path: Path) -> None:
    journal.Run("r", str(path), False).load()


def run_json(read: Callable[[Path], object]) -> Callable[[Any], object]:
    return in_file("run/run.json", lambda path: read(path.parent))


def as_typed(*samples: str) -> st.SearchStrategy[str]:
    """What a command line can hold: bytes that are no UTF-8 come as surrogates."""
    return bent(*samples).map(
        lambda text: text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    )


TARGETS = [
    Target("wire", bent_bytes(*(wire.pack(one) for one in ANSWERS)), feed, (wire.ProtocolError,), 150),
    Target("session", swapped(ANSWERS), hear, (Unreachable, HostFailed), 40),
    *(Target(f"answer: {name}", swapped(one), partial(answered, name), (), 3) for name, one in ANSWERED.items()),
    Target("server status", swapped(STATUS), a_server, (HostFailed,), 3),
    Target("known_hosts", bent(KNOWN_HOSTS), lambda text: hostkeys.parse(text, "f").about("h"), (), 20),
    Target("ssh_config", bent(SSH_CONFIG), in_file("config", read_ssh_config), (BadInput,), 10),
    Target("host certificate", bent_bytes(CERTIFICATE), show, (hostkeys.HostKeyRefused,), 20),
    *parsers(),
    Target(
        "inventory.yml", bent(*INVENTORIES), located(in_file("inv/h.yml", read_inventory)), (LocatedError,), 25
    ),
    Target("inventory.ini", bent(INI), located(in_file("inv/hosts", read_inventory)), (LocatedError,), 20),
    Target("playbook", bent(*BOOKS), located(in_file("books/play.yml", read_playbook)), MISTAKES, 10),
    Target("vars file", bent(*PROFILES), located(in_file("books/vars.yml", read_vars)), MISTAKES, 10),
    Target("profile", bent(*PROFILES), located(in_file("books/profile.yml", read_profile)), MISTAKES, 3),
    Target("run.json", bent(json.dumps(RECORD)), run_json(report.load_run), (BadInput,), 30),
    Target("run.json, values", swapped(RECORD), run_json(runs.read_run), (BadInput,), 20),
    Target("plan.json", swapped(PLAN), in_file("run/plan.json", resume), (BadInput,), 20),
    Target("report", st.tuples(swapped(RECORD), swapped(OBSERVATION)), build_report, (), 5),
    Target("report, rendered", st.tuples(swapped(RECORD), swapped(OBSERVATION)), render_report, (), 1),
    Target("histogram", swapped(HIST.to_dict()), histogram.Histogram.from_dict, (ValueError,), 30),
    Target(
        "--fail-if",
        as_typed("p99_response_ms > 50", "failed_percent>=1%"),
        stress_threshold.parse,
        (ValueError,),
        30,
    ),
    Target(
        "a number", as_typed("50k", "1.5M", "5_0"), lambda text: number("--n", text, 1, 10**9), (BadInput,), 30
    ),
    Target(
        "--message",
        as_typed("GET / {conn} {seq} {rand:8}\\r\\n", "hex:00ff"),
        stress_message.compile_message,
        WORDS,
        30,
    ),
    Target(
        "--expect",
        as_typed("text:ok {conn}", "regex:^a.*b$", "hex:00", "any"),
        stress_expect.compile_expect,
        WORDS,
        30,
    ),
    Target("HTTP replies", bent_bytes(HTTP, CHUNKS), stress_expect.compile_frame("http"), FRAMES, 50),
    Target(
        "MQTT replies", bent_bytes(b"\x20\x02\0\0", b"\xd0\0"), stress_expect.compile_frame("mqtt"), FRAMES, 30
    ),
    Target("journal", bent(JOURNAL), in_file("r.jsonl", read_journal), (OperationError,), 30),
    Target("port ranges", bent("1025-65000,1883", "8080,9148"), stress_facts.parse_ranges, (ValueError,), 20),
    Target("systemctl show", bent(UNIT), systemd.parse_show, (), 20),
    Target("resolv.conf", bent(RESOLV), _host.dns_facts, (), 20),
    Target(
        "sysctl.d", bent(SYSCTL_D), in_file("s.conf", lambda path: list(_sysctl_order.lines(str(path)))), (), 20
    ),
]


NAN = {**OBSERVATION, "states": {**OBSERVATION["states"], "client": {"SYN-SENT": float("nan")}}}
BACKWARDS = CHUNKS.replace(b"2;x=1", b"-5")
WRONG = {name: copy.deepcopy(one) for name, one in ANSWERED.items()}
WRONG["stress result"]["clients"][0]["result"]["histograms"]["connect"]["buckets"] = [[5, 2**63]]
WRONG["stress result"]["clients"][0]["result"]["timeline"][0]["t"] = float("nan")
WRONG["sysctl_read"]["settings"]["x"]["boot"] = {"file": "f"}
WRONG["rollback list"]["runs"][0]["state"] = "another"
WRONG["rollback list"]["runs"][1] |= {"run": "x", "started": 2**50}
FOUND: list[tuple[str, Any]] = [
    *((f"answer: {name}", WRONG[name]) for name in ("stress result", "sysctl_read", "rollback list")),
    ("server status", []),
    ("server status", STATUS | {"running": False}),
    ("parse_cpu", "cpu  1000 2 300\nprocs_running\n"),
    ("parse_loadavg", "0.5 0.4"),
    ("parse_stat_parent", "1 (sh)"),
    ("session", [{"type": "progress", "id": 1, "data": True}]),
    ("playbook", "- hosts: all\n  name: a \x1f\n"),
    ("vars file", "a: \x7f"),
    ("vars file", 'a: "{{ 4096 ** 4096 }}"'),
    *(("vars file", f'a: "{{{{ {"(" * n}1{")" * n} }}}}"') for n in (60, 3000)),
    *(
        ("playbook", f'- hosts: all\n  tasks:\n    - debug: {{msg: "{{{{ {one} }}}}"}}\n      when: {one}\n')
        for one in ("4096 ** 4096", "1 // 0", "(" * 3000 + "1" + ")" * 3000)
    ),
    ("plan.json", PLAN | {"plans": []}),
    ("histogram", None),
    ("histogram", HIST.to_dict() | {"buckets": 5}),
    ("histogram", HIST.to_dict() | {"max": float("inf")}),
    ("--expect", "regex:a{4294967296}"),
    ("report", (RECORD, NAN)),
    (
        "host certificate",
        bend([CERTIFICATE.decode("latin-1")], b"\x00\x00\x97\xec\x01\x00\x01\x99\x00\x00\x00").encode("latin-1"),
    ),
    ("HTTP replies", BACKWARDS),  # went back and forth for ever
]


# ---------------------------------------------------------------- the tests


@pytest.fixture(autouse=True)
def scratch() -> Iterator[None]:
    memory = Path("/dev/shm")
    Scratch.folder = Path(tempfile.mkdtemp(prefix="tcpfleet-fuzz-", dir=memory if memory.is_dir() else None))
    yield
    shutil.rmtree(Scratch.folder)


def run_cases(target: Target, count: int, number_of_batch: int | None) -> int:
    """Runs about `count` cases; returns how many it were. Hypothesis shrinks what raises something else."""
    done = 0

    def one(case: Any) -> None:
        nonlocal done
        done += 1
        with contextlib.suppress(*target.raises):
            target.read(case)

    told = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=number_of_batch is None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    test = told(given(target.cases)(one))
    (test if number_of_batch is None else seed(number_of_batch)(test))()
    return done


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_few(target: Target) -> None:
    count = min(FEW, 25 * target.share)
    assert run_cases(target, count, None) >= count


@pytest.mark.parametrize(("name", "case"), FOUND)
def test_what_was_found(name: str, case: Any) -> None:
    target = next(one for one in TARGETS if one.name == name)
    with contextlib.suppress(*target.raises):
        target.read(case)


def memory() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_its_share_of_a_million(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    done, start, warm = 0, random.randrange(1 << 30), 0
    while done < target.share * 1000:
        done += run_cases(target, min(BATCH, target.share * 1000), start + done)
        warm = warm or memory()
    grown = memory() - warm
    with capsys.disabled():
        print(f"\n{target.name}: {done:,} cases, memory {grown / 2**20:+.1f} MiB", flush=True)
    assert grown < GROWTH


def test_the_shares_are_a_million() -> None:
    assert sum(target.share for target in TARGETS) >= 1000
