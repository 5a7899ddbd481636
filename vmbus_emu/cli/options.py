"""Options that several verbs share, and what the shell completes for them.

Completion reads run folders only; it must work while no machine answers, must never fail, and never loads the
client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from vmbus_emu.topology import Topology

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_NAME = "default"


def _machine_info(name: str | None) -> dict[str, Any]:
    from vmbus_emu.runfolder import RunFolder, RunFolderError

    try:
        return RunFolder(name or DEFAULT_NAME).info()
    except RunFolderError:
        return {}


def _starting_with(words: Iterable[object], incomplete: str) -> list[str]:
    return [word for word in words if isinstance(word, str) and word.startswith(incomplete)]


def seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float:
    """A callback: the seconds of a time such as ``500ms``, ``1s``, ``2m``; 0: not given."""
    from vmbus_emu.faults import duration

    try:
        return 0.0 if value is None else duration(value)
    except ValueError as error:
        raise click.BadParameter(f'"{value}": {error}', context, parameter) from None


def complete_machines(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of running machines."""
    from vmbus_emu.runfolder import RunFolderError, list_machines

    try:
        return _starting_with((entry.name for entry in list_machines() if not entry.stale), incomplete)
    except RunFolderError:
        return []


def complete_vms(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the VMs of the machine that ``--name`` chose so far."""
    vms = _machine_info(context.params.get("name")).get("vms", [])
    return _starting_with(vms if isinstance(vms, list) else [], incomplete)


def complete_components(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of the components whose logs can be shown."""
    from vmbus_emu.cli.logfiles import components
    from vmbus_emu.runfolder import RunFolder, RunFolderError

    try:
        folder = RunFolder(context.params.get("name") or DEFAULT_NAME)
    except RunFolderError:
        return []
    return _starting_with(components(folder), incomplete)


def _complete_words(table: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from vmbus_emu.topology import data

        return _starting_with(getattr(data, table), incomplete)

    return complete


def _complete_policies(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from vmbus_emu.topology.data import POLICIES, POLICY_ROLES

    return _starting_with((f"{role}={policy}" for role in POLICY_ROLES for policy in POLICIES), incomplete)


def _checked_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from vmbus_emu.topology.data import NAME_RULE, is_name

    if not is_name(value):
        raise click.BadParameter(f'"{value}" is not a name: {NAME_RULE}', context, parameter)
    return value


def name_option(function: F) -> F:
    """``--name``: which machine."""
    return click.option(
        "--name", default=DEFAULT_NAME, show_default=True, metavar="NAME", help="Which machine.",
        callback=_checked_name, shell_complete=complete_machines,
    )(function)


def json_option(function: F) -> F:
    """``--json`` of every reader."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


_TOPOLOGY_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("file", metavar="[TOPOLOGY]", required=False, type=click.Path()),
    click.option("--name", metavar="NAME", help="Name of the machine.  [default: default]",
                 shell_complete=complete_machines),
    click.option("--arch", metavar="ARCH", help="microkernel, monolithic or disaggregated.",
                 shell_complete=_complete_words("ARCHES")),
    click.option("--transport", metavar="TRANSPORT", help="What carries channel data: zmq or ring.",
                 shell_complete=_complete_words("TRANSPORTS")),
    click.option("--poll", metavar="POLL", help="How ring ends wait: never, adaptive or always spin.",
                 shell_complete=_complete_words("POLLS")),
    click.option("--hang-after", metavar="TIME",
                 help="Replace a process that is silent for so long; never: leave it alone.  [default: 500ms]"),
    click.option("--vms", metavar="N", help="Number of VMs.  [default: the file's, or 2]"),
    click.option("--disk", "disks", multiple=True, metavar="[VM=]FILE", type=click.Path(),
                 help="Image file for a VM (without VM=: the first), in place of the disks it has. Repeatable."),
    click.option("--no-services", "no_services", multiple=True, metavar="VM",
                 help="A VM without integration services: its devices are emulated. Repeatable."),
    click.option("--image", metavar="FILE", type=click.Path(), help="What a monolith boots from (image build)."),
    click.option("--policy", "policies", multiple=True, metavar="ROLE=POLICY",
                 help="What a role's death leads to. Repeatable.", shell_complete=_complete_policies),
)


def topology_options(function: F) -> F:
    """The topology file and the flags that override it; :func:`topology` makes a topology of them."""
    for option in reversed(_TOPOLOGY_OPTIONS):
        function = option(function)
    return function


def topology(
    file: str | None,
    name: str | None,
    arch: str | None,
    transport: str | None,
    poll: str | None,
    hang_after: str | None,
    vms: str | None,
    disks: tuple[str, ...],
    policies: tuple[str, ...],
    image: str | None,
    limits: bool,
    no_services: tuple[str, ...] = (),
) -> Topology:
    """What the topology options ask for. Raises ``TopologyErrors`` with everything that is wrong with them.

    ``limits``: also ask whether this host allows it.
    """
    from vmbus_emu.topology import Overrides, build

    overrides = Overrides(
        name, arch, transport, vms, tuple(disks), tuple(policies), poll, hang_after, tuple(no_services), image
    )
    return build(file, overrides, limits)
