"""The machine, the stand-in for the physical box: it powers processes on, watches them, owns media and consoles.

``poweron`` is its process's entry, ``machine`` the machine itself. It starts processes in order through ``power``,
forks through ``supervisor`` and ``zygote``, answers through ``front``, and ends through ``shutdown``. It belongs to no
architecture and is on no data path.
"""
