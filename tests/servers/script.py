"""A program of the examples, which works until it is killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.servers.processes import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


class Script(Server):
    """A Python program, started beside the examples.

    Args:
        flags: The command line behind ``python``.
        says: What is in its log once it works.
        settings: More of the environment that it reads.
    """

    name = "script"

    def __init__(self, *flags: str, says: str = "", settings: dict[str, str]) -> None:
        super().__init__(*flags)
        self.says, self.settings = says, settings

    @property
    def environment(self) -> dict[str, str]:
        inherited = super().environment
        path = os.pathsep.join([str(EXAMPLES), inherited["PYTHONPATH"]])
        return {**inherited, "PYTHONPATH": path, **self.settings}

    def find(self) -> Path:
        return Path(sys.executable)

    def command(self) -> list[str]:
        return [sys.executable, *self.flags]

    def ready(self) -> bool:
        return self.says in self.said()

    def said(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()
