"""The stores that are reached through a driver: their tests are skipped together where one of them is missing."""

import importlib.metadata
import os

import pytest

from tests.servers.processes import INSTALL


def is_missing(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


missing = list(filter(is_missing, ["psycopg", "redis", "obstore", "google-cloud-firestore", "boto3"]))
if missing and os.environ.get("SEQUENTIAL_REQUIRE") != "all":
    pytest.skip(f"not installed: {', '.join(missing)}: {INSTALL}", allow_module_level=True)
