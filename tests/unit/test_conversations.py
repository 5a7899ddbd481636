"""A conversation between client and machine over front doors that die: each request once, each reply once, in order."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from vmbus_emu.client.conversation import Conversation
from vmbus_emu.client.errors import Forgotten
from vmbus_emu.machine import conversations
from vmbus_emu.machine.conversations import Conversations

PID = os.getpid()


class World:
    """One client and the machine's end; between them a front door that a test kills, with all that is under way."""

    def __init__(self, pid: int = 0) -> None:
        self.pid = pid                              # of the client; 0: nobody watches it
        self.client = Conversation()
        self.done: list[tuple[bytes, Any]] = []     # what the machine carried out
        self.gone: list[bytes] = []
        self.heard: list[Any] = []                  # the replies that the client got
        self.later: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.watched: dict[int, Callable[[int], Any]] = {}
        given: Any = self
        self.machine = Conversations(given, self._to_client, self._carry_out, self.gone.append)
        self.front: tuple[deque[bytes], deque[tuple[bytes, bytes]]] | None = (deque(), deque())
        self.number = 1                             # of the front door

    # -- what Conversations sees of a loop ---

    def watch(self, fd: int, handler: Callable[[int], Any]) -> None:
        self.watched[fd] = handler

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self.later.append((callback, args))

    # -- the front door ---

    @property
    def route(self) -> bytes:
        return f"route {self.number}".encode()

    def _to_client(self, message: dict[str, Any]) -> None:
        if self.front is not None:
            self.front[1].append((message["client"], message["reply"]))

    def kill_front(self) -> None:
        assert self.front is not None
        self.front = None
        self.machine.front_gone()

    def new_front(self) -> None:
        self.number += 1
        self.front = (deque(), deque())

    def send(self, raw: bytes) -> None:
        if self.front is not None:
            self.front[0].append(raw)

    def step(self, upwards: bool) -> bool:
        """One message passes the door; whether there was one."""
        if self.front is None or not self.front[not upwards]:
            return False
        if upwards:
            self.machine.arrived(self.route, self.pid, msgpack.unpackb(self.front[0].popleft()))
            return True
        route, raw = self.front[1].popleft()
        if route == self.route:                     # otherwise it was for a connection of the door before
            reply, answers = self.client.arrived(raw)
            self.heard += [] if reply is None else [reply]
            for answer in answers:
                self.send(answer)
        return True

    def settle(self) -> None:
        while self.step(True) or self.step(False):
            pass

    # -- machine and client ---

    def _carry_out(self, client: bytes, request: Any) -> None:
        self.done.append((client, request))

    def ask(self, verb: str, **fields: Any) -> int:
        number, raw = self.client.request(verb, fields)
        self.send(raw)
        return number

    def reply(self, reply: dict[str, Any]) -> None:
        self.machine.reply(self.done[0][0], reply)

    def here(self) -> None:
        self.send(self.client.here())

    @property
    def verbs(self) -> list[str]:
        return [request["verb"] for _, request in self.done]


def test_a_request_and_its_reply() -> None:
    world = World()
    number = world.ask("kill", component="storvsp")
    world.settle()
    ((_, request),) = world.done
    assert (request["id"], request["verb"], request["component"]) == (number, "kill", "storvsp")
    world.reply({"id": number, "killed": {}})
    world.settle()
    assert world.heard == [{"id": number, "killed": {}}]


def test_a_reply_that_dies_with_a_door_comes_through_the_next_and_nothing_is_done_twice() -> None:
    world = World()
    number = world.ask("kill")
    world.settle()
    world.reply({"id": number, "killed": {}})       # it waits in the door, and dies with it
    world.kill_front()
    world.reply({"id": number, "also": 1})          # and this one finds none
    world.new_front()
    world.here()
    world.settle()
    assert (world.verbs, world.heard) == (["kill"], [{"id": number, "killed": {}}, {"id": number, "also": 1}])
    world.here()
    world.settle()
    assert len(world.heard) == 2


@pytest.mark.parametrize("next_is", ["a request", "a word"])
def test_requests_that_die_with_a_door_are_sent_again_in_order(next_is: str) -> None:
    world = World()
    world.ask("info")
    world.settle()
    world.ask("kill")
    world.ask("start")
    world.kill_front()
    world.new_front()
    if next_is == "a request":
        world.ask("ps")                             # it comes too early, and waits for its turn
    else:
        world.here()
    world.settle()
    assert world.verbs == ["info", "kill", "start", "ps"][: 4 if next_is == "a request" else 3]


def test_the_very_first_request_may_be_lost() -> None:
    world = World()
    world.ask("kill")
    world.kill_front()
    world.new_front()
    world.here()
    world.settle()
    assert world.verbs == ["kill"]


def test_a_request_that_was_given_up_is_not_carried_out_late() -> None:
    world = World()
    number = world.ask("kill")
    world.kill_front()
    world.client.withdraw(number)
    world.new_front()
    world.ask("info")
    world.settle()
    assert world.verbs == ["info"]


def test_the_machine_keeps_what_was_not_heard_and_no_more() -> None:
    world = World()
    world.ask("watch")
    world.settle()
    for n in range(200):
        world.reply({"id": 1, "event": n})
        world.settle()
    world.here()
    world.settle()
    world.kill_front()
    world.new_front()
    world.here()
    world.step(True)
    assert world.front is not None
    assert [msgpack.unpackb(raw).get("number") for _, raw in world.front[1]] == [None]
    assert [reply["event"] for reply in world.heard] == list(range(200))


def test_a_client_is_told_now_and_then_to_be_listening_without_a_request_of_its_own() -> None:
    world = World()
    world.ask("watch")
    world.settle()
    for n in range(1000):
        world.reply({"id": 1, "event": n})
        world.settle()
    world.kill_front()
    world.new_front()
    world.here()
    world.step(True)
    assert world.front is not None
    assert len(world.front[1]) < 100


def test_a_client_that_never_reads_is_forgotten_and_learns_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MOST_UNHEARD", 1000)
    world = World()
    world.ask("watch")
    world.settle()
    world.reply({"id": 1, "watching": 0})
    world.settle()
    key = world.done[0][0]
    for n in range(100):
        world.reply({"id": 1, "event": n})
    assert world.gone == []                         # whoever replies may be in the midst of telling others
    for callback, args in world.later:
        callback(*args)
    assert world.gone == [key]
    world.reply({"id": 1, "event": "late"})
    world.settle()                                  # what it was sent before, it can still read
    world.here()
    with pytest.raises(Forgotten, match="does not know this client any more"):
        world.settle()


def test_a_name_is_of_no_use_to_another_process() -> None:
    world = World(pid=PID)
    world.ask("watch")
    world.settle()
    world.pid = 1
    world.ask("kill")
    with pytest.raises(Forgotten):
        world.settle()
    assert (world.verbs, world.gone) == (["watch"], [])
    (handler,) = world.watched.values()
    handler(1)


def test_when_a_clients_process_ends_all_its_conversations_do() -> None:
    world = World(pid=PID)
    world.ask("watch")
    world.settle()
    world.client = Conversation()
    world.ask("exec")
    world.settle()
    ((pidfd, handler),) = world.watched.items()
    world.kill_front()                              # no door has to tell
    handler(1)
    assert world.gone == [client for client, _ in world.done]
    assert world.watched == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)


def test_a_connection_that_the_door_does_not_find_is_one_that_was_closed() -> None:
    world = World()
    world.ask("watch")
    world.settle()
    world.machine.unreachable(b"another")
    assert world.gone == []
    world.machine.unreachable(world.route)
    assert world.gone == [world.done[0][0]]


def test_a_process_that_opens_many_doors_has_closed_the_first() -> None:
    world = World()
    for _ in range(conversations.MOST_OF_ONE + 2):
        world.client = Conversation()
        world.ask("info")
        world.settle()
    assert world.gone == [client for client, _ in world.done[:2]]


@pytest.mark.parametrize("extra", [
    {}, {"talk": b"short", "heard": 0}, {"talk": "x" * 16, "heard": 0}, {"talk": bytes(16)},
    {"talk": bytes(16), "heard": "0"}, {"talk": bytes(16), "heard": 0, "id": None}, {"talk": [1], "heard": 0},
], ids=repr)
def test_a_client_that_wants_none_of_this_is_answered_on_its_connection(extra: dict[str, Any]) -> None:
    world = World()
    request = {"id": 4711, "verb": "info", **extra}
    for _ in range(2):
        world.machine.arrived(b"plain", 0, request)
    assert world.done == [(b"plain", request)] * 2
    world.machine.reply(b"plain", {"id": 4711, "info": {}})
    assert world.front is not None
    ((route, raw),) = world.front[1]
    assert (route, msgpack.unpackb(raw)) == (b"plain", {"id": 4711, "info": {}})
    world.kill_front()
    assert world.gone == [b"plain"]


def test_whenever_doors_die_every_request_is_carried_out_once_and_every_reply_heard_once() -> None:
    for seed in range(300):
        rng, world = random.Random(seed), World()
        said, sent = 0, 0
        for _ in range(400):
            match rng.randrange(12):
                case 0 | 1:
                    said += 1
                    world.ask("stdin", chunk=said)
                case 2 | 3 if world.done:
                    sent += 1
                    world.reply({"id": 1, "chunk": sent})
                case 4 if rng.random() < 0.3:
                    if world.front is None:
                        world.new_front()
                    else:
                        world.kill_front()
                case 5:
                    world.here()
                case _:
                    world.step(rng.random() < 0.5)
        if world.front is None:
            world.new_front()
        world.here()
        world.settle()
        assert [request["chunk"] for _, request in world.done] == list(range(1, said + 1)), seed
        assert [reply["chunk"] for reply in world.heard] == list(range(1, sent + 1)), seed
