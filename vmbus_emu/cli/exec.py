"""``vmbus-emu exec``: run one command inside a VM."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from vmbus_emu.cli.attach import attached, running_vm
from vmbus_emu.cli.options import complete_vms, name_option


@click.command("exec", short_help="Run a command inside a VM.")
@name_option
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0, min_open=True),
              help="End the command after this time, with status 124.")
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(context: click.Context, name: str, timeout: float | None, vm: str, command: tuple[str, ...]) -> None:
    """Run COMMAND inside VM, over the machine's serial console. Standard input (unless it is a terminal), output
    and error are passed as bytes. Ends with the command's own status; 124: past its deadline, 137: the VM died.

    \b
    Example:
      vmbus-emu exec vm1 -- sha256 disk0
      vmbus-emu exec --timeout 5 vm2 -- help
    """
    argv = encodable(command)
    if argv is None:
        raise click.UsageError("the command is not valid UTF-8; the console speaks UTF-8", context)
    vm = running_vm(name, vm)
    with attached(name) as machine:
        result = machine.exec(
            vm, argv, stdin=_stdin(), on_stdout=Output(sys.stdout.buffer), on_stderr=Output(sys.stderr.buffer),
            timeout=timeout,
        )
    context.exit(result.status)


class Output:
    """Writes what arrives to a binary stream, at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __call__(self, data: bytes) -> None:
        self._stream.write(data)
        self._stream.flush()


def encodable(words: tuple[str, ...] | list[str]) -> list[str] | None:
    """The words as a list; ``None`` if one holds bytes that were no UTF-8 on the command line."""
    try:
        "".join(words).encode()
    except UnicodeEncodeError:
        return None
    return list(words)


def _stdin() -> bytes | BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():  # None: started with standard input closed
        return b""
    return sys.stdin.buffer
