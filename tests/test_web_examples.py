"""Every example with a server is started as its first lines say, and used as they say, in a directory of its own."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from string import Template
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from sequential import FlowExecutor, stores
from tests.conftest import absent, required
from tests.servers.processes import Missing, Server, package, until

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {  # what has to be installed for each, beside its framework's server
    "web_asgi": ["uvicorn"],
    "web_fastapi": ["fastapi", "uvicorn"],
    "web_flask": ["flask", "gunicorn"],
    "web_django": ["django", "gunicorn"],
    "web_functions": ["functions_framework"],
}
SERVERS = ("uvicorn ", "gunicorn ", "functions-framework ")


class Answer(NamedTuple):
    status: int
    said: Any


class Customer(NamedTuple):
    """Somebody who does what the lines of an example say.

    Args:
        url: Where the example is served.
        settings: The environment.
        lines: The command lines of curl: to order, to look, to approve, and what comes behind.
    """

    url: str
    settings: dict[str, str]
    lines: list[str]

    def order(self) -> str:
        answer = curl(self.lines[0], self.settings)
        assert answer.status == 202
        id: str = answer.said["id"]
        return id

    def look(self, id: str) -> Answer:
        return curl(self.lines[1].replace("ID", id), self.settings)

    def approve(self, id: str) -> Answer:
        return curl(self.lines[2].replace("ID", id), self.settings)

    def status(self, id: str) -> str:
        answer = self.look(id)
        assert answer.status == 200
        status: str = answer.said["status"]
        return status

    def waits_until(self, id: str, status: str) -> None:
        until(lambda: self.status(id) == status, f"order {id} is {status}")

    def goes_through(self) -> None:
        """Order, look, approve and look again; and try what is not allowed."""
        id = self.order()
        self.waits_until(id, "waiting")
        assert self.look(id) == (200, {"status": "waiting", "value": None})
        assert curl(f"curl -X POST {self.settings['SEQUENTIAL_URL']}/resume/{id}").status == 401
        assert self.approve(id) == (200, {"taken": True})
        self.waits_until(id, "finished")
        value = self.look(id).said["value"]
        assert value["parcel"] == "parcel with lamp"
        assert re.fullmatch(rf"40 paid, {id}:[\w-]+:2", value["receipt"])
        assert self.approve(id).status == 409
        for unknown in ("nobody", "*", "x" * 201):
            assert (self.look(unknown).status, self.approve(unknown).status) == (404, 404)
        assert curl(f"curl -X POST {self.url}/orders").status in {400, 422}
        assert curl(f"curl -X POST {self.url}/nowhere").status == 404


class Example(Server):
    """One of the examples, copied into a folder and started there, beside an order that is late."""

    variable = "SEQUENTIAL_TEST_WEB"
    death = signal.SIGTERM  # as a platform ends a server

    def __init__(self, example: str) -> None:
        super().__init__()
        self.example = self.name = example  # type: ignore[misc]

    def find(self) -> Path:
        return {module: self.package(module) for module in NEEDS[self.example]}.popitem()[1]

    def prepare(self) -> None:
        source = EXAMPLES / f"{self.example}.py"
        shutil.copy(source, self.directory)
        lines = commands_of(source, self.port)
        home = {"HOME": str(self.directory), "XDG_RUNTIME_DIR": str(self.directory)}  # gunicorn has a socket there
        exports = [line for line in lines if line.startswith("export ")]
        self.settings = after(exports, {**active(), **home})
        self.serve = next(line for line in lines if line.startswith(SERVERS))
        self.others = [line for line in lines if line.startswith("python ")]
        self.customer = Customer(self.url, self.settings, [line for line in lines if line.startswith("curl ")])
        leave_to_the_sweep(f"sqlite:///{self.directory}/orders.db")

    @property
    def environment(self) -> dict[str, str]:
        return self.settings

    def command(self) -> list[str]:
        return shlex.split(self.serve)

    def ready(self) -> bool:
        return self.customer.look("nobody").status == 404


def docstring_of(source: Path) -> str:
    docstring = ast.get_docstring(ast.parse(source.read_text()))
    assert docstring is not None
    return docstring


def commands_of(source: Path, port: int) -> list[str]:
    """The commands in an example's first lines, for another port."""
    return re.findall(r"^    (\S.*)$", docstring_of(source).replace("8000", str(port)), re.MULTILINE)


def active() -> dict[str, str]:
    """The environment of a shell in which the venv is active."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(EXAMPLES.parent)}


def after(exports: list[str], environment: dict[str, str]) -> dict[str, str]:
    """The environment after some commands of a shell."""
    tell = "python -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    told: dict[str, str] = json.loads(shell("\n".join([*exports, tell]), environment))
    return told


def shell(commands: str, environment: dict[str, str], directory: Path | None = None) -> str:
    """Run some commands, and return what they say."""
    done = subprocess.run(
        ["sh", "-e", "-c", commands],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def curl(line: str, settings: dict[str, str] | None = None) -> Answer:
    """Do what a command line of curl does, as far as the examples go."""
    _, *words = shlex.split(Template(line).substitute(settings or {}))
    method, headers = "GET", dict[str, str]()
    while len(words) > 1:
        option, value, *words = words
        if option == "-X":
            method = value
        else:
            assert option == "-H"
            name, _, text = value.partition(": ")
            headers[name] = text
    url = urlsplit(words[0])
    with closing(HTTPConnection(url.netloc, timeout=10)) as connection:
        connection.request(method, url._replace(scheme="", netloc="").geturl(), headers=headers)
        with connection.getresponse() as response:
            body = response.read()
            is_json = response.headers.get_content_type() == "application/json"
            return Answer(response.status, json.loads(body) if is_json else body)


def leave_to_the_sweep(store: str) -> None:
    """Record an order, as a process that died before it could ring, a while ago."""

    def order(input: Any) -> Generator[Any, Any, Any]:
        yield

    with closing(stores.open(store)) as storage:
        dead = FlowExecutor(storage, clock=lambda: time.time() - 60)
        dead.start_sync(order, "late", {"item": "chair"})


def test_every_example_with_a_server_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("web_*.py")} == NEEDS.keys()


@pytest.mark.parametrize("name", ["web_asgi", "web_fastapi"])
def test_an_asgi_application_that_sweeps_by_itself(name: str) -> None:
    with required(Example(name)) as example:
        example.customer.goes_through()
        example.customer.waits_until("late", "waiting")
        os.kill(example.pid, signal.SIGTERM)
        assert example.process is not None
        example.process.wait(20)
        log = example.log.read_text()
        assert "Application shutdown complete" in log
        assert "Traceback" not in log


@pytest.mark.parametrize("name", ["web_flask", "web_functions"])
def test_a_wsgi_application_with_a_route_that_sweeps(name: str) -> None:
    with required(Example(name)) as example:
        customer = example.customer
        customer.goes_through()
        sweep = customer.lines[3]
        assert curl(sweep.replace("Bearer", "Bearer x"), customer.settings).status == 401
        assert curl(re.sub(r'-H ".*" ', "", sweep)).status == 401
        assert customer.approve("late") == (200, {"taken": True})  # before it waits
        assert customer.approve("late") == (200, {"taken": False})
        assert customer.status("late") == "running"
        assert curl(sweep, customer.settings) == (200, ["late"])
        customer.waits_until("late", "finished")
        assert curl(sweep, customer.settings) == (200, [])


def test_django_with_a_process_that_sweeps() -> None:
    with required(Example("web_django")) as example:
        customer = example.customer
        customer.goes_through()
        assert customer.status("late") == "running"
        once, forever = example.others[0].split(" --every ")
        assert forever == "60"
        assert shell(once, example.settings, example.directory) == "late\n"
        customer.waits_until("late", "waiting")
        example.kill()
        example.restart()
        assert customer.approve("late") == (200, {"taken": True})
        customer.waits_until("late", "finished")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("web_*.py")), ids=lambda path: path.stem)
def test_an_example_without_its_settings_says_which(path: Path) -> None:
    for module in NEEDS.get(path.stem, []):
        if package(module) is None:
            absent(Missing(module, Example.variable))
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": str(path.parents[1]), "SEQUENTIAL_SECRET": ""}
    done = subprocess.run([sys.executable, path], env=bare, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "RuntimeError: set SEQUENTIAL_SECRET and SEQUENTIAL_URL" in done.stderr
