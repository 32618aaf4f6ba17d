"""Every known way to fail, as one tree. Any other exception is a bug, and stops the run with its traceback.

::

    Fault
    |- Transient           worth another try; a row that uses up its attempts becomes a Failure
    |  |- Throttled        429; carries retry_after. Applies to all workers; waiting it out uses up no attempt
    |  |- Unavailable      408, 5xx, connection lost, deadline passed, body cut short or not JSON
    |  `- Expired          first 401: the token is renewed (one renewal for all), the call repeated, no attempt used
    |- Permanent           becomes a Failure row at once
    |  |- InvalidRow       the row cannot be asked: a broken line, a missing value, an unreadable file
    |  |- Refused          400, content filter, blocked prompt; 403, 404 and the like for this row alone
    |  |- Truncated        finish_reason length (often: thinking used up max_tokens)
    |  `- Unparsable       the reply does not fit the schema, after the allowed re-asks
    `- Halt                stops the run cleanly: everything sealed, everything resumable
       |- ProviderUnusable 401 with a new token, an account without billing; 403, 404 and the like for all rows
       |- BudgetExhausted  the budget is used up
       |- TooManyFailures  more rows have failed than the job allows, or all of the first ones alike
       |- Broken           the disk, the journal, the token source
       |- NotReady         batch jobs have not ended, and the command does not wait for them
       `- Interrupted      the run is stopping: the row stays undone, for the next start

    UsageError             not a Fault: a mistake that the user can fix before anything is spent (exit 2)
    `- OutputInUse         another process is using the same output: nothing to fix, try again later (exit 8)
    NothingToDo            no row matched (exit 5)
"""

from __future__ import annotations

from typing import Any, Self

MOST_MESSAGE = 2000
"""Maximum length of a fault's message in characters: it is stored with its row, and may quote a row or a server."""


class Fault(Exception):
    """A known way to fail. `message` is one line for people; `http_status` is that of the response, if there was one.

    A message is cut after `MOST_MESSAGE` characters.
    `reply` is a `data.Reply` if there was an answer that was billed: that of the failed call and, once a row has ended
    in the fault, the row's last answer with the cost of all its calls.
    """

    def __init__(self, message: str, *, http_status: int | None = None) -> None:
        if len(message) > MOST_MESSAGE:
            message = f"{message[: MOST_MESSAGE - 3]}..."
        super().__init__(message)
        self.message = message
        self.http_status = http_status
        self.reply: Any = None

    def without_trace(self) -> Self:
        """The fault as a value: a traceback would keep its frames alive, and every reply that they reference."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    def __repr__(self) -> str:
        status = "" if self.http_status is None else f", http_status={self.http_status}"
        return f"{type(self).__name__}({self.message!r}{status})"


class Transient(Fault):
    """Worth another try."""


class Throttled(Transient):
    """The quota is used up for now. `retry_after` is the minimum wait that the server asked for, in seconds."""

    def __init__(self, message: str, *, http_status: int | None = 429, retry_after: float | None = None) -> None:
        super().__init__(message, http_status=http_status)
        self.retry_after = retry_after


class Unavailable(Transient):
    """The endpoint did not answer, or not completely. `retry_after` as in `Throttled`.

    `own` is set when the failure was attributed to the row rather than to the endpoint. `cause` says why no
    connection served the call, as one of the words of `pipeline.endpoint.connection_errors`; None when the server
    answered.
    """

    def __init__(self, message: str, *, http_status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, http_status=http_status)
        self.retry_after = retry_after
        self.own = False
        self.cause: str | None = None


class Expired(Transient):
    """The token was rejected; a renewed one may be accepted."""


class Permanent(Fault):
    """Another attempt would not help: the row fails at once."""


class InvalidRow(Permanent):
    """No request can be made for the row."""


class Refused(Permanent):
    """The endpoint will not answer this request.

    `suspect` is set when the reason may apply to all rows (403, 404 ...) rather than to this one; `kind` is equal for
    refusals with the same reason. `pipeline.pace.Blame` decides.
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
    """Stops the run; every unfinished row stays undone and is asked when the run is started again.

    Raised by a call from Python, it has the `summary` of the start, and its `result`: see `pipeline.RunResult`.
    """

    summary: Any = None
    result: Any = None


class ProviderUnusable(Halt):
    """The provider is unusable: credentials, permission, model.

    `kind` is set when only the answer to one row says so: proxies send such answers when one model has a problem. As
    with `Refused.kind`, it is equal for the same reason, and `pipeline.pace.Blame` decides whether it is the row's own.
    """

    def __init__(self, message: str, *, http_status: int | None = None, kind: str | None = None) -> None:
        super().__init__(message, http_status=http_status)
        self.kind = kind


class BudgetExhausted(Halt):
    """The budget is used up."""


class TooManyFailures(Halt):
    """Too many rows fail, and would fail again: the job, the schema or the input is wrong."""


class Broken(Halt):
    """Infrastructure failed: the disk, the journal, the token source."""


class NotReady(Halt):
    """The batch jobs of the run have not ended yet: the same command later collects them."""


class Interrupted(Halt):
    """The run is stopping, and this row was not finished."""


class UsageError(Exception):
    """A mistake that the user can fix: the message names the field, the file or the flag, and the remedy."""


class OutputInUse(UsageError):
    """Another process is using this output folder: there is nothing to fix, and a later start may find it free.

    It has its own exit code, so that schedulers can distinguish it from a mistake.
    """


class NothingToDo(Exception):
    """The input has no rows to process."""
