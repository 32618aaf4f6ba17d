"""The schema by itself: an answer's text to typed values for Parquet."""

from __future__ import annotations

import json
import time

from pipeline.schema.from_pydantic import shape_of
from tests.benchmarks.canned import ANSWER
from tests.benchmarks.contenders import Event
from tests.benchmarks.figures import Line
from tests.benchmarks.scale import Scale


def measure(scale: Scale) -> list[Line]:
    """CPU an answer, to pydantic's own reading and dumping."""
    rows = scale.of(50_000, 5000)
    text, shape = json.dumps(ANSWER), shape_of(Event)
    before = time.process_time()
    for _ in range(rows):
        shape.plain(shape.parse(text))
    between = time.process_time()
    for _ in range(rows):
        Event.model_validate_json(text).model_dump()
    after = time.process_time()
    ours, plain = (between - before) / rows * 1e6, (after - between) / rows * 1e6
    return [Line("schema: CPU an answer read and made plain, to pydantic", "us", ours, plain)]
