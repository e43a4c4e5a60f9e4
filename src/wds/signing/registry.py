"""The signature schemes that a source can name, by name. A new provider is entered here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wds.signing.github import GITHUB
from wds.signing.shopify import SHOPIFY
from wds.signing.slack import SLACK
from wds.signing.standard_webhooks import STANDARD
from wds.signing.stripe import STRIPE
from wds.signing.wds import WDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wds.signing.scheme import Scheme

SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme for scheme in (WDS, GITHUB, STRIPE, SHOPIFY, SLACK, STANDARD)
}
