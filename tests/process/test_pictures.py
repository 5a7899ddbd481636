"""A run of a real machine as an image: it comes, nothing is said about fonts, and the machine loads nothing for it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Lab

NICS = {"vm": [{"name": f"vm{n}", "disk": [{"ram": "4MiB"}], "nic": [{"switch": "s0"}]} for n in (1, 2)],
        "switch": [{"name": "s0"}]}  # fmt: skip


@pytest.mark.parametrize("arch", ["disaggregated", "monolithic"])
def test_chaos_draws_a_run_in_which_everything_may_have_died(
    lab: Lab, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", "/proc/nowhere")     # a first use, and no place to remember what was found
    machine = lab.up(arch, **NICS)
    image, again, kept = (lab.folder / name for name in ("run.png", "again.png", "run.json"))
    words = ["--kill", "storvsp", "--every", "300ms", "--for", "900ms", "--json", str(kept), "--png", str(image)]
    status, _, errors = lab.cli("chaos", "--name", "m", *words)
    assert (status, errors) == (0, "")
    drawn = image.read_bytes()
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", drawn[16:20]) == (1800,)
    assert b"storvsp killed " in drawn       # its title
    for pid in {row["pid"] for row in lab.rows(machine).values()}:
        assert "matplotlib" not in Path(f"/proc/{pid}/maps").read_text()
    status, _, errors = lab.cli("check", str(kept), "--png", str(again))
    assert (status, errors) == (0, "")
    assert again.read_bytes() == drawn
