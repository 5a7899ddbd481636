"""``vmbus-emu completion``: the script that teaches a shell to complete our words."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class

from vmbus_emu.cli.errors import PROGRAM, Failure

COMPLETE_VARIABLE = "_VMBUS_EMU_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print the shell's completion script.")
@click.argument("shell", metavar="[bash|zsh|fish]", required=False, type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str | None) -> None:
    """Print the script that completes verbs, options, machines, VMs and components. Without an argument: for $SHELL.

    \b
    Example, for this session (put it into ~/.bashrc or ~/.zshrc for all):
      eval "$(vmbus-emu completion bash)"
      eval "$(vmbus-emu completion zsh)"
      vmbus-emu completion fish > ~/.config/fish/completions/vmbus-emu.fish
    """
    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    maker = get_completion_class(name) if name in SHELLS else None
    if maker is None:
        raise Failure("which shell?", f"name one of {', '.join(SHELLS)}")
    root = context.find_root().command
    click.echo(maker(root, {}, PROGRAM, COMPLETE_VARIABLE).source())
