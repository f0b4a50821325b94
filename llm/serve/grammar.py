"""A JSON schema as a grammar (xgrammar's EBNF) of compact JSON: no spaces, properties in the schema's order.

Engines have converters of their own, but those leave white space free, in which small models loop for ever, and fail
on a wrong schema in the middle of a batch. This one is sound, not complete: every text of the grammar fits the schema,
while some values that would fit it (properties that it does not name, numbers of twenty digits, `\\u` escapes) cannot
be written. A keyword that it cannot hold to is refused by name. Source: JSON Schema 2020-12; RFC 8259.
"""

import json
from functools import lru_cache
from typing import Any

MAX_REPEAT = 200  # of a character or an item: longer bounds are cut to it, and refused as a least number
MAX_CHARS = 50_000  # of a grammar: compiling it holds up the engine
ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "format"}
ANNOTATIONS |= {"$schema", "$id", "$comment", "$defs", "definitions", "discriminator"}
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "number": set[str](),
    "integer": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}
BASE = r"""
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" (string ":" value ("," string ":" value)*)? "}"
array ::= "[" (value ("," value)*)? "]"
string ::= "\"" char* "\""
char ::= [^"\\\x00-\x1f] | "\\" ["\\bfnrt]
integer ::= "0" | "-"? [1-9] [0-9]{0,14}
number ::= "-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})?
"""


@lru_cache(maxsize=256)
def to_grammar(schema: str) -> str:
    """Return the grammar of a schema's compact JSON.

    Raises: ValueError: not a schema, or it holds something that the grammar cannot promise; says what and where.
    """
    try:
        tree = json.loads(schema)
        grammar = _Converter(tree).grammar()
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None
    if len(grammar) > MAX_CHARS:
        raise ValueError(f"the schema is too large: its grammar has {len(grammar)} characters, {MAX_CHARS} are allowed")
    return grammar


class _Converter:
    """Rules by the place in the schema that each stands for."""

    def __init__(self, root: Any):
        self._root = root
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def grammar(self) -> str:
        root = self._convert(self._root, "#", ())
        lines = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in self._rules.items())]
        return "\n".join(lines) + BASE

    def _convert(self, schema: Any, place: str, refs: tuple[str, ...]) -> str:
        """Return an expression; `refs` were followed to come here without a character in between."""
        if schema is True or schema == {}:
            return "value"
        _require(isinstance(schema, dict), place, "must be an object, or true")
        if "$ref" in schema:
            _allow(schema, {"$ref"}, place)
            return self._follow(schema["$ref"], place, refs)
        for keyword in ("anyOf", "allOf"):
            if keyword in schema:
                _allow(schema, {keyword}, place)
                options = schema[keyword]
                _require(isinstance(options, list) and bool(options), place, f"{keyword} must be a list, not empty")
                _require(keyword == "anyOf" or len(options) == 1, place, "allOf of more than one is not supported")
                parts = [self._convert(one, f"{place}/{keyword}/{i}", refs) for i, one in enumerate(options)]
                return f"({' | '.join(parts)})"
        if "const" in schema or "enum" in schema:
            return _literals(schema, place)
        if "type" not in schema:
            named = [kind for kind, words in KEYWORDS.items() if words & schema.keys()]
            _require(len(named) <= 1, place, "name the type")
            return self._of_type(named[0], schema, place) if named else self._any(schema, place)
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        _require(bool(kinds) and all(isinstance(kind, str) and kind in KEYWORDS for kind in kinds), place, "type")
        allowed = {word for kind in kinds for word in KEYWORDS[kind]} | {"type"}
        _allow(schema, allowed, place)
        return f"({' | '.join(self._of_type(kind, schema, place) for kind in kinds)})"

    def _any(self, schema: dict[str, Any], place: str) -> str:
        _allow(schema, set(), place)
        return "value"

    def _follow(self, ref: Any, place: str, refs: tuple[str, ...]) -> str:
        _require(isinstance(ref, str) and (ref == "#" or ref.startswith("#/")), place, "$ref must begin with #/")
        _require(ref not in refs, place, f"$ref {ref!r} leads back to itself")
        if ref not in self._names:
            self._names[ref] = name = f"ref{len(self._names)}"
            target = self._root
            for part in ref.split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                _require(isinstance(target, dict) and key in target, place, f"$ref {ref!r} leads nowhere")
                target = target[key]
            self._rules[name] = self._convert(target, ref, (*refs, ref))
        return self._names[ref]

    def _of_type(self, kind: str, schema: dict[str, Any], place: str) -> str:
        if kind == "object":
            return self._object(schema, place)
        if kind == "array":
            item = self._convert(schema.get("items", True), f"{place}/items", ())
            low, high = _bounds(schema, "minItems", "maxItems", place)
            if high == 0:
                return '"[]"'
            rest = f'{item} ("," {item}){_times(max(low - 1, 0), None if high is None else high - 1)}'
            return f'"[" {rest} "]"' if low else f'"[" ({rest})? "]"'
        if kind == "string" and {"minLength", "maxLength"} & schema.keys():
            return rf'"\"" char{_times(*_bounds(schema, "minLength", "maxLength", place))} "\""'
        return {"boolean": '("true" | "false")', "null": '"null"'}.get(kind, kind)

    def _object(self, schema: dict[str, Any], place: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        _require(isinstance(properties, dict), place, "properties must be an object")
        _require(isinstance(required, list) and all(isinstance(k, str) for k in required), place, "required")
        others = schema.get("additionalProperties", True)
        if not properties and not required:
            if others is False:
                return '"{}"'
            value = self._convert(others, f"{place}/additionalProperties", ())
            return rf'"{{" (string ":" {value} ("," string ":" {value})*)? "}}"'
        members = dict(properties)
        for key in required:
            _require(key in members or others is not False, place, f"required {key!r} is not among the properties")
            members.setdefault(key, others)
        name = f"object{len(self._names)}"
        self._names[f"{place} members"] = name
        # After each property: the rule of what may follow, once with a comma before it and once without.
        for i, (key, value) in enumerate(members.items()):
            text = f"{_quote(_dump(key) + ':')} {self._convert(value, f'{place}/properties/{key}', ())}"
            for comma in ("", "c"):
                present = f"""{'"," ' if comma else ""}{text} {name}_{i + 1}c"""
                skipped = "" if key in required else f" | {name}_{i + 1}{comma}"
                self._rules[f"{name}_{i}{comma}"] = present + skipped
        for comma in ("", "c"):
            self._rules[f"{name}_{len(members)}{comma}"] = '""'
        return rf'"{{" {name}_0 "}}"'


def _literals(schema: dict[str, Any], place: str) -> str:
    _allow(schema, {"const", "enum", "type"}, place)  # a type beside them leaves out the values of other types
    _require("const" not in schema or "enum" not in schema, place, "const and enum together are not supported")
    values = [schema["const"]] if "const" in schema else schema["enum"]
    _require(isinstance(values, list), place, "enum must be a list")
    kinds = schema.get("type", list(KEYWORDS))
    fitting = [value for value in values if set(_kinds(value)) & set(kinds if isinstance(kinds, list) else [kinds])]
    _require(bool(fitting), place, "no value is allowed")
    return f"({' | '.join(_quote(_dump(value)) for value in fitting)})"


def _kinds(value: Any) -> list[str]:
    """Return the JSON types of a value; 1.0 is an integer too, and True is none."""
    if isinstance(value, bool):
        return ["boolean"]
    if isinstance(value, int | float):
        return ["number", "integer"] if isinstance(value, int) or value.is_integer() else ["number"]
    return [{str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]]


def _bounds(schema: dict[str, Any], low_key: str, high_key: str, place: str) -> tuple[int, int | None]:
    low, high = schema.get(low_key, 0), schema.get(high_key)
    for key, bound in ((low_key, low), (high_key, 0 if high is None else high)):
        _require(type(bound) is int and bound >= 0, place, f"{key} must be a whole number, 0 or more")
    _require(low <= MAX_REPEAT, place, f"{low_key} above {MAX_REPEAT} is not supported")
    _require(high is None or low <= high, place, f"{low_key} is above {high_key}")
    return low, None if high is None else min(high, MAX_REPEAT)


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _allow(schema: dict[str, Any], keywords: set[str], place: str) -> None:
    extra = sorted(schema.keys() - keywords - ANNOTATIONS)
    _require(not extra, place, f"{', '.join(extra[:5])} not supported here")


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Half of a surrogate pair is no text: as an escape it stays what it was.
    return text.encode("utf8", "backslashreplace").decode("utf8")


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _require(holds: bool, place: str, message: str) -> None:
    if not holds:
        raise ValueError(f"schema at {place}: {message}")
