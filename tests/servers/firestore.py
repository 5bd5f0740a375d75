"""A model of Firestore for tests, spoken to over real gRPC by Google's own client.

It is a model of the rules that Google documents, neither Google's emulator nor Firestore: what it knows it does as
documented, and what it does not model it refuses with UNIMPLEMENTED.  ``FIRESTORE_EMULATOR_HOST``, if already set,
replaces it.

It is strict where that finds mistakes: a query that needs an index which Firestore does not make by itself is refused
unless the index is named, BatchGetDocuments answers in another order than it was asked in, and a commit takes at most
500 writes, as older documentation says, to 10 MiB of documents, in whole and those that it removes among them.
Transactions are optimistic: where Firestore may let a writer wait for a transaction that has read the document, here
the transaction is aborted.
"""

from __future__ import annotations

import operator
import os
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cmp_to_key, partial
from operator import methodcaller
from threading import Lock
from typing import Any, NamedTuple, Self, TypeAlias
from unittest.mock import patch

import grpc  # type: ignore[import-untyped]
from google.cloud.firestore_v1 import types
from google.cloud.firestore_v1.field_path import FieldPath
from google.cloud.firestore_v1.order import Order, TypeOrder
from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

ENVIRONMENT = "FIRESTORE_EMULATOR_HOST"
MAX_REQUEST = 10 * 1024 * 1024
MAX_WRITES = 500
MAX_DOCUMENT = 1_048_576
MAX_FIELD = MAX_DOCUMENT - 89
MAX_NAME = 6 * 1024
MAX_ID = 1_500

_OURS = {""}
"""Addresses that do not come from outside: models within models have indexes of their own."""

_PAGE = 100
_INT64 = 2**63
_NAME = "__name__"
_SIZES = {"null_value": 1, "boolean_value": 1, "geo_point_value": 16}
_RESERVED = re.compile(r"__.*__", re.DOTALL)

Message: TypeAlias = Any
Documents: TypeAlias = dict[str, Message]
Code = grpc.StatusCode
# Plain protobuf classes: the wrappers that the client puts around them take many times as long.
Document, Value, WriteResult = types.Document.pb(), types.Value.pb(), types.WriteResult.pb()
_Query, _Filter = types.StructuredQuery, types.StructuredQuery.FieldFilter.Operator
_COMPARISONS: dict[int, Callable[[int, int], bool]] = {
    _Filter.LESS_THAN: operator.lt,
    _Filter.LESS_THAN_OR_EQUAL: operator.le,
    _Filter.EQUAL: operator.eq,
    _Filter.GREATER_THAN_OR_EQUAL: operator.ge,
    _Filter.GREATER_THAN: operator.gt,
}


class Refused(Exception):
    """What a request is refused with; bad arguments unless another status code is given."""

    def __init__(self, text: str, code: Any = Code.INVALID_ARGUMENT) -> None:
        super().__init__(text)
        self.code = code


class _Transaction(NamedTuple):
    documents: Documents
    read_only: bool
    reads: list[Callable[[Documents], Any]]


@contextmanager
def firestore(*indexes: tuple[str, ...]) -> Iterator[FirestoreModel | None]:
    """Let clients find Firestore where the environment says, or else a model.

    Args:
        indexes: What the model is made with.

    Yields:
        The model, or None when another server takes its place.
    """
    if os.environ.get(ENVIRONMENT, "") not in _OURS:
        yield None
        return
    with FirestoreModel(indexes) as model, patch.dict(os.environ, {ENVIRONMENT: model.address}):
        _OURS.add(model.address)
        yield model


class FirestoreModel:
    """A gRPC server on 127.0.0.1 with documents in memory, which runs as long as a ``with`` block.

    Args:
        indexes: The indexes made by hand, each as its collection, then the fields compared by ``==`` in alphabetical
            order, then the fields ordered by.

    Attributes:
        address: Host and port, once started.
        calls: How many requests there were of each RPC, by its name.
    """

    address = ""

    def __init__(self, indexes: Iterable[tuple[str, ...]] = ()) -> None:
        self.calls: Counter[str] = Counter()
        self._failures: defaultdict[str, deque[tuple[Any, bool]]] = defaultdict(deque)
        self._indexes = frozenset(indexes)
        self._lock = Lock()
        self._last = 0
        # Every commit makes a new dict, of messages that never change: a snapshot is a reference to an earlier one.
        self._documents: Documents = {}
        self._transactions: dict[bytes, _Transaction] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, port: int = 0) -> str:
        """Listen on a free port, or on that of an earlier start, and return the address."""
        self._pool = ThreadPoolExecutor(8)
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        handlers = {name: self._handler(name, *rpc) for name, rpc in _RPCS.items()}
        service = grpc.method_handlers_generic_handler("google.firestore.v1.Firestore", handlers)
        self._server = grpc.server(self._pool, [service], options=options)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()
        return self.address

    def stop(self) -> None:
        """Stop listening and break all connections; the documents stay."""
        self._server.stop(None).wait()
        self._pool.shutdown()

    def fail_next(self, rpc: str, *, applied: bool, code: Any = Code.UNAVAILABLE, times: int = 1) -> None:
        """Let the next requests of an RPC fail.

        Args:
            rpc: The RPC's name, such as ``"Commit"``.
            applied: Whether it is carried out and its reply lost, or refused before anything is done.
            code: The status code to answer with; of some, Google's client tries again by itself.
            times: How many requests.
        """
        with self._lock:
            self._failures[rpc].extend([(code, applied)] * times)

    def _handler(self, name: str, method: Callable[..., Any], request: Any, streams: bool = False) -> Any:
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        return make(partial(self._serve, name, method), request.pb().FromString, methodcaller("SerializeToString"))

    def _serve(self, name: str, method: Callable[..., Any], request: Message, context: Any) -> Any:
        try:
            with self._lock:
                self.calls[name] += 1
                code, applied = self._failures[name].popleft() if self._failures[name] else (None, True)
                if not applied:
                    raise Refused("refused, as the test wants", code)
                if request.ByteSize() > MAX_REQUEST:
                    raise Refused(f"Request payload size exceeds the limit: {MAX_REQUEST} bytes.")
                answer = method(self, request)
                if code:
                    raise Refused("done, and the reply lost, as the test wants", code)
                return answer
        except Refused as refused:
            context.abort(refused.code, str(refused))

    def _tick(self) -> Message:
        self._last = max(time.time_ns() // 1000, self._last + 1)
        return Timestamp(seconds=self._last // 1_000_000, nanos=self._last % 1_000_000 * 1000)

    def _held(self, transaction: bytes) -> _Transaction:
        if transaction not in self._transactions:
            raise Refused("The referenced transaction has expired or is no longer valid.")
        return self._transactions[transaction]

    def _read(self, transaction: bytes, find: Callable[[Documents], Any]) -> Any:
        if not transaction:
            return find(self._documents)
        held = self._held(transaction)
        held.reads.append(find)
        return find(held.documents)

    def _get(self, name: str, request: Message) -> Message:
        _check_name(name)
        document = self._read(request.transaction, lambda documents: documents.get(name))
        return _project(document, request.mask.field_paths if request.HasField("mask") else None)

    def _get_document(self, request: Message) -> Message:
        _only(request, "name", "mask", "transaction")
        document = self._get(request.name, request)
        if document is None:
            raise Refused(f'Document "{request.name}" not found.', Code.NOT_FOUND)
        return document

    def _batch_get_documents(self, request: Message) -> Iterator[Message]:
        _only(request, "database", "documents", "mask", "transaction")
        names = reversed(dict.fromkeys(request.documents))  # no order is promised, so no caller may rely on one
        found = {name: self._get(name, request) for name in names}
        answer = partial(types.BatchGetDocumentsResponse.pb(), read_time=self._tick())
        return iter([answer(missing=name) if one is None else answer(found=one) for name, one in found.items()])

    def _list_documents(self, request: Message) -> Message:
        _only(request, "parent", "collection_id", "page_size", "page_token", "mask", "show_missing")
        prefix = f"{request.parent}/{request.collection_id}/"
        names = [prefix + id for id in _children(self._documents, prefix)]
        page, token = _page([name for name in names if request.show_missing or name in self._documents], request)
        paths = request.mask.field_paths if request.HasField("mask") else None
        documents = [_project(self._documents.get(name, Document(name=name)), paths) for name in page]
        return types.ListDocumentsResponse.pb()(documents=documents, next_page_token=token)

    def _list_collection_ids(self, request: Message) -> Message:
        _only(request, "parent", "page_size", "page_token")
        page, token = _page(_children(self._documents, f"{request.parent}/"), request)
        return types.ListCollectionIdsResponse.pb()(collection_ids=page, next_page_token=token)

    def _run_query(self, request: Message) -> Iterator[Message]:
        _only(request, "parent", "structured_query", "transaction")
        query = request.structured_query
        paths = [field.field_path for field in query.select.fields] if query.HasField("select") else None
        found = self._read(request.transaction, partial(_run, query, request.parent, self._indexes))
        answer = partial(types.RunQueryResponse.pb(), read_time=self._tick())
        return iter([answer(document=_project(document, paths)) for document in found] or [answer()])

    def _begin_transaction(self, request: Message) -> Message:
        _only(request, "database", "options")
        self._transactions.pop(request.options.read_write.retry_transaction, None)
        id = self._tick().SerializeToString()
        self._transactions[id] = _Transaction(self._documents, request.options.HasField("read_only"), [])
        return types.BeginTransactionResponse.pb()(transaction=id)

    def _rollback(self, request: Message) -> Message:
        self._held(request.transaction)
        del self._transactions[request.transaction]
        return Empty()

    def _commit(self, request: Message) -> Message:
        _only(request, "database", "writes", "transaction")
        if request.transaction:
            held = self._held(request.transaction)
            if held.read_only and request.writes:
                raise Refused("Cannot modify entities in a read-only transaction.")
            if any(find(held.documents) != find(self._documents) for find in held.reads):
                raise Refused("Too much contention on these documents. Please try again.", Code.ABORTED)
        now, results = self._write(request.writes)
        self._transactions.pop(request.transaction, None)
        return types.CommitResponse.pb()(write_results=results, commit_time=now)

    def _batch_write(self, request: Message) -> Message:
        _only(request, "database", "writes")
        _check_count(request.writes)
        names = [write.update.name or write.delete for write in request.writes]
        if len(set(names)) < len(names):
            raise Refused("Cannot write to the same document more than once in a batch.")
        answer = types.BatchWriteResponse.pb()()
        for write in request.writes:
            try:
                results, status = self._write([write])[1], Status()
            except Refused as refused:
                results, status = [WriteResult()], Status(code=refused.code.value[0], message=str(refused))
            answer.write_results.extend(results)
            answer.status.append(status)
        return answer

    def _write(self, writes: Any) -> tuple[Message, list[Message]]:
        _check_count(writes)
        now, documents = self._tick(), dict(self._documents)
        results = [_apply(documents, write, now) for write in writes]
        touched = {name: self._documents.get(name) for name in (write.update.name or write.delete for write in writes)}
        if sum(_document_size(documents.get(name, old)) for name, old in touched.items()) > MAX_REQUEST:
            raise Refused("Transaction too big. Decrease transaction size.")
        self._documents = documents
        return now, results


_RPCS: dict[str, tuple[Any, ...]] = {
    "GetDocument": (FirestoreModel._get_document, types.GetDocumentRequest),
    "BatchGetDocuments": (FirestoreModel._batch_get_documents, types.BatchGetDocumentsRequest, True),
    "ListDocuments": (FirestoreModel._list_documents, types.ListDocumentsRequest),
    "ListCollectionIds": (FirestoreModel._list_collection_ids, types.ListCollectionIdsRequest),
    "RunQuery": (FirestoreModel._run_query, types.RunQueryRequest, True),
    "BeginTransaction": (FirestoreModel._begin_transaction, types.BeginTransactionRequest),
    "Rollback": (FirestoreModel._rollback, types.RollbackRequest),
    "Commit": (FirestoreModel._commit, types.CommitRequest),
    "BatchWrite": (FirestoreModel._batch_write, types.BatchWriteRequest),
}


def _only(message: Message, *known: str) -> None:
    for field, _ in message.ListFields():
        if field.name not in known:
            raise Refused(f"{message.DESCRIPTOR.name}.{field.name} is not modelled", Code.UNIMPLEMENTED)


def _children(documents: Documents, prefix: str) -> list[str]:
    return sorted({name[len(prefix) :].split("/")[0] for name in documents if name.startswith(prefix)})


def _page(names: list[str], request: Message) -> tuple[list[str], str]:
    size, rest = request.page_size or _PAGE, [name for name in names if name > request.page_token]
    return rest[:size], rest[size - 1] if len(rest) > size else ""


def _ids(name: str) -> list[str]:
    return name.split("/")[5:]  # what follows projects/{project}/databases/{database}/documents


def _check_count(writes: Any) -> None:
    if len(writes) > MAX_WRITES:
        raise Refused(f"maximum {MAX_WRITES} writes allowed per request")


def _check_name(name: str) -> None:
    ids = _ids(name)
    if not ids or len(ids) % 2 or len(name.encode()) > MAX_NAME:
        raise Refused(f'Document name "{name[:99]}" is not that of a document, or too long.')
    for id in ids:
        if id in {"", ".", ".."} or _RESERVED.fullmatch(id) or len(id.encode()) > MAX_ID:
            raise Refused(f'Resource id "{id[:99]}" is invalid because it is reserved or too long.')


def _check_precondition(wanted: Message, name: str, old: Message) -> None:
    if wanted.HasField("update_time") and (old is None or old.update_time != wanted.update_time):
        raise Refused("the stored version does not match the required base version", Code.FAILED_PRECONDITION)
    if wanted.HasField("exists") and wanted.exists and old is None:
        raise Refused(f"No document to update: {name}", Code.NOT_FOUND)
    if wanted.HasField("exists") and not wanted.exists and old is not None:
        raise Refused(f"Document already exists: {name}", Code.ALREADY_EXISTS)


def _document_size(document: Message) -> int:
    return 0 if document is None else _name_size(document.name) + _fields_size(document.fields)


def _check_size(document: Message) -> None:
    size = _document_size(document)
    if size > MAX_DOCUMENT:
        exceeds = f"exceeds the maximum allowed size of {MAX_DOCUMENT:,} bytes"
        raise Refused(f"Document '{document.name}' cannot be written because its size ({size:,} bytes) {exceeds}.")


def _name_size(name: str) -> int:
    return 16 + sum(len(id.encode()) + 1 for id in _ids(name))


def _fields_size(fields: Any) -> int:
    sizes = {name: (len(name.encode()), _size(value)) for name, value in fields.items()}
    for name, (length, size) in sizes.items():
        if _RESERVED.fullmatch(name) or not 0 < length <= MAX_ID:
            raise Refused(f'Property name "{name[:99]}" is empty, reserved or too long.')
        if size > MAX_FIELD:
            raise Refused(f'The value of property "{name}" is longer than {MAX_FIELD} bytes.')
    return 32 + sum(length + 1 + size for length, size in sizes.values())


def _size(value: Message) -> int:
    kind = value.WhichOneof("value_type")
    content = getattr(value, kind)
    match kind:
        case "bytes_value" | "string_value":
            size = len(content) if kind == "bytes_value" else len(content.encode()) + 1
        case "array_value":
            size = sum(map(_size, content.values))
        case "map_value":
            size = _fields_size(content.fields)
        case "reference_value":
            size = _name_size(content)
        case _:
            size = _SIZES.get(kind, 8)
    return size


def _apply(documents: Documents, write: Message, now: Message) -> Message:
    _only(write, "update", "delete", "update_mask", "update_transforms", "current_document")
    name = write.update.name or write.delete
    _check_name(name)
    old = documents.get(name)
    _check_precondition(write.current_document, name, old)
    if write.delete:
        documents.pop(name, None)
        return WriteResult()
    new = Document(name=name, create_time=now)
    if old is not None:
        new.CopyFrom(old)
    if write.HasField("update_mask"):
        for path in write.update_mask.field_paths:
            _put(new.fields, path, _find(write.update.fields, path))
    else:
        new.ClearField("fields")
        new.MergeFrom(Document(fields=write.update.fields))
    results = [_transform(new.fields, transform, now) for transform in write.update_transforms]
    _check_size(new)
    if new != old:  # what changes nothing leaves update_time as it is
        new.update_time.CopyFrom(now)
        documents[name] = new
    return WriteResult(update_time=documents[name].update_time, transform_results=results)


def _transform(fields: Any, transform: Message, now: Message) -> Message:
    if transform.set_to_server_value:
        nanos = now.nanos - now.nanos % 1_000_000  # documented to be in milliseconds
        value = Value(timestamp_value=Timestamp(seconds=now.seconds, nanos=nanos))
    elif transform.HasField("increment"):
        value, old = transform.increment, _find(fields, transform.field_path)
        if old is not None and _kind(old) == TypeOrder.NUMBER:
            total = sum(getattr(number, number.WhichOneof("value_type")) for number in (old, value))
            whole = isinstance(total, int)
            value = Value(integer_value=max(-_INT64, min(total, _INT64 - 1))) if whole else Value(double_value=total)
    else:
        raise Refused(f"{transform.WhichOneof('transform_type')} is not modelled", Code.UNIMPLEMENTED)
    _put(fields, transform.field_path, value)
    return value


@cache
def _parts(path: str) -> tuple[str, ...]:
    return tuple(FieldPath.from_api_repr(path).parts)


def _find(fields: Any, path: str) -> Message:
    *parents, last = _parts(path)
    for part in parents:
        fields = fields[part].map_value.fields if part in fields else {}
    return fields.get(last)


def _put(fields: Any, path: str, value: Message) -> None:
    *parents, last = _parts(path)
    if value is None and _find(fields, path) is None:
        return
    for part in parents:
        fields = fields[part].map_value.fields
    if value is None:
        del fields[last]
    else:
        fields[last].CopyFrom(value)


def _project(document: Message, paths: Iterable[str] | None) -> Message:
    if document is None or paths is None:
        return document
    chosen = Document(name=document.name, create_time=document.create_time, update_time=document.update_time)
    for path in paths:
        _put(chosen.fields, path, _find(document.fields, path))
    return chosen


def _field(document: Message, path: str) -> Message:
    return Value(reference_value=document.name) if path == _NAME else _find(document.fields, path)


def _kind(value: Message) -> Any:
    return TypeOrder.from_value(types.Value.wrap(value))  # some releases of the client compare only wrapped values


def _compare(left: Message, right: Message) -> int:
    return Order.compare(types.Value.wrap(left), types.Value.wrap(right))


def _conditions(where: Message) -> Iterator[tuple[str, int, Message]]:
    one = where.field_filter
    if where.composite_filter.op == _Query.CompositeFilter.Operator.AND:
        for inner in where.composite_filter.filters:
            yield from _conditions(inner)
    elif one.op in _COMPARISONS:
        if one.field.field_path == _NAME and not one.value.reference_value:
            raise Refused("__key__ filter value must be a Key")
        yield one.field.field_path, one.op, one.value
    elif where.WhichOneof("filter_type"):
        raise Refused("of filters only comparisons, and AND of them, are modelled", Code.UNIMPLEMENTED)


def _holds(document: Message, path: str, op: int, right: Message) -> bool:
    left = _field(document, path)
    if left is None or _kind(left) != _kind(right):
        return False
    return _COMPARISONS[op](_compare(left, right), 0)


def _run(query: Message, parent: str, indexes: frozenset[tuple[str, ...]], documents: Documents) -> list[Message]:
    _only(query, "select", "from_", "where", "order_by", "start_at", "end_at", "offset", "limit")
    (collection,) = query.from_
    conditions = list(_conditions(query.where))
    equal = {path for path, op, _ in conditions if op == _Filter.EQUAL} - {_NAME}
    unequal = {path for path, op, _ in conditions if op != _Filter.EQUAL} - {_NAME}
    order = {by.field.field_path: -1 if by.direction == _Query.Direction.DESCENDING else 1 for by in query.order_by}
    for path in [*sorted(unequal), _NAME]:
        order.setdefault(path, next(reversed(order.values()), 1))
    _check_index(collection, equal, {path: order[path] for path in order if path not in equal}, indexes)

    def compare(left: Iterable[Message], right: Iterable[Message]) -> int:
        pairs = zip(order.values(), left, right, strict=False)
        return next((sign for way, one, other in pairs if (sign := way * _compare(one, other))), 0)

    rows = []
    for document in documents.values():
        above, id, _ = document.name.rsplit("/", 2)
        inside = f"{above}/".startswith(f"{parent}/") if collection.all_descendants else above == parent
        if inside and collection.collection_id in {"", id} and all(_holds(document, *each) for each in conditions):
            rows.append(([_field(document, path) for path in order], document))
    rows = [row for row in rows if None not in row[0]]
    at = cmp_to_key(compare)
    rows.sort(key=lambda row: at(row[0]))
    for cursor, way in ((query.start_at, 1), (query.end_at, -1)):
        if len(cursor.values) > len(query.order_by):
            raise Refused("Cursor has too many values.")
        nearest = 0 if cursor.before == (way > 0) else 1
        rows = [row for row in rows if not cursor.values or way * compare(row[0], cursor.values) >= nearest]
    stop = query.offset + query.limit.value if query.HasField("limit") else None
    return [document for _, document in rows[query.offset : stop]]


def _check_index(
    collection: Message, equal: set[str], order: dict[str, int], indexes: frozenset[tuple[str, ...]]
) -> None:
    # Firestore keeps an index of each single field, and merges those for any number of equalities; whatever else a
    # query orders by needs an index made by hand, and so does any field of a collection group.
    ordered = [path for path in order if path != _NAME]
    automatic = 0 if equal or collection.all_descendants else 1
    wanted = (collection.collection_id, *sorted(equal), *ordered)
    mixed, grouped = len(set(order.values())) > 1, equal and collection.all_descendants
    if (len(ordered) > automatic or mixed or grouped) and wanted not in indexes:
        raise Refused(f"The query requires an index: {wanted!r}", Code.FAILED_PRECONDITION)
