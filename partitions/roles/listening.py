"""Where a role listens: on the host's loopback, at a port that is given, or one that the kernel chooses."""

from __future__ import annotations

import errno
import os
import socket

LOOPBACK = "127.0.0.1"
#: The kernel's choice for UDP may be taken for TCP.
_ATTEMPTS = 16
_BACKLOG = 64


class ListenFailed(Exception):
    """Why a role cannot listen at the port it was given, and what to try."""


def tcp(port: int, fallback: int = 0) -> socket.socket:
    """A listening socket at ``port``, without waiting calls. 0: at ``fallback`` if that is free, or the kernel's
    choice. ``fallback`` is where the incarnation before listened. Raises :class:`ListenFailed`.
    """
    for candidate in _candidates(port, fallback):
        try:
            return _listen(candidate)
        except OSError as error:
            if candidate == port != 0 or candidate == 0:
                raise _failure(candidate, error) from None
    raise AssertionError("the last candidate returns or raises")


def same_port(port: int, fallback: int = 0) -> tuple[socket.socket, socket.socket]:
    """A UDP socket and a listening TCP socket at the same port, chosen as in :func:`tcp`."""
    for candidate in [*_candidates(port, fallback), *([0] * _ATTEMPTS if not port else [])]:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            udp.bind((LOOPBACK, candidate))
            return udp, _listen(udp.getsockname()[1])
        except OSError as error:
            udp.close()
            if port or error.errno != errno.EADDRINUSE:
                raise _failure(candidate, error) from None
    raise ListenFailed(f"no port of {LOOPBACK} is free for both UDP and TCP; give one with --port")


def _candidates(port: int, fallback: int) -> list[int]:
    return [port] if port else [fallback, 0] if fallback else [0]


def _listen(port: int) -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a death its connections linger
        end.bind((LOOPBACK, port))
        end.listen(_BACKLOG)
    except OSError:
        end.close()
        raise
    return end


def _failure(port: int, error: OSError) -> ListenFailed:
    why = os.strerror(error.errno or 0)
    hint = "give a port above 1023" if error.errno == errno.EACCES else "give another port, or none"
    return ListenFailed(f"it cannot listen at {LOOPBACK}:{port}: {why}; {hint}")
