"""The host's view of one guest's life: who answers its heartbeats, and who has stopped to. No I/O.

A guest is never killed for silence. It is ``ok`` while it answers and ``lost`` when :data:`MISSED` beats in a row had
no answer by the time of the next; of one that never had a channel, or has none now, nothing is known.
"""

from __future__ import annotations

from vmbus_emu.protocol.ic import Beat

#: Beats in a row without an answer.
MISSED = 2


class Heartbeat:
    """One guest's. :attr:`state` is ``None``, ``ok`` or ``lost``."""

    def __init__(self) -> None:
        self.state: str | None = None
        self.answered = 0
        self._sequence = 0
        self._unanswered = 0

    def beat(self) -> Beat:
        """The next one to be sent, when its time has come."""
        if self._unanswered >= MISSED:
            self.state = "lost"
        self._unanswered += 1
        self._sequence += 2
        return Beat(self._sequence)

    def heard(self, answer: Beat) -> None:
        """The guest answered, if only to an earlier beat than the last: it lives. Other numbers say nothing."""
        if answer.sequence % 2 and answer.sequence <= self._sequence + 1:
            self.state = "ok"
            self.answered += 1
            self._unanswered = 0

    def gone(self) -> None:
        """The channel is."""
        self.state = None
        self._unanswered = 0
