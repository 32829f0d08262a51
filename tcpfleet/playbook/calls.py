"""What an action asks of a host."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any


class ActionFailed(Exception):
    """A task fails on the controller, with the sentence that says why."""


@dataclass(frozen=True)
class Call:
    """An operation of the payload and its arguments."""

    operation: str
    args: dict[str, Any]


# Calls to make one after the other; each is sent the result of its operation. Returns the task's result.
Conversation = Generator[Call, dict[str, Any], dict[str, Any]]
