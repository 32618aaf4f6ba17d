"""The reply cache: replies by the digests of their requests, so that a paid reply is not paid for again.

One SQLite file in WAL mode that several runs may use at once; private, because it holds row content. `store` is the
cache of an active run, `admin` the maintenance commands, `file` the file itself. The keys are defined in
`pipeline.policy.cache`.
"""

from pipeline.storage.reply_cache.admin import CacheStats, export, holdings, import_from, prune, size_of
from pipeline.storage.reply_cache.file import FILE
from pipeline.storage.reply_cache.store import Cache

__all__ = ["FILE", "Cache", "CacheStats", "export", "holdings", "import_from", "prune", "size_of"]
