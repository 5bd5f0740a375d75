"""A proxy on loopback between a client and its server: it counts the round trips, and can lose an answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Hands on what goes to and fro.

    Args:
        url: The server's URL, with a host and a port.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.round_trips = 0
        self.lose_after: int | None = None
        """How many requests are still answered before an answer is lost, and its connection with it."""

    @property
    def url(self) -> str:
        """The server's URL, by way of this proxy."""
        user, at, _ = self._parts.netloc.rpartition("@")
        return self._parts._replace(netloc=f"{user}{at}127.0.0.1:{self._listener.getsockname()[1]}").geturl()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection((self._parts.hostname or "", self._parts.port or 0)) as server:
            with self._lock:
                self._open |= {client, server}
            asking = [False]
            back = threading.Thread(target=self._hand_on, args=(server, client, asking, False), daemon=True)
            back.start()
            self._hand_on(client, server, asking, True)
            back.join()
            with self._lock:
                self._open -= {client, server}

    def _hand_on(self, source: socket.socket, target: socket.socket, asking: list[bool], to_server: bool) -> None:
        """Hand on what comes from one side, and count whenever the direction turns."""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    turned = asking[0] != to_server
                    asking[0] = to_server
                    self.round_trips += turned and to_server
                    lost = turned and not to_server and self.lose_after == 0
                    if turned and not to_server and self.lose_after is not None:
                        self.lose_after = None if lost else self.lose_after - 1
                if lost:
                    break
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
