"""Models of AWS Lambda, Google Cloud Tasks and QStash, spoken to over HTTP by their vendors' own clients.

They are models of the requests that the vendors document, and neither the services nor emulators of them, of which
there are none to be had: what is not as documented they refuse, and they deliver when they are told to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from base64 import urlsafe_b64encode
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self
from unittest.mock import patch

import httpx
import jwt
from google.cloud import tasks_v2

LONGEST_LOOP = 16
"""Invocations in a row after which Lambda takes them for a loop, about."""

ACCOUNT = "ringer@project.iam.gserviceaccount.com"
GOOGLES_KEY = "what Google signs its tokens with is no shared secret"
QSTASH_TOKEN = "a token of QStash"
QSTASH_KEYS = ("sig_of_this_month_and_of_32_bytes", "sig_of_the_next_month_and_32_bytes")

_LAMBDA = re.compile(r"/2015-03-31/functions/(?P<name>[\w-]+)/invocations")
_TASKS = re.compile(r"/v2/(?P<queue>projects/[\w-]+/locations/[\w-]+/queues/[\w-]+)/tasks\?%24alt=json\S*")
_PUBLISH = re.compile(r"/v2/publish/(?P<url>https?://.+)")


class Model:
    """A service on loopback that keeps what it has taken until it is told to deliver it."""

    def __init__(self) -> None:
        self.taken = deque[Any]()

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def take(self, path: str, headers: Any, body: bytes) -> tuple[int, str]:
        """Keep what was sent, and return a status and an answer; or raise what is wrong with it."""
        raise NotImplementedError

    def lose(self) -> int:
        """Lose all that was taken, and tell how much that was."""
        lost = len(self.taken)
        self.taken.clear()
        return lost

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    status, answer = model.take(self.path, self.headers, body)
                except Exception as error:
                    status, answer = 400, json.dumps({"error": {"code": 400, "message": repr(error)}})
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer.encode())))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


class Context:
    """What Lambda tells a function beside the event."""

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


class LambdaModel(Model):
    """Lambda's own queue, in front of one function; it ends what it takes for a loop."""

    def take(self, path: str, headers: Any, body: bytes) -> tuple[int, str]:
        found = _LAMBDA.fullmatch(path)
        assert found, path
        assert found["name"] == "flows"
        assert headers["X-Amz-Invocation-Type"] == "Event"
        assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=")
        self.taken.append((json.loads(body), _links(headers["X-Amzn-Trace-Id"] or "") + 1))
        return 202, ""

    def deliver(self, handler: Any) -> list[Any]:
        """Invoke the function for each event that is there or comes, and return its answers."""
        answers = list[Any]()
        while self.taken:
            event, links = self.taken.popleft()
            if links <= LONGEST_LOOP:
                answers.append(self.invoke(handler, event, links))
        return answers

    def invoke(self, handler: Any, event: Any, links: int = 0) -> Any:
        """Invoke the function, in the environment in which AWS's client hands on how long the loop has become."""
        trace = f"Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0;Lineage={links}:a87bd80c:1"
        with patch.dict(os.environ, {"AWS_LAMBDA_FUNCTION_NAME": "flows", "_X_AMZN_TRACE_ID": trace}):
            return handler(event, Context())


def _links(trace: str) -> int:
    found = re.search(r"Lineage=(\d+):", trace)
    return int(found[1]) if found else 0


class Delivery(NamedTuple):
    """A request that a service is to make."""

    url: str
    headers: dict[str, str]
    body: bytes


class _Deliverer(Model):
    """A service that makes requests."""

    def deliver(self) -> list[int]:
        """Make each request that is there or comes, and return the statuses of the answers."""
        statuses = list[int]()
        while self.taken:
            delivery = self.taken.popleft()
            headers = {**delivery.headers, **self.proof(delivery)}
            statuses.append(httpx.post(delivery.url, headers=headers, content=delivery.body).status_code)
        return statuses

    def proof(self, delivery: Delivery) -> dict[str, str]:
        """The headers that prove who makes the request."""
        raise NotImplementedError


class TasksModel(_Deliverer):
    """Google Cloud Tasks, over its REST interface: messages are read by Google's own types."""

    def take(self, path: str, headers: Any, body: bytes) -> tuple[int, str]:
        found = _TASKS.fullmatch(path)
        assert found, path
        asked = tasks_v2.CreateTaskRequest.from_json(body)
        assert not asked.task.name, "with a name, a task is refused for an hour after another of this name"
        request = asked.task.http_request
        assert request.http_method == tasks_v2.HttpMethod.POST
        assert request.oidc_token.service_account_email == ACCOUNT
        self.taken.append(Delivery(request.url, dict(request.headers), request.body))
        self.audience = request.oidc_token.audience
        made = tasks_v2.Task(name=f"{found['queue']}/tasks/{time.time_ns()}", http_request={"url": request.url})
        return 200, tasks_v2.Task.to_json(made)

    def proof(self, delivery: Delivery) -> dict[str, str]:
        claims = {"iss": "https://accounts.google.com", "aud": self.audience, "email": ACCOUNT, "email_verified": True}
        token = jwt.encode({**claims, "exp": time.time() + 3600}, GOOGLES_KEY)
        return {
            "Authorization": f"Bearer {token}",
            "User-Agent": "Google-Cloud-Tasks",
            "X-CloudTasks-QueueName": "queue",
            "X-CloudTasks-TaskRetryCount": "0",
        }


class QStashModel(_Deliverer):
    """QStash."""

    def take(self, path: str, headers: Any, body: bytes) -> tuple[int, str]:
        found = _PUBLISH.fullmatch(path)
        assert found, path
        assert headers["Authorization"] == f"Bearer {QSTASH_TOKEN}"
        assert headers["Upstash-Method"] in {None, "POST"}
        assert headers["Upstash-Deduplication-Id"] is None, "with an id, a message is dropped for ten minutes"
        self.taken.append(Delivery(found["url"], {"Content-Type": headers["Content-Type"]}, body))
        return 201, json.dumps({"messageId": f"msg_{time.time_ns()}"})

    def proof(self, delivery: Delivery, key: str = QSTASH_KEYS[0]) -> dict[str, str]:
        digest = urlsafe_b64encode(hashlib.sha256(delivery.body).digest()).decode()
        now = int(time.time())
        claims = {"iss": "Upstash", "sub": delivery.url, "iat": now, "nbf": now, "exp": now + 300, "body": digest}
        signature = jwt.encode({**claims, "jti": f"jwt_{now}"}, key)
        return {"User-Agent": "Upstash-QStash", "Upstash-Signature": signature, "Upstash-Retried": "0"}
