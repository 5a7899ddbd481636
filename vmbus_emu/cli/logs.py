"""``vmbus-emu logs``: what the components wrote to their standard error, and the machine's own journal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import click

from vmbus_emu.cli import crashfiles
from vmbus_emu.cli.crashfiles import Crash
from vmbus_emu.cli.errors import Failure
from vmbus_emu.cli.logfiles import Follower, LogLine, components, last_lines, newest
from vmbus_emu.cli.options import complete_components, json_option, name_option
from vmbus_emu.cli.table import WIDTH, json_text, printable
from vmbus_emu.runfolder import RunFolder

_POLL_SECONDS = 0.2
#: Lines shown before following, unless -n says otherwise.
_BEFORE_FOLLOWING = 10


@click.command(short_help="Show what components logged.")
@name_option
@json_option
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C or until the machine is down.")
@click.option("-n", "count", metavar="N", type=click.IntRange(0), help="Only the last N lines.")
@click.option("--crash", is_flag=True,
              help="Show how a process of the host ended last: its purple screen, its last lines.")
@click.argument("component", metavar="[COMPONENT]", required=False, shell_complete=complete_components)
@click.pass_context
def logs(
    context: click.Context, name: str, as_json: bool, follow: bool, count: int | None, crash: bool,
    component: str | None,
) -> None:
    """Show the log of COMPONENT, or of all together in the order of time. The logs of a killed machine stay until
    the next up or down of its name. With --json and -f: one object per line.

    With --crash: what the hypervisor, monolith, parent or VSP that died last left behind, or the one that carried
    COMPONENT. The machine keeps the last 16.

    \b
    Example:
      vmbus-emu logs parent
      vmbus-emu logs -f -n 20
      vmbus-emu logs --crash
    """
    if crash and (follow or count is not None):
        raise click.UsageError("--crash goes with neither -f nor -n", context)
    folder = RunFolder(name)
    if not folder.exists():
        raise Failure(f'"{name}" has no logs, it is not running', "vmbus-emu ls lists machines")
    if crash:
        _show_crash(folder, component, as_json)
        return
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


def _show_crash(folder: RunFolder, component: str | None, as_json: bool) -> None:
    found = crashfiles.latest(folder, component)
    if found is None:
        whose = "no process of the host" if component is None else f"no process that carried {component}"
        raise Failure(f"{whose} has died", "vmbus-emu watch --past shows what has happened")
    if as_json:
        click.echo(json_text({"schema": 1, "name": folder.name, **asdict(found)}))
        return
    for line in crash_lines(found, sys.stdout.isatty() and not os.environ.get("NO_COLOR")):
        click.echo(line)


def crash_lines(crash: Crash, colour: bool) -> list[str]:
    """A crash for people. ``colour``: the screen, if there is one, is purple."""
    header = [f"{key + ':':13}{value}" for key, value in crash.header.items()]
    screen = [printable(line) for line in crash.screen]
    if colour and not crash.silent:
        screen = [click.style(f" {line:{WIDTH - 2}} ", fg="bright_white", bg="magenta") for line in screen]
    log = [f"  {printable(line)}" for line in crash.log]
    return [*(printable(line) for line in header), "", *screen, "", "last log lines:", *log]
