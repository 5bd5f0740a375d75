"""What Cloudflare's runtime does for a Worker in Python, under Pyodide: loads it, and calls its handlers."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_EXAMPLES = Path(__file__).parents[2] / "examples"


class Worker:
    """A Worker.

    Args:
        module: Where its class `Default` is.
        env: What it is bound to.
    """

    def __init__(self, module: Any, env: Any) -> None:
        self._module, self._env = module, env

    def _entrypoint(self) -> Any:
        return self._module.Default(SimpleNamespace(), self._env)  # a new one for each request

    async def fetch(self, request: Any) -> Any:
        response = await self._entrypoint().fetch(import_module("workers").Request(request))
        return getattr(response, "js_object", response)

    async def scheduled(self) -> None:
        entrypoint = self._entrypoint()
        await entrypoint.scheduled(SimpleNamespace(cron="* * * * *"), self._env, entrypoint.ctx)


def load(env: Any) -> Worker:
    """Import the Worker, which must not need anything random yet: so Cloudflare wants it."""
    helper: Any = SimpleNamespace(
        cloudflareWorkersModule=SimpleNamespace(env=env, waitUntil=asyncio.ensure_future),
        patchWaitUntil=lambda ctx: None,
    )
    flags: Any = SimpleNamespace(python_request_headers_preserve_commas=True)
    sys.modules.update(_pyodide_entrypoint_helper=helper, _cloudflare_compat_flags=flags)
    sys.path.append(str(_EXAMPLES))
    urandom, loaded = os.urandom, False

    def guarded(size: int) -> bytes:
        assert loaded, "random bytes were asked for while the Worker is imported"
        return urandom(size)

    os.urandom = guarded
    worker = Worker(import_module("cloudflare_worker"), env)
    loaded = True
    return worker
