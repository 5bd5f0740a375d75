"""The real servers, each started by the first test that asks for it.

An address in the environment takes the place of a server. One that is not installed skips its tests, or fails them
with SEQUENTIAL_REQUIRE=all; one that is installed and does not start is an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol, TypeVar

import pytest

from tests.servers.azurite import AzuriteServer
from tests.servers.dynamodb import DynamoServer
from tests.servers.gcs import GcsServer
from tests.servers.postgres import PostgresServer
from tests.servers.processes import Missing, Server, package
from tests.servers.seaweed import SeaweedServer
from tests.servers.valkey import ValkeyServer

if TYPE_CHECKING:
    from tests.servers.firestore import FirestoreModel  # slow to import

S = TypeVar("S", bound=Server)


class OwnServer(Protocol):
    """Starts a server that ends with the test."""

    def __call__(self, server: S) -> S: ...


class FirestoreServer(NamedTuple):
    """Where Firestore is, as host and port, and our model of it, unless the environment says that it is elsewhere."""

    url: str
    model: FirestoreModel | None


@contextlib.contextmanager
def required(server: S) -> Iterator[S]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(server)
        except Missing as missing:
            absent(missing)
        yield server


def absent(missing: Missing) -> NoReturn:
    if os.environ.get("SEQUENTIAL_REQUIRE") == "all":
        pytest.fail(f"SEQUENTIAL_REQUIRE=all, and {missing}", pytrace=False)
    pytest.skip(str(missing))


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    """Start a server for one test, which may kill it: `server = own_server(ValkeyServer(cluster=True))`."""
    with contextlib.ExitStack() as stack:

        def start(server: S) -> S:
            if os.environ.get(server.variable):
                pytest.skip(f"{server.variable} is set, and its server is not ours to kill")
            return stack.enter_context(required(server))

        yield start


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with required(PostgresServer.from_environment()) as server:
        yield server


@pytest.fixture
def postgres_database(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database, which is removed after the test."""
    url = postgres_server.database()
    yield url
    postgres_server.drop(url)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    with required(ValkeyServer.from_environment()) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed_server() -> Iterator[SeaweedServer]:
    with required(SeaweedServer.from_environment()) as server:
        yield server


@pytest.fixture(scope="session")
def dynamodb_server() -> Iterator[DynamoServer]:
    with required(DynamoServer.from_environment()) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    with required(GcsServer.from_environment()) as server:
        yield server


@pytest.fixture(scope="session")
def azurite_server() -> Iterator[AzuriteServer]:
    with required(AzuriteServer.from_environment()) as server:
        yield server


@pytest.fixture(scope="session")
def firestore_server() -> Iterator[FirestoreServer]:
    """A model of Firestore's rules, which is not Google's emulator; the environment tells clients where it is."""
    if package("grpc") is None or package("google.cloud.firestore_v1") is None:
        absent(Missing("google-cloud-firestore", "FIRESTORE_EMULATOR_HOST"))
    from tests.servers.firestore import firestore

    with firestore() as model:
        yield FirestoreServer(os.environ["FIRESTORE_EMULATOR_HOST"], model)
