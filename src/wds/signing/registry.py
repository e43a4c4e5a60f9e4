"""The signature schemes that a source can name, by name.

To add a provider: copy `github.py` to a file of the provider's name, describe in it how the
provider signs, as one `Scheme`, and enter the scheme below. Nothing else needs a change: sources,
`wds send` and the OpenAPI document find it by its name. `tests/senders.py` signs as each provider
does; a test fails until the new one is there.
"""

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
