"""Which host keys are trusted: known_hosts files in OpenSSH's format, and what to do with an unknown key.

In: known_hosts files and a policy. Out: a `Trust` for one host, asked by Paramiko once the host has proved that it
holds a key and before anything of a login is sent. Fabric sets AutoAddPolicy and loads no file; Paramiko's own
reader knows no patterns, takes a negated name for a name and checks no certificates, so a `*.example.org` line
would have made a stranger's key a new one. Used by `tcpfleet.route` for a host and each of its jump hosts.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import functools
import hashlib
import hmac
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paramiko
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

CERTIFICATE = "-cert-v01@openssh.com"
_SPECIAL = re.compile(r"[*?!|]")  # in a line's first field: not only names
_appending = threading.Lock()


class HostKeyRefused(paramiko.SSHException):
    """A host's key is unknown, changed or revoked, or its certificate does not hold; the text is the sentence."""


class Line(NamedTuple):
    """One line of a known_hosts file that is about the host.

    :ivar marker: "@cert-authority", "@revoked" or "".
    :ivar key: as it travels: RFC 4253's encoding, type first.
    """

    marker: str
    key: bytes
    where: str

    @property
    def kind(self) -> str:
        return kind_of(self.key)


def kind_of(key: bytes) -> str:
    """The type that an encoded key begins with: ssh-ed25519, ssh-rsa ..."""
    return key[4 : 4 + int.from_bytes(key[:4], "big")].decode("ascii", "replace")


def fingerprint(key: bytes) -> str:
    """As ssh-keygen -l shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def looked_up(host: str, port: int) -> str:
    """The name under which known_hosts has a host."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def hashed(name: str, salt: bytes | None = None) -> str:
    """A name as HashKnownHosts writes it.

    >>> hashed("h", b"salt")
    '|1|c2FsdA==|jVqr1xnqQEuc7LKclislnCMCjPg='
    """
    salt = os.urandom(20) if salt is None else salt
    digest = hmac.new(salt, name.encode(), "sha1").digest()
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))


def matches(patterns: str, name: str) -> bool:
    """Whether a line's first field is about `name`: hashed, or patterns with * and ?, of which ! ones exclude.

    >>> matches("*.example.org,!bad.example.org", "bad.example.org")
    False
    """
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in patterns[3:].split("|"))
        except (ValueError, binascii.Error):
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)
    found = False
    for pattern in patterns.lower().split(","):
        # fnmatch has [a-z] too; known_hosts means the brackets of [host]:port.
        if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            found = True
    return found


class Known(NamedTuple):
    """A known_hosts file: a thousand hosts ask it a thousand times, so plain names are looked up.

    :ivar plain: name -> its lines.
    :ivar others: (first field, line) of those with patterns or a hashed name.
    """

    plain: dict[str, list[Line]]
    others: list[tuple[str, Line]]

    def about(self, name: str) -> list[Line]:
        """The lines about a host of this name."""
        return self.plain.get(name, []) + [line for patterns, line in self.others if matches(patterns, name)]


def parse(text: str, file: str) -> Known:
    """A known_hosts file's text; a damaged line hides no other."""
    known = Known({}, [])
    for number, line in enumerate(text.split("\n"), 1):  # no other character ends a line for OpenSSH
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#") or marker not in ("", "@cert-authority", "@revoked"):
            continue
        try:
            found = Line(marker, base64.b64decode(fields[2], validate=True), f"{file}:{number}")
        except ValueError:
            continue
        if found.kind != fields[1]:
            continue
        if _SPECIAL.search(fields[0]):
            known.others.append((fields[0], found))
        else:
            for name in fields[0].lower().split(","):
                known.plain.setdefault(name, []).append(found)
    return known


@functools.lru_cache(maxsize=16)
def _load_file(path: Path, changed: int, size: int) -> Known:
    return parse(path.read_bytes().decode(errors="replace"), str(path))


def load(path: Path) -> Known:
    """A known_hosts file, parsed again only when it has changed; one that is not there is empty.

    :raises HostKeyRefused: it cannot be read: better no login than one under half of what is known.
    """
    try:
        state = path.stat()
        return _load_file(path, state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        return Known({}, [])
    except OSError as error:
        raise HostKeyRefused(f"cannot read {path}: {error.strerror}") from None


class _Transport(paramiko.Transport):
    """One that prefers kinds of host key by their rank; a class for each host would stay in memory with it."""

    def __init__(self, rank: Callable[[str], int], *args: Any, **options: Any) -> None:
        self._rank = rank
        super().__init__(*args, **options)

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        return tuple(sorted(super().preferred_keys, key=self._rank))


class Trust(paramiko.MissingHostKeyPolicy):
    """What is known of one host's key, and the decision on the key that it shows.

    :param host: as in known_hosts: the address after ssh_config's HostName, or its HostKeyAlias.
    :param policy: strict (refuse an unknown key), accept-new (take it and write it down) or off (take it). A key
        that is not the known one, and a revoked one, is refused under each.
    :param files: the first is where accept-new writes; files that do not exist are fine; none learns nothing.
    :param hash_names: write names hashed.
    """

    def __init__(self, host: str, port: int, policy: str, files: Sequence[Path], hash_names: bool = False) -> None:
        self.host, self.policy, self.files, self.hash_names = host, policy, files, hash_names
        self.name = looked_up(host, port)
        # As in OpenSSH: a key known for the plain name is good at any port, but makes no other one a changed one.
        self._own = self._read(self.name)
        self._plain = self._read(host.lower()) if port != 22 else []

    def _read(self, name: str) -> list[Line]:
        return [line for file in self.files for line in load(file).about(name)]

    def transport(self, *args: Any, **options: Any) -> paramiko.Transport:
        """A Transport that asks for the kinds of key that are known, so that another kind is no changed key."""
        known = {line.kind for line in self._own + self._plain if not line.marker}
        certified = any(line.marker == "@cert-authority" for line in self._own + self._plain)

        def rank(algorithm: str) -> int:
            if algorithm.endswith(CERTIFICATE):
                return 0 if certified else 3
            return 1 if algorithm in known or (algorithm.startswith("rsa-sha2-") and "ssh-rsa" in known) else 2

        return _Transport(rank, *args, **options)

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Paramiko's question, asked for every key, as none is loaded into its own list."""
        blob = getattr(key, "public_blob", None)
        self.judge(key.asbytes() if blob is None else blob.key_blob, time.time())

    def judge(self, shown: bytes, now: float) -> None:
        """Return when `shown`, a key or a certificate, is good at `now` (seconds since 1970).

        :raises HostKeyRefused: it is not.
        """
        lines = self._own + self._plain
        authorities = {line.key: line.where for line in lines if line.marker == "@cert-authority"}
        revoked = {line.key: line.where for line in lines if line.marker == "@revoked"}
        certificate: Any = None
        authority = b""
        if kind_of(shown).endswith(CERTIFICATE):
            with _strangers_bytes():
                text = f"{kind_of(shown)} {base64.b64encode(shown).decode()}"
                certificate = serialization.load_ssh_public_identity(text.encode())
                authority, shown = _encoded(certificate.signature_key()), _encoded(certificate.public_key())
        mark = fingerprint(shown)
        for what, key in (("certificate authority", authority), ("host key", shown)):
            if key in revoked:
                raise HostKeyRefused(f"the {what} {fingerprint(key)} of {self.name} is @revoked at {revoked[key]}")
        if certificate is not None and authority in authorities:
            with _strangers_bytes():
                fault = _fault(certificate, self.host, now)
            if fault is None:
                return
            raise HostKeyRefused(f"the host certificate of {self.name} {fault}; nothing was sent")
        if any(line.key == shown for line in lines if not line.marker):
            return
        known = [line for line in self._own if not line.marker]
        if known:
            line = next((line for line in known if line.kind == kind_of(shown)), known[0])
            raise HostKeyRefused(
                f"the host key of {self.name} has changed: {line.where} has {fingerprint(line.key)}, it shows "
                f"{mark}; nothing was sent. If the host was reinstalled, remove that line"
            )
        if self.policy == "off":
            return
        if authorities:
            raise HostKeyRefused(
                f"{self.name} shows no host certificate of the authority at {next(iter(authorities.values()))}, "
                f"and its key {mark} is not known; nothing was sent"
            )
        if self.policy == "strict":
            raise HostKeyRefused(
                f"the host key {mark} of {self.name} is not in {self.files[0] if self.files else 'any file'} and "
                "the policy is strict; add it, or set StrictHostKeyChecking=accept-new"
            )
        self._learn(shown)

    def _learn(self, key: bytes) -> None:
        if not self.files:
            return
        file = self.files[0]
        name = hashed(self.name) if self.hash_names else self.name
        try:
            with _appending:
                if any(line.key == key for line in self._read(self.name)):
                    return  # the same host under another name of the inventory
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
                with os.fdopen(fd, "rb+", buffering=0) as handle:
                    size = os.fstat(fd).st_size
                    unfinished = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
                    line = f"{name} {kind_of(key)} {base64.b64encode(key).decode()}\n"
                    handle.write(b"\n" * unfinished + line.encode())
        except OSError as error:
            raise HostKeyRefused(
                f"the new host key of {self.name} cannot be written to {file}: {error.strerror}"
            ) from None


@contextlib.contextmanager
def _strangers_bytes() -> Iterator[None]:
    """A certificate is read field by field, and cryptography has many names for what is wrong with one."""
    try:
        yield
    except Exception as error:
        raise HostKeyRefused(f"its host certificate cannot be read: {error}") from None


def _encoded(key: Any) -> bytes:
    text: bytes = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return base64.b64decode(text.split()[1])


def _fault(certificate: Any, host: str, now: float) -> str | None:
    """What is wrong with a certificate of a trusted authority for this host, or None."""
    try:
        certificate.verify_cert_signature()
    except InvalidSignature:
        return "has a wrong signature"
    if certificate.type != serialization.SSHCertificateType.HOST:
        return "is one for users"
    if certificate.critical_options:
        return "has critical options, and none are known for hosts"
    if not certificate.valid_after <= now < certificate.valid_before:
        return "is not valid at this time"
    names = [name.decode(errors="replace") for name in certificate.valid_principals]
    if names and not any(fnmatch.fnmatchcase(host.lower(), name.lower().replace("[", "[[]")) for name in names):
        return f"is for {', '.join(names)}"
    return None
