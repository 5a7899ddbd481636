"""What runs inside one process: its loop, its ZeroMQ context, its lifeline, and one component.

The machine forks; :func:`enter` turns the fork into a process of its own (no inherited descriptors, a title,
death together with the machine) and loads the component by import path, so that a process holds the code of
its role and no other: *loaded code is evidence*.

A component is a class: ``Component(node)``, ``start(config)``, ``handle(message, fds)`` for lifeline messages,
``stats()`` by component name. It says ``node.ready(name)`` for each component it carries. One with drivers says so
(``has_drivers = True``) and is handed faults as any other message.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import setproctitle
import zmq

from vmbus_emu.lifeline import Lifeline, Message
from vmbus_emu.loop import Loop
from vmbus_emu.zmqport import Context

if TYPE_CHECKING:
    from vmbus_emu.inbox import DescriptorInbox
    from vmbus_emu.polling import Poller

_PR_SET_PDEATHSIG = 1
#: In the environment of a machine whose requests are traced (:mod:`vmbus_emu.tracing`).
TRACE_VARIABLE = "VMBUS_EMU_TRACE"
#: Looked up once, before any fork: doing it in each new process would cost it 200 KB of its own.
_prctl = ctypes.CDLL(None).prctl


class Component(Protocol):
    def start(self, config: Message) -> None: ...
    def handle(self, message: Message, fds: list[int]) -> None: ...
    def stats(self) -> Mapping[str, Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Birth:
    """What a new process is told before it is one."""

    machine: str            #: the machine's name, for the title
    name: str               #: the component's name
    entry: str              #: import path of the component, ``"package.module:Class"``
    folder: str             #: the run folder
    incarnation: int
    machine_pid: int

    def describe(self) -> dict[str, Any]:
        """For a lifeline message; ``Birth(**...)`` is the inverse."""
        return {field: getattr(self, field) for field in self.__slots__}


class Node:
    """What a component finds around itself."""

    def __init__(self, birth: Birth, end: socket.socket, descriptors: socket.socket | None) -> None:
        self.name = birth.name
        self.folder = birth.folder
        self.incarnation = birth.incarnation
        #: Where the hypervisor sends descriptors of granted memory and of doorbells; see :attr:`inbox`.
        self.descriptors = descriptors
        #: Memory files behind the guest's own I/O memory, in the order of its configuration. The component owns them.
        self.io_memory: tuple[int, ...] = ()
        self._inbox: DescriptorInbox | None = None
        #: How :attr:`poller` waits: never, adaptive or always spinning.
        self.poll = "adaptive"
        self._poller: Poller | None = None
        self.loop = Loop()
        #: Set before the first use of :attr:`context`, which allocates for so many.
        self.max_sockets = 32
        self._context: Context | None = None
        self._component: Component | None = None
        self.lifeline = Lifeline(self.loop, end, self._handle, self._orphaned)
        self._birth = birth

    @property
    def context(self) -> Context:
        """The process's ZeroMQ context, made on first use: never before the fork, and only where needed."""
        if self._context is None:
            self._context = Context(1)
            self._context.set(zmq.MAX_SOCKETS, self.max_sockets)
        return self._context

    @property
    def poller(self) -> Poller:
        """What looks at this process's rings; made on first use, for a process without rings needs none."""
        if self._poller is None:
            from vmbus_emu.polling import Poller  # not at the top, for the same reason as below

            self._poller = Poller(self.loop, self.poll)
        return self._poller

    @property
    def inbox(self) -> DescriptorInbox:
        """What the hypervisor handed to this process; watched from the first use on.

        Raises ``RuntimeError`` in a process that stands in for no virtual processor: nobody hands it anything.
        """
        if self._inbox is None:
            if self.descriptors is None:
                raise RuntimeError(f"{self.name} has no descriptor socket")
            # Not at the top: the hypervisor's process is a node, too, and has no use for this code.
            from vmbus_emu.inbox import DescriptorInbox

            self._inbox = DescriptorInbox(self.loop, self.descriptors)
        return self._inbox

    def run(self) -> None:
        component: Component = load(self._birth.entry)(self)
        self._component = component
        self.loop.run()

    def ready(self, component: str, **details: Any) -> None:
        """Tell the machine that a component this process carries is ready."""
        self.lifeline.send({"t": "ready", "component": component, **details})

    def log(self, text: str) -> None:
        """One line into this component's log."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def _handle(self, message: Message, fds: list[int]) -> None:
        component = self._component
        assert component is not None
        match message["t"]:
            case "start":
                self.io_memory = tuple(fds)
                if TRACE_VARIABLE in os.environ:
                    load("vmbus_emu.tracing:begin")(self.name, message["config"])
                component.start(message["config"])
            case "stats":
                self.lifeline.send({"t": "stats", "id": message["id"], "stats": component.stats()})
            case "beat":  # from here and no thread, so that a loop that does not turn is silent
                answer = getattr(component, "beat", None)  # of one whose threads have to be alive, too
                if answer is not None:
                    answer(message["id"])
                else:
                    self.lifeline.send({"t": "beat", "id": message["id"]})
            case "stop":
                stop = getattr(component, "stop", None)  # what must leave the process before it ends, if anything
                if stop is not None:
                    stop()
                self.leave(0)
            case "crash_at":
                load("vmbus_emu.trap:obey")(component, message, self.lifeline)
            case "fault" if not getattr(component, "has_drivers", False):
                load("vmbus_emu.wreck:carry_out")(message["fault"], message.get("value"))
            case _:
                component.handle(message, fds)

    def _orphaned(self) -> None:
        self.leave(0)  # the machine is gone: the plug was pulled

    def leave(self, status: int) -> None:
        """End this process now."""
        sys.stderr.flush()
        os._exit(status)


def load(path: str) -> Any:
    """The object an import path names, ``"package.module:Name"``."""
    module, _, name = path.partition(":")
    loaded = sys.modules.get(module)  # in what a zygote bears; the import system would touch many shared pages
    return getattr(loaded or importlib.import_module(module), name)


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when ``parent``, its parent, dies; ends at once if it already did."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def enter(birth: Birth, end: socket.socket, descriptors: socket.socket | None, log: int, middle: int = 0) -> None:
    """In the freshly forked child: become the process ``birth`` describes. Never returns.

    ``middle`` is the pid of the process between a zygote and this one, which is about to end and leave it to the
    machine (the machine is the reaper of its orphans).
    """
    status = 1
    try:
        while middle and os.getppid() == middle:
            os.sched_yield()
        die_with(birth.machine_pid)
        gc.freeze()  # the machine's objects are not ours to collect: their descriptors' numbers will be reused
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        _take_descriptors([end.fileno()] + ([] if descriptors is None else [descriptors.fileno()]), log)
        random.seed()
        setproctitle.setproctitle(f"vmbus-emu {birth.machine}: {birth.name}")
        Node(birth, end, descriptors).run()
        status = 0
    except BaseException:  # the last frame of the process: say why on the way out
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def _take_descriptors(keep: Sequence[int], log: int) -> None:
    """Standard streams to the log, and nothing else inherited but ``keep``."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    previous = 2
    for fd in sorted(keep):
        os.closerange(previous + 1, fd)
        previous = fd
    os.closerange(previous + 1, os.sysconf("SC_OPEN_MAX"))
