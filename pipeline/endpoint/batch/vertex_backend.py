"""Batch prediction of Vertex AI: `batchPredictionJobs`, whose inputs and outputs are objects in Cloud Storage.

https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/batch-prediction-from-cloud-storage
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from anyio import to_thread

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
from pipeline.endpoint.batch.object_lines import answers_below, upload_once
from pipeline.endpoint.untrusted_json import as_text, dig, objects
from pipeline.faults import Broken, Permanent, Refused
from pipeline.store.address import Address, place_of
from pipeline.store.object_store import ObjectStore

LIMITS = BatchLimits(rows=200_000, bytes=900_000_000)
"""200,000 requests and 1 GB, of which a tenth is left free: whether a GB is 10^9 bytes is not documented."""

_STATES: Mapping[str, BatchState] = {
    "JOB_STATE_SUCCEEDED": "succeeded",
    "JOB_STATE_FAILED": "failed",
    "JOB_STATE_CANCELLED": "cancelled",
    "JOB_STATE_EXPIRED": "expired",
    "JOB_STATE_PARTIALLY_SUCCEEDED": "partial",
    "JOB_STATE_RUNNING": "running",
    "JOB_STATE_CANCELLING": "running",
    "JOB_STATE_UPDATING": "running",
}
"""All others wait: queued, pending, paused, unspecified, and those that do not exist yet."""

_HANDLE = re.compile(r"projects/[\w.:-]+/locations/[\w-]+/batchPredictionJobs/[\w-]+")
_PAGE = 100
_MOST_PAGES = 1000


class VertexBatchBackend:
    """See `BatchBackend`. `write` and `read` are the lines of the model's family; `place` is a folder in `store`."""

    limits = LIMITS
    price_factor = PRICE_FACTOR
    traffic_type = TRAFFIC_TYPE

    def __init__(
        self,
        api: BatchApi,
        store: ObjectStore,
        place: Address,
        *,
        parent: str,
        model: str,
        lines: tuple[Callable[[str, Request], bytes], Callable[[bytes], BatchAnswer]],
    ) -> None:
        self._api = api
        self._store = store
        self._place = place
        self._jobs = f"{parent}/batchPredictionJobs"
        self._model = model
        self._resource = model_resource(model)
        self._write, self._read = lines

    def line(self, key: str, request: Request) -> bytes:
        """See `BatchBackend`."""
        require_model(request, self._model)
        return self._write(key, request)

    async def submit(self, name: str, input_file: Path, *, inputs_key: str) -> BatchJob:
        """See `BatchBackend`."""
        require_name(name)
        source = self._place.at(inputs_key)
        body = {
            "displayName": name,
            "model": self._resource,
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [str(source)]}},
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": f"{source.folder.at('answers')}/"},
            },
        }
        if (job := await self._adopted(body)) is not None:
            return job
        await to_thread.run_sync(upload_once, self._store, source.key, input_file)
        try:
            created = await self._api.create(self._jobs, body, lambda: self._adopted(body))
        except Permanent as fault:
            raise refused(f"the batch {name}", fault) from None
        return created if isinstance(created, BatchJob) else self._job(created)

    async def _adopted(self, body: Mapping[str, Any]) -> BatchJob | None:
        """The job that was created by the same request. Raises `Broken` if the name belongs to another one."""
        found = await self._named(body["displayName"])
        same = [each for each in found if _purpose(each) == _purpose(body)]
        if found and not same:
            raise Broken(
                f"there is a batch named {body['displayName']} already, with another input or output: "
                f"start again with --fresh, or delete it"
            )
        return self._job(same[0]) if same else None

    async def get(self, handle: str) -> BatchJob:
        """See `BatchBackend`."""
        try:
            return self._job(await self._api.call("GET", _checked(handle)))
        except Refused as fault:
            raise Broken(f"the batch job {handle} cannot be found: {fault.message}") from None

    async def find(self, name: str) -> BatchJob | None:
        """See `BatchBackend`."""
        require_name(name)
        found = await self._named(name)
        return self._job(found[0]) if found else None

    async def cancel(self, handle: str) -> None:
        """See `BatchBackend`."""
        try:
            await self._api.call("POST", f"{_checked(handle)}:cancel", body={})
        except Refused as fault:
            if not (await self.get(handle)).ended:
                raise refused(f"cancelling the batch job {handle}", fault) from None

    async def results(self, job: BatchJob) -> AsyncIterator[BatchAnswer]:
        """See `BatchBackend`."""
        folder = self._folder_of(job)
        if folder is not None:
            async for answer in answers_below(self._store, folder.key, self._read, complete=job.ended):
                yield answer

    async def _named(self, name: str) -> list[dict[str, Any]]:
        """The jobs of this display name, the first created first; whether the server filters them or not."""
        found: list[dict[str, Any]] = []
        query = {"filter": f'displayName="{name}"', "pageSize": str(_PAGE)}
        for _ in range(_MOST_PAGES):
            try:
                page = await self._api.call("GET", self._jobs, query=query)
            except Permanent as fault:
                raise refused(f"the list of batch jobs in {self._jobs}", fault) from None
            jobs = objects(page.get("batchPredictionJobs"))
            found += [job for job in jobs if job.get("displayName") == name and _is_handle(job.get("name"))]
            token = as_text(page.get("nextPageToken"))
            if not token:
                return sorted(found, key=lambda job: as_text(job.get("createTime")) or "")
            query = {**query, "pageToken": token}
        raise Broken(f"the list of batch jobs in {self._jobs} has no end: delete old ones, then run again")

    def _job(self, found: Mapping[str, Any]) -> BatchJob:
        """The job in a reply. Raises `Broken` if it is none."""
        handle = found.get("name")
        if not isinstance(handle, str) or not _is_handle(handle):
            raise Broken("the batch server answered something that is not a batch job; run again to go on")
        prefix = as_text(dig(found, "outputConfig", "gcsDestination", "outputUriPrefix"))
        folder = as_text(dig(found, "outputInfo", "gcsOutputDirectory"))
        return BatchJob(
            handle=handle,
            name=as_text(found.get("displayName")) or "",
            state=_STATES.get(as_text(found.get("state")) or "", "waiting"),
            counts=_counts(found.get("completionStats")),
            message=read_message(dig(found.get("error"), "message")),
            outputs=tuple(filter(None, [folder, prefix])),
        )

    def _folder_of(self, job: BatchJob) -> Address | None:
        """The first of a job's outputs that is below our place; None without outputs. Raises `Broken` for others."""
        below = f"{self._place.key.rstrip('/')}/".lstrip("/")
        for output in job.outputs:
            found = place_of(output) if re.match("gs://[^/]", output) else None
            if isinstance(found, Address) and found.bucket == self._place.bucket and found.key.startswith(below):
                return found
        if job.outputs:
            raise Broken(f"the answers of the batch {job.name} are not below {self._place}")
        return None


def model_resource(model: str) -> str:
    """The resource of a model that we name `publisher/model`; a resource stays as it is."""
    if model.startswith(("projects/", "publishers/")):
        return model
    publisher, slash, name = model.partition("/")
    return f"publishers/{publisher}/models/{name}" if slash else f"publishers/google/models/{model}"


def _purpose(job: Mapping[str, Any]) -> tuple[object, str]:
    """Where a job reads and writes. Not its model, whose name may come back with a version, or a project before it."""
    destination = as_text(dig(job, "outputConfig", "gcsDestination", "outputUriPrefix")) or ""
    uris = dig(job, "inputConfig", "gcsSource", "uris")
    source = [uris] if isinstance(uris, str) else uris
    return source, destination.rstrip("/")


def _counts(stats: object) -> BatchCounts:
    return BatchCounts(
        succeeded=read_count(dig(stats, "successfulCount")),
        failed=read_count(dig(stats, "failedCount")),
        incomplete=read_count(dig(stats, "incompleteCount")),
    )


def _is_handle(handle: object) -> bool:
    return isinstance(handle, str) and _HANDLE.fullmatch(handle) is not None


def _checked(handle: str) -> str:
    if not _is_handle(handle):
        raise Broken(f"{handle!r} is not the name of a batch job")
    return handle
