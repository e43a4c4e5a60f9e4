"""The retry schedule and the downstream's `Retry-After`."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from wds.domain.retry_policy import RETRY_AFTER_CAP_S, delay_s, http_date, retry_after_s

NOW = datetime(1994, 11, 6, 8, 49, 30, tzinfo=UTC)
SEVEN_LATER = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)
DEFAULT = (1.0, 2.0, 4.0, 8.0, 16.0)
THREE_FORMS = [
    pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", id="fixdate"),
    pytest.param("Sunday, 06-Nov-94 08:49:37 GMT", id="rfc850"),
    pytest.param("Sun Nov  6 08:49:37 1994", id="asctime"),
]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("0", 0),
        ("7", 7),
        (" 7\t", 7),
        ("007", 7),
        ("300", 300),
        ("301", RETRY_AFTER_CAP_S),
        ("9" * 20, RETRY_AFTER_CAP_S),
    ],
)
def test_retry_after_s_reads_seconds_up_to_the_cap(value, seconds):
    assert retry_after_s(value, NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *["", " ", "soon", "-7", "+7", "7.5", "1e3", "0x10", "\u0667", "7 s", "7,8", "nan", "inf"],
        "Sun, 06 Nov",
        "Sun, 99 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Fri, 31 Dec 9999 23:59:59 -0100",
    ],
    ids=ascii,
)
def test_retry_after_s_is_0_for_malformed_values(value):
    assert retry_after_s(value, NOW) == 0


@pytest.mark.parametrize("value", THREE_FORMS)
def test_http_date_reads_all_three_forms(value):
    assert http_date(value) == SEVEN_LATER
    assert retry_after_s(value, NOW) == 7


@pytest.mark.parametrize("value", THREE_FORMS)
def test_http_date_is_aware_utc(value):
    instant = http_date(value)
    assert instant is not None and instant.utcoffset() == timedelta(0)


def test_http_date_converts_other_offsets():
    assert http_date("Sun, 06 Nov 1994 10:49:37 +0200") == SEVEN_LATER


def test_retry_after_s_is_0_for_a_date_in_the_past():
    assert retry_after_s("Sun, 06 Nov 1994 08:49:29 GMT", NOW) == 0


def test_retry_after_s_cuts_a_date_far_ahead_to_the_cap():
    assert retry_after_s("Fri, 31 Dec 9999 23:59:59 GMT", NOW) == RETRY_AFTER_CAP_S


def test_retry_after_s_measures_a_date_from_now():
    later = format_datetime(NOW + timedelta(seconds=20), usegmt=True)
    assert retry_after_s(later, NOW + timedelta(seconds=5)) == 15


def test_retry_after_s_stays_within_its_bounds_for_random_garbage():
    rng = random.Random(1)
    letters = '0123456789 ,:;+-()<>@\\"\n\0GMTUZ\u0667é\ud800'
    seeds = ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "120", ""]
    for _ in range(20_000):
        text = list(rng.choice(seeds))
        for _ in range(rng.randrange(1, 8)):
            at = rng.randrange(len(text) + 1)
            text[at : at + rng.randrange(2)] = rng.choice(letters)
        value = "".join(text)
        assert 0 <= retry_after_s(value, NOW) <= RETRY_AFTER_CAP_S, ascii(value)


@pytest.mark.parametrize(("failure", "seconds"), list(enumerate([1, 2, 4, 8, 16], start=1)))
def test_delay_s_of_each_failure_is_its_delay_in_the_schedule(failure, seconds):
    assert delay_s(DEFAULT, failure) == seconds


@pytest.mark.parametrize("failure", [6, 7, 100])
def test_delay_s_repeats_the_last_delay_past_the_end(failure):
    assert delay_s(DEFAULT, failure) == 16


def test_delay_s_of_a_schedule_of_one_delay_is_constant():
    assert [delay_s((0.5,), failure) for failure in (1, 2, 9)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("asked", "seconds"), [(0, 4), (3.9, 4), (4, 4), (4.1, 4.1), (300, 300)])
def test_delay_s_is_lengthened_but_never_shortened_by_retry_after(asked, seconds):
    assert delay_s(DEFAULT, 3, asked) == seconds
