"""The payloads to send: real ones from a folder, or generated ones of the same sizes."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from wds.signing.hmac_sha256 import sign

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

QUANTILES = (2_000, 7_000, 9_000, 14_000, 32_000)
"""Bytes at 0, 25, 50, 75 and 100 % of GitHub's published example payloads."""
SMALL = 600

_LUA = """
local folder, requests, n = "{folder}", {{}}, {offset}
for line in io.lines(folder .. "/index") do
  local name, signature, kind = line:match("(%S+) (%S+) (%S+)")
  local file = io.open(folder .. "/" .. name, "rb")
  local body = file:read("*a")
  file:close()
  requests[#requests + 1] = {{ body = body, headers = {{
    ["Content-Type"] = "application/json",
    ["X-Hub-Signature-256"] = signature,
    ["X-GitHub-Event"] = kind,
  }} }}
end
local formatted = {{}}
init = function()
  for i, each in ipairs(requests) do
    formatted[i] = wrk.format("POST", nil, each.headers, each.body)
  end
end
request = function()
  n = n % #formatted + 1
  return formatted[n]
end
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format('RESULT {{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, ' ..
    '"refused": %d, "broken": %d}}\\n', summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
"""


def generated(count: int, seed: int = 1) -> list[bytes]:
    """Return JSON objects whose sizes follow `QUANTILES`; the same seed gives the same bytes."""
    rng = random.Random(seed)
    bodies = []
    for _ in range(count):
        quarter = rng.randrange(4)
        bodies.append(of_size(rng.randint(QUANTILES[quarter], QUANTILES[quarter + 1]), rng))
    return bodies


def of_size(size: int, rng: random.Random) -> bytes:
    """Return a JSON object of about `size` bytes: nested, with strings and numbers."""
    value: dict[str, object] = {"action": "opened", "number": rng.randrange(10_000)}
    body = json.dumps(value)
    while len(body) < size - 120:
        key = f"field_{len(value)}"
        value[key] = {"id": rng.randrange(2**40), "url": f"https://example.com/{rng.random()}"}
        body += json.dumps({key: value[key]})
    return json.dumps(value).encode()


def real(folder: Path) -> list[bytes]:
    """Return the JSON files of a folder, without those larger than the last of `QUANTILES`."""
    bodies = [path.read_bytes() for path in sorted(folder.glob("*.json"))]
    return [body for body in bodies if len(body) <= QUANTILES[-1]]


def wrk_script(bodies: Sequence[bytes], secret: str, home: Path) -> Path:
    """Write a script for wrk that posts `bodies` in turn, signed; return its path."""
    home.mkdir(parents=True)
    index = []
    for number, body in enumerate(bodies):
        (home / f"{number}.json").write_bytes(body)
        index.append(f"{number}.json {sign(secret, body)} kind-{number % 20}")
    (home / "index").write_text("\n".join(index) + "\n")
    script = home / "post.lua"
    script.write_text(_LUA.format(folder=home, offset=0))
    return script
