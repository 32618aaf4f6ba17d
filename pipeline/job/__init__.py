"""Jobs: how a row becomes a request, and a reply a typed value. Pure: no network, no event loop.

May import the values, `schema` and `endpoint`'s wire format. One more field of a job goes into `job.py`, one more kind
of attachment into `attachments.py`.
"""
