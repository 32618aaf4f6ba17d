"""Batches of OpenAI's API, `/files` and `/batches`, which LiteLLM's proxy and others have too.

https://platform.openai.com/docs/api-reference/batch
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anyio import Path as AsyncPath
from anyio import open_file, to_thread

from pipeline.data import Request
from pipeline.endpoint.batch.api import BatchApi, refused
from pipeline.endpoint.batch.backend import (
    PRICE_FACTOR,
    TRAFFIC_TYPE,
    BatchAnswer,
    BatchCounts,
    BatchJob,
    BatchLimits,
    BatchState,
)
from pipeline.endpoint.batch.job_fields import read_count, read_message
from pipeline.endpoint.batch.job_names import require_model, require_name
from pipeline.endpoint.batch.object_lines import LineSplitter
from pipeline.endpoint.batch.openai_lines import URL, openai_line, read_openai_line
from pipeline.endpoint.untrusted_json import as_integer, as_text, dig, objects
from pipeline.faults import Broken, Permanent, Refused

LIMITS = BatchLimits(rows=50_000, bytes=190_000_000)
"""50,000 requests and 200 MB, of which some are left free."""

_STATES: Mapping[str, BatchState] = {
    "completed": "succeeded",
    "failed": "failed",
    "expired": "expired",
    "cancelled": "cancelled",
    "canceled": "cancelled",
    "in_progress": "running",
    "finalizing": "running",
    "cancelling": "running",
}
"""All others wait: validating, and those that do not exist yet."""

_NAME = "pipeline_batch"
_DIGEST = "pipeline_input"
"""The metadata of a job, by which it is found again."""

_ID = re.compile(r"[\x21-\x7e]{1,1000}")
_BLOCK = 2**20
_PAGE = 100
_MOST_PAGES = 1000


class OpenAIBatchBackend:
    """See `BatchBackend`. Needs no place in an object store: files are the server's own."""

    limits = LIMITS
    price_factor = PRICE_FACTOR
    traffic_type = TRAFFIC_TYPE

    def __init__(self, api: BatchApi, *, model: str) -> None:
        self._api = api
        self._model = model

    def line(self, key: str, request: Request) -> bytes:
        """See `BatchBackend`."""
        require_model(request, self._model)
        return openai_line(key, request)

    async def submit(self, name: str, input_file: Path, *, inputs_key: str) -> BatchJob:  # noqa: ARG002 - has no place
        """See `BatchBackend`. The server must report the metadata or the files of its jobs."""
        require_name(name)
        digest = await to_thread.run_sync(_digest_of, input_file)
        if (job := await self._adopted(name, digest)) is not None:
            return job
        file_id = await self._uploaded(name, input_file)
        body = {
            "input_file_id": file_id,
            "endpoint": URL,
            "completion_window": "24h",
            "metadata": {_NAME: name, _DIGEST: digest},
        }
        try:
            created = await self._api.create("batches", body, lambda: self._adopted(name, digest))
        except Permanent as fault:
            raise refused(f"the batch {name}", fault) from None
        return created if isinstance(created, BatchJob) else _job(created)

    async def _adopted(self, name: str, digest: str) -> BatchJob | None:
        """The job of this name. Raises `Broken` if it was made of another input."""
        found = await self._named(name)
        others = [job for job in found if as_text(dig(job, "metadata", _DIGEST)) not in (None, digest)]
        if others:
            raise Broken(f"there is a batch named {name} already, with other rows: start again with --fresh")
        return _job(found[0]) if found else None

    async def _uploaded(self, name: str, input_file: Path) -> str:
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{boundary}\r\n'
            f'Content-Disposition: form-data; name="file"; filename="{_file_name(name)}"\r\n'
            f"Content-Type: application/jsonl\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        async def content() -> AsyncIterator[bytes]:
            yield head
            async with await open_file(input_file, "rb") as file:
                while block := await file.read(_BLOCK):
                    yield block
            yield tail

        size = len(head) + (await AsyncPath(input_file).stat()).st_size + len(tail)
        try:
            found = await self._api.upload("files", content, size, f"multipart/form-data; boundary={boundary}")
        except Permanent as fault:
            raise refused(f"the input file of the batch {name}", fault) from None
        return _require_id(found.get("id"))

    async def get(self, handle: str) -> BatchJob:
        """See `BatchBackend`."""
        try:
            return _job(await self._api.call("GET", f"batches/{_quoted(handle)}"))
        except Refused as fault:
            raise Broken(f"the batch {handle} cannot be found: {fault.message}") from None

    async def find(self, name: str) -> BatchJob | None:
        """See `BatchBackend`."""
        require_name(name)
        found = await self._named(name)
        return _job(found[0]) if found else None

    async def cancel(self, handle: str) -> None:
        """See `BatchBackend`."""
        try:
            await self._api.call("POST", f"batches/{_quoted(handle)}/cancel", body={})
        except Refused as fault:
            if not (await self.get(handle)).ended:
                raise refused(f"cancelling the batch {handle}", fault) from None

    async def results(self, job: BatchJob) -> AsyncIterator[BatchAnswer]:
        """See `BatchBackend`. There are none before the job has ended."""
        for output in job.outputs:
            lines = LineSplitter(f"the result file {output}")
            try:
                async for piece in self._api.content(f"files/{_quoted(output)}/content"):
                    for line in lines.feed(piece):
                        yield read_openai_line(line)
            except Refused as fault:
                raise Broken(f"the result file {output} cannot be read: {fault.message}") from None
            for line in lines.end():
                yield read_openai_line(line)

    async def _named(self, name: str) -> list[dict[str, Any]]:
        """The jobs of this name, the first created first: by their metadata, or else by the names of their inputs."""
        found = [job for job in await self._listed("batches", {}) if _is_id(job.get("id"))]
        named = [job for job in found if dig(job, "metadata", _NAME) == name]
        bare = [job for job in found if not isinstance(job.get("metadata"), dict)]
        if not named and bare:
            files = await self._listed("files", {"purpose": "batch"})
            inputs = {as_text(file.get("id")) for file in files if file.get("filename") == _file_name(name)} - {None}
            named = [job for job in bare if job.get("input_file_id") in inputs]
        return sorted(named, key=lambda job: as_integer(job.get("created_at")) or 0)

    async def _listed(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        query = {**query, "limit": str(_PAGE)}
        for _ in range(_MOST_PAGES):
            try:
                page = await self._api.call("GET", path, query=query)
            except Permanent as fault:
                raise refused(f"the list of {path}", fault) from None
            items = objects(page.get("data"))
            found += items
            last = items[-1].get("id") if items else None
            if page.get("has_more") is not True or not isinstance(last, str) or query.get("after") == last:
                return found
            query = {**query, "after": last}
        raise Broken(f"the list of {path} has no end: delete old ones, then run again")


def _job(found: Mapping[str, Any]) -> BatchJob:
    """The job in a reply. Raises `Broken` if it is none."""
    names = ("total", "completed", "failed")
    total, done, failed = (read_count(dig(found, "request_counts", name)) for name in names)
    left = None if total is None or done is None or failed is None else max(0, total - done - failed)
    outputs = (as_text(found.get(name)) for name in ("output_file_id", "error_file_id"))
    return BatchJob(
        handle=_require_id(found.get("id")),
        name=as_text(dig(found, "metadata", _NAME)) or "",
        state=_STATES.get(as_text(found.get("status")) or "", "waiting"),
        counts=BatchCounts(done, failed, left),
        message=_message(found.get("errors")),
        outputs=tuple(output for output in outputs if output and _is_id(output)),
    )


def _message(errors: object) -> str | None:
    messages = [read_message(error.get("message")) for error in objects(dig(errors, "data"))[:3]]
    return "; ".join(filter(None, messages)) or None


def _digest_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:32]


def _file_name(name: str) -> str:
    return f"{name}.jsonl"


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _require_id(value: object) -> str:
    if not isinstance(value, str) or not _is_id(value):
        raise Broken("the batch server answered something without an id; run again to go on")
    return value


def _quoted(handle: str) -> str:
    return quote(_require_id(handle), safe="")
