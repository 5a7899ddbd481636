"""A guest's IP stack: ARP, IPv4, ICMP echo and UDP over one ``NetworkPort``; enough that machines can ping each other.

A guest makes one :class:`IpStack` per adapter and lets it run; :meth:`IpStack.echo` is what ``ping`` is made
of. Everything happens on the guest's loop. Whatever frames arrive, nothing raises: what is wrong is counted.

No routes beyond the adapter's own subnet, no fragments, no options sent, no checksums of UDP, no TCP. Like Linux with
``arp_accept``, the stack also learns addresses from ARP broadcasts that are not meant for it: N guests that
announce themselves once know each other without N² requests.

A little long, because a packet's whole way through the stack, both ways, reads best in one piece.

Bounds: those of :mod:`partitions.child.neighbours`, :data:`BACKLOG` frames waiting for the adapter,
:data:`MAX_ECHOES` echoes without an answer.
"""

from __future__ import annotations

import enum
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from partitions.child import inet_formats as formats
from partitions.child.neighbours import Neighbours
from vmbus_emu.device import ETHERNET_HEADER, Buffer, NetworkPort, Status
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.task import Future

BACKLOG = 256
MAX_ECHOES = 4096
_NO_MAC = bytes(6)


class EchoReply(NamedTuple):
    """An answer that came back whole. ``rtt_seconds`` includes address resolution, ``nbytes`` is the ICMP message."""

    rtt_seconds: float
    ttl: int
    nbytes: int


class EchoFailure(enum.Enum):
    """Why an echo request got no chance of an answer. (No answer in time is ``None``.)"""

    HOST_UNREACHABLE = "host unreachable"           #: nobody answered ARP for the address
    NO_ROUTE = "network unreachable"                #: not in the adapter's subnet, and there is no gateway
    UNKNOWN_NAME = "name not known"
    TOO_BIG = "message too long"                    #: longer than the MTU; nothing is fragmented here
    BUSY = "too many packets wait"                  #: one of the bounds of this module
    ADAPTER_GONE = "network adapter is gone"        #: unplugged for good; what waited ends with this too


EchoOutcome = EchoReply | EchoFailure | None
#: Gets the sender's address and port, and the payload, which is only valid during the call.
DatagramHandler = Callable[[bytes, int, memoryview], Any]


@dataclass(slots=True)
class IpCounters:
    """Frames and packets by what became of them, since the stack was made."""

    frames_in: int = 0
    not_for_us: int = 0             #: another Ethernet or IP address
    malformed: int = 0
    bad_checksum: int = 0
    fragments: int = 0
    unknown_protocol: int = 0       #: not ARP, IPv4, ICMP echo, or UDP
    arp_in: int = 0
    arp_out: int = 0
    address_conflicts: int = 0      #: somebody else says our address is theirs
    echo_requests_out: int = 0
    echo_requests_in: int = 0
    echo_replies_out: int = 0
    echo_replies_in: int = 0
    echo_unmatched: int = 0         #: a reply nobody waits for (late, or twice)
    echo_corrupted: int = 0         #: a reply with other bytes than were sent
    echo_timeouts: int = 0
    datagrams_out: int = 0
    datagrams_in: int = 0
    datagrams_unwanted: int = 0     #: nobody is bound to their port
    unreachable: int = 0            #: packets whose neighbour did not answer
    dropped_out: int = 0            #: the adapter did not take it, or a queue was full


class _Echo(NamedTuple):
    """A request on its way. ``key``: ICMP identifier and sequence number, in one number."""

    key: int
    address: bytes
    payload: bytes
    sent_at: float
    timer: Timer
    outcome: Future[EchoOutcome]


class IpStack:
    """One address on one adapter."""

    def __init__(
        self, loop: Loop, port: NetworkPort, address: str, prefix: int, hosts: Mapping[str, str],
        log: Callable[[str], Any],
    ) -> None:
        """``prefix``: length of the subnet's, 0 to 32. ``hosts``: names to addresses, read at each look-up. Raises
        ``ValueError`` if ``address`` or ``prefix`` is not one: a mistake of the configuration."""
        own = formats.parse_address(address)
        if own is None or not 0 <= prefix <= 32:
            raise ValueError(f"{address}/{prefix} is not an IPv4 address with a prefix length")
        self._loop = loop
        self._port = port
        self._own = own
        self._mask = (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF
        self._hosts = hosts
        self._log = log
        self._adapter_gone = False
        self._count = IpCounters()
        self._neighbours: Neighbours[_Echo | None] = Neighbours(
            loop,
            lambda target: self._send_arp(formats.ARP_REQUEST, formats.BROADCAST, _NO_MAC, target),
            lambda mac, packet: self._send_frame(mac, formats.ETHERTYPE_IPV4, packet),
            self._unreachable,
        )
        self._echoes: dict[int, _Echo] = {}         # by key
        self._identifiers = itertools.count(1)
        self._bound: dict[int, DatagramHandler] = {}     # by port
        self._backlog: deque[bytes] = deque()
        port.connect(self._frame, self._drain)

    # -- the guest's side -------------------------------------------------------------------------

    def announce(self) -> None:
        """Tell everybody in the broadcast domain where this address is (a gratuitous ARP request)."""
        self._send_arp(formats.ARP_REQUEST, formats.BROADCAST, _NO_MAC, self._own)

    def resolve(self, name: str) -> str | None:
        """The address of a host name, or ``name`` itself if it is an address; else ``None``."""
        address = self._hosts.get(name, name)
        return address if formats.parse_address(address) is not None else None

    def echo(self, address: str, sequence: int, payload: bytes, timeout: float) -> Future[EchoOutcome]:
        """Send one ICMP echo request of ``payload`` to an address or host name.

        Resolves to the :class:`EchoReply`, to ``None`` when none came within ``timeout`` seconds, or to an
        :class:`EchoFailure`. An address that does not answer ARP is known to be unreachable after three
        seconds; with a shorter ``timeout`` the time-out comes first.
        """
        outcome: Future[EchoOutcome] = Future()
        target = formats.parse_address(self._hosts.get(address, address))
        failure = self._obstacle(target, formats.ECHO_HEADER + len(payload))
        if failure is None and len(self._echoes) >= MAX_ECHOES:
            failure = EchoFailure.BUSY
        if failure is not None or target is None:
            outcome.resolve(failure)
            return outcome
        sequence &= 0xFFFF
        key = self._free_key(sequence)
        timer = self._loop.call_later(timeout, self._timed_out, key)
        payload = bytes(payload)
        echo = self._echoes[key] = _Echo(key, target, payload, time.monotonic(), timer, outcome)
        self._count.echo_requests_out += 1
        message = formats.pack_echo(formats.ECHO_REQUEST, key >> 16, sequence, payload)
        self._send_ip(target, formats.ICMP, message, echo)
        return outcome

    @property
    def largest_datagram(self) -> int:
        """Bytes of payload that fit in one."""
        return self._port.info.mtu - formats.IPV4_HEADER - formats.UDP_HEADER

    def bind(self, port: int, handler: DatagramHandler) -> bool:
        """Give ``handler`` what arrives for a UDP port. ``False``: somebody is bound to it."""
        return self._bound.setdefault(port, handler) is handler

    def unbind(self, port: int) -> None:
        self._bound.pop(port, None)

    def send_datagram(self, address: str | bytes, source_port: int, port: int, payload: Buffer) -> EchoFailure | None:
        """Send one UDP datagram. ``None``: it is on its way, and may be lost like any frame."""
        target = address if isinstance(address, bytes) else formats.parse_address(self._hosts.get(address, address))
        failure = self._obstacle(target, formats.UDP_HEADER + len(payload))
        if failure is not None or target is None:
            return failure
        self._count.datagrams_out += 1
        self._send_ip(target, formats.UDP, formats.pack_udp(source_port, port, payload), None)
        return None

    def arp_table(self) -> dict[str, str]:
        """Known neighbours: address to Ethernet address, for display."""
        return {formats.show_address(address): mac.hex(":") for address, mac in self._neighbours.table.items()}

    def stats(self) -> IpCounters:
        """A copy of the counters."""
        return IpCounters(*(getattr(self._count, field.name) for field in fields(IpCounters)))

    def _obstacle(self, target: bytes | None, nbytes: int) -> EchoFailure | None:
        """Why a message of ``nbytes`` cannot be sent there."""
        if target is None:
            return EchoFailure.UNKNOWN_NAME
        if not self._on_link(target):
            return EchoFailure.NO_ROUTE
        if formats.IPV4_HEADER + nbytes > self._port.info.mtu:
            return EchoFailure.TOO_BIG
        return EchoFailure.ADAPTER_GONE if self._adapter_gone else None

    def _free_key(self, sequence: int) -> int:
        """An identifier that no outstanding echo of this sequence number has. There is one: MAX_ECHOES is smaller."""
        while True:
            key = (next(self._identifiers) & 0xFFFF) << 16 | sequence
            if key not in self._echoes:
                return key

    def _on_link(self, address: bytes) -> bool:
        return not (int.from_bytes(address, "big") ^ int.from_bytes(self._own, "big")) & self._mask

    def _timed_out(self, key: int) -> None:
        self._count.echo_timeouts += 1
        self._echoes.pop(key).outcome.resolve(None)

    def _echo_failed(self, echo: _Echo | None, failure: EchoFailure) -> None:
        """The packet could not be sent. If it was an echo's that still waits, tell it."""
        if echo is not None and self._echoes.get(echo.key) is echo:
            del self._echoes[echo.key]
            echo.timer.cancel()
            echo.outcome.resolve(failure)

    # -- sending ----------------------------------------------------------------------------------

    def _send_ip(self, target: bytes, protocol: int, message: bytes, echo: _Echo | None) -> None:
        """Send a message of ``protocol``; ``echo`` is what fails if it cannot be sent."""
        packet = formats.pack_ipv4(
            self._own, target, protocol, formats.DEFAULT_TTL, next(self._identifiers) & 0xFFFF, message
        )
        if target == self._own:
            self._loop.call_soon(self._ipv4, packet)
            return
        mac = self._neighbours.table.get(target)
        if mac is not None:
            self._send_frame(mac, formats.ETHERTYPE_IPV4, packet)
        elif not self._neighbours.wait(target, packet, echo):
            self._count.dropped_out += 1
            self._echo_failed(echo, EchoFailure.BUSY)

    def _unreachable(self, echo: _Echo | None) -> None:
        self._count.unreachable += 1
        self._echo_failed(echo, EchoFailure.HOST_UNREACHABLE)

    def _send_arp(self, operation: int, to: bytes, target_mac: bytes, target: bytes) -> None:
        self._count.arp_out += 1
        message = formats.pack_arp(operation, self._port.info.mac, self._own, target_mac, target)
        self._send_frame(to, formats.ETHERTYPE_ARP, message)

    def _send_frame(self, to: bytes, ethertype: int, payload: bytes) -> None:
        frame = formats.ETHERNET.pack(to, self._port.info.mac, ethertype) + payload
        if not self._backlog:
            status = self._port.transmit(frame)
            if status is not Status.BUSY:
                self._count.dropped_out += status is not Status.OK
                if status is Status.GONE and not self._adapter_gone:
                    self._adapter_gone = True
                    self._loop.call_soon(self._give_up)  # not now: the caller is still filling in its tables
                return
        if len(self._backlog) < BACKLOG:
            self._backlog.append(frame)
        else:
            self._count.dropped_out += 1

    def _give_up(self) -> None:
        """There is no adapter any more: nobody waits for an answer, or for a neighbour."""
        for echo in list(self._echoes.values()):
            self._echo_failed(echo, EchoFailure.ADAPTER_GONE)
        self._neighbours.stop()

    def _drain(self) -> None:
        """The adapter has credit again."""
        while self._backlog:
            status = self._port.transmit(self._backlog[0])
            if status is Status.BUSY:
                return
            self._backlog.popleft()
            self._count.dropped_out += status is not Status.OK

    # -- receiving --------------------------------------------------------------------------------

    def _frame(self, frame: Buffer) -> bool:
        """A frame from the adapter. Always taken: what is not used is counted."""
        count = self._count
        count.frames_in += 1
        if len(frame) < ETHERNET_HEADER:
            count.malformed += 1
            return True
        to, source, ethertype = formats.ETHERNET.unpack_from(frame)
        if to not in (self._port.info.mac, formats.BROADCAST):
            count.not_for_us += 1
        elif ethertype == formats.ETHERTYPE_IPV4:
            self._ipv4(memoryview(frame)[ETHERNET_HEADER:])
        elif ethertype == formats.ETHERTYPE_ARP:
            self._arp(memoryview(frame)[ETHERNET_HEADER:], source)
        else:
            count.unknown_protocol += 1
        return True

    def _arp(self, message: memoryview, source: bytes) -> None:
        count = self._count
        count.arp_in += 1
        arp = formats.parse_arp(message)
        if arp is None or arp.sender_mac != source:
            count.malformed += 1
            return
        if arp.sender == self._own:
            if source != self._port.info.mac:
                count.address_conflicts += 1
                if count.address_conflicts == 1:
                    self._log(f"{formats.show_address(self._own)} is also claimed by {source.hex(':')}")
            return
        if self._on_link(arp.sender) and any(arp.sender):  # 0.0.0.0: a probe by somebody without an address yet
            self._neighbours.learn(arp.sender, source)
        if arp.operation == formats.ARP_REQUEST and arp.target == self._own:
            self._send_arp(formats.ARP_REPLY, source, source, arp.sender)

    def _ipv4(self, packet: Buffer) -> None:
        count = self._count
        parsed = formats.parse_ipv4(packet)
        if isinstance(parsed, formats.Bad):
            self._count_bad(parsed)
        elif parsed.destination != self._own:
            count.not_for_us += 1
        elif parsed.protocol == formats.UDP:
            self._datagram(parsed)
        elif parsed.protocol != formats.ICMP:
            count.unknown_protocol += 1
        else:
            echo = formats.parse_echo(parsed.payload)
            if echo is None:
                count.unknown_protocol += 1
            elif isinstance(echo, formats.Bad):
                self._count_bad(echo)
            elif echo.kind == formats.ECHO_REQUEST:
                self._answer(parsed, echo)
            else:
                self._answered(parsed, echo)

    def _count_bad(self, bad: formats.Bad) -> None:
        if bad is formats.Bad.CHECKSUM:
            self._count.bad_checksum += 1
        elif bad is formats.Bad.FRAGMENT:
            self._count.fragments += 1
        else:
            self._count.malformed += 1

    def _datagram(self, packet: formats.Ipv4) -> None:
        datagram = formats.parse_udp(packet.payload)
        if isinstance(datagram, formats.Bad):
            self._count_bad(datagram)
            return
        self._count.datagrams_in += 1
        handler = self._bound.get(datagram.port)
        if handler is None:
            self._count.datagrams_unwanted += 1
        else:
            handler(packet.source, datagram.source_port, datagram.payload)

    def _answer(self, packet: formats.Ipv4, request: formats.Echo) -> None:
        self._count.echo_requests_in += 1
        if not self._on_link(packet.source) or formats.IPV4_HEADER + len(packet.payload) > self._port.info.mtu:
            self._count.dropped_out += 1
            return
        self._count.echo_replies_out += 1
        message = formats.pack_echo(formats.ECHO_REPLY, request.identifier, request.sequence, request.payload)
        self._send_ip(packet.source, formats.ICMP, message, None)

    def _answered(self, packet: formats.Ipv4, reply: formats.Echo) -> None:
        count = self._count
        count.echo_replies_in += 1
        key = reply.identifier << 16 | reply.sequence
        echo = self._echoes.get(key)
        if echo is None or echo.address != packet.source:
            count.echo_unmatched += 1
        elif reply.payload != echo.payload:
            count.echo_corrupted += 1
        else:
            del self._echoes[key]
            echo.timer.cancel()
            elapsed = time.monotonic() - echo.sent_at
            echo.outcome.resolve(EchoReply(elapsed, packet.ttl, len(packet.payload)))
