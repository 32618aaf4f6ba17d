"""OpenAI's `/v1/files` and `/v1/batches`, as a server of chat completions has them, and its own API key.

Objects and states follow https://platform.openai.com/docs/api-reference/batch and /files. Inferred are most messages
of errors, and that a batch which fails half-way keeps its output.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from aiohttp import BodyPartReader, MultipartReader, web

from pipeline.emulator.batch.fault_draws import CountedDraws
from pipeline.emulator.batch.files import FileStore, StoredFile
from pipeline.emulator.batch.line_index import LineIndex
from pipeline.emulator.batch.rows import OpenAIRows
from pipeline.emulator.batch.work import FailedWork, JobPhase, Work, WorkQueue
from pipeline.emulator.protocol.wire import JsonObject, Problem, dump, invalid
from pipeline.emulator.server import responses
from pipeline.emulator.server.chat import Chat

OPENAI = re.compile(r"/v1/(?P<kind>files|batches)(?:/(?P<ident>[^/]+)(?:/(?P<verb>content|cancel))?)?")
MOST_ROWS = 50_000
MOST_BYTES = 200_000_000
WINDOW = 24 * 3600
CHAT_URL = "/v1/chat/completions"
LARGEST_PAGE = 100

_STATUSES = {
    JobPhase.PENDING: "validating",
    JobPhase.RUNNING: "in_progress",
    JobPhase.CANCELLING: "cancelling",
    JobPhase.SUCCEEDED: "completed",
    JobPhase.PARTIAL: "completed",
    JobPhase.FAILED: "failed",
    JobPhase.CANCELLED: "cancelled",
    JobPhase.EXPIRED: "expired",
}


@dataclass(slots=True)
class _Files:
    """The input and the output of a batch: answers and errors have a file each, once there are some."""

    store: FileStore
    source: str
    name: str
    writer: OpenAIRows
    output: str | None = None
    errors: str | None = None

    @property
    def failed_apart(self) -> bool:
        """Rows without an answer have a file of their own."""
        return True

    def load(self) -> Sequence[bytes]:
        """The uploaded file."""
        found = self.store.files.get(self.source)
        if found is None:
            raise FailedWork(5, f"The input file {self.source} was removed.")
        return [found.data]

    def put(self, number: int, lines: bytes) -> None:  # noqa: ARG002 - there is one file
        """Stores the answers."""
        if lines:
            self.output = self.store.add(f"{self.name}_output.jsonl", "batch_output", lines).ident

    def put_failed(self, lines: bytes) -> None:
        """Stores the errors."""
        if self.errors is None:
            self.errors = self.store.add(f"{self.name}_error.jsonl", "batch_output", lines).ident
        else:
            self.store.extend(self.errors, lines)

    def left_out(self, rows: LineIndex, indices: Sequence[int]) -> None:
        """Rows that were not answered in time are errors."""
        lines = [self.writer.expired(rows[index], index + 1) + b"\n" for index in indices]
        if lines:
            self.put_failed(b"".join(lines))


@dataclass(frozen=True, slots=True)
class OpenAIBatch:
    """A batch as it was asked for, and its work."""

    ident: str
    source: str
    metadata: Any
    work: Work
    files: _Files

    @property
    def status(self) -> str:
        """Its status as OpenAI calls it."""
        answered = self.work.counts.total and self.work.answered
        return "finalizing" if self.work.phase is JobPhase.RUNNING and answered else _STATUSES[self.work.phase]


class OpenAIBatches:
    """Answers requests for files and batches."""

    def __init__(self, chat: Chat, queue: WorkQueue) -> None:
        self._chat = chat
        self._queue = queue
        self._files = FileStore()
        self._batches: dict[str, OpenAIBatch] = {}
        self._draws = CountedDraws(lambda: chat.options)
        self.requests: Counter[str] = Counter()
        """Requests for batches by operation and status, as those for batch prediction jobs."""

    def states(self) -> dict[str, int]:
        """The number of batches of each status."""
        return dict(sorted(Counter(batch.status for batch in self._batches.values()).items()))

    async def handle(self, request: web.BaseRequest, match: re.Match[str]) -> web.StreamResponse:
        """The response to any request for files or batches."""
        operation, answer = _OPERATIONS.get(
            (request.method, match["kind"], match["ident"] is not None, match["verb"]), ("other", _nothing)
        )
        status, fault = "200", None
        try:
            self._chat.tokens.check(request.headers.get("Authorization"), keys=True)
            if match["kind"] == "batches":
                fault = self._draws.next("get" if operation == "list" else operation)
                self._draws.refuse(fault)
            response = await answer(self, request, match["ident"] or "")
            if fault == "lost":
                status, response = "closed", responses.closed(request)
        except Problem as problem:
            status, response = str(problem.http_status), self._refusal(problem)
        if match["kind"] == "batches":
            self.requests[f"{operation} {status}"] += 1
        return response

    async def upload(self, request: web.BaseRequest, _: str) -> web.Response:
        """`POST /v1/files`: a form with `purpose` and `file`."""
        if not request.content_type.startswith("multipart/"):
            raise invalid("A file is uploaded as multipart/form-data.")
        found: dict[str, tuple[str, bytes]] = {}
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if isinstance(part, MultipartReader):
                raise invalid("A part of the form is a form itself.")
            found[part.name or ""] = (part.filename or "file", await _content_of(part))
        if "file" not in found or not found.get("purpose", ("", b""))[1]:
            raise invalid("The form needs the parts file and purpose.")
        name, data = found["file"]
        return _json(self._files.add(name, found["purpose"][1].decode(errors="replace"), data).shown())

    async def list_files(self, request: web.BaseRequest, _: str) -> web.Response:
        """`GET /v1/files`: the newest first."""
        purpose = request.query.get("purpose")
        files = [file.shown() for file in self._files.files.values() if purpose in (None, file.purpose)]
        return _json(_page(files[::-1], request.query))

    async def file(self, _: web.BaseRequest, ident: str) -> web.Response:
        """`GET /v1/files/ID`."""
        return _json(self._file(ident).shown())

    async def content(self, _: web.BaseRequest, ident: str) -> web.Response:
        """`GET /v1/files/ID/content`."""
        return responses.json(self._file(ident).data, content_type="application/octet-stream")

    async def remove(self, _: web.BaseRequest, ident: str) -> web.Response:
        """`DELETE /v1/files/ID`."""
        del self._files.files[self._file(ident).ident]
        return _json({"id": ident, "object": "file", "deleted": True})

    async def create(self, request: web.BaseRequest, _: str) -> web.Response:
        """`POST /v1/batches`."""
        try:
            asked = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            raise invalid(f"We could not parse the JSON body of your request. {error}") from None
        if not isinstance(asked, dict):
            raise invalid("The body of the request is not an object.")
        if asked.get("endpoint") != CHAT_URL:
            raise invalid(f"Invalid value for endpoint: {asked.get('endpoint')!r}. Here it is {CHAT_URL}.")
        if asked.get("completion_window") != "24h":
            raise invalid(f"Invalid value for completion_window: {asked.get('completion_window')!r}. It is '24h'.")
        source = asked.get("input_file_id")
        if not isinstance(source, str) or source not in self._files.files:
            raise invalid(f"No such File object: {source!r}")
        if self._files.files[source].purpose != "batch":
            raise invalid("The purpose of the input file must be 'batch'.")
        number, options = len(self._batches) + 1, self._chat.options
        ident = f"batch_{number:024}"
        most = min(options.batch_most_rows, MOST_ROWS), min(options.batch_most_bytes, MOST_BYTES)
        own = replace(options, batch_files=1, batch_most_rows=most[0], batch_most_bytes=most[1])
        writer = OpenAIRows(self._chat, f"projects/{options.project}/locations/global")
        shelf = _Files(self._files, source, ident, writer)
        work = Work(writer, shelf, own, number, self._queue.clock.now(), fault=self._draws.next("job"))
        self._batches[ident] = OpenAIBatch(ident, source, asked.get("metadata"), work, shelf)
        self._queue.add(work)
        return _json(self._shown(self._batches[ident]))

    async def list_batches(self, request: web.BaseRequest, _: str) -> web.Response:
        """`GET /v1/batches`: the newest first."""
        return _json(_page([self._shown(batch) for batch in reversed(self._batches.values())], request.query))

    async def batch(self, _: web.BaseRequest, ident: str) -> web.Response:
        """`GET /v1/batches/ID`."""
        return _json(self._shown(self._batch(ident)))

    async def cancel(self, _: web.BaseRequest, ident: str) -> web.Response:
        """`POST /v1/batches/ID/cancel`."""
        batch = self._batch(ident)
        if batch.work.phase.ended:
            raise Problem(409, "ABORTED", f"Cannot cancel a batch with status '{batch.status}'.")
        batch.work.cancel(self._queue.clock.now())
        self._queue.wake()
        return _json(self._shown(batch))

    def _file(self, ident: str) -> StoredFile:
        found = self._files.files.get(ident)
        if found is None:
            raise Problem(404, "NOT_FOUND", f"No such File object: {ident}")
        return found

    def _batch(self, ident: str) -> OpenAIBatch:
        found = self._batches.get(ident)
        if found is None:
            raise Problem(404, "NOT_FOUND", f"No batch found with id '{ident}'.")
        return found

    def _shown(self, batch: OpenAIBatch) -> JsonObject:
        work, status = batch.work, batch.status
        ended = status if work.phase.ended else None
        counts = work.counts
        times = {
            "created": work.created,
            "in_progress": work.started,
            "expires": work.created + WINDOW,
            "cancelling": work.cancelled,
            **{name: work.ended if ended == name else None for name in ("completed", "failed", "expired", "cancelled")},
        }
        return {
            "id": batch.ident,
            "object": "batch",
            "endpoint": CHAT_URL,
            "errors": _errors(work.error),
            "input_file_id": batch.source,
            "completion_window": "24h",
            "status": status,
            "output_file_id": batch.files.output if ended else None,
            "error_file_id": batch.files.errors if ended else None,
            **{f"{name}_at": None if at is None else self._unix(at) for name, at in times.items()},
            "request_counts": {"total": counts.total, "completed": counts.succeeded, "failed": counts.failed},
            "metadata": batch.metadata,
        }

    def _unix(self, at: float) -> int:
        return int(self._queue.clock.date(at).timestamp())

    def _refusal(self, problem: Problem) -> web.Response:
        """The error as OpenAI writes it."""
        kind = "server_error" if problem.http_status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "requests"}.get(problem.http_status, kind)
        body = {"error": {"message": problem.message, "type": kind, "param": None, "code": None}}
        retry = self._chat.options.retry_after if problem.http_status in {429, 503} else None
        return responses.json(dump(body), problem.http_status, {} if retry is None else {"Retry-After": retry})


async def _content_of(part: BodyPartReader) -> bytes:
    """A part of a form, read in pieces: read at once it may not be larger than any other request. Raises a 413."""
    found = bytearray()
    while piece := await part.read_chunk():
        found += piece
        if len(found) > MOST_BYTES:
            raise Problem(413, "INVALID_ARGUMENT", f"The file is larger than {MOST_BYTES} bytes.")
    return bytes(found)


async def _nothing(_: OpenAIBatches, __: web.BaseRequest, ___: str) -> web.Response:
    raise Problem(405, "METHOD_NOT_ALLOWED", "The method is not allowed for this resource.")


_OPERATIONS: Mapping[
    tuple[str, str, bool, str | None],
    tuple[str, Callable[[OpenAIBatches, web.BaseRequest, str], Awaitable[web.Response]]],
] = {
    ("POST", "files", False, None): ("upload", OpenAIBatches.upload),
    ("GET", "files", False, None): ("list", OpenAIBatches.list_files),
    ("GET", "files", True, None): ("get", OpenAIBatches.file),
    ("GET", "files", True, "content"): ("content", OpenAIBatches.content),
    ("DELETE", "files", True, None): ("remove", OpenAIBatches.remove),
    ("POST", "batches", False, None): ("create", OpenAIBatches.create),
    ("GET", "batches", False, None): ("list", OpenAIBatches.list_batches),
    ("GET", "batches", True, None): ("get", OpenAIBatches.batch),
    ("POST", "batches", True, "cancel"): ("cancel", OpenAIBatches.cancel),
}


def _errors(failure: FailedWork | None) -> JsonObject | None:
    if failure is None:
        return None
    line = failure.line
    code = "batch_failed" if line is None else line.code
    shown = {"code": code, "message": failure.message, "param": None, "line": None if line is None else line.number}
    return {"object": "list", "data": [shown]}


def _page(objects: Sequence[JsonObject], query: Mapping[str, str]) -> JsonObject:
    """One page of a list, behind the object whose id is `after`."""
    limit, after = query.get("limit", "20"), query.get("after")
    if not limit.isdecimal() or not 1 <= int(limit) <= LARGEST_PAGE:
        raise invalid(f"limit is a number from 1 to {LARGEST_PAGE}, not {limit[:20]!r}.")
    first = 0
    if after is not None:
        first = next((at + 1 for at, each in enumerate(objects) if each["id"] == after), len(objects))
    page = objects[first : first + int(limit)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return {"object": "list", "data": list(page), **ends, "has_more": len(objects) > first + len(page)}


def _json(body: JsonObject) -> web.Response:
    return responses.json(orjson.dumps(body), content_type="application/json")
