"""Finding drivers and trying them: each in a process of its own, with a deadline, before any machine sees it.

A driver package may raise when it is loaded, hang, end its process, or claim a device that it cannot drive. All that
happens to the process of :mod:`vmbus_emu.driver_trial`, and is one line here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vmbus_emu import hardware, placement
from vmbus_emu.client.errors import MachineError
from vmbus_emu.topology.data import Topology

#: Seconds that a driver has to load and to pass its trial.
TRIAL_S = 5.0

#: A driver that passed: name, version, kind, models, entry, path.
Found = dict[str, Any]


def try_out(source: str, models: Sequence[str] = (), deadline_s: float = TRIAL_S) -> list[Found]:
    """The drivers of ``source`` (a folder of a package, an installed package, an entry point or a driver of this
    package), each tried with those of ``models`` that it claims, or with all. Raises :class:`MachineError`: why it is
    of no use."""
    known = hardware.BUILT_IN.get(source)
    if known is not None:
        entries = [(known[0], "")]
    elif os.path.isdir(source):
        entries = [(entry, _import_path(source)) for entry in _declared(source)]
    else:
        entries = [(entry, "") for entry in _installed(source)]
    return [_tried(source, entry, path, models, deadline_s) for entry, path in entries]


def _declared(folder: str) -> list[str]:
    """The entry points that a package's ``pyproject.toml`` names."""
    import tomllib

    hint = f'it says where they are under [project.entry-points."{hardware.GROUP}"]'
    try:
        with open(os.path.join(folder, "pyproject.toml"), "rb") as file:
            project = tomllib.load(file)
        entries = list(project["project"]["entry-points"][hardware.GROUP].values())
    except OSError as error:
        raise MachineError(f"{folder}: no pyproject.toml: {error.strerror}", hint) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MachineError(f"{folder}: its pyproject.toml names no drivers", hint) from None
    if not entries or not all(isinstance(entry, str) and ":" in entry for entry in entries):
        raise MachineError(f"{folder}: its pyproject.toml names no drivers", hint)
    return entries


def _import_path(folder: str) -> str:
    inner = os.path.join(folder, "src")
    return os.path.abspath(inner if os.path.isdir(inner) else folder)


def _installed(name: str) -> list[str]:
    from importlib import metadata

    points = metadata.entry_points(group=hardware.GROUP)
    entries = [point.value for point in points if name in (point.name, point.dist.name if point.dist else "")]
    if not entries:
        known = ", ".join(sorted({*hardware.BUILT_IN, *(point.name for point in points)}))
        raise MachineError(f'there is no driver "{name}"', f"give the folder of a package, or one of {known}")
    return entries


def _tried(source: str, entry: str, path: str, models: Sequence[str], deadline_s: float) -> Found:
    command = [sys.executable, "-B", "-m", "vmbus_emu.driver_trial", entry, path, *models]
    trial = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, errors = trial.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        why = f"it hangs: no answer for {deadline_s:.0f} s"
        raise MachineError(f"{source}: {entry} is of no use: {why}", "no machine has seen it") from None
    finally:
        if trial.poll() is None:  # its whole session: it may have started others
            os.killpg(trial.pid, signal.SIGKILL)
            trial.communicate()
    try:
        said = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        said = {"error": f"its process ended with status {trial.returncode}" + (f": {last}" if last else "")}
    if said.get("error"):
        raise MachineError(f"{source}: {entry} is of no use: {said['error']}", "no machine has seen it")
    return {**said, "entry": entry, "path": path}


def with_drivers(topology: Topology) -> tuple[Topology, list[str]]:
    """``topology`` with drivers for what this package has none for, if installed packages bring them; and a line for
    each package that does not work, and for each device that has none nevertheless.

    A monolith has those of its image. Raises :class:`MachineError` if that cannot be used.
    """
    if topology.image is not None:
        return replace(topology, drivers=of_image(topology, topology.image)), []
    missing = placement.unsupported(topology)
    if not missing:
        return topology, []
    found, lines = _scan(sorted(set(missing.values())))
    chosen = _matching(topology, found, missing)
    topology = replace(topology, drivers={**topology.drivers, **chosen})
    for device, model in placement.unsupported(topology).items():
        disks = [disk["medium"] for disk in placement.disks(topology) if disk["controller"] == device]
        so = f", so {', '.join(disks[:8])} {'fails' if len(disks) == 1 else 'fail'}" if disks else ""
        lines.append(f"hw.{device} ({model}): no driver knows it{so}; vmbus-emu driver add PATH loads one")
    return topology, lines


def of_image(topology: Topology, path: str) -> dict[str, dict[str, Any]]:
    """The drivers in an image for the devices of ``topology``. Raises :class:`MachineError`."""
    from vmbus_emu import image

    return _matching(topology, image.read(path)["drivers"])


def _scan(models: Sequence[str]) -> tuple[list[Found], list[str]]:
    from importlib import metadata

    found: list[Found] = []
    lines: list[str] = []
    for point in metadata.entry_points(group=hardware.GROUP):
        if point.value in [entry for entry, _ in hardware.BUILT_IN.values()]:
            continue
        try:
            found.append(_tried(point.name, point.value, "", models, TRIAL_S))
        except MachineError as error:
            lines.append(str(error))
    return found, lines


def _matching(
    topology: Topology, found: Sequence[Found], only: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """For each device (of ``only``) the last driver that knows its model."""
    there = {**hardware.DEFAULT_HARDWARE, **topology.hardware}
    chosen = {}
    for device, described in there.items():
        for driver in found:
            fits = driver["kind"] == hardware.kind_of(device) and described["model"] in driver["models"]
            if fits and (only is None or device in only):
                chosen[device] = {field: driver[field] for field in ("name", "version", "entry", "path")}
    return chosen
