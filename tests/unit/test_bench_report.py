"""The report of a benchmark: well-formed and self-contained whatever is in the run, and it says what the run says."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from typing import Any

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from bench.jobs import STANDARD as JOBS
from bench.report.page import page
from tests.measured_runs import CASES, FULL, document, run, scale
from tests.report_pages import cells, drawn, parsed, pictures, read, said

# -- the page -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_run_makes_a_page_that_needs_nothing_else(name: str) -> None:
    html = drawn(name)
    found = read(html)
    root = parsed(html)
    assert len(found.ids) == len(set(found.ids))
    assert {"link", "img", "iframe", "object", "base", "form"}.isdisjoint(found.tags)
    assert found.tags.count("script") == 2
    outside = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"https?:|@import|//", outside.replace("<!DOCTYPE html>", ""))
    assert set(re.findall(r"url\(#([^)]*)\)", html.partition("<body>")[2])) <= set(found.ids)
    assert {use.get("href", "")[1:] for use in root.iter("use")} <= set(found.ids)
    assert not re.search(r"\b(nan|inf|None)\b", outside)
    assert "nan" not in html.split('id="run"')[0].lower()


@pytest.mark.parametrize("name", CASES)
def test_the_data_are_in_it_as_they_were(name: str) -> None:
    kept = read(drawn(name)).told["run"]
    assert json.loads(kept) == json.loads(json.dumps(CASES[name]))
    assert not set("<>&") & set(kept)


def test_hostile_words_stay_text() -> None:
    root = parsed(drawn("hostile"))
    assert len(list(root.iter("script"))) == 2
    assert 'alert("1")' in said(next(root.iter("main")))
    pictured = list(root.iter("svg"))
    assert pictured
    assert {element.tag for svg in pictured for element in svg.iter()}.isdisjoint({"b", "script", "style"})


def width(words: str, style: str) -> float:
    size = re.search(r"font-size: ([\d.]+)px", style)
    assert size
    font = FontProperties(family="DejaVu Sans", weight="bold" if "font-weight: 700" in style else "normal")
    return float(TextPath((0, 0), words, float(size[1]), font).get_extents().width) if words.strip() else 0.0


@pytest.mark.parametrize("name", ["full", "depths", "few", "failed"])
def test_every_picture_is_named_told_in_words_and_within_its_frame(name: str) -> None:
    found = pictures(parsed(drawn(name)))
    assert found
    for svg in found.values():
        title, description = svg.findall("title")[0], svg.findall("desc")[0]
        assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text
        assert description.text
        assert svg.get("viewBox", "").startswith("0 0 360 ")
        height = float(svg.get("viewBox", "").split()[3])
        for text in svg.iter("text"):
            style = text.get("style", "")
            x, y, wide = float(text.get("x", 0)), float(text.get("y", 0)), width(text.text or "", style)
            anchor = re.search(r"text-anchor: (\w+)", style)
            share = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor[1] if anchor else "start"]
            turned = "rotate(-90" in text.get("transform", "")
            assert 0 <= y <= height
            assert turned or (x - share * wide >= -1 and x + (1 - share) * wide <= 361), text.text
        style = "".join(element.get("style", "") for element in svg.iter())
        assert "#" not in style.replace("url(#", "")    # every colour has one for the dark, too
        assert "font-family" not in style


def test_every_section_has_its_pictures_and_is_left_out_without_its_data() -> None:
    every = " / ".join(pictures(parsed(drawn("full"))))
    for words in ("in units of the monolithic one's", "Bare mechanisms", "Latencies: null request", "CPU time: 4 KiB",
                  "One request: read-4k, microkernel zmq", "Throughput of all VMs together against VMs",
                  "p99 latency, all VMs busy", "Memory per VM", "Boot, until", "Up, until", "Down"):  # fmt: skip
        assert words in every
    assert "requests under way" not in every
    assert "4 KiB random read, cached against requests under way" in pictures(parsed(drawn("depths")))
    root = parsed(drawn("nothing"))
    assert not list(root.iter("svg"))
    assert [said(title) for title in root.iter("h2")] == ["How it was measured", "The data"]
    assert next(said(title) for title in parsed(drawn("scale")).iter("h2")) == "With more VMs"


def test_of_many_depths_only_the_ends_are_drawn_one_by_one() -> None:
    ends = [title for title in pictures(parsed(drawn("depths"))) if title.startswith("Latencies: ")]
    assert [title.rpartition(" ")[2] for title in ends] == ["cached", "64"]


def test_the_curves_end_where_there_are_too_few_requests() -> None:
    def shares(count: int, rounds: int) -> list[str | None]:
        svg = pictures(parsed(page(run([JOBS["null"]], rounds=rounds, count=count))))["Latencies: null request"]
        return [text.text for text in svg.iter("text") if "%" in (text.text or "")]

    assert shares(60, 2) == ["0 %", "50 %", "90 %"]
    assert shares(600, 2) == ["0 %", "50 %", "90 %", "99 %"]
    assert shares(3000, 4) == ["0 %", "50 %", "90 %", "99 %", "99.9 %"]


def test_configurations_differ_in_more_than_colour() -> None:
    svg = pictures(parsed(drawn("full")))["Latencies: null request"]
    styles = [element.get("style", "") for element in svg.iter("path")]
    lines = [style for style in styles if "stroke-width: 1.6" in style]
    looks = {re.sub(r"var\(--\w+\)", "", re.sub(r"; stroke-dashoffset: 0", "", style)) for style in lines}
    assert len(looks) == 4          # both that are solid have different markers
    filled = [re.findall(r"fill: var\(--(\w+)\)", use.get("style", ""))[-1:] for use in svg.iter("use")
              if "fill: var(--" in use.get("style", "")]  # fmt: skip
    assert ["ground"] in filled
    assert ["ink"] in filled


# -- what it says -------------------------------------------------------------------------------------------------


def test_the_table_has_every_figure_and_why_there_is_none() -> None:
    rows = cells(parsed(drawn("full")), "Median latency")
    assert rows[0] == ["null request"]
    name, p50, interval, times, *_ = rows[2]
    assert (name, round(float(p50), -1), round(float(times))) == ("microkernel zmq", 90, 45)
    low, _, high = interval.partition(" to ")
    assert float(low) <= float(p50) <= float(high)
    failed = cells(parsed(drawn("failed")), "Median latency")
    assert failed[2] == ["microkernel zmq", "✗ null: no request was served in 0.3 s", "0"]
    assert failed[3][0] == "microkernel ring (null: it died)"
    assert failed[3][5] == "–"      # too few requests for a p99


def test_a_difference_that_is_not_significant_is_marked() -> None:
    same = deepcopy(FULL)
    for ratio in same["ratios"]:
        ratio["significant"] = False
    assert cells(parsed(page(same)), "Median latency")[2][3].endswith(" n. s.")
    assert "n. s." not in cells(parsed(drawn("full")), "Median latency")[2][3]


def test_the_banner_says_why_a_run_is_not_stable() -> None:
    root = parsed(drawn("unstable"))
    (banner,) = (one for one in root.iter("div") if one.get("class") == "verdict bad")
    assert said(banner).startswith("✗ Unstable: do not rely on these numbers, for 2 reasons.")
    assert [said(reason) for reason in banner.iter("li")] == [
        f"{reason}." for reason in CASES["unstable"]["reasons"]]
    for changes, told in (({}, "The run is stable"), ({"stable": False}, "The run is unstable; why"),
                          ({"stable": None}, "is not known")):  # fmt: skip
        root = parsed(page(document(**changes)))
        banners = [said(one) for one in root.iter("p") if "verdict" in one.get("class", "")]
        assert len(banners) == 1
        assert told in banners[0]


def test_it_says_how_to_make_the_run_once_more() -> None:
    def again(**changes: Any) -> str:
        return said(next(parsed(page(document(**changes))).iter("pre")))

    assert again() == "vmbus-emu bench --json run.json --seed 7"
    assert again(command=["vmbus-emu", "bench", "--seed", "9"], seed=9) == "vmbus-emu bench --seed 9"
    assert again(command=["vmbus-emu", "bench", "--html", "a b"], seed=None) == "vmbus-emu bench --html 'a b'"


def test_the_monolith_is_not_called_a_hypervisor() -> None:
    root = parsed(drawn("full"))
    rows = cells(root, "A single request")
    assert rows[1][:2] == ["submit", "monolith"]
    assert any(row[1:2] == ["parent"] for row in rows)
    assert [row[1] for row in cells(root, "CPU time per request")[1:4]] == ["vm1", "parent", "monolith"]


def test_what_the_other_vm_received_is_told() -> None:
    bulk = run([JOBS["null"]], rounds=3, count=100)
    bulk["results"][1]["received"] = {"mbit_per_s": 812.5, "frames_per_s": 70000.0, "lost_frames": 0.0}
    assert cells(parsed(page(bulk)), "Received by the other VM")[1] == ["microkernel zmq", "812", "70,000", "0.00"]


def test_a_scale_that_the_host_does_not_allow_is_told() -> None:
    rows = deepcopy(scale())
    rows[6] = {"arch": "monolithic", "transport": "call", "poll": None, "vms": 64, "failed": ["too few descriptors"]}
    found = cells(parsed(page(document(scale=rows))), "With all VMs busy")
    assert ["monolithic", "✗ too few descriptors"] in found
