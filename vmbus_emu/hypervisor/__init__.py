"""The hypervisor: partitions, hypercalls, SynIC messages, memory grants. No driver, device or VMBus code.

``tables`` holds what it knows, ``calls`` what may be done to it (no I/O in either), ``process`` puts it on sockets.
"""
