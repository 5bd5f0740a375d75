"""The handler mounted in the frameworks that people have, on real servers, whose clients may hang up.

A server shows many frameworks in one process: which of them answers, is told by the name of the host that is asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from contextvars import ContextVar
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Protocol, cast

import pytest

from sequential import FlowExecutor, current, tool
from sequential.http import Request, asgi_app, wsgi_app
from sequential.http.asgi import App, Message, Receive, Send
from sequential.http.wsgi import Environ, StartResponse
from sequential.stores.sqlite import SQLiteStorage
from tests.conftest import absent, required
from tests.http.support import SECRET, World, callback_for, request_for, three
from tests.servers.lambda_runtime import Context, function_url, rest_api
from tests.servers.processes import Missing, _die_with_parent, package, until
from tests.servers.web import WebServer

FILE = "flows.db"
"""In the folder of a server."""

WsgiApp = Callable[[Environ, StartResponse], Any]

view: ContextVar[asyncio.Task[Any]] = ContextVar("view")
"""The task of the view that a callback came to."""


def patient(input: str) -> Generator[Any, Any, Any]:
    """One call that lasts until its client has gone."""
    return (yield tool("client", "gone", input))


async def call(category: str, name: str, input: Any) -> Any:
    if category == "api":
        return input * input
    while not may_end(input):  # noqa: ASYNC110 - it is told by a file, or by the loop itself
        await asyncio.sleep(0.01)
    return input


def call_blocking(category: str, name: str, input: Any) -> Any:
    if category == "api":
        return input * input
    while not may_end(input):
        time.sleep(0.01)
    return input


def may_end(when: str) -> bool:
    return view.get().cancelling() > 0 if when == "cancelled" else Path(current().id).exists()


def starlette(flows: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            return await call_next(request)

    hello = Route("/hello", lambda request: PlainTextResponse("hello"))
    return Starlette(routes=[hello, Mount("/wf", flows), Mount("/resume", flows)], middleware=[Middleware(Passing)])


def fastapi(flows: Any) -> Any:
    from fastapi import FastAPI

    app = FastAPI()
    app.get("/hello")(lambda: "hello")
    app.mount("/wf", flows)
    return app


def litestar(flows: Any) -> Any:
    from litestar import Litestar, asgi, get

    @get("/hello", sync_to_thread=False)
    def hello() -> str:
        return "hello"

    return Litestar([hello, asgi("/wf", is_mount=True, copy_scope=True)(flows)])


def quart(flows: Any) -> Any:
    from hypercorn.middleware import DispatcherMiddleware
    from quart import Quart, Response, request

    app = Quart(__name__)

    @app.route("/hello")
    async def hello() -> str:
        return "hello"

    @app.route("/view/resume/<id>", methods=["POST"])
    async def resume(id: str) -> Response:
        status, body = await answered_by(flows, request.scope, await request.get_data())
        return Response(body, status)

    return DispatcherMiddleware({"/wf": flows, "": app})


@cache
def django_settings() -> None:
    from django import conf, setup
    from django.http import HttpResponse
    from django.urls import path

    async def resume(request: Any, id: str) -> Any:
        status, body = await answered_by(asgi_flows(), request.scope, request.body)
        return HttpResponse(body, status=status)

    urls = (path("hello", lambda request: HttpResponse(b"hello")), path("view/resume/<str:id>", resume))
    conf.settings.configure(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], SECRET_KEY="for tests")
    setup()


def django(flows: Any) -> Any:
    from django.core.asgi import get_asgi_application

    django_settings()
    others = get_asgi_application()

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        await (flows if scope["path"].startswith("/wf/") else others)(scope, receive, send)

    return application


async def answered_by(app: App, scope: Any, body: Any) -> tuple[int, bytes]:
    """What a view does that hands its request to an ASGI application."""
    task = asyncio.current_task()
    assert task is not None
    view.set(task)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


def flask() -> Any:
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    app = Flask(__name__)
    app.route("/hello")(lambda: "hello")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/wf": wsgi_flows(), "/resume": wsgi_flows()})  # type: ignore[method-assign]
    return app


def django_wsgi() -> Any:
    from django.core.wsgi import get_wsgi_application

    django_settings()
    others = get_wsgi_application()

    def application(environ: Environ, start_response: StartResponse) -> Any:
        return (wsgi_flows() if environ["PATH_INFO"].startswith("/wf/") else others)(environ, start_response)

    return application


def a2wsgi(flows: Any) -> Any:
    from a2wsgi import WSGIMiddleware

    return WSGIMiddleware(flask())


def asgiref(flows: Any) -> Any:
    import asgiref.wsgi

    bridge: Any = asgiref.wsgi.WsgiToAsgi  # its function has no types
    return bridge(flask())


def threads(flows: Any) -> Any:
    return asgi_app(executor(SQLiteStorage(FILE), call_blocking), SECRET, threads=True)


def executor(storage: SQLiteStorage, call: Callable[..., Any] | None = None) -> FlowExecutor:
    return FlowExecutor(storage, call=call, workflows=[three, patient], retain=True)


@cache
def asgi_flows() -> App:
    return asgi_app(executor(SQLiteStorage(FILE), call), SECRET)


@cache
def wsgi_flows() -> WsgiApp:
    return wsgi_app(executor(SQLiteStorage(FILE), call_blocking), SECRET)


def asgi() -> App:
    """What uvicorn and hypercorn serve; the lifespan of no framework is ever begun."""

    @cache
    def made(host: str) -> App:
        makers = {each.__name__: each for each in ASGI}
        app: App = makers[host](asgi_flows()) if host in makers else asgi_flows()
        return app

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        host = "" if scope["type"] == "lifespan" else dict(scope["headers"])[b"host"].decode()
        await made(host)(scope, receive, send)

    return app


def wsgi() -> WsgiApp:
    """What gunicorn serves."""
    _die_with_parent(signal.SIGKILL)  # as a worker of a server that is killed

    @cache
    def made(host: str) -> WsgiApp:
        app: WsgiApp = {"flask": flask, "django": django_wsgi}.get(host, wsgi_flows)()
        return app

    return lambda environ, start_response: made(environ["HTTP_HOST"])(environ, start_response)


ASGI: list[Callable[[Any], Any]] = [starlette, fastapi, litestar, quart, django, a2wsgi, asgiref, threads]


class Site:
    """A server of the apps above, in whose folder the executions are.

    Args:
        server: The server, which runs.
        storage: The store of its executions.
    """

    def __init__(self, server: WebServer, storage: SQLiteStorage) -> None:
        self.server, self.storage, self.flow = server, storage, executor(storage)

    def ask(
        self, host: str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        with closing(self.send(host, method, path, headers, body)) as connection, connection.getresponse() as answer:
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def ring(self, id: str, host: str, path: str) -> HTTPConnection:
        """Send the callback for an execution, and leave its answer to be read."""
        record, _ = self.storage.read(id)
        assert record is not None
        request = request_for(callback_for(record))
        return self.send(host, "POST", path, request.headers, request.body)

    def send(self, host: str, method: str, path: str, headers: Mapping[str, str] | None, body: bytes) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        connection.request(method, path, body, {"host": host, **(headers or {})})
        return connection

    def steps(self, id: str) -> list[Any]:
        """The results so far."""
        return [step["result"] for step in self.flow.history_sync(id)]

    def is_busy(self, id: str) -> bool:
        status = self.flow.status_sync(id)
        assert status is not None
        return status.busy


class Mounts(WebServer):
    """A server of the apps above.

    Args:
        module: Which one.
        app: Which of `asgi` and `wsgi`.
        arguments: Of its command line.
    """

    def __init__(self, module: str, app: str, *arguments: str) -> None:
        super().__init__(app, *arguments, settings={})
        self.name = self.module = module  # type: ignore[misc]

    def command(self) -> list[str]:
        arguments = [each.format(port=self.port) for each in self.flags]
        return [sys.executable, "-m", self.module, f"{__name__}:{self.app}", *arguments]


SERVERS = {
    "uvicorn": ("uvicorn", "asgi", "--factory", "--port", "{port}", "--lifespan", "on"),
    "proxy": ("uvicorn", "asgi", "--factory", "--port", "{port}", "--root-path", "/behind/proxy"),
    "hypercorn": ("hypercorn", "asgi()", "--bind", "127.0.0.1:{port}", "--workers", "0"),
    "gunicorn": ("gunicorn", "wsgi()", "--bind", "127.0.0.1:{port}", "--threads", "4", "--no-control-socket"),
}
NEEDS = {"alone": [], "threads": [], "a2wsgi": ["a2wsgi", "flask"], "asgiref": ["asgiref", "flask"]}


def needs(host: str) -> None:
    for module in NEEDS.get(host, [host]):
        if package(module) is None:
            absent(Missing(module, WebServer.variable))


class FindSite(Protocol):
    """Starts a server when it is first asked for, if there is the framework."""

    def __call__(self, server: str, host: str = "alone") -> Site: ...


@pytest.fixture(scope="module")
def site() -> Iterator[FindSite]:
    with ExitStack() as stack:

        @cache
        def start(name: str) -> Site:
            server = stack.enter_context(required(Mounts(*SERVERS[name])))
            return Site(server, stack.enter_context(closing(SQLiteStorage(server.directory / FILE))))

        def find(server: str, host: str = "alone") -> Site:
            needs(host)
            return start(server)

        yield find


MOUNTS = [
    *(("uvicorn", each.__name__, "/wf") for each in ASGI),
    *(("hypercorn", each.__name__, "/wf") for each in (starlette, quart, django)),
    *(("gunicorn", host, "/wf") for host in ("flask", "django")),
    *(("proxy", "alone", prefix) for prefix in ("", "/behind/proxy")),
    ("proxy", "fastapi", "/wf"),
    *((server, host, "") for server, host in (("uvicorn", "starlette"), ("gunicorn", "flask"))),  # at /resume itself
]


@pytest.mark.parametrize(("server", "host", "prefix"), MOUNTS)
def test_a_callback_finds_its_way_and_others_are_refused(site: FindSite, server: str, host: str, prefix: str) -> None:
    there = site(server, host)
    id = there.flow.start_sync(three)
    path = f"{prefix}/resume/{id}"
    status, _, body = there.ask(host, "POST", path, body=b"{}")
    assert (status, "webhook-id is missing" in body.decode()) == (401, True)
    status, headers, _ = there.ask(host, "GET", path)
    assert (status, headers["allow"]) == (405, "POST")
    assert there.ask(host, "POST", f"{prefix}/resumed/{id}")[0] == 404
    assert there.steps(id) == []
    for step, end in enumerate(("", "/", "")):
        with closing(there.ring(id, host, path + end)) as connection, connection.getresponse() as answer:
            assert answer.status == 202
            assert json.loads(answer.read()) == {"status": "paused", "id": id, "reason": "tool"}
        assert there.steps(id) == [0, 1, 4][: step + 1]
    status, _, body = there.ask(host, "GET", "/hello")
    assert (status, "hello" in body.decode()) == ((404, False) if host in {"alone", "threads"} else (200, True))


# What a client that is gone has sent, uvicorn has forgotten when a2wsgi asks for it from another thread: no ring at all.
@pytest.mark.parametrize(
    ("when", "server", "host", "prefix"),
    [
        (when, *mount)
        for when in ("at once", "in mid-step")
        for mount in MOUNTS
        if (when, mount[1]) != ("at once", "a2wsgi")
    ],
)
def test_the_step_is_done_though_the_client_hangs_up(
    site: FindSite, server: str, host: str, prefix: str, when: str
) -> None:
    there = site(server, host)
    id = there.flow.start_sync(patient, input="let go")
    path = f"{prefix}/resume/{id}"
    if when == "in mid-step":
        with closing(there.ring(id, host, path)) as connection:
            assert connection.getresponse().status == 202
    else:
        there.server.freeze()  # it will find the request and its end together
        there.ring(id, host, path).close()
        there.server.thaw()
    there.ask("alone", "GET", "/hello")  # whatever the server makes of a client that is gone, it has made of it now
    (there.server.directory / id).touch()
    until(lambda: there.steps(id) == ["let go"], "the step is done")


@pytest.mark.parametrize("host", ["quart", "django"])
@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_the_step_is_done_though_the_client_hangs_up_and_its_view_is_cancelled(
    site: FindSite, server: str, host: str
) -> None:
    there = site(server, host)
    id = there.flow.start_sync(patient, input="cancelled")
    with closing(there.ring(id, host, f"/view/resume/{id}")):
        until(lambda: there.is_busy(id), "the step is begun")
    until(lambda: there.steps(id) == ["cancelled"], "the step is done")
    assert not there.is_busy(id)


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_a_websocket_is_closed(site: FindSite, server: str) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    headers = {**upgrade, "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert site(server).ask("alone", "GET", "/resume/exec-1", headers)[0] == 403


def test_a_lifespan_is_answered() -> None:
    with required(Mounts(*SERVERS["uvicorn"])) as server:
        assert server.process is not None
        os.kill(server.pid, signal.SIGTERM)
        server.process.wait(10)
        log = server.log.read_text()
    for line in ("Application startup complete.", "Application shutdown complete."):
        assert line in log


@pytest.fixture
def loop() -> Iterator[None]:
    """The event loop of this thread, for those who ask for one instead of running one."""
    with closing(asyncio.new_event_loop()) as loop:
        asyncio.set_event_loop(loop)
        yield
        asyncio.set_event_loop(None)


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("event", [function_url, rest_api])
def test_mangum(event: Callable[..., dict[str, Any]]) -> None:
    needs("mangum")
    from mangum import Mangum

    world = World()
    record = world.start()
    function, context = Mangum(cast(Any, asgi_app(world.flow, SECRET))), cast(Any, Context())
    for path in ("/flows/resume/exec-1", "/flows/resume/exec-1/"):
        ring = request_for(callback_for(world.record()), path=path)
        assert function(event(ring._replace(headers={}), stage="prod"), context)["statusCode"] == 401
        assert function(event(ring._replace(method="PUT"), stage="prod"), context)["statusCode"] == 405
        answer = function(event(ring, stage="prod"), context)
        assert answer["statusCode"] == 202
        assert json.loads(answer["body"]) == {"status": "paused", "id": record.id, "reason": "tool"}
    assert world.called == [0, 1]


@pytest.mark.parametrize("kind", ["ASGI", "WSGI"])
def test_azure(kind: str) -> None:
    needs("azure.functions")
    import azure.functions

    world, azure_functions = World(), cast(Any, azure.functions)
    by_asgi = azure_functions.AsgiMiddleware(asgi_app(world.flow, SECRET))
    by_wsgi = azure_functions.WsgiMiddleware(wsgi_app(world.flow, SECRET))

    def ask(request: Request) -> Any:
        url = f"https://flows.azurewebsites.net/api{request.path}"
        asked = azure_functions.HttpRequest(request.method, url, headers=dict(request.headers), body=request.body)
        return asyncio.run(by_asgi.handle_async(asked)) if kind == "ASGI" else by_wsgi.handle(asked)

    record = world.start()
    ring = request_for(callback_for(record))
    assert ask(ring._replace(headers={})).status_code == 401
    assert ask(ring._replace(method="GET")).status_code == 405
    for path in ("/flows/resume/exec-1", "/flows/resume/exec-1/"):
        answer = ask(request_for(callback_for(world.record()), path=path))
        assert answer.status_code == 202
        assert json.loads(answer.get_body()) == {"status": "paused", "id": "exec-1", "reason": "tool"}
    assert world.called == [0, 1]
