"""What went wrong without stopping the import, counted, so that nothing is dropped silently."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Problem:
    """One kind of trouble in one source.

    Attributes:
        source: name of the source.
        reason: what was wrong and what was done about it.
        count: how often.
        example: where it happened first, such as a picture or `dataset[index]`.
    """

    source: str
    reason: str
    count: int
    example: str


class Problems:
    """Counts troubles by source and reason, in the order in which they were first seen."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, str], Problem] = {}

    def report(self, source: str, reason: str, *, where: str = "", count: int = 1) -> None:
        """Adds one trouble, or `count` equal ones; the first `where` is kept as the example."""
        known = self._by_kind.get((source, reason))
        if known is None:
            self._by_kind[source, reason] = Problem(source, reason, count, where)
        else:
            known.count += count

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._by_kind.values())

    def __len__(self) -> int:
        """Number of different troubles, not of their occurrences."""
        return len(self._by_kind)
