"""How large the batches of a model with a latency objective are to be. Plain data in, decision out."""

from __future__ import annotations

from backline.schedule.objective.latency_model import Line
from backline.schedule.objective.policy import Outlook

#: The part of the objective that a batch may take: in half of it everybody who comes while it runs can be answered after it. When more
#: come than can be answered anyway, larger batches answer more of them: those who come in the last part of a run.
_LEAST_SHARE, _MOST_SHARE, _SHARE_STEP = 0.5, 0.85, 0.01
#: A batch is full from this part of its usual size on.
_FULL = 0.9
#: The part of the objective that may be kept for answers that come later than expected.
_MOST_MARGIN = 0.25
#: The weight of the newest batch in the mean of those that could not be joined with what waited behind them.
_RATE = 0.1


class BatchSizing:
    """What the batches are to be like that answer within `objective` seconds, learnt from those that were formed."""

    __slots__ = (
        "_joined",
        "_longest",
        "_max_items",
        "_objective",
        "_outlook",
        "_share",
        "margin",
        "planned",
        "refused",
        "usual",
    )

    def __init__(self, objective: float, outlook: Outlook) -> None:
        self._objective = objective
        self._outlook = outlook
        #: The mean items of batches that others waited behind who could not be joined.
        self._joined = 0.0
        self._share = _LEAST_SHARE
        #: Whether anybody was refused since the last batch was formed.
        self.refused = False
        #: The line of the batches that it is planned for; None from one batch to the next request.
        self.planned: Line | None = None
        #: The items of the largest batch that leaves to those who come while it runs the time for another one.
        self.usual = 1
        #: The seconds that answers may be later than expected.
        self.margin = 0.0
        #: Those of the largest batch of all, with these.
        self._longest = 0.0
        self._max_items = 1

    def plan(self, line: Line, max_items: int) -> None:
        """Notes what batches of a line are like; until the next one is formed they are taken to be so."""
        self.planned = line
        self._max_items = max_items
        self.margin = min(self._outlook.margin, _MOST_MARGIN * self._objective)
        most = max(1, min(max_items, round(self._joined))) if self._joined else max_items
        self.usual = line.largest((self._objective - self.margin) * self._share, most) or 1
        self._longest = line.seconds(max_items) + self.margin

    def largest(self, line: Line, left: float) -> int:
        """The items of the next batch at most, as planned for its line, when the first of it are to be answered in `left` seconds."""
        if left >= self._longest:
            return self._max_items
        return self.within(line, left, min(self.usual, line.largest(left, self._max_items)))

    def within(self, line: Line, left: float, items: int) -> int:
        """`items` that are hoped to be answered in `left` seconds, or as many as surely are."""
        return max(1, items, line.largest(left - self.margin, self._max_items))

    def formed(self, items: int) -> None:
        """Lets batches grow as long as they are full and not enough for all, and shrink when they are not."""
        self.planned = None
        if items < _FULL * self.usual:
            self._share = max(_LEAST_SHARE, self._share - 2 * _SHARE_STEP)
        elif self.refused:
            self._share = min(_MOST_SHARE, self._share + _SHARE_STEP)
        self.refused = False

    def complete(self, items: int) -> None:
        """A batch was complete with so many items, or could have had so many."""
        self._joined = items if not self._joined else self._joined + _RATE * (items - self._joined)
