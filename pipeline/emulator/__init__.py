"""A local Vertex AI, for trying a job without a cloud, a key or a bill. SIMULATED: there is no model behind it.

What is emulated, on one loopback port:

- the OpenAI-compatible chat endpoint (`/v1|v1beta1/projects/*/locations/*/endpoints/openapi|NUMBER/chat/completions`):
  request checks, bodies with sorted keys, Vertex's token arithmetic, `n`, `stop`, `max_tokens`, structured output for
  any JSON schema, error bodies in their list-wrapped and plain forms;
- streams: a role in every delta, no `finish_reason` before the last chunk, which also has the usage. Assembled, they
  equal the unstreamed answer; tool calls come in one delta or, on request, in Google's unusual fragments;
- function calling: `tool_choice` in all its forms, parallel calls, one prompt in three with a second turn; every call
  needs exactly one result, with the thought signature of the first call;
- thinking: tokens by effort, level or budget, and summaries bare or in tags inside the text;
- media in: PNG, JPEG, WebP, GIF, HEIC, WAV, MP3, FLAC, OGG, M4A, MP4, WebM, PDF and text, as data or by URL. Data is
  checked and measured by its header, and the answer describes it (type, size, length, bytes, sha256), in prose and in
  fields named like a description. Media out: a small PNG (`modalities`), or a tone as WAV;
- safety settings (`BLOCK_LOW_AND_ABOVE` blocks prompts with the text `[unsafe]`), cached content, request tiers by
  header, with their `traffic_type`;
- Google's token server (`/token`: service account JWTs, whose signature is verified, and refresh tokens) and the
  metadata server of a virtual machine, so that google-auth itself can be used unchanged;
- access tokens that expire, quota (a token bucket, whose rate may follow a schedule, and a cap on calls in flight),
  latency, locations that are down, answers with wrong fields (`field_errors`), and faults on demand: see `FAULT_KINDS`;
- Cloud Storage's XML API for some `buckets`, with the same tokens: objects in memory, generations and preconditions
  (`x-goog-if-generation-match`, `If-Match`, `?generation=`), ranges, copies, listings, uploads in parts, and faults
  on demand: see `BUCKET_FAULTS`;
- batch prediction: `batchPredictionJobs` (create, get, list, cancel) whose rows are objects of the buckets, in
  Gemini's own form or, for open models, in OpenAI's. A row gets the answer that the chat endpoint gives to the same
  messages; jobs have a clock of their own, and faults on demand: see `BATCH_FAULTS`. OpenAI's `/v1/files` and
  `/v1/batches` too;
- `/stats`, `/stats/prompts`, `/stats/answers`, `/stats/reset` and `/control`, for tests and benchmarks. These need no
  token. Streams are sent in pieces only if there is latency to spread over them.

Limitations:

- answers are a deterministic function of the request and the seed, streamed or not. Facts in the last user message
  (dates, times, amounts, names, quoted titles, enum values and so on) are found by patterns, not understood; a value
  that is not found is null where the schema allows it and invented otherwise. Never judge a prompt by them. Of several
  answers all but the first differ in one value, unless the temperature is 0;
- functions to call are chosen by words that prompt and function share; `functions` and `function_call`, OpenAI's older
  parameters, are ignored;
- tokens are a quarter of the characters; penalties and unknown parameters are ignored, web search finds
  nothing, any cached content counts as 4096 tokens;
- media are not read beyond their header, and URLs (gs://, https://) are never fetched;
- any project, location and numeric endpoint is served; there are no permissions;
- TLS and HTTP/2 are not supported.

Every response carries the header `X-Simulated: vertex-emulator`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.emulator.options import (
    BATCH_FAULTS,
    BUCKET_FAULTS,
    FAULT_KINDS,
    EmulatorAddress,
    Options,
    load_answer_key,
    parse_batch_fault,
    parse_bucket_fault,
    parse_fault,
    parse_field_error,
    parse_poison,
    parse_schedule,
)

if TYPE_CHECKING:  # importing this package must be cheap: the command line imports it to list its commands
    import asyncio

__all__ = [
    "BATCH_FAULTS",
    "BUCKET_FAULTS",
    "FAULT_KINDS",
    "EmulatorAddress",
    "Options",
    "load_answer_key",
    "parse_batch_fault",
    "parse_bucket_fault",
    "parse_fault",
    "parse_field_error",
    "parse_poison",
    "parse_schedule",
    "serve",
]


async def serve(options: Options, announce: Callable[[EmulatorAddress], None], stop: asyncio.Event) -> None:
    """Serves on 127.0.0.1 until `stop` is set; calls `announce` once, when connections are accepted.

    Calls still waiting for an answer at the end are disconnected. Raises `OSError` when the port is taken or the
    directory for the credentials cannot be written.
    """
    from pipeline.emulator.server.server import run  # here, so that aiohttp and cryptography are loaded only when used

    await run(options, announce, stop)
