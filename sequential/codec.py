"""How values become bytes in a store and come back: strict JSON, or what the user brings.

A value is never held longer than it is needed, because a single result may be as large as a fair part of
the memory: the caller hands its only reference over, and both directions let go of it half-way.
"""

from collections.abc import Callable, Iterable
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from .errors import StorageError

if TYPE_CHECKING:
    from json.decoder import JSONDecoder
    from json.encoder import JSONEncoder

_Encode = Callable[[Any, int], Iterable[str]]

_LARGE = 1 << 20
"""Characters from which a value is encoded piecewise: below it, twice the text is no burden to anyone."""

_LARGE_PIECE = 1 << 17
"""Characters from which a piece of text waits to be written until the value it is a copy of is let go."""

_DEEP = 500
"""Levels of nesting beyond which a value is refused: what one process can encode, another with less of its stack left
must be able to decode, and Python's limit is 1,000 for both."""


class Codec(Protocol):
    """What a store needs to keep values: a workflow only ever sees ``loads(dumps(value))``."""

    def dumps(self, value: Any, /) -> bytes:
        """Return `value` as bytes, or raise any exception to refuse it."""
        ...

    def loads(self, data: bytes, /) -> Any:
        """Return the value that `dumps` was given, or its nearest equal."""
        ...


def as_bytes(codec: Codec, data: object) -> bytes:
    """Return what a codec has made of a value.

    It is the caller who calls the codec, and gives the value up at that: held here, it would be in memory once more.

    Raises:
        TypeError: When it is not bytes.
    """
    if isinstance(data, bytes):
        return data
    raise TypeError(f"{type(codec).__name__}.dumps() returned a {type(data).__name__}, not bytes")


class JSONCodec:
    """Strict JSON in UTF-8: no NaN, no infinity, no lone surrogates, every number to its last bit.

    As JSON has it, a tuple comes back as a list, and a number used as a key comes back as text.
    """

    def dumps(self, value: Any, /) -> bytes:
        """Encode `value`.

        Raises:
            ValueError: Naming the part that is not JSON and what is wrong with it.
        """
        try:
            if not _is_large(value):
                text = "".join(_json()[2](value, 0))
                if len(text) > _DEEP and text.count("[") + text.count("{") > _DEEP:
                    _refuse_depth_and_keys(value)
                return text.encode()
            # In one go, a large text would stand in memory three times; piece by piece, it is no more than twice.
            written, rest, piece = BytesIO(), list[str](), ""
            for piece in _json()[0].iterencode(value):
                if rest or len(piece) > _LARGE_PIECE:
                    _refuse_surrogates(piece)
                    rest.append(piece)
                else:
                    written.write(piece.encode())
            _refuse_depth_and_keys(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(_find_fault(value) or str(error)) from None
        del value, piece
        rest.reverse()
        while rest:
            written.write(rest.pop().encode())
        return written.getvalue()

    def loads(self, data: bytes, /) -> Any:
        """Decode `data`.

        Raises:
            StorageError: When it is not JSON.
        """
        decoder = _json()[1]
        try:
            text = data.decode()
            del data
            try:
                value, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]
            except StopIteration:
                value, end = None, -1
            # What decode() does beside it takes longer, and matters only to errors, or white space around the value.
            return value if end == len(text) else decoder.decode(text)
        except ValueError as error:
            raise StorageError(
                f"what is stored is not JSON ({error}): read it with the codec= it was written with"
            ) from error


def fingerprint(value: Any) -> int | None:
    """Return a number that tells one value from another, whatever the order of their keys; none: it is not JSON."""
    _, _, _, encode, crc32 = _json()
    try:
        try:
            text = "".join(encode(value, 0))
        except TypeError:  # keys that are not all texts have no order, until they are
            text = "".join(encode(decode_json(encode_json(value)), 0))
        return crc32(text.encode())
    except (TypeError, ValueError, RecursionError):
        return None


def fingerprint_by(codec: Codec) -> Callable[[Any], int | None]:
    """Return how a codec tells one value from another: by its method ``fingerprint``, or as JSON."""
    method: Callable[[Any], int | None] = getattr(codec, "fingerprint", fingerprint)
    return method


def encode_json(value: Any) -> str:
    """Return a value of the library's own as JSON."""
    return "".join(_json()[2](value, 0))


def decode_json(text: str) -> Any:
    """Return what `encode_json` was given.

    Raises:
        ValueError: When it is not JSON.
    """
    return _json()[1].decode(text)


def _is_large(value: Any) -> bool:
    size, items = 0, [value]
    for item in items:
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            size += 16 * len(item) + _length_of_keys(item)
            items += item.values()
        elif isinstance(item, (list, tuple)):
            size += 8 * len(item)
            items += item
        else:
            continue
        if size > _LARGE:
            return True
    return False


def _length_of_keys(item: dict[Any, Any]) -> int:
    try:
        return sum(map(len, item))
    except TypeError:  # not all are texts: 1 and "1" would become the same, and one of their values be lost
        if _colliding_key(item) is None:
            return 0
        raise


def _colliding_key(item: dict[Any, Any]) -> str | None:
    seen: set[str] = set()
    for key in item:
        text = key if isinstance(key, str) else repr(key) if isinstance(key, float) else "".join(_json()[2](key, 0))
        if text in seen:
            return text
        seen.add(text)
    return None


def _refuse_depth_and_keys(value: Any) -> None:
    level = [value]
    for _ in range(_DEEP + 1):
        containers = [item for item in level if isinstance(item, (dict, list, tuple))]
        if not containers:
            return
        level = []
        for item in containers:
            if isinstance(item, dict):
                _length_of_keys(item)
                level += item.values()
            else:
                level += item
    raise RecursionError


def _refuse_surrogates(text: str) -> None:
    if not text.isascii():
        for start in range(0, len(text), _LARGE_PIECE):
            text[start : start + _LARGE_PIECE].encode()


def _find_fault(value: Any) -> str | None:  # noqa: C901, PLR0911 - a table of kinds, in the order they are met
    """Say which part of `value` is not JSON, without recursion: it may be nested without end."""
    from math import isfinite  # noqa: PLC0415 - a library to load, and seldom needed

    parts: list[tuple[str, Any, frozenset[int]]] = [("value", value, frozenset())]
    while parts:
        path, part, around = parts.pop()
        if isinstance(part, str):
            if not part.isascii() and any("\ud800" <= character <= "\udfff" for character in part):
                return f"{path} holds a lone surrogate, which UTF-8 cannot express"
        elif isinstance(part, float):
            if not isfinite(part):
                return f"{path} is {part}, which JSON cannot express"
        elif isinstance(part, (dict, list, tuple)):
            if id(part) in around:
                return f"{path} holds itself"
            if len(around) >= _DEEP:
                return f"{path[:40]}... is nested more than {_DEEP} levels deep"
            pairs = list(part.items() if isinstance(part, dict) else enumerate(part))
            for key, _ in pairs:
                if not isinstance(key, (str, int, float, bool, type(None))):
                    return f"{path} has a key that is a {type(key).__name__}, and a key in JSON is text"
            if isinstance(part, dict) and (text := _colliding_key(part)) is not None:
                return f"{path} has two keys that are both {text!r} in JSON"
            around |= {id(part)}
            parts.extend((f"{path}[{key!r}]", child, around) for key, child in reversed(pairs))
            parts.extend(
                (f"the key {key!r} of {path}", key, around) for key, _ in pairs if isinstance(key, (str, float))
            )
        elif not isinstance(part, (int, type(None))):
            return f"{path} is a {type(part).__name__}, and JSON has dict, list, str, int, float, bool and None only"
    return None


@cache
def _json() -> tuple["JSONEncoder", "JSONDecoder", "_Encode", "_Encode", Callable[[bytes], int]]:
    """Return what encodes and decodes; made at the first use, for importing `json` takes a tenth of all our import."""
    from json.decoder import JSONDecoder  # noqa: PLC0415
    from json.encoder import JSONEncoder  # noqa: PLC0415
    from zlib import crc32  # noqa: PLC0415

    encoder = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    sorting = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    return encoder, JSONDecoder(parse_constant=_refuse), prepare(encoder), prepare(sorting), crc32


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def prepare(encoder: "JSONEncoder") -> "_Encode":
    """Return what `encoder` does for each value, made once: making it anew takes longer than encoding a small value."""
    import json.encoder  # noqa: PLC0415

    try:
        settings = (encoder.key_separator, encoder.item_separator, encoder.sort_keys, False, encoder.allow_nan)
        quote = json.encoder.encode_basestring_ascii if encoder.ensure_ascii else json.encoder.encode_basestring
        return json.encoder.c_make_encoder(  # type: ignore[attr-defined, no-any-return]
            None, encoder.default, quote, None, *settings
        )
    except TypeError:  # an interpreter without it, or with another
        return lambda value, _: encoder.iterencode(value)
