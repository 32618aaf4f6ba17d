"""`batchPredictionJobs` of Vertex AI over HTTP: create, get, list and cancel, over objects of the emulator's buckets.

Bodies and paths are those that google-genai sends and reads. What a refused request is told is inferred, unless it is
one of the errors that the chat endpoint has too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson
from aiohttp import web

from pipeline.emulator.batch.fault_draws import CountedDraws
from pipeline.emulator.batch.line_index import LineIndex
from pipeline.emulator.batch.rows import NativeRows, OpenAIRows, RowWriter
from pipeline.emulator.batch.work import FailedWork, JobPhase, Work, WorkQueue
from pipeline.emulator.bucket.objects import Buckets, RefusedRequest
from pipeline.emulator.protocol.native import check_labels
from pipeline.emulator.protocol.native_fields import Fields
from pipeline.emulator.protocol.wire import JsonObject, Problem, dump, invalid, not_found, precondition, unavailable
from pipeline.emulator.server import responses
from pipeline.emulator.server.chat import Chat

PREDICTION_JOBS = re.compile(
    r"/v1(?:beta1)?/(?P<parent>projects/[^/]+/locations/[^/]+)/batchPredictionJobs(?:/(?P<ident>[^/:]+)(?P<cancel>:cancel)?)?"
)
LARGEST_PAGE = 100

_KNOWN = """
name displayName model modelVersionId unmanagedContainerModel inputConfig instanceConfig modelParameters outputConfig
dedicatedResources serviceAccount manualBatchTuningParameters generateExplanation explanationSpec labels encryptionSpec
disableContainerLogging
"""
_MODEL = re.compile(r"(?:projects/[^/]+/locations/[^/]+/)?publishers/(?P<publisher>[^/]+)/models/(?P<name>[^/]+)")
_TUNED = re.compile(r"projects/[^/]+/locations/[^/]+/models/(?P<name>[^/]+)")
_URI = re.compile(r"gs://(?P<bucket>[^/]+)/(?P<key>.*)")
_CLAUSE = re.compile(r"\s*(?P<name>\w+)\s*(?:=|:)\s*\"?(?P<value>[^\"]*)\"?\s*")
_STATES = {
    JobPhase.PENDING: "JOB_STATE_PENDING",
    JobPhase.RUNNING: "JOB_STATE_RUNNING",
    JobPhase.CANCELLING: "JOB_STATE_CANCELLING",
    JobPhase.SUCCEEDED: "JOB_STATE_SUCCEEDED",
    JobPhase.FAILED: "JOB_STATE_FAILED",
    JobPhase.CANCELLED: "JOB_STATE_CANCELLED",
    JobPhase.EXPIRED: "JOB_STATE_EXPIRED",
    JobPhase.PARTIAL: "JOB_STATE_PARTIALLY_SUCCEEDED",
}


@dataclass(frozen=True, slots=True)
class _Objects:
    """The input and the output of a job in the buckets."""

    buckets: Buckets
    sources: Sequence[tuple[str, str]]
    target: tuple[str, str]
    """The bucket, and the key of the output's folder with its slash."""
    files: int

    def load(self) -> Sequence[bytes]:
        """The input objects; the message for a missing one is inferred."""
        return [self._content(bucket, key) for bucket, key in self.sources]

    def put(self, number: int, lines: bytes) -> None:
        """Stores `predictions.jsonl`, or one of several; how those are called is inferred."""
        name = "predictions.jsonl" if self.files == 1 else f"predictions-{number + 1:05}-of-{self.files:05}.jsonl"
        bucket, folder = self.target
        try:
            self.buckets.put(bucket, folder + name, lines, {"content-type": "application/jsonl"})
        except RefusedRequest as refused:
            raise FailedWork(5, f"Cannot write to gs://{bucket}/{folder}: {refused.message}") from None

    @property
    def failed_apart(self) -> bool:
        """Rows without an answer stand among the others."""
        return False

    def put_failed(self, lines: bytes) -> None:
        """Never used."""

    def left_out(self, rows: LineIndex, indices: Sequence[int]) -> None:
        """Rows that were not answered have no line."""

    def _content(self, bucket: str, key: str) -> bytes:
        try:
            return self.buckets.get(bucket, key).data
        except RefusedRequest as refused:
            raise FailedWork(5, f"Cannot read gs://{bucket}/{key}: {refused.message}") from None


@dataclass(frozen=True, slots=True)
class PredictionJob:
    """A job as it was asked for, and its work. `folder` is where its output is."""

    parent: str
    ident: str
    body: JsonObject
    work: Work
    folder: str

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"{self.parent}/batchPredictionJobs/{self.ident}"

    @property
    def state(self) -> str:
        """Its state as Vertex calls it."""
        return _STATES[self.work.phase]


class PredictionJobs:
    """Answers requests for batch prediction jobs."""

    def __init__(self, chat: Chat, buckets: Buckets, queue: WorkQueue) -> None:
        self._chat = chat
        self._buckets = buckets
        self._queue = queue
        self._jobs: dict[str, PredictionJob] = {}
        self._draws = CountedDraws(lambda: chat.options)
        self.requests: Counter[str] = Counter()
        """Requests by operation and status, as in `create 200`; a connection that was closed has status `closed`."""

    def states(self) -> dict[str, int]:
        """The number of jobs in each state."""
        return dict(sorted(Counter(job.state for job in self._jobs.values()).items()))

    async def handle(self, request: web.BaseRequest, match: re.Match[str]) -> web.StreamResponse:
        """The response to any request for jobs."""
        operation = _operation(request.method, match)
        status = "200"
        try:
            fault = self._admitted(operation, request, match["parent"])
            response = responses.json(dump(await self._answer(operation, request, match)))
            if fault == "lost":
                status, response = "closed", responses.closed(request)
        except Problem as problem:
            status, response = str(problem.http_status), self._refusal(problem)
        self.requests[f"{operation} {status}"] += 1
        return response

    def _admitted(self, operation: str, request: web.BaseRequest, parent: str) -> str | None:
        """The fault with which a request is answered. Raises the `Problem` of one that is refused."""
        self._chat.tokens.check(request.headers.get("Authorization"))
        if parent.rpartition("/")[2] in self._chat.options.down_locations:
            raise unavailable()
        fault = self._draws.next("get" if operation == "list" else operation)
        self._draws.refuse(fault)
        return fault

    async def _answer(self, operation: str, request: web.BaseRequest, match: re.Match[str]) -> JsonObject:
        match operation:
            case "create":
                return self._shown(self._create(match["parent"], await request.read()))
            case "get":
                return self._shown(self._job(match))
            case "list":
                return self._page(match["parent"], request.query)
            case "cancel":
                return self._cancelled(self._job(match))
        raise Problem(405, "METHOD_NOT_ALLOWED", "The method is not allowed for this resource.")

    def _create(self, parent: str, body: bytes) -> PredictionJob:
        try:
            asked = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise invalid(f"Invalid JSON payload received. {error}") from None
        fields = Fields.of(asked, "batch_prediction_job", _KNOWN)
        display_name = fields.get("displayName")
        if not isinstance(display_name, str) or not 1 <= len(display_name) <= 128:
            raise invalid("display_name is required, and has at most 128 characters.")
        check_labels(fields.get("labels"))
        model = _model_of(fields.get("model"))
        if not self._chat.options.serves(model):
            raise not_found(model, parent)
        now, number = self._queue.clock.now(), len(self._jobs) + 1
        bucket, prefix = _target(fields.get("outputConfig"))
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        folder += f"prediction-model-{self._queue.clock.stamp(now)}/"
        objects = _Objects(
            self._buckets, tuple(_sources(fields.get("inputConfig"))), (bucket, folder), self._chat.options.batch_files
        )
        writer = self._writer(model, parent)
        work = Work(writer, objects, self._chat.options, number, now, fault=self._draws.next("job"))
        shown = {"displayName": display_name, "labels": fields.get("labels")}
        shown |= {name: fields.get(name) for name in ("model", "inputConfig", "outputConfig")}
        shown = {name: value for name, value in shown.items() if value is not None}
        job = PredictionJob(parent, _ident(self._chat.options.seed, number), shown, work, f"gs://{bucket}/{folder}")
        self._jobs[job.ident] = job
        self._queue.add(work)
        return job

    def _writer(self, model: str, parent: str) -> RowWriter:
        """How lines are read: Google's models have their own form, open models OpenAI's."""
        if model.startswith("google/"):
            return NativeRows(self._chat, model, parent, lambda: self._queue.clock.stamp(self._queue.clock.now()))
        return OpenAIRows(self._chat, parent, model=model)

    def _job(self, match: re.Match[str]) -> PredictionJob:
        found = self._jobs.get(match["ident"])
        if found is None or found.parent != match["parent"]:
            name = f"{match['parent']}/batchPredictionJobs/{match['ident']}"
            raise Problem(404, "NOT_FOUND", f"The BatchPredictionJob {name} does not exist.")
        return found

    def _cancelled(self, job: PredictionJob) -> JsonObject:
        """Asks for the end of a job. That one which has ended is refused, is inferred."""
        if job.work.phase.ended:
            raise precondition(f"The job {job.name} is in state {job.state} and cannot be cancelled.")
        job.work.cancel(self._queue.clock.now())
        self._queue.wake()
        return {}

    def _page(self, parent: str, query: Any) -> JsonObject:
        """One page of the jobs of a location, the newest first (inferred)."""
        size, token = query.get("pageSize", ""), query.get("pageToken", "")
        if not all(text.isdecimal() or not text for text in (size, token)):
            raise invalid("page_size is a number, and page_token one that was given with a page.")
        wanted = dict(_clauses(query.get("filter", "")))
        jobs = [job for job in reversed(self._jobs.values()) if job.parent == parent and _is_wanted(job, wanted)]
        first, most = int(token or 0), min(int(size or 0) or LARGEST_PAGE, LARGEST_PAGE)
        page: JsonObject = {"batchPredictionJobs": [self._shown(job) for job in jobs[first : first + most]]}
        return page | ({"nextPageToken": str(first + most)} if len(jobs) > first + most else {})

    def _shown(self, job: PredictionJob) -> JsonObject:
        """A job as Vertex shows it. Where its output is, is told as soon as there is some (inferred)."""
        work, stamp = job.work, self._queue.clock.stamp
        shown: JsonObject = {
            **job.body,
            "name": job.name,
            "state": job.state,
            "modelVersionId": "1",
            "createTime": stamp(work.created),
            "updateTime": stamp(work.changed),
        }
        if work.started is not None:
            shown["startTime"] = stamp(work.started)
        if work.ended is not None:
            shown["endTime"] = stamp(work.ended)
        if work.files:
            shown["outputInfo"] = {"gcsOutputDirectory": job.folder.rstrip("/")}
        if work.counts.total:
            counts = work.counts
            rest = counts.total - counts.succeeded - counts.failed
            shown["completionStats"] = {
                "successfulCount": str(counts.succeeded),
                "failedCount": str(counts.failed),
                "incompleteCount": str(rest),
            }
        if work.error is not None:
            shown["error"] = {"code": work.error.code, "message": work.error.message}
        return shown

    def _refusal(self, problem: Problem) -> web.Response:
        retry = self._chat.options.retry_after if problem.http_status in {429, 503} else None
        return responses.json(
            problem.body("object"), problem.http_status, {} if retry is None else {"Retry-After": retry}
        )


def _operation(method: str, match: re.Match[str]) -> str:
    if match["cancel"]:
        return "cancel" if method == "POST" else "other"
    return {("POST", False): "create", ("GET", False): "list", ("GET", True): "get"}.get(
        (method, match["ident"] is not None), "other"
    )


def _model_of(model: Any) -> str:
    """The model as the chat endpoint calls it."""
    if isinstance(model, str) and (found := _MODEL.fullmatch(model)):
        return f"{found['publisher']}/{found['name']}"
    if isinstance(model, str) and (found := _TUNED.fullmatch(model)):
        return f"google/gemini-tuned-{found['name']}"
    raise invalid(f"Invalid model: {model!r}. It is publishers/PUBLISHER/models/MODEL, or a Model resource.")


def _sources(config: Any) -> Iterator[tuple[str, str]]:
    fields = Fields.of(config, "batch_prediction_job.input_config", "instancesFormat gcsSource bigquerySource")
    if fields.get("instancesFormat") != "jsonl":
        raise invalid(
            f"instances_format is jsonl here (BigQuery is not emulated), not {fields.get('instancesFormat')!r}."
        )
    uris = Fields.of(fields.get("gcsSource"), "batch_prediction_job.input_config.gcs_source", "uris").get("uris")
    if not isinstance(uris, list) or not uris:
        raise invalid("gcs_source.uris is a list of gs://BUCKET/OBJECT.")
    for uri in uris:
        bucket, key = _place(uri)
        if not key:
            raise invalid(f"Invalid Cloud Storage uri: {uri}")
        yield bucket, key


def _target(config: Any) -> tuple[str, str]:
    known = "predictionsFormat gcsDestination bigqueryDestination"
    fields = Fields.of(config, "batch_prediction_job.output_config", known)
    if fields.get("predictionsFormat") != "jsonl":
        shown = fields.get("predictionsFormat")
        raise invalid(f"predictions_format is jsonl here (BigQuery is not emulated), not {shown!r}.")
    place = "batch_prediction_job.output_config.gcs_destination"
    return _place(Fields.of(fields.get("gcsDestination"), place, "outputUriPrefix").get("outputUriPrefix"))


def _place(uri: Any) -> tuple[str, str]:
    found = _URI.fullmatch(uri if isinstance(uri, str) and uri.count("/") > 2 else f"{uri}/")
    if found is None:
        raise invalid(f"Invalid Cloud Storage uri: {uri!r}")
    return found["bucket"], found["key"]


def _clauses(text: str) -> Iterator[tuple[str, str]]:
    """The names and values of a filter such as `displayName="a" AND state="JOB_STATE_RUNNING"`."""
    for clause in re.split(r"\s+AND\s+", text) if text.strip() else ():
        found = _CLAUSE.fullmatch(clause)
        if found is None or found["name"] not in {"displayName", "display_name", "state", "model"}:
            raise invalid(f'Invalid filter: {text[:200]!r}. Here it is NAME="VALUE" of displayName, state and model.')
        yield found["name"].replace("display_name", "displayName"), found["value"]


def _is_wanted(job: PredictionJob, wanted: dict[str, str]) -> bool:
    values = {"displayName": job.body["displayName"], "state": job.state, "model": job.body["model"]}
    return all(values[name] == value for name, value in wanted.items())


def _ident(seed: int, number: int) -> str:
    """19 digits, as Vertex's ids have."""
    digest = blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return str(10**18 + int.from_bytes(digest, "big") % (8 * 10**18))
