"""The columns of an input that a job uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The input columns that requests `need`, those that are copied to the output, and the columns added there.

    `kept` gives the output name of each copied column; `added` say where a row comes from.
    """

    needed: Sequence[str]
    kept: Mapping[str, str]
    added: Sequence[str]
