"""The part of a guest's memory that a device model may touch: one window, bounds checked.

Everything in it can change at any moment, and every address is the guest's word: :meth:`GuestMemory.at` answers with
``None`` where there is nothing.
"""

from __future__ import annotations


class GuestMemory:
    """``view``: the bytes at guest-physical address ``gpa`` and after."""

    def __init__(self, gpa: int, view: memoryview) -> None:
        self.gpa = gpa
        self._view = view

    def show(self, view: memoryview) -> None:
        """From now on these bytes are there."""
        self._view = view

    def at(self, address: int, nbytes: int) -> memoryview | None:
        """``nbytes`` at guest-physical ``address``, in place; ``None`` if any of them lies outside."""
        start = address - self.gpa
        return self._view[start : start + nbytes] if 0 <= start <= len(self._view) - nbytes else None
