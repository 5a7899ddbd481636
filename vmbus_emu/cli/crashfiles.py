"""Reading what the machine kept of a process's end: the files in ``crashes`` of its run folder.

:mod:`vmbus_emu.machine.crashes` writes them, and says what is in one. Text may come from anywhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from vmbus_emu.runfolder import RunFolder

_FOLDER = "crashes"
_MOST_BYTES = 4 << 20
_SCREEN, _LOG = "screen:", "last log lines:"


@dataclass(slots=True)
class Crash:
    """One file. ``header`` is as it stands there, by name."""

    file: str
    header: dict[str, str] = field(default_factory=dict)
    screen: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    @property
    def silent(self) -> bool:
        """Whether it said nothing about its end, and the screen only says that."""
        return all(line.startswith("none: ") for line in self.screen)

    @property
    def components(self) -> set[str]:
        """Whose end it was: the process's own component and those that it carried."""
        return {self.header.get("component", ""), *self.header.get("carried", "").split(", ")}


def latest(folder: RunFolder, component: str | None) -> Crash | None:
    """The last one, or the last that ``component`` was part of."""
    try:
        files = sorted(os.scandir(folder.path / _FOLDER), key=lambda entry: entry.stat().st_mtime_ns, reverse=True)
    except OSError:
        return None
    for entry in files:
        try:
            with open(entry.path, "rb") as file:
                crash = parse(entry.name, file.read(_MOST_BYTES).decode(errors="replace"))
        except OSError:
            continue  # there was a newer one, and this had to go
        if component is None or component in crash.components:
            return crash
    return None


def parse(name: str, text: str) -> Crash:
    """A file's text, taken apart. What does not fit is left out."""
    crash = Crash(name)
    section: list[str] | None = None
    for line in text.splitlines():
        if line in (_SCREEN, _LOG):
            section = crash.screen if line == _SCREEN else crash.log
        elif section is not None:
            if line.startswith("  "):
                section.append(line[2:])
        elif ":" in line:
            key, _, value = line.partition(":")
            crash.header[key] = value.strip()
    return crash
