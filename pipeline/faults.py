"""Every known way to fail, as one tree. Anything that is not in it is a bug, and stops the run with its traceback.

::

    Fault
    |- Transient           worth another try; a row that outlives its tries becomes a Failure
    |  |- Throttled        429; carries retry_after. Shared by all workers; waiting it out uses up no attempt
    |  |- Unavailable      408, 5xx, connection lost, deadline passed, body cut short or not JSON
    |  `- Expired          401 once: the token is renewed (one renewal for all), the call repeated, no attempt used
    |- Permanent           becomes a Failure row at once
    |  |- InvalidRow       the row cannot be asked: a broken line, a missing value, an unreadable file
    |  |- Refused          400, content filter, blocked prompt; 403, 404 and the like for this row alone
    |  |- Truncated        finish_reason length (often: thinking used up max_tokens)
    |  `- Unparsable       the reply does not fit the schema, after the allowed re-asks
    `- Halt                stops the run cleanly: everything sealed, everything resumable
       |- ProviderUnusable 401 with a new token, an account without billing; 403, 404 and the like for everybody
       |- BudgetExhausted  the budget is used up
       |- TooManyFailures  more rows have failed than the job allows, or all of the first ones alike
       |- Broken           the disk, the journal, the token source
       `- Interrupted      the run is stopping: the row stays undone, for the next start

    UsageError             not a fault of the world: what the user can fix before anything is spent (exit 2)
    `- OutputInUse         another process works on the same output: nothing to correct, try again later (exit 8)
    NothingToDo            no row matched (exit 5)
"""

from __future__ import annotations

from typing import Any, Self

MOST_MESSAGE = 2000
"""Characters of a fault's message: it is stored with its row, and may quote what a row or a server says."""


class Fault(Exception):
    """A known way to fail. `message` is one line for people; `http_status` is the answer's, when there was one.

    A message is cut after `MOST_MESSAGE` characters.
    `reply` is a `data.Reply` where there was an answer that was paid: of the call that failed, and once a row has ended
    in the fault, its last answer with what all its calls have cost.
    """

    def __init__(self, message: str, *, http_status: int | None = None) -> None:
        message = message if len(message) <= MOST_MESSAGE else f"{message[: MOST_MESSAGE - 3]}..."
        super().__init__(message)
        self.message = message
        self.http_status = http_status
        self.reply: Any = None

    def without_trace(self) -> Self:
        """The fault as a value: its traceback would hold the frames it went through, and all replies that they hold."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    def __repr__(self) -> str:
        status = "" if self.http_status is None else f", http_status={self.http_status}"
        return f"{type(self).__name__}({self.message!r}{status})"


class Transient(Fault):
    """Worth another try."""


class Throttled(Transient):
    """The quota is used up for now. `retry_after` is the server's own floor for the wait, in seconds."""

    def __init__(self, message: str, *, http_status: int | None = 429, retry_after: float | None = None) -> None:
        super().__init__(message, http_status=http_status)
        self.retry_after = retry_after


class Unavailable(Transient):
    """The endpoint did not answer, or not with a whole answer. `retry_after` as in `Throttled`.

    `own` is set when the failure was found to be the row's own, and not the endpoint's as a whole. `cause` says why no
    connection served the call, as one of the words of `pipeline.endpoint.transport`; None when the server answered.
    """

    def __init__(self, message: str, *, http_status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, http_status=http_status)
        self.retry_after = retry_after
        self.own = False
        self.cause: str | None = None


class Expired(Transient):
    """The token was not accepted; a renewed one may be."""


class Permanent(Fault):
    """Asking again would not help: the row fails now."""


class InvalidRow(Permanent):
    """The row cannot be asked."""


class Refused(Permanent):
    """The endpoint will not answer this request.

    `suspect` is set when the reason may be everybody's (403, 404 ...) and not the row's own; `kind` is equal for
    refusals that have the same reason. See `pipeline.pace.Blame`, which decides.
    """

    def __init__(
        self, message: str, *, http_status: int | None = None, suspect: bool = False, kind: str | None = None
    ) -> None:
        super().__init__(message, http_status=http_status)
        self.suspect = suspect
        self.kind = kind


class Truncated(Permanent):
    """The answer stopped at the token limit."""


class Unparsable(Permanent):
    """The answer does not fit the schema."""


class Halt(Fault):
    """Stops the run; every row not done yet stays undone and is asked when the run is started again."""


class ProviderUnusable(Halt):
    """The provider is unusable: credentials, permission, model.

    `kind` is set when the answer to one row says so: proxies send such answers for the trouble of one model. As with
    `Refused.kind` it is equal for answers of the same reason, and `pipeline.pace.Blame` decides whose they are.
    """

    def __init__(self, message: str, *, http_status: int | None = None, kind: str | None = None) -> None:
        super().__init__(message, http_status=http_status)
        self.kind = kind


class BudgetExhausted(Halt):
    """The budget is used up."""


class TooManyFailures(Halt):
    """Rows fail that another start would fail as well: the job, the schema or the input is wrong."""


class Broken(Halt):
    """Something below us failed: the disk, the journal, the token source."""


class Interrupted(Halt):
    """The run is stopping, and this row was not finished."""


class UsageError(Exception):
    """What the user can mend: the message names the field, the file or the flag, and the remedy."""


class OutputInUse(UsageError):
    """Another process works on this output folder: there is nothing to correct, and a later start may find it free.

    Schedulers tell it from a mistake by its exit code of its own.
    """


class NothingToDo(Exception):
    """The input holds no row to work on."""
