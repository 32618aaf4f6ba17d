"""In a notebook: `await` in a cell, `run_sync` in a cell, what is shown of a result, and the bar."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import Served, chat, served

CELLS = [
    """
import pipeline
from pydantic import BaseModel

class Said(BaseModel):
    answer: str

def user(row):
    return f"Say {row['text']}"

job = pipeline.Job(name="said", model="google/gemini-test", user=user, schema=Said)
rows = [{"text": str(number)} for number in range(3)]
""",
    'result = await pipeline.run(job, rows, "out", progress=False)\nresult',
    'pipeline.run_sync(job, rows, "out", progress=False).summary.requests',
    "[outcome.value async for outcome in pipeline.stream(job, rows[:1], progress=False)]",
    "(await pipeline.run(job, rows)).summary.ok",
]


@pytest.fixture(name="server")
def server_of_capitals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with served(lambda call: chat(json.dumps({"answer": call.prompt.upper()}))) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        yield server


@pytest.mark.filterwarnings("ignore")  # of the client of notebooks
def test_a_notebook_is_executed_cell_by_cell(server: Served, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    _, shown, again, streamed, bar = (cell.outputs for cell in notebook.cells)
    assert "<td>complete</td>" in shown[0].data["text/html"]
    assert again[0].data["text/plain"] == "0"
    assert streamed[0].data["text/plain"] == "[Said(answer='SAY 0')]"
    assert bar[-1].data["text/plain"] == "3"
    drawn = "".join(output.text for output in bar if output.output_type == "stream")
    drawn += "".join(str(output.data) for output in bar if output.output_type == "display_data")
    assert "3/3" in drawn
    assert len(server.calls) == 3 + 1 + 3
