"""Signatures: ours are those of Standard Webhooks, and nothing else passes."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from sequential.http import new_secret
from sequential.http.signing import TOLERANCE, BadSignature, Signer

NOW = 1_800_000_000.7
SECRET = new_secret()
BODY = b'{"id": "exec-1"}'
HEADERS = Signer(SECRET).sign("exec-1:3", NOW, BODY)


@given(
    value=st.text(),
    key=st.binary(min_size=24, max_size=64),
    id=st.from_regex(r"[A-Za-z0-9_:@~-]{1,20}", fullmatch=True),
)
def test_the_standards_own_package_signs_and_checks_the_same(value: str, key: bytes, id: str) -> None:
    secret, body = f"whsec_{base64.b64encode(key).decode()}", json.dumps(value)
    now = datetime.now(tz=UTC)
    theirs, ours = standardwebhooks.Webhook(secret), Signer(secret)
    signed = ours.sign(id, now.timestamp(), body.encode())
    assert theirs.verify(body, signed) == value
    assert theirs.sign(id, now, body) == signed["webhook-signature"]
    assert ours.check({**signed, "webhook-signature": theirs.sign(id, now, body)}, now.timestamp(), body.encode()) == id


def test_an_example_of_the_standard() -> None:
    signer = Signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_each_of_several_secrets_is_good_and_each_signs() -> None:
    old, new = new_secret(), new_secret()
    both = Signer([new, old])
    for secret in (old, new):
        assert both.check(Signer(secret).sign("a:1", NOW, BODY), NOW, BODY) == "a:1"
        assert Signer(secret).check(both.sign("a:1", NOW, BODY), NOW, BODY) == "a:1"
    first, _ = both.sign("a:1", NOW, BODY)["webhook-signature"].split()
    assert first == Signer(new).sign("a:1", NOW, BODY)["webhook-signature"]
    with pytest.raises(BadSignature, match="by this secret"):
        Signer(new).check(Signer(old).sign("a:1", NOW, BODY), NOW, BODY)


def test_one_good_signature_among_others_suffices() -> None:
    others = Signer(new_secret()).sign("exec-1:3", NOW, BODY)["webhook-signature"]
    several = f"v2,abc {others} {HEADERS['webhook-signature']} v1a,x"
    assert Signer(SECRET).check({**HEADERS, "webhook-signature": several}, NOW, BODY) == "exec-1:3"


@pytest.mark.parametrize("late", [-TOLERANCE, 0, TOLERANCE])
def test_clocks_may_differ_by_five_minutes(late: float) -> None:
    assert Signer(SECRET).check(HEADERS, int(NOW) + late, BODY) == "exec-1:3"


@pytest.mark.parametrize(("late", "told"), [(-301, "301 seconds ahead of this clock"), (301, "301 seconds old")])
def test_but_not_by_more(late: float, told: str) -> None:
    with pytest.raises(BadSignature, match=f"the signature is {told}, and 300 are allowed"):
        Signer(SECRET).check(HEADERS, int(NOW) + late, BODY)


@pytest.mark.parametrize("name", HEADERS)
def test_a_missing_header_is_named(name: str) -> None:
    for headers in ({key: value for key, value in HEADERS.items() if key != name}, {**HEADERS, name: ""}):
        with pytest.raises(BadSignature, match=f"the header {name} is missing"):
            Signer(SECRET).check(headers, NOW, BODY)


@given(data=st.data())
def test_whatever_is_changed_is_noticed(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*HEADERS, "body"]))
    value = BODY.decode() if name == "body" else HEADERS[name]
    place = data.draw(st.integers(0, len(value)))
    length = data.draw(st.integers(0, 3))
    changed = value[:place] + data.draw(st.text(max_size=3)) + value[place + length :]
    if changed == value or (name == "webhook-signature" and value in changed.split(" ")):
        return
    headers, body = dict(HEADERS), BODY
    if name == "body":
        body = changed.encode(errors="backslashreplace")
    else:
        headers[name] = changed
    with pytest.raises(BadSignature):
        Signer(SECRET).check(headers, NOW, body)


@given(st.fixed_dictionaries({name: st.text(st.characters()) for name in HEADERS}))
def test_malformed_headers_are_bad_signatures_and_no_other_error(headers: dict[str, str]) -> None:
    with pytest.raises(BadSignature):
        Signer(SECRET).check(headers, NOW, BODY)


@pytest.mark.parametrize(
    "timestamp", ["1800000000.0", "+1800000000", "-1", "٣٣", "1_800_000_000", "9" * 16, "x", " 1800000000"]
)
def test_a_timestamp_that_is_signed_and_no_number_is_refused(timestamp: str) -> None:
    signer = Signer(SECRET)
    with pytest.raises(BadSignature, match="not a whole number of seconds"):
        signer.check({**HEADERS, "webhook-timestamp": timestamp}, NOW, BODY)


@pytest.mark.parametrize(
    "secret", ["", "short", "whsec_!", "not base 64!", b"x" * 23, b"x" * 65, "whsec_" + "A" * 28, []]
)
def test_a_secret_that_is_none_is_refused_with_a_remedy_and_not_shown(secret: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"new_secret\(\)") as caught:
        Signer(secret)
    assert not secret or str(secret) not in str(caught.value)


def test_a_secret_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="not of type int"):
        Signer([42])  # type: ignore[list-item]


def test_new_secrets_differ_and_have_the_length_that_the_standard_asks_for() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(base64.b64decode(secret.removeprefix("whsec_"))) for secret in secrets} == {32}
