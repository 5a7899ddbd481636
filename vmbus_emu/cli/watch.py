"""``vmbus-emu watch``: a machine's events as they happen."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from vmbus_emu.cli.attach import attached
from vmbus_emu.cli.options import name_option
from vmbus_emu.cli.table import plural, printable

_NS = 1_000_000_000


@click.command(short_help="Show deaths, restarts, and devices that go and come back, as they happen.")
@name_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event.")
@click.option("--past", is_flag=True, help="Begin with what happened already.")
def watch(name: str, as_json: bool, past: bool) -> None:
    """Show what happens in a machine until Ctrl-C or until it is down: which process died and of what, its
    replacement, devices that lost their channel ("detached") and have it again ("attached").

    \b
    Example:
      vmbus-emu watch
      vmbus-emu watch --past --json
    """
    with attached(name) as machine, machine.watch(past) as events:
        for event in events:
            click.echo(json.dumps(event) if as_json else event_line(event, time.time_ns() - time.monotonic_ns()))


def event_line(event: Mapping[str, Any], epoch_ns: int) -> str:
    """``12:00:00.123456  storvsp  died: SIGKILL (pid 7, incarnation 1)``. ``epoch_ns``: when CLOCK_MONOTONIC was 0."""
    moment = event["ns"] + epoch_ns
    clock = time.strftime("%H:%M:%S", time.localtime(moment // _NS)) + f".{moment % _NS // 1000:06}"
    who = str(event.get("component") or "machine")
    if "device" in event:
        who += f".{event['device']}"
    return printable(f"{clock}  {who:12}  {_what(event)}")


def _what(event: Mapping[str, Any]) -> str:
    which = f"(pid {event.get('pid')}, incarnation {event.get('incarnation')})"
    match event["event"]:
        case "killed":
            how = event.get("signal") or event.get("fault")
            carried = event.get("host", event["component"])
            where = f" by way of {carried}" if carried != event["component"] else ""
            step = f" at {event['at']}" if event.get("at") else ""
            return f"struck by {how}{step}{where} {which}"
        case "died":
            if "host" in event:
                return f"died alone, {event['host']} {which} lives on: {event.get('reason')}"
            ending = event.get("signal") or f"exit {event.get('exit_code')}"
            others = [name for name in event.get("carried", ()) if name != event["component"]]
            took = f"; it carried {', '.join(others)}" if others else ""
            # The last line that it logged: nothing of interest where a signal came from outside.
            own = event.get("signal") not in ("SIGKILL", "SIGTERM")
            reason = f": {event['reason']}" if own and event.get("reason") else ""
            return f"died: {ending} {which}{took}{reason}"
        case "hung":
            return f"hung: {event.get('reason')}, silent for {event.get('silent_ms')} ms {which}"
        case "starting":
            return f"starting {which}" + (", the spare" if event.get("spare") else "")
        case "ready":
            return f"ready {which}"
        case "attached":
            resent = event.get("resent", 0)
            return "attached" + (f", {plural(resent, 'request')} sent again" if resent else "")
        case "draining":
            return f"draining {', '.join(event.get('vms', ()))}: {event.get('grace_s'):g} s for each"
        case "rebooting" | "halted":
            return f"{event['event']}: {event.get('reason')}"
    rest = {key: value for key, value in event.items() if key not in ("n", "ns", "event", "component", "device")}
    told = ", ".join(f"{key} {value}" for key, value in rest.items() if value)
    return f"{event['event']}" + (f" ({told})" if told and event["event"] not in ("detached", "given up") else "")
