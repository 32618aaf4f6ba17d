"""Explains what is wrong with a job file, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from pipeline.job.job import Job
from pipeline.text import excerpt, nearest

_MOST_QUOTED = 60

_OF_RUN = "it is an option of `pipeline run`: {}"
FIELD_WORDS: Mapping[str, str] = {
    "prompt user_prompt template instruction prompt_template query question": "the prompt is `user`",
    "system_prompt system_instruction system_message instructions": "it is `system`",
    "response_model response_format output_schema response_schema output_type result_type model_schema output_model": (
        "it is `schema`"
    ),
    "max_output_tokens max_completion_tokens max_new_tokens": "it is `max_tokens`",
    "topp nucleus": "it is `top_p`",
    "top_k topk": "the endpoint takes it as `extra={'top_k': ...}` only, if at all",
    "thinking thinking_budget thinking_level thinking_config reasoning": (
        "it is `reasoning_effort`, or `google={'thinking_config': {...}}`"
    ),
    "safety safety_settings": "it is `google={'safety_settings': [...]}`",
    "id id_column row_id primary_key index key_column": "the column that names a row is `key`",
    "columns keep_columns passthrough output_columns select": "the input's columns to copy are `keep`",
    "dtypes dtype column_types schema_overrides": "types of columns of CSV are `types`",
    "inputs data dataset source input_path file files path": "it is `input`",
    "outputs output_dir output_path out dest": "it is `output`",
    "functions function_tools": "it is `tools`",
    "region location zone": "it is `locations`, a list",
    "retries max_retries tries max_attempts": "it is `attempts`",
    "timeout request_timeout": "it is `timeout_s`, in seconds",
    "fewshot few_shot shots": "it is `examples`",
    "max_errors max_failures error_threshold": "it is `max_failed`",
    "stop_sequences": "it is `stop`",
    "streaming": "it is `stream`",
    "grounding search google_search": "it is `web_search`",
    "num_candidates candidate_count candidates": "it is `n`",
    "concurrency workers max_workers parallelism batch_size": _OF_RUN.format("--concurrency"),
    "processes": _OF_RUN.format("--processes"),
    "limit max_rows sample": _OF_RUN.format("--limit"),
    "rpm rate_limit rps": _OF_RUN.format("--rpm"),
    "tpm": _OF_RUN.format("--tpm"),
    "budget budget_usd max_cost": _OF_RUN.format("--budget-usd"),
    "cache use_cache": _OF_RUN.format("--cache"),
    "base_url api_base endpoint url": _OF_RUN.format("--base-url"),
    "project project_id": _OF_RUN.format("--project"),
    "credentials": _OF_RUN.format("--credentials"),
    "api_key token": "keys belong in the environment (OPENAI_API_KEY), never in a file",
}
"""Other tools' names for a job's fields, with what to write instead."""

_SCHEMA = (
    '`schema` must be a pydantic model, a JSON Schema (a dict, or the path of a .json file) or "json_object"; '
    "for a list, wrap it in a model with one field"
)
_CONTENT = "a template as text, a function of the row, or a list of templates and media columns"
_KINDS = {
    "system": _CONTENT,
    "user": _CONTENT,
    "input": "a path, or a list of paths",
    "output": "a path",
    "include": "a glob, or a list of globs",
    "examples": "the path of a JSONL file",
    "media_root": "a path",
    "stop": "a text, or a list of texts",
    "rename": 'a dict of new names by column, or "bigquery"',
    "messages": "a list of dicts with `role` and `content`",
    "prices": 'a dict by model, as in {"google/gemini-3.5-flash-lite": {"input": 0.1, "output": 0.4}}',
    "name": "letters, digits, `_`, `-` and `.`, and begins with a letter, a digit or `_`",
    "max_failed": "a number of rows, or a share below 1",
}
"""The values that a field accepts, where the error about its type alone would not make it clear."""

_TYPES = {
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a dict",
    "mapping_type": "a dict",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "literal_error": "{expected}",
}


_DESCRIBED: dict[str, tuple[str, str, list[str]]] = {}


def describe(kind: type, article: str, what: str) -> None:
    """Registers the name that users know a dataclass by, so that errors about it use that name."""
    _DESCRIBED[kind.__name__] = (article, what, [field.name for field in fields(kind)])


describe(Job, "a", "job")


def explained(error: ValidationError) -> str:
    """Pydantic's errors about a job or an evaluation, one short sentence per field."""
    article, what, known = _DESCRIBED.get(error.title, _DESCRIBED["Job"])
    complaints = error.errors(include_url=False)
    sentences = []
    for complaint in complaints:
        field = complaint["loc"][0] if complaint["loc"] else "?"
        if isinstance(field, int):
            sentences.append(f"{article} {what} takes its fields by name, as in {what.title()[:4]}(name=...)")
        elif complaint["type"] == "unexpected_keyword_argument":
            sentences.append(f"{article} {what} has no field {field!r}{advised(field, known, what)}")
        elif complaint["type"] == "missing":
            sentences.append(f"the {what} needs a {field!r}")
        elif field == "schema":  # one error for each member of its union
            sentences.append(_SCHEMA)
        else:
            sentences.append(_about_value(complaint, sum(one["loc"][:1] == (field,) for one in complaints)))
    return "; ".join(dict.fromkeys(sentences))


def advised(field: str, known: Sequence[str], what: str = "job") -> str:
    """What to write instead of a field that does not exist."""
    remedy = next((remedy for words, remedy in FIELD_WORDS.items() if field.lower() in words.split()), None)
    if remedy is not None and what == "job":
        return f": {remedy}"
    hint = nearest(field, known)
    return hint if "did you mean" in hint else f" (docs/{'jobs' if what == 'job' else 'evaluation'}.md lists all)"


def _about_value(complaint: Any, complaints: int) -> str:
    """The sentence about a value that a field does not accept; for a union, one value has several errors."""
    field, *inner = complaint["loc"]
    given = excerpt(repr(complaint["input"]), _MOST_QUOTED)
    takes = _TYPES.get(complaint["type"], "").format(**complaint.get("ctx", {}))
    is_of_kind = complaints > 1 or not takes or complaint["type"].endswith(("_parsing", "_type"))
    if complaint["type"] == "sequence_str":
        takes = f"a list, as in [{given}]"
    elif field in _KINDS and is_of_kind:
        return f"`{field}` takes {_KINDS[field]}, not {given}"
    place = f"`{field}{''.join(f'[{one!r}]' for one in inner if complaints == 1)}`"
    if not takes:
        return f"{place}: {complaint['msg'][:1].lower()}{complaint['msg'][1:]}"
    return f"{place} takes {takes}, not {given}"
