"""Logins over SSH, against a real sshd of this machine: host keys, keys, jump hosts, and what a refusal says."""

import contextlib
import fcntl
import gc
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fabric
import paramiko
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tcpfleet import link, ssh_config
from tcpfleet.errors import BadInput, TcpfleetError, Unreachable
from tcpfleet.fleet import Fleet
from tcpfleet.hostkeys import hashed
from tcpfleet.inventory import Host
from tcpfleet.inventory.connection import make_connection
from tcpfleet.secret import Secret
from tests.conftest import ROOT
from tests.relay import Relay
from tests.sshd import LocalSshd, keygen, public, stranger

pytestmark = pytest.mark.skipif(not Path("/usr/sbin/sshd").exists(), reason="there is no sshd here")
full = pytest.mark.full
HOST = Host("h", {}, ())


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSshd]:
    folder = tmp_path_factory.mktemp("sshd")
    keygen("-f", folder / "ca")
    keygen("-f", folder / "host_ed25519")
    keygen("-s", folder / "ca", "-h", "-I", "h", "-n", "127.0.0.1", folder / "host_ed25519.pub")
    options = (f"HostCertificate {folder}/host_ed25519-cert.pub", f"TrustedUserCAKeys {folder}/ca.pub")
    with LocalSshd(folder, *options, kinds=("ed25519", "rsa", "ecdsa")) as running:
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without keys, agent and settings."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    ssh_config._load.cache_clear()  # ~/.ssh/config is read once per command
    return home


def login(
    sshd: LocalSshd, ssh: str = "", ask: Any = link.nobody_to_ask, timeout: float = 5.0, **settings: Any
) -> dict[str, Any]:
    """One login and a ping; returns what the agent said of itself.

    :param ssh: ansible_ssh_common_args.
    """
    given = {
        "ansible_host": "127.0.0.1",
        "ansible_port": sshd.port,
        "ansible_ssh_private_key_file": str(sshd.key),
        "ansible_ssh_common_args": ssh,
    } | settings
    how = make_connection("h", {f"{name}": value for name, value in given.items() if value})
    session = link.open_session(HOST, how, connect_timeout=timeout, ask=ask)
    try:
        assert session.call("ping", {})["ping"] == "pong"
        return session.hello
    finally:
        session.close()


def known(path: Path, *lines: str, policy: str = "yes") -> str:
    path.write_bytes("".join(lines).encode())
    return f"-o UserKnownHostsFile={path} -o StrictHostKeyChecking={policy}"


# -- host keys ---------------------------------------------------------------------------------------------

# {name} is [127.0.0.1]:PORT, {hashed} that name hashed, {key} the server's, {other} a stranger's, {ca} the
# authority's that signed the server's certificate.
GOOD = {
    "plain": "{name} {key}\n",
    "hashed": "{hashed} {key}\n",
    "pattern": "[127.0.0.*]:* {key}\n",
    "the name without its port": "127.0.0.1 {key}\n",
    "among damaged lines": "x\n{name} ssh-ed25519 AAA!\n|1|x|y {key}\n@what {name} {key}\n\0\n{name} {key}\n",
    "only its rsa key is known": "{name} {rsa}\n",
    "only its ecdsa key is known": "{name} {ecdsa}\n",
    "a host certificate": "@cert-authority [127.0.0.1]:* {ca}\n",
    "a certificate beside a stale key of a pattern": "@cert-authority * {ca}\n@cert-authority * {other}\n",
    "the key of an unknown authority's certificate": "@cert-authority * {other}\n{name} {key}\n",
    "somebody else's revoked key": "@revoked * {other}\n{name} {key}\n",
}
BAD = {
    "nothing is known": ("", "is not in .* and the policy is strict"),
    "in another line's comment": ("x {other} \u2028{name} {key}\ny {other} \r{name} {key}\n", "is not in"),
    "changed": ("{name} {other}\n", "has changed: .*known:1 has SHA256:.*nothing was sent"),
    "changed, hashed": ("{hashed} {other}\n", "has changed"),
    "changed, pattern": ("[127.0.0.*]:* {other}\n", "has changed"),
    "excluded by the pattern": ("*,!{name},!127.0.0.1 {key}\n", "is not in"),
    "revoked": ("{name} {key}\n@revoked * {key}\n", "is @revoked at .*known:2"),
    "authority revoked": ("@cert-authority * {ca}\n@revoked * {ca}\n", "certificate authority .* is @revoked"),
    "another authority": ("@cert-authority * {other}\n", "shows no host certificate of the authority at"),
}


def filled(sshd: LocalSshd, text: str, stranger: Path) -> str:
    if not stranger.exists():
        keygen("-f", stranger)
    name = f"[127.0.0.1]:{sshd.port}"
    keys = {kind: public(sshd.folder / f"host_{kind}") for kind in ("ed25519", "rsa", "ecdsa")}
    key = keys.pop("ed25519")
    return text.format(
        name=name, hashed=hashed(name), key=key, other=public(stranger), ca=public(sshd.folder / "ca"), **keys
    )


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_a_known_host_key(sshd: LocalSshd, tmp_path: Path, text: str) -> None:
    assert login(sshd, known(tmp_path / "known", filled(sshd, text, tmp_path / "stranger")))["uid"] == os.getuid()


# Policies under which it is as bad as that; all of them where nothing is said.
ONLY = {
    "nothing is known": ("yes",),
    "in another line's comment": ("yes",),
    "excluded by the pattern": ("yes",),
    "another authority": ("yes", "accept-new"),
}


BAD_UNDER = [
    pytest.param(
        name, policy, marks=() if policy == "accept-new" or name in ("changed", "nothing is known") else full
    )
    for name in BAD
    for policy in ONLY.get(name, ("yes", "accept-new", "no"))
]


@pytest.mark.parametrize(("name", "policy"), BAD_UNDER)
def test_a_bad_host_key_gets_no_login(sshd: LocalSshd, tmp_path: Path, name: str, policy: str) -> None:
    """Nothing of a login, no name, password or signature, is sent: sshd's own log tells."""
    text, said = BAD[name]
    before, file = len(sshd.log), tmp_path / "known"
    args = known(file, filled(sshd, text, tmp_path / "stranger"), policy=policy)
    learnt = file.read_text()
    with pytest.raises(Unreachable, match=said):
        login(sshd, args, ansible_password="canary-password")
    time.sleep(0.05)
    log = sshd.log[before:]
    assert "expecting SSH2_MSG_NEWKEYS" in log and "userauth-request" not in log
    assert file.read_text() == learnt


def test_an_accepted_sshd_log_has_the_words_that_the_test_above_looks_for(sshd: LocalSshd, tmp_path: Path) -> None:
    before = len(sshd.log)
    login(sshd, known(tmp_path / "known", sshd.known()))
    assert "expecting SSH2_MSG_NEWKEYS" in sshd.log[before:] and "userauth-request" in sshd.log[before:]


@pytest.mark.parametrize("policy", ["accept-new", "no"])
@pytest.mark.parametrize("hashing", ["no", "yes"])
def test_a_new_host_key(sshd: LocalSshd, tmp_path: Path, home: Path, policy: str, hashing: str) -> None:
    (home / ".ssh" / "config").write_text(
        f"HashKnownHosts {hashing}\nUserKnownHostsFile ~/.ssh/mine ~/.ssh/other\n"
    )
    mine = home / ".ssh" / "mine"
    mine.write_text("# no newline at its end")
    for _ in range(2):
        login(sshd, f"-o StrictHostKeyChecking={policy} -F {home}/.ssh/config")
    lines = mine.read_text().splitlines()
    assert lines[0] == "# no newline at its end" and not (home / ".ssh" / "other").exists()
    assert len(lines) == (2 if policy == "accept-new" else 1)
    if policy == "accept-new":
        name = f"[127.0.0.1]:{sshd.port}"
        assert lines[1].startswith("|1|" if hashing == "yes" else name + " ")
        found = subprocess.run(
            ["ssh-keygen", "-F", name, "-f", mine], stdout=subprocess.PIPE, text=True, check=True
        )
        assert public(sshd.folder / "host_ed25519") in found.stdout  # OpenSSH reads what was written


def test_a_new_host_key_that_cannot_be_written_down(sshd: LocalSshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable, match=r"cannot be (read|written to) .*known: Not a directory|cannot read"):
        login(sshd, f"-o UserKnownHostsFile={tmp_path}/file/known")


CERTIFICATES = {
    "for another name": (("-n", "10.0.0.1"), "is for 10.0.0.1"),
    "for a pattern of names": (("-n", "127.0.0.?"), None),
    "for every name": ((), None),
    "expired": (("-n", "127.0.0.1", "-V", "20200101:20200102"), "is not valid at this time"),
    "not valid yet": (("-n", "127.0.0.1", "-V", "+1d:+2d"), "is not valid at this time"),
}


@pytest.mark.parametrize(("words", "said"), CERTIFICATES.values(), ids=CERTIFICATES)
def test_host_certificates(tmp_path: Path, words: tuple[str, ...], said: str | None) -> None:
    folder = tmp_path / "sshd"
    folder.mkdir()
    keygen("-f", folder / "ca")
    keygen("-f", folder / "host_ed25519")
    keygen("-s", folder / "ca", "-h", "-I", "h", *words, folder / "host_ed25519.pub")
    with LocalSshd(folder, f"HostCertificate {folder}/host_ed25519-cert.pub") as sshd:
        args = known(tmp_path / "known", f"@cert-authority * {public(folder / 'ca')}\n")
        if said is None:
            login(sshd, args)
            return
        with pytest.raises(Unreachable, match=said):
            login(sshd, args)
        assert "userauth-request" not in sshd.log


def test_an_alias_of_the_host_key(sshd: LocalSshd, tmp_path: Path, home: Path) -> None:
    config = home / ".ssh" / "config"
    config.write_text("Host *\n  HostKeyAlias balanced\n")
    login(sshd, known(tmp_path / "known", sshd.known(name="balanced")) + f" -F {config}")


# -- who logs in -------------------------------------------------------------------------------------------


def trusted(sshd: LocalSshd, tmp_path: Path) -> str:
    names = f"[127.0.0.1]:{sshd.port},[::1]:{sshd.port}"
    return known(tmp_path / "known", sshd.known(name=names))


def copied(sshd: LocalSshd, to: Path, phrase: str = "") -> Path:
    shutil.copy(sshd.key, to)
    if phrase:
        subprocess.run(["ssh-keygen", "-q", "-p", "-f", to, "-P", "", "-N", phrase], check=True)
    return to


@pytest.mark.parametrize("form", ["named", "default", "ssh_config"])
def test_an_encrypted_key_asks_for_its_passphrase(sshd: LocalSshd, tmp_path: Path, home: Path, form: str) -> None:
    key = copied(sshd, home / ".ssh" / ("id_ed25519" if form == "default" else "mine"), "right phrase")
    config = home / ".ssh" / "config"
    config.write_text(f"IdentityFile ~/.ssh/mine\nIdentityFile {home}/missing\n" if form == "ssh_config" else "\n")
    args = trusted(sshd, tmp_path) + f" -F {config}"
    file = str(key) if form == "named" else ""
    asked: list[str] = []

    def ask(question: str) -> Secret:
        asked.append(question)
        return Secret("right phrase")

    login(sshd, args, ask, ansible_ssh_private_key_file=file)
    assert asked == [f"passphrase for {key}: "]
    with pytest.raises(Unreachable, match="is encrypted: load it into ssh-agent"):
        login(sshd, args, ansible_ssh_private_key_file=file)
    with pytest.raises(Unreachable, match=r"passphrase for .* is wrong"):
        login(sshd, args, lambda question: Secret("wrong"), ansible_ssh_private_key_file=file)


PKCS8 = {
    "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("phrase", ["", "right phrase"])
@pytest.mark.parametrize("kind", PKCS8)
def test_a_key_as_openssl_makes_it(sshd: LocalSshd, tmp_path: Path, home: Path, kind: str, phrase: str) -> None:
    """OpenSSH reads PKCS#8, Paramiko does not: "no key was accepted", or "the passphrase is wrong"."""
    made = PKCS8[kind]()
    how = serialization.BestAvailableEncryption(phrase.encode()) if phrase else serialization.NoEncryption()
    key = home / ".ssh" / "mine"
    key.write_bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
    public = made.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    authorized = sshd.key.parent / "authorized"
    before = authorized.read_bytes()
    authorized.write_bytes(public + b"\n")
    try:
        args = trusted(sshd, tmp_path)
        login(sshd, args, lambda question: Secret("right phrase"), ansible_ssh_private_key_file=str(key))
        if phrase:
            with pytest.raises(Unreachable, match=r"passphrase for .* is wrong"):
                login(sshd, args, lambda question: Secret("wrong"), ansible_ssh_private_key_file=str(key))
        else:
            key.write_text("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n")
            with pytest.raises(Unreachable, match="no key was accepted"):
                login(sshd, args, ansible_ssh_private_key_file=str(key))
    finally:
        authorized.write_bytes(before)


def test_a_fleet_asks_once_and_in_the_thread_that_can_be_interrupted(
    sshd: LocalSshd, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[threading.Thread] = []
    key = str(copied(sshd, home / ".ssh" / "mine", "right phrase"))
    given = {"ansible_host": "127.0.0.1", "ansible_port": sshd.port, "ansible_ssh_private_key_file": key}
    given["ansible_ssh_common_args"] = trusted(sshd, tmp_path)
    hosts = [Host(f"h{number}", {}, ()) for number in range(3)]
    for phrase, status in (("right phrase", "ok"), ("wrong", "unreachable")):
        asked.clear()

        def ask(question: str, phrase: str = phrase) -> Secret:
            asked.append(threading.current_thread())
            return Secret(phrase)

        monkeypatch.setattr("tcpfleet.fleet.ask_user", ask)
        with Fleet(hosts, lambda host: make_connection(host.name, given)) as fleet:
            outcomes = fleet.run(lambda session: session.call("ping", {})["ping"])
        assert {outcome.status for outcome in outcomes.values()} == {status}
        assert asked == [threading.main_thread()]


@pytest.mark.parametrize(("typed", "code"), [("right phrase\n", 0), ("wrong\n", 4), ("\x03", 130)])
def test_a_prompt_on_a_terminal(sshd: LocalSshd, tmp_path: Path, home: Path, typed: str, code: int) -> None:
    """Also one that is left by Ctrl-C: the terminal shows again what is typed."""
    key = copied(sshd, home / ".ssh" / "mine", "right phrase")
    host = {"ansible_host": "127.0.0.1", "ansible_port": sshd.port, "ansible_ssh_private_key_file": str(key)}
    host["ansible_ssh_common_args"] = trusted(sshd, tmp_path)
    hosts = tmp_path / "hosts.yml"
    hosts.write_text(yaml.safe_dump({"all": {"hosts": {"h1": host, "h2": host}}}))
    ours, its = pty.openpty()
    inv = subprocess.Popen(
        [sys.executable, "-m", "invoke", "ping", "--inventory", str(hosts)],
        cwd=ROOT,
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        shown, deadline = b"", time.monotonic() + 30
        while b"passphrase for" not in shown and select.select([ours], [], [], 30)[0]:
            shown += os.read(ours, 1000)
        assert b"passphrase for" in shown
        while time.monotonic() < deadline and termios.tcgetattr(its)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(ours, typed.encode())
        out, err = inv.communicate(timeout=60)
        assert inv.returncode == code, out + err
        assert termios.tcgetattr(its)[3] & termios.ECHO and "phrase\n" not in out + err
        assert out.count(": ok, Python") == (2 if code == 0 else 0)
    finally:
        inv.kill()
        os.close(ours)
        os.close(its)


@pytest.fixture
def agent(sshd: LocalSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ssh-agent with seven strangers' keys and, last, the one that opens; sshd hears six."""
    place = str(tmp_path / "agent")
    with subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.DEVNULL) as process:
        try:
            while not os.path.exists(place):
                time.sleep(0.01)
            monkeypatch.setenv("SSH_AUTH_SOCK", place)
            for number in range(7):
                keygen("-f", tmp_path / f"other{number}")
                subprocess.run(["ssh-add", "-q", tmp_path / f"other{number}"], check=True)
            subprocess.run(["ssh-add", "-q", sshd.key], check=True)
            yield
        finally:
            process.terminate()


# {t} is the folder; `mine` there is encrypted and its public half lies beside it.
IDENTITIES = {
    "a key": ("IdentitiesOnly yes\nIdentityFile {t}/mine\n", None),
    "its public half": ("IdentitiesOnly yes\nIdentityFile {t}/mine.pub\n", None),
    "the second of two": ("IdentitiesOnly yes\nIdentityFile {t}/other3\nIdentityFile {t}/mine\n", None),
    "the second of two public halves": (
        "IdentitiesOnly yes\nIdentityFile {t}/other3.pub\nIdentityFile {t}/mine.pub\n",
        None,
    ),
    "it holds none of the user's own": ("IdentitiesOnly yes\n", "refused the login"),
    "a key, and others may be tried": ("IdentityFile {t}/mine\n", None),
    "none is named": ("\n", r"ended the connection during the login of user \w+, as after too many keys"),
    "a default key": ("default", None),
}


@pytest.mark.parametrize(("config", "said"), IDENTITIES.values(), ids=IDENTITIES)
def test_which_of_an_agents_many_keys(
    sshd: LocalSshd, tmp_path: Path, home: Path, agent: None, config: str, said: str | None
) -> None:
    """The one that is meant is tried before sshd has had too many; nobody is asked."""
    if config == "default":
        (home / ".ssh/id_ed25519.pub").write_text(sshd.key.with_suffix(".pub").read_text())
        config = "\n"
    copied(sshd, tmp_path / "mine", "phrase")
    (tmp_path / "mine.pub").write_text(sshd.key.with_suffix(".pub").read_text())
    (home / ".ssh/config").write_text(config.format(t=tmp_path))
    if said is None:
        login(sshd, trusted(sshd, tmp_path), ansible_ssh_private_key_file="")
    else:
        with pytest.raises(Unreachable, match=said):
            login(sshd, trusted(sshd, tmp_path), ansible_ssh_private_key_file="")


@pytest.mark.parametrize(("says", "said"), [(b"", "does not answer"), (b"\0\0\0\5?????", "is no ssh-agent")])
def test_an_agent_that_is_none(
    sshd: LocalSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bytes, said: str
) -> None:
    """It is asked when no file has opened the host, and does not hold up the command."""
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent"))
        listener.listen()
        with stranger(listener, says):
            login(sshd, trusted(sshd, tmp_path))
            with pytest.raises(Unreachable, match=said):
                login(sshd, trusted(sshd, tmp_path), timeout=1, ansible_ssh_private_key_file="")


def test_an_agent_holds_the_key(sshd: LocalSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = copied(sshd, tmp_path / "mine", "phrase")
    place = str(tmp_path / "agent")
    with subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.DEVNULL) as agent:
        try:
            while not os.path.exists(place):
                time.sleep(0.01)
            monkeypatch.setenv("SSH_AUTH_SOCK", place)
            subprocess.run(["ssh-add", "-q", sshd.key], check=True)
            login(sshd, trusted(sshd, tmp_path), ansible_ssh_private_key_file="")
            login(sshd, trusted(sshd, tmp_path), ansible_ssh_private_key_file=str(key))  # nobody was asked
        finally:
            agent.terminate()


def test_a_user_certificate(sshd: LocalSshd, tmp_path: Path) -> None:
    import getpass

    for kind in ("ed25519", "rsa", "ecdsa"):
        key = tmp_path / kind
        keygen("-t", kind, "-f", key)
        with pytest.raises(Unreachable, match="refused the login"):
            login(sshd, trusted(sshd, tmp_path), ansible_ssh_private_key_file=str(key))
        keygen("-s", sshd.folder / "ca", "-I", "me", "-n", getpass.getuser(), key.with_suffix(".pub"))
        login(sshd, trusted(sshd, tmp_path), ansible_ssh_private_key_file=str(key))


# -- the way there -----------------------------------------------------------------------------------------

WAYS = {
    "IPv6": {"ansible_host": "::1"},
    "a jump host": "-o ProxyJump=127.0.0.1:{port}",
    "a chain of jump hosts, IPv6 among them": "-o ProxyJump=127.0.0.1:{port},[::1]:{port},{user}@localhost:{port}",
    "ProxyCommand": "-o 'ProxyCommand={ssh} -W %h:%p 127.0.0.1'",
    "ProxyCommand that is chatty": "-o 'ProxyCommand={ssh} -v -W %h:%p 127.0.0.1'",
    "no ssh_config": "-F none",
    "none": "-o ProxyJump=none -F {config}",
    "ProxyJump of ssh_config": "-F {config}",
    "ProxyCommand of ssh_config": "-F {config}2",
    "~/.ssh/config": "",
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_ways_to_a_host(sshd: LocalSshd, tmp_path: Path, home: Path, way: str | dict[str, str]) -> None:
    import getpass

    copied(sshd, home / ".ssh" / "id_ed25519")  # a jump host gets the user's own keys
    config = home / ".ssh" / "config"
    ssh = f"ssh -F none -i {sshd.key} -p {sshd.port} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    config.write_text(f"Host *\n  ProxyJump {'x' if way == WAYS['none'] else f'localhost:{sshd.port}'}\n")
    config.with_name("config2").write_text(f"Host *\n  ProxyCommand {ssh} -W %h:%p 127.0.0.1\n")
    names = ",".join(f"[{name}]:{sshd.port}" for name in ("127.0.0.1", "::1", "localhost"))
    args = known(tmp_path / "known", sshd.known(name=names))
    if isinstance(way, str):
        args += " " + way.format(port=sshd.port, user=getpass.getuser(), config=config, ssh=ssh)
    login(sshd, args, **(way if isinstance(way, dict) else {}))


# What is in ~/.ssh/config and ~/.ssh/more, where `h` is a name for the host; {port}, {key}.
SETTINGS = {
    "Include": ("Include more\n", "Host h\n  Port {port}\n  IdentityFile {key}\n"),
    "Include within a Host": ("Host h\n  Include m*e\n  Port {port}\n", "  IdentityFile {key}\n"),
    "what follows an Include is about what it stands under": (
        "Host h\n  Port {port}\nHost *\n  Include more\n  IdentityFile {key}\n",
        "Host other\n  Port 1\n",
    ),
    "a jump host as a URI": (
        "Host h\n  Port {port}\n  ProxyJump ssh://{user}@127.0.0.1:{port}\nHost *\n  IdentityFile {key}\n",
        "",
    ),
    "a host of an included file under a Host": (
        "Host h\n  Include more\nHost *\n  IdentityFile {key}\n",
        "Host x\n  Port 1\nHost h\n  Port {port}\n",
    ),
    "Match": ("Match originalhost h user {user}\n  Port {port}\nMatch all\n  IdentityFile {key}\n", ""),
    "Match exec, which reads nothing that is typed": (
        'Match exec "! read x; test %n = h"\n  Port {port}\n  IdentityFile {key}\n',
        "",
    ),
    "HostKeyAlias": ("Host h\n  Port {port}\n  IdentityFile {key}\n  HostKeyAlias fleet\n", ""),
    "tokens": ("Host h\n  Port {port}\n  IdentityFile %d/.ssh/key-%h\n", ""),
}


@pytest.mark.parametrize(("config", "more"), SETTINGS.values(), ids=SETTINGS)
def test_settings_of_ssh_config(sshd: LocalSshd, tmp_path: Path, home: Path, config: str, more: str) -> None:
    import getpass

    copied(sshd, home / ".ssh" / "key-127.0.0.1")
    told = {"port": sshd.port, "key": sshd.key, "user": getpass.getuser()}
    (home / ".ssh/config").write_text(config.format(**told) + "Host h\n  HostName 127.0.0.1\n")
    (home / ".ssh/more").write_text(more.format(**told))
    args = known(tmp_path / "known", sshd.known(), sshd.known(name="fleet"))
    login(sshd, args, ansible_host="h", ansible_port=None, ansible_ssh_private_key_file=None)


# Lines for a host h, and what OpenSSH makes of them (`ssh -G`): a user, a port and so on. {more} is another file.
SAID: dict[str, tuple[str, dict[str, str]]] = {
    "a comment": (
        'Port 33 # not 22\nUser "bob" #\nHostName a#b\n',
        {"port": "33", "user": "bob", "hostname": "a#b"},
    ),
    "a comment after Host": ("Host x # h\n  Port 33\n", {"port": "22"}),
    "quotes": ('User \'a "b\'\nHostKeyAlias a\\ b"c d"\n', {"user": 'a "b', "hostkeyalias": "a bc d"}),
    "a backslash": ("User dom\\me\n", {"user": "dom\\me"}),
    "brackets are no pattern": ("Host [a-z]\n  Port 33\n", {"port": "22"}),
    "an excluded host": ("Host * !h\n  Port 33\n", {"port": "22"}),
    "Match in capitals": ("MATCH HOST other\n  Port 33\nMatch ALL\n  User bob\n", {"port": "22", "user": "bob"}),
    "Match with =": ("Match host=H,x\n  Port 33\n", {"port": "33"}),
    "Match !": ("Match !host h\n  Port 33\nMatch !user x host !x,*\n  User bob\n", {"port": "22", "user": "bob"}),
    "Match user is about who logs in": ("Match user deploy\n  Port 33\n", {"port": "33", "user": "deploy"}),
    "Match final": ("HostName foo\nMatch final host foo\n  Port 33\n", {"port": "33", "hostname": "foo"}),
    "Host in a file under another Host": (
        "Host h\n  Include {more}\n  User bob\nHost x\n  Include {more}\n",
        {"port": "33", "user": "bob", "hostkeyalias": "more"},
    ),
    "Host in a file under another Host that does not hold": ("Host x\n  Include {more}\n", {"port": "22"}),
    "a percent sign": ("HostName %h%%1.x\n", {"hostname": "h%1.x"}),
    "known_hosts": (
        "UserKnownHostsFile /%h/%p ${{HOME}}/k '/c d'\n",
        {"userknownhostsfile": "/h/22 {home}/k /c d"},
    ),
    "the first way counts": ("ProxyCommand none\nProxyJump gate\n", {"proxyjump": ""}),
    "the first jump host counts": ("ProxyJump bob@gate:33\nProxyCommand x\n", {"proxyjump": "bob@gate:33"}),
    "yes": ("HashKnownHosts TRUE\nIdentitiesOnly true\n", {"hashknownhosts": "yes", "identitiesonly": "yes"}),
    "settings of no effect": ("ForwardAgent ${{HOME}}\nSendEnv A B\nCanonicalizeHostname yes\n", {"port": "22"}),
}


@pytest.mark.parametrize(("config", "said"), SAID.values(), ids=SAID)
def test_ssh_config_means_what_it_means_to_openssh(home: Path, config: str, said: dict[str, str]) -> None:
    (home / "more").write_text("Host h\n  Port 33\n  HostKeyAlias more\n")
    (home / "config").write_text(config.format(more=home / "more"))
    said = {name: text.format(home=home) for name, text in said.items()}
    user = "deploy" if said.get("user") == "deploy" else None
    found = ssh_config.load(str(home / "config")).given(user, None).lookup("h")
    ours = {name: found.get(name, {"port": "22"}.get(name, "")) for name in said}
    if "userknownhostsfile" in ours:
        ours["userknownhostsfile"] = " ".join(shlex.split(ours["userknownhostsfile"]))
    assert ours == said
    argv = ["ssh", "-G", "-F", home / "config", *(("-l", user) if user else ()), "h"]
    lines = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    theirs = dict(line.split(" ", 1) for line in lines)
    assert {name: theirs.get(name, "") for name in said} == said


REFUSED = {
    "RevokedHostKeys": ("RevokedHostKeys /x\n", "RevokedHostKeys is not supported: mark the keys @revoked"),
    "CertificateFile": ("CertificateFile /x\n", "CertificateFile /x: put it beside its key as KEY-cert.pub"),
    "IdentityAgent": ("IdentityAgent /x\n", "IdentityAgent /x: set SSH_AUTH_SOCK instead"),
    "a Match of another version": (
        "Match tagged x\n  Port 1\n",
        "config:1: Match 'tagged' is not supported: all,",
    ),
    "a Match without its value": ("Match user\n", "config:1: Match user needs a value"),
    "a name that a shell would read": (
        "Host *\n  User a;id\nMatch exec true\n",
        "Match exec: 'a;id' would be read by a shell",
    ),
    "two values": ("\n\nPort 22 33\n", "config:3: port takes one value"),
    "no value": ("User\n", "config:1: 'User' is no setting with a value"),
    "a token that is none": ("IdentityFile ~/%y\n", "127.0.0.1: %y of ~/%y is no token here"),
    "a variable that is none": ("IdentityFile ${NOT_THERE}/k\n", "127.0.0.1: there is no variable NOT_THERE"),
    "jump hosts without end": ("ProxyJump gate-%h\n", "more than 16 jump hosts lead to one another"),
    "no jump host": ("ProxyJump a,,b\n", "ProxyJump: '' is not "),
    "a jump host's port": ("ProxyJump a:99999\n", "ProxyJump: 'a:99999' is not "),
    "itself": ("Include config\n", "more than 16 levels of Include"),
    "a folder": ("Include /etc\n", "/etc: Is a directory"),
    "a port that is none": ("Host *\n  Port ssh\n", "config:2: port: 'ssh' is no number up to 65535"),
    "a number that is none": (
        "CanonicalizeHostname yes\nCanonicalizeMaxDots x\n",
        "config:2: canonicalizemaxdots: 'x' is no number",
    ),
    "a name that cannot be made canonical": (
        "CanonicalizeHostname yes\nCanonicalDomains invalid\nCanonicalizeMaxDots 9\n"
        "CanonicalizeFallbackLocal no\n",
        "ssh_config for 127.0.0.1: ",
    ),
    "a quote": ("Include 'x\n", "config:1: no closing quotation"),
}


@pytest.mark.parametrize(("config", "said"), REFUSED.values(), ids=REFUSED)
def test_settings_that_would_not_count_are_refused(
    sshd: LocalSshd, tmp_path: Path, home: Path, config: str, said: str
) -> None:
    (home / ".ssh/config").write_text(config)
    (home / ".ssh/other").write_text("Host x\n")
    with pytest.raises(BadInput, match=said):
        login(sshd, trusted(sshd, tmp_path), ansible_port=None)


NO_WAY = {
    "a key that is not there": ("", "cannot read /nonexistent/key"),
    "an ssh_config that is not there": ("-F /nonexistent/config", "/nonexistent/config: No such file"),
    "an ssh_config that is none": ("-F {folder}/stranger", "stranger:1: .* is no setting with a value"),
    "a name that a shell would read": ("-o ProxyCommand=x -o ProxyJump=none", "would be read by a shell"),
    "a jump host whose key has changed": ("-o ProxyJump=localhost:{port}", "host key of .localhost.* has changed"),
    "a jump host that is not there": (
        "-o ProxyJump=127.0.0.1:1",
        "no connection to 127.0.0.1:1: Connection refused",
    ),
    "nothing behind the jump host": (
        "-o ProxyJump=127.0.0.1:{port}",
        "no connection to 127.0.0.1:1 through 127.0.0.1: Connect failed",
    ),
    "a ProxyCommand that is not there": (
        "-o ProxyCommand=/nowhere/nc",
        "ProxyCommand said: .*/nowhere/nc: not found",
    ),
    "a ProxyCommand that says nothing": (
        "-o 'ProxyCommand=sleep 60'",
        "the handshake was not done in 2 s$",
    ),
    "a ProxyCommand that has others do it": (
        "-o 'ProxyCommand=sleep 60 & sleep 60'",
        "the handshake was not done",
    ),
    "a ProxyCommand that never stops": ("-o 'ProxyCommand=yes no way >&2'", "ProxyCommand said: no way$"),
}


@pytest.mark.parametrize(("args", "said"), NO_WAY.values(), ids=NO_WAY)
def test_no_way_to_a_host(sshd: LocalSshd, tmp_path: Path, home: Path, args: str, said: str) -> None:
    copied(sshd, home / ".ssh" / "id_ed25519")
    keygen("-f", tmp_path / "stranger")
    lines = [sshd.known(), f"[localhost]:{sshd.port} {public(tmp_path / 'stranger')}\n"]
    behind: dict[str, Any] = {"ansible_port": 1} if "through" in said else {}
    if "/key" in said:
        behind = {"ansible_ssh_private_key_file": "/nonexistent/key"}
    if "shell" in said:
        behind = {"ansible_host": "127.0.0.1;id"}
    before = {pid for pid in os.listdir("/proc") if pid.isdigit()}
    with pytest.raises(TcpfleetError, match=said):
        login(
            sshd,
            known(tmp_path / "known", *lines) + " " + args.format(port=sshd.port, folder=tmp_path),
            timeout=2,
            **behind,
        )
    time.sleep(0.05)
    left = [Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdigit() and pid not in before]
    assert not [path for path in left if path.exists() and b"sleep\x0060" in path.read_bytes()]


# -- sshds that are not as they should be ------------------------------------------------------------------

SICK = {
    "one session per connection": (("MaxSessions 1",), None),
    "no terminals": (("PermitTTY no",), None),
    "no forwarding": (("DisableForwarding yes",), None),
    "a long banner": (("Banner {folder}/banner",), None),
    "no sessions": (("MaxSessions 0",), "its sshd opens no session"),
    "another command": (
        ("ForceCommand echo 'This account is not available.'",),
        "status 0.*account is not available",
    ),
    "a command that ends at once": (("ForceCommand exit 3",), r"did not start \(exit status 3\)"),
    "a command that never ends": (("ForceCommand sleep 30",), "did not start in 2 s"),
    "noise before the agent": (('ForceCommand seq 3000; eval "$SSH_ORIGINAL_COMMAND"',), None),
    "noise without end": (("ForceCommand yes noise",), "prints without end"),
    "no keys": (("PubkeyAuthentication no",), "refused the login of user"),
    "few tries": (("MaxAuthTries 1",), None),
    "old algorithms only": (("Ciphers aes128-cbc", "KexAlgorithms diffie-hellman-group1-sha1"), "no acceptable"),
}


IN_SHORT = ("a long banner", "no sessions", "another command", "noise without end")


@pytest.mark.parametrize(
    ("options", "said"),
    [pytest.param(*case, id=name, marks=() if name in IN_SHORT else full) for name, case in SICK.items()],
)
def test_a_sick_sshd(tmp_path: Path, options: tuple[str, ...], said: str | None) -> None:
    folder = tmp_path / "sshd"
    folder.mkdir()
    (folder / "banner").write_text("Authorised use only. \033[2J\n" * 1000)
    with LocalSshd(folder, *(line.format(folder=folder) for line in options)) as sshd:
        if said is None:
            login(sshd, trusted(sshd, tmp_path))
        else:
            with pytest.raises(TcpfleetError, match=said) as caught:
                login(sshd, trusted(sshd, tmp_path), timeout=2)
            assert "\n" not in str(caught.value)


def test_a_full_sshd_is_tried_again(tmp_path: Path) -> None:
    """MaxStartups drops connections before they say who they are: nothing has run, so it is safe to come back."""
    with LocalSshd(tmp_path / "sshd", "MaxStartups 1:100:1") as sshd:
        args = trusted(sshd, tmp_path)
        holds_the_place = socket.create_connection(("127.0.0.1", sshd.port))
        assert holds_the_place.recv(4) == b"SSH-"

        def leave() -> None:
            while "drop connection" not in sshd.log and "past MaxStartups" not in sshd.log:
                time.sleep(0.01)
            holds_the_place.close()

        thread = threading.Thread(target=leave, daemon=True)
        thread.start()
        login(sshd, args)
        thread.join(5)
        assert not thread.is_alive()


def test_a_slow_line(sshd: LocalSshd, tmp_path: Path) -> None:
    with Relay(("127.0.0.1", sshd.port), rtt=0.3) as relay:
        args = known(tmp_path / "known", sshd.known(name=f"[127.0.0.1]:{relay.port}"))
        login(sshd, args, timeout=10, ansible_port=relay.port)
        assert relay.round_trips <= 16  # each costs the line's time: no more of them than a login needs


BANNER = b"SSH-2.0-x\r\n"
# What a server that is none sends, piece by piece, until the client has gone.
STRANGERS = {
    "nothing": (b"", False),
    "another protocol": (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200, False),
    "lines without end": (b"hello\r\n" * 1000, True),
    "a line without end": (b"x" * 10000, True),
    "a banner and nothing": (BANNER, False),
    "a banner and noise": (BANNER + bytes(range(256)) * 100, False),
    "a packet of four gigabytes": (BANNER + b"\xff" * 5000, False),
    "an empty packet": (BANNER + bytes(64), False),
    "an empty key exchange": (BANNER + b"\0\0\0\x0c\x0a\x14" + bytes(10), False),
    "a key exchange of wrong lengths": (BANNER + b"\0\0\0\x1c\x06\x14" + bytes(16) + b"\xff" * 10, False),
    "a key exchange that is no text": (
        BANNER + b"\0\0\0\x1c\x04\x14" + bytes(16) + b"\0\0\0\2\xff\xfe" + bytes(5),
        False,
    ),
    "a disconnect": (BANNER + b"\0\0\0\x1c\x0a\x01\0\0\0\2\0\0\0\4no\xff\xfe" + bytes(14), False),
    "a reply to nothing": (BANNER + b"\0\0\0\x0c\x0a\x1f" + bytes(10), False),
}


@pytest.mark.parametrize(("sent", "again"), STRANGERS.values(), ids=STRANGERS)
def test_a_server_that_is_none(tmp_path: Path, sent: bytes, again: bool) -> None:
    over = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                peer, _ = listener.accept()
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(0.2)
                    peer.sendall(sent)
                    while again and not over.is_set():
                        peer.sendall(sent)
                    with contextlib.suppress(TimeoutError):
                        while peer.recv(4096):
                            pass
                    over.wait(3)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        given = {"ansible_host": "127.0.0.1", "ansible_port": listener.getsockname()[1]}
        begun = time.monotonic()
        try:
            with pytest.raises(Unreachable, match=r"SSH to 127\.0\.0\.1:.* failed|no answer from") as caught:
                link.open_session(HOST, make_connection("h", given), connect_timeout=1)
            assert "\n" not in str(caught.value) and time.monotonic() - begun < 30
            assert len(str(caught.value)) < 400
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


def test_an_agent_that_stops_is_noticed(sshd: LocalSshd, tmp_path: Path) -> None:
    """The connection stands and the kernel answers for it, but nothing of the agent comes any more."""
    given = {"ansible_host": "127.0.0.1", "ansible_port": sshd.port, "ansible_ssh_private_key_file": str(sshd.key)}
    how = make_connection("h", {**given, "ansible_ssh_common_args": trusted(sshd, tmp_path)})
    session = link.open_session(HOST, how, connect_timeout=5)
    session.idle_timeout = 1.0
    os.kill(session.hello["pid"], signal.SIGSTOP)
    try:
        with pytest.raises(Unreachable, match="no sign of life for 1 s"):
            session.call("ping", {})
    finally:
        session.close()
        os.kill(session.hello["pid"], signal.SIGCONT)


def test_little_is_kept_of_a_host_that_is_held_and_nothing_of_one_that_is_done(
    sshd: LocalSshd, tmp_path: Path
) -> None:
    """Of 500 hosts each kilobyte counts: Fabric's settings, a class of its own, a session of no more use."""

    def settings() -> int:
        gc.collect()
        return sum(type(one) is fabric.Connection for one in gc.get_objects())

    given = {"ansible_host": "127.0.0.1", "ansible_port": sshd.port, "ansible_ssh_private_key_file": str(sshd.key)}
    given["ansible_ssh_common_args"] = trusted(sshd, tmp_path)
    hosts = [Host(f"h{number}", {}, ()) for number in range(3)]
    sessions: weakref.WeakSet[link.Session] = weakref.WeakSet()

    def look(session: link.Session) -> None:
        sessions.add(session)

    before, others = settings(), {*threading.enumerate()}
    with Fleet(hosts, lambda host: make_connection(host.name, given)) as fleet:
        fleet.run(look)
        transports = [one for one in {*threading.enumerate()} - others if isinstance(one, paramiko.Transport)]
        assert len(sessions) == len(transports) == 3
        assert len(set(map(type, transports))) == 1
        assert settings() == before
        del transports
        fleet.run(look, hosts[1:], last=True)
        deadline = time.monotonic() + 10
        while len(sessions) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
            gc.collect()
        assert [session.host.name for session in sessions] == ["h0"]
        assert fleet.run(look, hosts)["h1"].status == "ok"  # there is a session again when one is wanted
