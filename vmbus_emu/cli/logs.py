"""``vmbus-emu logs``: what the components wrote to their standard error, and the machine's own journal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import click

from vmbus_emu.cli.errors import Failure
from vmbus_emu.cli.logfiles import Follower, LogLine, components, last_lines, newest
from vmbus_emu.cli.options import complete_components, json_option, name_option
from vmbus_emu.cli.table import json_text, printable
from vmbus_emu.runfolder import RunFolder

_POLL_SECONDS = 0.2
#: Lines shown before following, unless -n says otherwise.
_BEFORE_FOLLOWING = 10


@click.command(short_help="Show what components logged.")
@name_option
@json_option
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C or until the machine is down.")
@click.option("-n", "count", metavar="N", type=click.IntRange(0), help="Only the last N lines.")
@click.argument("component", metavar="[COMPONENT]", required=False, shell_complete=complete_components)
def logs(name: str, as_json: bool, follow: bool, count: int | None, component: str | None) -> None:
    """Show the log of COMPONENT, or of all together in the order of time. The logs of a killed machine stay until
    the next up or down of its name. With --json and -f: one object per line.

    \b
    Example:
      vmbus-emu logs parent
      vmbus-emu logs -f -n 20
    """
    folder = RunFolder(name)
    if not folder.exists():
        raise Failure(f'"{name}" has no logs, it is not running', "vmbus-emu ls lists machines")
    known = components(folder)
    if component is not None and component not in known:
        raise Failure(f'there is no log of "{component}"', f"one of {', '.join(known)}" if known else "none has logged")
    names = known if component is None else [component]
    width = max((len(each) for each in known), default=0) if component is None else 0
    if follow and count is None:
        count = _BEFORE_FOLLOWING
    if not follow:
        lines = last_lines(folder, names, count)
        if as_json:
            click.echo(json_text({"schema": 1, "name": name, "lines": [asdict(line) for line in lines]}))
        else:
            for line in lines:
                click.echo(_shown(line, width))
        return
    for line in follow_lines(folder, names, component is None, count, lambda: time.sleep(_POLL_SECONDS)):
        click.echo(json.dumps(asdict(line)) if as_json else _shown(line, width))


def follow_lines(
    folder: RunFolder, names: Sequence[str], all_components: bool, count: int | None, wait: Callable[[], object]
) -> Iterator[LogLine]:
    """The last ``count`` lines, then new ones as they come, until the machine is down. ``wait`` passes the time
    between looks. ``all_components``: also those that log for the first time while we follow."""
    followers = {name: Follower(folder, name) for name in names}
    try:
        yield from newest([follower.new_lines() for follower in followers.values()], count)
        while True:
            # Asked before reading: what the machine wrote before it ended is still shown.
            over = folder.holder() is None
            if all_components:
                for name in components(folder):
                    if name not in followers:
                        followers[name] = Follower(folder, name)
            arrived = [line for follower in followers.values() for line in follower.new_lines()]
            yield from sorted(arrived, key=lambda line: line.time)
            if over:
                return
            wait()
    finally:
        for follower in followers.values():
            follower.close()


def _shown(line: LogLine, width: int) -> str:
    origin = f"{line.component:{width}}  " if width else ""
    return f"{line.time} {origin}{printable(line.text)}"
