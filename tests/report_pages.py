"""Pages of the benchmark report as the tests read them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from functools import cache
from html.parser import HTMLParser

from bench.report.page import page
from tests.measured_runs import CASES

_EMPTY = {"meta", "br", "hr", "img", "link"}


@cache
def drawn(name: str) -> str:
    """The page of a case; drawing takes its time."""
    return page(CASES[name])


class Balanced(HTMLParser):
    """Reads a page as a browser does: what a script holds is no markup."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.told: dict[str, str] = {}
        self._id = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._begin(tag, attrs)
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._begin(tag, attrs)

    def _begin(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._id = dict(attrs).get("id") or ""
        self.ids += [self._id] if self._id else []
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert (value or "").startswith("#")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.told[self._id] = self.told.get(self._id, "") + data


def read(html: str) -> Balanced:
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def parsed(html: str) -> ET.Element:
    return ET.fromstring(html.encode())


def said(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def pictures(root: ET.Element) -> dict[str, ET.Element]:
    """By title."""
    return {said(svg.findall("title")[0]): svg for svg in root.iter("svg")}


def cells(root: ET.Element, caption: str) -> list[list[str]]:
    """The rows of the table whose caption begins so."""
    for table in root.iter("table"):
        if said(table.findall("caption")[0]).startswith(caption):
            return [[said(cell) for cell in row] for row in table.findall("tbody/tr")]
    raise AssertionError(f"no table begins with {caption}")
