"""Where the hypervisor's steps of :mod:`vmbus_emu.crashpoints` are. Loaded when one is armed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmbus_emu.hypervisor import process
from vmbus_emu.protocol import hypercall as hv

if TYPE_CHECKING:
    from vmbus_emu.trap import Patches, Trap


def install(step: str, trap: Trap, patches: Patches, component: str, running: process.HypervisorProcess) -> None:
    """Arm ``step``: on the way in of every hypercall, or on the way out of every answer."""
    HOOKS[step](trap, patches)


def _hypercall(trap: Trap, patches: Patches) -> None:
    def around(receive: Callable[..., Any]) -> Callable[..., Any]:
        def received(*call: Any) -> Any:
            trap.reached()
            return receive(*call)

        return received

    patches.wrap(process, "receive", around)


def _execute(trap: Trap, patches: Patches) -> None:
    def around(receive: Callable[..., Any]) -> Callable[..., Any]:
        def received(*call: Any) -> Any:
            effects = receive(*call)
            trap.reached()
            return effects

        return received

    patches.wrap(process, "receive", around)


def _reply(trap: Trap, patches: Patches) -> None:
    def around(send: Callable[..., Any]) -> Callable[..., Any]:
        def sent(self: Any, vp: Any, *envelope: Any) -> Any:
            if envelope[0] == hv.TO_PARTITION_RESULT:
                trap.reached()
            return send(self, vp, *envelope)

        return sent

    patches.wrap(process.HypervisorProcess, "_send", around)


HOOKS: dict[str, Callable[[Trap, Patches], None]] = {"hypercall": _hypercall, "execute": _execute, "reply": _reply}
