"""Latencies in a memory file: what the writer wrote is what the observer reads, and no more than there is room for."""

from __future__ import annotations

import os

import pytest

from vmbus_emu.witness.samples import Samples


def test_what_is_written_at_one_end_is_read_at_the_other() -> None:
    ours = Samples.create(1000)
    theirs = Samples.open(ours.path)
    for ns in (5, 1 << 40, 0, -1):
        theirs.append(ns)
    assert len(ours) == 0       # until the writer is done
    theirs.settle()
    assert (list(ours.values()), ours.full) == ([5, 1 << 40, 0, -1], False)
    theirs.close()
    ours.close()
    ours.close()


def test_a_full_file_takes_no_more_and_says_so() -> None:
    ours = Samples.create(3)
    theirs = Samples.open(ours.path)
    for ns in range(5):
        theirs.append(ns)
    theirs.settle()
    assert (list(ours.values()), ours.full) == ([0, 1, 2], True)
    theirs.close()
    ours.close()


def test_who_writes_next_begins_anew() -> None:
    ours = Samples.create(10)
    for values in ([1, 2, 3], [4]):
        theirs = Samples.open(ours.path)
        for ns in values:
            theirs.append(ns)
        theirs.settle()
        theirs.close()
        assert list(ours.values()) == values
    ours.close()


@pytest.mark.parametrize("content", [b"", bytes(24), b"vmbussmp" + bytes(16) + b"x"])
def test_what_is_no_file_of_samples_is_refused(content: bytes) -> None:
    fd = os.memfd_create("other")
    os.write(fd, content)
    with pytest.raises(ValueError, match="samples"):
        Samples.open(f"/proc/{os.getpid()}/fd/{fd}")
    os.close(fd)
    with pytest.raises(OSError, match="No such file"):
        Samples.open("/proc/self/fd/9999")
