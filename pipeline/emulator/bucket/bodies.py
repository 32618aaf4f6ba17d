"""The XML bodies of Cloud Storage's XML API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from xml.sax.saxutils import escape, unescape

from pipeline.emulator.bucket.objects import Listing, RefusedRequest, StoredObject

XML_TYPE = "application/xml; charset=UTF-8"

_HEAD = "<?xml version='1.0' encoding='UTF-8'?>"
_SPACE = "xmlns='http://doc.s3.amazonaws.com/2006-03-01'"
_PART = re.compile(r"<Part>(.*?)</Part>", re.DOTALL)


def error(refused: RefusedRequest) -> bytes:
    """The body of an error."""
    return _document("Error", "", _tags({"Code": refused.code, "Message": refused.message}))


def listing(bucket: str, asked: Mapping[str, str], page: Listing) -> bytes:
    """A page of a listing, for the query that asked for it."""
    shown = {"Name": bucket, "Prefix": asked.get("prefix", ""), "KeyCount": len(page.objects) + len(page.prefixes)}
    if "delimiter" in asked:
        shown["Delimiter"] = asked["delimiter"]
    more = {"IsTruncated": "false" if page.token is None else "true"}
    if page.token is not None:
        more["NextContinuationToken"] = page.token
    objects = (f"<Contents>{_tags(_entry(found))}</Contents>" for found in page.objects)
    prefixes = (f"<CommonPrefixes>{_tags({'Prefix': prefix})}</CommonPrefixes>" for prefix in page.prefixes)
    return _document("ListBucketResult", _SPACE, "".join([_tags({**shown, **more}), *objects, *prefixes]))


def copied(found: StoredObject) -> bytes:
    """The result of a copy."""
    return _document("CopyObjectResult", "", _tags({"LastModified": _time(found), "ETag": found.etag}))


def begun(bucket: str, key: str, upload: str) -> bytes:
    """The result of the beginning of an upload in parts."""
    return _document("InitiateMultipartUploadResult", _SPACE, _tags({"Bucket": bucket, "Key": key, "UploadId": upload}))


def completed(bucket: str, found: StoredObject) -> bytes:
    """The result of the completion of an upload in parts."""
    return _document(
        "CompleteMultipartUploadResult", _SPACE, _tags({"Bucket": bucket, "Key": found.key, "ETag": found.etag})
    )


def parts_of(body: bytes) -> dict[int, str]:
    """Number and etag of each part, from the body of a completion. Raises `RefusedRequest` for anything else."""
    try:
        return dict(_parts(body.decode()))
    except (UnicodeDecodeError, ValueError, AttributeError):
        raise RefusedRequest(
            400, "MalformedCompleteMultipartUpload", "The XML you provided was not well-formed."
        ) from None


def _parts(text: str) -> Iterator[tuple[int, str]]:
    for part in _PART.findall(text):
        number, etag = (re.search(rf"<{name}>(.*?)</{name}>", part) for name in ("PartNumber", "ETag"))
        yield int(number[1]), unescape(etag[1], {"&quot;": '"', "&#34;": '"'})  # type: ignore[index] # None: AttributeError


def _entry(found: StoredObject) -> dict[str, object]:
    return {
        "Key": found.key,
        "Generation": found.generation,
        "MetaGeneration": 1,
        "LastModified": _time(found),
        "ETag": found.etag,
        "Size": len(found.data),
    }


def _time(found: StoredObject) -> str:
    return datetime.fromtimestamp(found.modified, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _tags(values: Mapping[str, object]) -> str:
    return "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in values.items())


def _document(name: str, space: str, content: str) -> bytes:
    return f"{_HEAD}<{name}{' ' if space else ''}{space}>{content}</{name}>".encode()
