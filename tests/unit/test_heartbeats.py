"""When a guest is said to have lost its heartbeat."""

from partitions.heartbeats import Heartbeat
from vmbus_emu.protocol.ic import Beat


def test_nothing_is_known_before_the_first_answer() -> None:
    heart = Heartbeat()
    heart.beat()
    assert heart.state is None


def test_two_beats_in_a_row_without_an_answer_are_lost_and_an_answer_brings_it_back() -> None:
    heart = Heartbeat()
    heart.heard(Beat(heart.beat().sequence + 1))
    assert heart.state == "ok"
    first = heart.beat()
    heart.beat()
    assert heart.state == "ok"
    heart.beat()
    assert heart.state == "lost"
    heart.heard(Beat(first.sequence + 1))
    assert heart.state == "ok", "it lives, if only late"


def test_a_number_that_was_not_asked_says_nothing() -> None:
    heart = Heartbeat()
    beat = heart.beat()
    for number in (beat.sequence, beat.sequence + 3):
        heart.heard(Beat(number))
    assert (heart.state, heart.answered) == (None, 0)


def test_without_a_channel_nothing_is_known_again() -> None:
    heart = Heartbeat()
    heart.heard(Beat(heart.beat().sequence + 1))
    heart.gone()
    assert heart.state is None
