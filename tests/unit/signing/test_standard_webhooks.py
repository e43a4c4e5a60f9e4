"""Keys and signatures of Standard Webhooks."""

from __future__ import annotations

import base64

import pytest

from tests.senders import KEY, PRIVATE
from wds.signing import standard_webhooks

NOW = 1_790_000_000


def test_standard_sign_makes_a_signature_with_every_key():
    made = standard_webhooks.sign([KEY, b"y" * 24, PRIVATE], "msg", NOW, b"{}")["webhook-signature"]
    first, second, third = made.split(" ")
    content = standard_webhooks.content("msg", str(NOW), b"{}")
    assert standard_webhooks.matches(KEY, content, [first, second, third]) == {first}
    assert standard_webhooks.matches(b"y" * 24, content, [first, second, third]) == {second}
    assert standard_webhooks.matches(PRIVATE.public_key(), content, [first, second, third]) == {
        third
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", "whsec_", "whsec", "secret", "whsec_####", "whpk_", "whsk_AAAA"),
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        "whpk_" + base64.b64encode(b"x" * 31).decode(),
        base64.b64encode(b"x" * 32).decode(),
        "whsec_" + "é" * 32,
    ],
)
def test_read_key_refuses_other_text_without_repeating_it(text):
    with pytest.raises(ValueError, match="must be whsec_") as caught:
        standard_webhooks.read_key(text)
    assert len(text) < 10 or text not in str(caught.value)


def test_read_key_accepts_a_private_key_with_its_public_half():
    both = KEY + PRIVATE.public_key().public_bytes_raw()
    made = [
        standard_webhooks.read_key("whsk_" + base64.b64encode(raw).decode()) for raw in (KEY, both)
    ]
    assert made[0].private_bytes_raw() == made[1].private_bytes_raw() == KEY


def test_standard_sign_refuses_a_public_key():
    with pytest.raises(ValueError, match="cannot sign"):
        standard_webhooks.sign([PRIVATE.public_key()], "msg", NOW, b"{}")
