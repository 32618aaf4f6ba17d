"""The endpoint: `AsyncOpenAI` as an ask, with its credentials, transport, wire format and errors.

May import the values. Foreign errors become faults here and nowhere else. To add a finish reason, see
`finish_reasons.py`; an error body, `error_body.py`; a kind of credentials, `credentials.py`.
"""
