"""AWS Lambda: orders that wait for a yes; a schedule rings what is late.

Beside it, a ``requirements.txt`` with ``sequential-flow[dynamodb]``, and a ``template.yaml`` for ``sam deploy``::

    Transform: AWS::Serverless-2016-10-31
    Parameters: {Url: {Type: String}, Secret: {Type: String, NoEcho: true}}
    Resources:
      Orders:
        Type: AWS::Serverless::Function
        Properties:
          CodeUri: .
          Handler: web_lambda.handler
          Runtime: python3.13
          Timeout: 60
          Environment: {Variables: {SEQUENTIAL_STORE: dynamodb:///orders,
                                    SEQUENTIAL_URL: !Ref Url, SEQUENTIAL_SECRET: !Ref Secret}}
          Policies: [{DynamoDBCrudPolicy: {TableName: orders}}]
          FunctionUrlConfig: {AuthType: NONE}
          Events: {Sweep: {Type: Schedule, Properties: {Schedule: rate(1 minute)}}}

These make the secret and the table; the URL is known after the first deployment, for which any other will do::

    python -c "from sequential.http import new_secret; print(new_secret())"
    python -c "from sequential import stores; stores.open('dynamodb:///orders').create_schema()"

Try it, ID being what the first line answers::

    curl -X POST "$URL/orders?item=lamp"
    curl $URL/orders/ID
    curl -X POST $URL/orders/ID/approve
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator
from typing import Any

from sequential import FlowExecutor, current, stores, tool, wait
from sequential.errors import AlreadyEnded, InvalidId, UnknownExecution
from sequential.http import HttpResume, lambda_handler
from sequential.patterns import check

NEEDED = ("SEQUENTIAL_SECRET", "SEQUENTIAL_URL", "SEQUENTIAL_STORE")
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
# It goes on with the next step until the function's time is nearly over, so a function seldom has to call itself.
flow = FlowExecutor(storage, call=call, resume=ring, workflows=[order], retain=True, budget=math.inf)
callbacks = lambda_handler(flow, SECRET)


def handler(event: dict[str, Any], context: Any) -> Any:
    """Answer customers; the rest are callbacks and the schedule."""
    http = event.get("requestContext", {}).get("http", {"path": ""})
    if not http["path"].startswith("/orders"):
        return callbacks(event, context)
    status, said = answer(http["method"], http["path"], event.get("queryStringParameters", {}))
    return {"statusCode": status, "headers": {"content-type": "application/json"}, "body": json.dumps(said)}


def answer(method: str, path: str, query: dict[str, str]) -> tuple[int, Any]:
    """Do what a customer asks for; who may approve is for your own authentication to tell."""
    try:
        match method, path.split("/")[1:]:
            case "POST", ["orders"]:
                if "item" not in query:
                    return 400, {"error": "which item?"}
                return 202, {"id": flow.start_sync(order, {"item": query["item"]})}
            case "GET", ["orders", id] if status := flow.status_sync(id):
                return 200, {"status": status.status, "value": status.value}
            case "POST", ["orders", id, "approve"]:
                return 200, {"taken": flow.signal_sync(id, "approval", "yes")}
    except AlreadyEnded:
        return 409, {"error": "the order has ended"}
    except (UnknownExecution, InvalidId):
        pass
    return 404, {"error": "there is no such order"}
