"""A VM's I/O memory: one region per VSP that serves it, each a memory file of its own, granted to that VSP alone."""

from __future__ import annotations

from typing import Any

from vmbus_emu.topology.data import INTEGRATION_COMPONENTS, VmSpec

# Private memory has no guest-physical address that anybody uses, so the regions must only not meet: the largest
# storage region, of 64 disks, is 17 MiB, and there are 4 GiB up to the network's.
STORAGE_GPA = 1 << 32
#: 2048 pages of buffers, and 256 in reserve for one largest transfer that has to be copied; a VM's disks share them.
STORAGE_PAGES = 2048 + 256
#: The rings of one disk's channel.
STORAGE_PAGES_PER_DISK = 32
NETWORK_GPA = 1 << 33
#: One NIC's rings and buffers; NICs share nothing.
NETWORK_PAGES_PER_NIC = 128
INTEGRATION_GPA = 3 << 32
#: The rings of one integration component's channel.
INTEGRATION_PAGES_PER_COMPONENT = 6

#: What a VM without integration services shares with its worker: below 4 GiB, where emulated devices reach. What each
#: channel of the IDE controller needs, buffers for data, and each adapter's rings.
EMULATED_GPA = 1 << 28
EMULATED_PAGES = 2 * 33 + 512
EMULATED_PAGES_PER_NIC = 64


def io_memory(vm: VmSpec) -> list[dict[str, Any]]:
    """The regions of I/O memory that a VM's devices need: who serves it, guest-physical address, pages."""
    if vm.integration_services:
        return synthetic_memory(vm)
    pages = EMULATED_PAGES + EMULATED_PAGES_PER_NIC * len(vm.nics)
    return [{"vsp": "worker", "gpa": EMULATED_GPA, "pages": pages}]


def synthetic_memory(vm: VmSpec) -> list[dict[str, Any]]:
    """The regions of a VM's synthetic devices, by the VSP that serves it.

    They are where the guest's GPADLs point on either transport; only on ``ring`` there is memory behind them.
    """
    regions: list[dict[str, Any]] = []
    if vm.disks:
        pages = STORAGE_PAGES + STORAGE_PAGES_PER_DISK * len(vm.disks)
        regions.append({"vsp": "storvsp", "gpa": STORAGE_GPA, "pages": pages})
    if vm.nics:
        regions.append({"vsp": "netvsp", "gpa": NETWORK_GPA, "pages": NETWORK_PAGES_PER_NIC * len(vm.nics)})
    pages = INTEGRATION_PAGES_PER_COMPONENT * len(INTEGRATION_COMPONENTS)
    regions.append({"vsp": "ic", "gpa": INTEGRATION_GPA, "pages": pages})
    return regions
