"""What the report of a benchmark says in words: the sentence, the surroundings, what a stored run is read as."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from bench.jobs import STANDARD as JOBS
from bench.machines import MODES, Configuration
from bench.machines import STANDARD as CONFIGURATIONS
from bench.report.bars import segments
from bench.report.curves import quantiles
from bench.report.drawing import log_ticks, look
from bench.report.sentence import ENOUGH, few, headline, summary
from bench.report.stored import Row, Run, carried, located
from bench.report.surroundings import told
from bench.table import job_title
from tests.measured_runs import CASES, FULL, Document, boot, document, environment, half_failed, nulled, run, scale


def row(of: Configuration, p50_us: float | None, job: str = "read-4k", **figures: Any) -> Document:
    return {"job": job, "arch": of.arch, "transport": of.transport, "poll": of.poll, "size": JOBS[job].size, "depth": 1,
            "rate": None, "vms": 2, "p50_us": p50_us, "repetitions": 10, "failed": [], **figures}  # fmt: skip


def ratio(of: Configuration, value: float, interval: list[float], significant: bool = True) -> Document:
    place = {"arch": of.arch, "transport": of.transport, "poll": of.poll}
    return {"job": "read-4k", "size": 4096, "depth": 1, "metric": "p50_us", "of": place, "value": value,
            "to": {"arch": "monolithic", "transport": "call", "poll": None}, "interval": interval,
            "significant": significant}  # fmt: skip


CALL, ZMQ, RING, APART, _ = CONFIGURATIONS
FIRST = row(CALL, 1.94, interval_p50_us=[1.9, 2.0])
TAX = "On this machine a 4 KiB cached read takes 1.94 µs (1.90 to 2.00) in the monolith"


@pytest.mark.parametrize(
    ("rows", "ratios", "sentence"),
    [
        ([FIRST], [], f"{TAX}."),
        ([FIRST, row(ZMQ, 44.0), row(RING, 8.0), row(APART, 46.0)],
         [ratio(ZMQ, 23.0, [21.0, 25.0]), ratio(RING, 4.1, [3.9, 4.4]), ratio(APART, 24.0, [22.0, 26.0])],
         f"{TAX}; in the microkernel 23.0 times as long over ZeroMQ (21.0 to 25.0) and 4.10 times over rings "
         "(3.90 to 4.40); disaggregated 24.0 times as long over ZeroMQ (22.0 to 26.0)."),
        ([FIRST, row(RING, 1.95)], [ratio(RING, 1.01, [0.97, 1.04], False)],
         f"{TAX}; in the microkernel 1.01 times as long over rings (0.97 to 1.04, not significant)."),
        ([FIRST, row(RING, 8.0, repetitions=3)], [ratio(RING, 4.1, [3.9, 4.4], False)],
         f"{TAX}; in the microkernel 4.10 times as long over rings (3.90 to 4.40); 3 machines of each are too few to "
         "call a difference significant."),
        ([FIRST, row(ZMQ, None), row(RING, 8.0)], [],
         f"{TAX}; in the microkernel 8.00 µs over rings; over ZeroMQ in the microkernel it was not measured."),
        ([row(CALL, None), row(ZMQ, 1500.0)], [],
         "On this machine a 4 KiB cached read takes 1.50 ms over ZeroMQ in the microkernel; in the monolith it was not "
         "measured."),
        ([row(CALL, None)], [], "On this machine none of the jobs could be measured."),
    ],
)  # fmt: skip
def test_the_sentence_says_what_was_measured(rows: list[Document], ratios: list[Document], sentence: str) -> None:
    assert summary(Run(document(results=rows, ratios=ratios))) == sentence


def test_an_unstable_run_says_so_first() -> None:
    assert summary(Run(document(results=[FIRST], stable=False, reasons=["steal"]))) == (
        f"Unstable, so not to be relied on: o{TAX[1:]}.")


def test_the_sentence_is_about_the_best_known_job_one_at_a_time() -> None:
    def chosen(*rows: Document) -> tuple[str, int, int]:
        group = headline(Run(document(results=list(rows))))
        assert group
        return group[:3]

    deep, odd = FIRST | {"depth": 8}, FIRST | {"size": 512}
    assert chosen(row(CALL, 1.0, "ping"), deep, row(CALL, 1.0, "null"), FIRST) == ("read-4k", 4096, 1)
    assert chosen(row(CALL, 1.0, "ping"), odd) == ("ping", 56, 1)
    assert chosen(odd, odd | {"job": "mine", "size": 1}) == ("read-4k", 512, 1)
    assert chosen(row(CALL, None), deep) == ("read-4k", 4096, 8)
    assert summary(Run(document(results=[odd]))).startswith("On this machine one request of “read-4k, 512 bytes, depth")
    assert "a 4 KiB cached read, 8 at once, takes" in summary(Run(document(results=[deep])))


def test_runs_without_jobs_have_a_sentence_too() -> None:
    scaled = summary(Run(document(scale=scale())))
    assert scaled.startswith("On this machine 64 VMs, all busy, get so many requests per second done: 200,000 (180,000 "
                             "to 220,000) in the monolith, 100,000 (90,000 to 110,000) over ZeroMQ in the")  # fmt: skip
    assert "; 64 VMs are up after 84.0 ms (83.0 to 88.0) in the monolith, " in scaled
    assert summary(Run(document(boot=boot()[:1]))) == (
        "On this machine one VM is up after 31.0 ms (29.0 to 34.0) in the monolith.")
    fastest = summary(Run(CASES["baselines"]))
    assert fastest.startswith("On this machine a round trip of 64 bytes takes 0.10 µs (0.10 to 0.10) by call and 5")
    assert summary(Run({})) == summary(Run(document())) == "Nothing was measured."
    assert "None" not in summary(Run(nulled(FULL)))
    assert "could not be measured" in summary(Run(document(scale=nulled(scale()))))


def test_eight_machines_that_agree_are_enough() -> None:
    assert ENOUGH == 8
    for rounds, expected in ((7, True), (8, False)):
        found = Run(run([JOBS["null"]], CONFIGURATIONS[:2], rounds, 20))
        (group,) = found.groups
        assert few(group) is expected
        times = found.times(group, group.rows[1])
        assert times
        assert times.significant is not expected


# -- how a run is read --------------------------------------------------------------------------------------------


def test_a_row_is_read_whatever_is_in_it() -> None:
    odd = Row({"arch": None, "p50_us": "9", "p99_us": True, "ops_per_s": float("nan"), "interval_p50_us": [1, None],
               "sets": [1], "cpu_us_per_op": 3, "cpu_us_by_process": {"vm1": None, "a": 0, "b": 2}, "failed": "x"})
    assert [odd.figure(name) for name in ("p50_us", "p99_us", "ops_per_s", "none")] == [None] * 4
    assert (odd.figure("cpu_us_per_op"), odd.interval("p50_us"), odd.column("p50_us")) == (3.0, None, [])
    assert (odd.shares(), odd.failures, odd.vms, odd.depth) == ({"b": 2.0}, "", 0, 1)


def test_old_runs_have_no_rates_and_no_vms() -> None:
    old = deepcopy(half_failed())
    for one in old["results"]:
        for name in ("rate", "vms", "crossings_per_op"):
            one.pop(name, None)
    found = Run(old)
    assert [group.title for group in found.groups] == ["null request"]
    assert summary(found) == summary(Run(half_failed()))


def test_ratios_go_to_their_rows() -> None:
    found = Run(document(results=[FIRST, row(RING, 8.0), row(RING, 8.0) | {"depth": 8}],
                         ratios=[ratio(RING, 4.0, [3.0, 5.0]) | {"metric": "ops_per_s"}, ratio(RING, 4.1, [3.9, 4.4]),
                                 ratio(RING, 8.0, [7.0, 9.0]) | {"to": {"baseline": "shm-spin"}}]))  # fmt: skip
    first, deep = found.groups
    times = found.times(first, first.rows[1])
    assert times is not None
    assert (times.value, times.interval) == (4.1, (3.9, 4.4))
    assert found.times(first, first.rows[0]) is None
    assert found.times(deep, deep.rows[0]) is None
    assert [(group.depth, bound, times.value) for group, _, bound, times in found.bounds()] == [(1, "shm-spin", 8.0)]


def test_quantiles_go_as_far_as_percentiles_are_known() -> None:
    stored = {"distribution_us": [1.0 + point / 200 for point in range(200)]}
    assert quantiles(Row(stored))[-1] == (0.9, 1.9)
    assert quantiles(Row(stored | {"p99_us": 1.99}))[-1] == (0.99, 1.99)
    assert quantiles(Row(stored | {"p99_us": 1.99, "p999_us": 7.0}))[-2:] == [(0.995, 1.995), (0.999, 7.0)]
    for broken in ([], None, [1.0, None], ["1"], [0.0, 1.0]):
        assert quantiles(Row({"distribution_us": broken, "p99_us": 1.0})) == []


def test_segments_without_a_place_in_time_are_left_out() -> None:
    steps = [{"name": "send", "process": "vm1", "start_us": 1, "us": 2}, {"name": "x", "start_us": None, "us": 1}, None]
    assert segments(Row({"segments": steps})) == [("send", "vm1", 1.0, 2.0)]


def test_configurations_have_words_and_looks_of_their_own() -> None:
    assert [(carried(of), located(of)) for of in (CALL, ZMQ, RING, APART)] == [
        ("", "in the monolith"), ("over ZeroMQ", "in the microkernel"), ("over rings", "in the microkernel"),
        ("over ZeroMQ", "disaggregated"),
    ]  # fmt: skip
    assert carried(Configuration("microkernel", "ring", "never")) == "over rings that sleep"
    by_dma = Configuration("microkernel", "zmq", None, "dma")
    assert (carried(by_dma), located(by_dma)) == ("with IDE by DMA", "in the microkernel")
    every = [
        *CONFIGURATIONS, *(Configuration("microkernel", "ring", poll) for poll in ("never", "always")),
        *(Configuration(arch, "zmq", None, mode) for arch in ("microkernel", "monolithic") for mode in MODES),
    ]  # fmt: skip
    assert len({(one.marker, one.filled) for one in map(look, every)}) == len(every)


@pytest.mark.parametrize("values", [[1.0], [9.9, 10.1], [0.8, 130.0], [1e-3, 1e9], [2.0, 7.0], [0.34, 0.7]])
def test_an_axis_has_labels_and_holds_its_values(values: list[float]) -> None:
    low, high, places = log_ticks(values)
    assert low < min(values) <= max(values) < high
    assert 2 <= len(places) <= 6
    assert all(low <= place <= high for place in places)


def test_a_standard_job_of_another_size_has_no_title_that_would_be_wrong() -> None:
    assert job_title("read-4k", 4096, 1, None) == "4 KiB random read, cached"
    assert job_title("read-4k", 65536, 1, None) == "read-4k, 65536 bytes, depth 1"
    assert job_title("null", 0, 1, 5000.0) == "null request, 5000/s"
    assert job_title("mine", 0, 2, None) == "mine, depth 2"


# -- surroundings -------------------------------------------------------------------------------------------------


def test_the_environment_is_told_in_words() -> None:
    words = dict(told(environment() | {"pinning": {"asked": "apart", "guests": [0], "hosts": [1]}}))
    assert words == {
        "Processor": "A processor, 2 processors, a virtual machine", "Clock": "governor unknown", "Memory": "25.0 GiB",
        "Kernel": "6.1", "Python": "CPython 3.11.7, with the interpreter's lock, threads take turns every 5 ms",
        "Software": "vmbus-emu 0.1.0, iceoryx2 not installed, libzmq 4.3.5", "Revision": "abc, with changes",
        "Pinning": "asked for: apart; guests on 0; hosts on 1", "Began": "2026-01-01T00:00:00Z",
        "Load": "0.50 when it began",
        "Meanwhile": "it took 160 s; the host took away 0.1 % of the processors (steal); other processes used 0.02 "
        "processors; pressure unknown",
    }  # fmt: skip


@pytest.mark.parametrize(("key", "value", "name", "words"), [
    ("affinity", [1], "Processor", "A processor, 2 processors, of which the run could use 1, a virtual machine"),
    ("turbo_off", "1", "Clock", "governor unknown, turbo off"), ("revision", "abc", "Revision", "abc"),
    ("gil", False, "Python", "CPython 3.11.7, without the interpreter's lock, threads take turns every 5 ms"),
    ("later_thing", {"a_b": [1, None, True], "c": 0.25}, "later thing", "a b: 1, unknown, yes; c: 0.25"),
    ("watched", {"steal": None, "new": 3}, "Meanwhile", "steal unknown; new: 3"),
    ("memory_bytes", None, "Memory", "unknown"),
])
def test_all_of_it_is_told_also_what_is_not_known_here(key: str, value: Any, name: str, words: str) -> None:
    assert dict(told(environment() | {key: value}))[name] == words


def test_of_nothing_nothing_is_told() -> None:
    assert list(told({})) == []
    assert all("None" not in words for _, words in told(nulled(environment())))
