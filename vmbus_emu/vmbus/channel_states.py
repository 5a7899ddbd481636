"""The server's states as tables: connection, channel, GPADL (protocol sheet 2.4 and 2.5).

Pure data. :mod:`~vmbus_emu.vmbus.server` and :mod:`~vmbus_emu.vmbus.gpadl_book` interpret it, the tests read
it. A pair of event and state that is not in a table is a protocol error: nothing changes, the message is
dropped and counted.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmbus_emu.protocol.vmbus import (
    CloseChannel,
    GpadlBody,
    GpadlHeader,
    GpadlTeardown,
    InitiateContact,
    Message,
    OpenChannel,
    RelidReleased,
    RequestOffers,
    Unload,
)


class ConnectionState(enum.Enum):
    """The connection. There is no waiting "Connecting" here: we have no monitor pages to map before the answer."""

    DISCONNECTED = "disconnected"    #: the guest has not said hello, or has said goodbye
    CONNECTED = "connected"          #: a version is agreed; the guest has not asked for offers yet
    OFFERED = "offered"              #: every device has been offered; later ones are offered at once
    DISCONNECTING = "disconnecting"  #: waiting until the devices let go of the old connection


class NextAction(enum.Enum):
    """What follows once the devices have let go."""

    NOTHING = enum.auto()
    SEND_UNLOAD_COMPLETE = enum.auto()
    RECONNECT = enum.auto()
    SEND_FAILED_VERSION = enum.auto()


_CHANNEL_MESSAGES = frozenset((OpenChannel, CloseChannel, GpadlHeader, GpadlBody, GpadlTeardown, RelidReleased))

#: The messages that each state acts on. A second REQUESTOFFERS in one connection is an error.
LISTENS: dict[ConnectionState, frozenset[type[Message]]] = {
    ConnectionState.DISCONNECTED: frozenset((InitiateContact,)),
    ConnectionState.CONNECTED: _CHANNEL_MESSAGES | {InitiateContact, Unload, RequestOffers},
    ConnectionState.OFFERED: _CHANNEL_MESSAGES | {InitiateContact, Unload},
    ConnectionState.DISCONNECTING: frozenset((InitiateContact, Unload)),
}


class ChannelState(enum.Enum):
    """One channel, seen from the server."""

    CLIENT_RELEASED = "client released"                #: the guest does not know it (yet, or any more)
    CLOSED = "closed"                                  #: offered, not in use
    OPENING = "opening"                                #: the device is starting
    OPEN = "open"                                      #: in use
    CLOSING = "closing"                                #: the device is stopping
    CLOSING_REOPEN = "closing, reopen"                 #: the same, and the guest has already asked to open again
    REVOKED = "revoked"                                #: the device is gone, the guest has not let go yet
    REOFFERED = "reoffered"                            #: the device is back, the guest has not let go of the old one
    CLOSING_CLIENT_RELEASE = "closing, client release"  #: the device is stopping for a guest that has let go
    OPENING_CLIENT_RELEASE = "opening, client release"  #: the device is starting for a guest that has let go


class ChannelEvent(enum.Enum):
    OPEN = "OPENCHANNEL"
    CLOSE = "CLOSECHANNEL"
    RELEASED = "RELID_RELEASED"
    DEVICE_OPENED = "device answers open: success"
    DEVICE_OPEN_FAILED = "device answers open: failure"
    DEVICE_CLOSED = "device answers close"
    REVOKE = "host revokes"
    REOFFER = "host offers again"
    OFFER = "the guest shall know it"
    RESET = "the connection ends"


class ChannelAction(enum.Enum):
    """What to do besides changing the state."""

    NOTHING = enum.auto()
    IGNORE = enum.auto()              #: the guest cannot have known: count it, no reply
    START_OPEN = enum.auto()          #: ask the device to open with the request at hand
    KEEP_REQUEST = enum.auto()        #: remember the request until the device has closed
    START_CLOSE = enum.auto()         #: ask the device to close
    SEND_OPENED = enum.auto()
    SEND_OPEN_FAILED = enum.auto()
    SEND_OFFER = enum.auto()
    SEND_RESCIND = enum.auto()        #: GPADL waiters are answered first


@dataclass(frozen=True, slots=True)
class ChannelStep:
    #: ``None``: the channel ceases to exist and its relid is free.
    state: ChannelState | None
    action: ChannelAction = ChannelAction.NOTHING


_S, _E, _A, _To = ChannelState, ChannelEvent, ChannelAction, ChannelStep
_KNOWN_TO_DEVICE = (_S.CLOSED, _S.OPENING, _S.OPEN, _S.CLOSING, _S.CLOSING_REOPEN)

CHANNEL_STEPS: dict[ChannelEvent, dict[ChannelState, ChannelStep]] = {
    _E.OPEN: {
        _S.CLOSED: _To(_S.OPENING, _A.START_OPEN),
        _S.CLOSING: _To(_S.CLOSING_REOPEN, _A.KEEP_REQUEST),
        _S.REVOKED: _To(_S.REVOKED, _A.IGNORE),
        _S.REOFFERED: _To(_S.REOFFERED, _A.IGNORE),
    },
    _E.CLOSE: {
        _S.OPEN: _To(_S.CLOSING, _A.START_CLOSE),
        _S.REVOKED: _To(_S.REVOKED, _A.IGNORE),
        _S.REOFFERED: _To(_S.REOFFERED, _A.IGNORE),
    },
    _E.RELEASED: {
        _S.CLOSED: _To(_S.CLIENT_RELEASED),
        _S.CLOSING: _To(_S.CLOSING_CLIENT_RELEASE),
        _S.REVOKED: _To(None),
        _S.REOFFERED: _To(_S.CLOSED, _A.SEND_OFFER),
    },
    _E.DEVICE_OPENED: {
        _S.OPENING: _To(_S.OPEN, _A.SEND_OPENED),
        _S.OPENING_CLIENT_RELEASE: _To(_S.CLOSING_CLIENT_RELEASE, _A.START_CLOSE),
    },
    _E.DEVICE_OPEN_FAILED: {
        _S.OPENING: _To(_S.CLOSED, _A.SEND_OPEN_FAILED),
        _S.OPENING_CLIENT_RELEASE: _To(_S.CLIENT_RELEASED),
    },
    _E.DEVICE_CLOSED: {
        _S.CLOSING: _To(_S.CLOSED),
        _S.CLOSING_REOPEN: _To(_S.OPENING, _A.START_OPEN),
        _S.CLOSING_CLIENT_RELEASE: _To(_S.CLIENT_RELEASED),
    },
    _E.REVOKE: {
        **dict.fromkeys(_KNOWN_TO_DEVICE, _To(_S.REVOKED, _A.SEND_RESCIND)),
        _S.REOFFERED: _To(_S.REVOKED),  # the guest has its RESCIND already
        _S.CLIENT_RELEASED: _To(None),
        _S.CLOSING_CLIENT_RELEASE: _To(None),
        _S.OPENING_CLIENT_RELEASE: _To(None),
    },
    _E.REOFFER: {
        _S.REVOKED: _To(_S.REOFFERED),
    },
    _E.OFFER: {
        _S.CLIENT_RELEASED: _To(_S.CLOSED, _A.SEND_OFFER),
    },
    _E.RESET: {
        _S.CLIENT_RELEASED: _To(_S.CLIENT_RELEASED),
        _S.CLOSED: _To(_S.CLIENT_RELEASED),
        _S.OPENING: _To(_S.OPENING_CLIENT_RELEASE),
        _S.OPEN: _To(_S.CLOSING_CLIENT_RELEASE, _A.START_CLOSE),
        _S.CLOSING: _To(_S.CLOSING_CLIENT_RELEASE),
        _S.CLOSING_REOPEN: _To(_S.CLOSING_CLIENT_RELEASE),
        _S.REVOKED: _To(None),
        _S.REOFFERED: _To(_S.CLIENT_RELEASED),
        _S.CLOSING_CLIENT_RELEASE: _To(_S.CLOSING_CLIENT_RELEASE),
        _S.OPENING_CLIENT_RELEASE: _To(_S.OPENING_CLIENT_RELEASE),
    },
}

#: States in which the guest may name the channel in a message.
GUEST_KNOWS = frozenset((*_KNOWN_TO_DEVICE, _S.REVOKED, _S.REOFFERED))


class GpadlState(enum.Enum):
    """One GPADL, seen from the server."""

    IN_PROGRESS = "in progress"                     #: bodies are missing
    OFFERED = "offered"                             #: given to the device, which has not answered
    OFFERED_TEARING_DOWN = "offered, tearing down"  #: the same, but the connection has ended meanwhile
    ACCEPTED = "accepted"                           #: the device uses it
    TEARING_DOWN = "tearing down"                   #: the device is letting go


class GpadlEvent(enum.Enum):
    COMPLETE = "the last body"
    COMPLETE_REVOKED = "the last body, the device is gone"
    ACCEPTED = "device accepts"
    REJECTED = "device rejects"
    TEARDOWN = "GPADL_TEARDOWN"
    TEARDOWN_REVOKED = "GPADL_TEARDOWN, the device is gone"
    TORN_DOWN = "device has let go"
    REVOKE = "host revokes the channel"
    RESET = "the connection ends, or the guest releases the channel"


class GpadlAction(enum.Enum):
    NOTHING = enum.auto()
    ASK_ACCEPT = enum.auto()
    ASK_TEARDOWN = enum.auto()
    SEND_CREATED = enum.auto()
    SEND_FAILED = enum.auto()
    SEND_TORNDOWN = enum.auto()       #: unless the guest that asked is gone


@dataclass(frozen=True, slots=True)
class GpadlStep:
    #: ``None``: the GPADL ceases to exist.
    state: GpadlState | None
    action: GpadlAction = GpadlAction.NOTHING


_GS, _GE, _GA, _GTo = GpadlState, GpadlEvent, GpadlAction, GpadlStep

GPADL_STEPS: dict[GpadlEvent, dict[GpadlState, GpadlStep]] = {
    _GE.COMPLETE: {_GS.IN_PROGRESS: _GTo(_GS.OFFERED, _GA.ASK_ACCEPT)},
    _GE.COMPLETE_REVOKED: {_GS.IN_PROGRESS: _GTo(_GS.ACCEPTED, _GA.SEND_CREATED)},
    _GE.ACCEPTED: {
        _GS.OFFERED: _GTo(_GS.ACCEPTED, _GA.SEND_CREATED),
        _GS.OFFERED_TEARING_DOWN: _GTo(_GS.TEARING_DOWN, _GA.ASK_TEARDOWN),
    },
    _GE.REJECTED: {
        _GS.OFFERED: _GTo(None, _GA.SEND_FAILED),
        _GS.OFFERED_TEARING_DOWN: _GTo(None),
    },
    _GE.TEARDOWN: {_GS.ACCEPTED: _GTo(_GS.TEARING_DOWN, _GA.ASK_TEARDOWN)},
    _GE.TEARDOWN_REVOKED: {_GS.ACCEPTED: _GTo(None, _GA.SEND_TORNDOWN)},
    _GE.TORN_DOWN: {_GS.TEARING_DOWN: _GTo(None, _GA.SEND_TORNDOWN)},
    _GE.REVOKE: {
        _GS.IN_PROGRESS: _GTo(_GS.IN_PROGRESS),
        _GS.OFFERED: _GTo(None, _GA.SEND_FAILED),
        _GS.OFFERED_TEARING_DOWN: _GTo(None),
        _GS.ACCEPTED: _GTo(_GS.ACCEPTED),
        _GS.TEARING_DOWN: _GTo(None, _GA.SEND_TORNDOWN),
    },
    _GE.RESET: {
        _GS.IN_PROGRESS: _GTo(None),
        _GS.OFFERED: _GTo(_GS.OFFERED_TEARING_DOWN),
        _GS.OFFERED_TEARING_DOWN: _GTo(_GS.OFFERED_TEARING_DOWN),
        _GS.ACCEPTED: _GTo(_GS.TEARING_DOWN, _GA.ASK_TEARDOWN),
        _GS.TEARING_DOWN: _GTo(_GS.TEARING_DOWN),
    },
}
