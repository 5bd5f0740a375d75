"""Scripts that many executions want to run at one moment, sent in one request."""

from __future__ import annotations

from asyncio import AbstractEventLoop, CancelledError, Future, Task, get_running_loop
from functools import partial
from typing import Any, TypeAlias

_SMALL = 1 << 14
"""Bytes up to which a value does not keep others waiting."""

_Asked: TypeAlias = "list[tuple[tuple[Any, ...], Future[Any]]]"


class Pipeline:
    """Runs scripts on an ``async`` client; those that come while one is under way, in a pipeline.

    A driver works longer for a script than the server does.  Where many executions go on at once, it is the driver
    that they wait for; what it sends together takes it a third of the work.  A script that comes alone is not held up.

    Args:
        client: A client of redis-py's asyncio, of one server.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._alone = 0
        self._loop: AbstractEventLoop | None = None
        self._asked: _Asked = []
        self._requests = set[Task[list[Any]]]()

    async def evalsha(self, *script: Any) -> Any:
        """Do as the client's own `evalsha` does."""
        if len(script[-1]) > _SMALL or not (self._alone or self._requests):
            self._alone += 1
            try:
                return await self._client.evalsha(*script)
            finally:
                self._alone -= 1
        loop = get_running_loop()
        if not self._asked or self._loop is not loop:  # an earlier loop may have ended before it has sent anything
            self._loop, self._asked = loop, []
            loop.call_soon(self._send)
        answer: Future[Any] = loop.create_future()
        self._asked.append((script, answer))
        return await answer

    def _send(self) -> None:
        asked, self._asked = self._asked, []
        pipeline = self._client.pipeline(transaction=False)
        for script, _ in asked:
            pipeline.evalsha(*script)
        # A task of its own, so that who is cancelled takes no other along.
        request = get_running_loop().create_task(pipeline.execute(raise_on_error=False))
        self._requests.add(request)
        request.add_done_callback(partial(self._receive, asked))

    def _receive(self, asked: _Asked, request: Task[list[Any]]) -> None:
        self._requests.discard(request)
        failure = CancelledError() if request.cancelled() else request.exception()
        answers = [failure] * len(asked) if failure else request.result()
        for (_, waiting), answer in zip(asked, answers, strict=True):
            if waiting.done():
                continue  # it was cancelled
            if isinstance(answer, BaseException):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)
