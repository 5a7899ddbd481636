"""The hypervisor's interface as data: call codes, status values, privileges, parameter blocks, SynIC messages.

Protocol sheet sections 1.1-1.6. All integers are little-endian. What travels between a partition and the
hypervisor is msgpack around these real blocks (see the envelopes at the end); docs/fidelity.md lists what differs.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

PARTITION_INVALID = 0
PARTITION_ROOT = 1
PARTITION_SELF = (1 << 64) - 1

VP_SELF = 0xFFFFFFFE
VP_ANY = 0xFFFFFFFF

PAGE = 4096
MAX_PAYLOAD = 240
MESSAGE_BUFFERS_PER_PORT = 16
MAX_ID = (1 << 24) - 1          # port and connection ids have 24 significant bits
EVENT_FLAGS_PER_SINT = 2048

SINT_INTERCEPT = 0
SINT_VMBUS = 2
SINT_CONTROL = 5                # ours: provider, VSPs in other partitions, management

# -- message types (1.6) ------------------------------------------------------------------------------

MESSAGE_VMBUS = 1
MESSAGE_CONTROL = 0x10          # ours: see partitions/parent/vsplink.py
#: Ours, from the parent partition: whoever lost it to a reset can find the new incarnation now (no payload).
MESSAGE_PARENT_BACK = 0x11
MESSAGE_HYPERVISOR_BIT = 0x80000000
#: Ours, in the hypervisor's own range: the parent partition is a new incarnation, or gone (payload: u32).
MESSAGE_PARENT_RESET = 0x8000F001
MESSAGE_IO_PORT_INTERCEPT = 0x80010000

# -- well-known connections of a child (1.6) ----------------------------------------------------------

CONNECTION_VMBUS_OLD = 1        # protocol below 5.0
CONNECTION_VMBUS = 4            # INITIATE_CONTACT from 5.0 on


class Code(enum.IntEnum):
    """Call codes that are implemented; every other one answers INVALID_HYPERCALL_CODE."""

    CREATE_PARTITION = 0x40
    INITIALIZE_PARTITION = 0x41
    FINALIZE_PARTITION = 0x42
    DELETE_PARTITION = 0x43
    GET_PARTITION_PROPERTY = 0x44
    GET_PARTITION_ID = 0x46
    GET_NEXT_CHILD_PARTITION = 0x47
    MAP_GPA_PAGES = 0x4B
    UNMAP_GPA_PAGES = 0x4C
    INSTALL_INTERCEPT = 0x4D
    SET_VP_REGISTERS = 0x51
    DELETE_PORT = 0x58
    DISCONNECT_PORT = 0x5B
    POST_MESSAGE = 0x5C
    SIGNAL_EVENT = 0x5D
    ASSERT_VIRTUAL_INTERRUPT = 0x94
    CREATE_PORT = 0x95
    CONNECT_PORT = 0x96
    START_VIRTUAL_PROCESSOR = 0x99


class HvStatus(enum.IntEnum):
    SUCCESS = 0
    INVALID_HYPERCALL_CODE = 2
    INVALID_HYPERCALL_INPUT = 3
    INVALID_PARAMETER = 5
    ACCESS_DENIED = 6
    INVALID_PARTITION_STATE = 7
    OPERATION_DENIED = 8
    INSUFFICIENT_MEMORY = 0xB
    INVALID_PARTITION_ID = 0xD
    INVALID_VP_INDEX = 0xE
    NOT_FOUND = 0x10
    INVALID_PORT_ID = 0x11
    INVALID_CONNECTION_ID = 0x12
    INSUFFICIENT_BUFFERS = 0x13
    INVALID_VP_STATE = 0x15
    OBJECT_IN_USE = 0x19


class Privilege(enum.IntFlag):
    """Bits of a partition's privilege mask (1.1)."""

    CREATE_PARTITIONS = 1 << 32
    ACCESS_PARTITION_ID = 1 << 33
    ACCESS_MEMORY_POOL = 1 << 34
    POST_MESSAGES = 1 << 36
    SIGNAL_EVENTS = 1 << 37
    CREATE_PORT = 1 << 38
    CONNECT_PORT = 1 << 39


ROOT_PRIVILEGES = (
    Privilege.CREATE_PARTITIONS
    | Privilege.ACCESS_PARTITION_ID
    | Privilege.ACCESS_MEMORY_POOL
    | Privilege.POST_MESSAGES
    | Privilege.SIGNAL_EVENTS
    | Privilege.CREATE_PORT
    | Privilege.CONNECT_PORT
)
CHILD_PRIVILEGES = Privilege.POST_MESSAGES | Privilege.SIGNAL_EVENTS


class PortType(enum.IntEnum):
    """Port types (1.3); a monitor port (3) is never made."""

    MESSAGE = 1
    EVENT = 2
    DOORBELL = 4


class Property(enum.IntEnum):
    """Partition properties. The real property codes number in the tens of thousands; the last three are ours."""

    PRIVILEGES = 0x00010000     # the real code of the privilege mask
    PROCESS_ID = 0x00F00000     # ours: the pid that stands in for VP 0
    STATE = 0x00F00001          # ours: the life-cycle state (hypervisor/tables.py)
    STARTING = 0x00F00002       # ours: 1 while StartVirtualProcessor waits for the machine


class Access(enum.IntFlag):
    """What a memory grant allows."""

    READ = 1
    WRITE = 2


# -- parameter blocks (1.3) ---------------------------------------------------------------------------

#: CreatePartition: flags, proximity, compatibility version, pad, 32 bytes of property blocks. Ours carry the
#: component's name there, so that StartVirtualProcessor can tell the machine what to power on.
CREATE_PARTITION = struct.Struct("<QQI4x32s")
PARTITION_ID = struct.Struct("<Q")
GET_PROPERTY = struct.Struct("<QI4x")
#: GetNextChildPartition: the parent, and the child before the wanted one (0: the first is wanted).
NEXT_CHILD = struct.Struct("<QQ")
PROPERTY_VALUE = struct.Struct("<Q")
#: MapGpaPages / UnmapGpaPages, in our form of a grant: owner, grantee, first GPA, pages, access. In the upper half of
#: the access stands the grantee's VP whose process gets the memory; it is 0 but for a worker in the root partition.
GRANT = struct.Struct("<QQQII")
GRANT_VP_SHIFT = 16
DELETE_PORT = struct.Struct("<QII")
DISCONNECT_PORT = struct.Struct("<QI4x")
#: PostMessage header; the payload follows.
POST_MESSAGE = struct.Struct("<IIII")
SIGNAL_EVENT = struct.Struct("<IHH")
#: CreatePort: owner, port id, VTLs, connection partition, port info (type, pad, sint, vp, base flag, flag count,
#: rsvd, pad) and proximity.
CREATE_PORT = struct.Struct("<QIBBHQIIIIHHIQ")
#: ConnectPort: connecting partition, connection id, VTL, port partition, port id, rsvd, connection info, proximity.
CONNECT_PORT = struct.Struct("<QIB3xQI4x32sQ")
START_VP = struct.Struct("<QIB3x")

#: HV_MESSAGE header (1.5): type, payload size, flags, reserved, sender (the port id).
MESSAGE_HEADER = struct.Struct("<IBBHQ")


@dataclass(frozen=True, slots=True)
class SynicMessage:
    """A message out of a SynIC slot: ``payload`` has at most 240 bytes; ``port`` is the receiving port's id."""

    kind: int
    port: int
    payload: bytes

    def encode(self) -> bytes:
        return MESSAGE_HEADER.pack(self.kind, len(self.payload), 0, 0, self.port) + self.payload

    @classmethod
    def decode(cls, raw: bytes) -> SynicMessage | None:
        """``None`` if ``raw`` is not a whole message."""
        if len(raw) < MESSAGE_HEADER.size:
            return None
        kind, size, _, _, port = MESSAGE_HEADER.unpack_from(raw)
        if size > MAX_PAYLOAD or len(raw) != MESSAGE_HEADER.size + size:
            return None
        return cls(kind, port, raw[MESSAGE_HEADER.size:])


def control_word(code: int) -> int:
    """The input control word of a simple call (1.2): only the call code is nonzero."""
    return code & 0xFFFF


def call_code(control: int) -> int | None:
    """The call code of a control word, ``None`` if a must-be-zero or unsupported (rep, nested, fast) bit is set."""
    return None if control >> 16 else control


# -- envelopes ----------------------------------------------------------------------------------------

#: What travels over the ZeroMQ socket between a partition and the hypervisor: msgpack arrays, by first element.
TO_HYPERVISOR_CALL = 0          # [0, sequence, control word, input block]
TO_HYPERVISOR_EOM = 1           # [1, port id, number]: the port's messages up to this one left their buffers
TO_HYPERVISOR_EVENT_SEEN = 2    # [2, sint, flag number]
TO_HYPERVISOR_ANSWERED = 3      # [3, sequence]: the answers of all calls before this one have arrived
TO_HYPERVISOR_EOI = 4           # [4, vector]: the interrupt was taken, and may be raised again
TO_HYPERVISOR_TRAP = 5          # [5, sequence, trap block]: an access to a port; the answer is a result
TO_PARTITION_RESULT = 0         # [0, sequence, result word, output block]
TO_PARTITION_MESSAGE = 1        # [1, sint, HV_MESSAGE, number]: a later message of any port has a higher one
TO_PARTITION_EVENT = 2          # [2, sint, flag number]
TO_PARTITION_INTERRUPT = 3      # [3, vector]
MAX_ENVELOPE = 1024
#: Calls of a VP process have the sequence numbers 1, 2, 3 ... From the oldest that has no answer yet to the newest
#: there may be so many.
MAX_CALLS = 4096
#: A VP says TO_HYPERVISOR_ANSWERED at least this often, counted in calls.
CALLS_PER_ANSWERED = 32
