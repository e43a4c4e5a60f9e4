"""HMAC-SHA256 signatures of raw bodies."""

from __future__ import annotations

import random

import pytest

from wds.signing.hmac_sha256 import sign, verify

SECRET = "It's a Secret to Everybody"
BODY = b"Hello, World!"
SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
HEX = SIGNATURE.removeprefix("sha256=")


def test_hmac_sign_matches_githubs_documentation():
    assert sign(SECRET, BODY) == SIGNATURE
    assert verify([SECRET], BODY, SIGNATURE)


def test_hmac_verify_accepts_what_sign_returns():
    rng = random.Random(2)
    for length in (0, 1, 63, 64, 65, 5_000):
        body, secret = rng.randbytes(length), f"schlüssel-{rng.random()}"
        assert verify([secret], body, sign(secret, body))


def test_hmac_verify_refuses_any_flipped_bit_of_the_body():
    for bit in range(len(BODY) * 8):
        changed = bytearray(BODY)
        changed[bit // 8] ^= 1 << bit % 8
        assert not verify([SECRET], bytes(changed), SIGNATURE)


def test_hmac_verify_refuses_any_changed_character_of_the_signature():
    for at, character in enumerate(SIGNATURE):
        other = "0" if character != "0" else "1"
        assert not verify([SECRET], BODY, SIGNATURE[:at] + other + SIGNATURE[at + 1 :])


@pytest.mark.parametrize(
    "signature",
    [
        pytest.param("", id="empty"),
        pytest.param("sha256=", id="no_digits"),
        pytest.param(HEX, id="no_prefix"),
        pytest.param("sha1=" + HEX[:40], id="sha1"),
        pytest.param("SHA256=" + HEX, id="prefix_in_capitals"),
        pytest.param("sha256=" + HEX.upper(), id="digits_in_capitals"),
        pytest.param(SIGNATURE[:-1], id="one_digit_short"),
        pytest.param(SIGNATURE + "0", id="one_digit_long"),
        pytest.param(SIGNATURE + "\n", id="newline_after"),
        pytest.param(" " + SIGNATURE, id="space_before"),
        pytest.param(SIGNATURE + "," + SIGNATURE, id="twice"),
        pytest.param("sha256=" + "é" * 64, id="not_ascii"),
        pytest.param("sha256=" + "\udcff" * 64, id="undecodable"),
        pytest.param("sha256=" + "٣" * 64, id="digits_of_another_script"),
    ],
)
def test_hmac_verify_refuses_another_spelling(signature):
    assert not verify([SECRET], BODY, signature)


def test_hmac_verify_accepts_every_secret_while_rotating():
    secrets = ["old", "current", "next"]
    assert all(verify(secrets, BODY, sign(secret, BODY)) for secret in secrets)
    assert not verify(secrets, BODY, sign("gone", BODY))


def test_hmac_verify_refuses_everything_without_a_secret():
    assert not verify([], BODY, sign("", BODY))


@pytest.mark.parametrize("matching", [0, 1, 2])
def test_hmac_verify_compares_every_secret_whichever_matches(matching):
    secrets = ["a", "b", "c"]
    rest = iter(secrets)
    assert verify(rest, BODY, sign(secrets[matching], BODY))
    assert next(rest, None) is None
