"""A workflow whose every step runs in a process of its own, and which does not mind when one is killed.

Run it::

    python examples/quickstart.py           # to the end; Ctrl-C, and run it again, goes on where it stopped
    python examples/quickstart.py --kill    # one process, chosen at random, dies by SIGKILL in the middle of its work

Three parts of the world are in this file.  An HTTP API over `quickstart_data.json` is what the workflow talks to.
A platform answers ``POST /resume/{id}`` with 202 and starts a fresh process, as a serverless platform starts a
function.  The function, `invoke`, performs one step, saves it in a SQLite file, rings ``/resume/{id}`` and exits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sequential import Event, FlowExecutor, Paused, current, save, tool
from sequential.stores.sqlite import SQLiteStorage

DATABASE = "quickstart.db"
EXECUTION = "digest-123"
DATA = Path(__file__).with_name("quickstart_data.json")


def digest(input: dict[str, Any]) -> Generator[Any, Any, Any]:
    """Gather what a user wrote and what was said about it, and publish it."""
    user = yield tool("api", "users", {"key": input["user_id"]})
    if "__error" in user:
        return {"failed": user["__error"]}
    posts = yield tool("api", "posts", {"key": user["id"]})
    lines: list[str] = []
    for post in posts:
        comments = yield tool("api", "comments", {"key": post["id"]})
        lines.append(f"{post['title']}: {len(comments)} comments")
    yield save()
    published = yield tool("api", "publish", {"text": f"{user['name']} wrote " + ", ".join(lines)})
    return {"user": user["name"], "posts": len(posts), "published": published["number"]}


# The function: a fresh process runs this, and exits.


def invoke(id: str, platform: str) -> None:
    """Run one invocation."""
    events: list[Event] = []

    def call(category: str, name: str, input: Any) -> Any:
        if name == "publish":
            # Should this process die before the result is saved, the next one asks again under the same key.
            return send(f"{platform}/api/publish", input, {"Idempotency-Key": current().key})
        return send(f"{platform}/api/{name}/{input['key']}")

    def resume(id: str) -> None:
        send(f"{platform}/resume/{id}", {})

    flow = FlowExecutor(SQLiteStorage(DATABASE), call=call, resume=resume, workflows=[digest], observe=events.append)
    outcome = flow.resume_sync(id)
    happened = {event.kind: event.detail for event in events}
    did = f"called {happened['called']}" if "called" in happened else "saved" if "paused" in happened else "finished"
    print(f"  pid {os.getpid()}: replayed {happened.get('replayed', 'nothing')}, {did}")
    if not isinstance(outcome, Paused):
        print(f"result {json.dumps(outcome)}")


def send(url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Make an HTTP request, a POST if there is a body."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError:
        raise  # the API's own answer, which is recorded and which the workflow sees
    except OSError as error:
        raise SystemExit(f"{url} is away: {error}") from error  # not an answer: the step will be done again


# The world outside: an API, and a platform that starts functions.


class World(ThreadingHTTPServer):
    """Serves the API and the platform, and keeps count."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.data = json.loads(DATA.read_text())
        self.published: dict[str, int] = {}
        self.requests = self.invocations = 0
        self.kill_at = 0
        self.function: subprocess.Popen[str] | None = None
        self.result: Any = None
        self.over = threading.Event()

    def start_function(self, id: str) -> None:
        """Run one invocation, and end all if that cannot be done, as when nobody reads what is printed."""
        try:
            self.run_function(id)
        except BaseException:
            self.over.set()
            raise

    def run_function(self, id: str) -> None:
        """Run one invocation in a fresh process, and ring again for one that died."""
        self.invocations += 1
        command = [sys.executable, __file__, "--invoke", id, "--platform", self.url]
        function = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.function = function
        output = function.communicate()[0]
        for line in output.splitlines():
            if line.startswith("result "):
                self.result = json.loads(line.removeprefix("result "))
                self.over.set()
            else:
                print(line, flush=True)
        if function.returncode == -signal.SIGKILL and not self.over.is_set():
            # Half a minute later, a sweep would ring too.
            print(f"  pid {function.pid}: killed in the middle of a call; it is rung again", flush=True)
            FlowExecutor(SQLiteStorage(DATABASE), resume=self.resume).ring_sync(id)
        elif function.returncode:
            self.over.set()

    def resume(self, id: str) -> None:
        """Hand an execution over to the next invocation."""
        send(f"{self.url}/resume/{id}", {})

    def answer(self, path: str, key: str | None) -> tuple[int, Any]:
        """Answer a request to the API."""
        self.requests += 1
        if self.requests == self.kill_at and self.function is not None:
            self.function.send_signal(signal.SIGKILL)
        time.sleep(0.1)  # the API is as slow as APIs are
        if path == "/api/publish":
            return 200, {"number": self.published.setdefault(str(key), len(self.published) + 1)}
        _, _, kind, name = path.split("/")
        found = self.data.get(kind, {}).get(name)
        return (404, None) if found is None else (200, found)


class Handler(BaseHTTPRequestHandler):
    """Passes requests on to the world."""

    @property
    def world(self) -> World:
        """Return the server that this request came to."""
        assert isinstance(self.server, World)
        return self.server

    def do_GET(self) -> None:
        """Answer from the API."""
        self.reply(*self.world.answer(self.path, None))

    def do_POST(self) -> None:
        """Publish, or start a function."""
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/resume/"):
            id = self.path.removeprefix("/resume/")
            threading.Thread(target=self.world.start_function, args=(id,), daemon=True).start()
            self.reply(202, {"accepted": id})
        else:
            self.reply(*self.world.answer(self.path, self.headers["Idempotency-Key"]))

    def reply(self, status: int, body: Any) -> None:
        """Send a JSON answer; nobody may be there any more to receive it."""
        try:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())
        except ConnectionError:
            pass

    def log_message(self, format: str, *args: Any) -> None:
        """Be silent."""


def main(kill: bool) -> None:
    """Start the world and the workflow, and wait for its end."""
    world = World()
    threading.Thread(target=world.serve_forever, daemon=True).start()
    flow = FlowExecutor(SQLiteStorage(DATABASE), resume=world.resume, workflows=[digest])
    before = flow.status_sync(EXECUTION)
    print(f"{EXECUTION}: {'started' if before is None else f'going on, {before.step} steps are done'}", flush=True)
    if kill:
        world.kill_at = random.randint(1, max(1, 5 - (before.step if before else 0)))
    try:
        flow.start_sync(digest, EXECUTION, {"user_id": 123})
        while not world.over.wait(timeout=1.0):
            pass
    except KeyboardInterrupt:
        world.over.set()
        if world.function is not None:
            world.function.kill()
        print("\nstopped; run it again, and it goes on from here")
        raise SystemExit(130) from None
    if world.result is None:
        raise SystemExit("a function failed, see above; run it again, and it goes on from here")
    print(f"{EXECUTION}: {world.result}")
    print(f"in {world.invocations} processes, with {world.requests} requests")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a workflow, each step in a process of its own.")
    parser.add_argument("--kill", action="store_true", help="kill one of the processes, chosen at random")
    parser.add_argument("--invoke", metavar="ID", help=argparse.SUPPRESS)
    parser.add_argument("--platform", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.invoke:
        invoke(options.invoke, options.platform)
    else:
        main(options.kill)
