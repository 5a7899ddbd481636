"""The program ``vmbus-emu``: its verbs, and how it ends.

Exit status: 0 done, 1 failed, 2 usage (a wrong topology is a wrong argument), 130 interrupted; ``exec`` and
``shell`` pass on the guest's own. Expected failures are lines on standard error without a traceback; a closed
standard output ends the program quietly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from vmbus_emu import __version__
from vmbus_emu.cli.audit import audit
from vmbus_emu.cli.bench import bench
from vmbus_emu.cli.chaos import chaos
from vmbus_emu.cli.check import check
from vmbus_emu.cli.completion import COMPLETE_VARIABLE, completion
from vmbus_emu.cli.demo import demo
from vmbus_emu.cli.down import down
from vmbus_emu.cli.drain import drain
from vmbus_emu.cli.driver import driver
from vmbus_emu.cli.errors import INTERRUPTED, PROGRAM, explain
from vmbus_emu.cli.exec import exec_
from vmbus_emu.cli.fault import fault
from vmbus_emu.cli.image import image
from vmbus_emu.cli.image_build import build, install
from vmbus_emu.cli.kill import kill
from vmbus_emu.cli.kvp import kvp
from vmbus_emu.cli.logs import logs
from vmbus_emu.cli.ls import ls
from vmbus_emu.cli.pingall import pingall
from vmbus_emu.cli.plan import plan
from vmbus_emu.cli.ps import ps
from vmbus_emu.cli.role import role
from vmbus_emu.cli.services import services
from vmbus_emu.cli.shell import shell
from vmbus_emu.cli.snapshot import snapshot
from vmbus_emu.cli.start import start
from vmbus_emu.cli.stop import stop
from vmbus_emu.cli.up import up
from vmbus_emu.cli.vm import vm
from vmbus_emu.cli.watch import watch

#: In the order of ``--help``: the order in which one meets them.
VERBS: tuple[click.Command, ...] = (
    up, ps, exec_, shell, pingall, kill, fault, stop, start, kvp, snapshot, vm, services, driver, drain, watch, chaos,
    check, demo, audit, bench, image, role, logs, ls, plan, down, completion,
)  # fmt: skip


class Program(click.Group):
    """The group of verbs, with our way of ending in place of click's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            status = super().main(arguments, PROGRAM, COMPLETE_VARIABLE, standalone_mode=False, **extra)
        except (click.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        except Exception as error:
            told = explain(error)
            if told is None:
                raise
            lines, status = told
            for line in lines:
                click.echo(line, err=True)
        sys.exit(status if isinstance(status, int) else 0)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Hypervisor architectures as real processes on one Linux machine: start one, use it, kill any part of it.

    \b
    Example:
      vmbus-emu up --vms 2
      vmbus-emu exec vm1 -- sha256 disk0
      vmbus-emu kill parent
      vmbus-emu down
    """


for _verb in VERBS:
    cli.add_command(_verb)
for _verb in (build, install):  # of the monolith's images; the group has what is done with images of disks
    image.add_command(_verb)


def main() -> None:
    """The console script."""
    cli()
