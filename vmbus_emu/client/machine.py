"""The Python API: build a machine, run things in its VMs, look at it, take it down. The CLI is a client of it.

::

    with Machine("lab.toml") as m:
        m.vm("vm1").disk.write(0, b"hello".ljust(512))
        print(m.exec("vm1", "ping -c 3 vm2").stdout.decode())

A machine outlives the object: :meth:`Machine.attach` finds a running one by name. Everything that can go wrong
in the world is a :class:`MachineError` of one line with a hint.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from vmbus_emu import topology
from vmbus_emu.client.command import Command, ExecResult
from vmbus_emu.client.errors import DEADLINE_S, MachineError, NotRunning
from vmbus_emu.client.pingall import Pingall
from vmbus_emu.client.starter import start, wait_for_end
from vmbus_emu.placement import unsupported
from vmbus_emu.runfolder import RunFolder, RunFolderError
from vmbus_emu.topology.data import Topology, vm_to_dict

if TYPE_CHECKING:
    from vmbus_emu.client.door import Door
    from vmbus_emu.client.events import EventStream

#: How long a VM may take to start, and a machine to recover from a kill (a hang is detected in that time, too).
START_S, RECOVERY_S = 60.0, 15.0
#: What the machine may take longer than the time that a VM, or those who are asked about it, have; and a copy, at most.
_LATER_S, _COPY_S = 15.0, 3600.0

Progress = Callable[[Mapping[str, Any]], Any]


class Machine:
    """One machine, by the topology it is built from or by the name it runs under."""

    def __init__(
        self, what: Topology | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``what``: a topology, the path of a TOML file, a mapping of that file's shape, or nothing for the default.
        ``environment``: what the machine's processes find in theirs, beside what is in ours.

        Starts nothing. Raises :class:`~vmbus_emu.topology.TopologyErrors`.
        """
        if isinstance(what, Topology):
            self.topology: Topology | None = what
        elif isinstance(what, Mapping):
            self.topology = topology.parse(what)
        else:
            self.topology = topology.build(what, topology.Overrides(), limits=True)
        self.name = self.topology.name
        self._environment = environment
        self._door: Door | None = None
        self._pid: int | None = None
        #: Set by :meth:`up`: lines about drivers that do not work, and hardware without one.
        self.warnings: list[str] = []

    @classmethod
    def attach(cls, name: str = "default") -> Machine:
        """The running machine of that name. Raises :class:`NotRunning`."""
        machine = cls.__new__(cls)
        machine.topology = None
        machine._environment = None
        machine.name = name
        machine._pid = None
        machine.warnings = []
        machine._door = _open_door(name)
        return machine

    def __enter__(self) -> Machine:
        self.up()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            with contextlib.suppress(NotRunning):
                self.down()
        finally:
            self.close()

    # -- up and down --------------------------------------------------------------------------------

    def up(self, progress: Progress | None = None) -> None:
        """Power on; returns when every component is ready. Raises :class:`MachineError`; then nothing is left."""
        if self.topology is None:
            raise MachineError(f'"{self.name}" is running already')
        topology, self.warnings = self._with_drivers(self.topology)
        self._pid = start(_folder(self.name), topology, progress or (lambda event: None), self._environment)
        self._door = _open_door(self.name)

    @staticmethod
    def _with_drivers(topology: Topology) -> tuple[Topology, list[str]]:
        if topology.image is None and not unsupported(topology):
            return topology, []
        from vmbus_emu.client import drivers

        return drivers.with_drivers(topology)

    def down(self, progress: Progress | None = None, timeout: float = DEADLINE_S) -> None:
        """Power off; returns when every process is gone. Raises :class:`NotRunning`, or :class:`MachineError`.

        A machine that does not answer within ``timeout`` is killed, and all its processes with it.
        """
        door = self._connected()
        wait_for_end(_folder(self.name), door, progress or (lambda event: None), timeout)
        self.close()

    def close(self) -> None:
        """Let go of the connection. The machine stays as it is."""
        if self._door is not None:
            self._door.close()
            self._door = None
        if self._pid is not None:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self._pid, os.WNOHANG)[0]:
                    self._pid = None

    def _connected(self) -> Door:
        if self._door is None:
            self._door = _open_door(self.name)
        return self._door

    # -- looking ------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Name, arch, transport, state, names of the VMs, the machine's pid."""
        return dict(self._connected().ask("info")["info"])

    def ps(self, window: float = 0.25) -> dict[str, Any]:
        """One row per component. CPU and I/O per second are measured over ``window`` seconds; 0: not measured."""
        from vmbus_emu.client import observe

        door = self._connected()
        before = door.ask("ps")
        sampler = observe.Sampler({row["pid"] for row in before["rows"] if row["pid"]})
        begin = time.monotonic()
        after = before
        if window > 0:
            time.sleep(window)  # the length of the measurement, not a wait for something
            after = door.ask("ps")
        elapsed = time.monotonic() - begin
        old_io = {row["name"]: row["io"] for row in before["rows"]}
        rows = []
        for row in after["rows"]:
            io_now, io_before = row.pop("io"), old_io.get(row["name"])
            rate = None
            if window > 0 and io_now is not None and io_before is not None:
                rate = round((io_now - io_before) / elapsed, 1)
            alive = row["state"] not in ("dead", "halted") and row["host"] == row["name"]
            figures = sampler.figures(row["pid"], elapsed if window > 0 else None) if alive else observe.UNKNOWN
            rows.append({**row, **figures, "io_per_s": rate})
        info = after["info"]
        return {
            "schema": 1, "name": info["name"], "arch": info["arch"], "transport": info["transport"],
            "state": info["state"], "partitions": rows,
        }

    def audit(self) -> dict[str, Any]:
        """What each process has loaded, maps, shares, may do and reaches (:mod:`vmbus_emu.client.audit`)."""
        from vmbus_emu.client.audit import audit

        return audit(self._connected())

    # -- running things in VMs ------------------------------------------------------------------------

    def vm(self, name: str) -> Vm:
        """A handle on one VM; it is not checked to exist before it is used."""
        return Vm(self, name)

    def exec(
        self,
        vm: str,
        argv: str | Sequence[str],
        stdin: bytes | BinaryIO = b"",
        on_stdout: Callable[[bytes], Any] | None = None,
        on_stderr: Callable[[bytes], Any] | None = None,
        timeout: float | None = None,
    ) -> ExecResult:
        """Run a guest command. Its status is the result's: 124 past ``timeout`` (seconds), 137 if the VM died.

        Raises :class:`MachineError` if there is no such VM, or the machine dies.
        """
        words = shlex.split(argv) if isinstance(argv, str) else list(argv)
        return Command(self._connected(), vm, words, stdin, on_stdout, on_stderr, timeout).run()

    def pingall(self, count: int = 1, timeout: float = 30.0) -> dict[str, Any]:
        """Every VM pings every other, all at the same time. ``pairs`` has an entry for each ordered pair.

        Gives up when nothing was heard for ``timeout`` seconds; what is missing then counts as failed.
        """
        vms = list(self.info()["vms"])
        return Pingall(self._connected(), vms, count).run(timeout)

    # -- roles ----------------------------------------------------------------------------------------

    def roles(self) -> list[dict[str, Any]]:
        """The roles beside the hypervisor: ``name``, ``state``, ``pid``, ``listens``, ``cpu_limit``, ``in_force`` …"""
        return list(self._connected().ask("role")["roles"])

    def add_role(self, name: str, cpu_limit: float | None = None, port: int = 0) -> dict[str, Any]:
        """Start a role in the parent partition; returns when it serves. ``cpu_limit``: cores. Raises
        :class:`MachineError`."""
        door = self._connected()
        reply = door.ask("role", START_S, action="add", role=name, cpu_limit=cpu_limit or 0, port=port)
        return dict(reply["roles"][0])

    def remove_role(self, name: str) -> None:
        """End a role; returns when its process is gone. Raises :class:`MachineError`."""
        self._connected().ask("role", action="remove", role=name)

    # -- deaths ---------------------------------------------------------------------------------------

    def watch(self, past: bool = False) -> EventStream:
        """The machine's events, from now on; with ``past``, those first that it still has. Raises :class:`NotRunning`.

        To be iterated over, and closed; it ends with the machine.
        """
        from vmbus_emu.client.events import EventStream

        return EventStream(_open_door(self.name), past)

    def start(self, vm: str, timeout: float = START_S) -> dict[str, Any]:
        """Start a VM that is dead; returns when it is ready, with ``pid`` and ``incarnation``.

        Raises :class:`MachineError`.
        """
        reply = self._connected().ask("start", timeout, vm=vm)
        return {"vm": vm, "pid": reply.get("pid"), "incarnation": reply.get("incarnation")}

    def services(self, vm: str, install: bool, timeout: float = START_S) -> dict[str, Any]:
        """Install a VM's integration services, or remove them: it shuts down in order, and starts with the other set of
        drivers, on the same disks and with the same addresses. Returns when it is ready, with ``pid`` and
        ``incarnation``.

        Raises :class:`MachineError`.
        """
        reply = self._connected().ask("services", timeout, vm=vm, install=install)
        return {
            "vm": vm, "integration_services": install, "pid": reply.get("pid"), "incarnation": reply.get("incarnation"),
        }  # fmt: skip

    def add_vm(
        self, name: str, files: Sequence[str] = (), timeout: float = START_S, **document: Any
    ) -> dict[str, Any]:
        """Add a VM while the others run: ``document`` is what a topology's ``[[vm]]`` may say (``memory``, ``disk``,
        ``nic`` …), ``files`` image files for its disks. Returns when it is ready, with ``vm``, ``pid``, ``incarnation``
        and ``address``; a VM that does not start is taken away again.

        Raises :class:`~vmbus_emu.topology.TopologyErrors` or :class:`MachineError`.
        """
        there = Topology.from_dict(self._connected().ask("info")["info"]["topology"])
        vm = topology.newcomer(there, {"name": name, **document}, files)
        reply = self._connected().ask("vm", timeout, what="add", spec=vm_to_dict(vm))
        return {key: reply.get(key) for key in ("vm", "pid", "incarnation", "address")}

    def stop_vm(self, vm: str, timeout: float = START_S) -> None:
        """Cut a VM's power: its partition and its process end. It stays off until :meth:`start`. Raises
        :class:`MachineError`."""
        self._connected().ask("vm", timeout, what="stop", vm=vm)

    def remove_vm(self, vm: str, timeout: float = START_S) -> None:
        """Take a VM away for good, running or not: its partition, its process, its devices. An image file stays, a RAM
        disk is gone. Raises :class:`MachineError`."""
        self._connected().ask("vm", timeout, what="remove", vm=vm)

    def drivers(self) -> list[dict[str, Any]]:
        """Every physical device: ``device``, ``model``, ``driver`` and ``version`` (``None``: none, or not known
        before it is loaded), ``users`` and ``cable``. Raises :class:`MachineError`."""
        return list(self._connected().ask("driver", what="list")["devices"])

    def add_driver(self, source: str) -> list[dict[str, Any]]:
        """Try the drivers of ``source``, a folder of a package or an installed one, in a process of their own; then
        load those that fit this machine, while its VMs run. For each device: ``device``, ``driver``, ``version``,
        ``was``, ``held_ms`` (so long did requests wait) and ``error`` (``None``: it is driven by the new one).

        Raises :class:`MachineError`; then nothing has changed.
        """
        from vmbus_emu.client import drivers

        models = {device["model"] for device in self.drivers()}
        results: list[dict[str, Any]] = []
        for found in drivers.try_out(source, sorted(models)):
            results += self._connected().ask("driver", START_S, what="add", driver=found)["bound"]
        return results

    def install_image(
        self, path: str, grace_s: float = 10.0, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Have a monolith boot from another image: its VMs shut down in turn, and it reboots. What :meth:`drain`
        returns, and ``down_ms``: from when the first VM was off until all were up again. Raises
        :class:`MachineError`; if the image has no driver for a device, nothing has happened."""
        from vmbus_emu.client import drain, drivers

        there = Topology.from_dict(self._connected().ask("info")["info"]["topology"])
        chosen = drivers.of_image(there, path)
        report = drain.drain(
            self._connected(), grace_s, START_S, progress or (lambda step: None), image=os.path.abspath(path),
            drivers=chosen,
        )
        ended = sum(vm["ms"] for vm in report["vms"][1:])
        return {**report, "down_ms": round(ended + report["reboot_ms"], 3)}

    def stop(self, vm: str, force: bool = False, grace_s: float = 10.0) -> dict[str, Any]:
        """Have a VM shut down in order, through its shutdown service; returns when it is off, with ``vm``, ``how``,
        ``ms`` and ``unflushed`` (disks that could not be flushed, and why). No policy starts it again, :meth:`start`
        does.

        ``force`` pulls the plug instead. A VM that has not shut down within ``grace_s`` seconds goes on trying. Raises
        :class:`MachineError`.
        """
        reply = self._connected().ask("stop", grace_s + _LATER_S, vm=vm, force=force, grace_s=grace_s)
        return {"vm": vm, **{name: reply[name] for name in ("how", "ms", "unflushed")}}

    def kvp(self, vm: str, key: str = "") -> list[dict[str, Any]]:
        """What a VM and its host have told each other: ``pool`` (``auto``: what it says of itself, ``guest``: what was
        set in it, ``external``: what was set from here), ``key`` and ``value``. Raises :class:`MachineError`."""
        return _items(self._connected().ask("kvp", _LATER_S, vm=vm, key=key))

    def set_kvp(self, vm: str, key: str, value: str) -> None:
        """Tell a VM something; it finds it in its pool ``external``. Raises :class:`MachineError`."""
        self._connected().ask("kvp", _LATER_S, vm=vm, key=key, value=value)

    def snapshot(
        self, vm: str, path: str | os.PathLike[str], disk: str = "disk0", quiesce: bool = True
    ) -> dict[str, Any]:
        """Copy a VM's disk into a new file. The VM's databases end their transactions, it flushes, and holds back what
        would change its disks meanwhile. Unless ``quiesce`` is false: then it is not asked but stopped (in the monolith
        all of it is), and the copy is what a power failure would leave. Returns ``disk``, ``path``, ``bytes``,
        ``data_bytes`` (those that were no hole), ``quiesced``, ``frozen_ms``, ``stopped_ms`` and ``ms``. Raises
        :class:`MachineError`; then there is no file.
        """
        absolute = os.path.abspath(os.fspath(path))
        reply = self._connected().ask("snapshot", _COPY_S, vm=vm, disk=disk, path=absolute, quiesce=quiesce)
        return dict(reply["snapshot"])

    def drain(self, grace_s: float = 10.0, progress: Progress | None = None) -> dict[str, Any]:
        """Have every VM shut down in turn, with a flush of its disks, and the machine reboot; returns when it is up.

        A VM that has not shut down after ``grace_s`` seconds is killed. The result has ``grace_s``, ``degraded_s`` (so
        long had the VMs gone on without a hypervisor before; ``None``: it was alive), ``vms`` (each with ``vm``,
        ``how``, ``ms`` and ``unflushed``) and ``reboot_ms``. ``progress`` hears of each step
        (:mod:`vmbus_emu.machine.drain`). Whatever becomes of this call, a drain that has begun goes on. Raises
        :class:`MachineError`.
        """
        from vmbus_emu.client import drain

        return drain.drain(self._connected(), grace_s, START_S, progress or (lambda step: None))

    def fault(self, component: str, *faults: str, seconds: float = 0, seed: int = 0) -> list[dict[str, Any]]:
        """Give the drivers of ``component`` lasting faults, such as ``slow=50ms``; all of them, or none if one does not
        fit. The faults that are on then, of all components.

        For so many ``seconds``, at most a day, or (0) until :meth:`clear_faults` or the end of the process, whichever
        comes first: its next incarnation begins without faults. Raises :class:`MachineError`.
        """
        door = self._connected()
        reply = door.ask("fault", component=component, faults=list(faults), seconds=seconds, seed=seed)
        return list(reply["faults"])

    def faults(self) -> list[dict[str, Any]]:
        """The lasting faults that are on: ``component``, ``fault``, ``host``, ``pid``, ``incarnation``, ``seed`` and
        ``left_s`` (seconds; ``None``: until it is cleared). Raises :class:`MachineError`."""
        return list(self._connected().ask("fault")["faults"])

    def clear_faults(self, component: str = "") -> list[dict[str, Any]]:
        """Take away the lasting faults of ``component``, or all; those that are on still. Raises
        :class:`MachineError`."""
        return list(self._connected().ask("fault", clear=True, component=component)["faults"])

    def kill(
        self, component: str, fault: str = "kill", timeout: float = RECOVERY_S, at: str = ""
    ) -> dict[str, Any]:
        """Kill a component, or ``machine``, while every VM reads its disk and pings its neighbour; what it cost.

        ``fault``: how, one of :data:`vmbus_emu.faults.ENDING`. ``at``: the step of its work to die at, ``STEP`` or
        ``STEP:N`` (:data:`vmbus_emu.crashpoints.STEPS`). Waits at most ``timeout`` seconds for what should
        follow. The result is a run (:mod:`vmbus_emu.client.judging`). Raises
        :class:`MachineError`.
        """
        from vmbus_emu.client import chaos

        run = chaos.kill(_folder(self.name), _open_door(self.name), component, fault, timeout, at)
        if component == chaos.MACHINE:
            self.close()
        return run

    def chaos(
        self, kill: str | Sequence[str], every: float = 1.0, duration: float = 60.0, *, seed: int | None = None,
        fault: str = "kill", overwrite: bool = False, timeout: float = RECOVERY_S, progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Kill components in turn (``all``: every one), at a random moment in each period of ``every`` seconds, for
        ``duration`` seconds, while every VM overwrites a RAM disk; then read back and judge.

        ``overwrite``: also image files of VMs without a RAM disk. The result is a run (:mod:`vmbus_emu.client.judging`
        reads it). Raises :class:`MachineError`.
        """
        from vmbus_emu.client import chaos

        named = [kill] if isinstance(kill, str) else list(kill)
        return chaos.chaos(
            _folder(self.name), _open_door(self.name), named, every, duration, seed, fault, overwrite, timeout,
            progress or (lambda step: None),
        )


class Vm:
    """A VM by name."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self.name = name

    @property
    def disk(self) -> Disk:
        """``disk0``."""
        return self.disks("disk0")

    def disks(self, name: str) -> Disk:
        return Disk(self, name)

    def exec(self, argv: str | Sequence[str], **options: Any) -> ExecResult:
        """Like :meth:`Machine.exec`."""
        return self._machine.exec(self.name, argv, **options)


class Disk:
    """A VM's disk, read and written by the guest through its disk path. Offsets and lengths are bytes."""

    def __init__(self, vm: Vm, name: str) -> None:
        self._vm = vm
        self._name = name

    def read(self, offset: int, length: int) -> bytes:
        return self._run(["read", self._name, str(offset), str(length)]).stdout

    def write(self, offset: int, data: bytes) -> None:
        self._run(["write", self._name, str(offset)], stdin=data)

    def flush(self) -> None:
        self._run(["sync", self._name])

    def sha256(self) -> str:
        return self._run(["sha256", self._name]).stdout.decode().split()[0]

    def _run(self, argv: list[str], stdin: bytes = b"") -> ExecResult:
        result = self._vm.exec(argv, stdin=stdin)
        if result.status:
            why = result.stderr.decode(errors="replace").strip() or f"{argv[0]} ended with status {result.status}"
            raise MachineError(f"{self._vm.name}: {why}")
        return result


#: Pools by their numbers (:class:`vmbus_emu.protocol.kvp.Pool`).
_POOLS = ("external", "guest", "auto", "auto external")


def _items(reply: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"pool": _POOLS[pool], "key": key, "value": value} for pool, key, value in reply["items"]]


def _open_door(name: str) -> Door:
    from vmbus_emu.client.door import Door  # with ZeroMQ, which `up` loads while the machine is already booting

    return Door(_folder(name))


def _folder(name: str) -> RunFolder:
    try:
        return RunFolder(name)
    except RunFolderError as error:
        raise MachineError(str(error), error.hint) from None
