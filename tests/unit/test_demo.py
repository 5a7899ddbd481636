"""``demo isolation``: the table that its runs give, how it is printed, and that the documents hold it.

Long, because the whole of a demonstration's answers is written out for each placement.
"""

from __future__ import annotations

import html
import json
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench import matrix
from vmbus_emu.cli import demo as verb
from vmbus_emu.cli.blast import NARROWEST, USUAL, WIDEST, lines, markdown, milliseconds, phrases
from vmbus_emu.cli.main import cli
from vmbus_emu.client import demo
from vmbus_emu.client.demo import ARCHES, ROWS, isolation, rows, table
from vmbus_emu.client.judging import OPERATIONS
from vmbus_emu.client.timeline import pages
from vmbus_emu.client.timeline_data import Run as Timeline
from vmbus_emu.client.timeline_data import read_together
from vmbus_emu.device import Status
from vmbus_emu.faults import ENDING, refusal
from vmbus_emu.placement import components
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.topology import TopologyErrors
from vmbus_emu.topology.data import POLICIES_OF
from vmbus_emu.witness.history import REQUEST, UNSEEN, WRITE, Operation

MANAGEMENT = next(row for row in ROWS if row.component == "management")
WORKER = next(row for row in ROWS if row.component == "vm3-worker")
MS = 1_000_000
BEGIN = 5_000_000_000

# -- a run, as a machine would have given it ------------------------------------------------------------------------


def history(every_ms: int, outages: list[tuple[int, int]], kind: int = WRITE) -> dict[str, Any]:
    """A second of requests, answered after 0.1 ms; what is planned in an outage (ms) is answered at its end."""
    operations = []
    for index in range(1000 // every_ms):
        planned = BEGIN + index * every_ms * MS
        end = planned + MS // 10
        for begin_ms, end_ms in outages:
            if BEGIN + begin_ms * MS <= end < BEGIN + end_ms * MS:
                end = BEGIN + end_ms * MS + index
        operations.append(list(Operation(
            kind, int(Status.OK), 1, UNSEEN, 1, 1, planned, planned, end, index + 1, index, 0, 1, 0,
        )))  # fmt: skip
    return {"schema": 1, "fields": list(Operation._fields), "full": False, "operations": operations}


def kill(at_ms: int, component: str, host: str, **more: Any) -> dict[str, Any]:
    at = BEGIN + at_ms * MS
    return {
        "component": component, "host": host, "pid": at_ms, "incarnation": 1, "fault": "kill", "signal": "SIGKILL",
        "killed_ns": at, "died_ns": at + MS, "starting_ns": at + 2 * MS, "ready_ns": at + 5 * MS,
        "attached_ns": at + 9 * MS, "first_reply_ns": at + 10 * MS, "detect_ms": 1.0, "start_ms": 4.0,
        "renegotiate_ms": 4.0, "first_reply_ms": 10.0, "missing": [], "waited_s": 15.0, **more,
    }  # fmt: skip


def event(at_ms: int, what: str, **more: Any) -> dict[str, Any]:
    return {"n": at_ms, "ns": BEGIN + at_ms * MS, "event": what, **more}


def run() -> dict[str, Any]:
    """storvsp with its parent at 200 ms, management at 400, vm1 at 600 ms; vm2's network waits for vm1 then."""
    cut = [event(201, "detached", component=vm, device=device) for vm in ("vm1", "vm2") for device in ("disk0", "nic0")]
    return {
        "machine": {"name": "demo", "arch": "microkernel", "transport": "zmq", "policy": {"parent": "restart"}},
        "begun_ns": BEGIN, "ended_ns": BEGIN + 1000 * MS, "findings": ["vm1: odd"],
        "operations": {**dict.fromkeys(OPERATIONS, 0), "attempted": 2000, "acknowledged": 1999},
        "kills": [
            kill(200, "storvsp", "parent", label=ROWS[0].label),
            kill(400, "management", "management", label=MANAGEMENT.label),
            kill(600, "vm1", "vm1", label=ROWS[-1].label),
            kill(800, "hypervisor", "hypervisor", aside=True),
        ],
        "events": [
            event(201, "died", component="parent", carried=["netvsp", "parent", "storvsp"], pid=200), *cut,
            event(401, "died", component="management", carried=["management"], pid=400),
            event(601, "died", component="vm1", carried=["vm1"], pid=600),
            event(640, "ready", component="vm1", pid=601),
        ],
        "vms": {"vm1": {"survived": False}, "vm2": {"survived": True}},
        "histories": {
            "vm1": {"disk": history(1, [(200, 230), (600, 650)]), "network": history(5, [(200, 235), (600, 655)])},
            "vm2": {"disk": history(1, [(200, 232)]), "network": history(5, [(200, 234), (600, 660)], REQUEST)},
        },
    }  # fmt: skip


def cell_of(report: dict[str, Any], component: str, arch: str = "microkernel") -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in report["rows"] if row["component"] == component)["cells"][arch]
    return found


def a_report() -> dict[str, Any]:
    host = {"kernel": "Linux 6.1", "python": "CPython 3.11.2", "cpus": 2, "load": 0.25}
    return {**table([run()], ARCHES), "host": host, "transport": "zmq", "elapsed_s": 21.4}


def test_a_cell_says_what_one_kill_was_to_each_vm_and_no_other_kill() -> None:
    storvsp = cell_of(a_report(), "storvsp")
    assert (storvsp["host"], storvsp["carried"], storvsp["rebooted"]) == (
        "parent", ["netvsp", "parent", "storvsp"], False,
    )
    gaps = {vm: (round(one["disk_gap_ms"]), round(one["network_gap_ms"])) for vm, one in storvsp["vms"].items()}
    assert gaps == {"vm1": (30, 35), "vm2": (32, 34)}
    assert {one["outcome"] for one in storvsp["vms"].values()} == {"interrupted"}
    for one in cell_of(a_report(), "management")["vms"].values():
        assert (one["outcome"], one["disk_gap_ms"], one["network_gap_ms"]) == ("went on", None, None)
        assert one["disk_pause_ms"] < 2


def test_a_network_without_its_other_end_is_nobodys_interruption() -> None:
    died, neighbour = cell_of(a_report(), "vm1")["vms"].values()
    assert (died["outcome"], died["runs_again"], round(died["disk_gap_ms"])) == ("died", True, 50)
    assert (neighbour["outcome"], neighbour["network"], neighbour["disk"]) == ("went on", None, "went on")


def test_the_table_has_every_row_and_says_why_something_was_not_killed() -> None:
    report = a_report()
    assert [(row["component"], row["words"], row["policy"] or "") for row in report["rows"]] == [
        (row.component, row.words, row.policy) for row in rows()
    ]
    assert cell_of(report, "parent", "monolithic") == {"killed": False, "why": "there is none: drivers are called"}
    assert "device models are called" in cell_of(report, "vm3-worker", "monolithic")["why"]
    assert "refused" in cell_of(report, "files", "monolithic")["why"]
    assert cell_of(report, "netvsp")["killed"] is False
    assert report["findings"] == ["microkernel: vm1: odd"]
    usual = report["usual_pause_ms"]["microkernel"]
    assert usual["disk"] < 10 < usual["network"] < 20


# -- a VM without integration services ------------------------------------------------------------------------------


def with_emulated() -> dict[str, Any]:
    """vm3 has no channels. The parent, with the switch at the end of its cable, dies at 200 ms; its worker at 400; at
    600 ms the parent of a placement in which netvsp is apart, so that vm1 loses its channels and vm3 nothing."""
    cut = [event(at, "detached", component="vm1", device=device) for at in (201, 601) for device in ("disk0", "nic0")]
    one = run()
    return {
        **one, "machine": {**one["machine"], "emulated": ["vm3"]},
        "vms": {"vm1": {"survived": True, "neighbour": "vm2"}, "vm2": {"survived": True, "neighbour": "vm1"},
                "vm3": {"survived": False, "neighbour": "vm1"}},
        "kills": [
            kill(200, "storvsp", "parent", label=ROWS[0].label),
            kill(400, "vm3-worker", "vm3-worker", label=WORKER.label),
            kill(600, "parent", "parent", label="parent: SIGKILL"),
        ],
        "events": [
            event(201, "died", component="parent", carried=["netvsp", "parent", "storvsp"], pid=200), *cut[:2],
            event(401, "died", component="vm3-worker", carried=["vm3-worker"], pid=400),
            event(402, "died", component="vm3", carried=["vm3"], pid=9), event(440, "ready", component="vm3", pid=10),
            event(601, "died", component="parent", carried=["parent"], pid=600), *cut[2:],
        ],
        "histories": {
            "vm1": {"disk": history(1, [(200, 230), (600, 620)]), "network": history(5, [(200, 235), (600, 625)])},
            "vm2": {"disk": history(1, []), "network": history(5, [(200, 234), (600, 625)])},
            "vm3": {"disk": history(40, [(402, 450)]), "network": history(10, [(200, 241), (402, 450), (600, 660)])},
        },
    }  # fmt: skip


def test_what_is_no_channel_of_such_a_vm_is_its_cable_and_its_worker() -> None:
    report = table([with_emulated()], ARCHES)
    cable = cell_of(report, "storvsp")["vms"]["vm3"]
    assert (cable["outcome"], cable["disk"], cable["network"]) == ("interrupted", "went on", "interrupted")
    assert (round(cable["network_gap_ms"]), cable["disk_gap_ms"]) == (41, None)
    worker = cell_of(report, "vm3-worker")
    died = worker["vms"]["vm3"]
    assert (died["outcome"], died["runs_again"], round(died["network_gap_ms"])) == ("died", True, 50)
    for neighbour in (worker["vms"]["vm1"], worker["vms"]["vm2"]):    # nobody pings vm3
        assert (neighbour["outcome"], neighbour["network"], neighbour["disk"]) == ("went on", "went on", "went on")
    other_end = cell_of(report, "parent")["vms"]
    assert (other_end["vm1"]["outcome"], other_end["vm1"]["network"]) == ("interrupted", "interrupted")
    assert (other_end["vm3"]["outcome"], other_end["vm3"]["network"]) == ("went on", None)


def test_such_a_vm_is_asked_more_rarely_and_has_a_measure_of_calm_of_its_own() -> None:
    usual = table([with_emulated()], ARCHES)["usual_pause_ms"]["microkernel"]
    assert usual["disk"] < 10 < usual["network"] < 20 < usual["emulated network"] < 30
    assert 80 < usual["emulated disk"] < 90


# -- the page of the same runs --------------------------------------------------------------------------------------


def matrix_of(page: str) -> dict[str, str]:
    """The table of all runs: its first column, and the text of the second."""
    body = re.findall(r'<table class="matrix">.*?<tbody>(.*?)</tbody>', page)[0]
    found = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', body)
    return {label: " ".join(html.unescape(re.sub("<[^>]+>", " ", cell)).split()) for label, cell in found}


def test_the_page_has_the_same_rows_and_leaves_out_the_kill_that_only_goes_on() -> None:
    cells = matrix_of(pages([run()]))
    assert list(cells) == [ROWS[0].label, MANAGEMENT.label, ROWS[-1].label]
    assert cells[MANAGEMENT.label] == "✓ vm1 went on ✓ vm2 went on"
    assert cells[ROWS[-1].label] == "✗ vm1 died, then ran again, served after 55 ms ✓ vm2 disk went on"
    assert pages([run()]).count("<small>to go on</small>") == 1     # in the list of the run's kills


def test_a_silence_is_a_kills_doing_if_channels_were_cut_or_if_it_is_longer_than_without_a_kill() -> None:
    calm = [(50, 62), (200, 203), (400, 409), (600, 640)]       # the first one is the host's
    one = {**run(), "histories": {"vm1": {"disk": history(1, calm)}}}
    lane = Timeline(one).lanes["vm1"][0]
    assert 12 * MS < lane.calm_ns < 14 * MS
    effects = [lane.effect(kill).what for kill in Timeline(one).kills[:2]]
    assert effects == ["interrupted", "went on"]                # 3 ms with a cut channel; 9 ms without
    one["events"] = [event for event in one["events"] if event["event"] != "detached"]
    assert lane.effect(Timeline(one).kills[0]).what == "went on"


def test_a_vm_that_dies_later_than_what_was_killed_is_not_served_again_by_what_was_under_way() -> None:
    rebooted = [event(201, "died", component="hypervisor", carried=["hypervisor"], pid=200),
                event(206, "died", component="vm1", carried=["vm1"], pid=9), event(230, "up")]  # fmt: skip
    one = {**run(), "events": rebooted, "histories": {"vm1": {"disk": history(1, [(206, 250)])}},
           "kills": [kill(200, "hypervisor", "hypervisor", label="x")]}  # fmt: skip
    assert matrix_of(pages([one]))["x"].startswith("✗ vm1 died, then ran again, served after 50 ms")


def test_runs_of_one_placement_have_one_measure_of_calm() -> None:
    def calm(arch: str, longest: int) -> dict[str, Any]:
        histories = {"vm1": {"disk": history(1, [(50, 50 + longest)])}}
        return {**run(), "machine": {"arch": arch, "transport": "zmq", "policy": {}}, "histories": histories}

    read = read_together([calm("microkernel", 12), calm("microkernel", 30), calm("monolithic", 5)])
    assert [round(one.lanes["vm1"][0].calm_ns / MS) for one in read] == [31, 31, 6]


# -- the words ------------------------------------------------------------------------------------------------------


def seen(outcome: str, **more: Any) -> dict[str, Any]:
    """One VM in a cell."""
    nothing = {"runs_again": None, "disk": "went on", "network": "went on"}
    return {"outcome": outcome, **nothing, **dict.fromkeys(
        ("disk_gap_ms", "disk_pause_ms", "network_gap_ms", "network_pause_ms")), **more}  # fmt: skip


HURT = {"disk": "interrupted", "network": "interrupted"}
DEAD = seen("died", runs_again=True, disk_gap_ms=290.0, network_gap_ms=412.4)
ALL = ["hypervisor", "management", "netvsp", "storvsp", "vm1", "vm2"]


@pytest.mark.parametrize(("host", "carried", "first", "second", "more", "said"), [
    ("parent", ["parent", "storvsp"], seen("interrupted", **HURT, disk_gap_ms=21.4, network_gap_ms=4.0),
     seen("interrupted", **HURT, disk_gap_ms=9.0, network_gap_ms=24.0), {},
     ["parent died", "both VMs live", "gap: disk 21, network 24 ms"]),
    ("storvsp", ["storvsp"], seen("interrupted", disk="interrupted", disk_gap_ms=3.0), seen("went on"), {},
     ["storvsp died", "vm1 lives", "vm2 did not notice", "gap: disk 3.0 ms"]),
    ("management", ["management"], seen("went on"), seen("went on"), {}, ["management died", "no VM noticed"]),
    ("management", ["management"], seen("interrupted", disk="interrupted", disk_pause_ms=40.0), seen("went on"), {},
     ["management died", "vm1 lives", "vm2 did not notice", "pause: disk 40 ms"]),
    ("hypervisor", ["hypervisor"], DEAD, DEAD, {"rebooted": True},
     ["hypervisor died", "both VMs died", "rebooted, served in 412 ms"]),
    ("hypervisor", ALL, DEAD, DEAD, {"rebooted": True},
     ["the one process died", "both VMs died", "rebooted, served in 412 ms"]),
    ("vm1", ["vm1"], DEAD, seen("went on"), {}, ["vm1 died", "vm2 did not notice", "restarted, served in 412 ms"]),
    ("vm1", ["vm1"], seen("died", runs_again=False), seen("went on"), {},
     ["vm1 died", "vm2 did not notice", "stays dead"]),
    ("hypervisor", ["vm1"], seen("died", runs_again=False), seen("went on"), {},
     ["vm1's thread died", "vm2 did not notice", "back only by a reboot"]),
    ("storvsp", ["storvsp"], seen("never served again", disk="never served again"), seen("went on"),
     {"missing": ["a new storvsp"]},
     ["storvsp died", "vm1 lives", "vm2 did not notice", "! disk not served again", "! without a new storvsp"]),
    ("storvsp", [], seen("went on"), seen("went on"), {"missing": ["the end of storvsp"]},
     ["storvsp did not die", "no VM noticed", "! without the end of storvsp"]),
    ("management", ["management"], seen("went on"), seen("went on"), {"detect_ms": 1.0, "start_ms": 29.6},
     ["management died", "no VM noticed", "replaced in 31 ms"]),
    ("parent", ["parent"], seen("interrupted", disk="interrupted", disk_gap_ms=9.0), seen("went on"),
     {"detect_ms": 1.0, "start_ms": 4.0},   # the gap says it
     ["parent died", "vm1 lives", "vm2 did not notice", "gap: disk 9.0 ms"]),
])  # fmt: skip
def test_a_cell_in_words(
    host: str, carried: list[str], first: Any, second: Any, more: dict[str, Any], said: list[str]
) -> None:
    cell = {"killed": True, "host": host, "carried": carried, "rebooted": False, "missing": [], "detect_ms": 1.0,
            "start_ms": None, **more}  # fmt: skip
    assert phrases({**cell, "vms": {"vm1": first, "vm2": second}}) == said


def test_a_worker_is_named_with_the_vm_that_it_takes_along_and_those_that_it_does_not() -> None:
    cell = {"killed": True, "host": "vm3-worker", "carried": ["vm3-worker"], "rebooted": False, "missing": [],
            "detect_ms": 1.0, "start_ms": None,
            "vms": {"vm1": seen("went on"), "vm2": seen("went on"), "vm3": DEAD}}  # fmt: skip
    assert phrases(cell) == [
        "vm3-worker died", "vm3 died", "vm1, vm2 did not notice", "restarted, served in 412 ms",
    ]
    both = {"vm1": seen("interrupted", disk="interrupted", disk_gap_ms=20.0), "vm2": seen("went on"),
            "vm3": seen("interrupted", network="interrupted", network_gap_ms=50.0)}  # fmt: skip
    assert phrases({**cell, "host": "parent", "carried": ["parent"], "vms": both}) == [
        "parent died", "vm1, vm3 live", "vm2 did not notice", "gap: disk 20, network 50 ms",
    ]


def test_milliseconds_have_two_digits_or_more() -> None:
    assert [milliseconds(span) for span in (0.04, 3.14, 9.96, 99.6, 1234.5)] == ["0.0", "3.1", "10", "100", "1234"]


@pytest.mark.parametrize(("asked", "width"), [(1, NARROWEST), (80, 80), (100, 100), (120, 120), (400, WIDEST)])
def test_no_line_is_wider_than_the_terminal_and_no_column_runs_into_the_next(asked: int, width: int) -> None:
    shown = lines(a_report(), asked)
    assert max(map(len, shown)) <= width
    assert shown[1] == "-" * width
    starts = [shown[0].index(place.upper()) for place in ARCHES]
    body = shown[2 : shown.index("", shown.index("", 2) + 1)]
    assert all(line[start - 2 : start].strip() == "" for line in body for start in starts if len(line) >= start)
    assert any(line.split()[:3] == ["storvsp", "parent", "died"] for line in body)


def test_a_number_is_not_parted_from_its_unit() -> None:
    for width in range(NARROWEST, WIDEST + 1):
        assert not [line for line in lines(a_report(), width) if line.strip().startswith("ms")], width


def test_below_the_table_stand_totals_meaning_and_conditions() -> None:
    text = " ".join(lines(a_report(), USUAL))
    for words in (
        "! microkernel: vm1: odd", "2,000 writes attempted, 1,999 acknowledged: 0 lost, 0 unexpected, 0 duplicated.",
        "gap: from the moment before the kill", "(microkernel: disk 5.0, network 13 ms).",
        "Transport zmq. Policies: restart: parent.",
        "Linux 6.1, CPython 3.11.2, 2 CPUs, load 0.25 before; 21 s in all.",
    ):  # fmt: skip
        assert words in text


def test_what_guests_or_logs_say_cannot_steer_the_terminal() -> None:
    report = {**a_report(), "findings": [f"vm1: \x1b[2J{number}" for number in range(30)]}
    text = "\n".join(lines(report))
    assert "\x1b" not in text
    assert "… and 20 more findings" in text


# -- documents ------------------------------------------------------------------------------------------------------


def labels(text: str) -> list[str]:
    """The first column of a table in Markdown."""
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| **")]


def test_the_table_for_a_document_has_a_line_per_row_and_the_command() -> None:
    text = markdown(a_report(), "vmbus-emu demo isolation --transport ring")
    assert "Made by `vmbus-emu demo isolation --transport ring`. Transport zmq." in text
    body = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in body} == {len(ARCHES) + 2}
    assert len(body) == len(rows()) + 2
    assert labels(text)[0] == "**storvsp**<br>exception"
    assert "| parent died<br>both VMs live<br>gap: disk 32, network 35 ms |" in text


@pytest.mark.parametrize("document", matrix.DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_hold_the_table_as_the_constant_has_it(document: Path) -> None:
    found = list(matrix.MARKED.finditer(document.read_text()))
    assert found, "no markers"
    for marked in found:
        assert labels(marked[0]) == labels(markdown(a_report(), ""))
        transport = "" if marked["transport"] == "zmq" else f" --transport {marked['transport']}"
        assert f"Made by `vmbus-emu demo isolation{transport}`." in marked[0]
        assert "0 lost, 0 unexpected, 0 duplicated" in marked[0]


def test_a_document_is_filled_between_its_markers_again_and_again() -> None:
    text = "a\n<!-- matrix zmq -->\nold\n<!-- end of matrix -->\nb\n<!-- matrix ring -->\n<!-- end of matrix -->\nc"
    once = matrix.filled(text, {"zmq": "1", "ring": "2"})
    assert matrix.filled(once, {"zmq": "1", "ring": "2"}) == once
    assert [word for word in once.split() if len(word) == 1] == ["a", "1", "b", "2", "c"]


# -- the rows -------------------------------------------------------------------------------------------------------


def test_every_row_is_a_fault_that_fits_wherever_it_is_made() -> None:
    assert len({row.label for row in ROWS}) == len(ROWS)
    for arch in ARCHES:
        for row in (row for own in demo._scenes(arch) for row in own):
            made = demo._topology(arch, "zmq", (), row)
            there = {one.name: one.role for one in components(made)} | dict.fromkeys(made.roles, "role")
            assert row.fault in ENDING
            assert refusal(arch, there[row.component], row.fault) == ""


def test_a_row_whose_policy_this_version_has_not_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "POLICIES_OF", {**POLICIES_OF, "hypervisor": ("reboot", "halt")})
    assert [row.label for row in ROWS if row not in rows()] == ["hypervisor: SIGKILL, recover"]
    assert [len(demo._scenes(arch)) for arch in ARCHES] == [1, 1, 1]


# -- the verb -------------------------------------------------------------------------------------------------------


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """The program, with a run folder that no machine is in."""

    def call(*words: str) -> Result:
        try:
            runner = CliRunner(mix_stderr=False)  # type: ignore[call-arg, unused-ignore]
        except TypeError:
            runner = CliRunner()
        return runner.invoke(cli, ["demo", "isolation", *words], catch_exceptions=False)

    with tempfile.TemporaryDirectory(prefix="ve-", dir="/tmp") as folder:     # socket paths are short
        monkeypatch.setenv("VMBUS_EMU_RUN", folder)
        yield call


def fake(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> list[Any]:
    calls: list[Any] = []

    def isolated(arches: Any, transport: str, policies: Any, tell: Any) -> dict[str, Any]:
        calls.append((arches, transport, policies))
        return {**a_report(), "findings": [], "runs": [], **changed}

    monkeypatch.setattr(demo, "isolation", isolated)
    return calls


def test_what_is_asked_for_is_made_and_kept(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = fake(monkeypatch)
    kept = {name: tmp_path / name for name in ("json", "html", "markdown")}
    files = [word for name, path in kept.items() for word in (f"--{name}", str(path))]
    words = ["--arch", "monolithic", "--arch", "microkernel", "--transport", "ring", "--policy", "parent=standby"]
    result = invoke(*words, *files)
    assert (result.exit_code, calls) == (0, [(["microkernel", "monolithic"], "ring", ("parent=standby",))])
    assert json.loads(kept["json"].read_text())["demo"] == "isolation"
    assert "runs" not in json.loads(kept["json"].read_text())
    assert kept["html"].read_text().startswith("<!DOCTYPE html>")
    assert f"Made by `vmbus-emu demo isolation {' '.join(words)}`." in kept["markdown"].read_text()
    assert result.stderr == f"The runs in time: {kept['html']}\n"


def test_json_to_standard_output_is_nothing_else(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch)
    result = invoke("--json", "-")
    assert json.loads(result.stdout)["schema"] == 1
    assert "KILLED" in result.stderr


@pytest.mark.parametrize(("changed", "status"), [
    ({}, 0), ({"findings": ["monolithic: vm1: lost: sector 1"]}, 1),
    *[({"operations": {**dict.fromkeys(OPERATIONS, 0), name: 1}}, 1) for name in ("lost", "unexpected", "duplicated")],
    ({"operations": {**dict.fromkeys(OPERATIONS, 0), "recovered": 1, "network_lost": 5}}, 0),
])  # fmt: skip
def test_the_status_is_the_verdict(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], status: int
) -> None:
    fake(monkeypatch, **changed)
    assert invoke().exit_code == status


def test_a_terminated_demonstration_ends_as_an_interrupted_one(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def isolated(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(demo, "isolation", isolated)
    assert invoke().exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("words", [
    ["--arch", "xen"], ["--transport", "call"], ["--policy", "parent=halt"], ["--policy", "hypervisor=degraded"],
    ["--policy", "parent=again"], ["--policy", "nobody=restart"], ["--arch", "monolithic", "--policy", "parent=x"],
    ["--json", "/nonexistent/file"], ["vm1"],
])  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_status_2(invoke: Callable[..., Result], words: list[str]) -> None:
    result = invoke(*words)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr


def test_a_machine_of_that_name_is_left_alone(invoke: Callable[..., Result]) -> None:
    folder = RunFolder("demo-monolithic")
    lock = folder.acquire()
    try:
        result = invoke()
        assert (result.exit_code, result.stderr) == (1, (
            'vmbus-emu: error: "demo-monolithic" is already running, and the demonstration needs that name; '
            "vmbus-emu down --name demo-monolithic ends it\n"
        ))
        assert folder.holder() is not None
    finally:
        folder.release(lock)


def test_policies_are_checked_before_anything_starts() -> None:
    told: list[Any] = []
    with pytest.raises(TopologyErrors, match="unknown policy"):
        isolation(["monolithic"], "zmq", ["storvsp=sometimes"], told.append)
    assert told == []


def test_placements_and_the_policies_that_bring_things_back_are_completed() -> None:
    def completed(words: str) -> list[str]:
        env = {"_VMBUS_EMU_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = CliRunner().invoke(cli, [], env=env, catch_exceptions=False)
        return [line.partition(",")[2] for line in result.output.splitlines() if line]

    assert verb._ARCHES == ARCHES
    assert completed("vmbus-emu dem") == ["demo"]
    assert completed("vmbus-emu demo i") == ["isolation"]
    assert completed("vmbus-emu demo isolation --arch m") == ["microkernel", "monolithic"]
    assert completed("vmbus-emu demo isolation --policy parent=") == ["parent=restart", "parent=standby"]


def test_a_demo_without_a_name_is_a_mistake_told_in_one_line() -> None:
    result = CliRunner().invoke(cli, ["demo"])
    assert (result.exit_code, result.stderr) == (2, "vmbus-emu: error: Missing command; see vmbus-emu demo --help\n")
