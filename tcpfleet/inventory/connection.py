"""How to reach a host: which `ansible_*` variables count, what they may say, and the `Connection` of them.

A connection variable that is not supported is an error, never ignored: a fleet that is reached another
way than its inventory says is worse than one that is not reached. Variables that are not about the
connection (facts, your own) are free.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadInput
from ..secret import Secret, secret
from .document import Place
from .names import checked_port

SUPPORTED = (
    "ansible_host",
    "ansible_port",
    "ansible_user",
    "ansible_password",
    "ansible_connection",
    "ansible_python_interpreter",
    "ansible_become",
    "ansible_become_user",
    "ansible_become_method",
    "ansible_become_password",
    "ansible_become_exe",
    "ansible_ssh_private_key_file",
    "ansible_ssh_common_args",
)
#: Never shown by graph(), to_json() or an error.
SECRETS = ("ansible_password", "ansible_become_password")

# What people write for the supported names: Ansible's older and longer spellings.
_SYNONYMS = {
    "ansible_ssh_host": "ansible_host",
    "ansible_ssh_port": "ansible_port",
    "ansible_ssh_user": "ansible_user",
    "ansible_ssh_pass": "ansible_password",
    "ansible_ssh_password": "ansible_password",
    "ansible_pass": "ansible_password",
    "ansible_become_pass": "ansible_become_password",
    "ansible_sudo_pass": "ansible_become_password",
    "ansible_sudo_user": "ansible_become_user",
    "ansible_sudo_exe": "ansible_become_exe",
    "ansible_sudo": "ansible_become",
    "ansible_private_key_file": "ansible_ssh_private_key_file",
    "ansible_ssh_extra_args": "ansible_ssh_common_args",
    "ansible_ssh_args": "ansible_ssh_common_args",
}
# Ansible's connection, become and shell plugins read variables under these prefixes.
_PREFIXES = tuple(
    f"ansible_{plugin}_"
    for plugin in (
        *(
            "ssh",
            "sftp",
            "scp",
            "paramiko",
            "libssh",
            "winrm",
            "psrp",
            "local",
            "docker",
            "podman",
            "buildah",
        ),
        *(
            "kubectl",
            "oc",
            "lxc",
            "lxd",
            "incus",
            "jail",
            "iocage",
            "zone",
            "chroot",
            "nspawn",
            "libvirt_lxc",
        ),
        *("qubes", "saltstack", "funcd", "vmware_tools", "aws_ssm", "httpapi", "netconf", "network_cli"),
        *("persistent", "become", "sudo", "su", "doas", "dzdo", "ksu", "pbrun", "pfexec", "pmrun", "runas"),
        *("machinectl", "sesu", "shell", "control_path"),
    )
)
_NAMES = frozenset(
    f"ansible_{name}"
    for name in (
        *("pass", "sudo", "su", "pipelining", "timeout", "control_path", "host_key_checking", "executable"),
        *("private_key", "private_key_file", "private_key_passphrase", "sshpass_prompt", "network_os"),
        *("connection_user", "docker_extra_args", "remote_addr", "remote_user"),
    )
)
# Facts with a prefix from above, and facts that look like a misspelt connection variable.
_FREE = ("ansible_local", "ansible_hostname", "ansible_user_id", "ansible_user_uid", "ansible_user_gid")

_KINDS = {
    "ssh": "ssh",
    "ansible.builtin.ssh": "ssh",
    "smart": "ssh",
    "paramiko": "ssh",
    "local": "local",
    "ansible.builtin.local": "local",
}
_TRUE = ("yes", "on", "true", "1", "y", "t")
_FALSE = ("no", "off", "false", "0", "n", "f")
_SSH_OPTIONS = {
    option.lower(): option
    for option in ("UserKnownHostsFile", "StrictHostKeyChecking", "ProxyJump", "ProxyCommand")
}
_HOST_KEY_POLICIES = {
    "yes": "strict",
    "true": "strict",
    "accept-new": "accept-new",
    "no": "off",
    "false": "off",
    "off": "off",
}


@dataclass(frozen=True)
class SshArgs:
    """What `ansible_ssh_common_args` asks for; None and () mean "not said".

    :ivar known_hosts: files, ``~`` not expanded.
    :ivar host_keys: "strict", "accept-new" or "off".
    :ivar proxy_jump: as for ``ssh -J``: one or more [user@]host[:port], comma separated; "none" allowed.
    :ivar proxy_command: a shell command, with ssh's %h, %p, %r; "none" allowed.
    :ivar config_file: for ``ssh -F``; "none" means no configuration at all.
    """

    known_hosts: tuple[str, ...] = ()
    host_keys: str | None = None
    proxy_jump: str | None = None
    proxy_command: str | None = None
    config_file: str | None = None


@dataclass(frozen=True)
class Connection:
    """How to reach one host; None means "not said", so that ssh_config or a default decides.

    :ivar name: the name in the inventory.
    :ivar kind: "ssh" or "local".
    :ivar address: what to connect to: ansible_host, or the name.
    :ivar private_key_file: path, ``~`` not expanded.
    :ivar python: path of the interpreter on the host; None also for Ansible's "auto" settings.
    """

    name: str
    kind: str
    address: str
    port: int | None = None
    user: str | None = None
    password: Secret | None = None
    python: str | None = None
    private_key_file: str | None = None
    become: bool = False
    become_user: str = "root"
    become_method: str = "sudo"
    become_password: Secret | None = None
    become_exe: str | None = None
    ssh: SshArgs = field(default_factory=SshArgs)


def is_connection_variable(name: str) -> bool:
    """Would Ansible read `name` to reach a host or to become a user there?"""
    if name in SUPPORTED or name in _SYNONYMS or name in _NAMES:
        return True
    return name not in _FREE and name.startswith(_PREFIXES)


def is_template(value: object) -> bool:
    """Is `value` text that Jinja2 has to fill in first?"""
    return isinstance(value, str) and any(mark in value for mark in ("{{", "{%", "{#"))


def check(name: str, value: Any) -> str | None:
    """Check one variable of an inventory; a template is checked once it is filled in.

    :returns: a hint when the name looks like a misspelt connection variable, else None.
    :raises ValueError: with a sentence, when it is a connection variable and is not supported.
    """
    if name in SUPPORTED:
        if not is_template(value):
            normalize(name, value)
        return None
    if is_connection_variable(name):
        instead = _SYNONYMS.get(name)
        advice = f"write {instead}" if instead else f"supported are {', '.join(SUPPORTED)}"
        raise ValueError(f"the connection variable {name} is not supported: {advice}")
    if name.startswith("ansible_") and name not in _FREE:
        close = difflib.get_close_matches(name, SUPPORTED, n=1, cutoff=0.9)
        if close:
            return f"{name} is no connection variable: is {close[0]} meant?"
    return None


def normalize(name: str, value: Any) -> Any:
    """The value of a supported connection variable in its one form, templates already filled in.

    :returns: int for ansible_port, bool for ansible_become, "ssh" or "local" for ansible_connection,
        SshArgs for ansible_ssh_common_args, str for the others; None where the value is null.
    :raises ValueError: with a sentence; it never repeats a password.
    """
    if value is None:
        return None
    if name == "ansible_port":
        return checked_port(value)
    if name == "ansible_become":
        return _as_bool(value)
    if not isinstance(value, str):
        if name not in (*SECRETS, "ansible_user", "ansible_become_user") or isinstance(value, (bool, float)):
            raise ValueError(f"{name} must be text" + ("" if name in SECRETS else ": put it in quotes"))
        if not isinstance(value, int):
            raise ValueError(f"{name} must be text")
        # INI files turn the password 12345 into a number; 0123 stays text.
        value = str(value)
    if "\0" in value or (name != "ansible_ssh_common_args" and ("\n" in value or "\r" in value)):
        raise ValueError(f"{name} must be one line")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not UTF-8") from None
    if name in SECRETS:
        return value
    if not value.strip():
        raise ValueError(f"{name} is empty")
    if name == "ansible_connection":
        if value not in _KINDS:
            raise ValueError(f"the connection {value[:60]!r} is not supported: ssh or local")
        return _KINDS[value]
    if name == "ansible_become_method":
        if value not in ("sudo", "ansible.builtin.sudo"):
            raise ValueError(f"the become method {value[:60]!r} is not supported: only sudo")
        return "sudo"
    if name == "ansible_ssh_common_args":
        return parse_ssh_args(value)
    if value.startswith("-") and name in ("ansible_host", "ansible_user", "ansible_become_user"):
        # `ssh -oProxyCommand=...` as a host name is how inventories have run commands.
        raise ValueError(f"{name} must not start with '-'")
    return value


def parse_ssh_args(text: str) -> SshArgs:
    """Read the value of `ansible_ssh_common_args`, as the ssh command would.

    >>> parse_ssh_args("-o StrictHostKeyChecking=accept-new -o ProxyJump=ops@gate").proxy_jump
    'ops@gate'

    :raises ValueError: with a sentence, naming what is not supported.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"ansible_ssh_common_args cannot be split into words: {error}") from error
    found: dict[str, str] = {}
    while words:
        word = words.pop(0)
        flag, value = word[:2], word[2:]
        if flag not in ("-o", "-F"):
            hint = ": write -o ProxyJump=..." if flag == "-J" else f": only -F and -o with {_options()}"
            raise ValueError(f"ansible_ssh_common_args: {word[:60]!r} is not supported{hint}")
        if not value:
            if not words:
                raise ValueError(f"ansible_ssh_common_args: a value must follow {flag}")
            value = words.pop(0)
        if flag == "-F":
            found.setdefault("-F", value)
            continue
        option, value = _split_option(value)
        # ssh takes the first value of an option and ignores later ones.
        found.setdefault(option, value)
    policy = found.get("StrictHostKeyChecking")
    if policy is not None and policy.lower() not in _HOST_KEY_POLICIES:
        known = ", ".join(("yes", "accept-new", "no"))
        raise ValueError(f"StrictHostKeyChecking={policy[:60]} is not supported: {known}")
    try:
        known_hosts = tuple(shlex.split(found.get("UserKnownHostsFile", "")))
    except ValueError as error:
        raise ValueError(f"UserKnownHostsFile cannot be split into paths: {error}") from error
    return SshArgs(
        known_hosts=known_hosts,
        host_keys=None if policy is None else _HOST_KEY_POLICIES[policy.lower()],
        proxy_jump=found.get("ProxyJump"),
        proxy_command=found.get("ProxyCommand"),
        config_file=found.get("-F"),
    )


def make_connection(
    name: str, variables: Mapping[str, Any], locate: Callable[[str], Place | None] = lambda variable: None
) -> Connection:
    """The Connection of the host `name` from its variables, templates already filled in.

    :param variables: any variables; only the supported connection variables are read.
    :param locate: the place where a variable is set, for errors.
    :raises LocatedError: a value is not supported (BadInput when `locate` knows no place).
    """
    values: dict[str, Any] = {}
    for variable in SUPPORTED:
        if variables.get(variable) is None:
            continue
        try:
            values[variable] = normalize(variable, variables[variable])
        except ValueError as error:
            place = locate(variable)
            raise place.error(str(error)) if place else BadInput(f"host {name}: {error}") from error
    python = values.get("ansible_python_interpreter")
    if python and python.startswith("auto"):
        python = None
    return Connection(
        name=name,
        kind=values.get("ansible_connection", "ssh"),
        address=values.get("ansible_host", name),
        port=values.get("ansible_port"),
        user=values.get("ansible_user"),
        password=secret(values.get("ansible_password")),
        python=python,
        private_key_file=values.get("ansible_ssh_private_key_file"),
        become=values.get("ansible_become", False),
        become_user=values.get("ansible_become_user", "root"),
        become_method=values.get("ansible_become_method", "sudo"),
        become_password=secret(values.get("ansible_become_password")),
        become_exe=values.get("ansible_become_exe"),
        ssh=values.get("ansible_ssh_common_args", SshArgs()),
    )


def _as_bool(value: object) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"ansible_become must be true or false, not {text[:60]!r}")


def _split_option(text: str) -> tuple[str, str]:
    """`Name=value` or `Name value` as (the option's own spelling, value)."""
    name, equals, value = text.partition("=")
    if not equals or " " in name.strip():
        name, _, value = text.strip().partition(" ")
    name, value = name.strip(), value.strip()
    option = _SSH_OPTIONS.get(name.lower())
    if option is None:
        raise ValueError(
            f"ansible_ssh_common_args: the ssh option {name[:60]!r} is not supported: only {_options()}"
        )
    if not value:
        raise ValueError(f"ansible_ssh_common_args: {option} needs a value")
    if option != "ProxyCommand" and len(value) > 1 and value[0] == value[-1] == '"' and '"' not in value[1:-1]:
        return option, value if option == "UserKnownHostsFile" else value[1:-1]
    return option, value


def _options() -> str:
    return ", ".join(_SSH_OPTIONS.values())
