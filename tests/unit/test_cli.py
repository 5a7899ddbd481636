"""What each verb asks of the client, prints, and ends with. The client and the placement are stand-ins here.

Long, because every verb is run through the same stand-ins; a heading for each.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner, Result

import vmbus_emu
from vmbus_emu.cli import table
from vmbus_emu.cli.logfiles import Follower, last_lines, parse_line
from vmbus_emu.cli.logs import follow_lines
from vmbus_emu.cli.main import VERBS, cli
from vmbus_emu.cli.pingall import pingall_lines
from vmbus_emu.cli.progress import progress_text
from vmbus_emu.cli.ps import ps_lines
from vmbus_emu.cli.shell import session
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.topology import Overrides, Topology, build


class MachineError(Exception):
    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


class NotRunning(MachineError):
    pass


@dataclass
class ExecResult:
    status: int
    stdout: bytes = b""
    stderr: bytes = b""


def partition(name: str, **fields: Any) -> dict[str, Any]:
    unknown = (
        "role", "host", "pid", "incarnation", "signal", "exit_code", "cpu_percent", "uss_bytes", "io_per_s",
        "last_io_age_s",
    )
    return {"name": name, "state": "ready", "restarts": 0, "counters": {}, **dict.fromkeys(unknown), **fields}


PS = {
    "schema": 1, "name": "default", "arch": "microkernel", "transport": "zmq", "state": "ready",
    "partitions": [
        partition("parent", role="parent", host="parent", pid=4194304, incarnation=12, cpu_percent=99.95,
                  uss_bytes=25 << 20, io_per_s=12345.6, last_io_age_s=0.04),
        partition("vm1", role="child", host="vm1", pid=7, incarnation=1, state="dead", signal="SIGKILL"),
        partition("vm2", role="child", state="dead", exit_code=3),
    ],
}


class FakeMachine:
    """Records what the command line asks, and answers from ``answers``; an exception there is raised."""

    calls: ClassVar[list[tuple[Any, ...]]] = []
    answers: ClassVar[dict[str, Any]] = {}
    guest: ClassVar[Callable[..., int]]

    def __init__(self, topology: Topology | None = None) -> None:
        self.topology = topology
        self.name = "default"
        self.warnings: list[str] = []

    @classmethod
    def attach(cls, name: str) -> FakeMachine:
        cls._answer("attach", name)
        return cls()

    @classmethod
    def _answer(cls, verb: str, *arguments: Any) -> Any:
        cls.calls.append((verb, *arguments))
        answer = cls.answers.get(verb)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def up(self, progress: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self._answer("up", self.topology)

    def ps(self, window: float = 0.25) -> Any:
        return self._answer("ps", window)

    def down(self, progress: Callable[[Mapping[str, Any]], None] | None = None, timeout: float = 10.0) -> None:
        self._answer("down", timeout)

    def pingall(self, count: int = 1, timeout: float = 30.0) -> Any:
        return self._answer("pingall", count, timeout)

    def exec(
        self, vm: str, argv: list[str], stdin: Any = b"", on_stdout: Any = None, on_stderr: Any = None,
        timeout: float | None = None,
    ) -> ExecResult:
        self._answer("exec", vm, argv, timeout)
        given = stdin if isinstance(stdin, bytes) else stdin.read()
        return ExecResult(type(self).guest(argv, given, on_stdout, on_stderr))

    def close(self) -> None:
        self.calls.append(("close",))


def echo_guest(argv: list[str], stdin: bytes, out: Callable[[bytes], None], err: Callable[[bytes], None]) -> int:
    """A guest whose ``echo`` writes its words, ``cat`` its input, ``fail N`` ends with N."""
    match argv:
        case ["echo", *words]:
            out(" ".join(words).encode() + b"\n")
            return 0
        case ["cat"]:
            out(stdin)
            return 0
        case ["fail", number]:
            err(b"failed\n")
            return int(number)
        case ["interrupt"]:
            raise KeyboardInterrupt
        case ["lost"]:
            raise NotRunning("the machine is gone", "vmbus-emu up")
    return 127


def runner() -> CliRunner:
    """Standard output and error apart; the oldest click we allow has to be told."""
    try:
        return CliRunner(mix_stderr=False)  # type: ignore[call-arg, unused-ignore]
    except TypeError:
        return CliRunner()


@dataclass
class Bench:
    """A run folder of its own, the stand-in client, and a way to run a command line."""

    base: Path

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Result:
        return runner().invoke(cli, arguments, input=stdin, catch_exceptions=False)

    def verbs(self) -> list[str]:
        return [call[0] for call in FakeMachine.calls]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    client = types.ModuleType("vmbus_emu.client")
    for name, value in {"Machine": FakeMachine, "MachineError": MachineError, "NotRunning": NotRunning}.items():
        setattr(client, name, value)
    monkeypatch.setitem(sys.modules, "vmbus_emu.client", client)
    monkeypatch.setattr(FakeMachine, "calls", [])
    monkeypatch.setattr(FakeMachine, "answers", {"ps": PS})
    monkeypatch.setattr(FakeMachine, "guest", staticmethod(echo_guest), raising=False)
    monkeypatch.delenv("_VMBUS_EMU_COMPLETE", raising=False)
    with tempfile.TemporaryDirectory(prefix="ve-", dir="/tmp") as folder:
        monkeypatch.setenv("VMBUS_EMU_RUN", folder)
        yield Bench(Path(folder))


@pytest.fixture
def up(run: Bench) -> Iterator[RunFolder]:
    """A machine "default" that runs: this process holds its lock."""
    folder = RunFolder("default")
    lock = folder.acquire(build(None, Overrides()))
    try:
        yield folder
    finally:
        folder.release(lock)


# -- the program ------------------------------------------------------------------------------------


def test_help_and_completion_load_click_and_nothing_heavy() -> None:
    root = str(Path(vmbus_emu.__file__).parents[1])
    program = (
        "import sys\nsys.argv = ['vmbus-emu', *sys.argv[1:]]\nfrom vmbus_emu.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    status = end.code\n"
        "heavy = {'zmq', 'psutil', 'msgpack', 'setproctitle', 'partitions', 'drivers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else status)\n"
    )
    for arguments, extra in (
        (["--help"], {}),
        (["up", "--help"], {}),
        ([], {"_VMBUS_EMU_COMPLETE": "bash_complete", "COMP_WORDS": "vmbus-emu ps --name ", "COMP_CWORD": "3"}),
        ([], {"_VMBUS_EMU_COMPLETE": "bash_complete", "COMP_WORDS": "vmbus-emu logs p", "COMP_CWORD": "2"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True,
            env={**os.environ, "PYTHONPATH": root, **extra},
        )
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: str(verb.name))
def test_every_verb_has_an_example_in_its_help(run: Bench, verb: click.Command) -> None:
    result = run(str(verb.name), "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"vmbus-emu {verb.name}" in result.stdout


def test_without_arguments_the_help_is_shown(run: Bench) -> None:
    result = run()
    assert (result.exit_code, result.stdout.startswith("Usage: vmbus-emu")) == (0, True)
    assert run("--version").stdout == f"vmbus-emu, version {vmbus_emu.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nope"], ["ps", "--nope"], ["exec"], ["exec", "vm1"], ["ps", "--name", "Bad"], ["logs", "-n", "x"]]
)
def test_a_wrong_command_line_is_one_line_and_status_2(run: Bench, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("vmbus-emu: error: ")
    assert "--help" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["ps"], ["exec", "vm1", "--", "true"], ["pingall"], ["shell"], ["logs"], ["ps", "--json"]]
)
def test_readers_of_a_machine_that_is_not_there_fail_with_a_hint(run: Bench, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("vmbus-emu: error: ")
    assert "; " in result.stderr
    assert FakeMachine.calls == []


def test_what_the_client_refuses_is_one_line_and_a_bug_is_a_traceback(run: Bench, up: RunFolder) -> None:
    FakeMachine.answers["ps"] = MachineError("it does not answer", "vmbus-emu down")
    result = run("ps")
    assert (result.exit_code, result.stderr) == (1, "vmbus-emu: error: it does not answer; vmbus-emu down\n")
    FakeMachine.answers["ps"] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        run("ps")


def test_an_interrupt_ends_with_130(run: Bench, up: RunFolder) -> None:
    FakeMachine.answers["ps"] = KeyboardInterrupt()
    assert run("ps").exit_code == 130
    assert FakeMachine.calls[-1] == ("close",)


def test_a_closed_standard_output_ends_quietly() -> None:
    root = str(Path(vmbus_emu.__file__).parents[1])
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "vmbus_emu", "--help"], stdout=closed, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root},
        )
    assert (done.returncode, done.stderr) == (1, b"")


# -- up, plan, down, ls -----------------------------------------------------------------------------


def test_up_builds_what_file_and_flags_say_and_ends_with_the_ps_table_and_a_hint(run: Bench, tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text('name = "lab"\narch = "monolithic"')
    result = run("up", str(path), "--arch", "microkernel", "--vms", "3", "--policy", "parent=halt")
    assert result.exit_code == 0
    assert run.verbs() == ["up", "ps", "close"]
    topology = FakeMachine.calls[0][1]
    assert (topology.name, topology.arch, len(topology.vms)) == ("lab", "microkernel", 3)
    assert topology.policy == {"parent": "halt"}
    assert result.stdout.splitlines() == ps_lines(PS)
    assert result.stderr == "Try: vmbus-emu pingall --name lab\n"


def test_up_takes_how_ring_ends_wait(run: Bench) -> None:
    assert run("up", "--transport", "ring", "--poll", "never").exit_code == 0
    topology = FakeMachine.calls[0][1]
    assert (topology.transport, topology.poll) == ("ring", "never")
    for verb in ("up", "plan"):
        result = run(verb, "--poll", "never")
        assert result.exit_code == 2
        assert "flags:--poll: only transport ring polls; add --transport ring" in result.stderr


def test_up_json_prints_the_ps_report_and_nothing_else(run: Bench) -> None:
    result = run("up", "--json")
    assert (json.loads(result.stdout), result.stderr) == (PS, "")


def test_up_hints_at_something_that_works(run: Bench, tmp_path: Path) -> None:
    assert run("up", "--vms", "1").stderr == "Try: vmbus-emu exec vm1 -- sha256 disk0\n"
    path = tmp_path / "lab.toml"
    path.write_text('[[vm]]\nname = "a"\ndisk = []')
    assert run("up", str(path)).stderr == "Try: vmbus-emu shell a\n"


def test_all_topology_errors_come_at_once_and_nothing_is_started(run: Bench) -> None:
    result = run("up", "none.toml")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    wrong = ("--arch", "x", "--transport", "tcp", "--poll", "x", "--vms", "0", "--policy", "x", "--name", "X")
    result = run("up", *wrong, "--disk", "none.img")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "flags:--name", "flags:--arch", "flags:--transport", "flags:--poll", "flags:--vms", "flags:--policy",
    ]
    assert FakeMachine.calls == []


def test_too_many_vms_for_this_host_fail_early_with_the_number(run: Bench) -> None:
    result = run("up", "--vms", "60000")
    assert result.exit_code == 2
    assert "limits:vms: 60000 VMs need" in result.stderr
    assert FakeMachine.calls == []


def test_up_interrupted_after_the_start_takes_the_machine_down_again(run: Bench) -> None:
    FakeMachine.answers["ps"] = KeyboardInterrupt()
    assert run("up").exit_code == 130
    assert run.verbs() == ["up", "ps", "down", "close"]


def test_up_interrupted_while_starting_leaves_cleaning_to_the_client(run: Bench) -> None:
    FakeMachine.answers["up"] = KeyboardInterrupt()
    assert run("up").exit_code == 130
    assert run.verbs() == ["up", "close"]


def test_down_ends_a_running_machine(run: Bench, up: RunFolder) -> None:
    result = run("down", "--timeout", "3")
    assert (result.exit_code, result.stdout) == (0, "default: down\n")
    assert FakeMachine.calls == [("attach", "default"), ("down", 3.0), ("close",)]


def test_down_of_nothing_is_done_and_says_so(run: Bench) -> None:
    result = run("down", "--name", "lab")
    assert (result.exit_code, result.stdout) == (0, "lab: nothing to do, it is not running\n")
    assert FakeMachine.calls == []


def test_down_sweeps_what_a_killed_machine_left(run: Bench) -> None:
    RunFolder("lab").create()
    result = run("down", "--name", "lab")
    assert (result.exit_code, result.stdout) == (0, "lab: was not running; removed what a killed machine left\n")
    assert list(run.base.iterdir()) == []


def test_ls_tells_running_from_stale(run: Bench, up: RunFolder) -> None:
    stale = RunFolder("old")
    stale.create()
    stale.write_info({"pid": 1, "arch": "monolithic", "transport": "zmq", "vms": ["a"], "created": "yesterday"})
    machines = json.loads(run("ls", "--json").stdout)["machines"]
    assert [(each["name"], each["pid"], each["stale"], each["vms"]) for each in machines] == [
        ("default", os.getpid(), False, ["vm1", "vm2"]), ("old", None, True, ["a"]),
    ]
    result = run("ls")
    titles, default, old = result.stdout.splitlines()
    assert titles.split() == ["NAME", "STATE", "PID", "ARCH", "TRANSPORT", "VMS", "CREATED"]
    assert default.split()[:6] == ["default", "running", str(os.getpid()), "microkernel", "zmq", "2"]
    assert old.split() == ["old", "stale", "-", "monolithic", "call", "1", "yesterday"]
    assert "vmbus-emu down --name old" in result.stderr


def test_ls_of_nothing_is_done(run: Bench) -> None:
    result = run("ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(run("ls", "--json").stdout) == {"schema": 1, "machines": []}


def test_ls_survives_a_description_full_of_junk(run: Bench) -> None:
    folder = RunFolder("old")
    folder.create()
    folder.write_info({"arch": 3, "vms": "x", "created": {"a": "\x1b[2J"}, "transport": [], "pid": None})
    result = run("ls")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout


@dataclass(frozen=True)
class PlanComponent:
    name: str
    role: str
    what: str


@dataclass(frozen=True)
class PlanProcess:
    name: str
    role: str
    components: tuple[PlanComponent, ...]


@dataclass(frozen=True)
class PlanLink:
    source: str
    target: str
    kind: str
    note: str


@dataclass(frozen=True)
class Plan:
    processes: tuple[PlanProcess, ...]
    links: tuple[PlanLink, ...]


def test_plan_shows_processes_components_and_links(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("vmbus_emu.plan")
    parent = PlanProcess("parent", "parent", tuple(PlanComponent(n, n, f"the {n}") for n in ("parent", "storvsp")))
    made = Plan((parent,), (PlanLink("parent", "vm1", "channel", "disk0"),))
    asked: list[Topology] = []

    def plan(topology: Topology) -> Plan:
        asked.append(topology)
        return made

    monkeypatch.setattr(stand_in, "plan", plan, raising=False)
    monkeypatch.setitem(sys.modules, "vmbus_emu.plan", stand_in)
    result = run("plan", "--vms", "1", "--name", "lab")
    assert result.stdout.splitlines() == [
        "lab: microkernel over zmq, 1 VM in 1 process",
        "PROCESS  COMPONENT  ROLE     WHAT",
        "parent   parent     parent   the parent",
        "         storvsp    storvsp  the storvsp",
        "",
        "FROM    KIND     TO   NOTE",
        "parent  channel  vm1  disk0",
    ]
    report = json.loads(run("plan", "--arch", "monolithic", "--json").stdout)
    assert (report["transport"], report["processes"][0]["components"][1]["what"]) == ("call", "the storvsp")
    assert report["links"] == [{"source": "parent", "target": "vm1", "kind": "channel", "note": "disk0"}]
    assert [topology.name for topology in asked] == ["lab", "default"]
    assert FakeMachine.calls == []
    assert list(run.base.iterdir()) == []


# -- ps and tables ----------------------------------------------------------------------------------


def test_ps_prints_one_row_per_component_and_how_the_dead_died(run: Bench, up: RunFolder) -> None:
    result = run("ps", "--window", "0.5")
    assert FakeMachine.calls == [("attach", "default"), ("ps", 0.5), ("close",)]
    assert result.stdout.splitlines() == [
        "default: microkernel over zmq, ready",
        "NAME    ROLE    HOST        PID  STATE           BEAT  INC   CPU%  USS  IO/S  LAST",
        "parent  parent  parent  4194304  ready           -      12  100.0  25M   12k  0.0s",
        "vm1     child   vm1           7  dead (SIGKILL)  -       1      -    -     -     -",
        "vm2     child   -             -  dead (exit 3)   -       -      -    -     -     -",
    ]
    assert json.loads(run("ps", "--json").stdout) == PS


def test_the_ps_table_never_exceeds_100_columns() -> None:
    name = "n" * 32
    row = partition(name, role="management", host=name, pid=4194304, incarnation=99999, cpu_percent=6400.0,
                    state="dead", signal="SIGSTKFLT", uss_bytes=1023 << 30, io_per_s=999999.0, last_io_age_s=119.0)
    lines = ps_lines({**PS, "partitions": [row]})
    assert max(len(line) for line in lines) <= 100
    assert "…" in lines[-1]


@pytest.mark.parametrize(("value", "text"), [(11, "SIGSEGV"), ("SIGKILL", "SIGKILL"), (999, "signal 999")])
def test_a_signal_is_named_however_it_is_given(value: object, text: str) -> None:
    assert f"dead ({text})" in ps_lines({**PS, "partitions": [partition("vm1", state="dead", signal=value)]})[-1]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (table.size(None), "-"), (table.size(0), "0B"), (table.size(1023), "1023B"), (table.size(1024), "1.0K"),
        (table.size(2_516_582), "2.4M"), (table.size(10 << 20), "10M"), (table.size((1 << 20) - 1), "1.0M"),
        (table.rate(0), "0"), (table.rate(999.4), "999"), (table.rate(999.6), "1.0k"), (table.rate(12345), "12k"),
        (table.age(None), "-"), (table.age(-0.1), "0.0s"), (table.age(9.94), "9.9s"), (table.age(42), "42s"),
        (table.age(300), "5m"), (table.age(10800), "3h"), (table.age(864000), "10d"),
    ],
)
def test_numbers_for_people(shown: str, text: str) -> None:
    assert shown == text


def test_a_table_gives_way_where_it_may() -> None:
    columns = (table.Column("A", shrinks=True), table.Column("NUMBER", right=True))
    assert table.render(columns, [["abcdefghij", "1"], ["x", "23"]], width=16) == [
        "A         NUMBER",
        "abcdefg…       1",
        "x             23",
    ]
    assert table.render(columns, [], width=3) == ["A  NUMBER"]


def test_progress_is_one_short_line() -> None:
    event = {"component": "vm1", "state": "ready", "done": 1, "total": 2}
    assert progress_text(event) == "[############............] 1/2 vm1 ready"
    assert len(progress_text({"component": "x" * 200, "state": "\n", "done": 5, "total": 2})) == 79
    assert progress_text({}) == "[........................] 0/0 "


# -- exec and shell ---------------------------------------------------------------------------------


def test_exec_passes_bytes_both_ways_and_ends_with_the_guests_status(run: Bench, up: RunFolder) -> None:
    result = run("exec", "vm2", "--timeout", "2.5", "--", "cat", stdin=b"\x00\xff\n")
    assert (result.exit_code, result.stdout_bytes) == (0, b"\x00\xff\n")
    assert FakeMachine.calls[1] == ("exec", "vm2", ["cat"], 2.5)
    result = run("exec", "vm1", "--", "fail", "124")
    assert (result.exit_code, result.stderr_bytes, result.stdout_bytes) == (124, b"failed\n", b"")


def test_exec_leaves_the_commands_own_options_alone(run: Bench, up: RunFolder) -> None:
    assert run("exec", "vm1", "--", "echo", "--name", "-x", "--", "y").stdout == "--name -x -- y\n"


def test_exec_in_an_unknown_vm_lists_the_vms_and_connects_to_nothing(run: Bench, up: RunFolder) -> None:
    result = run("exec", "vm9", "--", "true")
    assert (result.exit_code, result.stderr) == (1, 'vmbus-emu: error: "default" has no VM "vm9"; one of vm1, vm2\n')
    assert FakeMachine.calls == []


def test_exec_refuses_a_command_that_is_no_text(run: Bench, up: RunFolder) -> None:
    result = run("exec", "vm1", "--", "echo", "\udcff")
    assert result.exit_code == 2
    assert FakeMachine.calls == []


def test_exec_interrupted_ends_with_130(run: Bench, up: RunFolder) -> None:
    assert run("exec", "vm1", "--", "interrupt").exit_code == 130
    assert FakeMachine.calls[-1] == ("close",)


def test_shell_runs_a_script_from_standard_input_in_the_first_vm(run: Bench, up: RunFolder) -> None:
    result = run("shell", stdin=b"echo 'a  b' c\n\n# nothing\nfail 3\necho last\nfail 7")
    assert (result.exit_code, result.stdout) == (7, "a  b c\nlast\n")
    assert [call[1] for call in FakeMachine.calls if call[0] == "exec"] == ["vm1"] * 4
    assert run("shell", "vm2", stdin=b"exit 5\necho no").exit_code == 5
    assert run("shell", "vm2", stdin=b"fail 4\nexit").exit_code == 4
    assert run("shell", "vm2", stdin=b"").exit_code == 0


def test_shell_survives_bad_quoting_and_stops_when_the_machine_is_gone(run: Bench, up: RunFolder) -> None:
    result = run("shell", stdin=b"echo 'open\necho on\nlost\necho never\n")
    assert (result.exit_code, result.stdout) == (1, "on\n")
    assert result.stderr.splitlines() == [
        "vmbus-emu: error: No closing quotation; close the quotation",
        "vmbus-emu: error: the machine is gone; vmbus-emu up",
    ]


def test_in_an_interactive_shell_ctrl_c_ends_the_command_and_ctrl_d_the_shell(
    run: Bench, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    typed = ("echo a", KeyboardInterrupt(), "interrupt", "echo b", "fail 2", EOFError())
    keys: Iterator[str | BaseException] = iter(typed)

    def read_line() -> str:
        key = next(keys)
        if isinstance(key, BaseException):
            raise key
        return key

    assert session(FakeMachine(), "vm1", read_line, interactive=True) == 2  # type: ignore[arg-type]
    assert capsysbinary.readouterr().out == b"a\n\n\nb\n\n"


# -- pingall ----------------------------------------------------------------------------------------


def pings(names: list[str], lost: set[tuple[str, str]]) -> dict[str, Any]:
    pairs = [
        {"from": a, "to": b, "ok": (a, b) not in lost, "rtt_ms": None if (a, b) in lost else 0.25,
         "error": "timeout" if (a, b) in lost else None}
        for a in names for b in names if a != b
    ]
    received = len(pairs) - len(lost)
    return {"schema": 1, "vms": names, "pairs": pairs, "sent": len(pairs), "received": received, "elapsed_s": 0.5}


def test_pingall_prints_a_matrix_and_succeeds_when_all_answered(run: Bench, up: RunFolder) -> None:
    FakeMachine.answers["pingall"] = pings(["vm1", "vm2"], set())
    result = run("pingall", "--count", "3", "--timeout", "9")
    assert FakeMachine.calls[1] == ("pingall", 3, 9.0)
    assert (result.exit_code, result.stdout.splitlines()) == (
        0, ["      vm1   vm2", "vm1     .  0.25", "vm2  0.25     .", "2 of 2 pings answered in 0.50 s"],
    )


def test_pingall_with_a_lost_ping_fails_and_names_the_pair(run: Bench, up: RunFolder) -> None:
    report = FakeMachine.answers["pingall"] = pings(["vm1", "vm2"], {("vm2", "vm1")})
    result = run("pingall")
    assert result.exit_code == 1
    assert "vm2 -> vm1: timeout" in result.stdout
    assert "FAIL" in result.stdout
    result = run("pingall", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, report)


def test_pingall_of_many_vms_is_one_line_per_vm() -> None:
    names = [f"vm{number}" for number in range(1, 14)]
    lines = pingall_lines(pings(names, {("vm1", name) for name in names[1:]}))
    assert lines[0].split() == ["VM", "REACHES", "REACHED", "BY", "MIN", "ms", "AVG", "ms", "MAX", "ms"]
    assert lines[1].split() == ["vm1", "0/12", "12/12", "-", "-", "-"]
    assert lines[2].split() == ["vm2", "12/12", "11/12", "0.25", "0.25", "0.25"]
    assert lines[14:] == [*(f"vm1 -> vm{n}: timeout" for n in range(2, 7)), "… and 7 more pairs",
                          "144 of 156 pings answered in 0.50 s"]


@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_matrix_fits_100_columns_with_the_longest_names(count: int) -> None:
    names = [f"n{number:02}" + "x" * 29 for number in range(count)]
    assert max(len(line) for line in pingall_lines(pings(names, set()))) <= 100


# -- logs -------------------------------------------------------------------------------------------


def write_log(folder: RunFolder, name: str, *lines: str) -> None:
    with open(folder.logs / name, "a") as file:
        file.writelines(line + "\n" for line in lines)


def at(second: int, text: str) -> str:
    return f"2026-01-31T12:00:{second:02}.000000 {text}"


def test_logs_shows_one_component_with_its_rotated_files(run: Bench, up: RunFolder) -> None:
    write_log(up, "parent.log.2", at(1, "one"))
    write_log(up, "parent.log.1", at(2, "two"), "no time")
    write_log(up, "parent.log", at(3, "three \x1b[2J"))
    assert run("logs", "parent").stdout.splitlines() == [
        at(1, "one"), at(2, "two"), "2026-01-31T12:00:02.000000 no time", at(3, "three ?[2J"),
    ]
    assert run("logs", "parent", "-n", "1").stdout.splitlines() == [at(3, "three ?[2J")]
    assert run("logs", "-n", "0").stdout == ""
    report = json.loads(run("logs", "parent", "-n", "1", "--json").stdout)
    assert report["lines"] == [{"component": "parent", "time": "2026-01-31T12:00:03.000000", "text": "three \x1b[2J"}]


def test_logs_of_all_components_are_merged_by_time(run: Bench, up: RunFolder) -> None:
    write_log(up, "parent.log", at(1, "a"), at(4, "d"))
    write_log(up, "vm1.log", at(2, "b"), at(3, "c"))
    assert [line.split()[1:] for line in run("logs").stdout.splitlines()] == [
        ["parent", "a"], ["vm1", "b"], ["vm1", "c"], ["parent", "d"],
    ]
    assert [line.split()[-1] for line in run("logs", "-n", "2").stdout.splitlines()] == ["c", "d"]


def test_logs_of_an_unknown_component_lists_the_known(run: Bench, up: RunFolder) -> None:
    write_log(up, "parent.log", at(1, "a"))
    result = run("logs", "parrot")
    assert (result.exit_code, result.stderr) == (
        1, 'vmbus-emu: error: there is no log of "parrot"; one of parent, vm1, vm2\n',
    )
    assert (run("logs", "vm2").exit_code, run("logs", "vm2").stdout) == (0, "")
    assert run("logs", "../lock").exit_code == 1


def test_the_logs_of_a_killed_machine_can_still_be_read_and_followed_to_their_end(run: Bench) -> None:
    folder = RunFolder("default")
    folder.create()
    write_log(folder, "parent.log", *(at(second, f"l{second}") for second in range(20)))
    assert run("logs", "parent").stdout.count("\n") == 20
    followed = run("logs", "-f", "--json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in followed] == [f"l{second}" for second in range(10, 20)]


def test_following_shows_every_line_once_across_rotations_and_ends_with_the_machine(run: Bench) -> None:
    folder = RunFolder("default")
    lock = folder.acquire()
    log = folder.logs / "parent.log"

    def rotate() -> None:
        for new, old in ((".2", ".1"), (".1", "")):
            if Path(f"{log}{old}").exists():
                os.replace(f"{log}{old}", f"{log}{new}")

    def twice() -> None:
        write_log(folder, "parent.log", at(4, "four"))
        rotate()
        write_log(folder, "parent.log", at(5, "five"))
        rotate()
        write_log(folder, "parent.log", at(6, "six"), "half")

    def end() -> None:
        write_log(folder, "parent.log", at(9, "last"))
        folder.release(lock)

    def part(text: str) -> None:
        with open(log, "a") as file:
            file.write(text)

    steps: Iterator[Callable[[], object]] = iter((
        lambda: write_log(folder, "parent.log", at(3, "three")),
        rotate,
        twice,
        lambda: part(at(7, "sev")),
        lambda: part("en\n"),
        lambda: write_log(folder, "vm7.log", at(8, "a new component")),
        end,
    ))
    write_log(folder, "parent.log", at(0, "zero"), at(1, "one"), at(2, "two"))
    lines = list(follow_lines(folder, ["parent"], True, 2, lambda: next(steps)()))
    assert [line.text for line in lines] == [
        "one", "two", "three", "four", "five", "six", "half", "seven", "a new component", "last",
    ]
    assert next(steps, None) is None


def test_a_log_that_rotates_while_it_is_opened_shows_no_line_twice(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder("default")
    folder.create()
    log = str(folder.logs / "parent.log")
    write_log(folder, "parent.log.1", at(1, "one"))
    write_log(folder, "parent.log", at(2, "two"))
    real = open

    def rotating(path: str, mode: str) -> io.BufferedReader:
        file = real(path, mode)
        if path == log:
            os.replace(log + ".1", log + ".2")
            os.replace(log, log + ".1")
        return file  # type: ignore[return-value]

    monkeypatch.setattr("vmbus_emu.cli.logfiles.open", rotating, raising=False)
    follower = Follower(folder, "parent")
    assert [line.text for line in follower.new_lines()] == ["one", "two"]
    follower.close()
    assert [line.text for line in last_lines(folder, ["parent"], None)] == ["one", "two"]


def test_a_log_line_may_hold_any_bytes() -> None:
    assert parse_line("vm1", b"\xff\x00").text == "\ufffd\x00"
    assert parse_line("vm1", b"").text == ""
    assert parse_line("vm1", b"2026-01-31T12:00:00 ").time == "2026-01-31T12:00:00"


# -- completion -------------------------------------------------------------------------------------


def completions(run: Bench, words: str) -> list[str]:
    env = {"_VMBUS_EMU_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    result = runner().invoke(cli, [], env=env, catch_exceptions=False)
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_completion_knows_machines_vms_components_and_words(run: Bench, up: RunFolder) -> None:
    write_log(up, "parent.log", at(1, "a"))
    RunFolder("stale").create()
    assert completions(run, "vmbus-emu p") == ["ps", "pingall", "plan"]
    assert completions(run, "vmbus-emu ps --name ") == ["default"]
    assert completions(run, "vmbus-emu exec v") == ["vm1", "vm2"]
    assert completions(run, "vmbus-emu exec --name other v") == []
    assert completions(run, "vmbus-emu shell vm2") == ["vm2"]
    assert completions(run, "vmbus-emu logs p") == ["parent"]
    assert completions(run, "vmbus-emu up --arch mo") == ["monolithic"]
    assert completions(run, "vmbus-emu up --policy parent=r") == ["parent=restart", "parent=reboot", "parent=recover"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(run: Bench, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_VMBUS_EMU_COMPLETE" in result.stdout


def test_completion_asks_which_shell_if_it_cannot_tell(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert run("completion").exit_code == 1
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")
    assert run("completion").exit_code == 0
