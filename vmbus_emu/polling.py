"""How a process waits for its rings: look, spin while traffic is hot, else ask for doorbells and sleep.

A channel is *hot* from the moment something arrived until it has been quiet for a moment. Hot channels are looked at
by the loop, their doorbells masked. All others cost nothing: they ring.

Before the loop sleeps it may spin: look at the hot channels over and over, for at most the *budget*. A hit doubles the
budget, a miss halves it, at zero only every 32nd wait tries again, and ever fewer while that fails. So a peer that
answers from another core within the budget is met awake, and one that shares this core (which cannot run while we
spin) soon is not spun for. While an I/O worker is busy nobody spins: the spinner would hold the interpreter's lock
against it.

Order within one round, which is what makes a wake-up impossible to lose: publish every index that moved, one
:func:`~vmbus_emu.ring.fence` for all, then look who must be rung; before sleeping, unmask, fence, look again. As
a safety net everything that went to sleep is looked at once more after 20 ms; what is found then without a doorbell
having come is counted as missed. It must stay at zero, and ``bench/litmus.py`` tries to make it rise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat
from typing import TYPE_CHECKING, Final, Protocol

from vmbus_emu.ring import fence

if TYPE_CHECKING:
    from vmbus_emu.loop import Loop

NEVER, ADAPTIVE, ALWAYS = MODES = ("never", "adaptive", "always")

#: Budgets, in looks at one channel; a look takes 40 to 80 ns. The probe must outlast the longest wait that spinning is
#: to be found worth while for, which is a cached read of 1 MiB (100 us); a shorter one would make a step there.
_LARGEST: Final = 8192
_PROBE: Final = 4096
#: With a budget of zero, one wait in so many spins all the same; with every miss it is one in twice as many.
_PROBE_EVERY: Final = 32
_PROBE_SELDOM: Final = 1024
#: Seconds of traffic after which the loop looks at its other descriptors, and at channels that have become quiet.
_DESCRIPTORS_EVERY_S: Final = 0.0005
_RECHECK_S: Final = 0.02


class Polled(Protocol):
    """A channel as the poller sees it: :class:`vmbus_emu.ring_channel.RingChannel`."""

    #: Managed by the poller.
    hot: bool
    touched: bool
    #: Doorbells that came, and packets that arrived.
    rung: int
    received: int

    @property
    def has_news(self) -> Callable[[], bool]: ...
    def drain(self) -> None: ...
    def publish(self) -> None: ...
    def ring_peer(self) -> None: ...
    @property
    def sleep(self) -> Callable[[], None]: ...
    @property
    def wake(self) -> Callable[[], None]: ...


class Poller:
    """The rings of one process. Made once per loop; the loop asks it before each sleep."""

    def __init__(self, loop: Loop, mode: str = ADAPTIVE, budget: int = 0) -> None:
        """``mode``: never spin, spin within an adaptive budget, or never sleep while a channel is open. ``budget``: to
        begin with; by default nothing, for a process that has just begun negotiates, and whom it would wait for needs
        the processor."""
        self._loop = loop
        #: Whether an end that expects an answer looks for it, instead of waiting for its doorbell.
        self.spins = mode != NEVER
        self._sleeps = mode != ALWAYS
        self._channels: set[Polled] = set()
        self._hot: list[Polled] = []
        self._touched: list[Polled] = []
        self._budget = budget
        self._waits = 0                 # with a budget of zero, since the last probe
        self._probe_every = _PROBE_EVERY
        self._descriptors_due = 0.0
        #: What went to sleep and was not looked at since, with the doorbells that had come by then.
        self._asleep: dict[Polled, int] = {}
        self._suspects: list[tuple[Polled, int]] = []
        self._recheck_due = 0.0
        self._seen: dict[Polled, int] = {}
        self.missed_doorbells = self.spin_hits = self.spin_misses = self.sleeps = 0
        loop.poller = self

    # -- for channels -------------------------------------------------------------------------------

    def add(self, channel: Polled) -> None:
        """``channel`` is open. It starts hot, so that nothing that came before is overlooked."""
        self._channels.add(channel)
        self.heat(channel)

    def remove(self, channel: Polled) -> None:
        self._channels.discard(channel)
        self._asleep.pop(channel, None)
        self._seen.pop(channel, None)
        self._suspects = [suspect for suspect in self._suspects if suspect[0] is not channel]
        if channel.hot:
            channel.hot = False
            self._hot.remove(channel)

    def heat(self, channel: Polled) -> None:
        """Look at ``channel`` from now on: its doorbell rang, or it expects an answer."""
        if not channel.hot:
            channel.hot = True
            channel.wake()
            self._hot.append(channel)

    def touch(self, channel: Polled) -> None:
        """An index of ``channel`` moved; it is published before the loop looks or sleeps."""
        if not channel.touched:
            channel.touched = True
            self._touched.append(channel)

    # -- for the loop -------------------------------------------------------------------------------

    def before_sleep(self, timeout: float) -> float | None:
        """How long the loop may sleep, if it meant to for ``timeout`` seconds (negative: for ever). ``None``: there
        was traffic, and it need not look at its descriptors in this round."""
        if self._touched:
            self._settle()
        found = False
        for channel in self._hot[:]:  # drain may close it
            if channel.hot and channel.has_news():
                found = True
                channel.drain()
        if not found and timeout and self._hot:
            found = self._spin()
        now = self._loop.now = time.monotonic()
        if found:
            return None if now < self._descriptors_due else 0.0
        if not timeout or (self._hot and not self._sleeps):
            return 0.0
        if self._hot and not self._cool(self._hot):
            return 0.0
        self.sleeps += 1
        if self._asleep or self._suspects:
            left = max(0.0, self._recheck_due - now)
            return left if timeout < 0 else min(left, timeout)
        return timeout

    def looked(self, now: float) -> None:
        """The loop has looked at its descriptors, and rung channels have been drained."""
        self._descriptors_due = now + _DESCRIPTORS_EVERY_S
        if self._sleeps and len(self._hot) > 1:
            self._sweep()
        if now >= self._recheck_due and (self._asleep or self._suspects):
            self._recheck(now)

    # -- at work ------------------------------------------------------------------------------------

    def _settle(self) -> None:
        touched, self._touched = self._touched, []
        for channel in touched:
            channel.publish()
        fence()
        for channel in touched:
            channel.touched = False
            channel.ring_peer()

    def _spin(self) -> bool:
        if self._loop.working or not self.spins:
            return False
        budget = self._budget
        if not budget:
            self._waits += 1
            if self._waits < self._probe_every:
                return False
            self._waits = 0
            self._probe_every = min(self._probe_every * 2, _PROBE_SELDOM)
            budget = _PROBE
        if len(self._hot) == 1:
            channel = self._hot[0]
            has_news = channel.has_news
            for _ in repeat(None, budget):
                if has_news():
                    self._hit(channel, budget)
                    return True
        else:
            hot = self._hot[:]
            for _ in repeat(None, max(1, budget // len(hot))):
                for channel in hot:
                    if channel.has_news():
                        self._hit(channel, budget)
                        return True
        self.spin_misses += 1
        self._budget = self._budget // 2 if self._budget > 64 else 0
        return False

    def _hit(self, channel: Polled, budget: int) -> None:
        self._budget = min(budget * 2, _LARGEST)
        self._probe_every = _PROBE_EVERY
        self.spin_hits += 1
        channel.drain()

    def _cool(self, channels: list[Polled]) -> bool:
        """Ask for the doorbells of hot ``channels``. ``False``: something came meanwhile; that one stays hot."""
        for channel in channels:
            channel.sleep()
        fence()
        if not self._asleep and not self._suspects:
            self._recheck_due = self._loop.now + _RECHECK_S
        busy = []
        for channel in channels:
            if channel.has_news():
                channel.wake()
                busy.append(channel)
            else:
                channel.hot = False
                self._asleep[channel] = channel.rung
        self._hot = busy if channels is self._hot else [channel for channel in self._hot if channel.hot]
        return not busy

    def _sweep(self) -> None:
        """While some channels are busy others may have fallen quiet: those need not be looked at."""
        seen = self._seen
        quiet = [channel for channel in self._hot if seen.get(channel) == channel.received and not channel.touched]
        for channel in self._hot:
            seen[channel] = channel.received
        if quiet:
            self._cool(quiet)

    def _recheck(self, now: float) -> None:
        suspects, self._suspects = self._suspects, []
        for channel, rung in suspects:
            # Its writer may have been stopped between publishing and ringing. It has had 20 ms more, in which the
            # doorbell was wanted still: nothing was masked and nothing taken.
            if not channel.hot and channel.rung == rung and channel.has_news():
                self.missed_doorbells += 1
                self.heat(channel)
        asleep, self._asleep = self._asleep, {}
        for channel, rung in asleep.items():
            if not channel.hot and channel.rung == rung and channel.has_news():
                self._suspects.append((channel, rung))
        self._recheck_due = now + _RECHECK_S
