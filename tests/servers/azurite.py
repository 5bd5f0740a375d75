"""Azurite, Microsoft's emulator of Azure Blob Storage, from npm."""

from __future__ import annotations

import base64
import hmac
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.servers.processes import NODE_MODULES, NPM_INSTALL, Missing, Server, fetch

ACCOUNT, CONTAINER = "sequential", "flows"
QUIETLY = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
KEY = base64.b64encode(b"only on loopback").decode()


class AzuriteServer(Server):
    """An Azurite with one container: its URL is the endpoint with the account and the container as its path."""

    name = "Azurite"
    variable = "SEQUENTIAL_TEST_AZURE"

    def own_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}/{CONTAINER}"

    @property
    def options(self) -> dict[str, Any]:
        """What obstore's AzureStore takes to reach the container."""
        endpoint, _, container = self.url.rpartition("/")
        name, key = ACCOUNT, KEY
        if self.address:
            name, key = os.environ["AZURE_STORAGE_ACCOUNT_NAME"], os.environ["AZURE_STORAGE_ACCOUNT_KEY"]
        return {
            "container_name": container,
            "endpoint": endpoint,
            "account_name": name,
            "account_key": key,
            "client_options": {"allow_http": True},
        }

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}

    def find(self) -> Path:
        path = NODE_MODULES / "azurite" / "dist" / "src" / "blob" / "main.js"
        if not path.exists() or shutil.which("node") is None:
            raise Missing(self.name, self.variable, NPM_INSTALL)
        return path

    def command(self) -> list[str]:
        place = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(self.directory / "data")]
        return ["node", str(self.find()), *QUIETLY, *place, *self.flags]

    def ready(self) -> bool:
        # Neither obstore nor an option of Azurite's makes a container.
        status, answer = fetch(self.port, "PUT", f"/{ACCOUNT}/{CONTAINER}?restype=container&{_may_create()}")
        assert status in {201, 409}, answer
        return True


def _may_create() -> str:
    """Return a signature that allows to create containers, as Azure's "Create an account SAS" says."""
    given = {"sp": "c", "ss": "b", "srt": "c", "st": "", "se": "2100-01-01T00:00:00Z", "sip": "", "spr": ""}
    given["sv"] = "2019-12-12"
    text = "".join(f"{value}\n" for value in (ACCOUNT, *given.values()))
    signature = hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")
    given["sig"] = base64.b64encode(signature).decode()
    return urlencode({name: value for name, value in given.items() if value})
