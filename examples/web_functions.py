"""Google's functions-framework (Cloud Run functions): orders that wait for a yes; Cloud Scheduler rings what is late.

::

    pip install -e . functions-framework && cd examples
    export SEQUENTIAL_SECRET=$(python -c "from sequential.http import new_secret; print(new_secret())")
    export CRON_TOKEN=$(python -c "import secrets; print(secrets.token_hex())")
    export SEQUENTIAL_URL=http://127.0.0.1:8000 SEQUENTIAL_STORE=sqlite:///orders.db
    functions-framework --host 127.0.0.1 --port 8000 --source web_functions.py --target orders

and elsewhere with the same environment, ID being what the first line answers, the last one for Cloud Scheduler::

    curl -X POST "http://127.0.0.1:8000/orders?item=lamp"
    curl http://127.0.0.1:8000/orders/ID
    curl -X POST http://127.0.0.1:8000/orders/ID/approve
    curl -X POST -H "Authorization: Bearer $CRON_TOKEN" http://127.0.0.1:8000/sweep

In the cloud, where a file is lost with its instance, ``SEQUENTIAL_STORE`` names a store that stays, and
``SEQUENTIAL_URL`` is the function's own.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Generator
from typing import Any

from flask import Request, Response, abort, jsonify

from sequential import FlowExecutor, current, stores, tool, wait
from sequential.errors import AlreadyEnded, InvalidId, UnknownExecution
from sequential.http import HttpResume, wsgi_app
from sequential.patterns import check

NEEDED = ("SEQUENTIAL_SECRET", "SEQUENTIAL_URL", "SEQUENTIAL_STORE", "CRON_TOKEN")
if missing := [name for name in NEEDED if not os.environ.get(name)]:
    raise RuntimeError(f"set {' and '.join(missing)} in the environment: the first lines of this file show how")
SECRET = os.environ["SEQUENTIAL_SECRET"].split()  # one, or two with a space between while one replaces the other


def call(category: str, name: str, input: dict[str, Any]) -> Any:
    """Stand in for the services that are asked."""
    match name:
        case "reserve":
            return {"price": 10 * len(input["item"])}
        case "charge":  # the bank is given the key, so that it charges once when it is asked twice
            return f"{input['amount']} paid, {current().key}"
        case _:
            return f"parcel with {input['item']}"


def order(input: dict[str, Any]) -> Generator[Any, Any, Any]:
    """Reserve, wait for a yes, charge and ship; what fails is parked, to be looked at."""
    reserved = check((yield tool("stock", "reserve", {"item": input["item"]})))
    if (yield wait("approval", timeout=3 * 86_400)) != "yes":
        return "not approved"
    receipt = check((yield tool("bank", "charge", {"amount": reserved["price"]})))
    return {"receipt": receipt, "parcel": check((yield tool("post", "ship", {"item": input["item"]})))}


storage = stores.open(os.environ["SEQUENTIAL_STORE"])
ring = HttpResume(os.environ["SEQUENTIAL_URL"], SECRET)
# Half of the minute that a function has: several steps in one invocation, and time left for the last of them.
flow = FlowExecutor(storage, call=call, resume=ring, workflows=[order], retain=True, budget=30)
callbacks = wsgi_app(flow, SECRET)


def orders(request: Request) -> Any:
    """Answer customers and the schedule; the rest are callbacks, whose answer leaves before the step is done."""
    if request.path.startswith("/orders"):
        return answer(request)
    if request.path != "/sweep":
        return Response.from_app(callbacks, request.environ)
    given = request.headers.get("Authorization", "").encode()
    if request.method != "POST" or not hmac.compare_digest(given, f"Bearer {os.environ['CRON_TOKEN']}".encode()):
        abort(401)
    return jsonify(flow.sweep_sync())


def answer(request: Request) -> tuple[dict[str, Any], int]:
    """Do what a customer asks for; who may approve is for your own authentication to tell."""
    try:
        match request.method, request.path.split("/")[1:]:
            case "POST", ["orders"]:
                return {"id": flow.start_sync(order, input={"item": request.args["item"]})}, 202
            case "GET", ["orders", id] if status := flow.status_sync(id):
                return {"status": status.status, "value": status.value}, 200
            case "POST", ["orders", id, "approve"]:
                return {"taken": flow.signal_sync(id, "approval", "yes")}, 200
    except AlreadyEnded:
        return {"error": "the order has ended"}, 409
    except (UnknownExecution, InvalidId):
        pass
    return {"error": "there is no such order"}, 404
