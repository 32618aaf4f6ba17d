"""Jobs: how a row becomes a request, and a reply becomes a typed value. Pure: no network, no event loop.

May import the values, `schema` and `endpoint`'s wire format. To add a field of a job, see `job.py`; to add a kind of
attachment, `attachments.py`.
"""
