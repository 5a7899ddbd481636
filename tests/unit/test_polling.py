"""How a process waits for its rings, with channels that are not there and a clock that stands still.

Long, because all of it turns one poller by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmbus_emu.loop import Loop
from vmbus_emu.polling import ADAPTIVE, ALWAYS, NEVER, Poller

#: A wait that spins looks this often at least, one that does not at most so often.
SPUN, DID_NOT = 30, 4


class FakeChannel:
    """A channel with an inbox that is a number. ``arrives``: after how many more looks one packet does."""

    def __init__(self, log: list[str], name: str = "a") -> None:
        self.hot = self.touched = False
        self.rung = self.received = 0
        self.name = name
        self.log = log
        self.looks = self.waiting = 0
        self.arrives = -1
        self.masked = True
        self.on_drain: Callable[[], Any] = lambda: None
        self.on_sleep: Callable[[], Any] = lambda: None

    def has_news(self) -> bool:
        self.looks += 1
        if self.arrives >= 0:
            self.arrives -= 1
            if self.arrives < 0:
                self.waiting += 1
        return self.waiting > 0

    def drain(self) -> None:
        self.log.append(f"drain {self.name}")
        self.received += self.waiting
        self.waiting = 0
        self.on_drain()

    def publish(self) -> None:
        self.log.append(f"publish {self.name}")

    def ring_peer(self) -> None:
        self.log.append(f"ring {self.name}")

    def sleep(self) -> None:
        self.log.append(f"sleep {self.name}")
        self.masked = False
        self.on_sleep()

    def wake(self) -> None:
        self.log.append(f"wake {self.name}")
        self.masked = True


class Bench:
    """A poller of one mode, its loop, and time as it is told to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mode: str = ADAPTIVE) -> None:
        self.clock = 1000.0
        self.log: list[str] = []
        monkeypatch.setattr("vmbus_emu.polling.time", SimpleNamespace(monotonic=lambda: self.clock))
        monkeypatch.setattr("vmbus_emu.polling.fence", lambda: self.log.append("fence"))
        self.loop: Any = SimpleNamespace(now=self.clock, working=0, poller=None)
        self.poller = Poller(cast(Loop, self.loop), mode, budget=4096)

    def channel(self, name: str = "a") -> FakeChannel:
        made = FakeChannel(self.log, name)
        self.poller.add(made)
        return made

    def wait(self, timeout: float = -1.0) -> float | None:
        return self.poller.before_sleep(timeout)

    def later(self, seconds: float) -> None:
        """The loop slept for so long, and looked at its descriptors."""
        self.clock += seconds
        self.poller.looked(self.clock)

    def recheck(self) -> None:
        """Time passes until everything that sleeps was looked at as often as it will be."""
        for _ in range(3):
            self.later(0.021)
            self.wait()

    def asleep(self, *channels: FakeChannel) -> None:
        for _ in range(10):
            if not any(channel.hot for channel in channels):
                return
            self.wait()
        raise AssertionError("still hot")

    def looks(self, channel: FakeChannel, timeout: float = -1.0) -> int:
        """At a hot channel, in one wait."""
        self.poller.heat(channel)
        before = channel.looks
        self.wait(timeout)
        return channel.looks - before


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


# -- hot and asleep ----------------------------------------------------------------------------------------------


def test_the_loop_asks_the_poller_that_was_made_for_it(bench: Bench) -> None:
    assert bench.loop.poller is bench.poller


def test_a_new_channel_is_looked_at_without_a_doorbell(bench: Bench) -> None:
    channel = bench.channel()
    assert channel.hot
    assert channel.masked
    channel.waiting = 3
    bench.wait()
    assert channel.received == 3


def test_a_quiet_channel_falls_asleep_with_its_doorbell_on(bench: Bench) -> None:
    channel = bench.channel()
    bench.asleep(channel)
    assert not channel.masked
    looks = channel.looks
    assert bench.wait() not in (None, 0.0)
    assert channel.looks == looks  # it costs nothing
    bench.poller.heat(channel)
    assert channel.masked
    assert channel.hot


def test_what_arrives_between_unmasking_and_the_second_look_is_seen(bench: Bench) -> None:
    quiet, channel = bench.channel("quiet"), bench.channel()
    channel.on_sleep = lambda: setattr(channel, "waiting", 1)
    assert bench.wait() == 0.0
    assert channel.hot
    assert channel.masked
    assert not quiet.hot
    channel.on_sleep = lambda: None
    bench.wait()
    assert channel.received == 1


def test_going_to_sleep_is_unmask_then_fence_then_look(bench: Bench) -> None:
    channel = bench.channel()
    look = channel.has_news
    bench.log.clear()

    def logged() -> bool:
        bench.log.append("look")
        return look()

    channel.has_news = logged  # type: ignore[method-assign]
    bench.asleep(channel)
    assert bench.log[-3:] == ["sleep a", "fence", "look"]


def test_one_fence_for_all_indexes_of_a_round(bench: Bench) -> None:
    a, b, c = (bench.channel(name) for name in "abc")
    bench.asleep(a, b, c)
    bench.log.clear()
    for channel in (a, b, a, b):
        bench.poller.touch(channel)
    bench.wait()
    assert bench.log == ["publish a", "publish b", "fence", "ring a", "ring b"]
    bench.wait()
    assert len(bench.log) == 5
    bench.poller.touch(a)
    bench.wait()
    assert bench.log[5:] == ["publish a", "fence", "ring a"]


def test_what_was_drained_is_published_before_the_loop_sleeps(bench: Bench) -> None:
    channel = bench.channel()
    channel.on_drain = lambda: bench.poller.touch(channel)
    channel.waiting = 1
    assert bench.wait() == 0.0
    bench.log.clear()
    bench.asleep(channel)
    assert bench.log.index("publish a") < bench.log.index("ring a") < bench.log.index("sleep a")


def test_a_channel_that_anothers_handler_closed_is_not_drained(bench: Bench) -> None:
    a, b = bench.channel("a"), bench.channel("b")
    a.waiting = b.waiting = 1
    a.on_drain = lambda: bench.poller.remove(b)
    bench.wait()
    assert a.received == 1
    assert b.received == 0


@pytest.mark.parametrize("state", ["hot", "asleep", "touched", "never added"])
def test_a_removed_channel_is_forgotten(bench: Bench, state: str) -> None:
    channel = bench.channel()
    if state == "asleep":
        bench.asleep(channel)
    if state == "touched":
        bench.poller.touch(channel)
    other = FakeChannel([])
    bench.poller.remove(other if state == "never added" else channel)
    bench.poller.remove(other)
    if state != "never added":
        looks = channel.looks
        channel.waiting = 1
        bench.wait()
        for _ in range(5):
            bench.later(0.03)
        assert (channel.received, channel.looks, channel.hot) == (0, looks, False)
        assert bench.poller.missed_doorbells == 0


# -- how long the loop may sleep ---------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [-1.0, 0.0, 0.5])
def test_without_hot_channels_the_loop_does_as_it_meant_to(bench: Bench, timeout: float) -> None:
    assert bench.wait(timeout) == timeout


def test_a_loop_that_may_not_sleep_is_not_kept(bench: Bench) -> None:
    channel = bench.channel()
    assert bench.looks(channel, 0.0) <= DID_NOT
    assert bench.wait(0.0) == 0.0
    assert channel.hot


def test_traffic_puts_off_the_descriptors_but_not_for_long(bench: Bench) -> None:
    channel = bench.channel()
    bench.later(0.0)
    answers = []
    for _ in range(20):
        channel.waiting = 1
        answers.append(bench.wait())
        bench.clock += 0.0001
    assert channel.received == 20
    assert answers[0] is None
    put_off = answers.index(0.0)
    assert put_off <= 10  # a millisecond
    assert set(answers[put_off:]) == {0.0}


def test_sleep_ends_in_time_for_the_second_look(bench: Bench) -> None:
    channel = bench.channel()
    bench.asleep(channel)
    for timeout in -1.0, 5.0:
        allowed = bench.wait(timeout)
        assert allowed is not None
        assert 0.0 < allowed <= 0.02
    assert bench.wait(0.001) == 0.001
    bench.later(0.02)
    assert bench.wait() == -1.0  # nothing was there: now it costs nothing
    assert bench.wait(5.0) == 5.0


def test_idle_channels_do_not_keep_the_loop_awake(bench: Bench) -> None:
    channels = [bench.channel(str(n)) for n in range(8)]
    bench.asleep(*channels)
    waits = 0
    while (allowed := bench.wait()) != -1.0:
        assert allowed is not None
        bench.later(allowed)
        waits += 1
        assert waits <= 3


def test_each_hot_channel_gets_one_turn_in_a_round(bench: Bench) -> None:
    a, b = bench.channel("a"), bench.channel("b")
    for channel in (a, b):
        channel.on_drain = lambda channel=channel: setattr(channel, "waiting", 1)  # type: ignore[misc]
        channel.waiting = 1
    bench.log.clear()
    bench.wait()
    bench.wait()
    assert bench.log == ["drain a", "drain b"] * 2


# -- spinning ----------------------------------------------------------------------------------------------------


def test_a_process_that_has_just_begun_does_not_spin(bench: Bench) -> None:
    bench.poller = Poller(cast(Loop, bench.loop))
    channel = bench.channel()
    assert bench.looks(channel) <= 2        # before it sleeps, and after it has asked for its doorbell


def test_an_answer_within_the_budget_is_met_awake(bench: Bench) -> None:
    channel = bench.channel()
    channel.arrives = SPUN
    assert bench.wait() in (None, 0.0)
    assert channel.received == 1
    assert channel.hot
    assert (bench.poller.spin_hits, bench.poller.sleeps) == (1, 0)


@pytest.mark.parametrize("mode", [ADAPTIVE, ALWAYS])
def test_several_hot_channels_share_the_budget(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    bench = Bench(monkeypatch, mode)
    alone = bench.looks(bench.channel())
    bench = Bench(monkeypatch, mode)
    channels = [bench.channel(str(n)) for n in range(4)]
    bench.wait()
    assert sum(channel.looks for channel in channels) <= alone + 4 * DID_NOT
    assert min(channel.looks for channel in channels) > SPUN
    channels[3].arrives = 10
    bench.poller.heat(channels[0])
    bench.poller.heat(channels[3])
    bench.wait()
    assert channels[3].received == 1


def test_a_miss_halves_the_budget_and_a_hit_doubles_it(bench: Bench) -> None:
    channel = bench.channel()
    first, second = bench.looks(channel), bench.looks(channel)
    assert first / 2 - DID_NOT <= second <= first / 2 + DID_NOT
    for _ in range(2):                          # from a quarter to a half to the whole
        channel.arrives = 10
        bench.poller.heat(channel)
        bench.wait()
    assert channel.received == 2
    again = bench.looks(channel)
    assert first - DID_NOT <= again <= first + DID_NOT


def test_the_budget_has_an_end_in_both_directions(bench: Bench) -> None:
    channel = bench.channel()
    first = bench.looks(channel)
    for _ in range(50):
        channel.arrives = 10
        bench.poller.heat(channel)
        bench.wait()
    largest = bench.looks(channel)
    assert first < largest <= 8 * first
    spent = largest
    for _ in range(20):
        spent += bench.looks(channel)
        if bench.looks(channel) <= DID_NOT:
            break
    else:
        raise AssertionError("it never gave up")
    assert spent <= 2 * largest + 20 * DID_NOT


def test_at_zero_only_one_wait_in_many_spins(bench: Bench) -> None:
    channel = bench.channel()
    while bench.looks(channel) > DID_NOT:
        pass
    spun = [bench.looks(channel) > DID_NOT for _ in range(500)]
    probes = [wait for wait, did in enumerate(spun) if did]
    gaps = [later - earlier for earlier, later in itertools.pairwise(probes)]
    assert probes[0] < 32
    assert gaps == [64, 128, 256]       # the longer it fails, the more seldom


def test_a_probe_that_hits_brings_the_budget_back(bench: Bench) -> None:
    channel = bench.channel()
    first = bench.looks(channel)
    while bench.looks(channel) > DID_NOT:
        pass
    for _ in range(64):
        if channel.received:
            break
        channel.arrives = SPUN
        bench.looks(channel)
        channel.arrives = -1
    assert channel.received
    assert bench.looks(channel) >= first


def test_nobody_spins_while_a_worker_is_busy(bench: Bench) -> None:
    channel = bench.channel()
    bench.loop.working = 1
    for _ in range(100):
        assert bench.looks(channel) <= DID_NOT
    assert (bench.poller.spin_hits, bench.poller.spin_misses) == (0, 0)
    assert not channel.hot  # it sleeps instead
    bench.loop.working = 0
    assert bench.looks(channel) > SPUN


def test_never_means_never(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, NEVER)
    assert not bench.poller.spins
    channel = bench.channel()
    for _ in range(100):
        assert bench.looks(channel) <= DID_NOT
        assert not channel.hot
    channel.waiting = 1
    bench.poller.heat(channel)
    bench.wait()
    assert channel.received == 1


def test_always_means_that_the_loop_does_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, ALWAYS)
    assert bench.poller.spins
    assert bench.wait() == -1.0     # there is no channel to look at
    slept = bench.poller.sleeps
    channel, other = bench.channel(), bench.channel("b")
    for _ in range(100):
        assert bench.wait() == 0.0
        bench.later(0.01)
    assert channel.hot
    assert channel.masked
    assert other.hot
    assert bench.poller.sleeps == slept
    bench.poller.remove(channel)
    bench.poller.remove(other)
    assert bench.wait() == -1.0


# -- the sweep ---------------------------------------------------------------------------------------------------


def test_who_is_quiet_among_busy_ones_need_not_be_looked_at(bench: Bench) -> None:
    busy, quiet = bench.channel("busy"), bench.channel("quiet")
    for _ in range(3):
        busy.waiting = 1
        bench.wait()
        bench.later(0.001)
    assert busy.hot
    assert not quiet.hot
    assert not quiet.masked
    looks = quiet.looks
    busy.waiting = 1
    bench.wait()
    assert quiet.looks == looks


def test_the_sweep_takes_nobody_who_has_something_unpublished(bench: Bench) -> None:
    busy, quiet = bench.channel("busy"), bench.channel("quiet")
    for _ in range(3):
        busy.waiting = 1
        bench.wait()
        bench.poller.touch(quiet)
        bench.later(0.001)
    assert quiet.hot


def test_the_sweep_looks_again_after_unmasking(bench: Bench) -> None:
    busy, quiet = bench.channel("busy"), bench.channel("quiet")
    quiet.on_sleep = lambda: setattr(quiet, "waiting", 1)
    for _ in range(3):
        busy.waiting = 1
        bench.wait()
        bench.later(0.001)
    assert quiet.received >= 1


# -- missed doorbells --------------------------------------------------------------------------------------------


def test_a_doorbell_that_never_came_is_repaired_and_counted(bench: Bench) -> None:
    channel = bench.channel()
    bench.asleep(channel)
    channel.waiting = 1                         # and nobody rang
    for _ in range(5):
        bench.later(0.021)
        bench.wait()
    assert channel.received == 1
    assert bench.poller.missed_doorbells == 1


def test_a_doorbell_that_came_is_not_counted(bench: Bench) -> None:
    channel = bench.channel()
    for _ in range(5):
        bench.asleep(channel)
        channel.waiting = 1
        channel.rung += 1
        bench.poller.heat(channel)
        channel.drain()
        bench.recheck()
    assert channel.received == 5
    assert bench.poller.missed_doorbells == 0


def test_a_writer_that_was_stopped_before_it_rang_is_not_counted(bench: Bench) -> None:
    """Its index is public, its look at the mask comes when it runs again: it rings if the doorbell is wanted then."""
    channel = bench.channel()
    bench.asleep(channel)
    channel.waiting = 1
    bench.later(0.02)
    bench.clock += 0.005
    bench.wait()
    if not channel.masked and not channel.received:
        channel.rung += 1
        bench.poller.heat(channel)
        channel.drain()
    bench.recheck()
    assert channel.received == 1
    assert bench.poller.missed_doorbells == 0


def test_a_channel_that_closed_meanwhile_missed_nothing(bench: Bench) -> None:
    channel = bench.channel()
    bench.asleep(channel)
    channel.waiting = 1
    bench.later(0.02)
    bench.poller.remove(channel)                # its guest was stopped between the index and the bell, and killed
    bench.recheck()
    assert bench.poller.missed_doorbells == 0
