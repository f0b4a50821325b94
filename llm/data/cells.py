"""One row of a table seen through its shape: our columns, by whatever names they go, and checks of what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm.data.formats import Shape, SourceFormat
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
    filled = {name: value for name, value in row.items() if value is not None}
    for shape in fmt.shapes:
        names: dict[str, str] = {}
        for column, known in shape.columns.items():
            known = (fmt.columns[column],) if column in fmt.columns else known
            name = next((name for name in known if name in filled), None)
            if name is not None:
                names[column] = name
            elif column in shape.needs:
                break
        else:
            values = {column: filled[name] for column, name in names.items()}
            license_name, url = (_plain(row.get(name)) for name in ("license", "url"))
            return Cells(shape, values, names, source, file, offset, license_name or fmt.license, url)
    if fmt.kind == "auto" and not fmt.columns:
        wanted = "no known family of rows"
    else:
        wanted = " or ".join(", ".join(fmt.columns.get(c, c) for c in one.needs) for one in fmt.shapes[:3])
    there = ", ".join(show(name) for name in list(filled)[:MAX_NAMED]) or "none"
    raise BadRecord("missing_column", f"expected {wanted}; filled columns: {there}")


def read_string(value: object, name: str) -> str:
    """Return a string as valid Unicode, half a surrogate pair as `?`; a value of another type raises BadRecord."""
    if not isinstance(value, str):
        raise BadRecord("wrong_type", f"{show(name)} is {type(value).__name__}, expected a string")
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def read_scalar(value: object, name: str) -> str:
    """Return a string, or a number as one: answers such as 42 are numbers in many tables."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63:  # so not NaN either
        return str(value)
    return read_string(value, name)


def show(name: object) -> str:
    """Return a name from the data for a message: quoted, in ASCII, not too long."""
    return ascii(name)[:60]


def _plain(value: object) -> str:
    return read_string(value, "").strip() if isinstance(value, str) else ""
