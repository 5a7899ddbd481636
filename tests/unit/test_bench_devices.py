"""``bench devices``: what is measured, for how long, and how it reads. No process is started."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench import runner
from bench.devices import MOST_BY_WORDS, configurations, jobs
from bench.devicetable import device_lines
from bench.jobs import STANDARD, BadJob
from bench.machines import WORDS_SLOWNESS, Configuration, slowness
from bench.report.sentence import summary
from bench.report.stored import Run
from bench.report.tables import tax
from tests import measured_runs
from vmbus_emu.cli.main import cli

ZMQ, RING = Configuration("microkernel", "zmq"), Configuration("microkernel", "ring", "adaptive")
DMA, WORDS = (Configuration("microkernel", "zmq", None, mode) for mode in ("dma", "words"))
CALL, CALL_WORDS = Configuration("monolithic", "call"), Configuration("monolithic", "call", None, "words")


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "devices", *arguments])


def test_the_first_configuration_is_what_the_others_are_held_against() -> None:
    every = configurations(("microkernel", "monolithic"), ("words", "string", "dma", "synthetic"))
    assert every[:3] == [ZMQ, RING, DMA]
    assert [one.name for one in every[3:]] == [
        "microkernel, IDE by string I/O", "microkernel, IDE by words", "monolithic", "monolithic, IDE by DMA",
        "monolithic, IDE by string I/O", "monolithic, IDE by words",
    ]  # fmt: skip
    assert configurations(("monolithic",), ("dma", "words")) == [
        Configuration("monolithic", "call", None, "dma"), CALL_WORDS]


def test_only_disks_whose_every_word_is_an_intercept_are_measured_for_longer() -> None:
    read, ping = STANDARD["read-4k"], STANDARD["ping"]
    assert [slowness(of, read) for of in (ZMQ, DMA, CALL_WORDS, WORDS)] == [1, 1, 1, WORDS_SLOWNESS]
    assert slowness(WORDS, ping) == 1
    # At least one request of half a second, also after the warm-up.
    assert read.seconds * WORDS_SLOWNESS >= 4


def test_reads_of_other_sizes_come_beside_the_jobs() -> None:
    found = jobs([512, 4096, 512], 0.1, [WORDS])
    assert [(job.name, job.size) for job in found] == [
        ("read-4k", 4096), ("read-4k", 512), ("write-flush-4k", 4096), ("ping", 56)]
    assert {job.seconds for job in found} == {0.1}
    assert {job.depth for job in found} == {1}
    large = 2 * MOST_BY_WORDS
    assert jobs([large], 0.1, [DMA])[1] == replace(STANDARD["read-4k"], size=large, seconds=0.1)
    with pytest.raises(BadJob, match="a read of 131072 bytes word by word takes 65536 intercepts"):
        jobs([large], 0.1, [DMA, WORDS])


@pytest.mark.parametrize(("arguments", "told"), [
    (["--devices", "pio"], '"pio": say all, or some of synthetic, dma, string, words'),
    (["--arch", "mono"], '"mono": say all, or some of monolithic'), (["--size", "513"], "no whole sectors"),
    (["--size", "1m"], "--devices without words, or sizes up to 64k"), (["--trace", "t.json"], "no requests apart"),
    (["--size", "2m", "--devices", "dma"], "has 1 to 1048576 bytes"),
])
def test_what_cannot_be_measured_is_refused_in_one_line(arguments: list[str], told: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert told in line


def test_the_verb_asks_for_eight_rounds_and_for_what_bounds_synthetic_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def measured(*given: Any, **named: Any) -> Any:
        asked.append(given)
        return measured_runs.devices()

    monkeypatch.setattr(runner, "run", measured)
    result = bench("--arch", "microkernel", "--devices", "synthetic,words")
    assert result.exit_code == 0, result.stderr
    chosen, _, baselines, rounds = asked[0][:4]
    assert (chosen, baselines, rounds) == ([ZMQ, RING, WORDS], ["pyzmq-msgpack", "shm-spin"], 8)


def test_the_table_shows_intercepts_and_calls_apart() -> None:
    run = measured_runs.devices()
    told = list(device_lines(run))
    assert max(map(len, told)) <= 120
    reads = {line[2:34].strip(): line for line in told[1:11]}
    counts = {name: line.split()[-1] for name, line in reads.items() if "IDE" in name}
    assert counts == {
        f"{arch}, IDE by {mode}": count.format(calls)
        for arch, count in (("microkernel", "{}"), ("monolithic", "({})"))
        for mode, calls in (("DMA", "26"), ("string I/O", "24"), ("words", "2,064"))
    }
    assert reads["microkernel zmq"].split()[-1] == "-"
    assert any("fewer than 8 sample sets" in line for line in told)
    assert "In brackets: accesses that are calls, in the monolith." in told


def test_what_failed_is_in_the_table_with_its_reason() -> None:
    run = measured_runs.devices()
    run["results"][2] |= {"p50_us": None, "repetitions": 0, "failed": ["vm1: it died"]}
    (line,) = [line for line in device_lines(run) if "it died" in line]
    assert line.split() == ["microkernel,", "IDE", "by", "DMA", "-", "vm1:", "it", "died"]


def test_the_report_has_words_and_a_column_for_them() -> None:
    run = Run(measured_runs.devices())
    assert "in the microkernel" in summary(run)
    assert "with IDE by words" in summary(run)
    assert ">intercepts<" in tax(run)
    assert ">2,064<" in tax(run)
    assert "intercepts" not in tax(Run(measured_runs.run([STANDARD["null"]], rounds=2, count=60)))
