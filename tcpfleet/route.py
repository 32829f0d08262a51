"""The SSH connections to a host: from ssh_config and the inventory to an open, authenticated transport.

In: the inventory's `Connection`, the command's unlocked keys, somebody to ask. Out: a `Route`, or one sentence on
why there is none. The only module that knows Fabric; which host key is good, `tcpfleet.hostkeys` decides.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpfleet.errors import BadInput, Unreachable
from tcpfleet.secret import Secret

if TYPE_CHECKING:
    import fabric
    import paramiko

    from tcpfleet.inventory import Connection
    from tcpfleet.keys import Keyring
    from tcpfleet.ssh_config import SshConfig

HOST_KEY_POLICIES = {  # ssh_config's StrictHostKeyChecking; nobody is there to ask while many hosts are opened
    "yes": "strict",
    "ask": "strict",
    "accept-new": "accept-new",
    "no": "off",
    "off": "off",
}
USER_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"  # as in OpenSSH
MOST_HOPS = 16
CONNECT_TRIES = 3  # sshd's MaxStartups drops connections at random when many arrive at once


class Route:
    """The SSH connections to a host: its jump hosts, first one first, and itself.

    :param command: what carries the first of them instead of a TCP connection: ssh_config's ProxyCommand.
    :ivar hops: until they are open.
    :ivar transport: of the host, once it is open.
    """

    def __init__(self, hops: list[fabric.Connection], command: str | None) -> None:
        self.hops, self._command = hops, command
        self.transport: paramiko.Transport | None = None
        self._clients = [hop.client for hop in hops]
        self._proxy: subprocess.Popen[bytes] | None = None
        self._ours: socket.socket | None = None
        self._said = b""
        self._listener: threading.Thread | None = None

    def open(self) -> None:
        """Log in at each, one after the other."""
        if self._command:
            # Paramiko's own ProxyCommand turns for ever once the program has ended, and drops what it said.
            self._ours, its = socket.socketpair()
            with its:
                self._proxy = subprocess.Popen(
                    ["/bin/sh", "-c", "exec " + self._command],
                    stdin=its.fileno(),
                    stdout=its.fileno(),
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
            self.hops[0].connect_kwargs["sock"] = self._ours
        self.hops[-1].open()
        self.transport = self.hops[-1].transport
        self.hops = []  # Fabric's settings of each would stay in memory for as long as the host is held

    @property
    def at(self) -> fabric.Connection:
        """The first that is not open: where it went wrong."""
        return next((hop for hop in self.hops if not hop.is_connected), self.hops[-1])

    def _listen(self) -> None:
        """Keeps the end of what a ProxyCommand says, for one may say it without end."""
        assert self._proxy is not None and self._proxy.stderr is not None
        with self._proxy.stderr as pipe:
            while part := os.read(pipe.fileno(), 65536):
                self._said = (self._said + part)[-1000:]

    def proxy_said(self) -> str:
        """The last line that a ProxyCommand which ended has left, or nothing."""
        if self._proxy is None or self._listener is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._proxy.wait(0.5)
            self._listener.join(0.5)
        lines = self._said.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Also after a failed `open`, which leaves Fabric's own `close` without effect."""
        for client in reversed(self._clients):
            client.close()
        if self._ours is not None:
            self._ours.close()
        if self._proxy is not None:
            # The group too: what it has started would outlive it.
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._proxy.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._proxy.wait(2)


class _Hop(NamedTuple):
    """user and port as they were given: None leaves them to ssh_config."""

    host: str
    user: str | None = None
    port: int | None = None


def _jump(text: str) -> _Hop:
    """One of `ssh -J`: [user@]host[:port], an IPv6 address with a port in brackets, or a URI of that.

    >>> _jump("ops@[::1]:2222")
    _Hop(host='::1', user='ops', port=2222)
    """
    user, _, place = text.strip().removeprefix("ssh://").removesuffix("/").rpartition("@")
    host, _, port = place.rpartition(":")
    if not host or (host.count(":") and not host.startswith("[")):
        host, port = place, ""
    host = host.removeprefix("[").removesuffix("]")
    is_port = not port or (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536)
    if not host or host.startswith("-") or not is_port:
        raise BadInput(f"ProxyJump: {text.strip()!r:.100} is not [user@]host[:port]")
    return _Hop(host, user or None, int(port) if port else None)


def _way(
    said: SshConfig, target: _Hop, jump: str | None, command: str | None, seen: frozenset[_Hop] = frozenset()
) -> tuple[list[_Hop], str | None]:
    """All hops to `target` and the first one's ProxyCommand, from what was given or else from ssh_config.

    :raises BadInput: a jump host is none, or there is no end of them.
    """
    if jump is None and command is None:
        found = said.given(target.user, target.port).lookup(target.host)
        jump, command = found.get("proxyjump"), found.get("proxycommand")
    jump, command = _unless_none(jump), _unless_none(command)
    if not jump:
        return [target], command
    first, *others = (_jump(part) for part in jump.split(","))
    if first in seen or first[::2] == target[::2]:
        return [target], command  # `Host *` with a ProxyJump is about the jump host too
    if len(seen) > MOST_HOPS:
        raise BadInput(
            f"ProxyJump: more than {MOST_HOPS} jump hosts lead to one another, the last to {first.host:.60}"
        )
    hops, command = _way(said, first, None, None, seen | {first})
    return [*hops, *others, target], command


def route(how: Connection, connect_timeout: float, keys: Keyring) -> Route:
    import fabric

    from tcpfleet import hostkeys, ssh_config

    _quiet_paramiko()
    said = ssh_config.load(how.ssh.config_file)
    target = _Hop(how.address, how.user, how.port)
    way, command = _way(said, target, how.ssh.proxy_jump, how.ssh.proxy_command)
    hops: list[fabric.Connection] = []
    for one in way:
        arguments: dict[str, Any] = {
            "banner_timeout": connect_timeout,
            "auth_timeout": connect_timeout,
            "channel_timeout": connect_timeout,
        }
        named = os.path.expanduser(how.private_key_file) if one is target and how.private_key_file else None
        if named:
            arguments.update(key_filename=named, look_for_keys=False)
        if one is target and how.password is not None:
            arguments["password"] = how.password.reveal()
        hop = fabric.Connection(
            one.host,
            user=one.user,
            port=one.port,
            # Invoke's and Fabric's own configuration files do not apply: behaviour must not depend on the folder.
            # A new Config for each, since a Connection writes into the one that it is given.
            config=fabric.Config(ssh_config=said.given(one.user, one.port), lazy=True),
            gateway=hops[-1] if hops else False,
            connect_timeout=connect_timeout,
            connect_kwargs=arguments,
        )
        # ssh_config may name keys that are not there; one that the inventory names must be.
        files = hop.connect_kwargs.get("key_filename") or []
        hop.connect_kwargs["key_filename"] = [
            file for file in files if file == named or os.path.isfile(os.path.expanduser(file))
        ]
        _refuse_what_does_not_count(hop)
        _choose_identities(hop, connect_timeout)
        unlocked = [key for key in map(keys.unlocked, _identities(hop)) if key is not None]
        if unlocked:
            hop.connect_kwargs["pkey"] = unlocked[-1]
        asked = hop.ssh_config.get("stricthostkeychecking", "accept-new").lower()
        policy = how.ssh.host_keys or HOST_KEY_POLICIES.get(asked)
        if policy is None:
            raise BadInput(f"ssh_config for {hop.host}: StrictHostKeyChecking {asked!r} is not known")
        alias = hop.ssh_config.get("hostkeyalias")
        trust = hostkeys.Trust(
            alias or hop.host,
            22 if alias else hop.port,
            policy,
            _known_hosts(how, hop.ssh_config),
            hop.ssh_config.get("hashknownhosts", "no").lower() == "yes",
        )
        hop.client.set_missing_host_key_policy(trust)
        hop.connect_kwargs["transport_factory"] = trust.transport
        hops.append(hop)
    if command:
        first = hops[0]
        for word in (first.host, way[0].host, str(first.user)):
            if not ssh_config.TAME.fullmatch(word):
                raise BadInput(f"ProxyCommand: {word!r} would be read by a shell")
        tokens = {"%%": "%", "%h": first.host, "%n": way[0].host, "%p": str(first.port), "%r": first.user}
        command = re.sub("%.", lambda found: tokens.get(found[0], found[0]), command)
    return Route(hops, command)


def _refuse_what_does_not_count(hop: fabric.Connection) -> None:
    """:raises BadInput: ssh_config says for this hop what changes who may log in where, and is not supported."""
    certificate = hop.ssh_config.get("certificatefile")
    beside = [os.path.expanduser(file) + "-cert.pub" for file in hop.connect_kwargs["key_filename"]]
    if certificate and os.path.expanduser(certificate) not in beside:
        why = f"CertificateFile {certificate}: put it beside its key as KEY-cert.pub, where it is found"
        raise BadInput(f"ssh_config for {hop.host}: {why}")
    agent = hop.ssh_config.get("identityagent", "none")
    if agent.lower() != "none" and agent not in ("SSH_AUTH_SOCK", "$SSH_AUTH_SOCK"):
        raise BadInput(f"ssh_config for {hop.host}: IdentityAgent {agent}: set SSH_AUTH_SOCK instead")
    if _unless_none(hop.ssh_config.get("revokedhostkeys")):
        why = "RevokedHostKeys is not supported: mark the keys @revoked in known_hosts"
        raise BadInput(f"ssh_config for {hop.host}: {why}")


class _Agent:
    """ssh-agent with its keys in OpenSSH's order, for a host hears but a few of them (MaxAuthTries).

    :param files: the identities, of which the agent's are tried first.
    :param only: no others.
    :param timeout: seconds that it may take to answer.
    """

    def __init__(self, files: list[str], only: bool, timeout: float) -> None:
        self._wanted = [key for file in files if (key := _public_key(file) or _public_key(f"{file}.pub"))]
        self._only, self._timeout = only, timeout
        self._agent: paramiko.Agent | None = None

    def get_keys(self) -> list[paramiko.AgentKey]:
        """Its keys, those that are to be tried first; none where there is no agent.

        :raises Unreachable: it is silent, or no agent.
        """
        import paramiko

        place = os.environ.get("SSH_AUTH_SOCK", "")
        with socket.socket(socket.AF_UNIX) as probe:  # Paramiko would wait for ever
            probe.settimeout(self._timeout)
            try:
                probe.connect(place)
                probe.sendall(b"\0\0\0\1\x0b")  # SSH_AGENTC_REQUEST_IDENTITIES
                head = probe.recv(5)
            except TimeoutError:
                raise Unreachable(f"the ssh-agent at {place} does not answer") from None
            except OSError:
                return []
        if head[4:] != b"\x0c":
            raise Unreachable(f"what listens at {place} is no ssh-agent")
        self._agent = paramiko.Agent()
        keys = sorted(self._agent.get_keys(), key=self._rank)
        return [key for key in keys if self._rank(key) < len(self._wanted) or not self._only]

    def _rank(self, key: paramiko.AgentKey) -> int:
        name = key.get_base64()
        return self._wanted.index(name) if name in self._wanted else len(self._wanted)

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()


def _choose_identities(hop: fabric.Connection, connect_timeout: float) -> None:
    """IdentitiesOnly and IdentityAgent; files that are public keys say which of the agent's keys is meant."""
    files = hop.connect_kwargs["key_filename"]
    hop.connect_kwargs["key_filename"] = [file for file in files if not _public_key(file)]
    only = hop.ssh_config.get("identitiesonly", "no") == "yes"
    named = files or _identities(hop)
    if only and files:
        hop.connect_kwargs["look_for_keys"] = False
    if hop.ssh_config.get("identityagent", "").lower() == "none":
        hop.connect_kwargs["allow_agent"] = False
    elif os.environ.get("SSH_AUTH_SOCK"):
        hop.client._agent = _Agent(
            named, only, connect_timeout
        )  # where Paramiko keeps the one that it makes otherwise


def _public_key(file: str) -> str | None:
    """The base64 of a public key in a file of one; None: it holds something else, or cannot be read."""
    try:
        words = Path(file).expanduser().read_bytes()[:16384].decode("ascii", "replace").split()
    except OSError:
        return None
    return words[1] if len(words) > 1 and words[0].startswith(("ssh-", "ecdsa-", "sk-")) else None


@functools.cache
def _quiet_paramiko() -> None:
    """Its errors reach us as exceptions."""
    import logging

    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False


def _known_hosts(how: Connection, ssh_config: Mapping[str, str]) -> list[Path]:
    """The user's files, of which the first is written to, and the machine's."""
    for file in how.ssh.known_hosts:
        if "%" in file or "${" in file:
            raise BadInput(f"UserKnownHostsFile {file}: tokens and variables count in ssh_config only")
    own = how.ssh.known_hosts or shlex.split(ssh_config.get("userknownhostsfile", USER_KNOWN_HOSTS))
    everyones = shlex.split(
        ssh_config.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2")
    )
    return [Path(file).expanduser() for file in (*own, *everyones) if file.lower() != "none"]


def _identities(hop: fabric.Connection) -> list[str]:
    """The private keys that Paramiko will try for this hop."""
    files = [os.path.expanduser(file) for file in hop.connect_kwargs.get("key_filename") or []]
    if hop.connect_kwargs.get("look_for_keys", True):
        files += [os.path.expanduser(f"~/.ssh/id_{kind}") for kind in ("rsa", "ecdsa", "ed25519")]
    return [file.removesuffix("-cert.pub") for file in files]


def _unless_none(setting: str | None) -> str | None:
    """OpenSSH's word for "no proxy, whatever ssh_config says" is none."""
    return None if setting is None or setting.lower() == "none" else setting


def connect(how: Connection, connect_timeout: float, keys: Keyring, ask: Callable[[str], Secret]) -> Route:
    """An open route; every way in which that can fail becomes one sentence of Unreachable."""
    import paramiko

    from tcpfleet.hostkeys import HostKeyRefused
    from tcpfleet.keys import is_encrypted

    attempt = 1
    while True:
        begun = time.monotonic()
        try:
            way_in = route(how, connect_timeout, keys)
        except HostKeyRefused as error:
            raise Unreachable(str(error)) from None
        except (ValueError, paramiko.SSHException) as error:  # a port or number that is none, among others
            raise BadInput(f"ssh_config for {how.address}: {os_reason(error)}") from None
        try:
            way_in.open()
            return way_in
        except Exception as error:  # Paramiko passes on whatever it stumbled over in what a stranger sent
            is_stalled = time.monotonic() - begun >= connect_timeout  # a silent host costs its timeout once
            reason = _why_not(error, way_in, connect_timeout, is_stalled=is_stalled)
            retry = _worth_a_retry(error) and not is_stalled
            # Paramiko tells of an encrypted key only if nothing else has failed after it.
            identities = _identities(way_in.at) if _is_about_the_login(error, way_in.at) else []
        finally:
            if way_in.transport is None:
                way_in.close()
        locked = [path for path in identities if is_encrypted(path) and keys.unlocked(path) is None]
        if locked:
            keys.unlock(locked[0], ask)
        elif retry and attempt < CONNECT_TRIES:
            time.sleep(random.uniform(0.2, 0.6) * attempt)  # noqa: S311 - jitter, not a secret
            attempt += 1
        else:
            raise Unreachable(reason)


def _is_about_the_login(error: Exception, at: fabric.Connection) -> bool:
    """Also where Paramiko's last word is about the form of a key file, after each key was refused."""
    import paramiko

    from tcpfleet.hostkeys import HostKeyRefused

    if isinstance(error, HostKeyRefused) or not isinstance(error, paramiko.SSHException):
        return False
    transport = at.client.get_transport()
    asked = transport is not None and transport.initial_kex_done and transport.is_active()
    return asked or isinstance(error, paramiko.AuthenticationException)


def _was_thrown_out(at: fabric.Connection) -> bool:
    """Paramiko then says that there is no session."""
    transport = at.client.get_transport()
    if transport is None or transport.auth_handler is None or transport.is_active():
        return False
    return not transport.is_authenticated()


def _why_not(error: Exception, route: Route, connect_timeout: float, *, is_stalled: bool) -> str:
    import paramiko
    from paramiko.ssh_exception import NoValidConnectionsError

    from tcpfleet.hostkeys import HostKeyRefused

    at = route.at
    where = f"[{at.host}]:{at.port}" if ":" in at.host else f"{at.host}:{at.port}"
    if isinstance(error, HostKeyRefused):
        return str(error)
    if isinstance(error, paramiko.SSHException) and _was_thrown_out(at):
        return (
            f"{where} ended the connection during the login of user {at.user}, as after too many keys "
            "(MaxAuthTries): name the right one, with IdentitiesOnly if ssh-agent has many"
        )
    if _is_about_the_login(error, at):
        refused = isinstance(error, paramiko.AuthenticationException)
        told = os_reason(error) if refused else "no key was accepted"
        # Without a key to try nobody has asked the host what it takes.
        might = "password" in getattr(error, "allowed_types", () if refused else ("password",))
        hint = "; give a password with --ask-pass" if might and "password" not in at.connect_kwargs else ""
        return f"{where} refused the login of user {at.user}: {told}{hint}"
    if isinstance(error, NoValidConnectionsError):
        return f"no connection to {where}: {os_reason(next(iter(error.errors.values())))}"
    if isinstance(error, paramiko.ChannelException):
        return f"no connection to {where} through {at.gateway.host}: {error.text}"
    if isinstance(error, socket.gaierror):
        return f"the name {at.host} does not resolve: {error.strerror}"
    if isinstance(error, TimeoutError):
        return f"no answer from {where} in {connect_timeout:g} s"
    if isinstance(error, FileNotFoundError):
        return f"cannot read {error.filename}"
    said, reason = route.proxy_said(), os_reason(error)
    if is_stalled and reason in ("No existing session", "Error reading SSH protocol banner"):  # Paramiko's words
        reason = f"the handshake was not done in {connect_timeout:g} s"
    return f"SSH to {where} failed: {reason[:300]}" + (f"; its ProxyCommand said: {said}" if said else "")


def _worth_a_retry(error: BaseException) -> bool:
    """sshd's MaxStartups closes the connection before or at the banner; nothing has run yet."""
    return isinstance(error, (EOFError, ConnectionResetError)) or "banner" in str(error).lower()


def os_reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, EOFError):
        return "the connection was closed"
    return " ".join(str(error).split()) or type(error).__name__
