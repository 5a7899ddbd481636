"""The timeline page: well-formed and self-contained whatever is in the run, and it says what the run says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.killed_runs import BEGIN, CASES, DEAD, HIT, HOSTILE, MS, history, kill, run, unrecovered
from vmbus_emu.client import timeline_data
from vmbus_emu.client.timeline import CHARTS, page, pages
from vmbus_emu.client.timeline_data import DIED, INTERRUPTED, NEVER, NO_LOAD, SILENT_BEFORE, WENT_ON, Run, bin_width
from vmbus_emu.client.timeline_svg import duration, text, ticks
from vmbus_emu.client.timeline_zoom import FIRST, WORST, chosen
from vmbus_emu.witness.history import REQUEST


def parsed(html: str) -> ET.Element:
    """Well-formed, as UTF-8 and as XML; with every id once."""
    root = ET.fromstring(html.encode())
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    return root


def said(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def pictures(root: ET.Element) -> list[ET.Element]:
    return [svg for svg in root.iter("svg") if svg.get("role") == "img"]


def table(root: ET.Element, first_heading: str) -> list[list[str]]:
    """The cells below the head of the table whose first column has that heading."""
    for one in root.iter("table"):
        if said(next(one.iter("th"))) == first_heading:
            return [[said(cell) for cell in row] for row in one.findall("tbody/tr")]
    raise AssertionError(f"no table begins with {first_heading}")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_run_makes_a_page_that_needs_nothing_else(case: dict[str, Any]) -> None:
    for html in (page(case), pages([case, case])):
        root = parsed(html)
        assert {element.tag for element in root.iter()}.isdisjoint({"script", "link", "img", "iframe", "object", "use"})
        assert not re.search(r"https?:|//|@import|src=|expression\(", html.replace("<!DOCTYPE html>", ""))
        assert re.findall(r"url\(([^)]*)\)", html).count("#hatch") == html.count("url(")
        assert "nan" not in html.lower().replace("finance", "")
        assert not re.search(r"\binf\b|\bNone\b", html)
        for link in root.iter("a"):
            target = link.get("href", "")
            assert target.startswith("#")
            assert f'id="{target[1:]}"' in html


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_picture_is_named_and_described_and_within_its_frame(case: dict[str, Any]) -> None:
    for svg in pictures(parsed(page(case))):
        title, description = svg.find("title"), svg.find("desc")
        assert title is not None
        assert description is not None
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text
        assert description.text
        _, _, width, height = map(float, svg.get("viewBox", "").split())
        for element in svg.iter():
            for name, limit in (("x", width), ("y", height)):
                assert 0 <= float(element.get(name, 0)) <= limit
        for rect in svg.iter("rect"):
            assert 0 < float(rect.get("width", 0)) <= width - float(rect.get("x", 0)) + 2


def test_hostile_names_stay_text() -> None:
    hostile = run(
        history(), kills=[kill(300, HOSTILE, host=HOSTILE + "2", fault=HOSTILE)], vms=(HOSTILE,), findings=[HOSTILE],
        machine={"name": HOSTILE, "arch": HOSTILE, "transport": HOSTILE, "policy": {HOSTILE: HOSTILE}},
        events=[{"n": 1, "ns": BEGIN + 301 * MS, "event": "died", "component": HOSTILE}],
    )  # fmt: skip
    for html in (page(hostile), pages([hostile])):
        root = parsed(html)
        assert not list(root.iter("script"))
        assert "<script" not in html
        assert 'alert("1")' in said(root)
    assert text("a\x00b\ud800\uffff") == "a\ufffdb\ufffd\ufffd"
    assert text("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"


def test_what_is_no_history_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a history"):
        page(run({"operations": "none"}))


# -- what it says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kills", "changes", "heading"),
    [
        ([kill(1)], {}, "storvsp killed once: no acknowledged write was lost"),
        ([kill(1), kill(2), kill(3, "netvsp")], {},
         "storvsp killed twice and netvsp killed once: no acknowledged write was lost"),
        ([kill(1, fault="hang")], {}, "storvsp hit by “hang” once: no acknowledged write was lost"),
        ([kill(n, f"vm{n}") for n in range(4)], {}, "4 kills of 4 components: no acknowledged write was lost"),
        ([], {}, "Nothing was killed: no acknowledged write was lost"),
        ([kill(1)], {"operations": {"lost": 1}}, "storvsp killed once: acknowledged writes of 1 sector were lost"),
        ([kill(1)], {"operations": {}}, "storvsp killed once: it was not judged what was lost"),
        ([kill(1)], {"findings": ["unread: sector 3"]},
         "storvsp killed once: no acknowledged write is known to be lost, but there are findings"),
    ],
)  # fmt: skip
def test_the_heading_says_what_was_killed_and_what_was_lost(
    kills: list[dict[str, Any]], changes: dict[str, Any], heading: str
) -> None:
    root = parsed(page(run(history(), kills=kills, **changes)))
    assert said(next(root.iter("h1"))) == heading
    assert said(next(root.iter("title"))) == heading


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({}, "good", "nothing lost, nothing unexpected"),
        ({"operations": {"lost": 2, "duplicated": 1}}, "bad", "2 lost and 1 duplicated"),
        ({"operations": {"lost": 0, "unexpected": 5}}, "bad", "5 unexpected"),
        ({"findings": ["unread: sector 3"]}, "bad", "There is 1 finding"),
        ({"operations": {}}, "", "Nothing was judged"),
        ({"vms": {"vm1": {"survived": False}, "vm2": {"survived": True}}}, "good", "vm1 did not survive"),
        ({}, "good", "Every VM survived"),
    ],
)
def test_the_verdict_is_good_only_if_nothing_is_wrong(changes: dict[str, Any], kind: str, words: str) -> None:
    root = parsed(page({**run(history()), **changes}))
    (verdict,) = (one for one in root.iter("p") if (one.get("class") or "").startswith("verdict"))
    assert verdict.get("class", "").split()[1:] == ([kind] if kind else [])
    assert words in said(verdict)


def test_of_a_vm_nobody_knows_whether_it_survived() -> None:
    html = page({**run(history()), "vms": {"vm1": {"survived": None}}})
    assert "survive" not in said(parsed(html))
    assert table(parsed(html), "VM")[0][:2] == ["vm1", "–"]


def test_the_tables_hold_the_figures_of_the_run() -> None:
    root = parsed(page(HIT))
    assert table(root, "VM") == [["vm1", "✓ survived", "40 ms", "–", "2", "7", "0", "0", "100 µs", "38 ms"]]
    (row,) = table(root, "#")
    assert row[:11] == ["1", "storvsp", "kill", "–", "0.30 s", "4242", "1", "1 ms", "6 ms", "10 ms", "20 ms"]
    assert row[11] == "40 ms vm1"
    findings = parsed(page(run(history(), findings=["lost: sector 3", "lost: sector 4"])))
    assert table(findings, "finding") == [["lost: sector 3"], ["lost: sector 4"]]


def test_a_kill_is_marked_where_it_was_and_the_outage_is_hatched() -> None:
    chart, zoomed = pictures(parsed(page(HIT)))
    assert "1 storvsp" in said(chart)
    assert "Interruptions: 1, for at most 40 ms" in said(chart)
    (silent,) = (rect for rect in chart.iter("rect") if rect.get("class") == "silent")
    (flag,) = (path for path in chart.iter("path") if re.fullmatch(r"M[\d.]+ 20V[\d.]+", path.get("d", "")))
    at = float(flag.get("d", "")[1:].split()[0])
    assert float(silent.get("x", 0)) == pytest.approx(at, abs=1)
    assert at == pytest.approx(66 + 924 * 0.3, abs=0.5)
    assert "start took 6 ms" in said(zoomed)
    assert "vm1 network: went on" in said(zoomed)
    assert len([rect for rect in zoomed.iter("rect") if rect.get("class") in ("step", "whole")]) == 4


def test_steps_that_did_not_happen_have_no_bar() -> None:
    _, zoomed = pictures(parsed(page(DEAD)))
    assert [rect.get("class") for rect in zoomed.iter("rect")] == ["step", "silent"]
    assert "renegotiate did not happen" in said(zoomed)


def test_several_runs_are_one_table_of_component_by_placement() -> None:
    apart = {**HIT, "machine": {"name": "b", "arch": "disaggregated", "transport": "zmq"}}
    alone = {**DEAD, "machine": {"name": "c", "arch": "monolithic", "transport": "call"}}
    root = parsed(pages([HIT, apart, alone]))
    head = [said(cell) for cell in next(root.iter("table")).findall("thead/tr/th")]
    assert head == ["killed", "microkernel over ring", "disaggregated over zmq", "monolithic"]
    hit = "↻vm1 disk silent for 40 ms; network went on"
    assert table(root, "killed") == [
        ["storvsp", hit, hit, "not killed"],
        ["vm1", "not killed", "not killed", "✗vm1 died"],
    ]
    assert len(list(root.iter("section"))) == 3
    assert said(parsed(pages([]))).startswith("No runs")


# -- the numbers --------------------------------------------------------------------------------------------------


def effects(one: dict[str, Any]) -> list[str]:
    read = Run(one)
    return [read.lanes["vm1"][0].effect(kill).what for kill in read.kills]


def test_what_a_kill_was_to_a_device() -> None:
    assert effects(run(history(), kills=[kill(300)])) == [WENT_ON]
    assert effects(HIT) == [INTERRUPTED]
    assert effects(DEAD) == [DIED]
    assert effects(run(history(until=400), kills=[unrecovered(400, "storvsp"), kill(700)])) == [NEVER, SILENT_BEFORE]
    assert effects(run(history(300), kills=[kill(700)])) == [NO_LOAD]


def test_what_was_on_its_way_at_the_kill_does_not_make_it_an_answer() -> None:
    # The last completion comes 0.6 ms after the kill, and then none ever.
    read = Run(run(history(until=401), kills=[unrecovered(399.5, "storvsp")]))
    effect = read.lanes["vm1"][0].effect(read.kills[0])
    assert effect.what == NEVER
    assert effect.begin_ns == pytest.approx(BEGIN + 400.1 * MS)
    died = Run({**DEAD, "kills": [unrecovered(398.5, "vm1", died_ns=BEGIN + 400 * MS)], "events": DEAD["events"]})
    assert died.lanes["vm1"][0].effect(died.kills[0]).end_ns is None


def test_a_silence_belongs_to_the_kill_that_made_it() -> None:
    # One that ends with the next kill, and one far behind a recovery: neither is the first kill's.
    assert effects(run(history(outages=[(400, 440)]), kills=[kill(300), kill(400)])) == [WENT_ON, INTERRUPTED]
    assert effects(run(history(outages=[(600, 640)]), kills=[kill(300)])) == [WENT_ON]
    # Those apart from the kills are shown nevertheless.
    read = Run(run(history(outages=[(600, 640)]), kills=[kill(300)]))
    ((begin, end),) = read.lanes["vm1"][0].silences(read.kills, read.end_ns)
    assert (begin, end) == pytest.approx((BEGIN + 600 * MS, BEGIN + 640 * MS), abs=2 * MS)


def test_an_outage_is_in_the_corrected_latencies_of_all_who_waited() -> None:
    read = Run(HIT)
    bins = read.lanes["vm1"][0].bins(BEGIN, 10 * MS, 101)
    assert sum(bins.done) == 1000
    assert bins.done[30:34] == [0, 0, 0, 0]
    first, third = bins.corrected[30], bins.corrected[32]
    assert first is not None
    assert third is not None
    assert first[1] == pytest.approx(40 * MS, rel=0.01)
    assert third[0] == pytest.approx(15 * MS, rel=0.1)
    # Submitted when there was room for them, they look as if nothing had happened.
    assert all(spread[1] <= MS for spread in bins.uncorrected if spread)


def test_a_request_that_nobody_served_is_counted_where_it_was_planned() -> None:
    bins = Run(run(history(until=400))).lanes["vm1"][0].bins(BEGIN, 100 * MS, 11)
    assert bins.done[:4] == [100] * 4
    assert bins.unserved == [0] * 4 + [100] * 6 + [0]


def test_a_vm_that_died_and_ran_again() -> None:
    again = {"n": 2, "ns": BEGIN + 500 * MS, "event": "up"}
    (one,) = Run({**DEAD, "events": [*DEAD["events"], again]}).kills
    assert one.victims == one.revived == frozenset({"vm1"})
    assert "died, then ran again" in said(parsed(pages([{**DEAD, "events": [*DEAD["events"], again]}])))


def test_the_first_kills_and_the_worst_are_drawn_close() -> None:
    kills = [kill(at) for at in range(50, 950, 100)]
    outages = [(at, at + (90 if at == 750 else 20)) for at in range(50, 950, 100)]
    read = Run(run(history(outages=outages), kills=kills))
    drawn = chosen(read)
    assert [one.number for one, _ in drawn[:FIRST]] == [1, 2, 3, 4, 5]
    assert len(drawn) <= FIRST + WORST
    assert (read.kills[7], True) in drawn


@pytest.mark.parametrize(
    ("ns", "words"),
    [(0, "0 ns"), (999, "999 ns"), (999.6, "1 µs"), (1500, "1.5 µs"), (9_960_000, "10 ms"), (999_600_000, "1 s"),
     (1_234_000_000, "1.23 s"), (60e9, "60 s")],
)  # fmt: skip
def test_durations_for_people(ns: float, words: str) -> None:
    assert duration(ns) == words


def test_scales_are_round_and_bins_are_bounded() -> None:
    assert [ticks(span, 5) for span in (1, 7, 60, 0.3)] == pytest.approx([0.2, 2, 20, 0.1])
    for span in (1, 7, 10**9, 60 * 10**9 + 1, 3600 * 10**9):
        assert span / bin_width(span) <= timeline_data.BINS


# -- size ---------------------------------------------------------------------------------------------------------


def test_the_page_does_not_grow_with_the_load() -> None:
    def size(count: int) -> int:
        return len(page(run(history(count, 1000 * MS // count), kills=[kill(300)])).encode())

    assert size(40_000) < 2 * size(2_000)


def test_many_vms_and_kills_are_still_a_page() -> None:
    names = [f"vm{n}" for n in range(3 * CHARTS)]
    one = run(history(500, 2 * MS), history(100, 10 * MS, kind=REQUEST), [kill(n * 10) for n in range(60)], names)
    html = page(one)
    root = parsed(html)
    assert len(html.encode()) < 2_000_000
    assert len(table(root, "VM")) == 3 * CHARTS
    assert len(table(root, "#")) == 60
    assert len(pictures(root)) == CHARTS + len(chosen(Run(one)))
