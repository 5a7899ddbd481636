"""Whether comparisons find differences where there are none: ``python -m bench.identical [--pairs N]``.

The same program is measured again and again, in short runs; each run is compared with the one before, as ``vmbus-emu
bench compare`` does it. What is called significant there is none of the program's. Prints the figures of each pair that
were, and how many pairs had any.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from bench import pins, runner
from bench.compare import compare
from bench.jobs import STANDARD
from bench.machines import Configuration

_CONFIGURATIONS = (Configuration("monolithic", "call"), Configuration("microkernel", "ring", "adaptive"))
#: What the pace of the host is taken from.
_BASELINES = ("call", "eventfd", "pyzmq-msgpack", "shm-spin")
_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether comparisons find differences where there are none.")
    parser.add_argument("--pairs", type=int, default=20)
    pairs = parser.parse_args().pairs
    jobs = [replace(STANDARD[name], seconds=_SECONDS) for name in ("null", "read-4k")]
    found = unstable = figures = 0
    before = None
    for number in range(pairs + 1):
        run = runner.run(_CONFIGURATIONS, jobs, _BASELINES, pin=pins.APART)
        unstable += not run["stable"]
        if before is not None:
            rows = compare(before, run)
            figures += len(rows)
            wrong = [
                f"{row['job']} {row['arch']} {row['metric']} x {row['value']:.3f}" for row in rows if row["significant"]
            ]
            found += bool(wrong)
            print(f"pair {number}: {', '.join(wrong) or 'nothing'}", flush=True)
        before = run
    print(f"{found} of {pairs} pairs with something significant, of {figures} figures; {unstable} runs were unstable")


if __name__ == "__main__":
    main()
