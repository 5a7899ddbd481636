"""The GUIDs of VMBus devices: which interface a channel speaks, and the fixed instances (protocol sheet 6).

On the wire a GUID is 16 bytes in mixed order: ``uuid.UUID.bytes_le``.
"""

from __future__ import annotations

from uuid import UUID

NETWORK = UUID("f8615163-df3e-46c5-913f-f2d2f965ed0e")
SCSI = UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
IDE = UUID("32412632-86cb-44a2-9b5c-50d1417354f5")
FIBRE_CHANNEL = UUID("2f9bcc4a-0069-4af3-b76b-6fd0be528cda")
KEYBOARD = UUID("f912ad6d-2b17-48ea-bd65-f927a61c7684")
MOUSE = UUID("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a")
VIDEO = UUID("da0a7802-e377-4aac-8e77-0558eb1073f8")
DYNAMIC_MEMORY = UUID("525074dc-8985-46e2-8057-a307dc18a502")
HEARTBEAT = UUID("57164f39-9115-4e78-ab55-382f3bd5422d")
TIME_SYNC = UUID("9527e630-d0ae-497b-adce-e80ab0175caf")
SHUTDOWN = UUID("0e0b6031-5213-4934-818b-38d90ced39db")
KVP = UUID("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6")
VSS = UUID("35fa2e29-ea23-4236-96ae-3a6ebacba440")
FILE_COPY = UUID("34d14be3-dee4-41c8-9ae7-6b174977c192")
PCI = UUID("44c4f61d-4444-4400-9d52-802e27ede19f")
RDMA = UUID("8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501")
AVMA_1 = UUID("f8e65716-3cb3-4a06-9a60-1889c5cccab5")
AVMA_2 = UUID("3375baf4-9e15-4b30-b765-67acb10d607b")
REMOTE_DESKTOP = UUID("276aacf4-ac15-426c-98dd-7521ad3f01fe")

#: Interface GUID to the words that a listing shows.
INTERFACE_NAMES: dict[UUID, str] = {
    NETWORK: "Synthetic network adapter",
    SCSI: "Synthetic SCSI controller",
    IDE: "Synthetic IDE controller",
    FIBRE_CHANNEL: "Synthetic fibre channel adapter",
    KEYBOARD: "Synthetic keyboard",
    MOUSE: "Synthetic mouse",
    VIDEO: "Synthetic video adapter",
    DYNAMIC_MEMORY: "Dynamic memory",
    HEARTBEAT: "Heartbeat",
    TIME_SYNC: "Time synchronization",
    SHUTDOWN: "Shutdown",
    KVP: "Data exchange (KVP)",
    VSS: "Backup (VSS)",
    FILE_COPY: "Guest file copy",
    PCI: "PCI Express passthrough",
    RDMA: "Network direct (RDMA)",
    AVMA_1: "Virtual machine activation 1",
    AVMA_2: "Virtual machine activation 2",
    REMOTE_DESKTOP: "Remote desktop",
}

#: The instance of each interface that a machine has only one of.
SINGLE_INSTANCES: dict[UUID, UUID] = {
    SHUTDOWN: UUID("b6650ff7-33bc-4840-8048-e0676786f393"),
    TIME_SYNC: UUID("2dd1ce17-079e-403c-b352-a1921ee207ee"),
    HEARTBEAT: UUID("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"),
    KVP: UUID("242ff919-07db-4180-9c2e-b86cb68c8c55"),
    VSS: UUID("2450ee40-33bf-4fbd-892e-9fb06e9214cf"),
    FILE_COPY: UUID("eb765408-105f-49b6-b4aa-c123b64d17d4"),
    DYNAMIC_MEMORY: UUID("1eccfd72-4b41-45ef-b73a-4a6e44c12924"),
    MOUSE: UUID("58f75a6d-d949-4320-99e1-a2a2576d581c"),
    KEYBOARD: UUID("d34b2567-b9b6-42b9-8778-0a4ec0b955bf"),
    VIDEO: UUID("5620e0c7-8062-4dce-aeb7-520c7ef76171"),
}

#: A Linux hvsock service is this GUID with its port in the first field.
_HVSOCK_REST = UUID("00000000-facb-11e6-bd58-64006a7986d3").int


def interface_name(interface: UUID) -> str:
    """What ``lsvmbus`` calls a channel of this interface; ``Unknown`` if nobody here knows it."""
    name = INTERFACE_NAMES.get(interface)
    if name is not None:
        return name
    if interface.int & (1 << 96) - 1 == _HVSOCK_REST:
        return f"Socket service, port {interface.int >> 96}"
    return "Unknown"
