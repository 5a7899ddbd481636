"""What every run begins and ends with, whatever it measures: the host described, watched and doubted, a seed, and the
document that keeps it (:mod:`bench.results`)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from bench import environment, results
from bench.doubt import Loads, Watch, doubts
from bench.pins import NONE

#: How many steps there are, how many are done, and what is done now. Called between what is measured.
Told = Callable[[int, int, str], Any]
One = TypeVar("One", bound=Hashable)
Found = TypeVar("Found")


def untold(total: int, done: int, what: str) -> None:
    """Nobody looks."""


class Measurement:
    """From its making to :meth:`document`. ``seed``: ``None`` draws one; ``command``: what reproduces the run;
    ``pinning``: who ran where."""

    def __init__(
        self, seed: int | None, command: Sequence[str], pinning: Mapping[str, Any] = MappingProxyType({"asked": NONE})
    ) -> None:
        self.seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        self.chance = random.Random(self.seed)
        self.environment: dict[str, Any] = environment.describe() | {"pinning": dict(pinning)}
        self.watch = Watch()
        self._command = list(command)

    def rounds(
        self, contenders: Sequence[One], rounds: int, measure: Callable[[One], Found], name: Callable[[One], str],
        told: Told,
    ) -> dict[One, list[Found]]:
        """What ``measure`` found of each contender, once in each round, in random order: the host's moods are
        everybody's."""
        found: dict[One, list[Found]] = {one: [] for one in contenders}
        done = 0
        for _ in range(rounds):
            for one in self.chance.sample(list(contenders), len(contenders)):
                told(rounds * len(contenders), done, name(one))
                found[one].append(measure(one))
                done += 1
        return found

    def document(
        self, medians: Mapping[str, Sequence[float]], loads: Loads | None = None, reasons: Iterable[str] = (),
        rows: Sequence[results.Result] = (), bases: Sequence[results.Result] = (), **more: Any,
    ) -> dict[str, Any]:
        """The run. ``medians``: by what was measured, over the sets; ``reasons``: further ones to doubt it; ``more``:
        what else it holds."""
        watched = self.watch.end()
        against = [*reasons, *doubts(watched, medians, loads or Loads({}, {}, ()))]
        return {
            "schema": results.SCHEMA, "environment": self.environment | {"watched": watched}, "stable": not against,
            "reasons": against, "seed": self.seed, "command": self._command,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "results": list(rows), "baselines": list(bases), "ratios": results.ratios(rows, bases), **more,
        }  # fmt: skip
