"""Who is next: owners take turns, and each owner's items keep their order. One busy client cannot starve another."""

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiting items by number; not safe for threads by itself."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, dict[int, T]] = OrderedDict()  # the first owner is next; no line is empty

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def put(self, owner: str, number: int, item: T) -> None:
        """Add an item behind its owner's others; a new owner's turn comes after all that wait."""
        self._lines.setdefault(owner, {})[number] = item

    def take(self) -> T:
        """Remove and return the next item; its owner goes to the end. Raises KeyError when nothing waits."""
        owner, line = self._lines.popitem(last=False)
        item = line.pop(next(iter(line)))
        if line:
            self._lines[owner] = line
        return item

    def remove(self, number: int) -> T | None:
        """Remove and return an item out of turn; None when it does not wait."""
        for owner, line in self._lines.items():
            if number in line:
                item = line.pop(number)
                if not line:
                    del self._lines[owner]
                return item
        return None
