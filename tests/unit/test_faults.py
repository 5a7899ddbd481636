"""Which fault fits which component, what the rest is told, and how a fault is written."""

from __future__ import annotations

import pytest

from vmbus_emu import faults
from vmbus_emu.faults import ENDING, LASTING, SIGNALS, Fault, fitting, parse, refusal, roles
from vmbus_emu.placement import PLACEMENTS

EVERY = {*ENDING, *LASTING}


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_every_cell_of_the_table_fits_or_says_why_and_what_to_try(arch: str) -> None:
    for role in roles(arch):
        fits = set(fitting(arch, role))
        assert fits, role
        for fault in EVERY:
            why = refusal(arch, role, fault)
            assert (why == "") == (fault in fits), (role, fault, why)
            assert not why or "; try " in why, (role, fault, why)


@pytest.mark.parametrize("arch", PLACEMENTS)
def test_every_role_that_is_placed_has_a_row(arch: str) -> None:
    assert set(PLACEMENTS[arch]) < set(roles(arch))
    assert ("zygote" in roles(arch)) == (arch != "monolithic")


@pytest.mark.parametrize("arch", ["microkernel", "disaggregated"])
def test_a_vm_with_a_process_of_its_own_can_suffer_everything_a_process_can(arch: str) -> None:
    assert set(fitting(arch, "child")) == set(ENDING)


def test_a_vm_that_is_a_thread_suffers_only_its_own_code() -> None:
    assert set(fitting("monolithic", "child")) == {"panic", "hang"}
    assert "a thread cannot be killed by a signal" in refusal("monolithic", "child", "kill")
    assert "real hardware contains a guest's crash" in refusal("monolithic", "child", "segv")
    assert "try panic" in refusal("monolithic", "child", "kill")


def test_what_shares_the_monoliths_process_can_be_killed_with_it() -> None:
    for role in ("hypervisor", "management", "storvsp", "netvsp"):
        assert set(ENDING) <= set(fitting("monolithic", role))


def test_lasting_faults_are_those_of_drivers() -> None:
    for arch in PLACEMENTS:
        drivers = {role: LASTING.keys() & set(fitting(arch, role)) for role in roles(arch)}
        assert {role: found for role, found in drivers.items() if found} == {
            "storvsp": {"slow", "error"}, "netvsp": {"slow", "drop"},
        }  # fmt: skip
    assert "storvsp or netvsp" in refusal("microkernel", "parent", "slow")
    assert "try drop" in refusal("microkernel", "netvsp", "error")
    assert "try error" in refusal("microkernel", "storvsp", "drop")
    assert "try netvsp" in refusal("microkernel", "child", "drop")


def test_the_machine_and_a_zygote_take_no_orders() -> None:
    assert fitting("microkernel", "machine") == ("kill",)
    assert set(fitting("microkernel", "zygote")) == set(SIGNALS)


def test_what_does_not_exist_is_refused_by_name() -> None:
    assert "no fault 'burn'" in refusal("microkernel", "parent", "burn")
    assert "the role toaster" in refusal("microkernel", "toaster", "kill")
    assert "parent" in refusal("monolithic", "parent", "kill")
    assert fitting("monolithic", "parent") == ()


@pytest.mark.parametrize(("text", "fault"), [
    ("kill", Fault("kill")),
    ("hang", Fault("hang")),
    ("hang=busy", Fault("hang", "busy")),
    ("oom", Fault("oom")),
    ("oom=16M", Fault("oom", 16 << 20)),
    ("oom=1GiB", Fault("oom", 1 << 30)),
    ("oom=4096", Fault("oom", 4096)),
    ("slow=50ms", Fault("slow", 0.05)),
    ("slow=1.5s", Fault("slow", 1.5)),
    ("slow=250us", Fault("slow", 250e-6)),
    ("error=1%", Fault("error", 0.01)),
    ("error=100%", Fault("error", 1.0)),
    ("drop=0.5%", Fault("drop", 0.005)),
])  # fmt: skip
def test_a_fault_as_it_is_typed(text: str, fault: Fault) -> None:
    parsed = parse(text)
    assert parsed.name == fault.name
    assert parsed.value == (pytest.approx(fault.value) if isinstance(fault.value, float) else fault.value)


@pytest.mark.parametrize(("text", "complaint"), [
    ("slow=50", "slow=50: it takes a time such as 50ms"),
    ("slow=", "it takes a time"),
    ("slow", "it takes a time such as slow=50ms"),
    ("slow=0ms", "it takes a time"),
    ("slow=-5ms", "it takes a time"),
    ("slow=90000s", "it takes a time"),
    ("slow=nan", "it takes a time"),
    ("slow=٣s", "it takes a time"),
    ("error=1", "error=1: it takes a share such as 1%"),
    ("error=101%", "it takes a share"),
    ("error=0%", "it takes a share"),
    ("drop", "it takes a share: drop=1%"),
    ("oom=lots", "it takes a size such as 64M"),
    ("oom=0", "it takes a size"),
    ("hang=quiet", "only hang=busy has a meaning"),
    ("kill=9", "kill takes no value"),
    ("burn", "there is no fault 'burn'"),
    ("", "there is no fault ''"),
])  # fmt: skip
def test_what_is_no_fault_is_told_so(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(text)
    assert str(refused.value).startswith(f"{text}: ")
    assert complaint in str(refused.value)


def test_a_time_by_itself() -> None:
    assert faults.duration("5s") == 5.0
    assert faults.duration("2m") == 120.0
