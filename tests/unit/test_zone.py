"""What the DNS role answers, byte for byte as a client sees it. No socket."""

from __future__ import annotations

import random

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest

from partitions.roles.zone import Zone

HOSTS = {"vm1": "10.0.0.1", "web-2": "10.0.3.254"}


@pytest.fixture
def zone() -> Zone:
    return Zone("lab", HOSTS)


def ask(zone: Zone, name: str, kind: str = "A", **options: bool) -> dns.message.Message:
    query = dns.message.make_query(name, kind, **options)
    answer = zone.answer(query.to_wire())
    assert answer is not None
    response = dns.message.from_wire(answer)
    assert query.is_response(response)
    return response


def texts(response: dns.message.Message) -> list[str]:
    return [rrset.to_text() for rrset in response.answer]


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        ("vm1.lab.vm", "A", "vm1.lab.vm. 5 IN A 10.0.0.1"),
        ("WEB-2.Lab.VM", "A", "WEB-2.Lab.VM. 5 IN A 10.0.3.254"),
        ("vm1.lab.vm", "ANY", "vm1.lab.vm. 5 IN A 10.0.0.1"),
        ("1.0.0.10.in-addr.arpa", "PTR", "1.0.0.10.in-addr.arpa. 5 IN PTR vm1.lab.vm."),
        ("254.3.0.10.in-addr.arpa", "PTR", "254.3.0.10.in-addr.arpa. 5 IN PTR web-2.lab.vm."),
        ("lab.vm", "NS", "lab.vm. 5 IN NS ns.lab.vm."),
    ],
)
def test_a_name_has_its_record(zone: Zone, name: str, kind: str, answer: str) -> None:
    response = ask(zone, name, kind)
    assert (response.rcode(), texts(response)) == (dns.rcode.NOERROR, [answer])
    assert response.flags & dns.flags.AA


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("vm9.lab.vm", "A", dns.rcode.NXDOMAIN),
        ("x.vm1.lab.vm", "A", dns.rcode.NXDOMAIN),
        ("9.9.0.10.in-addr.arpa", "PTR", dns.rcode.NXDOMAIN),
        ("vm1.lab.vm", "AAAA", dns.rcode.NOERROR),          # there is the name, and no such record
        ("0.0.10.in-addr.arpa", "PTR", dns.rcode.NOERROR),  # there are names below it
    ],
)
def test_what_there_is_not_comes_with_how_long_that_may_be_kept(
    zone: Zone, name: str, kind: str, code: dns.rcode.Rcode
) -> None:
    response = ask(zone, name, kind)
    assert (response.rcode(), response.answer) == (code, [])
    assert [rrset.rdtype for rrset in response.authority] == [dns.rdatatype.SOA]


@pytest.mark.parametrize("name", ["example.com", "vm1.other.vm", "vm1", ".", "1.0.1.10.in-addr.arpa"])
def test_of_names_of_others_it_says_nothing(zone: Zone, name: str) -> None:
    response = ask(zone, name)
    assert (response.rcode(), response.answer) == (dns.rcode.REFUSED, [])
    assert not response.flags & dns.flags.AA


def test_vms_come_and_go(zone: Zone) -> None:
    zone.replace({"vm1": "10.0.0.7", "vm3": "10.0.0.3"})
    assert texts(ask(zone, "vm1.lab.vm")) == ["vm1.lab.vm. 5 IN A 10.0.0.7"]
    assert ask(zone, "vm3.lab.vm").rcode() == dns.rcode.NOERROR
    assert ask(zone, "web-2.lab.vm").rcode() == dns.rcode.NXDOMAIN
    assert ask(zone, "1.0.0.10.in-addr.arpa", "PTR").rcode() == dns.rcode.NXDOMAIN
    assert ask(zone, "lab.vm", "SOA").answer[0][0].serial == zone.serial == 2


def test_edns_is_answered_in_kind(zone: Zone) -> None:
    assert ask(zone, "vm1.lab.vm", use_edns=True).edns == 0
    assert ask(zone, "vm1.lab.vm", use_edns=False).edns == -1


def test_another_opcode_is_not_implemented(zone: Zone) -> None:
    query = dns.message.make_query("vm1.lab.vm", "A")
    query.set_opcode(dns.opcode.NOTIFY)
    answer = zone.answer(query.to_wire())
    assert answer is not None
    assert dns.message.from_wire(answer).rcode() == dns.rcode.NOTIMP


def test_an_answer_is_not_answered(zone: Zone) -> None:
    query = dns.message.make_query("vm1.lab.vm", "A")
    answer = zone.answer(query.to_wire())
    assert answer is not None
    assert zone.answer(answer) is None                       # or two servers would talk for ever
    assert zone.answer(b"") is None
    assert zone.answer(query.to_wire()[:11]) is None


@pytest.mark.parametrize("cut", [12, 13, 20])
def test_a_cut_query_is_a_format_error(zone: Zone, cut: int) -> None:
    query = dns.message.make_query("vm1.lab.vm", "A").to_wire()
    answer = zone.answer(query[:cut])
    assert answer is not None
    assert (answer[:2], answer[2] & 0x80, answer[3] & 15, len(answer)) == (query[:2], 0x80, dns.rcode.FORMERR, 12)


def test_no_question_or_two_are_a_format_error(zone: Zone) -> None:
    query = dns.message.make_query("vm1.lab.vm", "A")
    query.question *= 2
    for raw in (query.to_wire(), b"\1\2\1\0" + bytes(8)):
        answer = zone.answer(raw)
        assert answer is not None
        assert answer[3] & 15 == dns.rcode.FORMERR


def test_whatever_arrives_gets_an_answer_of_its_own_id_or_none(zone: Zone) -> None:
    chance = random.Random(6)
    good = [dns.message.make_query(name, kind, use_edns=edns).to_wire()
            for name in ("vm1.lab.vm", "x.y") for kind in ("A", "ANY") for edns in (True, False)]  # fmt: skip
    answered = 0
    for _ in range(5000):
        raw = bytearray(chance.choice(good) if chance.random() < 0.8 else chance.randbytes(chance.randrange(80)))
        for _ in range(chance.randrange(4)):
            if raw:
                raw[chance.randrange(len(raw))] = chance.randrange(256)
        answer = zone.answer(bytes(raw), udp=chance.random() < 0.5)
        if answer is not None:
            answered += 1
            assert answer[:2] == raw[:2]
            assert answer[2] & 0x80
            assert len(answer) <= 1232
    assert answered > 1000
