"""Every scheme accepts what its provider's library signs, and nothing else."""

from __future__ import annotations

import base64
import random
from datetime import UTC, datetime

import pytest
import stripe
from multidict import CIMultiDict
from slack_sdk.signature import Clock, SignatureVerifier
from standardwebhooks import Webhook

from tests.senders import KEY, PUBLIC_SECRET, SENDERS, STANDARD_SECRET
from wds.domain.errors import Refusal
from wds.signing import standard_webhooks
from wds.signing.registry import SCHEMES
from wds.signing.scheme import MAX_SIGNATURES, EventInfo, verify

NOW = 1_790_000_000
TIMED = ["stripe", "slack", "standard", "standard ed25519"]


def keys_of(sender, *more):
    return [SCHEMES[sender.scheme].read_key(secret) for secret in (sender.secret, *more)]


def judge(sender, body, headers, *, now=NOW, keys=None, **more):
    keys = keys_of(sender) if keys is None else keys
    return verify(SCHEMES[sender.scheme], keys, headers, body, now=now, **more)


def accepts(sender, body, headers):
    try:
        judge(sender, body, headers)
    except Refusal:
        return False
    return True


def refusal(*arguments, **more):
    with pytest.raises(Refusal) as caught:
        judge(*arguments, **more)
    return caught.value.status, caught.value.code


@pytest.fixture(params=SENDERS)
def sender(request):
    return SENDERS[request.param]


def test_verify_accepts_what_providers_libraries_sign(sender):
    proof = judge(sender, sender.body, sender.headers(sender.body, NOW))
    assert proof.secret_index == 0


def test_verify_accepts_githubs_published_vector():
    """https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries."""
    digits = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    headers = CIMultiDict({"X-Hub-Signature-256": f"sha256={digits}"})
    github = SCHEMES["github"]
    body = b"Hello, World!"
    verify(github, [b"It's a Secret to Everybody"], headers, body, now=NOW)
    with pytest.raises(Refusal):
        verify(github, [b"It's a Secret to Everybody"], headers, b"Hello, World?", now=NOW)


def test_verify_refuses_any_changed_bit_of_the_body(sender):
    headers = sender.headers(sender.body, NOW)
    for bit in range(len(sender.body) * 8):
        changed = bytearray(sender.body)
        changed[bit // 8] ^= 1 << bit % 8
        assert not accepts(sender, bytes(changed), headers), bit


def test_verify_refuses_any_changed_bit_of_a_signature_header(sender):
    scheme = SCHEMES[sender.scheme]
    headers = sender.headers(sender.body, NOW)
    tried = 0
    for name in scheme.headers:
        for bit in range(len(headers.get(name, "")) * 8):
            raw = bytearray(headers[name].encode())
            raw[bit // 8] ^= 1 << bit % 8
            changed = headers.copy()
            changed[name] = raw.decode("utf-8", "surrogateescape")
            assert not accepts(sender, sender.body, changed), (name, bit)
            tried += 1
    assert tried >= 300


@pytest.mark.parametrize("seed", range(4))
def test_verify_refuses_100_000_mutated_signatures(seed):
    """25,000 for each seed, over all schemes: flips, cuts, swaps, insertions and splices."""
    rng = random.Random(seed)
    valid = [(each, each.headers(each.body, NOW)) for each in SENDERS.values()]
    other = [each.headers(each.body + b" ", NOW) for each in SENDERS.values()]
    tried = 0
    while tried < 25_000:
        number = rng.randrange(len(valid))
        sender, headers = valid[number]
        name = rng.choice([each for each in SCHEMES[sender.scheme].headers if each in headers])
        text = mutated(rng, headers[name], other[number][name])
        if still_shown(name, text, headers[name]):
            continue
        changed = headers.copy()
        changed[name] = text
        assert not accepts(sender, sender.body, changed), (sender, name, text)
        tried += 1


LISTS = {"Stripe-Signature": ",", "webhook-signature": " "}


def still_shown(name, text, original):
    """Tell whether a list still has the valid signature, beside others."""
    if name not in LISTS:
        return text == original
    return set(original.split(LISTS[name])) <= set(text.split(LISTS[name]))


def mutated(rng, text, other):
    at, to = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
    alphabet = "0123456789abcdefABCDEF+/=,. tv\x00\udcffé٣" + text
    return rng.choice(
        [
            text[:at] + "".join(rng.choices(alphabet, k=max(1, to - at))) + text[to:],
            text[:at] + text[to:],
            text[:at] + rng.choice(alphabet) + text[at:],
            text[:at] + other[at:],
            text[:at] + text[at:].swapcase(),
            text[to:] + text[at:to] + text[:at],
            other,
        ]
    )


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize(
    ("off", "good"), [(0, True), (300, True), (-300, True), (301, False), (-301, False)]
)
def test_verify_refuses_a_timestamp_outside_the_tolerance(name, off, good):
    sender = SENDERS[name]
    headers = sender.headers(sender.body, NOW + off)
    if good:
        judge(sender, sender.body, headers)
    else:
        code = "timestamp_out_of_tolerance"
        assert refusal(sender, sender.body, headers) == (401, code)
        judge(sender, sender.body, headers, tolerance_s=301)


@pytest.mark.parametrize("name", ["wds", "github", "shopify"])
def test_verify_ignores_time_where_no_timestamp_is_signed(name):
    sender = SENDERS[name]
    judge(sender, sender.body, sender.headers(sender.body, NOW), now=NOW + 10**9)


def test_verify_returns_which_secret_matched(sender):
    headers = sender.headers(sender.body, NOW)
    other = "whsec_" + base64.b64encode(b"x" * 24).decode()
    assert judge(sender, sender.body, headers, keys=keys_of(sender, other)).secret_index == 0
    assert judge(sender, sender.body, headers, keys=keys_of(sender, other)[::-1]).secret_index == 1
    assert refusal(sender, sender.body, headers, keys=keys_of(sender, other)[1:])[0] == 401
    assert refusal(sender, sender.body, headers, keys=[])[0] == 401


def test_verify_refuses_a_request_without_a_signature_header(sender):
    for name in SCHEMES[sender.scheme].headers:
        headers = sender.headers(sender.body, NOW)
        if headers.pop(name, None) is not None:
            assert refusal(sender, sender.body, headers) == (401, "missing_signature")


@pytest.mark.parametrize("name", ["stripe", "shopify", "slack", "standard"])
def test_verify_refuses_a_repeated_signature_header(name):
    sender = SENDERS[name]
    for header in SCHEMES[sender.scheme].headers:
        headers = sender.headers(sender.body, NOW)
        headers.add(header, headers[header])
        assert refusal(sender, sender.body, headers) == (400, "repeated_header")


def test_verify_accepts_one_valid_of_several_where_senders_rotate():
    for name, header in (("stripe", "Stripe-Signature"), ("standard", "webhook-signature")):
        sender = SENDERS[name]
        headers = sender.headers(sender.body, NOW)
        if name == "stripe":
            time, _, good = headers[header].partition(",")
            headers[header] = f"{time},v1={'0' * 64},{good},v0={'1' * 64}"
        else:
            headers[header] = f"v1,{'A' * 43}= v1a,AAAA v2,? {headers[header]}"
        judge(sender, sender.body, headers)


def test_verify_refuses_more_than_the_maximum_of_signatures():
    sender = SENDERS["standard"]
    headers = sender.headers(sender.body, NOW)
    good = headers["webhook-signature"]
    headers["webhook-signature"] = " ".join([*["v1,no"] * (MAX_SIGNATURES - 1), good])
    judge(sender, sender.body, headers)
    headers["webhook-signature"] = " ".join([*["v1,no"] * MAX_SIGNATURES, good])
    assert refusal(sender, sender.body, headers) == (401, "invalid_signature")


def test_standard_secret_and_public_key_do_not_verify_each_other():
    for name, secret in (("standard", PUBLIC_SECRET), ("standard ed25519", STANDARD_SECRET)):
        sender = SENDERS[name]
        keys = [standard_webhooks.read_key(secret)]
        assert refusal(sender, sender.body, sender.headers(sender.body, NOW), keys=keys) == (
            401,
            "invalid_signature",
        )


def test_schemes_are_each_tested_with_requests_of_their_provider():
    assert {sender.scheme for sender in SENDERS.values()} == set(SCHEMES)


@pytest.mark.parametrize("name", SCHEMES)
def test_scheme_accepts_what_it_signs(name):
    scheme = SCHEMES[name]
    key = scheme.read_key(STANDARD_SECRET)
    headers = CIMultiDict(scheme.sign(key, b"{}", EventInfo("id", "kind", NOW)))
    assert verify(scheme, [key], headers, b"{}", now=NOW).secret_index == 0


def test_scheme_signatures_are_accepted_by_providers_libraries():
    body, stamp = b'{"object":"event"}', EventInfo("msg_3", None, NOW)
    made = SCHEMES["stripe"].sign(b"s", body, stamp)
    assert stripe.WebhookSignature.verify_header(body.decode(), made["Stripe-Signature"], "s")
    made = SCHEMES["slack"].sign(b"s", body, stamp)
    clock = Clock()
    clock.now = lambda: NOW
    assert SignatureVerifier("s", clock).is_valid_request(body, made)
    now = int(datetime.now(UTC).timestamp())
    made = SCHEMES["standard"].sign(KEY, body, EventInfo("msg_3", None, now))
    assert Webhook(STANDARD_SECRET).verify(body, made) == {"object": "event"}
