"""Schemas: pydantic models and JSON Schemas as what is asked of the endpoint, and as the Arrow types of the columns.

May import the values. Where one more type goes: `columns.py` (its Arrow type), `strict_schema.py` (how it is asked for)
and `conversions.py` (what else is accepted for it).
"""
