"""The documents' commands do what the documents say: each is run, in order, and its output compared.

In a ``console`` block a line that begins with ``$ `` is a command and the lines up to the next one are what it
prints, standard error included. A ``toml`` or ``python`` block whose first line is ``# NAME`` is saved under that
name. In what is expected, ``...`` stands for any text, and alone on a line for any lines; runs of blanks count as one.
In the README, which shows what was really printed, every number stands for any number, and for none (``-``), and a
heartbeat (``ok``) likewise.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import vmbus_emu

ROOT = Path(vmbus_emu.__file__).parents[1]
#: For one command; the slowest waits 3 s for a neighbour that does not answer.
DEADLINE_S = 60
_BLOCK = re.compile(r"^```(console|toml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(?<![\w-])\d[\d.]*|(?<=\s)(?:-|ok)(?=\s|$)")


@dataclass
class Step:
    """A command and what it prints, or with ``file`` a file to save."""

    line: int
    command: str = ""
    expected: list[str] = field(default_factory=list)
    file: str = ""


def steps(document: str) -> list[Step]:
    found: list[Step] = []
    for block in _BLOCK.finditer(document):
        first = document.count("\n", 0, block.start(2)) + 1
        lines = block[2].splitlines()
        if block[1] != "console":
            if lines and re.fullmatch(r"# [\w.-]+", lines[0]):
                found.append(Step(first, file=lines[0][2:], expected=lines))
            continue
        assert lines, f"line {first}: an empty console block"
        assert lines[0].startswith("$ "), f"line {first}: a console block begins with a command"
        for number, line in enumerate(lines, first):
            if line.startswith("$ "):
                found.append(Step(number, line[2:]))
            else:
                found[-1].expected.append(line)
    return found


def pattern(expected: list[str], any_numbers: bool = False) -> str:
    """A regular expression for output in :func:`plain` form."""
    parts = []
    for line in plain("\n".join(expected), any_numbers).splitlines():
        if line == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*".join(re.escape(text) for text in line.split("...")) + r"\n")
    return "".join(parts)


def plain(output: str, any_numbers: bool = False) -> str:
    """One blank between words, no blanks at the ends of lines, nor empty lines at the end of it all."""
    text = "\n".join(" ".join(line.split()) for line in output.rstrip().splitlines())
    if any_numbers:
        text = _NUMBER.sub("0", text)
    return text + "\n" if text else ""


class Desk:
    """A folder to work in and a run folder, both empty, and this environment's commands first on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "w"
        self.folder.mkdir()
        runs = folder / "r"
        runs.mkdir(mode=0o700)
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self.environment = {**os.environ, "PATH": path, "VMBUS_EMU_RUN": str(runs), "LC_ALL": "C.UTF-8"}

    def run(self, command: str) -> str:
        """What the command prints. A document that means its status prints it."""
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.environment, timeout=DEADLINE_S, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        return done.stdout

    def machines(self) -> list[str]:
        return [machine["name"] for machine in json.loads(self.run("vmbus-emu ls --json"))["machines"]]


@pytest.fixture
def desk() -> Iterator[Desk]:
    folder = Path(tempfile.mkdtemp(prefix="vmt", dir="/tmp"))  # short: socket paths have 107 bytes
    desk = Desk(folder)
    try:
        yield desk
    finally:
        for name in desk.machines():
            desk.run(f"vmbus-emu down --name {name}")
        shutil.rmtree(folder)


@pytest.mark.parametrize(("document", "any_numbers"), [("docs/tutorial.md", False), ("README.md", True)])
def test_every_command_prints_what_the_document_says(desk: Desk, document: str, any_numbers: bool) -> None:
    todo = steps((ROOT / document).read_text())
    assert len(todo) >= 3
    for step in todo:
        if step.file:
            (desk.folder / step.file).write_text("\n".join(step.expected) + "\n")
            continue
        output = desk.run(step.command)
        if not re.fullmatch(pattern(step.expected, any_numbers), plain(output, any_numbers)):
            shown = "\n".join(step.expected)
            pytest.fail(f"{document}:{step.line}: $ {step.command}\n--- expected\n{shown}\n--- printed\n{output}")
    assert desk.machines() == [], f"{document} leaves machines running"


def test_the_lesson_is_about_twenty_commands_and_shows_every_placement() -> None:
    commands = [step.command for step in steps((ROOT / "docs/tutorial.md").read_text()) if step.command]
    assert len(commands) >= 20
    for verb in ("plan", "up", "ps", "exec", "pingall", "ls", "logs", "down"):
        assert any(command.startswith(f"vmbus-emu {verb}") for command in commands), verb
    assert any("vmbus-emu shell" in command for command in commands)


def test_first_boot_reads_a_random_image_through_all_three_placements(desk: Desk) -> None:
    desk.environment["VMBUS_EMU_VENV"] = sys.prefix
    output = desk.run(f"bash {ROOT / 'examples' / 'first_boot.sh'} 16; echo status $?")
    for arch in ("microkernel", "disaggregated", "monolithic"):
        assert re.search(rf"^{arch} +same sum .* ping ok", output, re.MULTILINE), output
    assert output.endswith("status 0\n"), output
    assert list(desk.folder.iterdir()) == []


def test_first_boot_says_what_it_needs_when_python_is_too_old(desk: Desk) -> None:
    old = desk.folder / "python"
    old.write_text("#!/bin/sh\nexit 1\n")  # "no" to every question about its version
    old.chmod(0o755)
    output = desk.run(f"PYTHON={old} bash {ROOT / 'examples' / 'first_boot.sh'}; echo status $?")
    assert "Python 3.11 or newer" in output
    assert output.endswith("status 1\n")


def test_first_boot_says_what_it_needs_when_python_has_no_venv(desk: Desk) -> None:
    bare = desk.folder / "python"
    bare.write_text('#!/bin/sh\ncase "$2" in *version_info*) exit 0 ;; esac\nexit 1\n')
    bare.chmod(0o755)
    desk.environment |= {"PYTHON": str(bare), "VMBUS_EMU_VENV": str(desk.folder / "none")}
    output = desk.run(f"bash {ROOT / 'examples' / 'first_boot.sh'}; echo status $?")
    assert "python3-venv" in output
    assert output.endswith("status 1\n")


# -- the notation itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a  b", "a b\n", True),
        ("a b", "a c\n", False),
        ("pid ... ready", "pid 4711 ready\n", True),
        ("pid ... ready", "pid 4711 dead\n", False),
        ("a\n...\nb", "a\nb\n", True),
        ("a\n...\nb", "a\nx\ny\nb\n", True),
        ("a\n...", "b\na\n", False),
        ("a", "a\nb\n", False),
        ("", "unexpected\n", False),
        ("a.b", "axb\n", False),
    ],
)
def test_does_the_comparison_notice(expected: str, output: str, same: bool) -> None:
    assert bool(re.fullmatch(pattern(expected.splitlines()), plain(output))) is same


def test_in_the_readme_a_number_stands_for_any_number_and_a_word_for_itself() -> None:
    assert re.fullmatch(pattern(["vm1  ready  1  3.6M  0.0"], True), plain("vm1 ready 1 14.0M -\n", True))
    assert not re.fullmatch(pattern(["vm1 ready 1"], True), plain("vm2 ready 1\n", True))
