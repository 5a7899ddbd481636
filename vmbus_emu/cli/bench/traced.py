"""``--trace FILE``: single requests of a run's jobs taken apart, when the run is over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.jobs import Job
    from bench.machines import Configuration


def take_apart(
    run: dict[str, Any], configurations: Sequence[Configuration], jobs: Sequence[Job], pin: str, file: IO[str],
    told: Callable[[int, int, str], Any],
) -> None:
    """Trace ``jobs``, write ``file``, and put ``waterfalls`` into ``run``; ``untraced`` says what was left out."""
    from bench import chrometrace, runner, tracing

    found = tracing.trace(configurations, jobs, runner.placed(pin)[0], told)
    run["waterfalls"] = found.waterfalls
    run["untraced"] = found.untraced
    write(file, chrometrace.document(found.examples))


def write(file: IO[str], document: Mapping[str, Any]) -> None:
    json.dump(document, file, separators=(",", ":"))
    file.write("\n")


def lines(run: Mapping[str, Any], file: IO[str]) -> Iterator[str]:
    """What to print of it, also of a run of which nothing was traced."""
    from bench.waterfall import waterfall_lines

    if not run.get("waterfalls") and not run.get("untraced"):
        yield "Nothing is taken apart: --trace does that with requests to disks, as in bench latency --job read-4k."
        return
    yield from waterfall_lines(run["waterfalls"])
    yield ""
    for left_out in run["untraced"]:
        yield f"{left_out}."
    if run["waterfalls"] and file.name != "<stdout>":
        yield f"{file.name} opens in Perfetto (https://ui.perfetto.dev) and in chrome://tracing."
