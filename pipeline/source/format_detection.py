"""What the first bytes of a file say about its content, where its name says nothing, or something else.

The name decides how a file is read, except for the arrangement of JSON in a `.json` file and for UTF-16. All other
findings go into messages: what a file looks like, and the command that converts it.
"""

from __future__ import annotations

import codecs
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import orjson

HEAD_BYTES = 1 << 16
"""Bytes of a file that are examined."""

_COMPRESSED = {rb"\x1f\x8b": ".gz", rb"\x28\xb5\x2f\xfd": ".zst", rb"BZh[1-9]1AY": ".bz2", rb"\xfd7zXZ\x00": ".xz"}
_CONTAINERS = {
    rb"PAR1[\x00-\x1f]": "Parquet", rb"Obj\x01": "Avro", rb"ORC[^\w\s,;|\"]": "ORC", rb"ARROW1\x00": "Arrow",
    rb"\xff\xff\xff\xff[\x00-\xff]{2}\x00\x00\x10\x00\x00\x00": "Arrow",
    rb"PK\x03\x04": "a ZIP archive or XLSX", rb"SQLite f": "SQLite", rb"\xff\xd8\xff": "an image",
    rb"\x89PNG": "an image", rb"%PDF-": "PDF",
}  # fmt: skip
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the file begins that a clone without Git LFS holds in place of the data (its specification, docs/spec.md)."""

_ROWS_IN = ("Parquet", "Avro", "ORC", "Arrow")
_BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_UTF8_BOM = b"\xef\xbb\xbf"
_LINES_SEEN = 20
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_OF_OBJECTS = re.compile(rb"\s*:\s*\[\s*\{")
_DECOMPRESSED_BY = {".gz": "gzip -dc", ".zst": "zstd -dc", ".bz2": "bzip2 -dc", ".xz": "xz -dc"}
_NOTHING = object()

Arrangement = Literal["lines", "array", "values"]
"""How JSON values are laid out: one per line, in one array, or one after another, each on any number of lines."""


def encoding_of(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by its byte order mark or by the zeros between Latin letters; None for everything else."""
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    if zeros == [True, False, True, False]:
        return "utf-16-be"
    return None


def hidden_compression(path: str, head: bytes) -> str | None:
    """A message if a file is not plain text, as its name says: compressed, a container, or a Git LFS pointer."""
    if head.startswith(_LFS_POINTER):
        return _not_fetched(path)
    if suffix := _matched(head, _COMPRESSED):
        name = shlex.quote(path)
        return f"{path} is compressed, which its name does not say: mv {name} {shlex.quote(path + suffix)}"
    kind = _matched(head, _CONTAINERS)
    if kind is None:
        return None
    remedy = "give it the ending .parquet" if kind == "Parquet" else "convert it"
    return f"{path} is {kind}, which its name does not say: {remedy}"


def hidden_within(path: str, head: bytes) -> str | None:
    """A message if the decompressed content of a file begins as no text does: compressed again, or a container."""
    name, plain = shlex.quote(path), Path(path).with_suffix("")
    if suffix := _matched(head, _COMPRESSED):
        tool = _DECOMPRESSED_BY[Path(path).suffix.lower()]
        return f"{path} is compressed twice: {tool} {name} > new{plain.suffix}{suffix}"
    kind = _matched(head, _CONTAINERS)
    return f"the content of {path} is {kind}, which its name does not say: convert it" if kind else None


def not_parquet(path: Path) -> str | None:
    """What a file that is called Parquet and cannot be read as such is instead; None for no idea."""
    head = _start_of(path, HEAD_BYTES)
    if head.startswith(_LFS_POINTER):
        return _not_fetched(str(path))
    kind = _matched(head, _CONTAINERS) or kind_of_rows(path)
    if kind in {None, "Parquet"}:
        return None
    remedy = "give it the ending of that kind" if kind in {"JSON Lines", "JSON", "compressed"} else "convert it"
    return f"{path} is {kind}, and its name says Parquet: {remedy}"


def _not_fetched(path: str) -> str:
    return f"{path} is a pointer that Git LFS left in place of the file: git lfs pull"


def missing_compression(path: str) -> str | None:
    """A message if a file is plain text, or compressed in another way, although its name says how; else None."""
    head = _start_of(Path(path), 64).removeprefix(_UTF8_BOM)
    name, (plain, _, own) = shlex.quote(path), path.rpartition(".")
    if suffix := _matched(head, _COMPRESSED):
        if suffix == f".{own.lower()}":
            return None
        return f"{path} is compressed in another way than its name says: mv {name} {shlex.quote(plain + suffix)}"
    if not head or any(byte < 9 for byte in head):
        return None
    return f"{path} is not compressed, though its name says so: mv {name} {shlex.quote(plain)}"


def kind_of_rows(path: Path) -> str | None:
    """The kind of rows that a file of unknown kind seems to hold, for people; None when it seems to hold none."""
    head = _start_of(path, HEAD_BYTES)
    kind = _matched(head, _CONTAINERS)
    if kind is not None:
        return kind if kind in _ROWS_IN else None
    if _matched(head, _COMPRESSED):
        return "compressed"
    encoding = encoding_of(head)
    text = head.decode(encoding, "ignore").encode() if encoding else head
    records = [_value(line) for line in _whole_lines(text)]
    if any(isinstance(record, dict) for record in records):
        return "JSON Lines"
    return "JSON" if re.match(rb"(\xef\xbb\xbf)?\s*(\[\s*\{|\{\s*\")", text) else None


def arrangement_of(head: bytes) -> Arrangement:
    """How the JSON in a `.json` file is laid out, judging by its first bytes."""
    text = head.removeprefix(_UTF8_BOM).lstrip()
    records = [_value(line) for line in _whole_lines(text)]
    first = records[0] if records else _NOTHING
    if text.startswith(b"["):
        several = len([record for record in records if record is not _NOTHING]) > 1
        return "lines" if several and first is not _NOTHING else "array"
    return "lines" if any(isinstance(record, dict) for record in records) else "values"


def looks_like(path: str, head: bytes) -> str | None:
    """What a text without any valid record looks like, and the command that converts it; None if unknown."""
    text, name = head.removeprefix(_UTF8_BOM).strip(), shlex.quote(path)
    if b"\r" in text and b"\n" not in text:
        return f"its lines end with a carriage return alone: tr '\\r' '\\n' < {name} > new.jsonl"
    if not _is_utf8(text):
        return f"it is not UTF-8: iconv -f WINDOWS-1252 -t UTF-8 {name} > new.jsonl"
    if text.startswith((b"{", b"[")):
        return _looks_like_json(text, name, path)
    if text.startswith(b"\x1e"):
        return f"it looks like a JSON text sequence (RFC 7464): tr -d '\\036' < {name} > new.jsonl"
    if text.startswith(b"<"):
        return "it looks like XML or HTML: convert it"
    return _looks_like_fields(text)


def rows_within(path: str, head: bytes) -> str | None:
    """A message if a file is one object with the rows in a list inside of it (`{"data": [...]}`); else None."""
    key = _list_within(head.removeprefix(_UTF8_BOM).lstrip())
    if key is None:
        return None
    step = f".{key}[]" if re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII) else f".[{orjson.dumps(key).decode()}][]"
    name, tool = shlex.quote(path), _DECOMPRESSED_BY.get(Path(path).suffix.lower())
    command = f"{tool} {name} | jq -c {shlex.quote(step)}" if tool else f"jq -c {shlex.quote(step)} {name}"
    return f"{path} is one object; if its rows are in {key!r}: {command} > new.jsonl"


def rows_by_column(record: Mapping[str, Any]) -> int | None:
    """How many rows a record seems to hold as a table by columns: lists, or objects by row number, of one length."""
    lists = [value for value in record.values() if isinstance(value, list)]
    numbered = [value for value in record.values() if isinstance(value, dict) and _is_numbered(value)]
    columns = lists if len(lists) > 1 else numbered
    lengths = set(map(len, columns))
    is_table = len(columns) == len(record) and len(lengths) == 1
    return max(lengths) if is_table and max(lengths) > 1 else None


def _is_numbered(value: Mapping[str, Any]) -> bool:
    return value.keys() == set(map(str, range(len(value))))


def _list_within(text: bytes) -> str | None:
    """The name of the longest list of objects in an object that is all of the text, which may be truncated."""
    lengths: dict[bytes, int] = {}
    depth, start, name = 0, 0, b""
    for mark in _TOKEN.finditer(text) if text.startswith(b"{") else ():
        token = mark[0]
        if token.startswith(b'"'):
            if depth == 1 and _OF_OBJECTS.match(text, mark.end()):
                name, start = token, mark.end()
            continue
        depth += 1 if token in b"{[" else -1
        if depth == 1 and name and token == b"]":
            lengths[name], name = mark.end() - start, b""
        if depth == 0:
            if text[mark.end() :].strip():
                return None  # it is one of several values
            break
    if name:
        lengths[name] = len(text) - start
    key = _value(max(lengths, key=lambda name: lengths[name])) if lengths else None
    return key if isinstance(key, str) else None


def _looks_like_json(text: bytes, name: str, path: str) -> str | None:
    lines = _whole_lines(text)
    if text.startswith(b"["):
        if arrangement_of(text) == "lines":
            return None
        return f"it looks like a JSON array: give it the ending .json, or convert it: jq -c '.[]' {name} > new.jsonl"
    if re.match(rb"\{\s*'", text):
        return "it looks like Python's own notation of dicts: write it with json.dumps instead of str or print"
    if any(isinstance(_value(line), dict) for line in lines):
        return None
    if all(_value(line.rstrip().removesuffix(b",")) is not _NOTHING for line in lines):
        return f"its lines end with commas: sed 's/,[[:space:]]*$//' {name} > new.jsonl"
    if hint := rows_within(path, text):
        return hint
    if len(lines) > 1:
        ending = "give it the ending .json, or convert it"
        return f"it looks like JSON over several lines (pretty-printed): {ending}: jq -c . {name} > new.jsonl"
    return None


def _looks_like_fields(text: bytes) -> str | None:
    lines = _whole_lines(text)
    for delimiter, called, ending in ((b"\t", "tabs", ".tsv"), (b",", "commas", ".csv"), (b";", "semicolons", ".csv")):
        counts = {line.count(delimiter) for line in lines}
        if len(lines) > 1 and len(counts) == 1 and counts != {0}:
            return f"it looks like fields between {called}, as in CSV: give it the ending {ending}"
    return None


def _matched(head: bytes, signatures: dict[bytes, str]) -> str | None:
    return next((kind for signature, kind in signatures.items() if re.match(signature, head)), None)


def _is_utf8(text: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text)  # not final: the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


def _whole_lines(text: bytes) -> list[bytes]:
    """The first non-blank lines; the last one, which may be truncated, only when it is the only one."""
    lines = text.split(b"\n")
    whole = lines[:-1] if len(lines) > 1 and len(text) >= HEAD_BYTES - 8 else lines
    return [line for line in whole if line.strip()][:_LINES_SEEN]


def _value(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _NOTHING


def _start_of(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
