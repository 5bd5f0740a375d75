"""Values come back as they went in, and what JSON cannot express is refused with its place."""

from __future__ import annotations

import json.encoder
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sequential.codec import JSONCodec, fingerprint, prepare
from sequential.errors import StorageError

codec = JSONCodec()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text(), children, max_size=5),
    max_leaves=20,
)


@given(json_values)
def test_json_comes_back_to_the_last_bit(value: Any) -> None:
    assert repr(codec.loads(codec.dumps(value))) == repr(value)


@given(json_values)
def test_large_values_are_written_like_small_ones(value: Any) -> None:
    data = codec.dumps([value, "x" * 2_000_000])
    assert data == codec.dumps([value])[:-1] + b',"' + b"x" * 2_000_000 + b'"]'
    assert repr(codec.loads(data)[0]) == repr(value)


def holds_itself() -> Any:
    value: dict[str, Any] = {"a": []}
    value["a"].append(value)
    return value


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            {"a": [1, {"b": {2}}]},
            "value['a'][1]['b'] is a set, and JSON has dict, list, str, int, float, bool and None only",
        ),
        (object(), "value is a object, and JSON has"),
        ([1.5, math.nan], "value[1] is nan, which JSON cannot express"),
        (-math.inf, "value is -inf, which JSON cannot express"),
        (["ok", "\ud800"], "value[1] holds a lone surrogate, which UTF-8 cannot express"),
        ({"\udfff": 1}, "the key '\\udfff' of value holds a lone surrogate, which UTF-8 cannot express"),
        ({math.nan: 1}, "the key nan of value is nan, which JSON cannot express"),
        ({"x": [{1: 2, "1": 3}]}, "value['x'][0] has two keys that are both '1' in JSON"),
        ({"big": "x" * 2_000_000, "y": {None: 2, "null": 3}}, "value['y'] has two keys that are both 'null' in JSON"),
        ({"a": {"b": "x" * 2_000_000 + "\ud800"}}, "value['a']['b'] holds a lone surrogate"),
        ({"ok": "é" * 2_000_000, "s": "\ud800"}, "value['s'] holds a lone surrogate"),
        (nested(501), "value[0][0][0][0][0][0][0][0][0][0][0][0... is nested more than 500 levels deep"),
        ({"x": {(1, 2): 3}}, "value['x'] has a key that is a tuple, and a key in JSON is text"),
        (holds_itself(), "value['a'][0] holds itself"),
        (nested(100_000), "value[0][0][0][0][0][0][0][0][0][0][0][0... is nested more than 500 levels deep"),
        (b"bytes", "value is a bytes, and JSON has"),
        ({"big": "x" * 2_000_000, "when": {1}}, "value['when'] is a set"),
    ],
)
def test_what_json_cannot_express_is_refused_with_its_place(value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        codec.dumps(value)


def test_a_fault_that_only_the_encoder_sees_is_told_in_its_words() -> None:
    class Odd(int):
        def __repr__(self) -> str:
            raise ValueError("odd")

    with pytest.raises(ValueError, match=r"value\[1\] holds a lone surrogate"):
        codec.dumps([["x" * 1000] * 2_000, "\ud800"])
    with pytest.raises(ValueError, match="digits"):
        codec.dumps(10**5000)
    assert codec.dumps(Odd(5)) == b"5"
    assert codec.dumps({1: 2, "2": 3, None: 4, False: 5}) == b'{"1":2,"2":3,"null":4,"false":5}'


@pytest.mark.parametrize("padding", ["", "x" * 2_000_000])
def test_what_is_encoded_with_little_stack_left_is_decoded_with_less(padding: str) -> None:
    def deeper(frames: int, work: Callable[[], Any]) -> Any:
        return work() if frames == 0 else deeper(frames - 1, work)

    value = [nested(498), padding]
    data = codec.dumps(value)
    assert deeper(300, lambda: codec.loads(data) == value)
    with pytest.raises(ValueError, match="is nested more than 500 levels deep"):
        codec.dumps([nested(501), padding])


@pytest.mark.parametrize("data", [b"NaN", b"[Infinity]", b"", b"{", b"1 2", b"\xff"])
def test_bytes_that_are_not_json_are_refused(data: bytes) -> None:
    with pytest.raises(
        StorageError, match=r"what is stored is not JSON \(.*\): read it with the codec= it was written with"
    ):
        codec.loads(data)


def test_white_space_is_no_matter() -> None:
    assert codec.loads(b'{"a": 1}\n') == codec.loads(b' {"a": 1}') == {"a": 1}


def test_a_fingerprint_depends_on_the_value_alone() -> None:
    assert fingerprint({"a": 1, "b": [2, "é"]}) == fingerprint({"b": (2, "é"), "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({1: "x", "b": "one"}) == fingerprint({"b": "one", "1": "x"}) != fingerprint({1: "x", "b": "two"})
    assert fingerprint({1, 2}) is fingerprint(math.nan) is fingerprint("\ud800") is fingerprint(nested(100_000)) is None


def test_an_interpreter_without_the_fast_encoder_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = json.encoder.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
    fast = prepare(encoder)
    monkeypatch.setattr(json.encoder, "c_make_encoder", None)
    slow = prepare(encoder)
    value = {"a": [1, "é", None]}
    assert "".join(fast(value, 0)) == "".join(slow(value, 0)) == '{"a":[1,"é",null]}'
