"""The guest's console without processes: every command over a RAM disk and a NIC that answers, and its streams."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from drivers.disk import FileDisk, NullDisk
from drivers.switch import Switch
from drivers.workers import IoWorkers
from partitions.child.commands import COMMANDS
from partitions.child.commands.blockio import CHUNK as PIECE
from partitions.child.guest import Guest
from partitions.child.inet import IpStack
from vmbus_emu.device import BlockInfo
from vmbus_emu.lifeline import CHUNK, WINDOW
from vmbus_emu.loop import Loop

SIZE = 1 << 20
MACS = [bytes((2, 0, 0, 0, 0, n)) for n in (1, 2)]


class Bench:
    """A guest called vm1, and a neighbour that answers pings. ``run`` is a client with endless credit."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.fd = os.memfd_create("disk0")
        os.truncate(self.fd, SIZE)
        self.workers = IoWorkers(self.loop)
        disk = FileDisk(self.fd, BlockInfo(SIZE // 512, serial="one"), self.workers, memory=True)
        locked = FileDisk(self.fd, BlockInfo(8, read_only=True), self.workers, memory=True)
        switch = Switch("s0")
        config = {"name": "vm1", "address": "10.0.0.1", "prefix": 16, "memory_bytes": 1 << 24,
                  "hosts": {"vm1": "10.0.0.1", "vm2": "10.0.0.2", "ghost": "10.0.0.9"}}
        self.out: list[dict[str, Any]] = []
        self.guest = Guest(
            self.loop, config, {"disk0": disk, "disk1": NullDisk(BlockInfo(1 << 20)), "disk2": locked},
            {"nic0": switch.port("vm1", MACS[0])}, self.out.append, lambda line: None)
        self.neighbour = IpStack(self.loop, switch.port("vm2", MACS[1]), "10.0.0.2", 16, {}, lambda line: None)
        self.number = 0

    def start(self, *argv: str) -> int:
        self.number += 1
        self.guest.console.handle({"t": "exec", "session": self.number, "argv": list(argv)})
        return self.number

    def tell(self, kind: str, session: int, **fields: Any) -> None:
        self.guest.console.handle({"t": kind, "session": session, **fields})

    def run(self, *argv: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        """Exit status, standard output, standard error."""
        session = self.start(*argv)
        pieces = [stdin[at:at + CHUNK] for at in range(0, len(stdin), CHUNK)]
        fed = 0
        taken: dict[int, bytes] = {1: b"", 2: b""}
        needed = WINDOW
        while True:
            while fed <= len(pieces) and needed:
                self.tell("stdin", session, data=b"".join(pieces[fed:fed + 1]), end=fed == len(pieces))
                fed, needed = fed + 1, needed - 1
            assert self.loop.run_until(lambda: bool(self.out), 10.0), argv
            message = self.out.pop(0)
            assert message["session"] == session
            if message["t"] == "out":
                taken[message["stream"]] += message["data"]
                self.tell("credit", session, chunks=1)
            elif message["t"] == "need":
                needed += message["chunks"]
            else:
                return message["status"], taken[1], taken[2].decode()

    def close(self) -> None:
        self.workers.close()
        self.loop.close()
        os.close(self.fd)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


# -- disks --------------------------------------------------------------------------------------------------


def test_sha256_is_that_of_the_medium(bench: Bench) -> None:
    content = os.urandom(SIZE)
    os.pwrite(bench.fd, content, 0)
    assert bench.run("sha256", "disk0") == (0, f"{hashlib.sha256(content).hexdigest()}  disk0\n".encode(), "")
    assert bench.run("sha256", "vm1.disk0")[0] == 0


@pytest.mark.parametrize("offset", [0, 1, 511, 512, 5000, SIZE - 3000])
@pytest.mark.parametrize("length", [1, 511, 512, 3000])
def test_what_was_written_at_any_offset_is_read_back_and_its_surroundings_stay(
    bench: Bench, offset: int, length: int
) -> None:
    before = os.urandom(SIZE)
    os.pwrite(bench.fd, before, 0)
    data = os.urandom(length)
    status, out, errors = bench.run("write", "disk0", str(offset), stdin=data)
    assert (status, out, errors) == (0, b"", f"{length} bytes written to disk0 at {offset}\n")
    assert os.pread(bench.fd, SIZE, 0) == before[:offset] + data + before[offset + length:]
    assert bench.run("read", "disk0", str(offset), str(length)) == (0, data, "")


def test_a_long_write_and_a_long_read_pass_in_pieces(bench: Bench) -> None:
    data = os.urandom(PIECE + 70_000)
    assert bench.run("write", "disk0", "700", stdin=data)[0] == 0
    assert bench.run("read", "disk0", "700", str(len(data)))[1] == data


def test_write_takes_its_text_from_the_command_line_too(bench: Bench) -> None:
    assert bench.run("write", "disk0", "1k", "two", "words")[0] == 0
    assert os.pread(bench.fd, 9, 1024) == b"two words"


def test_dd_between_disks_and_streams(bench: Bench) -> None:
    data = os.urandom(10_000)
    status, _, errors = bench.run("dd", "if=-", "of=disk0", "bs=1000", "seek=3", "conv=fsync", stdin=data)
    assert status == 0
    assert errors.startswith("10000 bytes copied")
    assert bench.run("dd", "if=disk0", "of=-", "bs=1000", "skip=3", "count=10")[1] == data
    assert bench.run("dd", "if=disk0", "of=disk1", "bs=64k")[2].startswith(f"{SIZE} bytes copied")
    assert bench.run("dd", "if=-", "of=-", "bs=10", "skip=1", "count=2", stdin=data)[1] == data[10:30]
    assert bench.run("dd", "if=-", "of=null", stdin=data)[2].startswith("10000 bytes copied")


def test_dd_stops_at_the_end_of_its_output(bench: Bench) -> None:
    status, _, errors = bench.run("dd", "if=-", "of=disk0", f"seek={SIZE // 512 - 1}", stdin=bytes(1024))
    assert status == 1
    assert "no space" in errors


def test_discarded_blocks_read_as_zeros(bench: Bench) -> None:
    os.pwrite(bench.fd, b"\xff" * 8192, 0)
    assert bench.run("discard", "disk0", "512", "1k") == (0, b"", "")
    assert os.pread(bench.fd, 2048, 0) == b"\xff" * 512 + bytes(1024) + b"\xff" * 512


def test_hexdump_shows_sixteen_bytes_a_line(bench: Bench) -> None:
    os.pwrite(bench.fd, b"Hello, disk!\0\xff\x7f~+", 0)
    _, out, _ = bench.run("hexdump", "disk0", "0", "17")
    lines = out.decode().splitlines()
    assert lines[0] == "00000000  48 65 6c 6c 6f 2c 20 64 69 73 6b 21 00 ff 7f 7e  |Hello, disk!...~|"
    assert lines[1].startswith("00000010  2b  ")
    assert len(bench.run("hexdump", "disk0")[1].splitlines()) == 16


def test_sync_null_lsblk_and_iostat(bench: Bench) -> None:
    assert bench.run("sync") == (0, b"", "")
    assert bench.run("sync", "disk0")[0] == 0
    assert bench.run("null", "disk0", "5")[1].startswith(b"5 null requests: min ")
    listed = bench.run("lsblk")[1].decode().splitlines()
    assert [line.split()[0] for line in listed] == ["NAME", "disk0", "disk1", "disk2"]
    assert listed[3].split()[2] == "1"
    assert "disk0" in bench.run("iostat")[1].decode()


def test_inquiry_is_of_no_use_where_there_is_no_scsi(bench: Bench) -> None:
    status, _, errors = bench.run("inquiry", "disk0", "80")
    assert status == 1
    assert "no SCSI" in errors


# -- network --------------------------------------------------------------------------------------------------


def test_ping_counts_and_times(bench: Bench) -> None:
    status, out, _ = bench.run("ping", "-c", "3", "-i", "0", "vm2")
    lines = out.decode().splitlines()
    assert status == 0
    assert lines[0] == "PING vm2 (10.0.0.2) 56 bytes of data."
    assert [re.match(r"64 bytes from vm2 \(10.0.0.2\): icmp_seq=(\d) ttl=64 time=", line)[1]  # type: ignore[index]
            for line in lines[1:4]] == ["1", "2", "3"]
    assert "3 packets transmitted, 3 received, 0% packet loss" in lines[6]


def test_ping_of_nobody_fails_and_says_why(bench: Bench) -> None:
    status, out, _ = bench.run("ping", "-c", "1", "-W", "0.01", "ghost")
    assert status == 1
    assert b"no answer" in out
    assert b"100% packet loss" in out
    assert bench.run("ping", "-c", "1", "nowhere") == (1, b"", "ping: nowhere: name not known; see hosts\n")
    assert b"message too long" in bench.run("ping", "-c", "1", "-s", "65507", "vm2")[1]


def test_a_cancelled_ping_still_sums_up(bench: Bench) -> None:
    session = bench.start("ping", "-i", "60", "vm2")
    assert bench.loop.run_until(lambda: len(bench.out) >= 2, 5.0)
    bench.tell("cancel", session)
    assert bench.loop.run_until(lambda: bench.out[-1]["t"] == "exit", 5.0)
    assert bench.out[-1]["status"] == 130
    assert any(b"1 packets transmitted" in m.get("data", b"") for m in bench.out)


def test_fping_has_a_line_for_every_host(bench: Bench) -> None:
    status, out, _ = bench.run("fping", "-c", "2", "-W", "0.01", "vm2", "ghost", "nowhere")
    lines = sorted(out.decode().splitlines())
    assert status == 1
    assert lines[0].startswith("ghost is unreachable")
    assert lines[1] == "nowhere is unknown"
    assert re.fullmatch(r"vm2 is alive \([0-9.]+ ms\), 2/2 answered", lines[2])
    assert bench.run("fping", "vm2")[0] == 0


def test_arp_ip_and_hosts(bench: Bench) -> None:
    bench.run("ping", "-c", "1", "vm2")
    assert bench.run("arp")[1] == b"vm2 (10.0.0.2) at 02:00:00:00:00:02\n"
    assert bench.run("ip")[1] == b"nic0: mac 02:00:00:00:00:01 mtu 1500 10.0.0.1/16\n"
    assert b"tx " in bench.run("ip", "-s")[1]
    assert bench.run("hosts")[1].splitlines()[1] == b"10.0.0.2        vm2"


# -- the guest itself -------------------------------------------------------------------------------------------


def test_the_guest_tells_about_itself(bench: Bench) -> None:
    bench.guest.announce_devices()
    assert bench.run("hostname") == (0, b"vm1\n", "")
    assert bench.run("uptime")[1].startswith(b"up ")
    assert b"devices are calls" in bench.run("uname")[1]
    assert bench.run("free")[1].startswith(b"guest memory 16777216 bytes")
    assert b"disk0: 2048 blocks of 512 bytes" in bench.run("dmesg")[1]
    assert bench.run("lsvmbus")[0] == 1
    bench.guest.bus_listing = lambda: [(1, "SCSI", "guid", "open")]
    assert b"SCSI" in bench.run("lsvmbus")[1]


def test_small_words(bench: Bench) -> None:
    assert bench.run("echo", "a", "b")[1] == b"a b\n"
    assert (bench.run("true")[0], bench.run("false")[0]) == (0, 1)
    assert bench.run("sleep", "0")[0] == 0


def test_every_command_explains_itself(bench: Bench) -> None:
    for name, command in COMMANDS.items():
        for argv in ((name, "--help"), (name, "x", "-h"), ("help", name)):
            status, out, errors = bench.run(*argv)
            assert (status, errors) == (0, ""), argv
            assert out.decode().startswith(f"usage: {command.usage}\n{command.summary}")
    listed = bench.run("help")[1].decode().splitlines()[:len(COMMANDS)]
    assert [line.split()[0] for line in listed] == list(COMMANDS)


BAD = [
    "sha256", "sha256 a b", "read disk0", "read disk0 x 1", "read disk0 -1 1", "read disk0 1 99999999999999999999",
    "write disk0", "write disk0 -5 x", "hexdump", "hexdump disk0 zz", "discard disk0 1 512", "discard disk0 0", "null",
    "null disk0 0", "null disk0 -1", "null disk0 1 2", "inquiry", "dd x=1", "dd if", "dd bs=0", "dd bs=65M",
    "dd if=disk0 of=null count=-1", "dd conv=ascii", "ping", "ping -c", "ping -c x vm2", "ping -z vm2", "ping a b",
    "ping -i nan vm2", "ping -W inf vm2", "ping -s 65508 vm2", "fping", "fping -c 0 vm2", "ip a", "ip -x", "sleep",
    "sleep x", "sleep -1", "sleep 1e9",
]
FAILING = ["sha256 disk9", "read disk0 0 2M", "read disk0 1M 1", f"write disk0 {SIZE} x", "discard disk0 1M 512",
           "write disk2 0 x", "discard disk2 0 512", "sync disk9", "dd if=nowhere of=null", "null disk9"]


@pytest.mark.parametrize("line", BAD)
def test_wrong_usage_is_status_2_with_the_usage(bench: Bench, line: str) -> None:
    status, out, errors = bench.run(*line.split())
    assert (status, out) == (2, b"")
    assert errors.startswith(f"{line.split()[0]}: ")
    assert "; usage: " in errors


@pytest.mark.parametrize("line", FAILING)
def test_a_failure_is_status_1_with_its_reason(bench: Bench, line: str) -> None:
    status, out, errors = bench.run(*line.split())
    assert (status, out) == (1, b"")
    assert errors.startswith(f"{line.split()[0]}: ")


@pytest.mark.parametrize("page", ["-5", "100", "xy", ""])
def test_an_inquiry_page_is_a_byte_in_hex(bench: Bench, page: str) -> None:
    bench.guest.disks["disk0"].command = lambda cdb, length: pytest.fail("sent")  # type: ignore[attr-defined]
    assert bench.run("inquiry", "disk0", page)[0] == 2


@pytest.mark.parametrize("argv", [[], ["nosuch"], [""], ["SHA256", "disk0"]])
def test_what_is_no_command_is_told_so(bench: Bench, argv: list[str]) -> None:
    status, _, errors = bench.run(*argv)
    assert status == (127 if argv else 2)
    assert "try help" in errors


# -- streams ----------------------------------------------------------------------------------------------------


def test_cat_gives_back_what_it_gets(bench: Bench) -> None:
    data = os.urandom(40 * CHUNK + 5)
    assert bench.run("cat", stdin=data) == (0, data, "")


def test_output_stops_without_credit_and_goes_on_with_it(bench: Bench) -> None:
    session = bench.start("read", "disk0", "0", "1M")
    assert bench.loop.run_until(lambda: len(bench.out) == WINDOW, 5.0)
    assert not bench.loop.run_until(lambda: len(bench.out) > WINDOW, 0.05)
    bench.tell("credit", session, chunks=3)
    assert bench.loop.run_until(lambda: len(bench.out) == WINDOW + 3, 5.0)
    bench.tell("credit", session, chunks=1000)  # never more than a window
    assert bench.loop.run_until(lambda: len(bench.out) == 2 * WINDOW + 3, 5.0)
    assert not bench.loop.run_until(lambda: len(bench.out) > 2 * WINDOW + 3, 0.05)
    assert all(len(m["data"]) <= CHUNK for m in bench.out)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_command_that_waits_for_credit_can_be_cancelled_and_once_is_enough(bench: Bench, times: int) -> None:
    session = bench.start("read", "disk0", "0", "1M")
    assert bench.loop.run_until(lambda: len(bench.out) == WINDOW, 5.0)
    for _ in range(times):
        bench.tell("cancel", session)
    assert bench.loop.run_until(lambda: bench.out[-1]["t"] == "exit", 5.0)
    assert bench.out[-1]["status"] == 130
    for kind in ("cancel", "credit", "stdin"):
        bench.tell(kind, session)
    bench.out.clear()
    assert bench.run("true")[0] == 0


def test_a_ping_without_credit_survives_being_cancelled_while_its_timer_runs(bench: Bench) -> None:
    session = bench.start("ping", "-i", "0.001", "vm2")
    assert bench.loop.run_until(lambda: len(bench.out) == WINDOW, 5.0)
    bench.tell("cancel", session)
    bench.tell("cancel", session)
    assert bench.loop.run_until(lambda: bench.out[-1]["t"] == "exit", 5.0)


def test_input_that_nobody_reads_is_bounded(bench: Bench) -> None:
    session = bench.start("sleep", "60")
    bench.loop.step(0.0)
    for _ in range(1000):
        bench.tell("stdin", session, data=b"x" * CHUNK)
    kept = bench.guest.console._sessions[session][0]._input
    assert len(kept) <= 2 * WINDOW + 1
    bench.tell("cancel", session)
    assert bench.loop.run_until(lambda: bool(bench.out) and bench.out[-1]["t"] == "exit", 5.0)


def test_sessions_run_side_by_side(bench: Bench) -> None:
    slow, quick = bench.start("cat"), bench.start("echo", "done")
    assert bench.loop.run_until(lambda: bool(bench.out) and bench.out[-1]["t"] == "exit", 5.0)
    assert {m["session"] for m in bench.out} == {quick}
    bench.tell("stdin", slow, data=b"late", end=True)
    assert bench.loop.run_until(lambda: bench.out[-1]["session"] == slow and bench.out[-1]["t"] == "exit", 5.0)
    assert bench.guest.stats()["counters"]["commands"] == 2
