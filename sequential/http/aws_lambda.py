"""The handler as an AWS Lambda function."""

from base64 import b64decode
from collections.abc import Callable
from http import HTTPStatus
from time import time
from typing import Any
from urllib.parse import unquote

from ..context import run_until
from ..executor import FlowExecutor
from .callback import parse
from .handler import Handler, Request, Response, Run, drive
from .signing import Secret


def lambda_handler(
    flow: FlowExecutor, secret: Secret | None = None, *, insecure: bool = False, run: Run | None = None
) -> Callable[[Any, Any], Any]:
    """Return a Lambda function, ``handler(event, context)``.

    An HTTP request (function URL, API Gateway, load balancer) to ``POST .../resume/{id}`` runs an invocation, and so
    does ``{"resume": id}``, sent by whoever may invoke the function, as an asynchronous invocation best; a schedule
    of EventBridge sweeps.  An invocation ends a margin before the function's time does (see `sequential.run_until`).

    Args:
        flow: As for `Handler`.
        secret: As for `Handler`.
        insecure: As for `Handler`.
        run: Runs the invocations of an executor whose hooks or storage are ``async``: ``asyncio.Runner().run``.

    Returns:
        The function.  It raises `ValueError` for an event that is none of these, and `RuntimeError` when ``resume``
        failed, so that Lambda tries again.

    Raises:
        NotSupported, ValueError: As from `Handler`.
    """
    handler, settled = Handler(flow, secret, insecure=insecure), run or drive

    async def resume(event: dict[str, Any], deadline: float) -> Response:
        said = event["resume"] if isinstance(event["resume"], dict) else {"id": event["resume"]}
        turn = await handler.take(parse(said, str(said.get("id", ""))), deadline)
        response = turn if isinstance(turn, Response) else await handler.run(turn)
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise RuntimeError(response.body.decode())
        return response

    async def sweep(deadline: float) -> list[str]:
        with run_until(deadline):
            return await flow.sweep()

    def handle(event: Any, context: Any) -> Any:
        deadline = time() + context.get_remaining_time_in_millis() / 1000
        known = event if isinstance(event, dict) else {}
        if "requestContext" in known:
            return _answer(event, settled(handler.handle(_request(event, deadline))))
        if known.get("detail-type") == "Scheduled Event":
            return {"swept": settled(sweep(deadline))}
        if "resume" in known:
            return {"status": settled(resume(event, deadline)).status}
        raise ValueError(f'this function takes HTTP requests, schedules and {{"resume": id}}, not {event!r:.200}')

    return handle


def _request(event: dict[str, Any], deadline: float) -> Request:
    """Return the request of an event: version 2 of the format names the method elsewhere than version 1."""
    context, several = event["requestContext"], event.get("multiValueHeaders") or {}
    given = event.get("headers") or {name: values[-1] for name, values in several.items()}
    http = context.get("http") or {"method": event.get("httpMethod"), "path": event.get("path")}
    body = (event.get("body") or "").encode()
    return Request(
        str(http["method"]),
        unquote(str(event.get("rawPath") or http["path"])),
        {name.lower(): str(value) for name, value in given.items()},
        b64decode(body) if event.get("isBase64Encoded") else body,
        deadline,
    )


def _answer(event: dict[str, Any], response: Response) -> dict[str, Any]:
    answer = {"statusCode": response.status, "body": response.body.decode(), "isBase64Encoded": False}
    if "elb" in event["requestContext"]:
        answer["statusDescription"] = f"{response.status} {HTTPStatus(response.status).phrase}"
    if event.get("multiValueHeaders") and not event.get("headers"):  # how a load balancer is set up
        return {**answer, "multiValueHeaders": {name: [value] for name, value in response.headers.items()}}
    return {**answer, "headers": response.headers}
