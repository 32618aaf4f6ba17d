"""A local Vertex AI, for trying a job without a cloud, a key or a bill. SIMULATED: there is no model behind it.

What is emulated, on one loopback port:

- the OpenAI-compatible chat endpoint (`/v1|v1beta1/projects/*/locations/*/endpoints/openapi|NUMBER/chat/completions`):
  request checks, bodies with sorted keys, Vertex's token arithmetic, `n`, `stop`, `max_tokens`, thinking tokens,
  structured output for any JSON schema, error bodies in their list-wrapped and plain forms;
- Google's token server (`/token`: service account JWTs, whose signature is verified, and refresh tokens) and the
  metadata server of a virtual machine, so that google-auth itself can be used unchanged;
- access tokens that end, quota (a token bucket and a cap on calls in flight), latency, and faults on demand:
  see `FAULT_KINDS`;
- `/stats`, `/stats/prompts`, `/stats/reset` and `/control`, for tests and benchmarks. These four need no token.

Limits of the imitation:

- answers are a deterministic function of the request and the seed. Facts that stand in the last user message (dates,
  times, amounts, names, quoted titles, values of an enumeration ...) are found by patterns, not understood; what is not
  found is null where the schema allows it and invented otherwise. Never judge a prompt by them;
- tokens are counted as a quarter of the characters; temperature, penalties and unknown parameters are ignored;
- streaming answers 400; tools are not called; the content of media parts is not looked at;
- any project, location and numeric endpoint is served; permissions do not exist;
- TLS and HTTP/2 are not spoken.

Every response carries the header `X-Simulated: vertex-emulator`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.emulator.options import FAULT_KINDS, Address, Options, parse_fault, parse_poison

if TYPE_CHECKING:  # importing this package must cost nothing: the command line lists it among its commands
    import asyncio

__all__ = ["FAULT_KINDS", "Address", "Options", "parse_fault", "parse_poison", "serve"]


async def serve(options: Options, announce: Callable[[Address], None], stop: asyncio.Event) -> None:
    """Serve on 127.0.0.1 until `stop` is set; `announce` is called once, when connections are accepted.

    Calls that still wait for their answer at the end are cut. Raises `OSError` when the port is taken or the
    directory for the credentials cannot be written.
    """
    from pipeline.emulator.server import run  # here, so that aiohttp and cryptography load only when it is used

    await run(options, announce, stop)
