"""Every error a user can meet, each with the exit code that the README documents.

Code below raises one of these with a sentence that says what is wrong, where, and how to fix it;
`tcpfleet.cli` prints that sentence and exits. Anything else that escapes is a bug and keeps its
traceback.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_BAD_INPUT = 1
EXIT_HOST_FAILED = 2
EXIT_VERDICT_FAIL = 3
EXIT_UNREACHABLE = 4
EXIT_REFUSED = 5
EXIT_INTERRUPTED = 130

# If several apply to one command, the first of these wins.
EXIT_PRECEDENCE = (
    EXIT_INTERRUPTED,
    EXIT_BAD_INPUT,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_HOST_FAILED,
    EXIT_VERDICT_FAIL,
)


class TcpfleetError(Exception):
    """A failure that is explained to the user in one sentence.

    :cvar exit_code: what the process exits with when nothing of higher precedence happened.
    """

    exit_code = EXIT_BAD_INPUT


class BadInput(TcpfleetError):
    """Wrong use, wrong option, or a file of the user's that does not parse (exit 1)."""


class LocatedError(BadInput):
    """Bad input with a place: prints as ``file:line:column: what is wrong``.

    :param message: what is wrong and what would be right.
    :param file: path as the user would write it.
    :param line: 1-based, or None when only the file is known.
    :param column: 1-based, or None.
    """

    def __init__(self, message: str, file: str, line: int | None = None, column: int | None = None) -> None:
        self.message, self.file, self.line, self.column = message, file, line, column
        place = ":".join(str(part) for part in (file, line, column) if part is not None)
        super().__init__(f"{place}: {message}")


class HostFailed(TcpfleetError):
    """A host answered, and what was asked of it failed there (exit 2)."""

    exit_code = EXIT_HOST_FAILED


class Unreachable(TcpfleetError):
    """A host could not be reached, refused the login, or fell silent (exit 4)."""

    exit_code = EXIT_UNREACHABLE


class Refused(TcpfleetError):
    """A plan that cannot work; nothing was started (exit 5)."""

    exit_code = EXIT_REFUSED


class NothingListens(Refused):
    """There is no server: a plan of any size would be refused."""


class Interrupted(TcpfleetError):
    """SIGINT, SIGTERM or SIGHUP arrived and clean-up is done (exit 130)."""

    exit_code = EXIT_INTERRUPTED


def worst(codes: list[int]) -> int:
    """The exit code of a command in which all of `codes` happened.

    >>> worst([0, 2, 4])
    4
    """
    return next((code for code in EXIT_PRECEDENCE if code in codes), EXIT_OK)
