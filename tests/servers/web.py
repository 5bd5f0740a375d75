"""Web servers that serve the applications in tests/http/app.py, and the sweep beside them.

Run as a script, this is any program in Python on a host whose clock is wrong: ``web.py AHEAD SPEED SINCE MODULE ...``.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.servers.processes import Server, family, fetch, free_port


class Clock(NamedTuple):
    """A host's clock, which may be wrong."""

    ahead: float = 0.0
    speed: float = 1.0
    since: float = 0.0
    """When it was right, apart from ``ahead``."""

    def now(self, true: Callable[[], float] = time.time) -> float:
        return self.since + self.ahead + (true() - self.since) * self.speed

    def command(self, module: str, *arguments: str) -> list[str]:
        """The command line of a module, on a host with this clock."""
        wrong = [] if self == RIGHT else ["tests.servers.web", *map(str, self)]
        return [sys.executable, "-m", *wrong, module, *arguments]


RIGHT = Clock()


class Program(Server):
    """A module that is run, on a host of its own.

    Args:
        arguments: Of its command line.
        settings: More of the environment.
        clock: The host's.
    """

    module: str

    def __init__(self, *arguments: str, settings: dict[str, str], clock: Clock = RIGHT) -> None:
        super().__init__(*arguments)
        self.settings, self.clock = settings, clock

    def find(self) -> Path:
        return self.package(self.module)

    @property
    def environment(self) -> dict[str, str]:
        # It is killed at the end, and so would be slowed down by a measurement that it never reports.
        inherited = {name: value for name, value in super().environment.items() if not name.startswith("COVERAGE_")}
        return {**inherited, **self.settings}

    def command(self) -> list[str]:
        return self.clock.command(self.module, *self.flags)

    def ready(self) -> bool:
        return True


class Sweeper(Program):
    name = module = "sequential"
    variable = "SEQUENTIAL_TEST_SWEEPER"


class WebServer(Program):
    """A server of one of the applications in tests/http/app.py.

    Args:
        app: The application's name there, or ``module:name`` of one elsewhere.
        arguments: More for the server's command line.
        settings: For the application.
        clock: The host's.
        port: A free one, for those who have to know it beforehand.
    """

    variable = "SEQUENTIAL_TEST_WEB"

    def __init__(
        self, app: str, *arguments: str, settings: dict[str, str], clock: Clock = RIGHT, port: int | None = None
    ) -> None:
        super().__init__(*arguments, settings=settings, clock=clock)
        self.app, self._wanted = app, port or free_port()

    def prepare(self) -> None:
        self.port = self._wanted

    @property
    def environment(self) -> dict[str, str]:
        return {"SEQUENTIAL_URL": self.url, **super().environment}

    def command(self) -> list[str]:
        app = self.app if ":" in self.app else f"tests.http.app:{self.app}"
        return self.clock.command(self.module, app, *self.options(), *self.flags)

    def options(self) -> list[str]:
        """Those that say where to listen, and how."""
        raise NotImplementedError

    def ready(self) -> bool:
        return fetch(self.port, "GET", "/")[0] == 404

    def freeze(self) -> None:
        """Stop it wherever it is, as a platform does that freezes a function."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, blow: signal.Signals) -> None:
        for pid in family(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, blow)


class Uvicorn(WebServer):
    name = module = "uvicorn"

    def options(self) -> list[str]:
        return ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning"]


class Hypercorn(WebServer):
    name = module = "hypercorn"

    def options(self) -> list[str]:
        return ["--bind", f"127.0.0.1:{self.port}"]


class Gunicorn(WebServer):
    name = module = "gunicorn"

    def options(self) -> list[str]:
        return ["--bind", f"127.0.0.1:{self.port}", "--no-control-socket"]


if __name__ == "__main__":
    time.time = Clock(*map(float, sys.argv[1:4])).now
    sys.argv = sys.argv[4:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
