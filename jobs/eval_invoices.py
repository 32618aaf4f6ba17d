"""Whether the invoices job reads every line, with amounts to the last digit, in the forms of eleven countries."""

from jobs.extract_invoices import job
from pipeline import AtLeast, AtMost, Eval, NoWorse
from pipeline.evaluation import Date, Enum, Exact, Items, Number, Text

evaluation = Eval(
    job=job.replace(input="data/invoices_gold.jsonl", key="id"),
    fields={
        "supplier": Text(at_least=0.9),
        "number": Exact(),
        "issued": Date(),
        "lines": Items(
            fields={
                "description": Text(at_least=0.8),
                "quantity": Number(),
                "unit_price": Number(absolute=0.005),
                "category": Enum(("goods", "service", "shipping", "discount"), required=False),
            },
        ),
        "total": Number(absolute=0.005),
    },
    slices=["supplier_country"],
    gates=[
        AtLeast("row_correct", 0.75, on="lower"),
        AtLeast("recall.lines", 0.95),
        AtLeast("right.total", 0.90, on="lower"),
        NoWorse("row_correct", tolerance=0.05),
        NoWorse("f1.lines", tolerance=0.01),
        AtMost("failed", 0.02),
    ],
    baseline="jobs/baselines/invoices.json",
)
