"""Signed sessions: which secrets accept one, when it expires, and that it cannot be forged."""

from __future__ import annotations

import pytest

from wds.console.sessions import LIFETIME_S, SessionSigner, form_tokens_match

NOW = 1_800_000_000.5
NONCE = bytes(range(16))
SIGNER = SessionSigner("token", "operator")
TEXT = SIGNER.issue(NOW, NONCE).text


def test_session_is_accepted_by_every_replica_with_the_same_secret():
    assert SessionSigner("token", "operator").verify(TEXT, NOW) == SIGNER.issue(NOW, NONCE)


@pytest.mark.parametrize(
    "other",
    [SessionSigner("token2", "operator"), SessionSigner("token", "visitor")],
    ids=["secret", "purpose"],
)
def test_session_of_another_secret_or_purpose_is_refused(other):
    assert other.verify(TEXT, NOW) is None


def test_session_expires_after_its_lifetime():
    assert SIGNER.verify(TEXT, NOW + LIFETIME_S - 1) is not None
    assert SIGNER.verify(TEXT, NOW + LIFETIME_S) is None


def test_session_with_a_later_expiry_is_refused():
    expiry, nonce, mac = TEXT.split(".")
    assert SIGNER.verify(f"{int(expiry) + 1}.{nonce}.{mac}", NOW) is None


@pytest.mark.parametrize("place", range(len(TEXT)))
def test_session_with_any_character_changed_is_refused(place):
    changed = "0" if TEXT[place] != "0" else "1"
    assert SIGNER.verify(TEXT[:place] + changed + TEXT[place + 1 :], NOW) is None


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a.b.c", f"{TEXT}\n", f" {TEXT}", TEXT.upper(), "²" + TEXT[1:], "9" * 5000],
)
def test_session_of_malformed_text_is_none(text):
    assert SIGNER.verify(text, NOW) is None


def test_session_and_form_token_do_not_contain_the_secret():
    session = SessionSigner("a-long-operators-token", "operator").issue(NOW, NONCE)
    assert "a-long-operators-token" not in session.text + session.form_token
    assert b"a-long-operators-token".hex() not in session.text + session.form_token


def test_form_token_matches_one_session_only():
    session, other = SIGNER.issue(NOW, NONCE), SIGNER.issue(NOW, bytes(16))
    assert form_tokens_match(session.form_token, session.form_token)
    for wrong in (other.form_token, "", session.text, session.form_token[:-1], "ž", "\ud800"):
        assert not form_tokens_match(wrong, session.form_token)
