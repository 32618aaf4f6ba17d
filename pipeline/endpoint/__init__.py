"""The endpoint: `AsyncOpenAI` as an ask, with the credentials, the transport, the wire format and the errors of it.

May import the values. Foreign errors become faults here and nowhere else; one more reason to finish goes into
`finish_reasons.py`, one more error body into `error_body.py`, one more kind of credentials into `credentials.py`.
"""
