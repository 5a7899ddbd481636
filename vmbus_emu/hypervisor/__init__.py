"""The hypervisor: partitions, hypercalls, SynIC messages, memory grants. No driver, device or VMBus code.

``tables`` holds what it knows, ``changes`` all that can change there, ``calls`` what partitions may do, ``recovery``
what a successor does first (no I/O in any of them). ``ledger`` keeps the changes in memory that outlives the process,
``process`` puts it all on sockets.
"""
