"""Passwords: how they come in, and that nothing that is printed or written holds one."""

import copy
import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcpfleet import runs
from tcpfleet.errors import BadInput
from tcpfleet.inventory.connection import make_connection
from tcpfleet.link import Become, Step
from tcpfleet.secret import STARS, Secret, from_command, printable, redact, redacted
from tests.conftest import ROOT

CANARY = 'ca"na\\ry <é> $x'


def test_a_secret_shows_itself_nowhere() -> None:
    one = Secret(CANARY)
    become = Become("root", "sudo", one)
    step = Step("ping", {}, become=become)
    shown = [
        str(one),
        repr(one),
        f"{one} {[one]!r}",
        repr(become),
        repr(step),
        repr(vars(Secret)),
    ]
    shown += [json.dumps({"password": one}, default=str)]
    assert not [text for text in shown if "na" in text]
    with pytest.raises(TypeError):
        json.dumps(one)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(one, protocol)
    assert copy.copy(one) is one and copy.deepcopy([one])[0] is one
    assert one == Secret(CANARY) != Secret("other") and one.reveal() == CANARY
    assert step.message()["become"]["password"] == CANARY  # to the agent alone


def test_what_comes_back_is_starred_in_every_form() -> None:
    assert redact(f"x {CANARY}") == f"x {CANARY}"
    Secret(CANARY)
    Secret("1883")
    Secret("abc")  # too short to be looked for
    forms = [CANARY, json.dumps(CANARY), json.dumps(CANARY, ensure_ascii=False), repr(CANARY)]
    forms += ["ca&quot;na\\ry &lt;é&gt; $x"]
    for form in forms:
        assert "na" not in redact(f"before {form} after"), form
    assert redact("abc 1883") == f"abc {STARS}"
    data = {"port": 1883, "text": [f"port 1883 {CANARY}", None, 1.5], CANARY: True}
    assert redacted(data) == {"port": 1883, "text": [f"port {STARS} {STARS}", None, 1.5], STARS: True}


def test_files_of_a_run_hold_no_secret(tmp_path: Path) -> None:
    Secret(CANARY)
    runs.write_json(tmp_path / "run.json", {"errors": [CANARY], "port": 1})
    assert json.loads((tmp_path / "run.json").read_text()) == {"errors": [STARS], "port": 1}


def test_a_traceback_holds_no_secret() -> None:
    script = (
        "import threading\nfrom tcpfleet.secret import Secret, kept_from_output\n"
        "with kept_from_output():\n  one = Secret('canary-canary')\n  print('canary-canary')\n"
        "def bug(): raise ZeroDivisionError('canary-canary')\n"
        "t = threading.Thread(target=bug); t.start(); t.join()\n"
        "bug()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == STARS + "\n" and done.returncode == 1
    assert done.stderr.count(f"ZeroDivisionError: {STARS}\n") == 2 and "canary-canary')" not in done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "cannot be split into words"),
        ("'", "cannot be split into words"),
        ("/nowhere/pass", "cannot start /nowhere/pass: No such file"),
        ("sh -c 'echo canary; exit 3'", "sh failed with exit status 3"),
        ("true", "true printed no password"),
        (r"printf '\377'", "is not UTF-8"),
        ("yes canary", "yes prints more than 65,536 bytes"),
    ],
)
def test_a_password_command_that_gives_none(command: str, said: str) -> None:
    with pytest.raises(BadInput, match=f"^--password-command: .*{said}") as caught:
        from_command("--password-command", command)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("words", [r"printf 'p w\n'", r"printf 'p w\r\nsecond line'", "printf 'p w'"])
def test_a_password_command(words: str) -> None:
    assert from_command("--password-command", words).reveal() == "p w"


def test_a_password_command_does_not_outlive_an_interrupt(tmp_path: Path) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    pid = tmp_path / "pid"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            from_command("--password-command", f"sh -c 'echo $$ > {pid}; exec sleep 60'")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid.read_text().strip()}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_password_that_is_no_text(tmp_path: Path) -> None:
    """As bytes in the C locale, or escaped in an inventory: refused before anything is sent, and not shown."""
    script = "from tcpfleet import secret\nsecret.ask('password: ')"
    for locale in ("C.UTF-8", "C"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            capture_output=True,
            input=b"can\xe4ry\n",
            start_new_session=True,
            env={"LC_ALL": locale},
        )
        assert done.stderr.endswith(b"BadInput: password: what was typed is not UTF-8\n")
    with pytest.raises(BadInput, match=r"ansible_password is not UTF-8$"):
        make_connection("h", {"ansible_password": "can\ud800ry"})


def inv(*words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "invoke", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        input=stdin,
        start_new_session=True,  # without a terminal
    )


def test_passwords_on_the_command_line(tmp_path: Path) -> None:
    book = tmp_path / "book.yml"
    book.write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        f"    - ansible.builtin.command: cat {tmp_path}/said\n      register: said\n      failed_when: true\n"
    )
    (tmp_path / "said").write_text("a host says canary-canary \033[2J{{ 7 * 7 }}")
    hosts = tmp_path / "hosts.yml"
    hosts.write_text("all: {hosts: {here: {ansible_connection: local}}}")
    words = ["play", str(book), "--inventory", str(hosts)]
    for more, stdin in (
        (("--ask-pass",), "canary-canary\n"),
        (("--ask-sudo-pass",), "canary-canary\n"),
        (("--password-command", "echo canary-canary"), ""),
        (("--ask-pass", "--json", "--diff"), "canary-canary\n"),
    ):
        done = inv(*words, *more, stdin=stdin)
        assert done.returncode == 2 and "a host says ********" in done.stdout
        assert "arning" not in done.stderr
        assert "canary-canary" not in done.stdout + done.stderr and "\033" not in done.stdout + done.stderr
        assert r"\x1b[2J{{ 7 * 7 }}" in done.stderr + done.stdout
    for refused in (("--ask-pass",), ("--ask-pass", "--password-command", "echo x")):
        done = inv("ping", *refused, "--inventory", str(hosts))
        assert done.returncode == 1 and done.stderr.rpartition("error: ")[2].startswith("--ask-pass")


def test_all_variables_of_a_host_are_shown_without_its_passwords(tmp_path: Path) -> None:
    """`hostvars[h]` had itself among them, without end."""
    book = tmp_path / "book.yml"
    book.write_text(
        "- hosts: all\n  gather_facts: false\n  tasks: [debug: {var: 'hostvars[inventory_hostname]'}]\n"
    )
    hosts = tmp_path / "hosts.yml"
    hosts.write_text(
        "all: {hosts: {here: {ansible_connection: local, ansible_become_password: canary-canary, a: 7}}}"
    )
    done = inv("play", str(book), "--inventory", str(hosts))
    assert done.returncode == 0 and '"a": 7' in done.stdout, done.stdout + done.stderr
    assert "canary-canary" not in done.stdout + done.stderr and '"hostvars"' not in done.stdout


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é\n\t", None), ("\033]0;x\a", r"\x1b]0;x\x07"), ("a\rb\u202ec\x9b2J", r"a\rb\u202ec\x9b2J")],
)
def test_a_terminal_obeys_no_host(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)
