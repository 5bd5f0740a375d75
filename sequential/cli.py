"""The command line: ``python -m sequential sweep``, for a machine's own scheduler, or as a small service."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from copy import copy
from importlib import import_module
from typing import Any

from . import stores
from .errors import SequentialError, describe
from .executor import FlowExecutor
from .http import HttpResume
from .observe import Observer
from .record import Record
from .sweeper import sweep_forever

_SWEEP = """Ring every execution that is late: whose callback was lost, whose process died, whose time has come.

Which executions, and how to ring, is told by an executor of yours (python -m sequential sweep app:flow), or by the URLs
of the store and of the handler (python -m sequential sweep --store URL --url URL), which the environment may name:
SEQUENTIAL_STORE, SEQUENTIAL_URL, and SEQUENTIAL_SECRET for what the handler checks. Any number may run at once.

What was rung is printed, an id in a line. What could not be rung is told on stderr, ends the command with 1, and is
rung again by a later sweep."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: What comes behind ``python -m sequential``; left out, what this process was started with.

    Raises:
        SystemExit: With 0; with 1 when something could not be rung; or with a text that says what is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m sequential", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="sweep")
    command = commands.add_parser(
        "sweep", help="ring every execution that is late", description=_SWEEP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("app", nargs="?", help="module:name of a FlowExecutor that has a resume hook (app: app:flow)")
    command.add_argument("--store", help="URL, as sequential.stores.open takes it")
    command.add_argument("--url", help="URL that the handler is mounted at")
    command.add_argument("--every", type=float, metavar="SECONDS", help="go on until stopped (else: sweep once)")
    command.add_argument("--limit", type=int, default=100, help="executions to ring in one sweep (100)")
    options = parser.parse_args(arguments)
    if options.app and (options.store or options.url):
        command.error("name either an executor, or a store and the handler's URL")
    sys.path.insert(0, "")  # as `python -m` does, if this was started otherwise
    flow = _imported(options.app) if options.app else None
    try:
        with closing(stores.open(_store(options))) if flow is None else nullcontext() as storage:
            asyncio.run(_sweep(flow or _ringing(options, storage), options))
    except (SequentialError, ValueError, TypeError) as error:
        raise SystemExit(f"sequential: {error}") from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(0) from None


async def _sweep(flow: FlowExecutor, options: argparse.Namespace) -> None:
    flow = copy(flow)
    flow.setup = flow.setup._replace(observer=_Telling(flow.setup.observer))
    if options.every is None:
        swept = await flow.sweep(options.limit)
        for id in swept:
            print(id)  # noqa: T201 - the answer of a command
        if swept.failed:
            raise SystemExit(1)
        return
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError):  # asyncio's own on Windows, which has no such signal: Ctrl-C ends it there
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await sweep_forever(flow, options.every, options.limit)


class _Telling(Observer):
    """Tells of a ring that failed in one line, where a log would show a traceback.

    Args:
        inner: Whom to tell of everything else, and of this if it was given on purpose.
    """

    def __init__(self, inner: Observer) -> None:
        self._inner, self.listens = inner, inner.listens

    def tell(self, kind: str, record: Record, detail: str = "", error: BaseException | None = None) -> None:
        """Tell of an event."""
        if kind == "ring failed" and error is not None:
            why = " ".join(describe(error).split())
            print(f"sequential: execution {record.id!r} was not rung: {why}", file=sys.stderr)  # noqa: T201 - the same
        if kind != "ring failed" or self.listens:
            self._inner.tell(kind, record, detail, error)


def _store(options: argparse.Namespace) -> str:
    """Return the URL of the store that was named."""
    url = options.store or os.environ.get("SEQUENTIAL_STORE")
    if not url:
        raise ValueError("name an executor (app:flow), or a store: --store URL, or SEQUENTIAL_STORE")
    return str(url)


def _ringing(options: argparse.Namespace, storage: Any) -> FlowExecutor:
    """Return an executor over the store, which rings the handler that was named."""
    url = options.url or os.environ.get("SEQUENTIAL_URL")
    secret = os.environ.get("SEQUENTIAL_SECRET", "").split()
    if not (url and secret):
        raise ValueError(
            "name the handler, --url URL or SEQUENTIAL_URL, and what it checks, SEQUENTIAL_SECRET (in the "
            "environment, because everybody on this machine sees a command line)"
        )
    return FlowExecutor(storage, resume=HttpResume(url, secret))


def _imported(app: str) -> FlowExecutor:
    """Return the executor that was named; what its module raises is shown with its place."""
    module, _, name = app.partition(":")
    try:
        found = getattr(import_module(module), name or "flow", None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # it is what the module needs that is not there
        raise SystemExit(f"sequential: there is no module {module} here: write module:name, as in app:flow") from None
    if not isinstance(found, FlowExecutor):
        raise SystemExit(f"sequential: {app} is no FlowExecutor: write module:name, as in app:flow")
    if found.setup.ringing is None:  # better now than in vain
        raise SystemExit(f"sequential: {app} has no resume hook, so it can ring nobody: FlowExecutor(..., resume=f)")
    return found
