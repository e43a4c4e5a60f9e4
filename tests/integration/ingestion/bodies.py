"""Payloads that are valid JSON and unusual, and how to read one back."""

from __future__ import annotations

ODD = {
    "odd whitespace": b' \r\n{ "a"\t:\n1 ,"b":[ ] }\n ',
    "unicode": '{"a":"žluťoučký 🐎\u2028","é":"e\u0301"}'.encode(),
    "big integers": b'{"n":123456789012345678901234567890,"m":-18446744073709551616}',
    "5,000-digit integer": b'{"n":' + b"9" * 5000 + b"}",
    "lone surrogate escapes": rb'{"a":"\ud800","\udfff":1}',
    "duplicate keys": b'{"a":1,"a":2,"a":{"b":1,"b":2}}',
    "spelling of numbers": b'{"n":1.0E+2,"z":-0.0,"h":1e999}',
    "names of operators": b'{"$set":{"a.b":1},"_id":"mine","payload":{}}',
}


async def raw(client, path):
    async with client.session.get(client.url + path) as response:
        assert response.status == 200
        return await response.read()
