"""When the numbers of a run are doubted, and what is advised."""

from __future__ import annotations

import pytest

from bench.doubt import Loads, Watch, doubts

QUIET = {"steal": 0.0, "foreign_cpus": 0.0, "elapsed_s": 60.0, "pressure": 0.0}
CALM = Loads({"ping on x": 0.1}, {"null on x": 0.01}, [])


@pytest.mark.parametrize(("watched", "medians", "loads", "told"), [
    ({"steal": 0.05}, {}, CALM, "steal"), ({"foreign_cpus": 1.0}, {}, CALM, "other processes used 1.00"),
    ({}, {"null on x": [1, 1, 9, 1, 9, 9]}, CALM, "null on x varied"),
    ({}, {}, CALM._replace(late={"a": 0.1, "b": 3.0}), "load of b was 3.0 intervals late"),
    ({}, {}, CALM._replace(stalled={"a": 0.3, "b": 0.0}), "load of a stood still for 30 %"),
    ({}, {}, CALM._replace(misplaced=["x: vm1 is not pinned to processor 0"] * 9), "not pinned to processor 0, so"),
    ({}, {}, CALM._replace(misplaced=["x: vm1", "x: vm2"]), "x: vm1 and 1 more"),
])
def test_a_run_is_doubted_for_a_reason_with_advice(
    watched: dict[str, float], medians: dict[str, list[float]], loads: Loads, told: str
) -> None:
    assert doubts(QUIET, {"null": [1.0, 1.1, 0.9]}, CALM) == []
    (reason,) = doubts({**QUIET, **watched}, medians, loads)
    assert told in reason
    assert ": " in reason or "; " in reason


def test_a_watch_tells_our_own_time_from_that_of_others() -> None:
    watch = Watch()
    watch.ours(5.0)
    seen = watch.end()
    assert seen["foreign_cpus"] == 0.0
    assert set(QUIET) <= set(seen)
