"""What the documents name exists: files, functions, constants with their values, links.

In a document ``path/file.py`` names a file of this repository, ``path/file.py:Name`` or ``:Class.method`` something
defined in it, and ``path/file.py:NAME`` = ``value`` a constant.
"""

from __future__ import annotations

import ast
import importlib
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path

import pytest

import vmbus_emu

ROOT = Path(vmbus_emu.__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PICTURES = sorted((ROOT / "docs").rglob("*.svg"))

_CODE = re.compile(r"`((?:vmbus_emu|partitions|drivers|bench|tests|examples)/[\w/.-]+)(?::([\w.]+))?`(?: = `([^`]+)`)?")
_LINK = re.compile(r"!?\[[^]]*]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Mention:
    """``path:name`` = ``value`` in a document; what was left out is empty."""

    path: str
    name: str
    value: str


def prose(document: Path) -> str:
    return _FENCED.sub("", document.read_text())


def mentions(document: Path) -> list[Mention]:
    return [Mention(*(group or "" for group in found.groups())) for found in _CODE.finditer(prose(document))]


@cache
def names(path: Path) -> frozenset[str]:
    """What a module defines at its top, and in its classes as ``Class.name``."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    found.add(prefix + name)
                case ast.ClassDef(name=name):
                    found.add(prefix + name)
                    collect(node.body, f"{prefix}{name}.")
                case ast.Assign(targets=targets):
                    parts = [part for target in targets for part in ast.walk(target)]
                    found.update(prefix + part.id for part in parts if isinstance(part, ast.Name))
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(prefix + name)

    collect(ast.parse(path.read_text()).body, "")
    return frozenset(found)


def value_of(mention: Mention) -> object:
    parts = mention.name.split(".")
    module = importlib.import_module(mention.path.removesuffix(".py").replace("/", "."))
    if len(parts) == 2 and hasattr(getattr(module, parts[0]), "__dataclass_fields__"):
        return getattr(module, parts[0]).__dataclass_fields__[parts[1]].default
    return reduce(getattr, parts, module)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_and_function_a_document_names_exists(document: Path) -> None:
    wrong = []
    for mention in mentions(document):
        path = ROOT / mention.path
        if not path.exists():
            wrong.append(f"{mention.path} does not exist")
        elif mention.name and mention.name not in names(path):
            wrong.append(f"{mention.path} defines no {mention.name}")
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_constant_has_the_value_a_document_gives(document: Path) -> None:
    given = {mention: ast.literal_eval(mention.value) for mention in mentions(document) if mention.value}
    assert {mention: value_of(mention) for mention in given} == given


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    targets = [target for target in _LINK.findall(prose(document)) if "://" not in target]
    assert [target for target in targets if not (document.parent / target.partition("#")[0]).exists()] == []


def test_the_pages_that_explain_the_code_name_it() -> None:
    architecture, fidelity = mentions(ROOT / "docs/architecture.md"), mentions(ROOT / "docs/fidelity.md")
    assert sum(bool(mention.name) for mention in architecture) > 40
    assert sum(bool(mention.value) for mention in fidelity) > 15


def test_every_placement_has_its_picture_in_the_architecture_page() -> None:
    from vmbus_emu.placement import PLACEMENTS

    shown = _LINK.findall((ROOT / "docs/architecture.md").read_text())
    assert [arch for arch in PLACEMENTS if f"placement-{arch}.svg" not in shown] == []


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_well_formed_says_what_it_shows_and_needs_no_colour(picture: Path) -> None:
    text = picture.read_text()
    root = ElementTree.fromstring(text)
    for tag in ("title", "desc"):
        element = root.find(f"{{http://www.w3.org/2000/svg}}{tag}")
        assert element is not None, tag
        assert element.text, tag
    for colour in re.findall(r"#([0-9a-f]{3}|[0-9a-f]{6})\b", text):
        channels = set(colour) if len(colour) == 3 else {colour[0:2], colour[2:4], colour[4:6]}
        assert len(channels) == 1, f"#{colour} is not a grey"


def test_decision_records_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    assert numbers
    assert numbers == list(range(1, len(numbers) + 1))
