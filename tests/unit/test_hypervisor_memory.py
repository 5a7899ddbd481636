"""Memory grants: who may map which region of whom, and when a grant ends."""

from __future__ import annotations

import pytest

from vmbus_emu.hypervisor.calls import execute
from vmbus_emu.hypervisor.core import HandOut, Hypervisor, Reply
from vmbus_emu.hypervisor.memory import MAX_GRANTS
from vmbus_emu.hypervisor.tables import Grant, Vp
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Access, Code, HvStatus

ROOT: Vp = (1, 0)
GPA, PAGES = 1 << 32, 256
OTHER_GPA, OTHER_PAGES = 1 << 33, 16
VM, VSP = 2, 3
S = HvStatus


@pytest.fixture
def hypervisor() -> Hypervisor:
    """A guest with two regions of I/O memory, and a VSP in a partition of its own."""
    made = Hypervisor()
    made.bind(ROOT, 100)
    for name in (b"vm1", b"storvsp"):
        execute(made, ROOT, 1, Code.CREATE_PARTITION, hv.CREATE_PARTITION.pack(0, 0, 0, name))
    assert made.add_memory(VM, GPA, PAGES)
    assert made.add_memory(VM, OTHER_GPA, OTHER_PAGES)
    return made


def grant(made: Hypervisor, owner: int = VM, to: int = VSP, gpa: int = GPA, pages: int = PAGES, access: int = 3,
          code: int = Code.MAP_GPA_PAGES) -> tuple[HvStatus, list[HandOut]]:
    effects = execute(made, ROOT, 1, code, hv.GRANT.pack(owner, to, gpa, pages, access))
    (reply,) = (effect for effect in effects if isinstance(effect, Reply))
    assert effects[-1] is reply, "who sees the reply must find the descriptor"
    return reply.status, [effect for effect in effects if isinstance(effect, HandOut)]


def test_a_grant_hands_out_exactly_what_the_table_holds(hypervisor: Hypervisor) -> None:
    expected = Grant(VM, VSP, GPA, PAGES, Access.READ)
    assert grant(hypervisor, access=1) == (S.SUCCESS, [HandOut(expected)])
    assert hypervisor.grants == {expected}
    assert grant(hypervisor, access=1) == (S.OBJECT_IN_USE, [])


@pytest.mark.parametrize(("changes", "status"), [
    ({"pages": 0}, S.INVALID_PARAMETER), ({"pages": PAGES + 1}, S.INVALID_PARAMETER),
    ({"pages": PAGES - 1}, S.INVALID_PARAMETER), ({"pages": 0xFFFFFFFF}, S.INVALID_PARAMETER),
    ({"gpa": GPA - 4096}, S.INVALID_PARAMETER), ({"gpa": GPA + 4096, "pages": PAGES - 1}, S.INVALID_PARAMETER),
    ({"gpa": GPA + 1}, S.INVALID_PARAMETER), ({"gpa": (1 << 64) - 4096}, S.INVALID_PARAMETER),
    ({"gpa": OTHER_GPA}, S.INVALID_PARAMETER), ({"pages": OTHER_PAGES}, S.INVALID_PARAMETER),
    ({"access": 0}, S.INVALID_PARAMETER), ({"access": 4}, S.INVALID_PARAMETER), ({"owner": 99}, S.INVALID_PARTITION_ID),
    ({"to": 99}, S.INVALID_PARTITION_ID), ({"to": VM}, S.INVALID_PARTITION_ID),
    ({"owner": VSP, "to": VM}, S.INVALID_PARAMETER), ({"owner": 1, "to": VM}, S.INVALID_PARAMETER),
    ({}, S.SUCCESS), ({"to": 1}, S.SUCCESS), ({"gpa": OTHER_GPA, "pages": OTHER_PAGES}, S.SUCCESS),
])
def test_only_a_whole_region_is_granted(hypervisor: Hypervisor, changes: dict[str, int], status: HvStatus) -> None:
    answer, handed = grant(hypervisor, **changes)
    assert answer is status
    assert len(handed) == len(hypervisor.grants) == (status is S.SUCCESS)


def test_a_grant_is_taken_back_once(hypervisor: Hypervisor) -> None:
    grant(hypervisor)
    assert grant(hypervisor, code=Code.UNMAP_GPA_PAGES) == (S.SUCCESS, [])
    assert grant(hypervisor, code=Code.UNMAP_GPA_PAGES) == (S.NOT_FOUND, [])
    assert grant(hypervisor)[0] is S.SUCCESS


def test_the_number_of_grants_of_an_owner_is_bounded(hypervisor: Hypervisor) -> None:
    for region in range(MAX_GRANTS + 1):
        assert hypervisor.add_memory(VM, region << 32, 1)
    for region in range(MAX_GRANTS):
        assert grant(hypervisor, gpa=region << 32, pages=1)[0] is S.SUCCESS
    assert grant(hypervisor, gpa=MAX_GRANTS << 32, pages=1) == (S.INSUFFICIENT_MEMORY, [])


def test_a_grant_ends_with_the_process_that_holds_its_descriptor(hypervisor: Hypervisor) -> None:
    hypervisor.bind((VM, 0), 200)
    hypervisor.bind((VSP, 0), 300)
    grant(hypervisor)
    (kept,) = grant(hypervisor, to=1)[1]
    hypervisor.died(300)
    assert hypervisor.grants == {kept.grant}, "the next process in its place has nothing and must be granted anew"
    assert grant(hypervisor)[0] is S.SUCCESS
    hypervisor.died(200)
    assert len(hypervisor.grants) == 2, "the owner's memory outlives its process"


def test_what_was_granted_while_nobody_was_there_is_granted_anew_to_who_comes(hypervisor: Hypervisor) -> None:
    hypervisor.bind((VSP, 0), 101)
    hypervisor.died(101)
    assert grant(hypervisor)[0] is S.SUCCESS        # its descriptor reached nobody
    assert hypervisor.bind((VSP, 0), 102)
    assert grant(hypervisor) == (S.SUCCESS, [HandOut(Grant(VM, VSP, GPA, PAGES, Access.READ | Access.WRITE))])


@pytest.mark.parametrize("gone", [VM, VSP])
def test_grants_end_with_either_side_and_none_begins_afterwards(hypervisor: Hypervisor, gone: int) -> None:
    grant(hypervisor)
    execute(hypervisor, ROOT, 1, Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(gone))
    execute(hypervisor, ROOT, 1, Code.FINALIZE_PARTITION, hv.PARTITION_ID.pack(gone))
    assert hypervisor.grants == set()
    assert grant(hypervisor) == (S.INVALID_PARTITION_STATE, [])
    execute(hypervisor, ROOT, 1, Code.DELETE_PARTITION, hv.PARTITION_ID.pack(gone))
    assert grant(hypervisor) == (S.INVALID_PARTITION_ID, [])


def test_memory_is_fitted_into_partitions_only(hypervisor: Hypervisor) -> None:
    assert not hypervisor.add_memory(99, GPA, PAGES)
