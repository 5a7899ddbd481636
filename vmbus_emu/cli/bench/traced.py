"""``--trace FILE``: single requests of a run's jobs taken apart, when the run is over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmbus_emu.cli.errors import Failure
from vmbus_emu.cli.outfile import OutFile, attempt

if TYPE_CHECKING:
    from bench.jobs import Job
    from bench.machines import Configuration
    from bench.measurement import Told


def take_apart(
    run: dict[str, Any], configurations: Sequence[Configuration], jobs: Sequence[Job], pin: str, file: OutFile | None,
    told: Told,
) -> Failure | None:
    """Trace ``jobs``, write ``file`` (or say why it could not be), and put ``waterfalls`` into ``run``; ``untraced``
    says what was left out."""
    from bench import chrometrace, runner, tracing

    found = tracing.trace(configurations, jobs, runner.placed(pin)[0], told)
    run["waterfalls"] = found.waterfalls
    run["untraced"] = found.untraced
    return attempt(file, lambda: json.dumps(chrometrace.document(found.examples), separators=(",", ":")) + "\n")


def lines(run: Mapping[str, Any], file: OutFile | None) -> Iterator[str]:
    """What to print of it, also of a run of which nothing was traced."""
    from bench.waterfall import waterfall_lines

    if not run.get("waterfalls") and not run.get("untraced"):
        yield "Nothing is taken apart: --trace does that with requests to disks, as in bench latency --job read-4k."
        return
    yield from waterfall_lines(run["waterfalls"])
    yield ""
    for left_out in run["untraced"]:
        yield f"{left_out}."
    if run["waterfalls"] and file is not None and not file.to_stdout:
        yield f"{file.name} opens in Perfetto (https://ui.perfetto.dev) and in chrome://tracing."
