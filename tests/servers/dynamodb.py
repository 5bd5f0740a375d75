"""DynamoDB as moto simulates it, over HTTP in a process of its own, in memory."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.servers.processes import Server, fetch


class DynamoServer(Server):
    """A simulator of DynamoDB that does one request at a time, so that its conditions are atomic."""

    name = "moto"
    variable = "SEQUENTIAL_TEST_DYNAMODB"

    @property
    def options(self) -> dict[str, str]:
        """What `boto3.client("dynamodb", ...)` takes to reach it."""
        return {
            "endpoint_url": self.url,
            "region_name": os.environ.get("AWS_REGION", "us-east-1"),
            "aws_access_key_id": os.environ.get("AWS_ACCESS_KEY_ID", "sequential"),
            "aws_secret_access_key": os.environ.get("AWS_SECRET_ACCESS_KEY", "only-on-loopback"),
        }

    @property
    def settings(self) -> dict[str, str]:
        """What other processes need in their environment."""
        options = self.options
        return {
            "AWS_ACCESS_KEY_ID": options["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": options["aws_secret_access_key"],
        }

    def find(self) -> Path:
        return self.package("moto")

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.servers.dynamodb", str(self.port), *self.flags]

    def ready(self) -> bool:
        return fetch(self.port, "GET", "/moto-api/data.json")[0] == 200


def serve(port: int) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, run_simple

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are sent apart: without this each answer waits for an ACK

    lock = threading.Lock()
    simulator: Any = DomainDispatcherApplication(create_backend_app)

    def one_at_a_time(environ: Any, start_response: Callable[..., Any]) -> Iterable[bytes]:
        with lock:  # moto checks, then writes
            return [b"".join(simulator(environ, start_response))]

    run_simple("127.0.0.1", port, one_at_a_time, threaded=True, request_handler=Handler)


if __name__ == "__main__":
    (where,) = sys.argv[1:]
    serve(int(where))
