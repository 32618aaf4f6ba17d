"""`pipeline cache`: lists the reply cache, shrinks it, and moves it elsewhere in one file."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.configuration import ConfiguredCommand
from pipeline.cli.options import AsJson, CacheFolder
from pipeline.cli.tables import json_line, print_table
from pipeline.execution.options import CACHE_FOLDER
from pipeline.faults import UsageError
from pipeline.store.address import local_path
from pipeline.text import figures

app = typer.Typer(help="List the reply cache, shrink it, move it elsewhere.")

_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9}

CacheFileArgument = Annotated[
    Path, typer.Argument(help="A single file with the whole cache, as for a CI cache.", parser=local_path)
]


@app.command("list", cls=ConfiguredCommand)
def list_(*, cache_dir: CacheFolder = CACHE_FOLDER, as_json: AsJson = False) -> int:
    """List the cache by model: replies, size, original cost, last use."""
    from pipeline.storage.reply_cache import FILE, holdings, size_of

    held = holdings(cache_dir)
    if as_json:
        facts = {"file": str(cache_dir / FILE), "bytes": size_of(cache_dir), "holdings": [asdict(one) for one in held]}
        print(json_line(facts))
        return 0
    replies = sum(one.replies for one in held)
    print(f"{cache_dir / FILE}: {replies} replies, {figures.size(size_of(cache_dir))}")
    print_table(
        [
            {
                "endpoint": one.endpoint,
                "model": one.model,
                "replies": str(one.replies),
                "size": figures.size(one.bytes),
                "cost once": figures.cost(one.cost_usd),
                "last used": f"{one.last_used:%Y-%m-%d}",
            }
            for one in held
        ]
    )
    return 0


@app.command("prune", cls=ConfiguredCommand)
def prune(
    *,
    unused_for: Annotated[
        str | None, typer.Option(help="Delete replies not used for this long: 12h, 30d, 4w.", metavar="TIME")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(help="Delete the least recently used, down to a size: 500MB, 2GB.", metavar="SIZE"),
    ] = None,
    cache_dir: CacheFolder = CACHE_FOLDER,
    as_json: AsJson = False,
) -> int:
    """Delete replies by age of their last use, or down to a size."""
    from pipeline.storage.reply_cache import prune, size_of

    if unused_for is None and max_size is None:
        raise UsageError("say what to delete: --unused-for 30d, --max-size 500MB, or both")
    unused_s = None if unused_for is None else _amount(unused_for, _SECONDS, "--unused-for")
    most = None if max_size is None else _amount(max_size, _BYTES, "--max-size")
    deleted = prune(cache_dir, unused_s=unused_s, most_bytes=None if most is None else int(most))
    return _report(f"deleted {deleted} replies", as_json=as_json, deleted=deleted, bytes=size_of(cache_dir))


@app.command("export", cls=ConfiguredCommand)
def export(file: CacheFileArgument, *, cache_dir: CacheFolder = CACHE_FOLDER, as_json: AsJson = False) -> int:
    """Write the cache to one file."""
    from pipeline.storage.reply_cache import export

    count = export(cache_dir, file)
    size = file.stat().st_size
    return _report(f"wrote {count} replies to {file}", as_json=as_json, replies=count, bytes=size)


@app.command("import", cls=ConfiguredCommand)
def import_(file: CacheFileArgument, *, cache_dir: CacheFolder = CACHE_FOLDER, as_json: AsJson = False) -> int:
    """Add the replies of an exported cache; existing replies are kept."""
    from pipeline.storage.reply_cache import import_from, size_of

    added = import_from(cache_dir, file)
    return _report(f"added {added} replies from {file}", as_json=as_json, added=added, bytes=size_of(cache_dir))


def _report(text: str, *, as_json: bool, **facts: int) -> int:
    print(json_line(facts) if as_json else f"{text}; now {figures.size(facts['bytes'])}")
    return 0


def _amount(text: str, units: dict[str, int], option: str) -> float:
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(units)})", text)
    if not found:
        raise UsageError(f"{option} is a number and one of {', '.join(units)}, as in 30{[*units][1]}, not {text!r}")
    return float(found[1]) * units[found[2]]
