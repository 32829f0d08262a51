"""Files between controller and host in several round trips: large files, folders, and files fetched.

What is already there under the right checksum is not sent. Everything here is a `Conversation`: it yields the
operations to run on the host, one after the other, and is sent what each came to.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import stat
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tcpfleet.inventory.document import NO_VAULT, VAULT
from tcpfleet.playbook.calls import ActionFailed, Call, Conversation

SMALL = 1 << 20  # bytes of content that go along with the one call, unasked
PIECE = 4 << 20  # bytes of content in one message of a conversation

Asked = Generator[Call, dict[str, Any], Any]


def read(path: Path) -> bytes:
    """A file of the controller. :raises ActionFailed: when it cannot be read."""
    try:
        return _plain(path, path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from None


def _plain(path: Path, begin: bytes) -> bytes:
    """Ansible would decrypt such a file; a host must not get it as it is and take it for a configuration."""
    if begin.startswith(VAULT.encode()):
        raise ActionFailed(f"{path}: {NO_VAULT}")
    return begin


def _unreadable(path: Path, error: OSError) -> ActionFailed:
    return ActionFailed(f"cannot read {path} on the controller: {error.strerror}")


def mode_of(path: Path) -> str:
    """Permission bits as octal text, for ``mode: preserve``."""
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def encoded(content: bytes) -> str:
    """Bytes as they travel."""
    return base64.b64encode(content).decode("ascii")


@lru_cache(maxsize=4096)
def _digest(path: Path, _size: int, _changed: int) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(SMALL):
            digest.update(block)
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """SHA-1 of a file as hex text, Ansible's checksum; every host asks for the same, so it is kept.

    :raises ActionFailed: when it cannot be read.
    """
    try:
        status = path.stat()
        return _digest(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise _unreadable(path, error) from None


# -- to the host ---------------------------------------------------------------------------------------


def send_file(path: Path, wire: Mapping[str, Any]) -> Conversation:
    """Copies one file that is too large for one message.

    :param wire: arguments of the operation `copy` but for the content.
    """
    question = {**wire, "checksum": checksum(path), "size": path.stat().st_size}
    result = yield Call("copy", question)
    if result.get("failed") or not result.get("need"):
        return result
    token, refused = yield from _upload(path, result["dest"])
    if refused is not None:
        return dict(refused)
    result = yield Call("copy", {**question, "upload": token})
    return result


def _upload(path: Path, dest: str) -> Asked:
    """Sends all pieces; returns (token, None) or (token, the result that says why not)."""
    token, offset = secrets.token_hex(8), 0
    try:
        with path.open("rb") as handle:
            while piece := handle.read(PIECE):
                if offset == 0:
                    _plain(path, piece)
                args = {"token": token, "dest": dest, "offset": offset, "content_b64": encoded(piece)}
                result = yield Call("upload", args)
                if result.get("failed"):
                    return token, result
                offset += len(piece)
    except OSError as error:
        raise _unreadable(path, error) from None
    return token, None


@dataclass
class Tree:
    """What a folder holds, by paths relative to what it will be below.

    :ivar files: relative path -> the file to read; symlinks are followed.
    :ivar links: (relative path, target): symlinks that stay such.
    """

    files: dict[str, Path] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)


def tree(source: Path, contents_only: bool, follow: bool = True) -> Tree:
    """Everything below a folder, in a fixed order.

    :param contents_only: the source was named with a final slash: its own name is no part of the paths.
    :param follow: copy what symlinks lead to; those that lead nowhere, or to a folder that they are in, stay.
    :raises ActionFailed: when a folder cannot be read.
    """
    found = Tree()
    _walk(source, "" if contents_only else source.name, follow, found, [_identity(source)])
    return found


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _walk(folder: Path, prefix: str, follow: bool, found: Tree, above: list[tuple[int, int]]) -> None:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from None
    for entry in entries:
        name = os.path.join(prefix, entry.name)
        is_folder = entry.is_dir()
        circular = is_folder and _identity(entry) in above
        if entry.is_symlink() and (not follow or circular or not (is_folder or entry.is_file())):
            found.links.append((name, os.readlink(entry)))
        elif is_folder:
            found.directories.append(name)
            _walk(entry, name, follow, found, [*above, _identity(entry)])
        else:
            found.files[name] = entry


def send_tree(source: Path, content: Tree, wire: Mapping[str, Any], preserve: bool) -> Call | Conversation:
    """Copies a folder: in one call when it is small, else what differs, as the host says.

    :param wire: arguments of the operation `copy_tree` but for the lists.
    :param preserve: each file gets the mode that it has here.
    """
    entries: list[dict[str, Any]] = []
    total = 0
    for name, path in content.files.items():
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _unreadable(path, error) from None
        entry: dict[str, Any] = {"path": name, "checksum": checksum(path), "size": size}
        entries.append({**entry, "mode": mode_of(path)} if preserve else entry)
        total += size
    whole = {**wire, "src": str(source), "directories": content.directories, "links": content.links}
    if total <= SMALL:
        for entry in entries:
            entry["content_b64"] = encoded(read(content.files[str(entry["path"])]))
        return Call("copy_tree", {**whole, "files": entries})
    return _send_tree(entries, content, {**whole, "files": entries}, wire)


def _send_tree(
    entries: list[dict[str, Any]], content: Tree, question: Mapping[str, Any], wire: Mapping[str, Any]
) -> Conversation:
    result = yield Call("copy_tree", dict(question))
    needed = set(result.pop("need", ()))
    rest = [entry for entry in entries if entry["path"] in needed]
    while rest and not result.get("failed"):
        group: list[dict[str, Any]] = []
        room = PIECE
        while rest and rest[0]["size"] <= room:
            entry = rest.pop(0)
            room -= entry["size"]
            group.append({**entry, "content_b64": encoded(read(content.files[entry["path"]]))})
        if not group:
            entry = rest.pop(0)
            token, refused = yield from _upload(content.files[entry["path"]], result["dest"] + entry["path"])
            if refused is not None:
                return {**refused, "changed": result["changed"]}
            group.append({**entry, "upload": token})
        result = _joined(result, (yield Call("copy_tree", {**wire, "files": group})))
    return result


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two results of `copy_tree` as one."""
    joined = {**first, **second, "src": first["src"], "changed": first["changed"] or second.get("changed", False)}
    if second.get("failed"):
        return joined
    joined["done"] = first["done"] + second["done"]
    joined["msg"] = ", ".join(joined["done"]) or first["msg"]
    diffs = [*first.get("diff", ()), *second.get("diff", ())]
    return {**joined, "diff": diffs} if diffs else joined


# -- from the host -------------------------------------------------------------------------------------


def fetch(
    source: str, place: Mapping[str, Any], folder: Path, host: str, required: bool, validate: bool
) -> Conversation:
    """Brings one file here.

    :param source: its path on the host.
    :param place: ``dest`` and ``flat``, as in Ansible.
    :param folder: what a relative ``dest`` starts from.
    :param required: a file that is missing is a failure.
    :param validate: what arrived must have the checksum that the host told.
    :returns: Ansible's fields: dest, checksum, md5sum, and remote_checksum when it was brought, else file.
    """
    # ~ is for the host to resolve, and until then there is no local copy to compare with.
    target = None if source.startswith("~") else fetch_target(source, place, folder, host)
    have = checksum(target) if target is not None and target.is_file() else ""
    answer = yield Call("fetch", {"src": source, "have": have})
    trouble = _trouble(answer)
    if trouble is not None:
        kept = (
            {key: value for key, value in answer.items() if key in ("exception", "censored")} if required else {}
        )
        sentence = trouble if required else f"{trouble}, not transferring, ignored"
        return {**kept, "changed": False, "failed": required, "file": source, "msg": sentence}
    path: str = answer["source"]
    if target is None:
        if os.path.basename(path) != os.path.basename(source):  # the host says where ~ is, no more
            return {"changed": False, "failed": True, "file": source, "msg": f"the host answered with {path}"}
        target = fetch_target(path, place, folder, host)
    if "content_b64" not in answer or (target.is_file() and checksum(target) == answer.get("checksum")):
        return {
            "changed": False,
            "file": path,
            "dest": str(target),
            "checksum": answer["checksum"],
            "md5sum": _md5(target),
            "msg": f"{target} is the same already",
        }
    arrived = yield from _receive(path, answer, target)
    if isinstance(arrived, dict):
        return arrived
    fields = {
        "dest": str(target),
        "checksum": arrived,
        "md5sum": _md5(target),
        "remote_checksum": answer.get("checksum"),
        "remote_md5sum": None,
    }
    if validate and arrived != answer.get("checksum"):
        return {**fields, "changed": False, "failed": True, "file": path, "msg": "checksum mismatch"}
    return {**fields, "changed": True, "msg": f"{path} was brought to {target}"}


def _trouble(answer: Mapping[str, Any]) -> str | None:
    """Why there is nothing to fetch, or None."""
    if answer.get("failed"):
        return str(answer.get("msg"))
    if answer.get("directory"):
        return "remote file is a directory, fetch cannot work on directories"
    missing = answer.get("missing")
    return None if missing is None else str(missing)


def fetch_target(source: str, place: Mapping[str, Any], folder: Path, host: str) -> Path:
    """Where a fetched file goes: ``dest/HOST/SOURCE``, or ``dest`` itself when ``flat``.

    :raises ActionFailed: when that is a folder, or would be outside of ``dest``.
    """
    dest = str(place["dest"])
    base = folder / Path(dest).expanduser()
    if not place.get("flat"):
        below = base / host
        target = Path(os.path.normpath(f"{below}/{source}"))
        if not target.is_relative_to(os.path.normpath(below)):
            raise ActionFailed(f"{source} leads out of {below}")
    elif dest.endswith("/"):
        target = base / os.path.basename(source)
    elif base.is_dir():
        raise ActionFailed(f"{dest} is a directory; end it with a slash to fetch {source} into it")
    else:
        target = Path(os.path.normpath(base))
    if target.is_dir():
        raise ActionFailed(f"{target} is a directory, a file cannot take its place")
    return target


def _receive(source: str, answer: Mapping[str, Any], target: Path) -> Asked:
    """Writes what comes to `target`, in one step at the end; returns its checksum, or a failed result."""
    real = Path(os.path.realpath(target))
    temporary = real.with_name(f".{real.name[:100]}.tcpfleet-{secrets.token_hex(8)}")
    digest = hashlib.sha1(usedforsecurity=False)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as handle:
            if real.exists():
                os.fchmod(handle.fileno(), stat.S_IMODE(real.stat().st_mode))
            offset = 0
            while True:
                try:
                    piece = base64.b64decode(answer["content_b64"], validate=True)
                except (KeyError, ValueError):
                    msg = "the host sent a piece that is no base64"
                    return {"changed": False, "failed": True, "file": source, "msg": msg}
                if not piece and not answer["last"]:
                    msg = "the host sent an empty piece"
                    return {"changed": False, "failed": True, "file": source, "msg": msg}
                handle.write(piece)
                digest.update(piece)
                offset += len(piece)
                if answer["last"]:
                    break
                answer = yield Call("fetch", {"src": source, "offset": offset})
                if _trouble(answer) is not None:
                    return {"changed": False, "failed": True, "file": source, "msg": _trouble(answer)}
        temporary.replace(real)
    except OSError as error:
        raise ActionFailed(f"cannot write {target} on the controller: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def _md5(path: Path) -> str | None:
    """Ansible's md5sum; None where the system forbids MD5."""
    try:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    except ValueError:
        return None
