"""``vmbus-emu chaos``: kill components again and again while every VM writes, and judge what is on the disks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from vmbus_emu.cli.attach import attached
from vmbus_emu.cli.errors import FAILED
from vmbus_emu.cli.kill import fault_option
from vmbus_emu.cli.options import complete_components, name_option, seconds
from vmbus_emu.cli.outfile import OutFile, OutFileType, attempt, complain, to_stdout
from vmbus_emu.cli.pictures import draw, picture_options
from vmbus_emu.cli.runs import kill_line, kills_summary, verdict_lines, vm_lines
from vmbus_emu.cli.table import plural


@click.command(short_help="Kill components again and again under load, and look for lost writes.")
@name_option
@click.option("--kill", "components", metavar="COMPONENT", multiple=True, required=True,
              shell_complete=complete_components, help="What to kill; several are killed in turn; all: every one.")
@click.option("--every", default="1s", show_default=True, metavar="TIME", callback=seconds,
              help="One kill at a random moment in each period of this length.")
@click.option("--for", "duration", default="60s", show_default=True, metavar="TIME", callback=seconds,
              help="How long.")
@fault_option
@click.option("--seed", metavar="N", type=click.IntRange(0), help="The moments and places of another run, again.")
@click.option("--overwrite", is_flag=True, help="Overwrite image files, too: of VMs without a RAM disk.")
@click.option("--timeout", default=15.0, show_default=True, metavar="SECONDS", type=click.FloatRange(0, min_open=True),
              help="Wait so long after each kill for what should follow.")
@click.option("--json", "json_file", metavar="FILE", type=OutFileType(),
              help="Keep the whole run, for check; - is standard output.")
@picture_options
@click.pass_context
def chaos(
    context: click.Context, name: str, components: tuple[str, ...], every: float, duration: float, fault: str,
    seed: int | None, overwrite: bool, timeout: float, json_file: OutFile | None, html_file: OutFile | None,
    png_file: OutFile | None,
) -> None:
    """Kill components while every VM overwrites the first 4 MiB of a RAM disk with stamped blocks, one each
    millisecond; then read back, and look for writes that were acknowledged and are gone. VMs that die are started
    again. Status 1 if a write was lost or something did not come back.

    \b
    Example:
      vmbus-emu chaos --kill storvsp --every 1s --for 60s
      vmbus-emu chaos --kill all --for 30s --seed 7 --json run.json --html run.html --png run.png
    """
    if every > duration:
        raise click.UsageError("--every is longer than --for: nothing would be killed", context)
    if "machine" in components:
        raise click.UsageError("chaos cannot kill the machine, that would end everything; vmbus-emu kill machine does",
                               context)  # fmt: skip
    to_stderr = to_stdout(json_file, html_file, png_file)
    told = Told(to_stderr)
    with attached(name) as machine:
        from vmbus_emu.client.judging import failed

        run = machine.chaos(
            components, every, duration, seed=seed, fault=fault, overwrite=overwrite, timeout=timeout, progress=told,
        )  # fmt: skip
    unwritten = attempt(json_file, lambda: json.dumps(run, separators=(",", ":")) + "\n")
    for line in chaos_lines(run):
        click.echo(line, err=to_stderr)
    complain([unwritten, *draw(run, html_file, png_file)])
    if failed(run):
        context.exit(FAILED)


class Told:
    """Prints the steps of a run as they come."""

    def __init__(self, to_stderr: bool) -> None:
        self._err = to_stderr
        self._first_ns = 0

    def __call__(self, step: Mapping[str, Any]) -> None:
        match step["step"]:
            case "loads":
                spared = f"; image files are spared ({', '.join(step['spared'])})" if step["spared"] else ""
                self._say(f"overwriting {', '.join(step['disks'])}{spared}; seed {step['seed']}")
            case "killed":
                kill = step["kill"]
                self._first_ns = self._first_ns or kill["killed_ns"]
                self._say(kill_line(kill, self._first_ns))
            case "reading back":
                self._say("reading back what was written")

    def _say(self, text: str) -> None:
        click.echo(text, err=self._err)


def chaos_lines(run: Mapping[str, Any]) -> list[str]:
    """A run of many kills: per component, per VM, the verdict."""
    skipped = run.get("chaos", {}).get("skipped", 0)
    lines = [f"{plural(skipped, 'period')} without a kill: the one before was not over"] if skipped else []
    kills = kills_summary(run["kills"]) if run["kills"] else ["nothing was killed: none of these was running"]
    return [*lines, *kills, *vm_lines(run), *verdict_lines(run)]
