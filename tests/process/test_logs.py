"""Is what a component wrote to its standard error kept, in order, rotated, and readable until ``down``?"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]

MIB = 1 << 20


def write_as(pid: int, data: bytes) -> None:
    """Put ``data`` where the process's own standard error goes: a pipe that the machine reads."""
    with open(f"/proc/{pid}/fd/2", "wb") as stream:
        stream.write(data)


def lines_of(lab: Lab, *arguments: str) -> list[str]:
    """The texts that ``logs`` shows."""
    return [line["text"] for line in lab.json("logs", "--name", "m", *arguments)["lines"]]


def settle(lab: Lab, wait: Wait, vm: str) -> None:
    """Until all of its integration components have said that they are up."""
    wait(lambda: sum("integration component, version" in line for line in lines_of(lab, vm)) == 3, f"{vm} is up")


@pytest.mark.parametrize("arch", ["monolithic", "microkernel"])
def test_logs_show_one_component_or_all_in_the_order_of_time(lab: Lab, wait: Wait, arch: str) -> None:
    lab.up(arch)
    if arch != "monolithic":
        settle(lab, wait, "vm2")
    assert any(line.startswith("disk0: 8192 blocks") for line in lines_of(lab, "vm1"))
    merged = lab.json("logs", "--name", "m")["lines"]
    assert {"machine", "vm1", "vm2"} <= {line["component"] for line in merged}
    assert [line["time"] for line in merged] == sorted(line["time"] for line in merged)
    status, out, _ = lab.cli("logs", "--name", "m", "-n", "1", "vm2")
    assert (status, out.decode().rstrip().endswith(lines_of(lab, "vm2")[-1])) == (0, True)
    status, _, errors = lab.cli("logs", "--name", "m", "vm9")
    assert (status, 'there is no log of "vm9"; one of ' in errors) == (1, True)


def test_a_log_is_rotated_and_what_is_kept_is_whole_and_in_order(lab: Lab, wait: Wait) -> None:
    machine = lab.up()
    settle(lab, wait, "vm1")
    pid = lab.rows(machine)["vm1"]["pid"]
    count = 50_000
    write_as(pid, b"".join(b"line %06d of what a component has to say\n" % number for number in range(count)))
    logs = lab.run / "m" / "logs"
    wait(lambda: lines_of(lab, "-n", "1", "vm1")[-1].startswith(f"line {count - 1:06}"), "the last line is in the log")
    assert sorted(path.name for path in logs.glob("vm1.log*")) == ["vm1.log", "vm1.log.1", "vm1.log.2"]
    assert all(path.stat().st_size <= MIB for path in logs.glob("vm1.log*"))
    kept = [int(line.split()[1]) for line in lines_of(lab, "vm1")]
    assert kept == list(range(kept[0], count))
    assert machine.exec("vm1", "echo unharmed").status == 0


def test_the_last_words_of_a_dead_component_are_kept_until_down(lab: Lab, wait: Wait) -> None:
    machine = lab.up()
    settle(lab, wait, "vm1")
    pid = lab.rows(machine)["vm1"]["pid"]
    write_as(pid, b"first\nand then I di")  # in the middle of a line
    lab.kill(machine, "vm1")
    wait(lambda: lines_of(lab, "vm1")[-2:] == ["first", "and then I di"], "the log has its last words")
    assert f"vm1 (pid {pid}, incarnation 1) killed by SIGKILL" in lines_of(lab, "machine")
    machine.down()
    status, _, errors = lab.cli("logs", "--name", "m", "vm1")
    assert (status, "has no logs" in errors) == (1, True)


def test_bytes_that_are_no_text_and_lines_without_an_end_do_no_harm(lab: Lab, wait: Wait) -> None:
    machine = lab.up()
    settle(lab, wait, "vm1")
    write_as(lab.rows(machine)["vm1"]["pid"], b"\xff\x1b[2J\0\n" + b"x" * 100_000 + b"\nend\n")
    wait(lambda: lines_of(lab, "vm1")[-1] == "end", "the log has it all")
    status, out, _ = lab.cli("logs", "--name", "m", "vm1")
    assert (status, b"\x1b" in out, out.count(b"x") >= 100_000) == (0, False, True)


def test_logs_of_a_killed_machine_can_still_be_read(lab: Lab, wait: Wait) -> None:
    machine = lab.up()
    os.kill(machine.info()["pid"], signal.SIGKILL)
    wait(lambda: not lab.survivors(), "all processes are gone")
    assert any(line.startswith("disk0") for line in lines_of(lab, "vm1"))


def test_logs_that_are_followed_end_with_the_machine(lab: Lab, wait: Wait) -> None:
    machine = lab.up()
    program = lab.program("logs", "-f", "--name", "m", "machine")
    assert program.stdout is not None
    shown = program.stdout.readline()  # it follows from here
    pid = lab.kill(machine, "vm2")
    machine.down()
    rest, _ = program.communicate(timeout=20)
    assert (program.returncode, shown.rstrip().endswith(b"ready")) == (0, True)
    assert f"vm2 (pid {pid}, incarnation 1) killed by SIGKILL".encode() in rest
