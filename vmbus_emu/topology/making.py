"""Making a topology: from a TOML file, from flags, or from both, with every fault reported at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any

from vmbus_emu.topology.data import Topology, TopologyErrors
from vmbus_emu.topology.file import Overrides, Reader
from vmbus_emu.topology.limits import check_limits

#: A topology file larger than this is something else.
MAX_FILE_BYTES = 16 << 20


def load(path: str | os.PathLike[str]) -> Topology:
    """The topology in a TOML file. Raises :class:`TopologyErrors`."""
    return build(path, Overrides())


def build(path: str | os.PathLike[str] | None, flags: Overrides, limits: bool = False) -> Topology:
    """The topology of a file (or the default one), changed by ``flags``. Raises :class:`TopologyErrors`.

    ``limits``: also check that this host allows so many VMs, and report that with the rest.
    """
    if path is None:
        return parse({}, "flags", os.curdir, flags, limits)
    source = os.fspath(path)
    return parse(_read_toml(source), source, os.path.dirname(source), flags, limits)


def parse(
    document: Mapping[str, Any],
    source: str = "topology",
    folder: str = os.curdir,
    flags: Overrides | None = None,
    limits: bool = False,
) -> Topology:
    """The topology in ``document``, a mapping of the TOML file's shape. ``source`` is its name in error lines,
    ``folder`` what its relative paths start from. Raises :class:`TopologyErrors`."""
    reader = Reader(source, folder, flags or Overrides())
    topology = reader.read(document)
    errors = reader.errors
    if limits and topology.vms:
        errors = errors + check_limits(topology)
    if errors:
        raise TopologyErrors(errors)
    return topology


def _read_toml(source: str) -> dict[str, Any]:
    try:
        with open(source, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TopologyErrors([f"{source}:file: {error.strerror}; give the path of a topology file"]) from error
    except ValueError as error:
        raise TopologyErrors([f"{source!r}:file: {error}; give the path of a topology file"]) from error
    if len(raw) > MAX_FILE_BYTES:
        raise TopologyErrors([f"{source}:file: more than {MAX_FILE_BYTES} bytes; give a topology file"])
    try:
        return tomllib.loads(raw.decode())
    except RecursionError:
        raise TopologyErrors([f"{source}:syntax: nested too deeply; write plain tables"]) from None
    except ValueError as error:  # not UTF-8, not TOML, or a number with thousands of digits
        what = " ".join(str(error).split())
        raise TopologyErrors([f"{source}:syntax: {what}; mend the TOML there"]) from error
