"""How a request is served, by its headers: shared, flex, priority or provisioned.

https://cloud.google.com/vertex-ai/generative-ai/docs/flex-paygo
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.emulator.protocol.wire import invalid, precondition

TYPE = "X-Vertex-AI-LLM-Request-Type"
SHARED_TYPE = "X-Vertex-AI-LLM-Shared-Request-Type"

_TRAFFIC = {"flex": "ON_DEMAND_FLEX", "priority": "ON_DEMAND_PRIORITY"}


def traffic_type(headers: Mapping[str, str], location: str) -> str:
    """The `traffic_type` of the usage. Raises a 400 for an unknown tier, and one the location does not have."""
    kind, shared = headers.get(TYPE), headers.get(SHARED_TYPE)
    if kind is None and shared is None:
        return "ON_DEMAND"
    if kind not in {None, "dedicated", "shared"}:
        raise invalid(f"Invalid value of the header {TYPE}: {kind}")
    if shared is None:
        return "PROVISIONED_THROUGHPUT" if kind == "dedicated" else "ON_DEMAND"
    if shared not in _TRAFFIC:
        raise invalid(f"Invalid value of the header {SHARED_TYPE}: {shared}")
    if location != "global":
        raise precondition(f"{shared.capitalize()} PayGo is available on the global endpoint only, not in {location}.")
    return _TRAFFIC[shared]
