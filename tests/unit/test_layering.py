"""Imports point in one direction: a table of who may import whom, held against the sources.

The arrows are those of the design's layout section. Imports inside functions and under ``TYPE_CHECKING`` count
as arrows too; only the search for cycles looks at what runs when a module is loaded.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import vmbus_emu

ROOT = Path(vmbus_emu.__file__).parents[1]
PACKAGES = ("vmbus_emu", "partitions", "drivers", "bench")
#: What roles and drivers may use of the mechanism: the two ends of a device and what lies between.
DATA_PLANE = tuple(
    f"vmbus_emu.{name}"
    for name in (
        "device", "channel", "loop", "task", "zmqport", "protocol", "vmbus",
        "hardware", "memory", "ring", "ring_channel", "guest_ring", "host_ring", "polling", "witness",
    )
)

#: What a partition's process stands on besides: the hypervisor's calls, the lifeline, the process itself.
PROCESS = tuple(f"vmbus_emu.{name}" for name in ("vp", "envelopes", "lifeline", "node", "canary"))


@dataclass(frozen=True)
class Arrow:
    """Modules below ``source`` (but not below ``except_for``) import, of ours, only what is below ``allowed``."""

    source: str
    allowed: tuple[str, ...]
    except_for: tuple[str, ...] = ()


ARROWS = (
    Arrow("vmbus_emu.protocol", ("vmbus_emu.protocol",)),
    Arrow("vmbus_emu", ("vmbus_emu",), except_for=("vmbus_emu.cli",)),
    Arrow("partitions", ("partitions", *DATA_PLANE, *PROCESS), except_for=("partitions.monolith",)),
    # The monolith is the hypervisor too: what elsewhere are hypercalls, it calls.
    Arrow("partitions.monolith", ("partitions", "vmbus_emu.hypervisor", *DATA_PLANE, *PROCESS)),
    Arrow("drivers", ("drivers", *DATA_PLANE)),
)
#: ``(who, whom)``: never, whatever the arrows say.
FORBIDDEN = (
    ("partitions.parent", "partitions.child"),
    ("partitions.child", "partitions.parent"),
    ("vmbus_emu.hypervisor", "vmbus_emu.vmbus"),
    ("vmbus_emu.vmbus", "vmbus_emu.hypervisor"),
)
#: Who may import the command line.
CLI_USERS = ("vmbus_emu.cli", "vmbus_emu.__main__")
VAGUE_NAMES = frozenset(("util", "utils", "common", "base", "helpers", "misc"))


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of ours by its dotted name; a package is its ``__init__``."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_bytes(), str(path))
    return found


def imports(tree: ast.AST, known: Iterable[str], loading_only: bool = False) -> Iterator[str]:
    """The modules of ours that ``tree`` imports. ``loading_only``: without those in functions or for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                yield "." * node.level + module
            elif module.split(".")[0] in PACKAGES:
                # "from package import submodule" is an arrow to the submodule, not to the package.
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    yield inner if inner in known else module
        elif not (loading_only and runs_later(node)):
            yield from imports(node, known, loading_only)


def runs_later(node: ast.AST) -> bool:
    """Whether loading a module passes ``node`` by."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def wrong_arrows(sources: dict[str, ast.Module]) -> list[str]:
    wrong = []
    for name, tree in sources.items():
        for target in imports(tree, sources):
            allowed = all(
                any(below(target, package) for package in arrow.allowed)
                for arrow in ARROWS
                if below(name, arrow.source) and not any(below(name, package) for package in arrow.except_for)
            )
            forbidden = any(below(name, who) and below(target, whom) for who, whom in FORBIDDEN)
            cli = below(target, "vmbus_emu.cli") and not any(below(name, user) for user in CLI_USERS)
            if target.startswith(".") or not allowed or forbidden or cli:
                wrong.append(f"{name} -> {target}")
    return wrong


def cycles(sources: dict[str, ast.Module]) -> list[str]:
    """Modules that need themselves to be loaded."""
    needs = {name: {*imports(tree, sources, loading_only=True)} - {name} for name, tree in sources.items()}
    reached: dict[str, set[str]] = {}
    for name in needs:
        seen: set[str] = set()
        todo = list(needs[name])
        while todo:
            target = todo.pop()
            if target not in seen:
                seen.add(target)
                todo += needs.get(target, ())
        reached[name] = seen
    return sorted(name for name in needs if name in reached[name])


def test_every_import_follows_an_arrow() -> None:
    sources = modules()
    assert len(sources) > 20
    assert wrong_arrows(sources) == []


def test_no_module_needs_itself() -> None:
    assert cycles(modules()) == []


def test_every_file_opens_with_its_contract() -> None:
    silent = [name for name, tree in modules().items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name for name in modules() if name.rpartition(".")[2] in VAGUE_NAMES] == []


@pytest.mark.parametrize(
    ("name", "source", "seen"),
    [
        ("vmbus_emu.protocol.x", "from vmbus_emu import device", True),
        ("vmbus_emu.protocol.x", "from vmbus_emu.protocol import y", False),
        ("vmbus_emu.protocol.x", "import struct", False),
        ("vmbus_emu.x", "def f():\n import partitions.parent", True),
        ("vmbus_emu.x", "from drivers.disk import Disk", True),
        ("vmbus_emu.x", "from vmbus_emu.cli import table", True),
        ("vmbus_emu.cli.x", "from drivers import disk", False),
        ("partitions.parent.x", "from vmbus_emu.machine import Machine", True),
        ("partitions.parent.x", "from vmbus_emu.protocol.nvsp import Init", False),
        ("partitions.parent.x", "from vmbus_emu import device", False),
        ("partitions.parent.x", "from partitions.child import storvsc", True),
        ("partitions.child.x", "from partitions.parent.y import z", True),
        ("partitions.child.x", "from .y import z", True),
        ("drivers.x", "import partitions", True),
        ("drivers.x", "from vmbus_emu.node import Node", True),
        ("drivers.x", "if True:\n try:\n  from vmbus_emu.hypervisor import x\n finally: pass", True),
        ("vmbus_emu.hypervisor.x", "from vmbus_emu.vmbus import provider", True),
    ],
)
def test_a_wrong_arrow_is_seen(name: str, source: str, seen: bool) -> None:
    known = {"vmbus_emu.device": ast.parse(""), name: ast.parse(source)}
    assert bool(wrong_arrows(known)) is seen


def test_a_cycle_is_seen_unless_it_is_only_for_later() -> None:
    a = ast.parse("import vmbus_emu.b")
    assert cycles({"vmbus_emu.a": a, "vmbus_emu.b": ast.parse("from vmbus_emu.a import x")}) == [
        "vmbus_emu.a", "vmbus_emu.b",
    ]
    later = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import vmbus_emu.a\ndef f():\n import vmbus_emu.a"
    assert cycles({"vmbus_emu.a": a, "vmbus_emu.b": ast.parse(later)}) == []
