"""Schemas: turns pydantic models and JSON Schemas into the schema sent to the endpoint and the columns' Arrow types.

May import the values. To add a type: `columns.py` (its Arrow type), `strict_schema.py` (how it is requested) and
`conversions.py` (what else is accepted for it).
"""
