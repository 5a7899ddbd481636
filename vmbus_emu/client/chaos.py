"""``kill`` and ``chaos``: one kill under loads that only read, and many under loads that write and are judged."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmbus_emu import crashpoints, faults
from vmbus_emu.client.errors import MachineError
from vmbus_emu.client.run import Run
from vmbus_emu.client.scene import ALIVE, Scene
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door

#: The loads outlast the last period, so that the last kill is seen to its end.
_TAIL_S = 0.5
#: A load that only reads ends when it is told to; this is for the worst case.
_WARM_S = 10.0
MACHINE = "machine"
ALL = "all"

Told = Callable[[Mapping[str, Any]], Any]


def kill(
    folder: RunFolder, door: Door, component: str, fault: str, timeout: float, at: str = ""
) -> dict[str, Any]:
    """Kill a component while every VM reads its disk and pings its neighbour; the run. Takes the door over."""
    run = Run(folder, door)
    try:
        _refuse(run, component, fault, at)
        run.prepare(overwrite=None)
        run.begin(timeout + _WARM_S)
        if component == MACHINE:
            run.pull_the_plug()
        else:
            run.kill(component, fault, timeout, start=False, at=at)
        run.finish(cancel=True, timeout=0)
        return run.result()
    finally:
        run.close()


def chaos(
    folder: RunFolder, door: Door, components: Sequence[str], every: float, duration: float, seed: int | None,
    fault: str, overwrite: bool, timeout: float, tell: Told,
) -> dict[str, Any]:
    """Kill components in turn, once in each period of ``every`` seconds, for ``duration`` seconds; the run.

    ``tell`` hears of each step: ``{"step": "loads", "disks", "spared", "seed"}``, ``{"step": "killed", "kill"}``,
    ``{"step": "reading back"}``. Takes the door over.
    """
    seed = random.randrange(1 << 31) if seed is None else seed
    chance = random.Random(seed)
    run = Run(folder, door)
    try:
        named = _named(run, components, fault)
        writing = run.prepare(overwrite, seed)
        if not writing:
            raise MachineError(*_nothing_to_overwrite(run.scene, overwrite))
        disks = [f"{target.vm}.{target.disk}" for target in writing]
        spared = _image_files(run.scene) if not overwrite else []
        tell({"step": "loads", "disks": disks, "spared": spared, "seed": seed, "kill": named})
        periods = max(1, round(duration / every))
        run.begin(periods * every + _TAIL_S)
        begun, skipped, turn = time.monotonic(), 0, 0
        for period in range(periods):
            moment = begun + (period + chance.random()) * every
            if moment < time.monotonic():   # the last kill was not over before
                skipped += 1
                continue
            run.wait_until(moment)
            component = _next_alive(run, named, turn)
            if component is None:
                break
            turn = named.index(component) + 1
            tell({"step": "killed", "kill": run.kill(component, fault, timeout, start=True)})
        tell({"step": "reading back"})
        run.finish(cancel=False, timeout=timeout)
        plan = {"kill": named, "every_s": every, "for_s": duration, "seed": seed, "fault": fault, "skipped": skipped}
        return {**run.result(), "chaos": plan}
    finally:
        run.close()


def _refuse(run: Run, component: str, fault: str, at: str = "") -> None:
    """Raise :class:`MachineError` for what the machine would refuse, before the loads begin."""
    known = [MACHINE, *run.scene.components]
    role = MACHINE if component == MACHINE else run.scene.components.get(component)
    if role is None:
        if component in run.rows():     # a zygote or a spare
            return
        raise MachineError(f'"{run.scene.name}" has no component "{component}"', f"one of {', '.join(known)}")
    name = fault.partition("=")[0]
    if name not in faults.ENDING:
        raise MachineError(f'"{fault}" ends nothing', f"one of {', '.join(faults.ENDING)}")
    why, _, hint = faults.refusal(run.scene.arch, role, name).partition("; ")
    if why:
        raise MachineError(f"{component} cannot {name}: {why}", hint)
    if at:
        scene, step = run.scene, crashpoints.parse(at).step
        why, _, hint = crashpoints.refusal(component, step, scene.arch, scene.transport).partition("; ")
        if why:
            raise MachineError(f"{component} cannot die at {step}: {why}", hint)
    if component != MACHINE and run.rows()[component]["state"] == "dead":
        raise MachineError(f"{component} is dead already", _to_revive(run, component))


def _to_revive(run: Run, component: str) -> str:
    scene = run.scene
    revivable = component in scene.vms and scene.arch != "monolithic" and scene.can_start_vms(run.rows())
    return f"vmbus-emu start {component} starts it" if revivable else "vmbus-emu ps shows what is alive"


def _named(run: Run, components: Sequence[str], fault: str) -> list[str]:
    """Which components to kill, in turn."""
    named: list[str] = []
    for component in components:
        if component == MACHINE:
            raise MachineError("chaos cannot kill the machine: that ends everything", "vmbus-emu kill machine")
        if component != ALL:
            _refuse(run, component, fault)
            named.append(component)
            continue
        rows, name = run.rows(), fault.partition("=")[0]
        named += [one for one, role in run.scene.components.items()
                  if rows[one]["state"] in ALIVE and not faults.refusal(run.scene.arch, role, name)]  # fmt: skip
    return list(dict.fromkeys(named))


def _next_alive(run: Run, named: Sequence[str], turn: int) -> str | None:
    rows = run.rows()
    for offset in range(len(named)):
        component = named[(turn + offset) % len(named)]
        if component in rows and rows[component]["state"] in ALIVE:
            return component
    return None


def _image_files(scene: Scene) -> list[str]:
    return [f"{vm.name}.disk{index}" for vm in scene.vms.values() for index, disk in enumerate(vm.disks)
            if disk.kind == "file" and not disk.read_only]  # fmt: skip


def _nothing_to_overwrite(scene: Scene, overwrite: bool) -> tuple[str, str]:
    if not overwrite and _image_files(scene):
        return ("chaos overwrites disks, and no living VM has a RAM disk",
                "--overwrite lets it overwrite image files, too")  # fmt: skip
    return "no living VM has a disk that chaos could write to", "vmbus-emu ps shows the VMs; give one a RAM disk"
