"""What kill, start, watch, chaos and check ask of the client, print, and end with. The client is a stand-in."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from tests import killed_runs
from vmbus_emu.cli.chaos import chaos_lines
from vmbus_emu.cli.main import cli
from vmbus_emu.cli.runs import kill_lines
from vmbus_emu.cli.watch import event_line
from vmbus_emu.client.judging import judged
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.topology import Overrides, build
from vmbus_emu.witness.history import READ

MS = 1_000_000
KILL = {
    "component": "storvsp", "host": "parent", "pid": 7, "incarnation": 2, "fault": "kill", "signal": "SIGKILL",
    "killed_ns": 1000 * MS, "died_ns": 1002 * MS, "starting_ns": 1005 * MS, "ready_ns": 1010 * MS,
    "attached_ns": 1018 * MS, "first_reply_ns": 1020 * MS, "detect_ms": 2.0, "start_ms": 8.0, "renegotiate_ms": 8.0,
    "first_reply_ms": 20.0, "missing": [], "waited_s": 15.0, "over_ns": 1030 * MS,
}
OPERATIONS = {"attempted": 9, "acknowledged": 8, "lost": 0, "unexpected": 0, "duplicated": 0, "recovered": 1,
              "failed": 0, "network_lost": 1}
VM = {"survived": True, "disk_gap_ms": 20.0, "network_gap_ms": None, "in_flight": 1, "resubmitted": 3, "failed": 0,
      "lost": 0, "p50_ms": 0.25, "p99_ms": 1234.5}
DEATH = {"n": 1, "ns": 1002 * MS, "event": "died", "component": "parent", "carried": ["netvsp", "parent", "storvsp"],
         "pid": 7, "incarnation": 2, "signal": "SIGKILL", "exit_code": None, "reason": "its last words"}
RUN = {
    "schema": 1, "machine": {"name": "default", "arch": "microkernel", "transport": "zmq", "policy": {}},
    "begun_ns": 0, "ended_ns": 2000 * MS, "operations": OPERATIONS, "findings": [], "kills": [KILL],
    "vms": {"vm1": VM, "vm2": {**VM, "survived": False, "disk_gap_ms": None, "memory_intact": False}},
    "events": [DEATH], "histories": {"vm1": {}}, "read_back": {}, "start_state": {},
}
#: One that can be judged again, and drawn.
DRAWN = judged({
    **killed_runs.HIT, "read_back": {}, "start_state": {}, "vms": {"vm1": {"survived": True}},
    "kills": [{**killed_runs.kill(300), "missing": [], "waited_s": 15.0, "over_ns": killed_runs.BEGIN + 400 * MS}],
    "histories": {"vm1": {"disk": killed_runs.history(outages=[(300, 340)], kind=READ)}},
})  # fmt: skip


class FakeMachine:
    calls: ClassVar[list[tuple[Any, ...]]] = []
    answers: ClassVar[dict[str, Any]] = {}

    @classmethod
    def attach(cls, name: str) -> FakeMachine:
        return cls()

    def _answer(self, verb: str, *arguments: Any) -> Any:
        self.calls.append((verb, *arguments))
        return self.answers[verb]

    def kill(self, component: str, fault: str, timeout: float, at: str) -> Any:
        return self._answer("kill", component, fault, timeout, *([at] if at else []))

    def start(self, vm: str) -> Any:
        return self._answer("start", vm)

    def watch(self, past: bool) -> Any:
        return Events(self._answer("watch", past))

    def chaos(self, kill: tuple[str, ...], every: float, duration: float, **options: Any) -> Any:
        progress: Callable[[Mapping[str, Any]], Any] = options.pop("progress")
        run = self._answer("chaos", kill, every, duration, options)
        progress({"step": "loads", "disks": ["vm1.disk0"], "spared": ["vm2.disk0"], "seed": 5, "kill": kill})
        for one in run["kills"]:
            progress({"step": "killed", "kill": one})
        progress({"step": "reading back"})
        return run

    def close(self) -> None:
        self.calls.append(("close",))


class Events(list[dict[str, Any]]):
    def __enter__(self) -> Events:
        return self

    def __exit__(self, *exception: object) -> None:
        FakeMachine.calls.append(("closed",))


def run(*arguments: str) -> Result:
    try:
        runner = CliRunner(mix_stderr=False)  # type: ignore[call-arg, unused-ignore]
    except TypeError:
        runner = CliRunner()
    return runner.invoke(cli, arguments, catch_exceptions=False)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine "default" that runs, and the stand-in in the place of the client's."""
    import vmbus_emu.client

    stand_in = types.SimpleNamespace(attach=FakeMachine.attach)
    monkeypatch.setattr(vmbus_emu.client, "Machine", stand_in)
    monkeypatch.setattr(FakeMachine, "calls", [])
    monkeypatch.setattr(FakeMachine, "answers", {"kill": RUN, "chaos": RUN})
    with tempfile.TemporaryDirectory(prefix="ve-", dir="/tmp") as folder:
        monkeypatch.setenv("VMBUS_EMU_RUN", folder)
        default = RunFolder("default")
        lock = default.acquire(build(None, Overrides()))
        yield
        default.release(lock)


# -- kill -------------------------------------------------------------------------------------------


def test_kill_says_what_died_how_long_each_step_took_and_what_every_vm_noticed() -> None:
    result = run("kill", "storvsp", "--timeout", "4")
    assert FakeMachine.calls == [("kill", "storvsp", "kill", 4.0), ("close",)]
    assert (result.exit_code, result.stdout.splitlines()) == (0, [
        "storvsp, carried by parent (pid 7, incarnation 2): killed by SIGKILL; with it went netvsp",
        "restart: detect 2.0 + start 8.0 + renegotiate 8.0 + first reply 2.0 = 20.0 ms",
        "VM   SURVIVED     DISK GAP ms  NETWORK GAP ms  IN FLIGHT  RESUBMITTED  FAILED  LOST  p50 ms  p99 ms",
        "vm1  yes                 20.0               -          1            3       0     0    0.25    1234",
        "vm2  no, corrupt            -               -          1            3       0     0    0.25    1234",
        "9 reads, 8 acknowledged; 0 lost, 0 unexpected, 0 duplicated, 1 recovered; 1 frame lost in the network",
    ])


def test_kill_json_holds_the_contract_and_not_what_only_a_judge_needs() -> None:
    report = json.loads(run("kill", "storvsp", "--fault", "oom=8M", "--json").stdout)
    assert FakeMachine.calls[0] == ("kill", "storvsp", "oom=8M", 15.0)
    assert report == {key: RUN[key] for key in RUN if key not in ("histories", "read_back", "start_state")}


@pytest.mark.parametrize("verb", ["kill", "chaos"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_finding_is_shown_and_ends_with_status_1(verb: str, form: list[str], tmp_path: Path) -> None:
    FakeMachine.answers[verb] = {**RUN, "findings": [f"vm1: lost: sector {number}\x1b[2J" for number in range(12)]}
    words = ["storvsp", *form] if verb == "kill" else ["--kill", "storvsp", *form, *([str(tmp_path / "f")] * len(form))]
    result = run(verb, *words)
    assert result.exit_code == 1
    if verb == "chaos" or not form:
        assert "! vm1: lost: sector 0?[2J" in result.stdout
        assert "! … and 2 more findings" in result.stdout


@pytest.mark.parametrize(("changed", "said"), [
    ({"died_ns": None}, "its process did not end"),
    ({"ready_ns": None}, "dead after 2.0 ms, and nothing took its place"),
    ({"ready_ns": None, "component": "vm1", "host": "vm1"}, "dead after 2.0 ms, and nothing took its place; "
     "vmbus-emu start vm1 starts it again"),
    ({"attached_ns": None, "renegotiate_ms": None}, "restart: detect 2.0 + start 8.0 + first reply 10.0 = 20.0 ms"),
    ({"first_reply_ns": None}, "restart: detect 2.0 + start 8.0 + renegotiate 8.0; no reply after that"),
    ({"first_reply_ns": 1001 * MS, "first_reply_ms": 1.0}, "restart: detect 2.0 + start 8.0 + renegotiate 8.0; "
     "requests were served throughout, the first after 1.0 ms"),
])  # fmt: skip
def test_what_did_not_happen_is_not_told_as_if_it_had(changed: dict[str, Any], said: str) -> None:
    assert kill_lines({**RUN, "kills": [{**KILL, **changed}]})[1] == said


def test_a_reboot_and_a_halt_are_called_so() -> None:
    rebooting = {"n": 2, "ns": 1003 * MS, "event": "rebooting", "reason": "x"}
    assert kill_lines({**RUN, "events": [rebooting]})[1].startswith("reboot: detect 2.0")
    halted = {**RUN, "events": [{**rebooting, "event": "halted"}], "kills": [{**KILL, "ready_ns": None}]}
    assert kill_lines(halted)[1] == "dead after 2.0 ms, and the machine halted, as its policy says"


def test_killing_the_machine_says_how_to_clean_up() -> None:
    kill = {**KILL, "component": "machine", "host": "machine", "ready_ns": None}
    FakeMachine.answers["kill"] = {**RUN, "kills": [kill], "vms": {}}
    result = run("kill", "machine")
    assert "no VM was alive to notice" in result.stdout
    assert result.stderr == "vmbus-emu down removes the files it left\n"


# -- start and watch --------------------------------------------------------------------------------


def test_start_says_the_new_pid_and_an_unknown_vm_lists_the_known() -> None:
    FakeMachine.answers["start"] = {"vm": "vm1", "pid": 12, "incarnation": 2}
    assert run("start", "vm1").stdout == "vm1: ready (pid 12, incarnation 2)\n"
    assert json.loads(run("start", "vm1", "--json").stdout) == {"schema": 1, "vm": "vm1", "pid": 12, "incarnation": 2}
    result = run("start", "vm9")
    assert (result.exit_code, result.stderr) == (1, 'vmbus-emu: error: "default" has no VM "vm9"; one of vm1, vm2\n')


def test_watch_prints_a_line_per_event_until_the_machine_ends() -> None:
    FakeMachine.answers["watch"] = [DEATH, {"n": 2, "ns": 1, "event": "up"}]
    result = run("watch", "--past")
    assert FakeMachine.calls == [("watch", True), ("closed",), ("close",)]
    assert [line.split(maxsplit=1)[1] for line in result.stdout.splitlines()] == [
        "parent        died: SIGKILL (pid 7, incarnation 2); it carried netvsp, storvsp", "machine       up",
    ]
    assert [json.loads(line) for line in run("watch", "--json").stdout.splitlines()] == FakeMachine.answers["watch"]


@pytest.mark.parametrize(("event", "text"), [
    ({"event": "killed", "component": "storvsp", "host": "parent", "pid": 7, "incarnation": 1, "signal": None,
      "fault": "segv"}, "storvsp       struck by segv by way of parent (pid 7, incarnation 1)"),
    ({**DEATH, "signal": None, "exit_code": 3, "carried": []},
     "parent        died: exit 3 (pid 7, incarnation 2): its last words"),
    ({"event": "starting", "component": "parent", "pid": 8, "incarnation": 3, "spare": True},
     "parent        starting (pid 8, incarnation 3), the spare"),
    ({"event": "ready", "component": "parent", "pid": 8, "incarnation": 3},
     "parent        ready (pid 8, incarnation 3)"),
    ({"event": "detached", "component": "vm1", "device": "disk0", "resent": 0}, "vm1.disk0     detached"),
    ({"event": "attached", "component": "vm1", "device": "disk0", "resent": 1},
     "vm1.disk0     attached, 1 request sent again"),
    ({"event": "rebooting", "reason": "hypervisor was killed"}, "machine       rebooting: hypervisor was killed"),
    ({"event": "fault", "component": "storvsp", "fault": "slow=5ms"}, "storvsp       fault (fault slow=5ms)"),
    ({"event": "given up", "component": "vm1", "device": "x\x1b", "resent": 0}, "vm1.x?        given up"),
])  # fmt: skip
def test_every_kind_of_event_is_a_sentence(event: dict[str, Any], text: str) -> None:
    line = event_line({**event, "ns": 5_000_000}, 1_000)
    assert line.endswith(f".005001  {text}"), line


# -- chaos and check --------------------------------------------------------------------------------


def test_chaos_says_what_it_overwrites_each_kill_and_the_verdict(tmp_path: Path) -> None:
    FakeMachine.answers["chaos"] = {**RUN, "read_back": {"vm1": []}, "kills": [
        KILL, {**KILL, "killed_ns": 2500 * MS, "missing": ["a new parent"]}, {**KILL, "component": "vm1",
        "first_reply_ms": None}], "chaos": {"skipped": 2}}  # fmt: skip
    result = run("chaos", "--kill", "storvsp", "--kill", "vm1", "--every", "500ms", "--for", "2m", "--seed", "5")
    options = {"seed": 5, "fault": "kill", "overwrite": False, "timeout": 15.0}
    assert FakeMachine.calls[0] == ("chaos", ("storvsp", "vm1"), 0.5, 120.0, options)
    assert result.stdout.splitlines()[:9] == [
        "overwriting vm1.disk0; image files are spared (vm2.disk0); seed 5",
        "   0.00 s  storvsp (pid 7): all served again within 30 ms",
        "   1.50 s  storvsp: 15 s passed without a new parent",
        "   0.00 s  vm1 (pid 7): all served again within 30 ms",
        "reading back what was written",
        "2 periods without a kill: the one before was not over",
        "KILLED   TIMES  FIRST REPLY ms: p50  WORST",
        "storvsp      2                 20.0   20.0",
        "vm1          1                    -      -",
    ]
    assert result.stdout.splitlines()[-1].startswith("9 writes, 8 acknowledged; 0 lost")


def test_chaos_keeps_the_run_and_json_to_standard_output_is_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert run("chaos", "--kill", "all", "--json", str(path)).exit_code == 0
    assert json.loads(path.read_text()) == RUN
    result = run("chaos", "--kill", "all", "--json", "-")
    assert json.loads(result.stdout) == RUN
    assert "overwriting vm1.disk0" in result.stderr


def test_chaos_draws_the_page_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = types.ModuleType("vmbus_emu.client.timeline")
    page.page = lambda run: f"<p>{len(run['kills'])}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vmbus_emu.client.timeline", page)
    assert run("chaos", "--kill", "all", "--html", str(tmp_path / "run.html")).exit_code == 0
    assert (tmp_path / "run.html").read_text() == "<p>1"


def test_chaos_and_check_draw_images_and_pages(tmp_path: Path) -> None:
    image, page, kept = tmp_path / "run.png", tmp_path / "run.html", tmp_path / "run.json"
    FakeMachine.answers["chaos"] = DRAWN
    result = run("chaos", "--kill", "all", "--png", str(image), "--json", str(kept))
    assert (result.exit_code, result.stderr) == (0, "")
    assert image.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    drawn = image.read_bytes()
    image.unlink()
    result = run("check", str(kept), "--png", str(image), "--html", str(page))
    assert (result.exit_code, result.stderr) == (0, "")
    assert image.read_bytes() == drawn
    assert "<h1>storvsp killed once" in page.read_text()


def test_a_picture_to_standard_output_is_nothing_else(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    kept.write_text(json.dumps(DRAWN))
    result = run("check", str(kept), "--png", "-")
    assert result.stdout_bytes.startswith(b"\x89PNG")
    assert result.stdout_bytes.endswith(b"IEND\xaeB`\x82")
    assert "0 lost, 0 unexpected" in result.stderr
    result = run("check", str(kept), "--html", "-", "--json")
    assert result.stdout.startswith("<!DOCTYPE html>")
    assert result.stdout.endswith("</html>\n")
    assert json.loads(result.stderr)["operations"] == DRAWN["operations"]


def test_a_history_that_was_destroyed_is_not_drawn_but_the_rest_is(tmp_path: Path) -> None:
    torn = {**DRAWN, "histories": {"vm1": {**DRAWN["histories"]["vm1"], "network": {"operations": "torn"}}}}
    kept, image, page = tmp_path / "run.json", tmp_path / "run.png", tmp_path / "run.html"
    kept.write_text(json.dumps(torn))
    result = run("check", str(kept), "--png", str(image), "--html", str(page))
    assert result.exit_code == 1
    assert "! vm1: the network history was destroyed" in result.stdout
    assert "vm1: the network history was destroyed" in page.read_text()
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("how", ["not there", "blocked"])
@pytest.mark.parametrize("verb", ["chaos", "check"])
def test_without_the_extra_it_is_said_before_anything_is_done(
    verb: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, image = tmp_path / "run.json", tmp_path / "run.png"
    kept.write_text(json.dumps(DRAWN))
    image.write_text("an older picture")
    if how == "blocked":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    monkeypatch.delitem(sys.modules, "vmbus_emu.client.plot", raising=False)
    words = ["chaos", "--kill", "storvsp"] if verb == "chaos" else ["check", str(kept)]
    result = run(*words, "--png", str(image))
    assert (result.exit_code, result.stdout, FakeMachine.calls) == (1, "", [])
    assert result.stderr == (
        "vmbus-emu: error: --png needs matplotlib, which is not installed; pip install 'vmbus-emu[report]', "
        "in a checkout pip install -e '.[report]'\n"
    )
    assert image.read_text() == "an older picture"
    assert run(*words, "--html", str(tmp_path / "run.html")).exit_code == 0     # which needs no extra


def test_a_run_without_a_kill_says_so() -> None:
    assert chaos_lines({**RUN, "kills": []})[0] == "nothing was killed: none of these was running"


@pytest.mark.parametrize("words", [
    ["kill"], ["kill", "vm1", "--fault", "drop"], ["kill", "vm1", "--timeout", "0"], ["start"], ["check"],
    ["check", "/nonexistent"], ["chaos"], ["chaos", "--kill", "machine"], ["chaos", "--kill", "vm1", "--every", "1"],
    ["chaos", "--kill", "vm1", "--for", "soon"], ["chaos", "--kill", "vm1", "--every", "2s", "--for", "1s"],
    ["chaos", "--kill", "vm1", "--json", "/nonexistent/f"], ["chaos", "--kill", "vm1", "--seed", "-1"],
    ["chaos", "--kill", "vm1", "--png", "/nonexistent/f"], ["chaos", "--kill", "vm1", "--png", "/"],
    ["chaos", "--kill", "vm1", "--html", "/nonexistent/f"], ["check", __file__, "--png", "/nonexistent/f"],
    ["check", __file__, "--html", "/nonexistent/f"],
])  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_status_2(words: list[str]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("vmbus-emu: error: ")
    assert FakeMachine.calls == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"operations": {}}', '{"operations": 1}', "\xff", "[" * 100_000,
                                     '{"schema": 2, "operations": {}, "histories": {}}',
                                     '{"schema": 1, "operations": {}, "histories": {}}',
                                     '{"schema": 1, "operations": {}, "histories": {"vm1": 3}, "kills": 1}'])
def test_check_of_something_else_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content, "latin-1")
    result = run("check", str(path))
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (1, 1, "")
    assert "check takes what chaos --json FILE wrote" in result.stderr


def test_components_and_faults_are_completed() -> None:
    def completed(words: str) -> list[str]:
        env = {"_VMBUS_EMU_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = CliRunner().invoke(cli, [], env=env, catch_exceptions=False)
        return [line.partition(",")[2] for line in result.output.splitlines() if line]

    (RunFolder("default").logs / "parent.log").touch()
    assert completed("vmbus-emu kill p") == ["parent"]
    assert completed("vmbus-emu chaos --kill vm") == ["vm1", "vm2"]
    assert completed("vmbus-emu start v") == ["vm1", "vm2"]
    assert completed("vmbus-emu kill vm1 --fault s") == ["segv", "stop", "scribble"]
    assert completed("vmbus-emu fault p") == ["parent"]
    assert completed("vmbus-emu fault storvsp s") == ["slow="]
