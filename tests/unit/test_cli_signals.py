"""Signals to a verb that has started machines of its own."""

from __future__ import annotations

import signal

import pytest

from vmbus_emu.cli.signals import ended_like_an_interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_ends_the_block_and_more_of_them_do_not_disturb_its_cleaning_up(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    done = []

    def verb() -> None:
        with ended_like_an_interrupt():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGHUP)
                done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        verb()
    assert done == ["cleaned up"]
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_like_an_interrupt():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
