"""Passwords and passphrases, kept from every output, and how they are asked for; and what a terminal may be told.

A `Secret` shows stars wherever it is printed, formatted, dumped or pickled; `reveal` is called where it goes to a
login, to sudo, or into a key. What a `Secret` holds is also replaced in all that this process prints and writes
(`redact`), for it may come back: in a host's words, in a template, in the text of an error.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import shlex
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn, TextIO

from tcpfleet.errors import BadInput

STARS = "********"
# Shorter ones are no Secrets less, but replacing them would tear other words and numbers apart.
SHORTEST = 4  # characters
LONGEST = 64 * 1024  # bytes that a program may print of which the first line is a password
_forms: set[str] = set()


class Secret:
    """A password. Equal ones are equal; nothing but `reveal` gives the text.

    >>> f"{Secret('hunter2')} {Secret('hunter2')!r}"
    "******** Secret('********')"
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text
        if len(text) >= SHORTEST:
            # As it would stand in JSON, in Python's own quotes, in HTML and in a shell's words.
            dumped = (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
            _forms.update((text, *dumped, repr(text)[1:-1], html.escape(text), shlex.quote(text)))

    def reveal(self) -> str:
        """The text, for the one who has to send it."""
        return self._text

    def __str__(self) -> str:
        return STARS

    def __repr__(self) -> str:
        return f"Secret({STARS!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


def secret(text: str | None) -> Secret | None:
    """A Secret, where there is one."""
    return None if text is None else Secret(text)


def redact(text: str) -> str:
    """`text` with stars for every Secret made so far."""
    for form in sorted(_forms, key=len, reverse=True):
        text = text.replace(form, STARS)
    return text


def redacted(data: Any) -> Any:
    """JSON-like data with stars within its texts, keys included; numbers stay numbers."""
    if not _forms:
        return data
    if isinstance(data, str):
        return redact(data)
    if isinstance(data, dict):
        return {redacted(key): redacted(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [redacted(one) for one in data]
    return data


def printable(text: str) -> str:
    r"""Text that may come from a host, with its control characters shown and not obeyed by a terminal.

    >>> printable("a\x1b[2J\tb\n")
    'a\\x1b[2J\tb\n'
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(one: str) -> str:
    return one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode()


class _Redacting:
    """A text stream that writes no Secret; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def kept_from_output() -> Iterator[None]:
    """No Secret is written to stdout and stderr; also not by the traceback of a bug, whenever that is printed."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Redacting(stream) for stream in before)
    sys.excepthook = _say_traceback
    threading.excepthook = lambda told: _say_traceback(told.exc_type, told.exc_value, told.exc_traceback)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _say_traceback(kind: type[BaseException], error: BaseException | None, where: TracebackType | None, /) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, where))))


def ask(question: str) -> Secret:
    """Ask on the terminal, without echo; without a terminal, read a line of stdin.

    :raises EOFError: there is neither.
    :raises BadInput: what was typed is no text.
    """
    try:
        text = _typed(question)
        text.encode()  # a login in the C locale hands bytes on as they are
    except UnicodeError:
        raise BadInput(f"{question.rstrip(': ')}: what was typed is not UTF-8") from None
    return Secret(text)


def _typed(question: str) -> str:
    import getpass

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        if sys.stdin is None or not sys.stdin.isatty():  # getpass would warn, with a line of its source
            line = sys.stdin.readline() if sys.stdin is not None else ""
            if not line:
                raise EOFError(question) from None
            return line.rstrip("\n")
    return getpass.getpass(question)


def from_command(option: str, command: str) -> Secret:
    """The first line that a program prints, such as a password manager's; no shell is involved.

    :param option: for errors.
    :raises BadInput: it cannot be started, fails, or prints nothing.
    """
    try:
        argv = shlex.split(command)
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                said = process.stdout.read(LONGEST + 1)
            except BaseException:
                process.terminate()  # who is interrupted leaves nothing behind
                raise
            if len(said) > LONGEST:
                process.kill()
                raise BadInput(f"{option}: {argv[0]} prints more than {LONGEST:,} bytes, not a password")
    except (ValueError, IndexError) as error:
        raise BadInput(f"{option}: cannot be split into words: {error}") from None
    except OSError as error:
        raise BadInput(f"{option}: cannot start {argv[0]}: {error.strerror}") from None
    if process.returncode:
        raise BadInput(f"{option}: {argv[0]} failed with exit status {process.returncode}")
    line = said.partition(b"\n")[0].rstrip(b"\r")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise BadInput(f"{option}: what {argv[0]} printed is not UTF-8") from None
    if not text:
        raise BadInput(f"{option}: {argv[0]} printed no password")
    return Secret(text)
