"""ssh_config as OpenSSH reads it: what it says about one host.

In: the file of ``ssh -F``, or none: then the user's and the machine's; a host, with the user and port that are
given elsewhere. Out: the settings that `route` goes by. Paramiko's own reader takes a comment for a part of the
value and a Match that it does not know (`Match Host`, `Match tagged`) for one that holds, and knows no
Include and few quotes, tokens and variables.
"""

from __future__ import annotations

import copy
import functools
import getpass
import glob
import hashlib
import os
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import paramiko

from tcpfleet.errors import BadInput

DEEPEST = 16  # levels of Include, as in OpenSSH
# The settings that count, by what their value is: one word, words, or the rest of the line.
_WORD = frozenset(
    (
        *("hostname", "user", "port", "hostkeyalias", "stricthostkeychecking", "hashknownhosts", "identitiesonly"),
        *("identityfile", "identityagent", "certificatefile", "revokedhostkeys", "canonicalizehostname"),
        *("canonicalizemaxdots", "canonicalizefallbacklocal", "addressfamily"),
    )
)
_WORDS = frozenset(("userknownhostsfile", "globalknownhostsfile", "canonicaldomains"))
_TEXT = frozenset(("proxyjump", "proxycommand"))
_MOST = {"port": 65535, "canonicalizemaxdots": 255}
_SWITCHES = ("stricthostkeychecking", "hashknownhosts", "identitiesonly", "canonicalizehostname")
_FILES = ("identityagent", "certificatefile", "revokedhostkeys")
_CRITERIA = ("host", "originalhost", "user", "localuser", "exec")
_BARE = ("all", "canonical", "final")
_LINE = re.compile(r'[ \t\f]*"?([A-Za-z][A-Za-z0-9]*)"?(?:[ \t]*=[ \t]*|[ \t]+|$)(.*)', re.DOTALL)
# A part of a word; a backslash is one unless it stands before what is special.
_PART = re.compile(r"""\\(["'\\ ])|"((?:\\["'\\]|[^"])*)"|'((?:\\["'\\]|[^'])*)'|([^ \t"'])""", re.DOTALL)

TAME = re.compile(r"[\w.:%@+-]+")  # in host and user names, before a shell sees them

_lock = threading.Lock()


class _Line(NamedTuple):
    """:ivar key: in lower case; an included file's lines stand between "include" and "end"."""

    key: str
    words: tuple[str, ...] = ()


class SshConfig(paramiko.SSHConfig):
    """What hosts are looked up in, by `route` and by Fabric.

    :param lines: of all files, in order.
    """

    def __init__(self, lines: Sequence[_Line] = ()) -> None:
        super().__init__()
        self._lines = lines
        self._given: dict[str, str] = {}
        self._is_final_asked = any(line.key == "match" and {"final", "!final"} & {*line.words} for line in lines)

    def given(self, user: str | None, port: int | None) -> SshConfig:
        """The same for a login whose user or port is said elsewhere: Match and the tokens go by them."""
        same = copy.copy(self)
        same._given = {name: str(one) for name, one in (("user", user), ("port", port)) if one is not None}
        return same

    def lookup(self, hostname: str) -> paramiko.SSHConfigDict:
        """The settings for a host.

        :param hostname: as it was named; `hostname` in the result is its address.
        :returns: setting -> text; for identityfile a list; for known_hosts files a shell's words.
        :raises BadInput: a token or variable cannot be filled in, or the name cannot be made canonical.
        """
        found: dict[str, Any] = dict(self._given)
        self._read(hostname, hostname, found, is_last=False)
        address = found.get("hostname", hostname)
        again = self._is_final_asked
        domains = shlex.split(found.get("canonicaldomains", ""))
        is_short = address.count(".") <= int(found.get("canonicalizemaxdots", 1))
        if found.get("canonicalizehostname", "no") != "no" and domains and is_short:
            try:
                address = self.canonicalize(address, paramiko.SSHConfigDict(found), domains)
            except (ValueError, paramiko.SSHException) as error:
                raise BadInput(f"ssh_config for {hostname}: {error}") from None
            again = True
        found["hostname"] = address
        if again:
            self._read(address, hostname, found, is_last=True)
        for key in _FILES:
            if key in found:
                found[key] = _filled(found[key], found, hostname)
        if "identityfile" in found:
            files = [_filled(one, found, hostname) for one in found["identityfile"]]
            found["identityfile"] = [os.path.expanduser(one) for one in files]
        if "userknownhostsfile" in found:
            files = shlex.split(found["userknownhostsfile"])
            found["userknownhostsfile"] = shlex.join(_filled(one, found, hostname) for one in files)
        if "proxyjump" in found:
            found["proxyjump"] = _filled(found["proxyjump"], found, hostname, allowed="%hnpr")
        return paramiko.SSHConfigDict(found)

    def _read(self, host: str, original: str, found: dict[str, Any], *, is_last: bool) -> None:
        """Adds what the lines say; what `found` has already wins, as with OpenSSH.

        :param host: what Host lines are about.
        :param is_last: the second time: `Match canonical` and `Match final` hold.
        """
        holds, within = True, True
        outer: list[tuple[bool, bool]] = []
        for key, words in self._lines:
            if key == "include":
                outer.append((holds, within))
                within = holds
            elif key == "end":
                holds, within = outer.pop()
            elif key == "host":
                # A pattern with ! that fits wins over all others.
                fitting = {word[:1] == "!" for word in words if _fits(host, word.removeprefix("!"))}
                holds = within and fitting == {False}
            elif key == "match":
                holds = within and self._matches(words, host, original, found, is_last=is_last)
            elif not holds:
                continue
            elif key == "identityfile":
                have = found.setdefault(key, [])
                found[key] = have + [word for word in words if word not in have]
            elif key == "hostname":
                found.setdefault(key, _filled(words[0], {"hostname": host}, host, allowed="%h"))
            elif key == "proxyjump" and "proxycommand" in found:
                continue  # the first of both counts
            elif key != "proxycommand" or found.get("proxyjump", "none").lower() == "none":
                found.setdefault(key, shlex.join(words) if key in _WORDS else words[0])

    def _matches(
        self, words: Sequence[str], host: str, original: str, found: dict[str, Any], *, is_last: bool
    ) -> bool:
        rest = list(words)
        while rest:
            word = rest.pop(0)
            name = word.removeprefix("!")
            if name in _BARE:
                is_so = name == "all" or is_last
            else:
                value = rest.pop(0)
                if name == "exec":
                    for one in (host, original, found.get("user", "")):
                        if one and not TAME.fullmatch(one):
                            raise BadInput(f"Match exec: {one!r} would be read by a shell")
                    is_so = _succeeds(_filled(value, found | {"hostname": host}, original, variables=False))
                else:
                    user = getpass.getuser()
                    subject = {
                        "host": found.get("hostname", host).lower(),
                        "originalhost": original.lower(),
                        "user": found.get("user", user),
                        "localuser": user,
                    }[name]
                    patterns = (value.lower() if "host" in name else value).split(",")
                    fitting = {one[:1] == "!" for one in patterns if _fits(subject, one.removeprefix("!"))}
                    is_so = fitting == {False}
            if is_so == word.startswith("!"):
                return False
        return True


def load(path: str | None) -> SshConfig:
    """Read once per command and file, also when many threads ask; nobody changes what they get.

    :param path: of ``-F``; "none": of no file.
    :raises BadInput: a file cannot be read or has a line that is none.
    """
    with _lock:
        return _load(path)


@functools.lru_cache(maxsize=8)
def _load(path: str | None) -> SshConfig:
    lines: list[_Line] = []
    if path is None:
        lines += _lines(os.path.expanduser("~/.ssh/config"), "~/.ssh", is_needed=False)
        lines += [_Line("host", ("*",)), *_lines("/etc/ssh/ssh_config", "/etc/ssh", is_needed=False)]
    elif path != "none":
        lines += _lines(os.path.expanduser(path), "~/.ssh", is_needed=True)
    return SshConfig(tuple(lines))


def _lines(path: str, base: str, *, is_needed: bool, depth: int = 0) -> Iterator[_Line]:
    """The lines of a file, with those of what it includes in their place.

    :param base: the folder that included names are relative to.
    """
    if depth > DEEPEST:
        raise BadInput(f"{path}: more than {DEEPEST} levels of Include")
    try:
        text = Path(path).read_text(errors="surrogateescape")
    except FileNotFoundError:
        if not is_needed:
            return
        raise BadInput(f"{path}: No such file or directory") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if "\0" in text:
        raise BadInput(f"{path}: it is no text")
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip(" \t\r\f")
        if not line.strip(" \t\f") or line.lstrip(" \t\f").startswith("#"):
            continue
        where = f"{path}:{number}"
        found = _LINE.match(line)
        if found is None or not found[2]:
            raise BadInput(f"{where}: {line.strip()[:60]!r} is no setting with a value")
        key = found[1].lower()
        if key == "include":
            for pattern in _words(found[2], where):
                for name in sorted(glob.glob(os.path.join(os.path.expanduser(base), os.path.expanduser(pattern)))):
                    yield _Line("include")
                    yield from _lines(name, base, is_needed=True, depth=depth + 1)
                    yield _Line("end")
        elif key in _TEXT:
            yield _Line(key, (found[2],))
        elif key == "match":
            yield _Line(key, tuple(_criteria(_words(found[2], where), where)))
        elif key in _WORD or key in _WORDS or key == "host":
            yield _Line(key, tuple(_values(key, _words(found[2], where), where)))


def _words(text: str, where: str) -> list[str]:
    """A value's words; quotes group, # begins a comment."""
    words: list[str] = []
    at = 0
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(" \t"))
        if at == len(text) or text[at] == "#":
            return words
        word = ""
        while at < len(text) and text[at] not in " \t":
            part = _PART.match(text, at)
            if part is None:
                raise BadInput(f"{where}: no closing quotation mark")
            quoted = part[2] if part[2] is not None else part[3]
            word += (part[1] or part[4]) if quoted is None else re.sub(r"""\\(["'\\])""", r"\1", quoted)
            at = part.end()
        words.append(word)


def _values(key: str, words: list[str], where: str) -> list[str]:
    if not words or not all(words) or (key in _WORD and len(words) > 1):
        raise BadInput(f"{where}: {key} takes {'one value' if key in _WORD else 'values'}, not {words}")
    if key in _MOST and not (words[0].isascii() and words[0].isdigit() and int(words[0][:9]) <= _MOST[key]):
        raise BadInput(f"{where}: {key}: {words[0]!r:.60} is no number up to {_MOST[key]}")
    if key in _SWITCHES:
        words[0] = words[0].lower()
        words[0] = {"true": "yes", "false": "no"}.get(words[0], words[0])
    return words


def _criteria(words: list[str], where: str) -> Iterator[str]:
    """The criteria of a Match, each followed by its value where it has one.

    :raises BadInput: one is not known: taken for one that holds, it would change who logs in where.
    """
    names = []
    while words:
        name, equals, value = words.pop(0).partition("=")
        negated, name = "!" * name.startswith("!"), name.removeprefix("!").lower()
        if name not in (*_BARE, *_CRITERIA):
            raise BadInput(f"{where}: Match {name!r:.60} is not supported: {', '.join((*_BARE, *_CRITERIA))}")
        names.append(name)
        yield negated + name
        if name in _CRITERIA:
            if not equals and not words:
                raise BadInput(f"{where}: Match {name} needs a value")
            yield value if equals else words.pop(0)
    if not names or ("all" in names and {*names} - {"all", "canonical", "final"}):
        raise BadInput(f"{where}: Match takes criteria, and `all` no other one")


def _fits(subject: str, pattern: str) -> bool:
    """OpenSSH's patterns have * and ? and nothing else.

    >>> _fits("a", "[a-z]"), _fits("ab", "a?")
    (False, True)
    """
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, subject, re.DOTALL) is not None


def _succeeds(command: str) -> bool:
    """Match exec, which would else read the user's terminal."""
    argv = ["/bin/sh", "-c", command]
    return not subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode


def _filled(
    text: str, found: dict[str, Any], original: str, *, allowed: str = "%CdhikLlnpru", variables: bool = True
) -> str:
    """A setting's text with its tokens and variables filled in.

    :param found: the settings so far.
    :param allowed: tokens of this setting; variables only go with all of them.
    :raises BadInput: there is no such token or variable.
    """
    host, port = found.get("hostname", original), found.get("port", "22")
    local = getpass.getuser()
    user = found.get("user", local)
    tokens: dict[str, Callable[[], str]] = {
        "%": lambda: "%",
        "C": lambda: hashlib.sha1(f"{socket.gethostname()}{host}{port}{user}".encode()).hexdigest(),  # noqa: S324
        "d": lambda: os.path.expanduser("~"),
        "h": lambda: host,
        "i": lambda: str(os.getuid()),
        "k": lambda: found.get("hostkeyalias", original),
        "L": lambda: socket.gethostname().partition(".")[0],
        "l": socket.gethostname,
        "n": lambda: original,
        "p": lambda: port,
        "r": lambda: user,
        "u": lambda: local,
    }

    def fill(part: re.Match[str]) -> str:
        if part[1] is not None:
            if part[1] not in os.environ:
                raise BadInput(f"ssh_config for {original}: there is no variable {part[1]} for {text}")
            return os.environ[part[1]]
        if part[0][1:] not in tokens or part[0][1:] not in allowed:
            raise BadInput(f"ssh_config for {original}: {part[0]} of {text} is no token here: {' '.join(allowed)}")
        return tokens[part[0][1:]]()

    has_variables = variables and "d" in allowed
    return re.sub(r"\$\{([^}]*)\}|%.?" if has_variables else r"(?!)()|%.?", fill, text, flags=re.DOTALL)
