"""One row of a table seen through its shape: our columns, by whatever names they go, and checks of what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from llm.data.rows.formats import RowKind, Shape, SourceFormat, list_shapes
from llm.data.schema import BadRecord

MAX_NAMED = 12  # columns that a message names


@dataclass(frozen=True, slots=True)
class Cells:
    """The filled cells of a row by our names, the names that they go by there, and where the row is."""

    shape: Shape
    values: Mapping[str, object]
    names: Mapping[str, str]
    source: str
    file: str
    offset: int | str
    license: str
    url: str

    def __contains__(self, column: str) -> bool:
        return column in self.values

    def text(self, column: str, empty: str) -> str:
        """Return a string that holds more than blanks; `empty` is the reason given for one that does not."""
        text = read_string(self.values[column], self.names[column])
        if not text.strip():
            raise BadRecord(empty, f"{show(self.names[column])} is blank")
        return text

    def optional(self, column: str) -> str:
        """Return a string, "" where there is none or it is blank."""
        text = read_string(self.values.get(column, ""), self.names.get(column, column))
        return text if text.strip() else ""


def find_cells(row: Mapping[object, object], source: str, file: str, offset: int | str, fmt: SourceFormat) -> Cells:
    """Return the row by the first shape that fits it, or raise BadRecord: none does.

    A cell without a value is as good as none: tables put the columns of all their rows into each.
    """
    there = tuple(name for name, value in row.items() if value is not None)
    found = _fit(there, fmt.kind, fmt.renamed)
    if found is None:
        if fmt.kind == "auto" and not fmt.columns:
            wanted = "those of a known family of rows"
        else:
            wanted = " or ".join(
                ", ".join(fmt.columns.get(one, one) for one in shape.needs) for shape in fmt.shapes[:3]
            )
        filled = ", ".join(map(show, there[:MAX_NAMED])) or "none"
        raise BadRecord("missing_column", f"expected {wanted}; filled columns: {filled}")
    shape, names = found
    values = {column: row[name] for column, name in names.items()}
    license_name, url = (_plain(row.get(name)) for name in ("license", "url"))
    shown = {column: str(name) for column, name in names.items()}
    return Cells(shape, values, shown, source, file, offset, license_name or fmt.license, url)


@lru_cache(maxsize=256)
def _fit(
    there: tuple[object, ...], kind: RowKind, renamed: tuple[tuple[str, str], ...]
) -> tuple[Shape, dict[str, object]] | None:
    """Return the first shape of which all needed columns are there, and the row's own name of each column.

    Names as they stand come first; then as programs write them. Rows of one file are alike, so that few are looked at.
    """
    columns = dict(renamed)
    for own in ({name: name for name in there}, {_simplify(name): name for name in there}):
        for shape in list_shapes(kind, frozenset(columns)):
            known = {one: (columns[one],) if one in columns else names for one, names in shape.columns.items()}
            found = {one: next((own[name] for name in names if name in own), None) for one, names in known.items()}
            if all(found[one] is not None for one in shape.needs):
                return shape, {one: name for one, name in found.items() if name is not None}
    return None


def _simplify(name: object) -> object:
    """Return a column's name as programs write it: `Given Info` is given_info."""
    return name.strip().lower().replace(" ", "_").replace("-", "_") if isinstance(name, str) else name


def read_string(value: object, name: str) -> str:
    """Return a string as valid Unicode, half a surrogate pair as `?`; a value of another type raises BadRecord."""
    if not isinstance(value, str):
        raise BadRecord("wrong_type", f"{show(name)} is {type(value).__name__}, expected a string")
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def read_scalar(value: object, name: str) -> str:
    """Return a string, or a number or truth value as JSON writes it: an answer is often 42 or true."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and abs(value) < 2**63:  # so not NaN either
        return str(value)
    return read_string(value, name)


def show(name: object) -> str:
    """Return a name from the data for a message: quoted, in ASCII, not too long."""
    return ascii(name)[:60]


def _plain(value: object) -> str:
    return read_string(value, "").strip() if isinstance(value, str) else ""
