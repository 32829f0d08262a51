"""Actions, driven as the engine drives them, against operations that run in this process."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from operations import TABLE, OperationError

from tcpfleet.playbook import transfers
from tcpfleet.playbook.actions import ACTIONS, ActionFailed, Call, Setting
from tcpfleet.playbook.catalogue import MODULES, coerce
from tcpfleet.playbook.source import Where

from .fakes import Context


class Names:
    """No variables; files lie in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folders = (folder,)

    def lookup(self, name: str) -> Any:
        """Nothing is known."""
        raise KeyError(name)


class Host:
    """Runs a module's action to its end and counts what was sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[Call] = []
        self.canned: dict[str, dict[str, Any]] = {}

    def run(self, module: str, args: dict[str, Any], check: bool = False) -> dict[str, Any]:
        row = MODULES[module]
        ready = {name: coerce(row.arguments[name], value) for name, value in args.items()}
        self.calls.clear()
        setting = Setting(Names(self.folder), Where("play.yml", 1, 1), self.folder, "h1", check, True)
        done = ACTIONS[row.name](ready, setting)
        if isinstance(done, dict):
            return done
        if isinstance(done, Call):
            return self._call(done, check)
        answer: dict[str, Any] | None = None
        while True:
            try:
                call = done.send(answer) if answer is not None else next(done)
            except StopIteration as end:
                result: dict[str, Any] = end.value
                return result
            answer = self._call(call, check)

    def _call(self, call: Call, check: bool) -> dict[str, Any]:
        self.calls.append(call)
        if call.operation in self.canned:
            return dict(self.canned[call.operation])
        module = importlib.import_module("operations." + TABLE[call.operation])
        try:
            # Whatever travels must be JSON.
            result: dict[str, Any] = module.run(json.loads(json.dumps(call.args)), Context(check, True))
        except OperationError as error:
            return {"changed": False, **error.fields, "failed": True, "msg": error.msg}
        return result

    @property
    def sent(self) -> list[str]:
        """Operations called, in order."""
        return [call.operation for call in self.calls]

    @property
    def bytes_sent(self) -> int:
        """Content that went to the host, in bytes."""
        entries = [entry for call in self.calls for entry in (call.args, *call.args.get("files", ()))]
        return sum(len(base64.b64decode(entry.get("content_b64", ""))) for entry in entries)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "files").mkdir()
    (tmp_path / "host").mkdir()
    return Host(tmp_path)


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "SMALL", 10)
    monkeypatch.setattr(transfers, "PIECE", 16)


def test_a_small_file_is_one_call(host: Host) -> None:
    lay_out(host.folder, {"files/f": b"hi\n"})
    result = host.run("copy", {"src": "f", "dest": f"{host.folder}/host/"})
    assert result["changed"] and host.sent == ["copy"]
    assert (host.folder / "host/f").read_bytes() == b"hi\n"


@pytest.mark.usefixtures("small_pieces")
def test_a_large_file_goes_in_pieces_and_once(host: Host) -> None:
    content = bytes(range(50))
    lay_out(host.folder, {"files/f": content})
    args = {"src": "f", "dest": f"{host.folder}/host/g", "mode": "0600"}
    assert host.run("copy", args, check=True)["changed"]
    assert host.bytes_sent == 0 and not (host.folder / "host/g").exists()
    assert host.run("copy", args)["changed"]
    assert host.sent == ["copy", "upload", "upload", "upload", "upload", "copy"]
    assert (host.folder / "host/g").read_bytes() == content
    assert not host.run("copy", args)["changed"]
    assert host.sent == ["copy"] and host.bytes_sent == 0
    assert host.run("copy", {**args, "mode": "0644"})["changed"]
    assert host.sent == ["copy"] and host.bytes_sent == 0


@pytest.mark.usefixtures("small_pieces")
def test_a_large_file_that_the_host_refuses(host: Host) -> None:
    lay_out(host.folder, {"files/f": bytes(50)})
    result = host.run("copy", {"src": "f", "dest": f"{host.folder}/host/none/g"})
    assert result["failed"] and "does not exist" in result["msg"]


@pytest.mark.parametrize("size", [30, 50])
@pytest.mark.usefixtures("small_pieces")
def test_a_file_of_ansible_vault_is_not_sent_as_it_is(host: Host, size: int) -> None:
    lay_out(
        host.folder,
        {"files/f": b"$ANSIBLE_VAULT;1.1;AES256".ljust(size), "files/t/f": b"$ANSIBLE_VAULT;".ljust(size)},
    )
    for src in ("f", "t/"):
        with pytest.raises(ActionFailed, match="encrypted with Ansible Vault"):
            host.run("copy", {"src": src, "dest": f"{host.folder}/host/g"})


@pytest.mark.parametrize("size", [3, 50])
@pytest.mark.usefixtures("small_pieces")
def test_another_checksum_than_expected(host: Host, size: int) -> None:
    lay_out(host.folder, {"files/f": bytes(size)})
    args = {"src": "f", "dest": f"{host.folder}/host/g", "checksum": hashlib.sha1(bytes(size)).hexdigest()}
    assert host.run("copy", args)["changed"]
    with pytest.raises(ActionFailed, match="and not 000"):
        host.run("copy", {**args, "checksum": "0" * 40})
    with pytest.raises(ActionFailed, match="one file"):
        host.run("copy", {**args, "src": ""})


TREE = {"files/t/a": b"a" * 3, "files/t/sub/b": b"b" * 40, "files/t/sub/c": b"c" * 9, "files/t/sub/d": b"d" * 7}


@pytest.mark.parametrize("source", ["t", "t/"])
@pytest.mark.parametrize("pieces", ["small", "large"])
def test_a_folder(host: Host, source: str, pieces: str, request: pytest.FixtureRequest) -> None:
    if pieces == "large":
        request.getfixturevalue("small_pieces")
    lay_out(host.folder, TREE)
    (host.folder / "files/t/empty").mkdir()
    (host.folder / "files/t/link").symlink_to("a")
    (host.folder / "files/t/nowhere").symlink_to("none")
    (host.folder / "files/t/sub/up").symlink_to("..")
    (host.folder / "files/t/a").chmod(0o750)
    args = {"src": source, "dest": f"{host.folder}/host/d", "mode": "preserve", "directory_mode": "0711"}
    assert host.run("copy", args, check=True)["changed"] and not (host.folder / "host/d").exists()
    result = host.run("copy", args)
    assert result["changed"] and result["dest"] == args["dest"] + "/" and result["src"].endswith("files/t")
    assert (host.sent == ["copy_tree"]) == (pieces == "small")
    top = host.folder / "host/d" / ("t" if source == "t" else "")
    for name, content in TREE.items():
        assert (top / name.removeprefix("files/t/")).read_bytes() == content
    assert (top / "a").stat().st_mode & 0o777 == 0o750
    assert (top / "empty").stat().st_mode & 0o777 == 0o711
    assert (top / "link").read_bytes() == b"aaa" and not (top / "link").is_symlink()
    assert os.readlink(top / "nowhere") == "none" and os.readlink(top / "sub/up") == ".."
    assert not host.run("copy", args)["changed"]
    (top / "sub/c").write_bytes(b"other")
    result = host.run("copy", args)
    assert result["changed"] and result["done"] == [f"{'t/' if source == 't' else ''}sub/c: content changed"]
    if pieces == "large":
        assert host.bytes_sent == len(TREE["files/t/sub/c"])


def test_links_of_a_folder_stay_when_not_followed(host: Host) -> None:
    lay_out(host.folder, {"files/t/a": b"a"})
    (host.folder / "files/t/link").symlink_to("a")
    args = {"src": "t/", "dest": f"{host.folder}/host/d", "local_follow": False}
    assert host.run("copy", args)["changed"]
    assert os.readlink(host.folder / "host/d/link") == "a"
    assert not host.run("copy", args)["changed"]


@pytest.mark.parametrize(
    ("content", "text"),
    [("x", b"x"), ("", b""), ({"a": [True, None]}, b'{"a": [true, null]}'), (True, b"True"), (7, b"7")],
)
def test_content(host: Host, content: Any, text: bytes) -> None:
    host.run("copy", {"content": content, "dest": f"{host.folder}/host/f"})
    assert (host.folder / "host/f").read_bytes() == text


def test_remote_src_reads_nothing_here(host: Host) -> None:
    lay_out(host.folder, {"host/there": b"x"})
    args = {"src": f"{host.folder}/host/there", "dest": f"{host.folder}/host/copy", "remote_src": True}
    assert host.run("copy", args)["changed"] and host.bytes_sent == 0
    assert (host.folder / "host/copy").read_bytes() == b"x"


@pytest.mark.parametrize("size", [3, 9_000_000])
def test_fetch(host: Host, size: int) -> None:
    content = os.urandom(size)
    source = host.folder / "host/f"
    source.write_bytes(content)
    args = {"src": str(source), "dest": "got"}
    assert host.run("fetch", args, check=True)["skipped"] and not (host.folder / "got").exists()
    result = host.run("fetch", args)
    target = Path(f"{host.folder}/got/h1{source}")
    digest = hashlib.sha1(content).hexdigest()
    assert (result["changed"], result["dest"], result["checksum"]) == (True, str(target), digest)
    assert target.read_bytes() == content and os.listdir(target.parent) == ["f"]
    assert len(host.sent) == 1 + size // 4_194_304
    result = host.run("fetch", args)
    assert (result["changed"], result["file"], result["checksum"]) == (False, str(source), digest)
    assert len(host.sent) == 1


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        ({"src": "T/host/f", "dest": "T/one", "flat": True}, {"changed": True, "dest": "T/one"}),
        ({"src": "T/host/f", "dest": "T/host/sub/", "flat": True}, {"changed": True, "dest": "T/host/sub/f"}),
        ({"src": "T/host/none", "dest": "x"}, {"failed": True, "msg": "the remote file does not exist"}),
        ({"src": "T/host/none", "dest": "x", "fail_on_missing": False}, {"failed": False, "changed": False}),
        ({"src": "T/host", "dest": "x"}, {"failed": True}),
        ({"src": "T/host", "dest": "x", "fail_on_missing": False}, {"failed": False, "changed": False}),
    ],
)
def test_fetch_cases(host: Host, args: dict[str, Any], fields: dict[str, Any]) -> None:
    lay_out(host.folder, {"host/f": b"x"})

    def fill(values: dict[str, Any]) -> dict[str, Any]:
        folder = str(host.folder)
        return {key: folder + one[1:] if str(one).startswith("T/") else one for key, one in values.items()}

    result = host.run("fetch", fill(args))
    assert {key: result.get(key) for key in fields} == fill(fields)


@pytest.mark.parametrize(
    "args",
    [
        {"src": "/a/../../../x", "dest": "got"},
        {"src": "/f", "dest": "files", "flat": True},
    ],
)
def test_fetch_writes_nowhere_else(host: Host, args: dict[str, Any]) -> None:
    with pytest.raises(ActionFailed):
        host.run("fetch", args)
    assert host.sent == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            {"source": "/home/u/.ssh/authorized_keys", "content_b64": "eA==", "last": True},
            "the host answered with",
        ),
        ({"source": "/home/u/f", "content_b64": "", "last": False}, "an empty piece"),
    ],
)
def test_a_host_does_not_choose_what_it_is_fetched_as(host: Host, answer: dict[str, Any], said: str) -> None:
    (host.folder / "got").mkdir()
    host.canned["fetch"] = {"changed": False, "checksum": "", "size": 1, **answer}
    result = host.run("fetch", {"src": "~/f", "dest": f"{host.folder}/got/", "flat": True})
    assert result["failed"] and said in result["msg"] and not list((host.folder / "got").iterdir())


def test_what_changes_while_it_is_fetched_is_noticed(host: Host) -> None:
    wrong = {
        "changed": False,
        "source": "/f",
        "content_b64": "aGkK",
        "last": True,
        "checksum": "0" * 40,
        "size": 3,
        "msg": "",
    }
    host.canned["fetch"] = wrong
    args = {"src": "/f", "dest": f"{host.folder}/got", "flat": True}
    result = host.run("fetch", args)
    assert result["failed"] and result["msg"] == "checksum mismatch"
    assert host.run("fetch", {**args, "validate_checksum": False})["changed"]


def test_template_with_other_delimiters_and_encoding(host: Host) -> None:
    lay_out(host.folder, {"templates/t.j2": "[[ 1 + 1 ]] {{ stays }} ö\n".encode()})
    args = {
        "src": "t.j2",
        "dest": f"{host.folder}/host/t",
        "variable_start_string": "[[",
        "variable_end_string": "]]",
        "output_encoding": "latin-1",
    }
    host.run("template", args)
    assert (host.folder / "host/t").read_bytes() == "2 {{ stays }} ö\n".encode("latin-1")
    with pytest.raises(ActionFailed, match="no encoding"):
        host.run("template", {**args, "output_encoding": "nonsense"})
    with pytest.raises(ActionFailed, match="ascii cannot express"):
        host.run("template", {**args, "output_encoding": "ascii"})


def test_debug_and_set_fact(host: Host) -> None:
    assert host.run("debug", {"msg": "x", "verbosity": 1})["skipped"]
    assert host.run("debug", {"msg": "x"})["msg"] == "x"
    setting = Setting(Names(host.folder), Where("play.yml", 1, 1), host.folder, "h1")
    assert ACTIONS["set_fact"]({"a": 1, "cacheable": "no"}, setting)["ansible_facts"] == {"a": 1}  # type: ignore[index]
    for facts, word in ({"a": 1, "cacheable": True}, "cache"), ({}, "at least one"):
        with pytest.raises(ActionFailed, match=word):
            ACTIONS["set_fact"](facts, setting)


@pytest.mark.parametrize(
    ("kind", "value", "ready"),
    [
        ("int", "7", 7), ("int", "7.0", 7), ("int", 7.0, 7), ("list", "a,b", ["a", "b"]), ("list", 5, ["5"]),
        ("lines", ["a", "b"], ["a", "b"]), ("mode", 0o644, 0o644),
    ],
)  # fmt: skip
def test_argument_kinds(kind: str, value: Any, ready: Any) -> None:
    from tcpfleet.playbook.catalogue import Argument

    assert coerce(Argument(kind), value) == ready


@pytest.mark.parametrize(("kind", "value"), [("int", "seven"), ("int", 7.5), ("int", True), ("lines", {"a": 1})])
def test_argument_kinds_refused(kind: str, value: Any) -> None:
    from tcpfleet.playbook.catalogue import Argument

    with pytest.raises(ValueError, match="must be"):
        coerce(Argument(kind), value)
