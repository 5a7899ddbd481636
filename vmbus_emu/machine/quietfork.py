"""Loads the third-party libraries of a machine so that forking stays cheap. Imported before anything else of ours.

``threading``, ``random`` and ``logging`` register functions that Python runs in every forked child. They mend what a
fork breaks in a process with threads, held locks or shared random numbers; a machine and its zygotes have none of
these (:func:`vmbus_emu.node.enter` reseeds). But running them writes to pages all over the heap, which would cost
every VM 0.5 MB of its own. So while these modules are loaded, nothing is registered.
"""

import os

_register = os.register_at_fork


def _ignore(**hooks: object) -> None:
    """In place of ``os.register_at_fork``."""


os.register_at_fork = _ignore
try:
    import ctypes
    import logging
    import random
    import threading

    import msgpack
    import setproctitle
    import zmq
finally:
    os.register_at_fork = _register

LOADED = (ctypes, logging, random, threading, msgpack, setproctitle, zmq)
