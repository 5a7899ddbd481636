"""``vmbus-emu kvp``: what a VM and its host tell each other by key and value."""

from __future__ import annotations

import click

from vmbus_emu.cli.attach import attached, running_vm
from vmbus_emu.cli.errors import Failure
from vmbus_emu.cli.options import complete_vms, json_option, name_option
from vmbus_emu.cli.table import Column, json_text, printable, render

_COLUMNS = (Column("POOL"), Column("KEY", shrinks=True), Column("VALUE", shrinks=True))


@click.command(short_help="Show what a VM says of itself; get or set a key.")
@name_option
@json_option
@click.argument("vm", metavar="VM", shell_complete=complete_vms)
@click.argument("words", metavar="[get KEY | set KEY VALUE]", nargs=-1)
@click.pass_context
def kvp(context: click.Context, name: str, as_json: bool, vm: str, words: tuple[str, ...]) -> None:
    """Key-value exchange with a VM. What it says of itself (host name, system, address) is in pool "auto", what was set
    inside it ("vmbus-emu exec vm1 -- kvp set KEY VALUE") in pool "guest", and what was set from here in pool
    "external", where it finds it. Without more words: all of it. "get" prints one value, and ends with status 1 if
    there is none.

    \b
    Example:
      vmbus-emu kvp vm1
      vmbus-emu kvp vm1 get OSName
      vmbus-emu kvp vm1 set Owner physics
    """
    if words and (words[0], len(words)) not in (("get", 2), ("set", 3)):
        raise click.UsageError("after the VM there is nothing, or get KEY, or set KEY VALUE", context)
    if words and not words[1]:
        raise click.UsageError("a key is not empty", context)
    vm = running_vm(name, vm)
    with attached(name) as machine:
        if len(words) == 3:
            machine.set_kvp(vm, words[1], words[2])
            items = [{"pool": "external", "key": words[1], "value": words[2]}]
        else:
            items = machine.kvp(vm, words[1] if words else "")
    if words and not items:
        raise Failure(f"{vm} has no key {words[1]!r}", f"vmbus-emu kvp {vm} lists those that there are")
    if as_json:
        click.echo(json_text({"schema": 1, "name": name, "vm": vm, "items": items}))
    elif not words:
        for line in render(_COLUMNS, [[printable(item[key]) for key in ("pool", "key", "value")] for item in items]):
            click.echo(line)
    elif words[0] == "get":
        click.echo(printable(items[0]["value"]))
