"""``vmbus-emu shell``: commands inside a VM, one after another."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from vmbus_emu.cli.attach import attached, running_vm
from vmbus_emu.cli.errors import FAILED, INTERRUPTED, USAGE, error_line, is_machine_error
from vmbus_emu.cli.exec import Output, encodable
from vmbus_emu.cli.options import complete_vms, name_option

if TYPE_CHECKING:
    from vmbus_emu.client import Machine


@click.command(short_help="Run commands inside a VM, one after another.")
@name_option
@click.argument("vm", metavar="[VM]", required=False, shell_complete=complete_vms)
@click.pass_context
def shell(context: click.Context, name: str, vm: str | None) -> None:
    """Read commands and run each inside VM (the first one by default). "exit" or Ctrl-D leaves, Ctrl-C ends the
    command. Without a terminal, standard input is a script. Ends with the last command's status.

    \b
    Example:
      vmbus-emu shell vm1
      echo "sha256 disk0" | vmbus-emu shell vm1
    """
    vm = running_vm(name, vm)
    with attached(name) as machine:
        if sys.stdin is not None and sys.stdin.isatty():
            _load_line_editing()
            status = session(machine, vm, lambda: input(f"{vm}# "), interactive=True)
        else:
            status = session(machine, vm, _next_line, interactive=False)
    context.exit(status)


def session(machine: Machine, vm: str, read_line: Callable[[], str], interactive: bool) -> int:
    """Run lines until ``exit`` or end of input (``read_line`` raises ``EOFError``); the last command's status."""
    status = 0
    while True:
        try:
            line = read_line()
        except EOFError:
            if interactive:
                click.echo()
            return status
        except KeyboardInterrupt:
            if not interactive:
                raise
            click.echo()  # at the prompt it discards the line, as any shell does
            status = INTERRUPTED
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            click.echo(error_line(str(error), "close the quotation"), err=True)
            status = USAGE
            continue
        if not words:
            continue
        if words[0] == "exit":
            return int(words[1]) & 0xFF if len(words) > 1 and words[1].isdecimal() and len(words[1]) < 10 else status
        try:
            status = _run(machine, vm, words)
        except KeyboardInterrupt:
            if not interactive:
                raise
            click.echo()
            status = INTERRUPTED
        except Exception as error:
            if not is_machine_error(error):
                raise
            click.echo(error_line(str(error), getattr(error, "hint", "")), err=True)
            status = FAILED
            if _is_gone(error):
                return status


def _run(machine: Machine, vm: str, words: list[str]) -> int:
    argv = encodable(words)
    if argv is None:
        click.echo(error_line("the command is not valid UTF-8", "the console speaks UTF-8"), err=True)
        return USAGE
    return machine.exec(vm, argv, on_stdout=Output(sys.stdout.buffer), on_stderr=Output(sys.stderr.buffer)).status


def _is_gone(error: Exception) -> bool:
    from vmbus_emu.client import NotRunning

    return isinstance(error, NotRunning)


def _next_line() -> str:
    line = sys.stdin.readline() if sys.stdin is not None else ""
    if not line:
        raise EOFError
    return line


def _load_line_editing() -> None:
    """History and editing for ``input``; Python may be built without it."""
    try:
        import readline
    except ImportError:
        return
    readline.set_auto_history(True)
