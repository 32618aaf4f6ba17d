"""Policies that govern calls: functions from ask to ask, and the queue that sends each attempt.

Composed once, outermost first: within, repairing, with_tools, logged, cached, retrying, hedged, Dispatcher.ask, and
on each lane attaching, watched, charged, endpoint. So every call of a repair or a tool turn is cached, retried, limited
and paid like any other, and kept until its row is done; a cache hit costs nothing; nothing sleeps while it holds a slot
or part of the budget; and media are held for no more rows than are in flight.
"""

from pipeline.policy.account import Account, Bid, Books, charged
from pipeline.policy.budget import WARNING_SHARE, Budget, LocalBudget
from pipeline.policy.cache import Keys, SingleFlight, Store, cached
from pipeline.policy.dispatcher import Dispatcher
from pipeline.policy.failure_policy import GIVE_UP_S, FailurePolicy
from pipeline.policy.hedge import hedged, watched
from pipeline.policy.media import attaching
from pipeline.policy.repair import repairing
from pipeline.policy.retry import retrying, within
from pipeline.policy.row_calls import RowCalls, TurnBooks, logged
from pipeline.policy.shutdown import Shutdown
from pipeline.policy.tool_loop import ToolLimits, with_tools
from pipeline.policy.upstream import Limits, LocalUpstream, Upstream

__all__ = [
    "GIVE_UP_S",
    "WARNING_SHARE",
    "Account",
    "Bid",
    "Books",
    "Budget",
    "Dispatcher",
    "FailurePolicy",
    "Keys",
    "Limits",
    "LocalBudget",
    "LocalUpstream",
    "RowCalls",
    "Shutdown",
    "SingleFlight",
    "Store",
    "ToolLimits",
    "TurnBooks",
    "Upstream",
    "attaching",
    "cached",
    "charged",
    "hedged",
    "logged",
    "repairing",
    "retrying",
    "watched",
    "with_tools",
    "within",
]
