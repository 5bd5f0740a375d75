"""DynamoDB as moto simulates it, over HTTP in a process of its own, in memory."""

from __future__ import annotations

import os
import sys
import threading
from io import BytesIO
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
    from werkzeug.test import run_wsgi_app

    lock = threading.Lock()
    simulator: Any = DomainDispatcherApplication(create_backend_app)

    class Handler(WSGIRequestHandler):
        """Keeps connections, each of which werkzeug would close: connecting again takes nearly as long as an answer."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a large answer is sent in pieces: without this the last one waits for an ACK
        wbufsize = -1  # head and body go together

        def run_wsgi(self) -> None:
            environ = self.make_environ()
            environ["wsgi.input"] = BytesIO(self.rfile.read(int(environ.get("CONTENT_LENGTH", 0))))
            with lock:  # moto checks, then writes
                parts, status, headers = run_wsgi_app(simulator, environ)
                body = b"".join(parts)
            code, _, reason = status.partition(" ")
            self.send_response(int(code), reason)
            headers["Content-Length"] = str(len(body))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    run_simple("127.0.0.1", port, simulator, threaded=True, request_handler=Handler)


if __name__ == "__main__":
    (where,) = sys.argv[1:]
    serve(int(where))
