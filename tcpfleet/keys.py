"""Private keys that Paramiko cannot read by itself: encrypted ones, and those in PKCS#8, as OpenSSL makes them.

In: paths of private keys, and somebody to ask. Out: keys for Paramiko. Unlocking takes a good tenth of a second on
purpose, so a key is unlocked once per command and not once per host.
"""

from __future__ import annotations

import binascii
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tcpfleet.errors import Unreachable
from tcpfleet.secret import Secret

if TYPE_CHECKING:
    import paramiko

_MAGIC = b"openssh-key-v1\0"  # PROTOCOL.key of OpenSSH; the cipher's name follows


def is_encrypted(path: str) -> bool:
    """Whether a private key needs a passphrase; False also for what is no key or cannot be read."""
    data = _content(path)
    if b"BEGIN OPENSSH PRIVATE KEY" not in data:
        return b"Proc-Type: 4,ENCRYPTED" in data or b"BEGIN ENCRYPTED PRIVATE KEY" in data
    try:
        body = binascii.a2b_base64(b"".join(line for line in data.splitlines() if not line.startswith(b"-")))
    except binascii.Error:
        return False
    return body.startswith(_MAGIC) and not body.startswith(_MAGIC + b"\0\0\0\4none")


def _content(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError:
        return b""


class Keyring:
    """The keys of one command; threads share it."""

    def __init__(self) -> None:
        self._keys: dict[str, paramiko.PKey | Unreachable] = {}
        self._lock = threading.Lock()

    def unlocked(self, path: str) -> paramiko.PKey | None:
        """The key, if it was unlocked before or is one in PKCS#8 without a passphrase."""
        key = self._keys.get(path)
        if key is None and b"BEGIN PRIVATE KEY" in _content(path):
            with self._lock:
                key = self._keys[path] = self._keys.get(path) or _read(path, None)
        return None if isinstance(key, Unreachable) else key

    def unlock(self, path: str, ask: Callable[[str], Secret]) -> None:
        """Ask for a key's passphrase, once, whoever comes first.

        :raises Unreachable: it is wrong, now or the first time, or nobody can be asked.
        """
        with self._lock:
            if path not in self._keys:
                try:
                    self._keys[path] = _read(path, ask(f"passphrase for {path}: "))
                except EOFError:
                    self._keys[path] = Unreachable(
                        f"the private key {path} is encrypted: load it into ssh-agent, or run where its "
                        "passphrase can be asked for"
                    )
            key = self._keys[path]
        if isinstance(key, Unreachable):
            raise Unreachable(str(key))


def _read(path: str, phrase: Secret | None) -> paramiko.PKey | Unreachable:
    import paramiko

    file = os.path.expanduser(path)
    try:
        text, password = _without_pkcs8(_content(path), phrase.reveal() if phrase else None)
    except (TypeError, ValueError):
        text, password = "", None
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            key = kind.from_private_key(io.StringIO(text), password=password)
        except (paramiko.SSHException, ValueError):
            continue  # of another kind, or wrong
        if os.path.isfile(file + "-cert.pub"):
            key.load_certificate(file + "-cert.pub")
        return key
    if phrase is None:
        return Unreachable(f"the private key {path} is damaged, or of a kind that is not supported")
    return Unreachable(f"the passphrase for {path} is wrong, or the key is damaged")


def _without_pkcs8(content: bytes, password: str | None) -> tuple[str, str | None]:
    """A key's text in a form that Paramiko reads, and the passphrase that it still needs.

    :raises TypeError, ValueError: as `load_pem_private_key`.
    """
    if b"BEGIN PRIVATE KEY" not in content and b"BEGIN ENCRYPTED PRIVATE KEY" not in content:
        return content.decode("ascii", "replace"), password
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as form

    try:
        key = form.load_pem_private_key(content, None if password is None else password.encode())
        text = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    return text.decode("ascii"), None
