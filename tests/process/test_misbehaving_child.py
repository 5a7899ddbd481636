"""A live guest that misbehaves, and a foreign process of the same user: who else notices?

The guests of these machines run ``hostile/hostile_child.py``: they boot like any other and obey ``attack NAME``, which
sends garbage, oversized or out-of-state messages over the endpoints that their process holds. Afterwards everybody
else must have kept pid and state, the other guests' disk and network must work, and the counters must show it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import zmq

from vmbus_emu.client import Machine, MachineError, starter
from vmbus_emu.lifeline import MAX_MESSAGE
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.runfolder import RunFolder

if TYPE_CHECKING:
    from conftest import Lab

Wait = Callable[..., None]
Rows = Mapping[str, Mapping[str, Any]]
HOSTILE = Path(__file__).parent / "hostile"
#: Run by the machine's interpreter before everything else: an entry of the placement, which is data.
OTHER_GUESTS = "from vmbus_emu import placement; placement.ENTRIES['child'] = 'hostile_child:HostileChild'; "

#: attack -> the component whose counter shows it, the counter; whether vm1 is alive afterwards. A dead process or a
#: closed lifeline shows in ``ps`` itself.
ATTACKS: dict[str, tuple[str, str, bool]] = {
    "lifeline_garbage": ("machine", "refused", True),
    "lifeline_descriptors": ("machine", "refused", True),
    "lifeline_forgery": ("machine", "refused", True),
    "console_flood": ("machine", "refused", True),
    "log_flood": ("", "", True),
    "lifeline_closed": ("", "", True),
    "hypercalls": ("hypervisor", "refused", True),
    "hypercall_oversized": ("", "", True),
    "vmbus_messages": ("parent", "refused", True),
    "own_channel": ("storvsp", "protocol_errors", True),
    "own_channel_oversized": ("", "", True),
    "component_garbage": ("parent", "ic_protocol_errors", True),
    "realtime_signal": ("", "", False),
}


#: The attacker's own exit status, if it is not 0: the machine ended its session.
STATUS = {"console_flood": 1, "realtime_signal": 137}


@pytest.fixture
def hostile(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The laboratory; VMs of its machines know the command ``attack``."""
    monkeypatch.syspath_prepend(str(HOSTILE))  # the machine's process gets our path
    monkeypatch.setattr(starter, "_CODE", OTHER_GUESTS + starter._CODE)
    return lab


def is_fine(lab: Lab, machine: Machine, before: Rows) -> Rows:
    """Nobody but vm1 noticed anything; the rows of now."""
    now = lab.rows(machine)
    for name, row in before.items():
        if name != "vm1":
            assert [now[name][key] for key in ("pid", "state", "incarnation")] == [
                row["pid"], "ready", row["incarnation"]
            ], name
    assert now["machine"]["counters"]["front_pid"] == before["machine"]["counters"]["front_pid"]
    machine.vm("vm2").disk.write(4096, b"still here")
    assert machine.vm("vm2").disk.read(4096, 10) == b"still here"
    assert machine.exec("vm2", "ping -c 1 vm3").status == 0
    return now


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_of_a_guest_reaches_anybody_else(hostile: Lab, wait: Wait, attack: str, arch: str) -> None:
    component, counter, survives = ATTACKS[attack]
    machine = hostile.up(arch, vms=3)
    before = is_fine(hostile, machine, hostile.rows(machine))
    pids = [str(row["pid"]) for name, row in before.items() if name not in ("machine", "vm1")]
    result = machine.exec("vm1", ["attack", attack, *pids], timeout=20)
    assert result.status == STATUS.get(attack, 0), result.stderr
    if not survives:
        wait(lambda: hostile.rows(machine)["vm1"]["state"] == "dead", "vm1 is shown dead")
        assert hostile.rows(machine)["vm1"]["signal"] == "SIGRTMIN+6"
    if component:
        wait(lambda: hostile.rows(machine)[component]["counters"][counter] > before[component]["counters"][counter],
             f"{component}'s counter {counter} shows it")
    after = is_fine(hostile, machine, before)
    assert after["vm1"]["pid"] == before["vm1"]["pid"]
    if attack == "lifeline_closed":     # it lives, and answers the machine no more, if it does its heartbeat
        wait(lambda: hostile.rows(machine)["vm1"]["state"] == "hung", "it is shown as hung")
    else:
        assert (after["vm1"]["state"] == "ready") == survives
    assert not list(Path(hostile.base).rglob("escaped*"))
    if attack == "lifeline_closed":  # nobody can ask it to stop any more
        steps: list[Mapping[str, Any]] = []
        machine.down(steps.append)
        assert f"vm1 (pid {before['vm1']['pid']})" in str(steps), "down says whom it killed"
    else:
        machine.down()
    assert hostile.leftovers() == []


def test_a_guest_that_broke_its_channel_lost_its_disk_and_nothing_else(hostile: Lab, wait: Wait) -> None:
    machine = hostile.up(vms=3)
    machine.exec("vm1", "attack own_channel")
    wait(lambda: b"disk is gone" in machine.exec("vm1", "read disk0 0 512").stderr, "vm1 knows that its disk is gone")
    assert machine.exec("vm1", "ping -c 1 vm2").status == 0


def test_garbage_on_one_component_ends_that_one_alone(hostile: Lab, wait: Wait) -> None:
    machine = hostile.up(vms=2, heartbeat="50ms")
    wait(lambda: hostile.rows(machine)["vm1"]["heartbeat"] == "ok", "it answers")
    assert machine.exec("vm1", "attack component_garbage").status == 0

    def components() -> list[str]:
        rows = machine.exec("vm1", "lsvmbus").stdout.decode().splitlines()[1:]
        return sorted(row[5:37].strip() for row in rows if row.endswith("open") and "Synthetic" not in row)

    wait(lambda: components() == ["Heartbeat", "Shutdown"], "it has lost one, and the others are there")
    assert hostile.rows(machine)["vm1"]["heartbeat"] == "ok"
    assert machine.exec("vm1", "null disk0 10").status == 0
    assert machine.stop("vm1")["how"] == "off"
    machine.start("vm1")
    wait(lambda: components() == ["Heartbeat", "Shutdown", "Time synchronization"], "its next start has all of them")


def test_guest_code_that_cannot_be_loaded_ends_the_boot_at_once_with_its_reason(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "_CODE", OTHER_GUESTS.replace("hostile_child", "no_such_module") + starter._CODE)
    begin = time.monotonic()
    with pytest.raises(MachineError, match="no_such_module"):
        lab.up(vms=2)
    assert time.monotonic() - begin < 10, "it is not tried again until the boot's deadline"
    assert lab.leftovers() == []


def test_a_flood_into_the_log_is_kept_within_its_files(hostile: Lab) -> None:
    machine = hostile.up(vms=3)
    for _ in range(3):
        assert machine.exec("vm1", "attack log_flood").status == 0
    logs = list(RunFolder("m").logs.glob("vm1.log*"))
    assert 1 < len(logs) <= 3
    assert all(log.stat().st_size < 2 << 20 for log in logs)


# -- a process that is none of the machine's ----------------------------------------------------------------


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
    yield made
    made.destroy(linger=0)


def garbage() -> Iterator[list[bytes]]:
    """Messages for any endpoint, by frames."""
    yield [b""]
    yield [b"\xc1"]
    yield [os.urandom(500)]
    yield [b"\x91" * 400 + b"\xc0"]
    yield [b"\x91" * 900 + b"\xc0"]
    yield [b"a"] * 100
    values: list[Any] = [None, 1, "text", b"bytes", [], {}, [[]], {"t": "stop"}, [0, 0, 0, b""], [{}, 0, 0, b""]]
    for value in (*values, [6, 1, 1, b""]):
        yield [msgpack.packb(value)]
        yield [msgpack.packb(value), b"and data"]


def call(code: int, block: bytes = b"") -> bytes:
    raw: bytes = msgpack.packb([hv.TO_HYPERVISOR_CALL, 1, code, block])
    return raw


@pytest.mark.parametrize("oversized", [False, True], ids=["garbage", "oversized"])
def test_a_stranger_at_the_hypervisors_socket_is_counted_and_gets_no_answer(
    lab: Lab, wait: Wait, context: zmq.Context[zmq.Socket[bytes]], oversized: bool
) -> None:
    machine = lab.up(vms=3)
    before = is_fine(lab, machine, lab.rows(machine))
    with context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.IDENTITY, b"vm2")
        stranger.connect("ipc://" + RunFolder("m").socket("hv-1.sock"))
        for code in hv.Code:  # well-formed, but from nobody
            stranger.send(call(code, hv.PARTITION_ID.pack(2) + bytes(100)))
        for frames in garbage():
            stranger.send_multipart(frames)
        if oversized:
            stranger.send(bytes(1 << 20))
        wait(lambda: lab.rows(machine)["hypervisor"]["counters"]["strangers"] >= len(hv.Code), "they are counted")
        assert stranger.poll(0) == 0
    after = is_fine(lab, machine, before)
    assert after["hypervisor"]["counters"]["refused"] == before["hypervisor"]["counters"]["refused"]
    assert after["hypervisor"]["counters"]["partitions"] == before["hypervisor"]["counters"]["partitions"]


def test_a_stranger_at_a_channel_that_is_in_use_is_not_let_in(
    lab: Lab, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    machine = lab.up(vms=3)
    before = is_fine(lab, machine, lab.rows(machine))
    sockets = [path for path in RunFolder("m").sockets.iterdir() if path.name.startswith(("st", "nt"))]
    assert len(sockets) == 6
    with contextlib.ExitStack() as stack:
        for path in sockets:
            stranger = stack.enter_context(context.socket(zmq.PAIR))
            stranger.setsockopt(zmq.RECONNECT_IVL, -1)
            stranger.setsockopt(zmq.LINGER, 0)
            monitor = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            stranger.connect(f"ipc://{path}")
            assert monitor.poll(5000), f"there is nobody at {path.name}"
            stranger.disable_monitor()
            monitor.close()
            for frames in (*garbage(), [bytes(2 << 20)]):
                with contextlib.suppress(zmq.Again):  # nobody reads it
                    stranger.send_multipart(frames, zmq.NOBLOCK)
        after = is_fine(lab, machine, before)
    for vsp in ("storvsp", "netvsp"):
        assert after[vsp]["counters"]["channels"] == 3
        assert after[vsp]["counters"]["protocol_errors"] == 0
    assert machine.vm("vm1").disk.read(0, 512) == bytes(512)


def test_a_client_may_ask_the_machine_anything(lab: Lab, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    machine = lab.up(vms=3)
    before = is_fine(lab, machine, lab.rows(machine))
    odd: list[Any] = [None, True, -1, 1 << 63, 0.5, "vm1", b"x", [], {}, [[1]], {"a": 1}, msgpack.ExtType(4, b"x")]
    with context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.connect("ipc://" + RunFolder("m").socket("front.sock"))
        for frames in garbage():
            client.send_multipart(frames)
        client.send(b"\x82\xa4verb\xa4info\xa2id" + b"\x91" * 505 + b"\xc0")
        client.send(b"\x81\xa4verb" + b"\x91" * 505 + b"\xc0")
        for verb in ("info", "ps", "stdin", "credit", "cancel", "exec", "frobnicate", *odd):
            for value in odd:
                request = {"id": value, "verb": verb, "vm": value, "argv": value, "session": value, "chunks": value,
                           "data": value, "end": value, "t": "stop"}
                client.send(msgpack.packb(request))
                client.send(msgpack.packb({"id": 1, "verb": verb, "vm": "vm1", "argv": [value]}))
        client.send(msgpack.packb({"id": 1, "verb": "info", "pad": bytes(MAX_MESSAGE - 100)}))
        client.send(msgpack.packb({"id": 4711, "verb": "info"}))
        while client.poll(5000):
            if msgpack.unpackb(client.recv()).get("id") == 4711:
                break
        else:
            pytest.fail("the machine does not answer this client any more")
        client.send(bytes(MAX_MESSAGE + 1))  # the connection ends by this one
    assert is_fine(lab, machine, before)["vm1"]["pid"] == before["vm1"]["pid"]


def test_a_dead_guests_signal_has_a_name_also_among_those_that_have_none(lab: Lab, wait: Wait) -> None:
    machine = lab.up(vms=2)
    os.kill(lab.rows(machine)["vm1"]["pid"], signal.SIGRTMIN + 3)
    wait(lambda: lab.rows(machine)["vm1"]["signal"] == "SIGRTMIN+3", "the machine says which signal it was")
    assert machine.exec("vm2", "true").status == 0
