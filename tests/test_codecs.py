"""Compressed and encrypted values."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequential import Diverged, FlowExecutor, IdInUse, NotEncodable, Paused, StorageError, tool, wait
from sequential.codec import Codec, JSONCodec, fingerprint, fingerprint_by
from sequential.codecs import Compressed, Encrypted
from sequential.stores.memory import MemoryStorage
from sequential.testing import crash_points
from tests.support import echo

fernet = pytest.importorskip("cryptography.fernet", reason='pip install -e ".[test]"')
KEY, OTHER = fernet.Fernet.generate_key(), fernet.Fernet.generate_key()
SECRET = b"sixteen and more bytes"

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=10
)
CODECS: list[Codec] = [
    Compressed(),
    Compressed(above=0, level=9),
    Encrypted(fernet.Fernet(KEY)),
    Encrypted(fernet.Fernet(KEY), Compressed(above=10), key=SECRET),
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
    record, entries = storage.read("one", (-(2**31), 0), 2**31)
    assert len(entries) == 3
    assert not any(b"secretsecret" * 100 in entry.data for entry in entries)
    plain = [str(fingerprint(value)) for value in (word, f"tool {word}")]
    if fingerprint_by(codec)(word) != fingerprint(word):
        assert not any(number in str([record, *entries]) for number in plain)
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
        with pytest.raises(StorageError) as caught:
            use()
        assert "cannot be decrypted (InvalidToken): give the key that it" in f"{caught.value} {caught.value.__cause__}"
    storage.codec = Encrypted(fernet.Fernet(OTHER))
    assert flow.execute_sync(workflow, "one") == Paused("one", 0, "wait")


@pytest.mark.parametrize("data", [b"", b"{}", b"\x01{}", b"\x02x"])
def test_what_was_not_compressed(data: bytes) -> None:
    with pytest.raises(StorageError, match=r"was not compressed \(error: .*\): read it with the codec it was written"):
        Compressed().loads(data)


def test_what_the_inner_codec_refuses() -> None:
    for codec in CODECS:
        with pytest.raises(NotEncodable, match="value is nan"):
            FlowExecutor(MemoryStorage(codec=codec)).start_sync(workflow, input=math.nan)


@pytest.mark.parametrize("wrong", [{"level": 0}, {"level": 10}, {"level": "6"}, {"level": 6.5}, {"above": "512"}])
def test_what_does_not_say_how_to_compress(wrong: Any) -> None:
    with pytest.raises(ValueError, match="above= is a number of bytes, and level= from 1 to 9: got above="):
        Compressed(JSONCodec(), **wrong)


@pytest.mark.parametrize("box", [KEY, KEY.decode(), None])
def test_a_key_is_no_box_and_is_not_shown(box: Any) -> None:
    with pytest.raises(TypeError, match=r"^box= encrypts and decrypts, as Fernet\(key\) does: a \w+ does not$"):
        Encrypted(box)


@pytest.mark.parametrize("key", ["a text of sixteen characters", b"fifteen of them", b"", bytearray(16), 5])
def test_a_key_that_could_be_guessed_is_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(ValueError, match=r"^key= is at least 16 bytes, as secrets\.token_bytes\(32\) makes them$"):
        Encrypted(fernet.Fernet(KEY), key=key)


@given(value=values, other=values)
def test_a_fingerprint_tells_values_apart_for_those_who_have_the_key(value: Any, other: Any) -> None:
    codec, plain = Encrypted(fernet.Fernet(KEY), key=SECRET), fingerprint(value)
    found = codec.fingerprint(value)
    digest = hmac.new(SECRET, str(plain).encode(), hashlib.sha256).digest()
    assert found == int.from_bytes(digest[:8], "big") // 2
    assert (found == codec.fingerprint(other)) == (plain == fingerprint(other))
    assert found != Encrypted(fernet.Fernet(KEY), key=SECRET[1:]).fingerprint(value)
    assert Encrypted(fernet.Fernet(KEY)).fingerprint(value) is None


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_values_are_told_apart_as_the_other_codec_has_it(codec: Codec) -> None:
    for value in ({"b": [1], "a": "é" * 2000}, "x", {1, 2}):
        assert Compressed(codec).fingerprint(value) == fingerprint_by(codec)(value)
    assert fingerprint_by(codec)({1, 2}) is None


@pytest.mark.parametrize(
    ("codec", "notices"), [(CODECS[0], True), (CODECS[2], False), (CODECS[3], True), (CODECS[4], False)]
)
def test_a_changed_input_is_noticed_by_those_who_have_a_key_and_a_changed_tool_by_all(
    codec: Codec, notices: bool
) -> None:
    asked: Any = ["a", "b", "one"]

    def changing(input: Any) -> Generator[Any, Any, Any]:
        return [(yield tool(*asked)), (yield wait("go"))]

    flow = FlowExecutor(MemoryStorage(codec=codec), call=echo, workflows=[changing], budget=math.inf)
    for id in ("input", "tool"):
        flow.execute_sync(changing, id, "x")
    asked = ["a", "b", "two"]
    if notices:
        with pytest.raises(Diverged, match="with another input"):
            flow.resume_sync("input")
        with pytest.raises(IdInUse):
            flow.execute_sync(changing, "tool", "y")
    else:
        assert flow.resume_sync("input") == flow.execute_sync(changing, "input", "y") == Paused("input", 0, "wait")
    asked = ["a", "c", "one"]
    with pytest.raises(Diverged, match=r"has recorded 'tool a\.b' at step 0"):
        flow.resume_sync("tool")
