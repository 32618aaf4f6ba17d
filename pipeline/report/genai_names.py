"""Names of OpenTelemetry's semantic conventions for generative AI: https://opentelemetry.io/docs/specs/semconv/gen-ai/.

They are experimental there, and are all here, so that a change of theirs is a change of this module.
"""

from __future__ import annotations

OPERATION_DURATION = "gen_ai.client.operation.duration"
"""A histogram in seconds, of gen-ai-metrics; its bounds are those of `totals.histogram.CallDurations`."""

TOKEN_USAGE = "gen_ai.client.token.usage"  # noqa: S105 - no password
"""A histogram in {token}; its bounds are those of `totals.histogram.CallTokens`."""

OPERATION_NAME = "gen_ai.operation.name"
CHAT = "chat"
PROVIDER_NAME = "gen_ai.provider.name"
VERTEX_AI = "gcp.vertex_ai"
REQUEST_MODEL = "gen_ai.request.model"
TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 - no password
INPUT, OUTPUT = "input", "output"
