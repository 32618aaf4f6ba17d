"""Invoices and receipts, as text in Parquet, into their lines and totals: exact decimals, no floats."""

import datetime as dt
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from pipeline import Job

Amount = Annotated[Decimal, Field(max_digits=14, decimal_places=4)]


class Line(BaseModel):
    description: str
    quantity: Amount
    unit_price: Amount
    category: Literal["goods", "service", "shipping", "discount"]


class Invoice(BaseModel):
    supplier: str
    number: str = Field(description="The invoice number as printed.")
    issued: dt.date
    currency: Literal["EUR", "USD", "GBP", "CHF", "JPY", "PLN"]
    lines: list[Line]
    total: Amount
    paid: bool = Field(description="Whether the text says that it is paid.")


job = Job(
    name="extract_invoices",
    input="data/invoices.parquet",
    output="out/extract_invoices",
    model="google/gemini-3.5-flash-lite",
    system="You read one invoice and report it exactly as printed. Amounts keep their decimals.",
    user="{{ text }}",
    schema=Invoice,
    temperature=0,
    key="invoice_id",
)
