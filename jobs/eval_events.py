"""Whether the events job still reads what people read, on texts that were labelled by hand."""

from jobs.extract_events import job
from pipeline import AtLeast, AtMost, Eval, NeverBreak, NoWorse
from pipeline.evaluation import Date, Items, Text

evaluation = Eval(
    job=job.replace(input="data/events_gold.jsonl"),
    expected="expected",
    fields={"name": Text(at_least=0.8), "date": Date(), "participants": Items()},
    slices=["language"],
    cluster="document",
    gates=[
        AtLeast("row_correct", 0.90, on="lower"),
        NoWorse("row_correct", tolerance=0.02),
        NeverBreak(where={"tier": "golden"}),
        AtMost("cost_usd_per_row", 0.004),
    ],
    baseline="jobs/baselines/events.json",
)
