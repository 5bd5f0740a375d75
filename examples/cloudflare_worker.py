"""A Cloudflare Worker in Python: orders that wait for a yes, each step in a request of its own.

Beside `cloudflare_d1.py`, with ``dependencies = ["sequential-flow"]`` in pyproject.toml, and this wrangler.jsonc::

    {
        "name": "orders",
        "main": "cloudflare_worker.py",
        "compatibility_date": "2026-11-01",
        "compatibility_flags": ["python_workers"],
        "d1_databases": [{"binding": "DB", "database_name": "orders", "database_id": "..."}],
        "services": [{"binding": "SELF", "service": "orders"}],
        "triggers": {"crons": ["* * * * *"]},
        "vars": {"URL": "https://orders.example.workers.dev/flows", "API": "https://api.example.org", "BUDGET": "10"}
    }

make the database and the secret, try it and deploy it::

    npx wrangler d1 create orders
    python -c "import cloudflare_d1; print(*cloudflare_d1.TABLES, sep=';')" > tables.sql
    npx wrangler d1 execute orders --remote --file tables.sql
    python -c "from sequential.http import new_secret; print(new_secret())" | npx wrangler secret put SECRET
    uv run pywrangler dev
    uv run pywrangler deploy

and elsewhere, ID being what the first line answers::

    curl -X POST "https://orders.example.workers.dev/orders?item=lamp&item=rug"
    curl https://orders.example.workers.dev/orders/ID
    curl -X POST https://orders.example.workers.dev/orders/ID/approve

It was tested (tests/test_edge.py) under Pyodide, which is what runs Python on Cloudflare, with Cloudflare's package
`workers` and Cloudflare's own D1 in workerd; requests, the service binding and the cron trigger were stood in for.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from http import HTTPMethod
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cloudflare_d1 import D1Storage  # type: ignore[import-not-found] # mypy does not look beside this file
from workers import Response, WorkerEntrypoint, asgi, fetch

from sequential import FlowExecutor, current, tool, wait
from sequential.errors import AlreadyEnded, InvalidId, UnknownExecution
from sequential.http import HttpResume, asgi_app
from sequential.patterns import check


def order(input: dict[str, Any]) -> Generator[Any, Any, Any]:
    """Reserve each item, wait for a yes and charge; what fails is parked, to be looked at."""
    price = 0
    for item in input["items"]:
        price += check((yield tool("stock", "reserve", {"item": item})))["price"]
    if (yield wait("approval", timeout=3 * 86_400)) != "yes":
        return "not approved"
    return check((yield tool("bank", "charge", {"amount": price})))


class Default(WorkerEntrypoint):
    """What Cloudflare makes for each request; nothing is made when this file is imported, for then it forbids much.

    Args:
        ctx: The request's context.
        env: The bindings, variables and secrets.
    """

    def __init__(self, ctx: Any, env: Any) -> None:
        super().__init__(ctx, env)
        self.secret = env.SECRET.split()  # one, or two with a space between while one replaces the other
        # Cloudflare lets a Worker call itself 16 times in a row; then the sweep begins a new chain.
        ring = HttpResume(env.URL, self.secret, post=self.post, hop_limit=16)
        # It is stopped 30 seconds after it has answered: a budget of 10 leaves time for a slow call at its end.
        budget = float(env.BUDGET)
        self.flow = FlowExecutor(
            D1Storage(env.DB), call=self.call, resume=ring, workflows=[order], budget=budget, retain=True
        )

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """Ring through the service binding, because a Worker that fetches its own URL may be refused (error 1042)."""
        answer = await self.env.SELF.fetch(url, method=HTTPMethod.POST, headers=headers, body=body)
        status: int = answer.status
        return status

    async def call(self, category: str, name: str, input: Any) -> Any:
        """Ask a service, which is given the key of this step, so that it does nothing twice when asked twice."""
        headers = {"content-type": "application/json", "idempotency-key": current().key}
        url = f"{self.env.API}/{category}/{name}"
        answer = await fetch(url, method=HTTPMethod.POST, headers=headers, body=json.dumps(input))
        if not answer.ok:
            raise ConnectionError(f"{category}.{name} was answered with {answer.status}")
        return await answer.json()

    async def fetch(self, request: Any) -> Any:
        """Answer a request; before these routes belongs your own authentication."""
        url = urlsplit(request.url)
        try:
            match str(request.method), url.path.split("/")[1:]:
                case _, ["flows", *_]:  # answered as soon as the lease is taken; the step is done behind that
                    return await asgi.fetch(asgi_app(self.flow, self.secret), request, self.env, self.ctx)
                case "POST", ["orders"]:
                    items = parse_qs(url.query).get("item", [])
                    return Response.from_json({"id": await self.flow.start(order, input={"items": items})}, 202)
                case "GET", ["orders", id] if status := await self.flow.status(id):
                    return Response.from_json({"status": status.status, "value": status.value})
                case "POST", ["orders", id, "approve"]:
                    return Response.from_json({"taken": await self.flow.signal(id, "approval", "yes")})
        except AlreadyEnded:
            return Response.from_json({"error": "the order has ended"}, 409)
        except (UnknownExecution, InvalidId):
            pass
        return Response.from_json({"error": "there is no such thing"}, 404)

    async def scheduled(self, controller: Any, env: Any, ctx: Any) -> None:
        """Ring what is late: whose ring was lost or is one too many in a row, or whose time has come."""
        await self.flow.sweep()
