"""VMBus control plane: connection, channel and GPADL state machines of both sides, as tables. No I/O.

:mod:`~vmbus_emu.vmbus.server` is the provider's end, one object per child partition;
:mod:`~vmbus_emu.vmbus.client` is the child's end. Both take an event and return a list of effects, which
their owner carries out in order. Messages are those of :mod:`vmbus_emu.protocol.vmbus`.
"""
