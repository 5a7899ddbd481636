"""What a run was made on, in words: everything that its environment says. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.report.stored import Document, finite, listed, mapped

_UNKNOWN = "unknown"
_GIB = 1 << 30


def told(environment: Document) -> Iterator[tuple[str, str]]:
    """``(name, words)``. A key that is not known here is told as it stands."""
    left = dict(environment)
    for name, words in _KNOWN.items():
        keys, say = words
        values = [left.pop(key, None) for key in keys]
        if any(key in environment for key in keys):
            yield name, say(*values)
    for key, value in left.items():
        yield key.replace("_", " "), _anything(value)


def _processor(cpu: Any, cores: Any, affinity: Any, virtualized: Any) -> str:
    words = [str(cpu) if cpu else "an unknown model", f"{cores} processors" if cores else ""]
    usable = [str(one) for one in listed(affinity) if one is not None]
    if usable and len(usable) != cores:
        words.append("of which the run could use " + ", ".join(usable))
    words.append({True: "a virtual machine", False: "no virtual machine"}.get(virtualized, ""))
    return ", ".join(word for word in words if word)


def _clock(governor: Any, turbo_off: Any) -> str:
    words = [f"governor {governor}" if governor else "governor unknown"]
    if turbo_off is not None:
        words.append("turbo off" if str(turbo_off) == "1" else "turbo on")
    return ", ".join(words)


def _interpreter(implementation: Any, version: Any, gil: Any, interval: Any) -> str:
    words = [f"{implementation or 'Python'} {version or _UNKNOWN}"]
    words.append({True: "with the interpreter's lock", False: "without the interpreter's lock"}.get(gil, ""))
    seconds = finite(interval)
    if seconds is not None:
        words.append(f"threads take turns every {1000 * seconds:g} ms")
    return ", ".join(word for word in words if word)


def _software(versions: Any, zmq: Any) -> str:
    words = [f"{name} {version}" for name, version in mapped(versions).items() if version is not None]
    words += [f"{name} not installed" for name, version in mapped(versions).items() if version is None]
    return ", ".join([*words, *([f"libzmq {zmq}"] if zmq else [])])


def _revision(revision: Any) -> str:
    if revision is None:
        return _UNKNOWN
    return f"{str(revision).rstrip('+')}, with changes" if str(revision).endswith("+") else str(revision)


def _memory(nbytes: Any) -> str:
    known = finite(nbytes)
    return _UNKNOWN if known is None else f"{known / _GIB:.1f} GiB"


def _load(load: Any) -> str:
    known = finite(load)
    return _UNKNOWN if known is None else f"{known:.2f} when it began"


def _watched(watched: Any) -> str:
    seen = mapped(watched)
    words = []
    for key, say in _SEEN.items():
        value = finite(seen.get(key))
        if value is not None:
            words.append(say(value))
        elif key in seen:
            words.append(f"{key.replace('_', ' ')} unknown")
    words += [f"{key.replace('_', ' ')}: {_anything(value)}" for key, value in seen.items() if key not in _SEEN]
    return "; ".join(words)


_SEEN: Mapping[str, Callable[[float], str]] = {
    "elapsed_s": lambda value: f"it took {value:,.0f} s",
    "steal": lambda value: f"the host took away {100 * value:.1f} % of the processors (steal)",
    "foreign_cpus": lambda value: f"other processes used {value:.2f} processors",
    "pressure": lambda value: f"something waited for a processor in {100 * value:.0f} % of the time",
}


def _pinned(pinning: Any) -> str:
    """``guests`` and ``hosts``: on which processors both ends of a channel were."""
    told = mapped(pinning)
    if "asked" not in told:
        return _anything(pinning)
    words = [f"asked for: {_anything(told['asked'])}"]
    words += [f"{who} on {_anything(where)}" for who, where in told.items() if who != "asked"]
    return "; ".join(words)


def _anything(value: Any) -> str:
    """A value of any shape, as words."""
    if value is None:
        return _UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{str(key).replace('_', ' ')}: {_anything(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_anything, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


#: What is said together: of which keys, and how.
_KNOWN: Mapping[str, tuple[Sequence[str], Callable[..., str]]] = {
    "Processor": (("cpu", "cores", "affinity", "virtualized"), _processor),
    "Clock": (("governor", "turbo_off"), _clock), "Memory": (("memory_bytes",), _memory),
    "Kernel": (("kernel",), _anything),
    "Python": (("implementation", "python", "gil", "switch_interval_s"), _interpreter),
    "Software": (("versions", "zmq"), _software), "Revision": (("revision",), _revision),
    "Pinning": (("pinning",), _pinned),
    "Began": (("began",), _anything), "Load": (("load",), _load), "Meanwhile": (("watched",), _watched),
}  # fmt: skip
