"""Which backend asks a job by batch; a job or a place without one is refused before anything is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol
from urllib.parse import urlsplit

from pipeline.data import Request
from pipeline.endpoint.address import is_vertex, weighted_url
from pipeline.endpoint.batch.backend import BatchAnswer, BatchBackend, UnsupportedInBatch
from pipeline.endpoint.connection import Access, Connection
from pipeline.faults import Fault, UsageError
from pipeline.store.address import Address
from pipeline.store.object_store import StoreAccess, open_store

WriteLine = Callable[[str, Request], bytes]
ReadLine = Callable[[bytes], BatchAnswer]


class BatchableJob(Protocol):
    """What decides whether a job can be asked by batch: `pipeline.Job` is one."""

    @property
    def name(self) -> str:
        """The job's name."""

    @property
    def model(self) -> str:
        """The model that all rows ask; empty when each row names its own."""

    @property
    def stream(self) -> bool:
        """Whether answers are streamed."""

    @property
    def tier(self) -> str | None:
        """The request tier."""

    @property
    def runs_tools(self) -> bool:
        """Whether the model's calls are executed, so that a row takes several turns."""


def check_job(job: BatchableJob) -> None:
    """Raises `UnsupportedInBatch`, with the remedy, for a job that cannot be asked by batch."""
    if not job.model:
        raise UnsupportedInBatch(f"a batch asks one model, and the job {job.name!r} names none: give one with --model")
    if job.runs_tools:
        raise UnsupportedInBatch(
            f"the job {job.name!r} runs tools, and a batch has one turn: leave out --batch, or set "
            f"execute_tools=False to record the calls alone"
        )
    if job.stream:
        raise UnsupportedInBatch(f"the job {job.name!r} streams its answers, and a batch cannot: set stream=False")
    if job.tier is not None:
        raise UnsupportedInBatch(
            f"tier={job.tier!r} is for online requests, and a batch has its own price: leave out `tier` or --batch"
        )


def check_place(connection: Connection, model: str, place: Address | None) -> None:
    """Raises `UnsupportedInBatch`, with the remedy, where there is no batch prediction of this model.

    `place` is the folder for inputs and answers: below an output in an object store, or what --batch-bucket names.
    """
    if connection.endpoints > 1:
        raise UnsupportedInBatch("a batch is one job at one place: name one --location, or one --base-url")
    base_url = weighted_url(connection.base_urls[0])[1] if connection.base_urls else None
    if connection.endpoint_id not in (None, "openapi") or (base_url and _is_deployed(base_url)):
        raise UnsupportedInBatch(
            "a self-deployed endpoint has no batch prediction: leave out --endpoint-id and name a published model, "
            "or leave out --batch"
        )
    if base_url is not None and (urlsplit(base_url).hostname or "").startswith("generativelanguage."):
        raise UnsupportedInBatch(
            "the Gemini Developer API takes no files for batches by its OpenAI-compatible address: use Vertex AI "
            "(without --base-url), or leave out --batch"
        )
    if base_url is not None and not is_vertex_api(base_url):
        return
    if model.startswith("anthropic/"):
        raise UnsupportedInBatch(
            "batches of Claude have a form of their own, which is not supported: leave out --batch"
        )
    if place is None or place.scheme != "gs":
        raise UnsupportedInBatch(
            "batch prediction of Vertex AI reads and writes in Cloud Storage: name a bucket with "
            "--batch-bucket gs://BUCKET, or write the output to one"
        )


def is_vertex_api(base_url: str) -> bool:
    """Whether a base URL is Vertex AI's compatible endpoint, beside which its batch jobs are."""
    return is_vertex(base_url) and "/locations/" in urlsplit(base_url).path


def _is_deployed(base_url: str) -> bool:
    return is_vertex_api(base_url) and not urlsplit(base_url).path.endswith("/endpoints/openapi")


@asynccontextmanager
async def open_batches(
    access: Access,
    model: str,
    *,
    place: Address | None,
    stores: StoreAccess,
    labels: Mapping[str, str] | None = None,
    sleep: Callable[[float], Awaitable[None]] | None = None,
) -> AsyncIterator[BatchBackend]:
    """The backend for a model at the one target of `access`, closed at the end of the block. Sends nothing.

    `place` is as for `check_place`, whose refusals must have been raised before. `labels` are added to each request of
    Gemini, and appear in the bill. Raises `UsageError` without the client for object stores.
    `sleep` waits some seconds between the tries of a request.
    """
    import anyio

    from pipeline.endpoint.batch.api import BatchApi
    from pipeline.endpoint.batch.openai_backend import OpenAIBatchBackend
    from pipeline.endpoint.batch.vertex_backend import VertexBatchBackend
    from pipeline.endpoint.transport import Transport

    waits = sleep or anyio.sleep
    ended_by: Fault | UsageError | None = None
    [(_, target)] = access.targets
    async with access.token() as token, Transport(target.base_url, connections=4) as transport:

        def api(base_url: str) -> BatchApi:
            return BatchApi(base_url, transport, token, waits)

        try:
            if not is_vertex_api(target.base_url):
                yield OpenAIBatchBackend(api(target.base_url), model=model)
            elif place is None:
                raise UnsupportedInBatch("batch prediction of Vertex AI needs a place in Cloud Storage")
            else:
                root, parent = vertex_parent(target.base_url)
                lines = lines_of(model, labels or {})
                store = open_store(place, stores)
                yield VertexBatchBackend(api(root), store, place, parent=parent, model=model, lines=lines)
        except (Fault, UsageError) as error:
            ended_by = error  # raised below: the token's task group would wrap it
    if ended_by is not None:
        raise ended_by


def vertex_parent(base_url: str) -> tuple[str, str]:
    """The API's root, with the query of the base URL, and the parent of jobs there: `projects/P/locations/L`."""
    address, question, query = base_url.partition("?")
    root, _, rest = address.partition("/projects/")
    return root + question + query, f"projects/{rest.partition('/endpoints/')[0]}"


def lines_of(model: str, labels: Mapping[str, str]) -> tuple[WriteLine, ReadLine]:
    """How lines of a model on Vertex AI are written and read: natively for Gemini, in OpenAI's form for open models."""
    if is_gemini(model):
        from pipeline.endpoint.batch.native_answer import read_native_line
        from pipeline.endpoint.batch.native_line import native_line

        return partial(native_line, labels=labels), read_native_line
    from pipeline.endpoint.batch.openai_lines import openai_line, read_openai_line

    return openai_line, read_openai_line


def is_gemini(model: str) -> bool:
    """Whether a model takes native requests: Google's own, and those tuned from them."""
    return "/" not in model or model.startswith(("google/", "publishers/google/", "projects/"))
