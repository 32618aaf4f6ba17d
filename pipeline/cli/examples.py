"""Example command lines, shown by --help and when an argument is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[str]] = {
    "run": (
        "pipeline run jobs/mood.py --emulate --limit 20",
        "pipeline run jobs/mood.py --input 'data/*.parquet' --output out/mood --project my-project",
        "pipeline run jobs/mood.py --set temperature=0.2 --budget-usd 5 --retry-failed",
        "pipeline run jobs/mood.py --batch --batch-bucket gs://my-bucket/batch --batch-wait 8h",
    ),
    "plan": ("pipeline plan jobs/mood.py", "pipeline plan jobs/mood.py --input 'data/*.parquet' --rows 5"),
    "status": ("pipeline status out/mood", "watch pipeline status out/mood"),
    "cancel": ("pipeline cancel out/mood", "pipeline cancel gs://my-bucket/mood"),
    "tune": ("pipeline tune out/mood rpm=300 concurrency=32",),
    "show": ("pipeline show out/mood --failed", "pipeline show out/mood --row 7"),
    "export": (
        "pipeline export out/mood --to mood.csv",
        "pipeline export out/mood --to failed.jsonl.gz --rows failed --columns id,error",
    ),
    "report": ("pipeline report out/mood",),
    "reparse": ("pipeline reparse out/mood --job jobs/mood.py",),
    "eval": ("pipeline eval jobs/eval_mood.py", "pipeline eval jobs/eval_mood.py --vs-ref main"),
    "grade": ("pipeline grade out/eval_mood",),
    "gate": ("pipeline gate out/eval_mood",),
    "compare": ("pipeline compare out/eval_before out/eval_after",),
    "bless": ("pipeline bless out/eval_mood",),
    "emulate": ("pipeline emulate --latency 0.5 --quota-rps 20 --fault 503=0.1",),
    "config": ("pipeline config run --job jobs/mood.py", "pipeline config eval"),
    "cache": ("pipeline cache list", "pipeline cache prune --unused-for 30d"),
}


def epilog(command: str) -> str:
    """The examples in typer's format, in which an empty line ends a line."""
    return "\n\n".join(["Examples:", *EXAMPLES[command]])
