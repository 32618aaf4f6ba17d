# /// script
# requires-python = ">=3.11"
# dependencies = ["pyarrow==26.0.1"]
# ///
"""Writes invoices.parquet, invoices_gold.jsonl and tickets.parquet beside this script.

An `Invoice` is drawn first and printed afterwards in one of several layouts, so the gold is what was printed. The
words are in phrases/invoices.toml and phrases/tickets.toml. Running it again with the same pyarrow writes the same
bytes.

In [country.shops] a ware is a description and a price, and "~" marks a service. In `money`, the character after
{whole} groups the thousands, and the next one is the decimal mark.
"""

import json
import random
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
INVOICES, GOLD = 150, 80
FIRST_DAY = date(2025, 9, 1)
WEIGHTS = {"DE": 6, "AT": 2, "FR": 4, "ES": 3, "IT": 3, "NL": 3, "GB": 6, "US": 5, "CH": 3, "JP": 3, "PL": 3}

Words = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One position of an invoice, in units of its currency."""

    description: str
    quantity: Decimal
    unit_price: Decimal
    category: str

    @property
    def amount(self) -> Decimal:
        """What the position costs."""
        return self.quantity * self.unit_price


@dataclass(frozen=True)
class Invoice:
    """What is printed."""

    country: str
    supplier: str
    number: str
    issued: date
    currency: str
    lines: tuple[Line, ...]
    paid: bool

    @property
    def total(self) -> Decimal:
        """The sum of all positions."""
        return sum((line.amount for line in self.lines), Decimal(0))


class Printer:
    """Writes numbers and dates as one country does, and picks one of its words for each thing."""

    def __init__(self, words: Words, dice: random.Random) -> None:
        self.words, self.dice = words, dice
        self.date_format = dice.choice(words["dates"])

    def word(self, key: str) -> str:
        """One of the words for `key`."""
        return str(self.dice.choice(self.words[key]))

    def day(self, day: date) -> str:
        """The date in the country's spelling."""
        months = self.words.get("months", [""] * 12)
        return str(self.date_format).format(
            d=day.day, dd=f"{day.day:02}", m=day.month, mm=f"{day.month:02}", month=months[day.month - 1], y=day.year
        )

    def number(self, value: Decimal) -> str:
        """A quantity: no decimals unless there are some."""
        mark = "." if self.words["money"].endswith((".{cents}", ",")) else ","
        return f"{value.normalize():f}".replace(".", mark)

    def money(self, value: Decimal) -> str:
        """An amount with its currency sign."""
        form = self.words["money"]
        group = form[form.index("{whole}") + 7]
        whole, _, cents = f"{abs(value):,.2f}".partition(".")
        form = form.replace("{whole}" + group, "{whole}")
        sign = "-" if value < 0 else ""
        return str(form.format(sign=sign, whole=whole.replace(",", group.replace(" ", "\u202f")), cents=cents))


def draw_invoice(dice: random.Random, everything: dict[str, Words]) -> Invoice:
    """An invoice that adds up."""
    country = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    words = everything[country]
    supplier, wares = dice.choice(list(words["shops"].items()))
    lines = [draw_line(dice, ware) for ware in dice.sample(wares, dice.randint(1, len(wares)))]
    if dice.random() < 0.35:
        lines.append(Line(words["shipping"][0], Decimal(1), shipping_price(dice, words["currency"]), "shipping"))
    if dice.random() < 0.25:
        lines.append(draw_discount(dice, words, sum((line.amount for line in lines), Decimal(0))))
    issued = FIRST_DAY + timedelta(days=dice.randrange(420))
    number = draw_number(dice, issued.year)
    return Invoice(country, supplier, number, issued, words["currency"], tuple(lines), paid=dice.random() < 0.5)


def draw_number(dice: random.Random, year: int) -> str:
    """An invoice number, in one of the ways people number."""
    form = dice.choice(["{year}-{n:05}", "RE{n:06}", "{n}", "{year}/{n:04}", "F-{n:05}-B", "{n:05}.{c}"])
    return form.format(year=year, n=dice.randrange(10, 99999), c=dice.randrange(10))


def draw_line(dice: random.Random, ware: str) -> Line:
    """A position for a ware like "Soup of the day 6.50", or a service like "~Labour (hours) 58.00"."""
    description, _, price = ware.removeprefix("~").rpartition(" ")
    most = 2 if len(price) > 6 else 4 if len(price) == 6 or ware.startswith("~") else 12
    quantity = Decimal(dice.randint(1, most))
    if re.match(r"~.*\((Std\.|heure|hora|ora|uur|hours|hrs|godz\.)\)", ware):
        quantity /= 2
    return Line(description, quantity, Decimal(price), "service" if ware.startswith("~") else "goods")


def shipping_price(dice: random.Random, currency: str) -> Decimal:
    """What a parcel costs."""
    return Decimal(dice.randrange(550, 1500, 50)) if currency == "JPY" else Decimal(dice.randrange(390, 2500, 5)) / 100


def draw_discount(dice: random.Random, words: Words, amount: Decimal) -> Line:
    """A position that takes 5 or 10 per cent off."""
    unit = Decimal(1) if words["currency"] == "JPY" else Decimal("0.01")
    price = -(amount * dice.choice((5, 10)) / 100).quantize(unit)
    return Line(dice.choice(words["discount"]), Decimal(1), price, "discount")


def print_table(printer: Printer, invoice: Invoice) -> str:
    """Columns of even width, on two pages when there are many positions."""
    head = printer.words["head"]
    rows = [cells(printer, one) for one in invoice.lines]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(4)]
    table = [aligned(row, widths) for row in rows]
    if len(rows) > 5:
        so_far = printer.money(sum((one.amount for one in invoice.lines[:4]), Decimal(0)))
        carried = f"{printer.words['carried']}: {so_far}"
        table = [*table[:4], f"{carried}\f- 2 -\n\n{carried}", *table[4:]]
    return "\n".join(
        [
            *heading(printer, invoice),
            "",
            aligned(head, widths),
            "-" * (sum(widths) + 6),
            *table,
            "",
            *ending(printer, invoice),
        ]
    )


def cells(printer: Printer, line: Line) -> tuple[str, str, str, str]:
    """A position as the columns of a table."""
    price, amount = printer.money(line.unit_price), printer.money(line.amount)
    return line.description, printer.number(line.quantity), price, amount


def aligned(texts: Sequence[str], widths: Sequence[int]) -> str:
    """Text to the left, numbers to the right."""
    first, *others = (
        cell.ljust(width) if at == 0 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(texts, widths, strict=True))
    )
    return "  ".join([first, *others])


def print_till_roll(printer: Printer, invoice: Invoice) -> str:
    """Narrow and centred, as out of a cash register."""
    body: list[str] = []
    for one in invoice.lines:
        amount = printer.money(one.amount)
        if one.quantity != 1:
            body.append(f"{printer.number(one.quantity)} x {printer.money(one.unit_price)}")
        body.append(f"{one.description:.<30} {amount}")
    top, bottom = heading(printer, invoice), ending(printer, invoice)
    return "\n".join([line.center(38).rstrip() for line in top] + ["*" * 38, *body, "=" * 38, *bottom])


def print_letter(printer: Printer, invoice: Invoice) -> str:
    """A letter that lists the positions in words."""
    form = printer.words["each"]
    items = [
        form.format(
            quantity=printer.number(one.quantity), description=one.description, price=printer.money(one.unit_price)
        )
        for one in invoice.lines
    ]
    return "\n".join(
        [
            *heading(printer, invoice),
            "",
            printer.words["prose"],
            *(f"- {item}" for item in items),
            "",
            *ending(printer, invoice),
        ]
    )


def print_pipes(printer: Printer, invoice: Invoice) -> str:
    """A table with bars, as a text recogniser writes it; the total comes first."""
    rows = [f"| {' | '.join(cells(printer, one))} |" for one in invoice.lines]
    return "\n".join(
        [
            *ending(printer, invoice)[:1],
            *heading(printer, invoice),
            f"| {' | '.join(printer.words['head'])} |",
            "|---|---|---|---|",
            *rows,
            *ending(printer, invoice)[1:],
        ]
    )


LAYOUTS: tuple[Callable[[Printer, Invoice], str], ...] = (
    print_table,
    print_table,
    print_till_roll,
    print_letter,
    print_pipes,
)


def heading(printer: Printer, invoice: Invoice) -> list[str]:
    """Who, what number, when; the supplier is first or last."""
    who = [invoice.supplier, printer.word("towns")]
    what = [f"{printer.word('number')} {invoice.number}", f"{printer.word('issued')}: {printer.day(invoice.issued)}"]
    title = printer.word("title")
    return [*who, "", title, *what] if printer.dice.random() < 0.7 else [title, *what, *who]


def ending(printer: Printer, invoice: Invoice) -> list[str]:
    """The total, and whether it was paid."""
    total = f"{printer.word('total')}: {printer.money(invoice.total)}"
    vat = [printer.words["vat"].format(rate=printer.words["rate"])] * (printer.dice.random() < 0.6)
    return [total, *vat, printer.word("paid" if invoice.paid else "unpaid")]


def gold(invoice: Invoice) -> dict[str, Any]:
    """The invoice as a model should read it; amounts are strings, to keep every digit."""
    lines = [
        {"description": one.description, "quantity": f"{one.quantity.normalize():f}", "unit_price": str(one.unit_price)}
        | {"category": one.category}
        for one in invoice.lines
    ]
    return {
        "supplier": invoice.supplier, "number": invoice.number, "issued": invoice.issued.isoformat(),
        "currency": invoice.currency, "lines": lines, "total": f"{invoice.total.normalize():f}", "paid": invoice.paid,
    }  # fmt: skip


def load(name: str) -> dict[str, Any]:
    """One phrase file."""
    return tomllib.loads((HERE / "phrases" / f"{name}.toml").read_text(encoding="utf-8"))


def write_invoices() -> None:
    """invoices.parquet and, about other invoices, invoices_gold.jsonl."""
    dice = random.Random("invoices")  # noqa: S311  sample data, no secrets
    everything = load("invoices")
    invoices = [draw_invoice(dice, everything) for _ in range(INVOICES + GOLD)]
    texts = [dice.choice(LAYOUTS)(Printer(everything[one.country], dice), one) for one in invoices]
    scanned = [
        datetime(one.issued.year, one.issued.month, one.issued.day, tzinfo=UTC)
        + timedelta(days=dice.randrange(1, 9), hours=dice.randrange(7, 18), microseconds=dice.randrange(3_600_000_000))
        for one in invoices
    ]
    table = pa.table(
        {
            "invoice_id": pa.array([f"inv-{number:04}" for number in range(1, INVOICES + 1)], pa.string()),
            "supplier_country": pa.array([one.country for one in invoices[:INVOICES]], pa.string()),
            "scanned_at": pa.array(scanned[:INVOICES], pa.timestamp("us", "UTC")),
            "pages": pa.array([text.count("\f") + 1 for text in texts[:INVOICES]], pa.int32()),
            "text": pa.array(texts[:INVOICES], pa.string()),
        }
    )
    pq.write_table(table, HERE / "invoices.parquet", compression="zstd", row_group_size=50)
    rows = zip(invoices[INVOICES:], texts[INVOICES:], strict=True)
    lines = [
        {"id": f"invg-{number:03}", "supplier_country": one.country, "text": text, "expected": gold(one)}
        for number, (one, text) in enumerate(rows, 1)
    ]
    write_lines("invoices_gold.jsonl", lines)


def write_tickets() -> None:
    """tickets.parquet: what people write to a help desk."""
    dice = random.Random("tickets")  # noqa: S311  sample data, no secrets
    tickets = load("tickets")["ticket"]
    opened = datetime(2026, 3, 2, 7, tzinfo=UTC)
    times = []
    for _ in tickets:
        opened += timedelta(seconds=dice.randrange(300, 60_000))
        times.append(opened)
    table = pa.table(
        {
            "ticket_id": pa.array(range(70_001, 70_001 + len(tickets)), pa.int64()),
            "opened_at": pa.array(times, pa.timestamp("us", "UTC")),
            "channel": pa.array([channel for channel, _ in tickets]).dictionary_encode(),
            "text": pa.array([text for _, text in tickets], pa.string()),
        }
    )
    pq.write_table(table, HERE / "tickets.parquet", compression="zstd")


def write_lines(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (HERE / name).write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Writes the files."""
    write_invoices()
    write_tickets()


if __name__ == "__main__":
    main()
