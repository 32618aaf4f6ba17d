"""Cloud Storage's XML API over HTTP: the operations that object_store uses, with faults on demand."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from fnmatch import fnmatchcase
from typing import Protocol
from urllib.parse import unquote

from aiohttp import web

from pipeline.emulator.bucket import bodies
from pipeline.emulator.bucket.objects import MOST_LISTED, Buckets, RefusedRequest, StoredObject, unmet
from pipeline.emulator.options import Options
from pipeline.emulator.protocol.wire import SIMULATED, Problem
from pipeline.emulator.server import responses

SLOW_S = 2.0
"""How long a request with the fault `slow` waits."""

_ANSWERS = {
    "403": ("AccessDenied", "Access denied."),
    "429": ("SlowDown", "Please reduce your request rate."),
    "500": ("InternalError", "We encountered an internal error. Please try again."),
    "503": ("ServiceUnavailable", "Service Unavailable"),
}
_KEPT_HEADERS = ("content-type", "cache-control", "content-encoding", "content-language", "content-disposition")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class TokenCheck(Protocol):
    """What checks access tokens."""

    def check(self, authorization: str | None) -> None:
        """Returns for a valid token; raises `Problem` otherwise."""


class BucketService:
    """Answers requests for `/BUCKET` and `/BUCKET/KEY`. `options` returns the options as they are now."""

    def __init__(self, tokens: TokenCheck, options: Callable[[], Options]) -> None:
        self._tokens = tokens
        self._options = options
        self.buckets = Buckets(options().buckets, lambda: time.time() + self._options().bucket_ahead_s)
        self.requests: Counter[str] = Counter()
        """Requests by operation and status, as in `PUT 200`; a connection that was closed has status `closed`."""
        self._count = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request for a bucket or an object."""
        bucket, _, key = unquote(request.rel_url.raw_path[1:]).partition("/")
        fault = self._fault(f"{request.method} {key}")
        if fault == "drop" or (fault == "cut" and request.method != "GET"):
            if fault == "cut":
                await request.content.readany()
            self.requests[f"{request.method} closed"] += 1
            return responses.closed(request)
        if fault == "slow":
            await asyncio.sleep(SLOW_S)
        body = await request.content.read()
        response = self._answer(request, bucket, key, body, fault)
        if fault == "lost" or (fault == "cut" and response.status < 300):
            self.requests[f"{request.method} closed"] += 1
            return responses.closed(request) if fault == "lost" else await _half(request, response)
        self.requests[f"{request.method} {response.status}"] += 1
        return response

    def _answer(self, request: web.BaseRequest, bucket: str, key: str, body: bytes, fault: str | None) -> web.Response:
        try:
            _require_no_fault(fault)
            self._authorized(request)
            return self._object(request, bucket, key, body) if key else self._bucket(request, bucket)
        except RefusedRequest as refused:
            head = request.method == "HEAD"
            retry = self._options().retry_after if refused.http_status in (429, 503) else None
            more = {"Retry-After": retry} if retry else {}
            return _response(refused.http_status, b"" if head else bodies.error(refused), more)

    def _authorized(self, request: web.BaseRequest) -> None:
        """Raises the `RefusedRequest` of a missing, unknown or expired token."""
        authorization = request.headers.get("Authorization")
        try:
            self._tokens.check(authorization)
        except Problem:
            if authorization:
                raise RefusedRequest(
                    401, "InvalidAuthentication", "The provided authentication is not valid."
                ) from None
            raise RefusedRequest(401, "AuthenticationRequired", "Authentication required.") from None

    def _bucket(self, request: web.BaseRequest, bucket: str) -> web.Response:
        if request.method != "GET":
            raise RefusedRequest(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
        asked = dict(request.query)
        page = self.buckets.list(
            bucket,
            prefix=asked.get("prefix", ""),
            delimiter=asked.get("delimiter", ""),
            after=asked.get("continuation-token") or asked.get("start-after", ""),
            most=_number(asked.get("max-keys")) or MOST_LISTED,
        )
        return _response(200, bodies.listing(bucket, asked, page))

    def _object(self, request: web.BaseRequest, bucket: str, key: str, body: bytes) -> web.Response:
        query, match = request.query, _number(request.headers.get("x-goog-if-generation-match"))
        match request.method:
            case "GET" | "HEAD":
                return self._read(request, self.buckets.get(bucket, key, _number(query.get("generation"))), match)
            case "PUT" if "uploadId" in query:
                etag = self.buckets.part(bucket, key, query["uploadId"], _number(query.get("partNumber")) or 0, body)
                return _response(200, b"", {"ETag": etag})
            case "PUT" if "x-goog-copy-source" in request.headers:
                source, _, name = unquote(request.headers["x-goog-copy-source"]).removeprefix("/").partition("/")
                found = self.buckets.copy((source, name), bucket, key, match)
                return _response(200, bodies.copied(found), _identity(found))
            case "PUT":
                _require_sound(request, body)
                found = self.buckets.put(bucket, key, body, _kept(request), match)
                return _response(200, b"", _identity(found))
            case "POST" if "uploads" in query:
                return _response(200, bodies.begun(bucket, key, self.buckets.begin(bucket, key, _kept(request))))
            case "POST" if "uploadId" in query:
                found = self.buckets.complete(bucket, key, query["uploadId"], bodies.parts_of(body), match)
                return _response(200, bodies.completed(bucket, found), _identity(found))
            case "DELETE":
                if "uploadId" in query:
                    self.buckets.abort(bucket, key, query["uploadId"])
                else:
                    self.buckets.delete(bucket, key, match)
                return _response(204, b"")
        raise RefusedRequest(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")

    def _read(self, request: web.BaseRequest, found: StoredObject, match: int | None) -> web.Response:
        sent = request.headers
        if match not in (None, found.generation):
            raise unmet()
        if "If-Match" in sent and not _names(sent["If-Match"], found.etag):
            raise unmet()
        if "If-None-Match" in sent and _names(sent["If-None-Match"], found.etag):
            return _response(304, b"", _identity(found))
        status, data, more = 200, found.data, {}
        if (asked := _RANGE.fullmatch(sent.get("Range", ""))) and any(asked.groups()):
            first, end = _span(asked[1], asked[2], len(found.data))
            status, data = 206, found.data[first:end]
            more = {"Content-Range": f"bytes {first}-{end - 1}/{len(found.data)}"}
        headers = {**_identity(found), "Accept-Ranges": "bytes", **found.headers, **more}
        if request.method == "HEAD":
            headers["Content-Length"] = str(len(data))
        return _response(status, b"" if request.method == "HEAD" else data, headers)

    def _fault(self, operation: str) -> str | None:
        """The fault of a request: the same for the same seed and the same requests before it."""
        options = self._options()
        if not options.bucket_faults or not fnmatchcase(operation, options.bucket_fault_on):
            return None
        self._count += 1
        digest = hashlib.blake2b(f"{options.seed}/{self._count}".encode(), digest_size=8).digest()
        drawn = int.from_bytes(digest, "big") / 2**64
        for kind, share in options.bucket_faults.items():
            if (drawn := drawn - share) < 0:
                return kind
        return None


def _require_no_fault(fault: str | None) -> None:
    """Raises the `RefusedRequest` that a fault asks for."""
    if fault in _ANSWERS:
        raise RefusedRequest(int(fault), *_ANSWERS[fault])


async def _half(request: web.BaseRequest, whole: web.Response) -> web.StreamResponse:
    """Announces the whole body, sends its first half and closes the connection."""
    body = whole.body if isinstance(whole.body, bytes) else b""
    response = web.StreamResponse(status=whole.status, headers=whole.headers)
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    return responses.cut(request, response)


def _response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    named = {name.lower() for name in headers or ()}
    own = {SIMULATED[0]: SIMULATED[1], "Server": SIMULATED[1]}
    if body and "content-type" not in named:
        own["Content-Type"] = bodies.XML_TYPE
    return web.Response(body=body, status=status, headers={**own, **(headers or {})})


def _identity(found: StoredObject) -> dict[str, str]:
    """The headers that say which object it is."""
    return {
        "ETag": found.etag,
        "Last-Modified": formatdate(found.modified, usegmt=True),
        "x-goog-generation": str(found.generation),
        "x-goog-metageneration": "1",
        "x-goog-stored-content-length": str(len(found.data)),
        **({"x-goog-hash": f"md5={base64.b64encode(found.md5).decode()}"} if found.md5 else {}),
    }


def _kept(request: web.BaseRequest) -> dict[str, str]:
    sent = {name.lower(): value for name, value in request.headers.items()}
    return {name: value for name, value in sent.items() if name in _KEPT_HEADERS or name.startswith("x-goog-meta-")}


def _require_sound(request: web.BaseRequest, body: bytes) -> None:
    """Raises `RefusedRequest` for a body that is not the one that its sender hashed."""
    announced = request.headers.get("Content-MD5")
    if announced and announced != base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode():
        raise RefusedRequest(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")


def _names(condition: str, etag: str) -> bool:
    return condition.strip() == "*" or etag in (one.strip() for one in condition.split(","))


def _span(first: str, last: str, size: int) -> tuple[int, int]:
    """Start and end of a range of bytes. Raises `RefusedRequest` for one that begins behind the end."""
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= size or start >= end:
        raise RefusedRequest(416, "InvalidRange", "The requested range cannot be satisfied.")
    return start, end


def _number(text: str | None) -> int | None:
    if text is None or text == "":
        return None
    if not text.isdecimal():
        raise RefusedRequest(400, "InvalidArgument", f"Invalid argument: {text[:100]!r} is not a number.")
    return int(text)
