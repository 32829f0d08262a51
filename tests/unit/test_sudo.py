"""The agent's side of sudo, with a sudo that speaks another language and counts what it is told."""

import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import agent
import pytest

from tcpfleet import link
from tcpfleet.inventory import Connection, Host
from tcpfleet.link import Become
from tcpfleet.secret import Secret

# -H -S -p PROMPT -u USER -- COMMAND...; what it reads as passwords goes to `tries`, one a line.
SUDO = """#!/bin/sh
dir=$(dirname "$0"); prompt=$4; user=$6; shift 7
printf '%s\\n' "$user" >> "$dir/users"
{before}
for try in 1 2 3; do
  printf 'Nous espérons que vous avez reçu la leçon habituelle.\\n\\n%s' "$prompt" >&2
  IFS= read -r given || {{ echo 'sudo: aucun mot de passe' >&2; exit 1; }}
  printf '%s\\n' "$given" >> "$dir/tries"
  [ "$given" = "$(cat "$dir/password")" ] && exec "$@"
  echo 'Désolé, essayez de nouveau.' >&2
done
exit 1
"""
PASSWORD = "p'ä\"s $w\\d "
OTHER = next(user.pw_name for user in pwd.getpwall() if user.pw_uid != os.geteuid())


class Case(NamedTuple):
    before: str = ""
    given: str | None = PASSWORD
    said: str | None = None
    tries: int = 0


CASES = {
    "no password asked": Case('exec "$@"', given=None),
    "no password asked, one at hand": Case('exec "$@"'),
    "right": Case(tries=1),
    "wrong": Case(given="wrong", said=f"cannot become {OTHER}: sudo says the password is wrong", tries=1),
    "none at hand": Case(given=None, said="sudo wants a password; give one with --ask-sudo-pass"),
    "requiretty": Case(
        "echo 'sudo: désolé, vous devez avoir un tty pour exécuter sudo' >&2; exit 1",
        said="vous devez avoir un tty pour exécuter sudo; sudoers has `Defaults requiretty`",
    ),
    "not allowed": Case(
        "echo 'ops n’apparaît pas dans le fichier sudoers.' >&2; exit 1", said="n’apparaît pas dans"
    ),
    "dies without a word": Case("exit 1", said="sudo ended without a word"),
    "prints without end": Case("yes noise >&2", said="sudo prints without end"),
    "frames that are none": Case(
        r"""printf "\n%s have\n\377\377\377\377" "$6"; sleep 3""", said="a frame claims 4294967295 bytes"
    ),
}


@pytest.fixture
def session() -> Iterator[link.Session]:
    session = link.open_session(Host("here", {}, ()), Connection("here", "local", "here"))
    yield session
    session.close()


def as_other(session: link.Session, sudo: Path, password: str | None, user: str = OTHER) -> dict[str, Any]:
    become = Become(user, "sudo", None if password is None else Secret(password), str(sudo))
    return session.call("ping", {}, become=become)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sudo(session: link.Session, tmp_path: Path, case: Case) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    sudo = tmp_path / "sudo"
    sudo.write_text(SUDO.format(before=case.before))
    sudo.chmod(0o755)
    # A second operation, and another identity, ask no second time: three wrong ones may lock a user out.
    results = [as_other(session, sudo, case.given) for _ in range(3)]
    for result in results:
        assert bool(result.get("failed")) == (case.said is not None), result
        assert (case.said or "pong") in str(result.get("msg", "")) + str(result.get("ping", ""))
        assert PASSWORD.strip() not in str(result)
    tries = tmp_path / "tries"
    assert (tries.read_text() if tries.exists() else "") == f"{case.given}\n" * case.tries
    if case.said is None:
        assert (tmp_path / "users").read_text() == OTHER + "\n"  # one child agent for all of them


@pytest.mark.parametrize("waits", ["sleep 60", "while :; do echo still; sleep 0.1; done >&2"])
def test_a_sudo_that_asks_for_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: str) -> None:
    """Its last words are told, it is not waited for longer because it goes on talking, and it does not stay."""
    sudo = tmp_path / "sudo"
    sudo.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid; printf 'Verification code: ' >&2; {waits}\n")
    sudo.chmod(0o755)
    monkeypatch.setattr(agent, "SUDO_TIMEOUT", 0.5)
    monkeypatch.setattr(agent, "GRACE", 0.2)
    host = SimpleNamespace(payload=SimpleNamespace(sources=lambda: {"stub": ""}, archive=b""), digest="")
    with pytest.raises(agent.BecomeError, match=r"no answer from sudo in 0 s; its last words: .*(code:|still)$"):
        agent.Become(host, {"user": OTHER, "exe": str(sudo)})
    cmdline = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cmdline")
    deadline = time.monotonic() + 5
    while cmdline.exists() and cmdline.read_bytes():  # a zombie has none
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_there_is_no_sudo(session: link.Session, tmp_path: Path) -> None:
    result = as_other(session, tmp_path / "sudo", None)
    assert result["failed"] and f"there is no {tmp_path}/sudo on this host; install it" in result["msg"]


def test_a_password_is_not_told_to_children(session: link.Session, tmp_path: Path) -> None:
    """Neither argv nor environment of anything that runs here has it, before sudo asks and after."""
    sudo = tmp_path / "sudo"
    (tmp_path / "password").write_text(PASSWORD)
    look = "for p in /proc/[0-9]*; do cat $p/cmdline $p/environ 2>/dev/null; done | tr '\\0' '\\n' >> $dir/seen"
    sudo.write_text(SUDO.format(before=look).replace('&& exec "$@"', f'&& {{ {look}; exec "$@"; }}'))
    sudo.chmod(0o755)
    assert as_other(session, sudo, PASSWORD)["ping"] == "pong"
    seen = (tmp_path / "seen").read_text(errors="replace")
    assert str(sudo) in seen and PASSWORD.strip() not in seen
