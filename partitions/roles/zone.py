"""The names of a machine's VMs as DNS has them: a query's bytes in, the answer's bytes out. Pure: no socket.

Authoritative for ``MACHINE.vm`` (A records) and for 10.in-addr.arpa's ``0.10`` (PTR): RFC 1034, 1035, 2308. Anybody can
send anything here, so what is no query is not answered, and what is malformed gets FORMERR.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

#: Top-level domain of all machines; it is not delegated on the Internet.
TOP = "vm"
#: VMs live in 10.0.0.0/16.
REVERSE = dns.name.from_text("0.10.in-addr.arpa.")
#: Seconds for which an answer may be kept: VMs come and go.
TTL_S = 5
#: Bytes of an answer over UDP to who does not say more (RFC 1035), and at most (what fits any path).
UDP_BYTES, MOST_UDP_BYTES = 512, 1232
_HEADER_BYTES = 12
_RESPONSE_BIT = 0x80


class Zone:
    """``hosts``: VM's name -> IPv4 address."""

    def __init__(self, machine: str, hosts: Mapping[str, str]) -> None:
        self.origin = dns.name.from_text(f"{machine}.{TOP}.")
        self._server = dns.name.from_text("ns", self.origin)
        self._addresses: dict[dns.name.Name, str] = {}
        self._names: dict[dns.name.Name, dns.name.Name] = {}
        self.serial = 0
        self.replace(hosts)

    def replace(self, hosts: Mapping[str, str]) -> None:
        """These VMs and no others from now on."""
        self.serial += 1
        self._addresses = {dns.name.from_text(name, self.origin): address for name, address in hosts.items()}
        self._names = {
            dns.name.from_text(ipaddress.IPv4Address(address).reverse_pointer): name
            for name, address in self._addresses.items()
        }

    def answer(self, query: bytes, udp: bool = True) -> bytes | None:
        """What to reply; ``None``: nothing, for it is not a query."""
        if len(query) < _HEADER_BYTES or query[2] & _RESPONSE_BIT:
            return None
        try:
            message = dns.message.from_wire(query)
        except (dns.exception.DNSException, ValueError, LookupError):
            return _malformed(query)
        response = dns.message.make_response(message, our_payload=MOST_UDP_BYTES)
        response.set_rcode(self._fill(message, response))
        most = min(max(message.payload, UDP_BYTES), MOST_UDP_BYTES) if udp else 0
        try:
            return response.to_wire(max_size=most)
        except dns.exception.TooBig:
            response.flags |= dns.flags.TC          # the client asks again over TCP
            response.answer.clear()
            response.authority.clear()
            return response.to_wire()

    def _fill(self, query: dns.message.Message, response: dns.message.Message) -> dns.rcode.Rcode:
        """Put into ``response`` what is known of the question."""
        if query.opcode() != dns.opcode.QUERY:
            return dns.rcode.NOTIMP
        if len(query.question) != 1:
            return dns.rcode.FORMERR
        question = query.question[0]
        apex = next((apex for apex in (self.origin, REVERSE) if question.name.is_subdomain(apex)), None)
        if apex is None or question.rdclass not in (dns.rdataclass.IN, dns.rdataclass.ANY):
            return dns.rcode.REFUSED                # it is no resolver: of others' names it knows nothing
        response.flags |= dns.flags.AA
        records = self._records(question.name, apex)
        wanted = [(kind, text) for kind, text in records or ()
                  if question.rdtype in (kind, dns.rdatatype.ANY)]  # fmt: skip
        for kind, text in wanted:
            response.answer.append(dns.rrset.from_text(question.name, TTL_S, "IN", kind, text))
        if not wanted:                              # how long that there is nothing may be kept
            response.authority.append(dns.rrset.from_text(apex, TTL_S, "IN", dns.rdatatype.SOA, self._soa()))
        return dns.rcode.NOERROR if records is not None else dns.rcode.NXDOMAIN

    def _records(self, name: dns.name.Name, apex: dns.name.Name) -> list[tuple[dns.rdatatype.RdataType, str]] | None:
        """All there is by that name; ``None``: there is no such name."""
        if name == apex:
            return [(dns.rdatatype.SOA, self._soa()), (dns.rdatatype.NS, self._server.to_text())]
        if name in self._addresses:
            return [(dns.rdatatype.A, self._addresses[name])]
        if name in self._names:
            return [(dns.rdatatype.PTR, self._names[name].to_text())]
        if name == self._server:
            return [(dns.rdatatype.A, "127.0.0.1")]
        return [] if any(known.is_subdomain(name) for known in self._names) else None

    def _soa(self) -> str:
        times = f"3600 600 86400 {TTL_S}"
        return f"{self._server.to_text()} nobody.{self.origin.to_text()} {self.serial} {times}"


def _malformed(query: bytes) -> bytes:
    """FORMERR with the query's id and opcode, and no question: there may be none."""
    flags = (_RESPONSE_BIT | (query[2] & 0x79)) << 8 | int(dns.rcode.FORMERR)
    return query[:2] + flags.to_bytes(2, "big") + bytes(8)
