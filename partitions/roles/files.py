"""The role ``files``: the run's logs, crash files and reports over HTTP, on the host's loopback, to be read only.

The standard library's server, which blocks: so it runs in worker threads, a bounded number of them, and the process's
loop stays free (design: rule 14). What is not below one of the shared folders does not exist for it, wherever a path or
a symbolic link leads.
"""

from __future__ import annotations

import contextlib
import html
import os
import socket
import stat
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import HTTPServer, SimpleHTTPRequestHandler
from io import BytesIO
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from partitions.roles.listening import LOOPBACK, ListenFailed, tcp
from vmbus_emu.lifeline import Message
from vmbus_emu.node import Node

#: Folders of the run folder that are shared. Sockets, the lock and the list of processes are nobody's business.
SHARED = ("logs", "crashes", "reports")
#: Into which users put what they want to share.
REPORTS = "reports"
#: Requests at a time; who comes then is told to come again.
MOST_REQUESTS = 16
#: How long a client may be silent, in seconds.
SILENCE_S = 10.0


def resolved(root: str, target: str) -> str | None:
    """The file or folder that the target of a request names; ``None`` if that is not shared, or not there.

    ``root``: the run folder. The root of the share itself is ``root``.
    """
    path = unquote(urlsplit(target).path, errors="surrogateescape")
    if "\0" in path or not path.startswith("/"):
        return None
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts:
        return root
    if ".." in parts or parts[0] not in SHARED:
        return None
    root = os.path.realpath(root)
    found = os.path.realpath(os.path.join(root, *parts))
    if not found.startswith(os.path.join(root, parts[0]) + os.sep) and found != os.path.join(root, parts[0]):
        return None                                 # a link led out of it
    try:
        mode = os.stat(found).st_mode
    except OSError:
        return None
    return found if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None


class _Handler(SimpleHTTPRequestHandler):
    """GET and HEAD. The class's own idea of paths is not used."""

    server: _Server
    server_version = "vmbus-emu"
    sys_version = ""
    timeout = SILENCE_S

    def translate_path(self, path: str) -> str:
        return resolved(self.server.root, path) or ""

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        is_text = os.path.basename(path).rstrip(".0123456789").endswith((".log", ".txt"))  # NAME.log.1 is older
        return "text/plain; charset=utf-8" if is_text else super().guess_type(path)

    def send_head(self) -> BytesIO | BinaryIO | None:
        found = resolved(self.server.root, self.path)
        self.server.count("requests" if found else "not_found")
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND, "Not shared, or not there")
            return None
        if found == self.server.root:
            return self._contents()
        if not os.path.isdir(found):
            return super().send_head()
        if not urlsplit(self.path).path.endswith("/"):
            self.send_response(HTTPStatus.MOVED_PERMANENTLY)
            self.send_header("Location", urlsplit(self.path).path + "/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self.list_directory(found)           # and no index.html, which could be a link

    def _contents(self) -> BytesIO:
        """The root: which folders there are."""
        there = [name for name in SHARED if os.path.isdir(os.path.join(self.server.root, name))]
        items = "".join(f'<li><a href="{name}/">{name}/</a></li>' for name in there)
        title = f"vmbus-emu: {html.escape(os.path.basename(self.server.root))}"
        page = f"<!DOCTYPE html><title>{title}</title><h1>{title}</h1><ul>{items}</ul>\n".encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        return BytesIO(page)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a log that is shared would grow by being read."""


class _Server(HTTPServer):
    """A thread per request, at most :data:`MOST_REQUESTS` of them."""

    def __init__(self, end: socket.socket, root: str) -> None:
        super().__init__(end.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = end
        self.root = root
        self.counters = dict.fromkeys(("requests", "not_found", "refused"), 0)
        self._free = threading.BoundedSemaphore(MOST_REQUESTS)
        self._lock = threading.Lock()

    def accept(self) -> None:
        """Somebody connects."""
        try:
            request, address = self.get_request()
        except OSError:
            return                                  # or is gone again
        self.process_request(request, address)

    def count(self, name: str) -> None:
        with self._lock:
            self.counters[name] += 1

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.count("refused")
            request.setblocking(False)
            with contextlib.suppress(OSError):
                request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n")
            self.shutdown_request(request)
            return
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            with contextlib.suppress(OSError):      # the client is gone
                self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)
            self._free.release()


class FilesRole:
    """Told its port at its start."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._server: _Server | None = None

    def start(self, config: Message) -> None:
        try:
            end = tcp(config["port"], config["fallback"])
        except ListenFailed as error:
            self._node.lifeline.send({"t": "not_started", "component": self._node.name, "why": str(error)})
            return
        os.makedirs(os.path.join(self._node.folder, REPORTS), mode=0o700, exist_ok=True)
        server = self._server = _Server(end, self._node.folder)
        self._node.loop.watch(end.fileno(), lambda events: server.accept())
        port = end.getsockname()[1]
        self._node.ready(
            self._node.name, port=port, listens=[f"tcp {LOOPBACK}:{port}"], hint=f"curl http://{LOOPBACK}:{port}/logs/"
        )

    def handle(self, message: Message, fds: list[int]) -> None:
        """Nothing the machine tells concerns it."""

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        counters = dict(self._server.counters) if self._server is not None else {}
        return {self._node.name: {"io": counters.get("requests", 0), "counters": counters}}
