"""AWS Lambda, as far as a function can tell: the events it is given, and the Runtime API by which it asks for them.

The function is a process of its own, run by awslambdaric, which is what AWS runs there.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sequential.http import Request
from tests.servers.processes import Server

TRIES = 3
"""Of an asynchronous invocation; AWS waits one minute, then two, and here nobody does."""


class FunctionFailed(Exception):
    """The function's own error, by the name of its type and its text, or the end of its process."""


class Invocation:
    """An event that is to be answered by the function.

    Args:
        event: A JSON value.
        tries: How often it may be given to the function.
    """

    def __init__(self, event: Any, tries: int) -> None:
        self.event, self.tries = event, tries
        self.outcome: Future[Any] = Future()
        self.deadline = 0.0


class LambdaFunction(Server):
    """A function with one environment: one invocation at a time.

    Args:
        handler: The function, ``module.name``.
        seconds: How long an invocation may take.  None is cut off; `spare` tells what each has left.
    """

    name = "awslambdaric"
    variable = "SEQUENTIAL_TEST_LAMBDA"

    def __init__(self, handler: str, seconds: float = 60.0) -> None:
        super().__init__()
        self.handler, self.seconds = handler, seconds
        self.changed = threading.Condition()
        self.queue: deque[Invocation] = deque()
        self.running: Invocation | None = None
        self.polled = False
        self.lives = 0
        self.answers: list[Any] = []
        """What each invocation came to, one behind the other."""
        self.spare: list[float] = []
        """Seconds that each had left."""

    @property
    def environment(self) -> dict[str, str]:
        where = f"127.0.0.1:{self.port}"
        return {**super().environment, "AWS_LAMBDA_RUNTIME_API": where, "AWS_EC2_METADATA_DISABLED": "true"}

    def find(self) -> Path:
        return self.package(self.name)

    def command(self) -> list[str]:
        return [sys.executable, "-m", self.name, self.handler]

    def ready(self) -> bool:
        return self.polled

    def prepare(self) -> None:
        api = ThreadingHTTPServer(("127.0.0.1", self.port), type("Api", (RuntimeApi,), {"function": self}))
        self.resources.callback(api.server_close)
        self.resources.callback(api.shutdown)
        self.resources.callback(self.end)
        threading.Thread(target=api.serve_forever, args=(0.05,), daemon=True).start()

    def invoke(self, event: Any) -> Any:
        """Invoke the function synchronously and return what it answers, or raise what it raised."""
        return self.send(event, 1).outcome.result(self.patience)

    def send(self, event: Any, tries: int = TRIES) -> Invocation:
        """Invoke the function asynchronously."""
        invocation = Invocation(event, tries)
        with self.changed:
            self.queue.append(invocation)
            self.changed.notify_all()
        return invocation

    def is_idle(self) -> bool:
        """Whether there is nothing more to do."""
        with self.changed:
            return self.polled and not self.queue and self.running is None

    def kill(self) -> None:
        super().kill()
        self.end()

    def end(self) -> None:
        """Have nobody wait for a process that is gone."""
        with self.changed:
            self.lives += 1
            self.polled = False
            self.changed.notify_all()
            if self.running is not None:
                self.settle(FunctionFailed("Runtime.ExitError", "signal: killed"))

    def next(self) -> Invocation | None:
        """Return what the function is to do next, or `None` if it is gone."""
        with self.changed:
            self.polled, life = True, self.lives
            self.changed.wait_for(lambda: self.queue or self.lives != life)
            if self.lives != life:
                return None
            self.running = self.queue.popleft()
            self.running.deadline = time.time() + self.seconds
            return self.running

    def settle(self, outcome: Any) -> None:
        """Take the answer to what is running."""
        with self.changed:
            invocation, self.running = self.running, None
            assert invocation is not None
            self.answers.append(outcome)
            self.spare.append(invocation.deadline - time.time())
            invocation.tries -= 1
            if not isinstance(outcome, FunctionFailed):
                invocation.outcome.set_result(outcome)
            elif invocation.tries:
                self.queue.append(invocation)
            else:
                invocation.outcome.set_exception(outcome)


class RuntimeApi(BaseHTTPRequestHandler):
    """The Runtime API (version 2018-06-01), and of the Lambda API the asynchronous Invoke."""

    protocol_version = "HTTP/1.1"
    function: LambdaFunction

    def do_GET(self) -> None:
        assert self.path == "/2018-06-01/runtime/invocation/next"
        invocation = self.function.next()
        if invocation is None:
            self.close_connection = True
            return
        deadline = str(int(invocation.deadline * 1000))
        arn = "arn:aws:lambda:us-east-1:123456789012:function:flows"
        headers = {"Aws-Request-Id": str(id(invocation)), "Deadline-Ms": deadline, "Invoked-Function-Arn": arn}
        self.answer(200, json.dumps(invocation.event).encode(), headers)

    def do_POST(self) -> None:
        said = json.loads(self.rfile.read(int(self.headers["content-length"])) or "null")
        match self.path.split("/")[1:]:
            case ["2018-06-01", "runtime", "invocation", _, "response"]:
                self.function.settle(said)
            case ["2018-06-01", "runtime", "invocation", _, "error"]:
                self.function.settle(FunctionFailed(said["errorType"], said["errorMessage"]))
            case ["2015-03-31", "functions", _, "invocations"]:
                assert self.headers["x-amz-invocation-type"] == "Event"
                self.function.send(said)
        self.answer(202)

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(f"Lambda-Runtime-{name}", value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Context:
    """What a function is told of its time.

    Args:
        seconds: How much is left.
        clock: Tells the time.
    """

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.time) -> None:
        self.deadline, self.clock = clock() + seconds, clock

    def get_remaining_time_in_millis(self) -> int:
        return int((self.deadline - self.clock()) * 1000)


def function_url(request: Request, *, stage: str = "$default", binary: bool = False) -> dict[str, Any]:
    """The event for a request to a function URL or an HTTP API: payload format 2.0."""
    path = request.path if stage == "$default" else f"/{stage}{request.path}"
    http = {"method": request.method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": ""}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": "abc.lambda-url.us-east-1.on.aws", **request.headers},
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "abc",
            "domainName": "abc.lambda-url.us-east-1.on.aws",
            "domainPrefix": "abc",
            "http": http,
            "requestId": "id",
            "routeKey": "$default",
            "stage": stage,
            "time": "12/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1583348638390,
        },
        **_body(request, binary),
    }


def rest_api(request: Request, *, stage: str = "prod", binary: bool = False) -> dict[str, Any]:
    """The event for a request to a REST API: payload format 1.0, with the names of headers as they were sent."""
    headers = {"Host": "abc.execute-api.us-east-1.amazonaws.com", **_titled(request.headers)}
    return {
        "version": "1.0",
        "resource": "/{proxy+}",
        "path": request.path,
        "httpMethod": request.method,
        "headers": headers,
        "multiValueHeaders": _several(headers),
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": {"proxy": request.path.strip("/")},
        "stageVariables": None,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abc",
            "domainName": "abc.execute-api.us-east-1.amazonaws.com",
            "httpMethod": request.method,
            "identity": {"sourceIp": "192.0.2.1", "userAgent": ""},
            "path": f"/{stage}{request.path}",
            "protocol": "HTTP/1.1",
            "requestId": "id",
            "requestTimeEpoch": 1583348638390,
            "resourceId": "abc123",
            "resourcePath": "/{proxy+}",
            "stage": stage,
        },
        **_body(request, binary),
    }


def load_balancer(request: Request, *, several: bool = False, binary: bool = False) -> dict[str, Any]:
    """The event for a request to a load balancer, which may be set up to give several values for a header."""
    headers = {"host": "lb.us-east-1.elb.amazonaws.com", "x-forwarded-proto": "https", **request.headers}
    group = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/flows/49e9d65c45c6791a"
    return {
        "requestContext": {"elb": {"targetGroupArn": group}},
        "httpMethod": request.method,
        "path": request.path,
        **({"multiValueQueryStringParameters": {}} if several else {"queryStringParameters": {}}),
        **({"multiValueHeaders": _several(headers)} if several else {"headers": headers}),
        **_body(request, binary),
    }


def scheduled(source: str) -> dict[str, Any]:
    """The event of a rule of EventBridge (``aws.events``), or of EventBridge Scheduler (``aws.scheduler``)."""
    return {
        "version": "0",
        "id": "89d1a02d-5ec7-412e-82f5-13505f849b41",
        "detail-type": "Scheduled Event",
        "source": source,
        "account": "123456789012",
        "time": "2026-11-22T12:00:00Z",
        "region": "us-east-1",
        "resources": ["arn:aws:events:us-east-1:123456789012:rule/every-minute"],
        "detail": {} if source == "aws.events" else "{}",
    }


def _body(request: Request, binary: bool) -> dict[str, Any]:
    body = base64.b64encode(request.body) if binary else request.body
    return {"body": body.decode() or None, "isBase64Encoded": binary}


def _titled(headers: Any) -> dict[str, str]:
    return {name.title(): value for name, value in headers.items()}


def _several(headers: dict[str, str]) -> dict[str, list[str]]:
    return {name: [value] for name, value in headers.items()}
