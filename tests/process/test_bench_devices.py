"""``bench devices`` on real machines: the protocol sheet's counts are what a request costs, to the single intercept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Lab

#: Of a 4 KiB read (protocol sheet 7), and of the same write with FLUSH CACHE behind it.
READ = {"dma": 26, "string": 24}
WRITE_AND_FLUSH = {"dma": 35, "string": 34}
#: Interrupts of these reads: one for each command by DMA, else one for each sector.
INTERRUPTS = {"dma": 1, "string": 8}


@pytest.mark.parametrize("arch", ["microkernel", "monolithic"])
def test_the_verb_counts_the_intercepts_of_each_request(lab: Lab, tmp_path: Path, arch: str) -> None:
    kept = tmp_path / "run.json"
    status, out, errors = lab.cli(
        "bench", "devices", "--arch", arch, "--devices", "synthetic,dma,string", "--rounds", "1", "--seconds", "0.05",
        "--json", str(kept),
    )  # fmt: skip
    assert status == 0, errors
    run: dict[str, Any] = json.loads(kept.read_text())
    rows = {(row["job"], row["devices"]): row for row in run["results"] if row["transport"] != "ring"}
    assert [row["failed"] for row in rows.values()] == [[]] * 9
    counter = "accesses" if arch == "monolithic" else "intercepts"
    for job, counts in (("read-4k", READ), ("write-flush-4k", WRITE_AND_FLUSH)):
        assert {mode: rows[job, mode]["per_op"][counter] for mode in counts} == counts
    synthetic = rows["read-4k", "synthetic"]
    assert not set(synthetic["per_op"]) & {"accesses", "intercepts", "interrupts", "frames"}
    crossings = {mode: rows["read-4k", mode]["crossings_per_op"] for mode in READ}
    if arch == "monolithic":
        assert crossings == dict.fromkeys(READ, 0)
        assert b"(26)" in out
    else:
        assert crossings == {mode: 4 * READ[mode] + 2 * INTERRUPTS[mode] for mode in READ}
        # There and back, each over the cable to the switch and the cable from it.
        assert rows["ping", "dma"]["per_op"]["frames"] == pytest.approx(4, abs=0.5)
        assert synthetic["crossings_per_op"] == pytest.approx(2, abs=0.1)


def test_by_words_a_read_costs_what_the_sheet_says_and_the_window_holds_one(lab: Lab, tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    status, _, errors = lab.cli(
        "bench", "devices", "--arch", "microkernel", "--devices", "words", "--rounds", "1", "--seconds", "0.01",
        "--json", str(kept),
    )  # fmt: skip
    assert status == 0, errors
    rows = {row["job"]: row for row in json.loads(kept.read_text())["results"]}
    assert {job: rows[job]["per_op"]["intercepts"] for job in ("read-4k", "write-flush-4k")} == {
        "read-4k": 2064, "write-flush-4k": 2074}
