"""Single requests in the Chrome trace event format, which Perfetto (ui.perfetto.dev) opens. Pure functions.

Each waterfall has tracks of its own, one per process, and its first request begins at 0, so that configurations lie
above each other. An arrow leads from the segment before a request goes to another process to the one after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from bench.breakdown import Request

#: Requests of each waterfall that are exported.
MOST_REQUESTS = 200
#: Tracks of one waterfall have numbers from ``_TRACKS * (its place + 1)`` on.
_TRACKS = 100

Event = dict[str, Any]


def document(groups: Sequence[tuple[str, Sequence[Request]]]) -> dict[str, Any]:
    """``groups``: a name for the tracks, and requests in the order of their beginnings, none overlapping another."""
    events: list[Event] = []
    flows = count(1)
    for place, (name, found) in enumerate(groups):
        events += _group(_TRACKS * (place + 1), name, found[:MOST_REQUESTS], flows)
    head = [event for event in events if event["ph"] == "M"]
    rest = sorted((event for event in events if event["ph"] != "M"), key=lambda event: event["ts"])
    return {"traceEvents": head + rest, "displayTimeUnit": "ns"}


def _group(first: int, name: str, found: Sequence[Request], flows: Iterator[int]) -> Iterator[Event]:
    if not found:
        return
    origin = found[0].begin
    names = dict.fromkeys(segment.process for request in found for segment in request.segments)
    tracks = {process: first + index for index, process in enumerate(names)}
    for process, track in tracks.items():
        for what, value in (("name", {"name": f"{name}: {process}"}), ("sort_index", {"sort_index": track})):
            yield {"ph": "M", "name": f"process_{what}", "pid": track, "tid": track, "args": value}
        yield {"ph": "M", "name": "thread_name", "pid": track, "tid": track, "args": {"name": process}}

    def event(kind: str, what: str, process: str, ns: int, **more: Any) -> Event:
        track = tracks[process]
        return {"ph": kind, "name": what, "pid": track, "tid": track, "ts": round((ns - origin) / 1000, 3), **more}

    for index, request in enumerate(found):
        first_process, length = request.segments[0].process, request.end - request.begin
        yield event("X", f"request {index}", first_process, request.begin, dur=length / 1000, cat="request")
        before = None
        for segment in request.segments:
            if before is not None and before.process != segment.process:
                flow = next(flows)
                yield event("s", "crossing", before.process, (before.begin + before.end) // 2, id=flow, cat="flow")
                yield event("f", "crossing", segment.process, segment.begin, id=flow, cat="flow", bp="e")
            length = segment.end - segment.begin
            yield event("X", segment.name, segment.process, segment.begin, dur=length / 1000, cat="segment")
            before = segment
