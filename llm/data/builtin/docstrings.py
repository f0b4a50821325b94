"""Read docstrings out of Python source with `ast`, and take sentences, arguments and returns out of them.

Nothing is imported or run: the source is data.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

MAX_SOURCE_BYTES = 4_000_000
MIN_SENTENCE_CHARS, MAX_SENTENCE_CHARS = 20, 200

_ROLE = re.compile(r":[a-zA-Z][\w:.+-]*:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`")
_FOOTNOTE = re.compile(r"\s*\[[\w#]+\]_")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|incl|approx|fig|no|al)|\b[A-Z])\.$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=[\s]|$)")
_NO_PROSE = re.compile(r"^\w*_\w|^\w+ \(|->|>>>|::|[=|{}<>\\]|\w\(\w|https?:|:$")
_GOOGLE = re.compile(r"^(Args|Arguments|Parameters|Params|Returns?|Yields?|Raises|Examples?|Notes?|Attributes)\s*:\s*$")
_ITEM = re.compile(r"^[ ]*`*(\*{0,2}[A-Za-z_]\w*)`*\s*(?:\([^)\n]*\))?\s*:\s*(.*)$")
_SPHINX = re.compile(r"^\s*:(?:param|parameter|arg)\s+(?:[^:\n]*\s)?(\*{0,2}\w+)\s*:\s*(.*)$")
_SPHINX_RETURN = re.compile(r"^\s*:returns?\s*:\s*(.+)$")


@dataclass(frozen=True, slots=True)
class Entry:
    """One docstring: `name` is dotted within the module and empty for the module itself."""

    kind: str
    name: str
    parameters: tuple[str, ...]
    text: str


def extract_entries(source: str) -> list[Entry]:
    """Return the docstrings of a module, its classes, functions and methods, in the order of the source."""
    if '"""' not in source and "'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return list(_walk(tree, ""))


def _walk(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Entry]:
    if isinstance(node, ast.Module) and (text := _docstring(node)):
        yield Entry("module", "", (), text)
    pending: list[ast.stmt] = list(reversed(node.body))
    while pending:
        child = pending.pop()
        if isinstance(child, ast.If | ast.Try):
            pending += reversed(child.body + child.orelse)
        elif isinstance(child, ast.ClassDef):
            if text := _docstring(child):
                yield Entry("class", prefix + child.name, (), text)
            yield from _walk(child, prefix + child.name + ".")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and (text := _docstring(child)):
            yield Entry("method" if prefix else "function", prefix + child.name, _parameters(child), text)


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.get_docstring(node) or ""
    # An escape such as "\ud800" in a literal makes a lone surrogate, which no UTF-8 file can hold.
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    given = node.args
    names = [one.arg for one in given.posonlyargs + given.args]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [one.arg for one in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return tuple(name for name in names if name not in ("self", "cls"))


def strip_markup(text: str) -> str:
    """Return one line of prose: reST roles become their names, double backquotes single ones."""
    text = _FOOTNOTE.sub("", _ROLE.sub(r"`\1`", text)).replace("``", "`")
    return " ".join(text.split())


def split_sentences(paragraph: str) -> list[str]:
    """Return the sentences of one paragraph; dots of abbreviations and initials end none."""
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(paragraph):
        piece = paragraph[start : end.end()]
        if _ABBREVIATION.search(piece):
            continue
        sentences.append(piece.strip())
        start = end.end()
    if rest := paragraph[start:].strip():
        sentences.append(rest)
    return sentences


def summarise(docstring: str, max_chars: int = MAX_SENTENCE_CHARS) -> str:
    """Return the first sentence, or "" where the docstring does not open with one of a useful length."""
    sentences = split_sentences(strip_markup(docstring.split("\n\n", 1)[0]))
    if not sentences:
        return ""
    first = sentences[0]
    prose = first[0].isalpha() and not _NO_PROSE.search(first)
    return first if prose and MIN_SENTENCE_CHARS <= len(first) <= max_chars and " " in first else ""


def _sections(docstring: str) -> dict[str, list[str]]:
    """Return lower-case heading -> its lines, for Google's and NumPy's headings."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    lines = docstring.split("\n")
    for i, line in enumerate(lines):
        underlined = i + 1 < len(lines) and re.fullmatch(r"\s*-{3,}\s*", lines[i + 1]) and line.strip()
        if (heading := _GOOGLE.match(line)) or underlined:
            name = heading.group(1) if heading else line.strip()
            current = found.setdefault(name.lower(), [])
        elif not re.fullmatch(r"\s*-{3,}\s*", line):
            current.append(line)
    return found


def parse_arguments(docstring: str) -> list[tuple[str, str]]:
    """Return (name, first sentence of its description) of Google's, NumPy's or Sphinx' argument sections."""
    found = [(match[1], match[2]) for line in docstring.split("\n") if (match := _SPHINX.match(line))]
    if not found:
        sections = _sections(docstring)
        lines = next((sections[k] for k in ("args", "arguments", "parameters", "params") if k in sections), [])
        found = _parse_items(lines)
    cleaned = ((name, split_sentences(strip_markup(text))) for name, text in found)
    return [(name, sentences[0]) for name, sentences in cleaned if sentences and len(sentences[0]) > 3]


def _parse_items(lines: list[str]) -> list[tuple[str, str]]:
    """Return (name, description) of items, each of which starts at the smallest indent of the section."""
    filled = [line for line in lines if line.strip()]
    if not filled:
        return []
    indent = min(len(line) - len(line.lstrip()) for line in filled)
    items: list[tuple[str, str]] = []
    for line in lines:
        match = _ITEM.match(line) if len(line) - len(line.lstrip()) == indent else None
        if match:
            # NumPy puts the type after the colon and the description on indented lines.
            items.append((match.group(1), match.group(2) if indent else ""))
        elif items and line.strip() and len(line) - len(line.lstrip()) > indent:
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
        elif line.strip() and len(line) - len(line.lstrip()) == indent:
            break
    return items


def parse_returns(docstring: str) -> str:
    """Return the first sentence of what the docstring says is returned, or ""."""
    for line in docstring.split("\n"):
        if match := _SPHINX_RETURN.match(line):
            return split_sentences(strip_markup(match.group(1)))[0]
    sections = _sections(docstring)
    lines = sections.get("returns", sections.get("return", []))
    filled = [line for line in lines if line.strip()]
    if not filled:
        return ""
    if not filled[0].startswith(" ") and len(filled) > 1:  # NumPy: the type first, then the description
        filled = [line for line in filled[1:] if line.startswith(" ")]
    text = strip_markup(" ".join(filled))
    text = re.sub(r"^`?[\w.\[\], |`]{1,60}`?\s*:\s+", "", text)
    sentences = split_sentences(text)
    return sentences[0] if sentences else ""
