"""The guest's commands, as a table. A command is ``async def (session, arguments) -> exit status``.

Streams are bytes. Status 0 is success, 1 failure, 2 wrong usage. Modules are loaded when first needed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from partitions.child.commands import (
    bulkbench,
    fileserver,
    iobench,
    kvlog,
    legacy,
    netbench,
    netwitness,
    network,
    services,
    sqlite,
    storage,
    system,
    witness,
)
from partitions.child.console import Session


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    usage: str
    summary: str
    run: Callable[[Session, list[str]], Awaitable[int]]


async def _help(session: Session, arguments: list[str]) -> int:
    if arguments and (command := find(arguments[0])) is not None:
        await session.print(f"usage: {command.usage}\n{command.summary}")
        return 0
    for command in COMMANDS.values():
        await session.print(f"{command.name:10} {command.summary}")
    await session.print("\nCOMMAND --help says how to use one. Sizes take k, M and G (of 1024).")
    return 0


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("help", "help [COMMAND]", "list the commands, or explain one", _help),
        Command("ping", "ping [-c COUNT] [-i SECONDS] [-s BYTES] [-W SECONDS] [-q] HOST",
                "send ICMP echo requests to a host and time the replies", network.ping),
        Command("fping", "fping [-c COUNT] [-W SECONDS] HOST...",
                "ping many hosts, one line for each", network.fping),
        Command("arp", "arp", "list the known neighbours", network.arp),
        Command("ip", "ip [-s]", "show the network interfaces; -s: with counters", network.ip),
        Command("hosts", "hosts", "list the host names this guest knows", network.hosts),
        Command("sha256", "sha256 DISK", "read a whole disk and print its SHA-256", storage.sha256),
        Command("dd", "dd if=DISK|- of=DISK|-|null [bs=SIZE] [count=N] [skip=N] [seek=N] [conv=fsync]",
                "copy blocks between disks, standard input and standard output", storage.dd),
        Command("read", "read DISK OFFSET LENGTH", "write bytes of a disk to standard output", storage.read),
        Command("write", "write DISK OFFSET [TEXT]",
                "write standard input, or TEXT, to a disk at a byte offset", storage.write),
        Command("hexdump", "hexdump DISK [OFFSET [LENGTH]]", "show bytes of a disk", storage.hexdump),
        Command("sync", "sync [DISK]", "make everything that was written durable", storage.sync),
        Command("discard", "discard DISK OFFSET LENGTH",
                "give blocks back (UNMAP); they read as zeros afterwards", storage.discard),
        Command("null", "null DISK [COUNT]", "send null requests (TEST UNIT READY) and time them", storage.null),
        Command("iobench", "iobench [-o null|read|write|commit] [-b SIZE] [-d DEPTH] [-n COUNT] [-T SECONDS] "
                "[-i SECONDS] [-s SPAN] [-B NS [-W SECONDS]] [-r] [-t] [-c] [-j] [-S FILE] DISK",
                "keep DEPTH requests (1, at most 64) of SIZE (4k) under way, COUNT (10000) in all or for SECONDS, and "
                "time them; -i one each SECONDS, timed from when it was due; -o null (default), read, write, or commit "
                "(with a flush): these overwrite with zeros; -s in the first SPAN, -r at random, -t touch what was "
                "read, -c each block read must begin with its number, -j JSON, -S every latency into FILE; -B begin "
                "at that moment of the monotonic clock, and run for -W (0.1) before and after the SECONDS measured",
                iobench.iobench),
        Command("netbench", "netbench [-b SIZE] [-d DEPTH] [-i SECONDS] [-T SECONDS] -S FILE HOST",
                "keep DEPTH echo requests (1) of SIZE bytes (56) under way for SECONDS (1), or send one each -i "
                "SECONDS; every latency into FILE",
                netbench.netbench),
        Command("bulkbench", "bulkbench [-b SIZE] [-d DEPTH] [-T SECONDS] -S FILE HOST",
                "send units of SIZE bytes (64k) to a guest for SECONDS (1), DEPTH (1) of them under way, and print "
                "what it received; the time of every unit into FILE",
                bulkbench.bulkbench),
        Command("sqlitebench", "sqlitebench [-T SECONDS] [-S FILE] DISK",
                "put an SQLite database on a disk, whatever was there, and commit transactions for SECONDS (1), each "
                "durable; check the database; every latency into FILE",
                sqlite.sqlitebench),
        Command("sqlitecheck", "sqlitecheck DISK",
                "open the database that sqlitebench left on a disk, which rolls back what was under way; check it, and "
                "say how many transactions it holds",
                sqlite.sqlitecheck),
        Command("kvlog", "kvlog [-T SECONDS] [-S FILE] DISK",
                "put a key-value log on a disk, whatever was there; append and flush for SECONDS (1) or until it is "
                "full, and read it back; every latency into FILE",
                kvlog.kvlog),
        Command("fileserver", "fileserver [-d DEPTH] [-T SECONDS] [-S FILE] DISK",
                "overwrite the first 4 MiB of a disk, then read, write and flush there as a file server does, DEPTH "
                "(1, at most 64) requests under way for SECONDS (1); check all of it; every latency into FILE",
                fileserver.fileserver),
        Command("witness", "witness [-o write|mixed|flush|read] [-b SIZE] [-d DEPTH] [-i SECONDS|closed] [-t SECONDS] "
                "[-s SPAN] [-w WRITER] [-S SEED] DISK PATH",
                "overwrite a disk with stamped blocks of SIZE (4k), one every -i SECONDS (0.001) for -t SECONDS (1), "
                "at most DEPTH (1) under way, at random places in its first SPAN (16M), and record all of it in the "
                "history at PATH; -o mixed: half of it reads, flush: and flushes, read: reads, and overwrites nothing; "
                "WRITER and SEED are numbers (1)",
                witness.witness),
        Command("stamps", "stamps DISK OFFSET LENGTH",
                "write 24 bytes about each sector to standard output: what witness left there", witness.stamps),
        Command("netwitness", "netwitness [-i SECONDS] [-t SECONDS] HOST PATH",
                "send an ICMP echo request to a host every -i SECONDS (0.01) for -t SECONDS (1), each until it is "
                "answered, and record them in the history at PATH", netwitness.netwitness),
        Command("inquiry", "inquiry DISK [PAGE]",
                "SCSI INQUIRY: identity, or a vital product data page (00 80 83 b0 b1 b2)", storage.inquiry),
        Command("lsblk", "lsblk", "list the disks", storage.lsblk),
        Command("hdparm", "hdparm DISK [dma|string|words]",
                "show how an IDE disk moves its data, or choose it", legacy.hdparm),
        Command("iostat", "iostat", "requests, bytes and errors of each disk", storage.iostat),
        Command("lsvmbus", "lsvmbus", "list the VMBus channels", system.lsvmbus),
        Command("dmesg", "dmesg", "show the kernel log", system.dmesg),
        Command("hostname", "hostname", "print this guest's name", system.hostname),
        Command("uptime", "uptime", "print how long this guest has been running", system.uptime),
        Command("date", "date [-n]", "print what this guest's clock shows; -n: in nanoseconds since 1970",
                services.date),
        Command("clock", "clock [drift PPM]",
                "say how this guest's clock is disciplined; drift: make it run too fast by so many ppm",
                services.clock),
        Command("kvp", "kvp [get KEY|set KEY VALUE|delete KEY]",
                "list what this guest and its host tell each other; get a value; set or delete one of this guest's own",
                services.kvp),
        Command("uname", "uname", "say what this is", system.uname),
        Command("free", "free", "print the memory of this guest and of the process that carries it", system.free),
        Command("memcheck", "memcheck", "say whether somebody wrote over this guest's private memory", system.memcheck),
        Command("echo", "echo [WORD...]", "print the words", system.echo),
        Command("cat", "cat", "copy standard input to standard output", system.cat),
        Command("sleep", "sleep SECONDS", "do nothing for a while", system.sleep),
        Command("true", "true", "succeed", system.true),
        Command("false", "false", "fail", system.false),
    )
}


def find(name: str) -> Command | None:
    """The command of that name."""
    return COMMANDS.get(name)
