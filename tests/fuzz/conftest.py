"""Fuzz tests: everything that reads a peer's bytes, and every state table behind it, fed with what nobody meant.

A **case** is one independently seeded input or sequence of inputs. Nothing may raise, whatever the case says, and
the invariants that each test names must hold after it: a hostile guest loses its own channel, device or connection,
and nobody else notices.

* How many: a test asks its ``fuzz`` fixture for a number of cases, which ``pytest --fuzz-cases N`` (or the
  environment variable ``VMBUS_EMU_FUZZ_CASES``) scales so that all of them together are about N. The default is above
  100,000 and takes about a minute on two cores. The number that ran stands in the summary.
* Which: a case is its number, so a run is repeated exactly. A failed test's report names the number of the case.
* More of them contain the old ones: case 17 is the same whatever N is.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest


class Fuzz:
    """``fuzz(1000)`` iterates over the numbers of a thousand cases, more or fewer by option."""

    def __init__(self, file: str, scale: float, counts: dict[str, int]) -> None:
        """``counts``: of the cases that ran, by file."""
        self._file = file
        self._scale = scale
        self._counts = counts
        self.case: int | None = None

    def __call__(self, count: int) -> Iterator[int]:
        for case in range(max(1, round(count * self._scale))):
            self.case = case
            self._counts[self._file] = self._counts.get(self._file, 0) + 1
            yield case
        self.case = None


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, fuzz_scale: float, fuzz_counts: dict[str, int]) -> Fuzz:
    return Fuzz(request.path.name, fuzz_scale, fuzz_counts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    source = getattr(item, "funcargs", {}).get("fuzz")
    if report.when == "call" and report.failed and isinstance(source, Fuzz) and source.case is not None:
        report.sections.append(("fuzz", f"case {source.case}"))
    return report
