"""A server on loopback for tests: started on a free port, waited for, killed, started again, and never left behind.

Each server is watched by a small process (this file, run as a script) that ends it when the process that wanted it is
gone, however that came about. Data folders of a run that was killed are removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import http.client
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self

PREFIX = "sequential-test-server-"
_ports: set[int] = set()  # that were given out, and may not be in use yet
INSTALL = 'pip install -e ".[test]"'
NPM_INSTALL = "with Node.js 20 or later, npm install --no-package-lock --prefix tests"
NODE_MODULES = Path(__file__).parents[1] / "node_modules"


class Missing(Exception):
    """The server is not installed."""

    def __init__(self, name: str, variable: str | None, install: str = INSTALL) -> None:
        instead = f", or set {variable} to the URL of one" if variable else ""
        super().__init__(f"{name} is not installed: {install}{instead}")


class NotStarted(Exception):
    """The server is installed, and does not start."""


class Server:
    """A server of our own in a folder of its own, or the one at an address.

    Args:
        flags: More flags for the server's command line.
        address: The URL of a server that runs already: it is only used, never stopped or killed.

    Raises:
        Missing: On entering, when the server is not installed.
        NotStarted: On entering, when it does not start; with the end of its log.
    """

    name: ClassVar[str]
    variable: ClassVar[str]  # of the environment, for the address
    patience: ClassVar[float] = 60  # seconds; a cold and busy machine has been seen to need ten
    death: ClassVar[signal.Signals] = signal.SIGKILL
    user: int = 0  # who runs it; 0 is whoever we are

    def __init__(self, *flags: str, address: str | None = None) -> None:
        self.flags, self.address = flags, address
        self.process: subprocess.Popen[bytes] | None = None
        self.resources = contextlib.ExitStack()

    @classmethod
    def from_environment(cls) -> Self:
        """The server at the address in the environment, or one of our own."""
        return cls(address=os.environ.get(cls.variable) or None)

    def command(self) -> list[str]:
        """The server's command line."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it serves; an OSError means not yet."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Do what comes before the first start."""

    @property
    def url(self) -> str:
        """The address, in the form that the driver takes."""
        return self.address or self.own_url()

    def own_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def __enter__(self) -> Self:
        if self.address is None:
            self.find()
            _sweep()
            self.port = free_port()
            # Not pytest's tmp_path: its parents are closed to the other user that Postgres needs.
            self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
            try:
                self.prepare()
                self.start()
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.address is None:
            self.stop()

    def find(self) -> Path:
        """Where the server is installed."""
        raise NotImplementedError

    def package(self, module: str) -> Path:
        return package(module) or self.missing()

    def missing(self) -> NoReturn:
        raise Missing(self.name, self.variable)

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def pid(self) -> int:
        return int((self.directory / "pid").read_text())

    def start(self, *, again: bool = False) -> None:
        """Start it and wait until it is ready; with `again` it may have to wait for what is left of the one before."""
        deadline = time.monotonic() + self.patience
        self.watch(self.command())
        while not self.is_ready():
            assert self.process is not None
            code = self.process.poll()
            if time.monotonic() > deadline or (code is not None and not again):
                how = f"is not ready after {self.patience:g} seconds" if code is None else f"ended with code {code}"
                raise NotStarted(f"{self.name} {how}; its log ends with:\n{self.log_end()}")
            if code is not None:
                self.watch(self.command())
            time.sleep(0.02)

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ready()
        return False

    def log_end(self) -> str:
        # So many, because a program in Go tells its stack after its reason.
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-100:])

    def watch(self, command: list[str]) -> None:
        watcher = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(self.death)), str(self.user)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*watcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop their servers
            )

    def run(self, *command: str) -> None:
        """Run a command that ends by itself, as the server's user, its output in the log."""
        self.watch(list(command))
        assert self.process is not None
        code = self.process.wait(self.patience)
        if code:
            raise NotStarted(
                f"{self.name}: {Path(command[0]).name} ended with code {code}; its log ends with:\n{self.log_end()}"
            )

    def kill(self) -> None:
        """Kill the server and all its processes with SIGKILL."""
        assert self.process is not None, f"{self.name} at {self.address} is not ours to kill"
        os.kill(self.pid, signal.SIGSTOP)  # or it may start another one between the look and the blow
        for pid in family(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """Start a killed server again, on the same data and the same port."""
        self.start(again=True)

    def stop(self) -> None:
        """End the server and remove all that it leaves."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        self.resources.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def package(module: str) -> Path | None:
    """The folder of an installed package, which is not imported: that may be slow, or warn."""
    with contextlib.suppress(ModuleNotFoundError):  # a parent of it
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations:
            return Path(spec.submodule_search_locations[0])
    return None


def fetch(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Ask a server over HTTP, and return its status and its answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request(method, path, body)
        with connection.getresponse() as response:
            return response.status, response.read()


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait for something that comes about in another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} seconds: {what}"
        time.sleep(0.01)


def free_port() -> int:
    # Below the ports that the system gives to clients: one of those could take the port while a killed server is away,
    # and a client that knocks at such a port can even be connected to itself.
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _ports:
                _ports.add(port)
                return port


def family(pid: int) -> list[int]:
    """The process and all that it started, where there is a /proc to tell; parents first."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _sweep() -> None:
    """Remove the folders of runs that are gone."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = int(directory.name.removeprefix(PREFIX).split("-")[0])
        with contextlib.suppress(PermissionError):  # it is there, and another's
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                shutil.rmtree(directory, ignore_errors=True)


def _die_with_parent(death: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, death)  # PR_SET_PDEATHSIG: even the watcher can be killed


def _watch(parent: str, death: str, user: str, *command: str) -> int:
    # PR_SET_PDEATHSIG tells when the thread that forked is gone, not its process: so the watcher asks who its parent is.
    other: dict[str, Any] = {"user": int(user), "group": int(user), "extra_groups": []} if user != "0" else {}
    last = functools.partial(_die_with_parent, int(death))
    server = subprocess.Popen(command, preexec_fn=last, **other)  # noqa: PLW1509 - no threads here
    Path("pid").write_text(str(server.pid))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        while os.getppid() == int(parent) and server.poll() is None:
            time.sleep(0.1)
    finally:
        server.send_signal(int(death))
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
    return server.wait()


if __name__ == "__main__":
    sys.exit(_watch(*sys.argv[1:]))
