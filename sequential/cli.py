"""The command line: ``python -m sequential sweep``, for a machine's own scheduler, or as a small service."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from importlib import import_module
from typing import Any

from . import stores
from .errors import SequentialError
from .executor import FlowExecutor
from .http import HttpResume
from .sweeper import sweep_forever

_SWEEP = """Ring every execution that is late: whose callback was lost, whose process died, whose time has come.

Which executions, and how to ring, is told by an executor of yours (python -m sequential sweep app:flow), or by the URLs
of the store and of the handler (python -m sequential sweep --store URL --url URL), which the environment may name:
SEQUENTIAL_STORE, SEQUENTIAL_URL, and SEQUENTIAL_SECRET for what the handler checks. Any number may run at once."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: What comes behind ``python -m sequential``; left out, what this process was started with.

    Raises:
        SystemExit: With 0, or a text that says what is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m sequential", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="sweep")
    command = commands.add_parser(
        "sweep", help="ring every execution that is late", description=_SWEEP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("app", nargs="?", help="module:name of a FlowExecutor that has a resume hook")
    command.add_argument(
        "--store", default=os.environ.get("SEQUENTIAL_STORE"), help="URL, as sequential.stores.open takes"
    )
    command.add_argument("--url", default=os.environ.get("SEQUENTIAL_URL"), help="URL that the handler is mounted at")
    command.add_argument("--every", type=float, metavar="SECONDS", help="go on until stopped (else: sweep once)")
    command.add_argument("--limit", type=int, default=100, help="executions to ring in one sweep (100)")
    options = parser.parse_args(arguments)
    sys.path.insert(0, "")  # as `python -m` does, if this was started otherwise
    try:
        with _storage(options) as storage:
            asyncio.run(_sweep(_flow(options, storage), options))
    except (SequentialError, ValueError, TypeError) as error:
        raise SystemExit(f"sequential: {error}") from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(0) from None


async def _sweep(flow: FlowExecutor, options: argparse.Namespace) -> None:
    if options.every is None:
        for id in await flow.sweep(options.limit):
            print(id)  # noqa: T201 - the answer of a command
        return
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):  # Windows has no such signal
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await sweep_forever(flow, options.every, options.limit)


def _storage(options: argparse.Namespace) -> Any:
    """Return the storage that was named, to be closed at the end."""
    if options.app is not None:
        return nullcontext()
    if not options.store:
        raise ValueError("name an executor (app:flow), or a store: --store URL, or SEQUENTIAL_STORE")
    return closing(stores.open(options.store))


def _flow(options: argparse.Namespace, storage: Any) -> FlowExecutor:
    """Return the executor that was named, or one over the storage."""
    if options.app is None:
        secret = os.environ.get("SEQUENTIAL_SECRET", "").split()
        if not (options.url and secret):
            raise ValueError(
                "name the handler, --url URL or SEQUENTIAL_URL, and what it checks, SEQUENTIAL_SECRET (in the "
                "environment, because everybody on this machine sees a command line)"
            )
        return FlowExecutor(storage, resume=HttpResume(options.url, secret))
    module, _, name = options.app.partition(":")
    try:
        flow = getattr(import_module(module), name or "flow", None)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise  # of what the module needs, the place matters
        flow = None
    if not isinstance(flow, FlowExecutor):
        raise TypeError(f"{options.app} is no FlowExecutor: write module:name, as in app:flow, in its folder")
    return flow
