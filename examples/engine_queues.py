"""Queues of the clouds carry the ring: AWS Lambda's own, SQS, Google Cloud Tasks, QStash. Take the functions you need.

::

    flow = FlowExecutor(storage, call=call, resume=sqs(boto3.client("sqs"), QUEUE_URL), workflows=[workflow])
    handler = sqs_handler(flow)     # the Lambda function that the queue triggers

A queue calls from outside, again if it must, and settles who may send. So a ring carries no signature of ours: that of
`sequential.http.HttpResume` is good for five minutes, and a queue may deliver after hours. The handler is told so by
``insecure=True``, and must be reachable by way of the queue alone.

No ring is dropped for the sake of an earlier one: a signal and the sweep ring for the same step again, and have to be
heard. So no id for deduplication, and no name of a task, is made from the step; the lease makes a duplicate cheap.

Each needs its vendor's library: ``pip install boto3``, ``google-cloud-tasks`` or ``qstash``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any
from uuid import uuid4

from sequential import FlowExecutor, current, run_until
from sequential.http import wsgi_app

log = logging.getLogger(__name__)


def lambda_event(client: Any, function: str) -> Callable[[str], None]:
    """Ring by an asynchronous invocation of the function that `sequential.http.lambda_handler` makes.

    Its role needs ``lambda:InvokeFunction`` for itself.  Who sweeps is a schedule of EventBridge that invokes it too.

    After about 16 invocations in a row Lambda takes them for a loop and drops the next, and the chain goes on when it
    is swept.  Have fewer of them, by the executor's ``budget=``, or allow the loop: ``aws lambda
    put-function-recursion-config --function-name NAME --recursive-loop Allow``.

    Args:
        client: ``boto3.client("lambda")``.
        function: Its name or ARN.
    """

    def ring(id: str) -> None:
        payload = json.dumps({"resume": current()._asdict()}).encode()
        client.invoke(FunctionName=function, InvocationType="Event", Payload=payload)

    return ring


def sqs(client: Any, queue_url: str) -> Callable[[str], None]:
    """Ring by a message in a queue, for `sqs_handler`.

    Args:
        client: ``boto3.client("sqs")``.
        queue_url: The queue's URL.  A standard one will do: in a FIFO queue, a ring whose function has died holds up
            the next ones for this execution until it becomes visible again.
    """

    def ring(id: str) -> None:
        fifo = {"MessageGroupId": id[:128], "MessageDeduplicationId": uuid4().hex}
        client.send_message(QueueUrl=queue_url, MessageBody=id, **(fifo if queue_url.endswith(".fifo") else {}))

    return ring


def sqs_handler(flow: FlowExecutor) -> Callable[[dict[str, Any], Any], Any]:
    """Return the Lambda function that an SQS queue triggers, and a schedule of EventBridge, which sweeps.

    The trigger has ``ReportBatchItemFailures``, and the queue a visibility timeout of six times the function's, as AWS
    advises.  Lambda counts these invocations too, see `lambda_event`.

    Args:
        flow: The executor.
    """

    def handle(event: dict[str, Any], context: Any) -> Any:
        if "Records" not in event:
            return flow.sweep_sync()
        failed = []
        with run_until(time.time() + context.get_remaining_time_in_millis() / 1000):
            for message in event["Records"]:
                try:
                    flow.resume_sync(message["body"])
                except Exception:
                    log.exception("the queue delivers this message again")
                    failed.append({"itemIdentifier": message["messageId"]})
        return {"batchItemFailures": failed}

    return handle


def cloud_tasks(client: Any, queue: str, url: str, account: str) -> Callable[[str], None]:
    """Ring by a task that makes the request to ``wsgi_app(flow, insecure=True)``, or any other handler.

    Let it run on Cloud Run with "require authentication": that lets in only who is allowed to, which Google's token
    with the task proves; elsewhere, check the token by ``google.oauth2.id_token.verify_oauth2_token``.  Who sweeps is a
    job of Cloud Run, ``python -m sequential sweep app:flow``, started by Cloud Scheduler.

    A busy execution is answered with 409 and tried again by the queue; let it give up after some attempts
    (``--max-attempts=10``), because one that has ended meanwhile is answered with 404, unless ``retain=True``.

    Args:
        client: ``google.cloud.tasks_v2.CloudTasksClient()``.
        queue: ``projects/PROJECT/locations/LOCATION/queues/QUEUE``.
        url: Where the handler is mounted.
        account: The email address of the service account that may call it.
    """

    def ring(id: str) -> None:
        request = {
            "http_method": "POST",
            "url": f"{url}/resume/{id}",
            "headers": {"content-type": "application/json"},
            "body": json.dumps(current()._asdict()).encode(),
            "oidc_token": {"service_account_email": account, "audience": url},
        }
        client.create_task(parent=queue, task={"http_request": request})

    return ring


def qstash(client: Any, url: str) -> Callable[[str], None]:
    """Ring by a message that QStash brings to `qstash_app`, three more times if it is busy or away.

    Who sweeps is a schedule of QStash that calls a route of yours.

    Args:
        client: ``qstash.QStash(token)``.
        url: Where the application is mounted.
    """

    def ring(id: str) -> None:
        body = json.dumps(current()._asdict())
        client.message.publish(url=f"{url}/resume/{id}", body=body, content_type="application/json")

    return ring


def qstash_app(flow: FlowExecutor, receiver: Any, url: str) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that answers what QStash has signed, and nothing else.

    Args:
        flow: The executor.
        receiver: ``qstash.Receiver(current_signing_key, next_signing_key)``.
        url: Where this is mounted, as `qstash` knows it.
    """
    app = wsgi_app(flow, insecure=True)

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            body = environ["wsgi.input"].read(min(int(environ.get("CONTENT_LENGTH") or 0), 4096))
            id = environ["PATH_INFO"].rpartition("/")[2]
            signature = environ["HTTP_UPSTASH_SIGNATURE"]
            receiver.verify(signature=signature, body=body.decode(), url=f"{url}/resume/{id}")
        except Exception as error:
            log.warning("refused, because it is not signed by QStash: %r", error)
            start_response("401 Unauthorized", [("Content-Length", "0")])
            return []
        return app({**environ, "wsgi.input": BytesIO(body)}, start_response)

    return checked
