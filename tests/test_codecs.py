"""Compressed and encrypted values."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequential import FlowExecutor, NotEncodable, Paused, tool, wait
from sequential.codec import Codec, JSONCodec
from sequential.codecs import Compressed, Encrypted
from sequential.errors import StorageError
from sequential.stores.memory import MemoryStorage
from sequential.testing import crash_points
from tests.support import echo

fernet = pytest.importorskip("cryptography.fernet", reason='pip install -e ".[test]"')
KEY, OTHER = fernet.Fernet.generate_key(), fernet.Fernet.generate_key()

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
CODECS: list[Codec] = [
    Compressed(),
    Compressed(above=0, level=9),
    Encrypted(fernet.Fernet(KEY)),
    Encrypted(fernet.Fernet(KEY), Compressed(above=10)),
    Compressed(Encrypted(fernet.Fernet(KEY))),
]


@pytest.mark.parametrize("codec", CODECS)
@given(value=values)
def test_every_value_comes_back(codec: Codec, value: Any) -> None:
    assert json.dumps(codec.loads(codec.dumps(value))) == json.dumps(value)


def test_what_is_large_becomes_small_and_what_is_small_stays() -> None:
    codec = Compressed()
    assert len(codec.dumps("x" * 1_000_000)) < 2000
    assert codec.dumps("x") == b'\x00"x"'
    assert codec.loads(codec.dumps("x" * 1_000_000)) == "x" * 1_000_000


def workflow(input: str) -> Generator[Any, Any, Any]:
    got = yield tool("a", "b", f"tool {input}")
    return [input, got, (yield wait("go"))]


@pytest.mark.parametrize("codec", CODECS)
def test_results_input_and_signals_are_encoded(codec: Codec) -> None:
    storage, word = MemoryStorage(codec=codec), "secret" * 200
    flow = FlowExecutor(storage, call=echo, retain=True, budget=math.inf)
    assert flow.execute_sync(workflow, "one", word) == Paused("one", 0, "wait")
    flow.signal_sync("one", "go", f"signal {word}")
    record = storage.read("one")
    assert record is not None
    kept = [record.input, *(result.data for result in storage.results(record, 0, 1)), storage.received(record, "go")]
    assert len(kept) == 3
    assert not any(data is None or b"secretsecret" * 100 in data for data in kept)
    assert flow.execute_sync(workflow, "one", word) == [word, f"tool {word}", f"signal {word}"]
    assert flow.execute_sync(workflow, "one") == [word, f"tool {word}", f"signal {word}"]
    assert crash_points(workflow, word, call=echo, storage=storage, signals={"go": 1}) > 30


def test_keys_can_be_changed() -> None:
    old, new = fernet.Fernet(OTHER), fernet.Fernet(KEY)
    both = Encrypted(fernet.MultiFernet([new, old]))
    assert both.loads(Encrypted(old).dumps([1])) == [1]
    assert Encrypted(new).loads(both.dumps([1])) == [1]


def test_what_was_written_with_another_key_is_not_run() -> None:
    storage = MemoryStorage(codec=Encrypted(fernet.Fernet(OTHER)))
    flow = FlowExecutor(storage, call=echo)
    flow.execute_sync(workflow, "one", "x")
    storage.codec = Encrypted(fernet.Fernet(KEY))
    for use in (lambda: flow.execute_sync(workflow, "one"), lambda: flow.history_sync("one")):
        with pytest.raises(StorageError, match=r"cannot be decrypted \(InvalidToken.*\): give the key that it was enc"):
            use()
    storage.codec = Encrypted(fernet.Fernet(OTHER))
    assert flow.execute_sync(workflow, "one") == Paused("one", 0, "wait")


@pytest.mark.parametrize("data", [b"", b"{}", b"\x01{}", b"\x02x"])
def test_what_was_not_compressed(data: bytes) -> None:
    with pytest.raises(StorageError, match=r"was not compressed \(error: .*\): read it with the codec it was written"):
        Compressed().loads(data)


def test_what_the_inner_codec_refuses() -> None:
    for codec in CODECS:
        with pytest.raises(NotEncodable, match="value is nan"):
            FlowExecutor(MemoryStorage(codec=codec)).start_sync(workflow, math.nan)


@pytest.mark.parametrize("wrong", [{"level": 0}, {"level": 10}, {"level": "6"}, {"level": 6.5}, {"above": "512"}])
def test_what_does_not_say_how_to_compress(wrong: Any) -> None:
    with pytest.raises(ValueError, match="above= is a number of bytes, and level= from 1 to 9: got above="):
        Compressed(JSONCodec(), **wrong)


@pytest.mark.parametrize("box", [KEY, KEY.decode(), None])
def test_a_key_is_no_box_and_is_not_shown(box: Any) -> None:
    with pytest.raises(TypeError, match=r"^box= encrypts and decrypts, as Fernet\(key\) does: a \w+ does not$"):
        Encrypted(box)
