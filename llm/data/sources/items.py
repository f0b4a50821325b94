"""What reading a file gives: items to become records, faults to become rejects, and what is passed over on purpose."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Stream = io.BufferedReader[Any]
else:
    Stream = io.BufferedReader


@dataclass(frozen=True, slots=True)
class Item:
    """One input record: a text or a row; `offset` says where in its file, `removed` whose boilerplate was cut away."""

    offset: int | str
    value: str | Mapping[str, Any]
    url: str = ""
    removed: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """One input record that cannot be read: where in its file, a snake_case reason, and the error in words."""

    offset: int | str
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class Skip:
    """Something that is no input record, such as a licence beside the data; counted by its name."""

    what: str
