"""Requests as raw bytes, with the statuses that each may be answered."""

from __future__ import annotations

from tests.support import SECRET
from wds.signing.hmac_sha256 import sign

BODY = b'{"marker":"do-not-log-me"}'
MARKER = b"do-not-log-me"
SIGNATURE = sign(SECRET, BODY)
PATH = "/webhooks/ingest"
CLOSED = 0
"""In place of a status: the connection was closed without an answer."""
HANG_UP = object()
"""In a case: close the sending side here."""
WAIT = object()
"""In a case: send nothing for longer than any limit allows."""
TAKEN, BAD, UNSIGNED = {202}, {400}, {401}


def head(*lines, method="POST", path=PATH, version="HTTP/1.1", host="Host: wds\r\n"):
    """Return a request's head: host, content type and a valid signature, then `lines`."""
    fixed = f"Content-Type: application/json\r\nX-Webhook-Signature: {SIGNATURE}\r\n"
    rest = "".join(f"{line}\r\n" for line in lines)
    return f"{method} {path} {version}\r\n{host}{fixed}{rest}\r\n".encode(
        "utf-8", "surrogateescape"
    )


def bare(*lines, method="POST", path=PATH, body=BODY):
    """Return a complete request with only these headers, a host and a length."""
    rest = "".join(f"{line}\r\n" for line in ("Host: wds", *lines, f"Content-Length: {len(body)}"))
    return f"{method} {path} HTTP/1.1\r\n{rest}\r\n".encode("utf-8", "surrogateescape") + body


def whole(*lines, body=BODY, **more):
    return head(*lines, f"Content-Length: {len(body)}", **more) + body


def chunked(*chunks, te="chunked", end=b"0\r\n\r\n"):
    parts = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head(f"Transfer-Encoding: {te}") + parts + end


LENGTH = f"Content-Length: {len(BODY)}"
TYPE = "Content-Type: application/json"
SIGNED = f"X-Webhook-Signature: {SIGNATURE}"
CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"POST /webhooks/ingest HTTP/1.1\r\nHost: wds\r\nX: "

CASES = {
    # the request line
    "nothing at all, then gone": ([HANG_UP], {CLOSED}),
    "a newline": ([b"\r\n", HANG_UP], {CLOSED}),
    "noise": ([b"\x00\xff\x13\x37" * 20], BAD),
    "a TLS hello": ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60)], BAD),
    "an SSH banner": ([b"SSH-2.0-OpenSSH_9.6\r\n"], BAD),
    "HTTP/2 preface": ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], BAD),
    "HTTP/0.9": ([b"GET /webhooks/ingest\r\n\r\n"], BAD),
    "version 2.0": ([whole(version="HTTP/2.0")], BAD),
    "version 1.2": ([whole(version="HTTP/1.2")], BAD),
    "version with a space": ([whole(version="HTTP/1. 1")], BAD),
    "version in small letters": ([whole(version="http/1.1")], BAD),
    "no version": ([b"POST /webhooks/ingest\r\nHost: wds\r\n\r\n"], BAD),
    "unknown method": ([whole(method="BREW")], {400, 405}),
    "method in small letters": ([whole(method="post")], {400, 405}),
    "method with a colon": ([whole(method="PO:ST")], BAD),
    "empty method": ([whole(method="")], BAD),
    "method of 9,000 letters": ([whole(method="P" * 9000)], {400, 431}),
    "two spaces after the method": ([whole(method="POST ")], {202, 400}),
    "tab after the method": ([b"POST\t/webhooks/ingest HTTP/1.1\r\n\r\n"], BAD),
    "path of 9,000 letters": ([whole(path="/" + "a" * 9000)], {431}),
    "path with a NUL": ([whole(path="/webhooks/\x00ingest")], BAD),
    "path with a space": ([whole(path="/webhooks/ ingest")], BAD),
    "path in raw UTF-8": ([whole(path="/webhooks/ingést")], {400, 404}),
    "path in raw bytes": ([whole(path="/webhooks/\udcff\udcfe")], {400, 404}),
    "path with a broken escape": ([whole(path="/webhooks/%zz")], {404}),
    "path with an escaped NUL": ([whole(path="/webhooks/%00")], {404}),
    "path that climbs": ([whole(path="/../../etc/passwd")], {404}),
    "path that climbs in the static files": (
        [whole(path="/docs/static/../../x", method="GET")],
        {403, 404},
    ),
    "path that climbs there, escaped": (
        [whole(path="/docs/static/%2e%2e%2f%2e%2e%2fetc/passwd", method="GET")],
        {403, 404},
    ),
    "path with two slashes": ([whole(path="//webhooks/ingest")], {400, 404}),
    "path of another host": ([whole(path="http://elsewhere/webhooks/nope")], {400, 404}),
    "asterisk": ([whole(path="*", method="OPTIONS")], {400, 404, 405}),
    "CONNECT": ([whole(path="wds:80", method="CONNECT")], {400, 404, 405}),
    "a source that is none": ([whole(path=f"{PATH}/nobody")], {404}),
    "a source that climbs": ([whole(path=f"{PATH}/..%2fsearch")], {404}),
    "a source in raw bytes": ([whole(path=f"{PATH}/\udcff")], {400, 404}),
    # headers
    "no host": ([whole(host="")], {202, 400}),
    "two hosts": ([whole("Host: other")], {202, 400}),
    "header without a colon": ([whole("X-Broken")], BAD),
    "header with a space before the colon": ([whole("X-Broken : 1")], BAD),
    "header with an empty name": ([whole(": 1")], BAD),
    "header name with a space": ([whole("X Broken: 1")], BAD),
    "header name with a NUL": ([whole("X-\x00: 1")], BAD),
    "header name in UTF-8": ([whole("X-Ключ: 1")], BAD),
    "header name with parentheses": ([whole("X(): 1")], BAD),
    "header value with a NUL": ([whole("X-Broken: a\x00b")], BAD),
    "header value with a bare CR": ([whole("X-Broken: a\rb")], BAD),
    "header value with a bell": ([whole("X-Broken: a\x07b")], BAD),
    "folded header": ([whole("X-Folded: a\r\n b")], BAD),
    "first header folded": ([b"POST /webhooks/ingest HTTP/1.1\r\n Host: wds\r\n\r\n"], BAD),
    "bare newlines": ([whole().replace(b"\r\n", b"\n")], {202, 400}),
    "header of 9,000 letters": ([whole("X-Long: " + "a" * 9000)], {431}),
    "header name of 9,000 letters": ([whole("a" * 9000 + ": 1")], {431}),
    "header of 4 MB that never ends": ([b"POST / HTTP/1.1\r\nX: " + b"a" * 4_000_000], {431}),
    "200 headers": ([whole(*(f"X-{n}: 1" for n in range(200)))], {400, 431}),
    "20,000 headers": ([whole(*(f"X-{n}: 1" for n in range(20_000)))], {400, 431}),
    "headers cut off": ([whole()[:60], HANG_UP], {CLOSED}),
    "headers that never end": ([whole()[:60], WAIT], {408}),
    "headers a byte at a time": ([bytes([each]) for each in whole()[:200]], {408}),
    # signatures
    "no signature": ([bare(TYPE)], UNSIGNED),
    "signature of nothing": ([bare(TYPE, "X-Webhook-Signature:")], UNSIGNED),
    "signature in raw bytes": ([bare(TYPE, "X-Webhook-Signature: sha256=\udcff\udcfe")], UNSIGNED),
    "signature twice, one forged": ([whole("X-Webhook-Signature: sha256=" + "0" * 64)], UNSIGNED),
    "signature in the query": (
        [bare(TYPE, path=f"{PATH}?X-Webhook-Signature={SIGNATURE}")],
        UNSIGNED,
    ),
    "signature in a cookie": ([bare(TYPE, f"Cookie: X-Webhook-Signature={SIGNATURE}")], UNSIGNED),
    "signature with white space around": (
        [bare(TYPE, f"X-Webhook-Signature: \t {SIGNATURE} \t")],
        TAKEN,
    ),
    "signature header in small letters": ([bare(TYPE, SIGNED.lower())], TAKEN),
    "signature header with underscores": ([bare(TYPE, SIGNED.replace("-W", "_W"))], UNSIGNED),
    "signature in a trailer": (
        [
            b"POST /webhooks/ingest HTTP/1.1\r\nHost: wds\r\nContent-Type: application/json\r\n"
            b"Trailer: X-Webhook-Signature\r\nTransfer-Encoding: chunked\r\n\r\n"
            + CHUNK[:-2]
            + f"{SIGNED}\r\n\r\n".encode()
        ],
        UNSIGNED,
    ),
    "3,000 signatures of a timed scheme": (
        [
            bare(
                TYPE,
                "webhook-id: a",
                "webhook-timestamp: 1",
                "webhook-signature: " + "v1,a " * 1500,
                path=f"{PATH}/standard",
            )
        ],
        UNSIGNED,
    ),
    "timestamp of 1,000 digits": (
        [
            bare(
                TYPE,
                "X-Slack-Request-Timestamp: " + "9" * 1000,
                "X-Slack-Signature: v0=" + "0" * 64,
                path=f"{PATH}/slack",
            )
        ],
        UNSIGNED,
    ),
    "timestamp in other digits": (
        [
            bare(
                TYPE,
                "X-Slack-Request-Timestamp: ١٢٣",
                "X-Slack-Signature: v0=" + "0" * 64,
                path=f"{PATH}/slack",
            )
        ],
        UNSIGNED,
    ),
    "timestamp twice": (
        [
            bare(
                TYPE,
                "X-Slack-Request-Timestamp: 1",
                "X-Slack-Request-Timestamp: 2",
                "X-Slack-Signature: v0=" + "0" * 64,
                path=f"{PATH}/slack",
            )
        ],
        BAD,
    ),
    # types and encodings
    "content type twice": ([whole("Content-Type: application/json")], BAD),
    "content type of commas": ([bare("Content-Type: application/json, text/plain", SIGNED)], {415}),
    "content type in raw bytes": ([bare("Content-Type: application/json;\udcff", SIGNED)], {415}),
    "content type of 8,000 letters": ([bare("Content-Type: " + "a" * 8000, SIGNED)], {415}),
    "content encoding twice": (
        [whole("Content-Encoding: identity", "Content-Encoding: gzip")],
        BAD,
    ),
    "content encoding gzip that is none": ([whole("Content-Encoding: gzip")], {415}),
    "content encodings in a list": ([whole("Content-Encoding: identity, gzip")], {415}),
    "content encoding in raw bytes": ([whole("Content-Encoding: \udcff")], {415}),
    "idempotency key twice": ([whole("Idempotency-Key: a", "Idempotency-Key: b")], BAD),
    "idempotency key in raw bytes": ([whole("Idempotency-Key: \udcff")], {422}),
    # lengths
    "no length": ([head()], UNSIGNED),
    "length of words": ([head("Content-Length: many") + BODY], BAD),
    "negative length": ([head("Content-Length: -1") + BODY], BAD),
    "length with a plus": ([head(f"Content-Length: +{len(BODY)}") + BODY], BAD),
    "length in hex": ([head("Content-Length: 0x1A") + BODY], BAD),
    "length with a full stop": ([head("Content-Length: 26.0") + BODY], BAD),
    "length with underscores": ([head("Content-Length: 2_6") + BODY], BAD),
    "length in other digits": ([head("Content-Length: ٢٦") + BODY], BAD),
    "length of 30 digits": ([head("Content-Length: " + "9" * 30) + BODY], BAD),
    "length of 10 TB": ([head("Content-Length: 10000000000000") + BODY], {413}),
    "two lengths that differ": ([head(LENGTH, "Content-Length: 1") + BODY], BAD),
    "two lengths that agree": ([head(LENGTH, LENGTH) + BODY], BAD),
    "lengths in a list": ([head(f"Content-Length: {len(BODY)}, {len(BODY)}") + BODY], BAD),
    "length too short": ([head(f"Content-Length: {len(BODY) - 1}") + BODY], {400, 401}),
    "length too long, then gone": (
        [head(f"Content-Length: {len(BODY) + 1}") + BODY, HANG_UP],
        {400, CLOSED},
    ),
    "length too long, then nothing": (
        [head(f"Content-Length: {len(BODY) + 1}") + BODY, WAIT],
        {408},
    ),
    "body that never begins": ([head(LENGTH), WAIT], {408}),
    "body a byte at a time": ([head(LENGTH), *(bytes([each]) for each in BODY)], {408}),
    "gone in the middle of the body": ([head(LENGTH) + BODY[:5], HANG_UP], {400, CLOSED}),
    "expects 100, then nothing": ([head(LENGTH, "Expect: 100-continue"), WAIT], {100}),
    "expects something else": ([head(LENGTH, "Expect: miracles") + BODY], {417}),
    # chunks
    "chunks": ([chunked(BODY)], TAKEN),
    "many small chunks": ([chunked(*(BODY[n : n + 1] for n in range(len(BODY))))], TAKEN),
    "chunk with an extension": (
        [head("Transfer-Encoding: chunked") + CHUNK.replace(b"1a\r\n", b"1a;a=b\r\n")],
        TAKEN,
    ),
    "chunk size in words": ([head("Transfer-Encoding: chunked") + b"many\r\n" + BODY], BAD),
    "chunk size negative": ([head("Transfer-Encoding: chunked") + b"-1\r\n" + BODY], BAD),
    "chunk size with 0x": ([head("Transfer-Encoding: chunked") + b"0x1a\r\n" + BODY], BAD),
    "chunk size of 40 digits": (
        [head("Transfer-Encoding: chunked") + b"f" * 40 + b"\r\n" + BODY],
        BAD,
    ),
    "chunk size with a space": (
        [head("Transfer-Encoding: chunked") + b" 1a\r\n" + BODY + b"\r\n0\r\n\r\n"],
        BAD,
    ),
    "chunk size of nothing": ([head("Transfer-Encoding: chunked") + b"\r\n" + BODY], BAD),
    "chunk longer than its size": (
        [head("Transfer-Encoding: chunked") + b"2\r\n" + BODY + b"\r\n0\r\n\r\n"],
        BAD,
    ),
    "chunk without its newline": (
        [head("Transfer-Encoding: chunked") + b"1a\r\n" + BODY + b"0\r\n\r\n"],
        BAD,
    ),
    "chunk size line of 1 MB": (
        [head("Transfer-Encoding: chunked") + b"1;" + b"a" * 1_000_000],
        {400, 431, 408},
    ),
    "no last chunk, then gone": ([chunked(BODY, end=b""), HANG_UP], {400, CLOSED}),
    "no last chunk, then nothing": ([chunked(BODY, end=b""), WAIT], {408}),
    "chunks beyond the limit": ([chunked(*[b" " * 65536] * 40)], {413, CLOSED}),
    "chunks of HTTP/1.0": (
        [head("Transfer-Encoding: chunked", version="HTTP/1.0") + CHUNK],
        {202, 400, 401},
    ),
    # smuggling: two readings of where a request ends
    "length and chunks": ([head(LENGTH, "Transfer-Encoding: chunked") + CHUNK], BAD),
    "chunks and length": (
        [head("Transfer-Encoding: chunked", "Content-Length: 4") + CHUNK + SMUGGLED],
        BAD,
    ),
    "chunks twice": (
        [head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + CHUNK],
        BAD,
    ),
    "chunks, then identity": ([chunked(BODY, te="chunked, identity")], BAD),
    "identity, then chunks": ([chunked(BODY, te="identity, chunked")], {202, 400, 415}),
    "gzip, then chunks": ([chunked(BODY, te="gzip, chunked")], {202, 400, 415}),
    "transfer encoding unknown": ([head("Transfer-Encoding: cow", LENGTH) + BODY], BAD),
    "transfer encoding misspelt": ([head("Transfer-Encoding: xchunked", LENGTH) + BODY], BAD),
    "transfer encoding with a vertical tab": (
        [head("Transfer-Encoding: \x0bchunked", LENGTH) + BODY],
        BAD,
    ),
    "transfer encoding quoted": ([head('Transfer-Encoding: "chunked"', LENGTH) + BODY], BAD),
    "transfer encoding with a space before": (
        [head("Transfer-Encoding : chunked", LENGTH) + CHUNK],
        BAD,
    ),
    "transfer encoding folded": ([head("Transfer-Encoding:\r\n chunked", LENGTH) + CHUNK], BAD),
    "transfer encoding in capitals": ([chunked(BODY, te="CHUNKED")], {202, 400}),
    "length hidden in a folded header": ([head("X: a\r\n Content-Length: 0", LENGTH) + BODY], BAD),
    "a second request in the body's end": ([whole() + SMUGGLED], TAKEN),
    "a second request, unsigned": ([whole() + bare(TYPE)], TAKEN),
    "upgrade to a websocket": (
        [
            whole(
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Key: x",
                "Sec-WebSocket-Version: 13",
            )
        ],
        {202, 400},
    ),
    "upgrade to HTTP/2": (
        [whole("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings")],
        {202, 400},
    ),
    # bodies
    "compressed without saying so": (
        [bare(TYPE, SIGNED, body=b"\x1f\x8b\x08" + bytes(40))],
        UNSIGNED,
    ),
    "deep JSON, unsigned": ([bare(TYPE, SIGNED, body=b"[" * 100_000)], UNSIGNED),
    "operators' route from a proxy": (
        [whole("X-Forwarded-For: 1.2.3.4", path="/webhooks/search")],
        {403},
    ),
    "GET with a body": ([whole(method="GET", path="/healthz")], {200}),
    "GET with a body that never comes": (
        [head(LENGTH, method="GET", path="/healthz"), WAIT],
        {408},
    ),
}
