"""The image of a run: what it is drawn from, that what is on it can be read, and that nothing else is touched."""

from __future__ import annotations

import ast
import math
import struct
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import vmbus_emu
from tests.killed_runs import BEGIN, CASES, DEAD, HIT, HOSTILE, MS, history, kill, run, unrecovered
from vmbus_emu.client import plot_samples
from vmbus_emu.client.plot import VMS, figure, png
from vmbus_emu.client.plot_samples import BEYOND, KINDS, Samples, gaps, latencies, nines, sentence
from vmbus_emu.client.plot_sheet import DPI, WIDTH, plain, wrapped
from vmbus_emu.client.plot_timeline import ROWS
from vmbus_emu.client.timeline_data import Run
from vmbus_emu.witness.history import REQUEST


def detached(at_ms: float, device: str = "disk0", vm: str = "vm1") -> dict[str, Any]:
    return {"n": 1, "ns": BEGIN + int(at_ms * MS), "event": "detached", "component": vm, "device": device}


CUT = {**HIT, "events": [detached(300.5)]}
OUTAGES = [(at, at + 10 + at // 100) for at in range(50, 950, 30)]      # 30, of 10 to 19 ms
MANY = run(
    history(outages=OUTAGES), history(200, 5 * MS, kind=REQUEST, outages=OUTAGES), [kill(at) for at, _ in OUTAGES],
    ("vm1", "vm2"), events=[detached(at + 0.2, device) for at, _ in OUTAGES for device in ("disk0", "nic0")],
)
EVERYBODY = run(history(100, 10 * MS), kills=[kill(n * 10, f"vm{n % 40}", fault="hang") for n in range(80)],
                vms=[f"vm{n}" for n in range(40)])
LONG = "a" * 32
DRAWN = {
    **CASES, "many kills": MANY, "many VMs": EVERYBODY,
    "long names": run(history(), kills=[kill(9, LONG), kill(99, LONG, fault="scribble")], vms=(LONG,),
                      machine={"name": LONG, "arch": "disaggregated", "transport": "ring", "policy": {LONG: LONG}}),
    "hostile names": run(history(), kills=[kill(300, HOSTILE, fault="$" + HOSTILE)], vms=(HOSTILE, r"$\frac$"),
                         machine={"name": HOSTILE * 9, "arch": HOSTILE, "policy": {HOSTILE: HOSTILE}}),
}  # fmt: skip


# -- the numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "never", "told"), [
    (20, 0, []), (21, 0, [0.5]), (100, 0, [0.5]), (1000, 0, [0.5, 0.9]), (1001, 0, [0.5, 0.9, 0.99]),
    (0, 0, []), (10_001, 0, [0.5, 0.9, 0.99, 0.999]), (400, 500, []), (980, 21, [0.5, 0.9]), (990, 11, [0.5, 0.9]),
    (991, 10, [0.5, 0.9, 0.99]),
])  # fmt: skip
def test_a_percentile_is_told_if_ten_samples_lie_beyond_it_and_it_ended(
    count: int, never: int, told: list[float]
) -> None:
    samples = Samples(range(count), never)
    assert list(samples.percentiles) == told
    for share, span in samples.percentiles.items():
        assert sum(other > span for other in samples.spans) >= BEYOND
        assert span == samples.spans[int(share * (count + never) + 1e-9)]


def test_what_never_ended_counts_and_is_not_the_longest() -> None:
    samples = Samples([3.0, math.inf, 1.0], never=1)
    assert (len(samples), samples.never, samples.longest) == (4, 2, 3.0)
    assert samples.steps() == [(1.0, 0.25), (3.0, 0.5)]
    assert Samples([]).longest is None
    assert Samples([5 * MS]).told() == "longest 5 ms"
    assert Samples([5 * MS] * 40).told() == "p50 5 ms, longest 5 ms"


def test_a_curve_ends_where_ten_lie_beyond_and_does_not_grow_with_the_load() -> None:
    for count in (11, 500, 200_000):
        steps = Samples(range(count)).tail_steps()
        assert steps[-1] == (count - BEYOND - 1, (count - BEYOND) / count)
        assert steps == sorted(steps)
        assert len(steps) <= plot_samples._POINTS + 1
    assert Samples(range(10)).tail_steps() == []
    assert Samples(range(500), never=500).tail_steps()[-1] == (499, 0.5)
    assert [nines(share) for share in (0, 0.9, 0.99)] == pytest.approx([0, 1, 2])


def test_latencies_are_those_of_all_vms_and_both_ways_of_counting() -> None:
    corrected, uncorrected = latencies(Run(run(HIT["histories"]["vm1"]["disk"], vms=("vm1", "vm2"))), "disk")
    assert (len(corrected), len(uncorrected)) == (2000, 2000)
    assert corrected.longest == pytest.approx(40 * MS, rel=0.01)
    assert uncorrected.longest == pytest.approx(MS / 10)
    unserved, _ = latencies(Run(run(history(until=400))), "disk")
    assert (len(unserved), unserved.never) == (1000, 600)


def test_a_gap_is_what_was_judged_of_who_lost_a_channel_or_died_and_else_none() -> None:
    late = run(history(outages=[(310, 340)]), kills=[kill(300, attached_ns=BEGIN + 320 * MS)], events=[detached(301)])
    assert gaps(Run({**late, "events": []}), "disk").spans == []        # a pause, perhaps the host's
    assert gaps(Run(late), "disk").spans == [pytest.approx(30 * MS, abs=MS)]        # not judged: the silence
    judged = {**late, "kills": [{**late["kills"][0], "disk_reply_ms": 41.5, "network_reply_ms": 7.0}]}
    assert gaps(Run(judged), "disk").spans == [41.5 * MS]
    assert gaps(Run(judged), "network").spans == []
    unserved = {**late, "kills": [{**late["kills"][0], "disk_reply_ms": None}]}
    assert gaps(Run(unserved), "disk").spans == [math.inf]
    assert gaps(Run(DEAD), "disk").spans == [math.inf]
    assert gaps(Run({**judged, "kills": [{**judged["kills"][0], "aside": True}]}), "disk").spans == []


def test_each_kill_is_one_gap_that_of_the_vm_that_was_hit_worst() -> None:
    histories = {vm: {"disk": history(outages=[(300, end)])} for vm, end in (("vm1", 320), ("vm2", 350), ("vm3", 380))}
    cut = [detached(301), detached(301, vm="vm2")]
    three = run(kills=[kill(300)], vms=tuple(histories), histories=histories, events=cut)
    assert gaps(Run(three), "disk").spans == [pytest.approx(50 * MS, abs=MS)]


@pytest.mark.parametrize(("one", "words"), [
    (CUT, "storvsp killed once: 0 of 999 acknowledged writes lost; disk gap: longest 40 ms (n = 1); "
     "network not interrupted"),
    (DEAD, "vm1 killed once: 0 of 999 acknowledged writes lost; disk gone for good after 1 kill"),
    (MANY, "storvsp killed 30 times: 0 of 999 acknowledged writes lost; disk gap: p50 15 ms, longest 19 ms (n = 30); "
     "network gap: p50 15 ms, longest 19 ms (n = 30)"),
    (run(history(), operations={"lost": 2, "unexpected": 1000, "duplicated": 0}),
     "Nothing was killed: the disks do not hold what they must (2 lost, 1,000 unexpected)"),
    (run(kills=[kill(1)], findings=["x"]), "storvsp killed once: 0 of 999 acknowledged writes known to be lost, "
     "but 1 finding"),
    (run(history(), operations={}), "Nothing was killed: it was not judged what was lost"),
    (run(history(), findings=["x"]), "Nothing was killed: 0 of 999 acknowledged writes known to be lost, "
     "but 1 finding"),
])  # fmt: skip
def test_the_title_is_one_sentence_with_the_numbers(one: dict[str, Any], words: str) -> None:
    read = Run(one)
    assert sentence(read, {kind: gaps(read, kind) for kind in KINDS}) == words
    assert figure(one).get_label() == words


# -- the picture --------------------------------------------------------------------------------------------------


def titles(drawn: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in drawn.axes]


def legend(axes: Axes) -> list[str]:
    shown = axes.get_legend()
    return [text.get_text().replace("\n", " ").replace("\xa0", " ") for text in shown.get_texts()] if shown else []


def test_there_are_a_row_of_kills_a_lane_for_each_device_and_three_distributions() -> None:
    drawn = figure(CUT)
    assert titles(drawn) == ["Kills", "vm1 disk: completions per second", "vm1 network: completions per second",
                             "", "", ""]  # fmt: skip
    kills, disk, network, *spread = drawn.axes
    (marks,) = (line for line in kills.lines if line.get_marker() == "v" and len(line.get_xdata()))
    assert list(marks.get_xdata()) == pytest.approx([0.3])
    assert [label.get_text() for label in kills.get_yticklabels()] == ["storvsp"]
    for lane in (disk, network):        # the kill goes through every lane
        assert [line.get_xdata() for line in lane.lines if line.get_linestyle() == "--"] == [pytest.approx([0.3, 0.3])]
    (silent,) = (patch for patch in disk.patches if patch.get_hatch())
    assert silent.get_extents().transformed(disk.transData.inverted()).intervalx == pytest.approx([0.3, 0.34], abs=1e-3)
    assert not any(patch.get_hatch() for patch in network.patches)
    assert [axes.get_xscale() for axes in spread] == ["log"] * 3
    assert legend(spread[0]) == ["corrected: p50 100 µs, longest 40 ms", "uncorrected: p50 100 µs, longest 100 µs"]
    assert legend(spread[2]) == ["disk, n = 1: longest 40 ms"]


def test_lines_differ_in_more_than_colour() -> None:
    for axes in figure(MANY).axes[-3:]:
        styles = [(line.get_linestyle(), line.get_marker()) for line in axes.get_legend().get_lines()]
        assert len(styles) == 2
        assert len({style for style, _ in styles}) == len({marker for _, marker in styles}) == 2


def test_a_percentile_that_cannot_be_told_is_nowhere() -> None:
    disk, network, _ = figure(MANY).axes[-3:]
    assert [label.get_text() for label in disk.get_yticklabels()] == ["0 %", "50 %", "90 %", "99 %"]    # of 2000
    assert [label.get_text() for label in network.get_yticklabels()] == ["0 %", "50 %", "90 %"]         # of 400
    assert "p99 " in legend(disk)[0]
    assert "p99 " not in legend(network)[0]
    for axes, count in ((disk, 2000), (network, 400)):
        highest = max(max(line.get_ydata()) for line in axes.lines if len(line.get_ydata()))
        assert highest == pytest.approx(nines(1 - BEYOND / count))
    little = figure(run(history(20), kills=[kill(5)])).axes[-3]
    assert [text.get_text() for text in little.texts][-1] == "too few to tell any percentile"
    assert not little.lines


def test_the_distributions_are_those_of_the_samples() -> None:
    *_, last = figure(MANY).axes
    disk, network = last.lines
    for line, kind in ((disk, "disk"), (network, "network")):
        spans = gaps(Run(MANY), kind).spans
        assert list(line.get_xdata()) == [spans[0], *spans]
        assert list(line.get_ydata()) == pytest.approx([n / 30 for n in range(31)])


def test_a_vm_that_died_is_marked_and_what_is_gone_for_good_is_told() -> None:
    kills, disk, _, _, last = figure(DEAD).axes
    (cross,) = (line for line in disk.lines if line.get_marker() == "X")
    assert list(cross.get_xdata()) == pytest.approx([0.401])
    assert legend(kills) == ["kill", "silent: nothing was completed", "the VM died"]
    assert [text.get_text() for text in last.texts][-1] == "disk: never served again"
    both = run(history(until=700, outages=[(300, 340)]), kills=[kill(300), unrecovered(700, "storvsp")],
               events=[detached(300)])
    last = figure(both).axes[-1]
    assert legend(last) == ["disk, n = 2: longest 40 ms; 1 for good"]
    assert max(last.lines[0].get_ydata()) == 0.5


def test_of_many_vms_and_components_the_worst_and_the_first_are_drawn() -> None:
    drawn = figure(EVERYBODY)
    assert len(drawn.axes) == 1 + VMS + 3
    rows = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert (len(rows), rows[0], rows[-1]) == (ROWS, "vm0", "others")
    assert f"Of 40 VMs, the {VMS} are drawn" in " ".join(text.get_text() for text in drawn.texts)


def test_rows_tell_the_fault_only_if_there_are_several() -> None:
    mixed = run(history(), kills=[kill(100, fault="hang"), kill(200), kill(300, fault="hang")])
    assert [label.get_text() for label in figure(mixed).axes[0].get_yticklabels()] == ["storvsp: hang", "storvsp"]
    alike = run(history(), kills=[kill(100, fault="hang")])
    assert [label.get_text() for label in figure(alike).axes[0].get_yticklabels()] == ["storvsp"]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Bbox]]:
    """What was written onto pictures, and where."""
    found: list[tuple[str, Bbox]] = []
    draw = Text.draw

    def noted(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self.get_window_extent(renderer)))
        draw(self, renderer)

    monkeypatch.setattr(Text, "draw", noted)
    return found


@pytest.mark.parametrize("case", DRAWN.values(), ids=DRAWN.keys())
def test_all_that_is_written_lies_on_the_sheet_and_apart(case: dict[str, Any], written: list[tuple[str, Bbox]]) -> None:
    drawn = figure(case)
    FigureCanvasAgg(drawn).draw()
    assert len(written) > 8
    width, height = drawn.get_size_inches() * DPI
    for words, box in written:
        assert 0 <= box.x0 < box.x1 <= width, words
        assert 0 <= box.y0 < box.y1 <= height, words
        assert all(letter.isprintable() or letter in "\n\xa0" for letter in words)
    for (one, a), (other, b) in combinations(written, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, down) <= 2, (one, other)         # pixels


@pytest.mark.parametrize("case", ["nothing at all", "all of it", "many VMs"])
def test_it_is_a_png_of_the_size_of_the_sheet(case: str) -> None:
    image = png(DRAWN[case])
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", image[16:24])
    assert width == WIDTH * DPI == 1800
    assert height == pytest.approx(figure(DRAWN[case]).get_figheight() * DPI, abs=1)
    assert 700 < height < 5000


def test_the_picture_is_the_same_whatever_a_user_has_set_and_nothing_stays_set() -> None:
    before = png(HIT)
    with matplotlib.rc_context({"font.size": 40.0, "axes.facecolor": "black", "savefig.dpi": 30, "text.usetex": True}):
        own = dict(matplotlib.rcParams)
        assert png(HIT) == before
        assert dict(matplotlib.rcParams) == own


def test_names_are_cut_and_numbers_stay_with_their_units() -> None:
    assert plain("a\x00\x1bß" + "x" * 40) == "a???" + "x" * 19 + "…"
    assert wrapped("gap: p50 22 ms, p99 1 s (n = 3)", 10, 9) == ["gap:", "p50\xa022\xa0ms,", "p99\xa01\xa0s",
                                                                     "(n\xa0=\xa03)"]
    assert wrapped("one two three", 8, 1) == ["one …"]


def test_what_is_no_history_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a history"):
        png(run({"operations": "none"}))


def test_only_the_modules_that_draw_load_matplotlib_and_none_its_global_state() -> None:
    root = Path(vmbus_emu.__file__).parents[1]
    drawing = set()
    for path in (*root.glob("vmbus_emu/**/*.py"), *root.glob("partitions/**/*.py"), *root.glob("drivers/**/*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                assert "pyplot" not in name
                if name.split(".")[0] in ("matplotlib", "numpy", "PIL"):
                    drawing.add(path.relative_to(root).as_posix())
                if name.startswith("vmbus_emu.client.plot"):
                    assert path.name.startswith("plot") or path.parent.name == "cli"
    assert drawing == {f"vmbus_emu/client/{name}.py" for name in ("plot", "plot_sheet", "plot_spread", "plot_timeline")}
