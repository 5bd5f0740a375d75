"""Every snippet of the README runs and prints what it says."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import io
import json
import re
import socket
import socketserver
import subprocess
import sys
import threading
import wsgiref.simple_server
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from sequential import FlowExecutor
from sequential.http import new_secret
from sequential.stores.sqlite import SQLiteStorage
from sequential.testing import FakeClock, StorageTests

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All snippets, run one after the other in an empty directory, as a reader would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "sqlite:///shared.db")
    monkeypatch.setenv("SEQUENTIAL_SECRET", new_secret())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names: dict[str, Any] = {"port": port}
    for snippet in SNIPPETS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(snippet.replace("8000", str(port)), "README.md", "exec"), names)
        promised = re.findall(r"^print\(.*\) +# (.*)$", snippet, re.MULTILINE)
        assert printed.getvalue().splitlines() == promised
    return names


def test_every_snippet_prints_what_it_says(namespace: dict[str, Any]) -> None:
    assert len(SNIPPETS) == 11
    assert sum(snippet.count("\nprint(") for snippet in SNIPPETS) == 14


def test_the_methods_of_the_readme_are_those_of_the_executor() -> None:
    told = dict(re.findall(r"^\| `(\w+)\((.*?)\)` \|", README.partition("### What an executor does")[2], re.MULTILINE))
    methods = {
        name: method
        for name, method in vars(FlowExecutor).items()
        if name[0] != "_" and f"{name}_sync" in vars(FlowExecutor)
    }
    assert told == {
        name: ", ".join(
            each if parameter.default is parameter.empty else f"{each}={parameter.default!r}"
            for each, parameter in [*inspect.signature(method).parameters.items()][1:]
        )
        for name, method in methods.items()
    }


def test_the_tests_of_the_readme_pass(namespace: dict[str, Any]) -> None:
    tests = [value for name, value in namespace.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()


def test_the_storage_of_the_readme_conforms(namespace: dict[str, Any]) -> None:
    class Suite(StorageTests):
        def make(self) -> Any:
            return namespace["DictStorage"]()

    for name in dir(Suite):
        if name.startswith("test_"):
            suite = Suite()
            suite.setup_method()
            getattr(suite, name)()
            suite.teardown_method()


class Threaded(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    pass


class Silent(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the ring awaits no more than the status
            super().handle()


def test_the_web_handler_of_the_readme_runs_to_the_end(namespace: dict[str, Any]) -> None:
    def post(path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", namespace["port"], timeout=20)
        connection.request("POST", path)
        answer = json.load(connection.getresponse())
        connection.close()
        return answer

    server = wsgiref.simple_server.make_server("127.0.0.1", namespace["port"], namespace["app"], Threaded, Silent)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        assert post("/start/web-1") == "web-1"
        deadline = monotonic() + 20.0
        while (status := post("/status/web-1"))["status"] != "finished":
            assert monotonic() < deadline
        assert status["value"] == {"user": 123, "posts": ["first", "second"]}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_sweep_of_the_readme_rings(namespace: dict[str, Any], tmp_path: Path) -> None:
    (command,) = re.findall(r"```sh\n(.*?)\n```", README)
    (tmp_path / "app.py").write_text(
        "from sequential import FlowExecutor, stores\n"
        "flow = FlowExecutor(stores.open('sqlite:///flows.db'), resume=lambda id: print(id, flush=True))\n"
    )
    FlowExecutor(SQLiteStorage("flows.db"), clock=FakeClock()).start_sync(namespace["workflow"], id="late-1")
    service = subprocess.Popen([sys.executable, *command.split()[1:]], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    assert "late-1\n" in iter(service.stdout.readline, "")
    service.terminate()
    service.communicate()
    assert service.returncode == 0


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    assert len(COMMANDS) == 2
    script = (ROOT / ".ci" / "run").read_text()
    assert "bash" in script
    for command in COMMANDS:
        assert command.strip() in script


def test_every_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"`(examples/[^`]+)`", README):
        assert (ROOT / name).exists(), name
