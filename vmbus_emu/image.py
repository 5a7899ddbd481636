"""The image that a monolith boots from: its drivers, fixed when it is built. A file with a manifest and a checksum.

It is a zip file, uncompressed: ``manifest.json``, and under ``code/`` the modules of the drivers, from where the
monolith loads them. The manifest has ``schema``, ``drivers`` (name, version, kind, models, entry) and ``sha256``,
over the names and contents of everything under ``code/``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

from vmbus_emu.client.errors import MachineError

SCHEMA = 1
_CODE = "code/"
_MANIFEST = "manifest.json"
_FIELDS = ("name", "version", "kind", "models", "entry")
_MOST_BYTES = 64 << 20


def build(drivers: Iterable[Mapping[str, Any]], path: str) -> dict[str, Any]:
    """Write an image with ``drivers`` (as :func:`vmbus_emu.client.drivers.try_out` found them); its manifest. A file
    that is there is replaced in one step. Raises :class:`MachineError`."""
    files: dict[str, bytes] = {}
    listed = []
    for driver in drivers:
        module, _, name = driver["entry"].partition(":")
        inside = module.rpartition(".")[2] if not driver["path"] else module
        files |= _sources(module, driver["path"], inside)
        kept = {field: driver[field] for field in _FIELDS[:-1]}
        listed.append({**kept, "entry": f"{inside}:{name}"})
    manifest = {"schema": SCHEMA, "drivers": listed, "sha256": _checksum(files)}
    folder = os.path.dirname(os.path.abspath(path))
    try:
        draft = os.path.join(folder, f".{os.path.basename(path)}.{os.getpid()}")
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=1) + "\n")
            for name, content in sorted(files.items()):
                archive.writestr(_CODE + name, content)
        os.replace(draft, path)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}", "choose another file") from None
    return manifest


def _sources(module: str, path: str, inside: str) -> dict[str, bytes]:
    """The source files of a module, or of the whole package that it is or is in, by their names in the image."""
    top = module.partition(".")[0] if path else module
    if path and path not in sys.path:
        sys.path.insert(0, path)
        importlib.invalidate_caches()
    spec = importlib.util.find_spec(top)  # loads nothing of the driver
    if spec is None or spec.origin is None:
        raise MachineError(f"{module}: its source cannot be found", "an image is made of drivers in source form")
    if not spec.submodule_search_locations:
        return {f"{inside.partition('.')[0]}.py": _read(spec.origin)}
    found = {}
    for root in spec.submodule_search_locations:
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith(".py"):
                    file = os.path.join(folder, name)
                    found[f"{top}/{os.path.relpath(file, root)}"] = _read(file)
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _checksum(files: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()


def read(path: str) -> dict[str, Any]:
    """The manifest of an image whose code is what its checksum says; each driver has its ``path``. Raises
    :class:`MachineError`."""
    hint = "vmbus-emu image build --drivers makes one"
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise MachineError(f"{path} is too large for an image", hint)
            manifest = json.loads(archive.read(_MANIFEST))
            names = [name for name in archive.namelist() if name.startswith(_CODE)]
            files = {name.removeprefix(_CODE): archive.read(name) for name in names}
        drivers, checksum = list(manifest["drivers"]), manifest["sha256"]
        listed = [{field: driver[field] for field in _FIELDS} for driver in drivers]
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}", hint) from None
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        raise MachineError(f"{path} is no image", hint) from None
    if manifest.get("schema") != SCHEMA or checksum != _checksum(files):
        raise MachineError(f"{path}: its code is not what its checksum says: it was changed after it was built", hint)
    code = os.path.join(os.path.abspath(path), _CODE.rstrip("/"))
    return {**manifest, "drivers": [{**driver, "path": code} for driver in listed]}
