"""A run with kills as one picture, a PNG: service over time above, distributions below. Needs the extra ``[report]``.

The same picture comes of the same run whatever a user's matplotlib is set to; nothing global stays changed, and no
window opens. Who imports this module loads matplotlib; no process of a machine does.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from vmbus_emu.client import plot_spread, plot_timeline
from vmbus_emu.client.plot_samples import KINDS, gaps, sentence
from vmbus_emu.client.plot_sheet import SOFT, Sheet, plain, wrapped
from vmbus_emu.client.timeline import worst_vms
from vmbus_emu.client.timeline_data import Run
from vmbus_emu.client.timeline_words import setup

#: VMs that get a drawing: of more than these, the ones that it went worst for.
VMS = 8
_TITLE_LETTERS, _TITLE_LINES = 104, 4
_NOTE_LETTERS = 140
_TOP, _TITLE_LINE, _NOTE_LINE, _AFTER = 0.18, 0.28, 0.22, 0.12     # heights, in inches


def png(run: Mapping[str, Any]) -> bytes:
    """The picture of a run (the shape of ``vmbus-emu chaos --json``). ``ValueError``: a history in it is none."""
    drawn = figure(run)
    file = io.BytesIO()
    with looks():
        drawn.savefig(file, format="png", metadata={"Title": drawn.get_label()})
    return file.getvalue()


def figure(run: Mapping[str, Any]) -> Figure:
    """What :func:`png` prints; its label is its title."""
    read = Run(run)
    interruptions = {kind: gaps(read, kind) for kind in KINDS}
    title = plain(sentence(read, interruptions), most=_TITLE_LETTERS * _TITLE_LINES)
    vms = worst_vms(read, VMS)
    lines = wrapped(title, _TITLE_LETTERS, _TITLE_LINES)
    notes = wrapped(plain(setup(read), most=500), _NOTE_LETTERS, 2)
    if len(vms) < len(read.lanes):
        notes.append(f"Of {len(read.lanes)} VMs, the {len(vms)} are drawn that it went worst for; the distributions "
                     "are those of all.")  # fmt: skip
    lanes = [lane for vm in vms for lane in read.lanes[vm]]
    head = _TOP + _TITLE_LINE * len(lines) + _NOTE_LINE * len(notes) + _AFTER
    with looks():
        sheet = Sheet(head + plot_timeline.height(read, lanes) + plot_spread.HEIGHT)
        sheet.skip(_TOP)
        for line in lines:
            sheet.say(line, _TITLE_LINE, size=13.5, weight="bold")
        for note in notes:
            sheet.say(note, _NOTE_LINE, color=SOFT)
        sheet.skip(_AFTER)
        plot_timeline.draw(sheet, read, lanes)
        plot_spread.draw(sheet, read, interruptions)
    sheet.figure.set_label(title)
    return sheet.figure


@contextmanager
def looks() -> Iterator[None]:
    """Ours and matplotlib's own, not the user's; afterwards everything is as before."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("font", family="DejaVu Sans", size=10.5)
        matplotlib.rc("axes", linewidth=0.8)
        matplotlib.rc("axes.spines", top=False, right=False)
        matplotlib.rc("hatch", linewidth=0.8)
        matplotlib.rc("text", parse_math=False)     # names may be anybody's
        yield
