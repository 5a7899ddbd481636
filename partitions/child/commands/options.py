"""Reading the arguments of guest commands: Unix-style flags, sizes, names of disks. Errors are Usage."""

from __future__ import annotations

import getopt

from partitions.child.console import CommandError, Session, Usage
from vmbus_emu.device import BlockDevice
from vmbus_emu.witness.samples import Samples

#: How much a guest's clock may be off.
MAX_DRIFT_PPM = 200_000.0
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def flags(arguments: list[str], spec: str) -> tuple[dict[str, str], list[str]]:
    """Flags by letter (as :mod:`getopt` spells them in ``spec``) and the other words."""
    try:
        options, words = getopt.gnu_getopt(arguments, spec)
    except getopt.GetoptError as error:
        raise Usage(error.msg) from None
    return {flag.lstrip("-"): value for flag, value in options}, words


def size(text: str, what: str) -> int:
    """A byte count such as ``4096``, ``64k``, ``1M``, ``1MiB``."""
    digits = text.rstrip("kKmMgGtTiIbB")
    unit = text[len(digits):].lower().removesuffix("b").removesuffix("i")
    if not digits.isascii() or not digits.isdigit() or unit not in _UNITS or len(digits) > 18:
        raise Usage(f"{what} {text!r} is not a size")
    return int(digits) * _UNITS[unit]


def count(text: str, what: str, least: int = 0) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) < least:
        raise Usage(f"{what} {text!r} is not a whole number of at least {least}")
    return int(text)


def seconds(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise Usage(f"{what} {text!r} is not a number of seconds")
    return value


def parts_per_million(text: str) -> float:
    try:
        value = float(text.removesuffix("ppm"))
    except ValueError:
        value = float("nan")
    if not abs(value) <= MAX_DRIFT_PPM:
        raise Usage(f"{text!r} is not a rate from -{MAX_DRIFT_PPM:g} to {MAX_DRIFT_PPM:g} ppm")
    return value


def disk(session: Session, name: str) -> BlockDevice:
    """The disk of that name, with or without the VM's own name in front (``vm1.disk0``)."""
    found = session.guest.disks.get(name.removeprefix(session.guest.name + "."))
    if found is None:
        known = ", ".join(session.guest.disks) or "none"
        raise CommandError(f"no disk {name!r}; the disks are: {known}")
    return found


def samples(path: str) -> Samples:
    """The file that an observer made for the latencies of a load."""
    try:
        return Samples.open(path)
    except (OSError, ValueError) as error:
        raise CommandError(f"no samples at {path}: {error}") from None
