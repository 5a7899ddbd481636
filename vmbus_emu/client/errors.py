"""What can go wrong with a machine, seen from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: How long a verb waits for its reply, in seconds.
DEADLINE_S = 10.0
#: How long a machine that is asked something may be stopped by a signal before that is told.
STOPPED_S = 1.5


class MachineError(Exception):
    """Something about a machine failed. One line; ``hint`` says what to try, possibly empty."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


class NotRunning(MachineError):
    """There is no such machine."""


class Stopped(MachineError):
    """The machine, or its front door, is stopped by a signal. It goes on when somebody continues it."""


class Forgotten(MachineError):
    """The machine has ended its conversation with this client: what was under way for it is lost."""


def checked(reply: Mapping[str, Any]) -> dict[str, Any]:
    """The reply, unless it is a refusal, which is raised."""
    if "error" in reply:
        raise MachineError(reply["error"], reply.get("hint", ""))
    return dict(reply)
