"""What files of /proc say about a process, taken apart: memory, privileges, sockets. Pure functions over their texts.

Formats as in proc_pid_smaps(5), proc_pid_status(5) and Linux's net/unix/af_unix.c, net/ipv4 and net/ipv6. What does not
look as described is left out.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

_MAPPING = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) ([0-9]+) *(.*)", re.ASCII
)
_GONE = " (deleted)"
#: By number, from 0 (linux/capability.h).
CAPABILITIES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
_SECCOMP = {"0": "off", "1": "strict", "2": "filter"}


class Mapped(NamedTuple):
    """One mapping. ``file``: device and inode. ``private``, ``shared``: bytes of it that are resident, by whether
    another process has the same page."""

    begin: int
    end: int
    access: str             #: such as ``rw-s``; the last letter is ``p`` where writing makes a copy of one's own
    offset: int
    file: tuple[str, int]
    path: str
    private: int = 0
    shared: int = 0

    @property
    def is_shared(self) -> bool:
        """Whether what is written here is seen by whoever else maps the same file."""
        return self.access[3] == "s"


def mappings(smaps: str) -> list[Mapped]:
    """The mappings in a text of ``/proc/PID/smaps``, or without figures of ``/proc/PID/maps``."""
    found: list[Mapped] = []
    for line in smaps.splitlines():
        match = _MAPPING.fullmatch(line)
        if match:
            begin, end, access, offset, device, inode, path = match.groups()
            file = (device, int(inode))
            path = path.removesuffix(_GONE)
            found.append(Mapped(int(begin, 16), int(end, 16), access, int(offset, 16), file, path))
            continue
        words = line.split()
        if not found or len(words) != 3 or words[2] != "kB" or not words[1].isdecimal():
            continue
        if words[0].startswith("Private_") and "Hugetlb" not in words[0]:
            found[-1] = found[-1]._replace(private=found[-1].private + int(words[1]) * 1024)
        elif words[0] in ("Shared_Clean:", "Shared_Dirty:"):
            found[-1] = found[-1]._replace(shared=found[-1].shared + int(words[1]) * 1024)
    return found


class Privileges(NamedTuple):
    """What the kernel lets a process do. ``capabilities``: those in force, by name without ``CAP_``."""

    uid: int
    gid: int
    capabilities: tuple[str, ...]
    no_new_privs: bool
    seccomp: str            #: off, strict or filter


def privileges(status: str) -> Privileges | None:
    """Of a text of ``/proc/PID/status``; ``None`` if it is none."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    try:
        effective = int(fields["CapEff"], 16)
        return Privileges(
            int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1]), capabilities(effective),
            fields.get("NoNewPrivs", "0").strip() == "1", _SECCOMP.get(fields.get("Seccomp", "0").strip(), "unknown"),
        )  # fmt: skip
    except (KeyError, IndexError, ValueError):
        return None


def capabilities(mask: int) -> tuple[str, ...]:
    """The names of the bits that are set; of those that are younger than the list, their numbers."""
    bits = [number for number in range(mask.bit_length()) if mask >> number & 1]
    return tuple(CAPABILITIES[bit] if bit < len(CAPABILITIES) else str(bit) for bit in bits)


def unix_paths(net_unix: str) -> dict[int, str]:
    """Inode -> path, of the sockets in a text of ``/proc/net/unix`` that have one: those that listen, and their ends of
    the connections they have accepted."""
    found: dict[int, str] = {}
    for line in net_unix.splitlines()[1:]:
        words = line.split(None, 7)
        if len(words) == 8 and words[6].isdecimal():
            found[int(words[6])] = words[7]
    return found


def inet_addresses(table: str, protocol: str) -> dict[int, str]:
    """Inode -> ``udp 127.0.0.1:53``, of a text of ``/proc/net/tcp`` and its like."""
    found: dict[int, str] = {}
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[9].isdecimal() and words[9] != "0":
            found[int(words[9])] = f"{protocol} {_address(words[1])}"
    return found


def _address(text: str) -> str:
    """An address as the kernel prints it: 32-bit words, each in the host's byte order, and a port, in hexadecimal."""
    address, _, port = text.partition(":")
    raw = b"".join(struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8))
    if len(raw) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, raw)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, raw)}]:{int(port, 16)}"


def extent(pieces: Iterable[tuple[int, int]]) -> int:
    """Bytes in the union of pieces of a file, each an offset and its end: a file may be mapped more than once."""
    total = reached = 0
    for begin, end in sorted(pieces):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total
