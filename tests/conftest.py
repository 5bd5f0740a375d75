"""Stores of every kind, and the real servers, each started by the first test that asks for it.

An address in the environment takes the place of a server.  One that is not installed skips its tests, or fails them
with SEQUENTIAL_REQUIRE=all; one that is installed and does not start is an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import pytest

from tests.lab import EVERY, JOURNALS, PLAIN, Lab, open_lab
from tests.servers.processes import Missing, Server

S = TypeVar("S", bound=Server)


class OwnServer(Protocol):
    """Starts a server that ends with the test."""

    def __call__(self, server: S) -> S: ...


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


@pytest.fixture(params=JOURNALS)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """Executors over each kind of Journal."""
    with open_lab(request.param, tmp_path) as lab:
        yield lab


@pytest.fixture(params=PLAIN)
def plain_lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """Executors over each kind of Journal that is not ``async``."""
    with open_lab(request.param, tmp_path) as lab:
        yield lab


@pytest.fixture(params=EVERY)
def any_lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """Executors over each kind of Journal, and over five methods."""
    with open_lab(request.param, tmp_path) as lab:
        yield lab


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    """Start a server for one test, which may kill it: `server = own_server(ValkeyServer(cluster=True))`."""
    with contextlib.ExitStack() as stack:

        def start(server: S) -> S:
            if os.environ.get(server.variable):
                pytest.skip(f"{server.variable} is set, and its server is not ours to kill")
            return stack.enter_context(required(server))

        yield start
