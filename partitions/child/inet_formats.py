"""Ethernet, ARP, IPv4, ICMP echo and UDP as bytes: the layouts of :mod:`partitions.child.inet`, and nothing else.

Pure functions. Parsers are total: any bytes give a result or ``None``. All fields are big-endian, addresses
are ``bytes`` (6 for Ethernet, 4 for IPv4), lengths are bytes.
"""

from __future__ import annotations

import enum
import socket
import struct
from typing import Final, NamedTuple

from vmbus_emu.device import Buffer

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
BROADCAST: Final = b"\xff" * 6
ARP_REQUEST: Final = 1
ARP_REPLY: Final = 2
ICMP: Final = 1
UDP: Final = 17
ECHO_REPLY: Final = 0
ECHO_REQUEST: Final = 8
DEFAULT_TTL: Final = 64

ETHERNET: Final = struct.Struct("!6s6sH")
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_ECHO: Final = struct.Struct("!BBHHH")
_UDP: Final = struct.Struct("!HHHH")
_ETHERNET_MEDIUM: Final = (1, ETHERTYPE_IPV4, 6, 4)
_DONT_FRAGMENT: Final = 0x4000
_FRAGMENT: Final = 0x3FFF  # more-fragments bit and offset

IPV4_HEADER: Final = _IPV4.size
ECHO_HEADER: Final = _ECHO.size
UDP_HEADER: Final = _UDP.size


class Bad(enum.Enum):
    """Why bytes were not a packet for us."""

    MALFORMED = "malformed"
    CHECKSUM = "checksum"
    FRAGMENT = "fragment"


class Arp(NamedTuple):
    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes


class Ipv4(NamedTuple):
    source: bytes
    destination: bytes
    protocol: int
    ttl: int
    payload: memoryview


class Echo(NamedTuple):
    kind: int
    identifier: int
    sequence: int
    payload: memoryview


class Datagram(NamedTuple):
    source_port: int
    port: int
    payload: memoryview


def parse_address(text: str) -> bytes | None:
    """``"10.0.0.1"`` as four bytes; ``None`` if it is not a dotted address."""
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return None


def show_address(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET, address)


def checksum(data: Buffer) -> int:
    """The Internet checksum of ``data``. Over data that contains its own right checksum it is 0.

    The ones' complement sum of 16-bit words is the number modulo 65535 (65536 is 1 there), which Python
    computes in one go; only the two zeros must be told apart.
    """
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    if not value:
        return 0xFFFF
    return 0xFFFF - (value % 0xFFFF or 0xFFFF)


def pack_arp(operation: int, sender_mac: bytes, sender: bytes, target_mac: bytes, target: bytes) -> bytes:
    """An ARP message; ``target_mac`` is all zeros in a request."""
    return _ARP.pack(*_ETHERNET_MEDIUM, operation, sender_mac, sender, target_mac, target)


def parse_arp(message: Buffer) -> Arp | None:
    """An ARP request or reply for IPv4 over Ethernet from an individual address; padding behind it is ignored."""
    if len(message) < _ARP.size:
        return None
    *medium, operation, sender_mac, sender, target_mac, target = _ARP.unpack_from(message)
    if tuple(medium) != _ETHERNET_MEDIUM or operation not in (ARP_REQUEST, ARP_REPLY) or sender_mac[0] & 1:
        return None
    return Arp(operation, sender_mac, sender, target_mac, target)


def pack_ipv4(source: bytes, destination: bytes, protocol: int, ttl: int, identification: int, payload: bytes) -> bytes:
    """An unfragmented packet that must not be fragmented."""
    fields = (0x45, 0, IPV4_HEADER + len(payload), identification, _DONT_FRAGMENT, ttl, protocol)
    header = _IPV4.pack(*fields, 0, source, destination)
    return b"".join((_IPV4.pack(*fields, checksum(header), source, destination), payload))


def parse_ipv4(packet: Buffer) -> Ipv4 | Bad:
    """A whole packet with a right header checksum. Options are skipped, padding behind the packet is cut off."""
    view = memoryview(packet)
    if len(view) < IPV4_HEADER:
        return Bad.MALFORMED
    version_words, _, total, _, fragment, ttl, protocol, _, source, destination = _IPV4.unpack_from(view)
    header = (version_words & 15) * 4
    if version_words >> 4 != 4 or header < IPV4_HEADER or not header <= total <= len(view):
        return Bad.MALFORMED
    if checksum(view[:header]):
        return Bad.CHECKSUM
    if fragment & _FRAGMENT:
        return Bad.FRAGMENT
    return Ipv4(source, destination, protocol, ttl, view[header:total])


def pack_echo(kind: int, identifier: int, sequence: int, payload: Buffer) -> bytes:
    """An ICMP echo request or reply."""
    message = _ECHO.pack(kind, 0, 0, identifier, sequence) + bytes(payload)
    return _ECHO.pack(kind, 0, checksum(message), identifier, sequence) + message[ECHO_HEADER:]


def parse_echo(message: memoryview) -> Echo | Bad | None:
    """An ICMP echo request or reply with a right checksum; ``None`` for the rest of ICMP."""
    if len(message) < ECHO_HEADER:
        return Bad.MALFORMED
    if checksum(message):
        return Bad.CHECKSUM
    kind, code, _, identifier, sequence = _ECHO.unpack_from(message)
    if code or kind not in (ECHO_REQUEST, ECHO_REPLY):
        return None
    return Echo(kind, identifier, sequence, message[ECHO_HEADER:])


def pack_udp(source_port: int, port: int, payload: Buffer) -> bytes:
    """A UDP datagram without a checksum, which IPv4 allows (0: none was computed)."""
    return b"".join((_UDP.pack(source_port, port, UDP_HEADER + len(payload), 0), payload))


def parse_udp(message: memoryview) -> Datagram | Bad:
    """A UDP datagram, whose checksum is not looked at; padding behind it is cut off."""
    if len(message) < UDP_HEADER:
        return Bad.MALFORMED
    source_port, port, length, _ = _UDP.unpack_from(message)
    if not UDP_HEADER <= length <= len(message):
        return Bad.MALFORMED
    return Datagram(source_port, port, message[UDP_HEADER:length])
