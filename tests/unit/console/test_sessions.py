"""Sessions of the console: who can make one, who accepts it, when it ends."""

from __future__ import annotations

import pytest

from wds.console.sessions import LIFETIME_S, Sessions, same

NOW = 1_800_000_000.5
NONCE = bytes(range(16))
SESSIONS = Sessions("token", "operator")
TEXT = SESSIONS.begin(NOW, NONCE).text


def test_a_session_is_accepted_by_every_replica_with_the_same_secret():
    assert Sessions("token", "operator").read(TEXT, NOW) == SESSIONS.begin(NOW, NONCE)


@pytest.mark.parametrize(
    "other",
    [Sessions("token2", "operator"), Sessions("token", "visitor")],
    ids=["secret", "purpose"],
)
def test_a_session_is_a_stranger_under_another_secret_or_purpose(other):
    assert other.read(TEXT, NOW) is None


def test_a_session_ends_when_its_time_is_over():
    assert SESSIONS.read(TEXT, NOW + LIFETIME_S - 1) is not None
    assert SESSIONS.read(TEXT, NOW + LIFETIME_S) is None


def test_a_session_cannot_be_made_longer():
    expiry, nonce, mac = TEXT.split(".")
    assert SESSIONS.read(f"{int(expiry) + 1}.{nonce}.{mac}", NOW) is None


@pytest.mark.parametrize("place", range(len(TEXT)))
def test_a_session_with_any_character_changed_is_none(place):
    changed = "0" if TEXT[place] != "0" else "1"
    assert SESSIONS.read(TEXT[:place] + changed + TEXT[place + 1 :], NOW) is None


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a.b.c", f"{TEXT}\n", f" {TEXT}", TEXT.upper(), "²" + TEXT[1:], "9" * 5000],
)
def test_what_is_no_session_is_refused_quietly(text):
    assert SESSIONS.read(text, NOW) is None


def test_neither_a_session_nor_its_form_token_holds_the_secret():
    session = Sessions("a-long-operators-token", "operator").begin(NOW, NONCE)
    assert "a-long-operators-token" not in session.text + session.form_token
    assert b"a-long-operators-token".hex() not in session.text + session.form_token


def test_a_form_token_belongs_to_one_session():
    session, other = SESSIONS.begin(NOW, NONCE), SESSIONS.begin(NOW, bytes(16))
    assert same(session.form_token, session.form_token)
    for wrong in (other.form_token, "", session.text, session.form_token[:-1], "ž", "\ud800"):
        assert not same(wrong, session.form_token)
