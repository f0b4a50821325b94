"""A schema's grammar: what it says by hand, what it refuses, and what a random model writes under it."""

import json
import re

import jsonschema
import pytest

from llm.serve.backend import Sampling
from llm.serve.grammar import to_grammar
from llm.serve.openvino_backend import OpenVinoBackend
from llm.serve.release import Release

NODE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["value"],
}
SCHEMAS = {
    "members": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 9}, "c": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "required but not described": {"type": "object", "required": ["x"], "additionalProperties": {"type": "null"}},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
    "array": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
    "long array": {"type": "array", "items": {"type": "boolean"}, "minItems": 1},
    "empty array": {"type": "array", "maxItems": 0},
    "string": {"type": "string", "minLength": 3, "maxLength": 5},
    "several types": {"type": ["integer", "null", "boolean"]},
    "enum": {"enum": ['b"x\\\n', 1.5, None, {"k": [1]}]},
    "every script": {"const": "naïve – 漢字 \U0001f600"},
    "typed enum": {"type": "string", "enum": ["yes", "no", 7]},
    "list of nodes": {"$defs": {"node": NODE}, "allOf": [{"$ref": "#/$defs/node"}], "title": "Nodes"},
    "anything": {},
}


def test_an_object_by_hand() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"const": 1}}, "required": ["b"]}
    assert to_grammar(json.dumps(schema)).splitlines()[:7] == [
        r'root ::= ("{" object0_0 "}")',
        r'object0_0 ::= "\"a\":" ("null") object0_1c | object0_1',
        r'object0_0c ::= "," "\"a\":" ("null") object0_1c | object0_1c',
        r'object0_1 ::= "\"b\":" ("1") object0_2c',
        r'object0_1c ::= "," "\"b\":" ("1") object0_2c',
        r'object0_2 ::= ""',
        r'object0_2c ::= ""',
    ]


@pytest.mark.parametrize(
    "schema, message",
    [
        ("{", "Expecting"),
        ("7", "schema at #: must be an object"),
        ("false", "must be an object, or true"),
        ('{"type": "strange"}', "schema at #: type"),
        ('{"type": ["string", 3]}', "schema at #: type"),
        ('{"type": "string", "pattern": "a+"}', "pattern not supported"),
        ('{"type": "integer", "minimum": 3}', "minimum not supported"),
        ('{"properties": {"a": {"items": {"oneOf": []}}}}', "#/properties/a/items: oneOf not supported"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems not supported"),
        ('{"type": "array", "items": {}, "minItems": 100000}', "minItems above 200"),
        ('{"type": "string", "minLength": 4, "maxLength": 3}', "minLength is above maxLength"),
        ('{"type": "string", "maxLength": -1}', "maxLength must be a whole number"),
        ('{"$ref": "#"}', "leads back to itself"),
        ('{"anyOf": [{"$ref": "#"}, {"type": "null"}]}', "leads back to itself"),
        ('{"$ref": "#/$defs/none"}', "leads nowhere"),
        ('{"$ref": "http://example.com/x"}', "must begin with #/"),
        ('{"enum": []}', "no value is allowed"),
        ('{"type": "string", "enum": [1]}', "no value is allowed"),
        ('{"enum": [NaN]}', "Out of range"),
        ('{"enum": [1e999]}', "Out of range"),
        ('{"type": "object", "required": ["a"], "additionalProperties": false}', "required 'a'"),
        ('{"type": "object", "properties": 3}', "properties must be an object"),
        ('{"items": ' * 3000 + "{}" + "}" * 3000, "nested too deeply"),
        (json.dumps({"enum": ["x" * 100] * 1000}), "too large"),
    ],
)
def test_what_cannot_be_promised_is_refused(schema: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_grammar(schema)


def test_a_random_model_writes_compact_json_of_the_schema(release: Release) -> None:
    backend = OpenVinoBackend(release.served, release.context)
    names = dict(enumerate(name for name in SCHEMAS for _ in range(4)))
    for number, name in names.items():
        schema = json.dumps(SCHEMAS[name])
        backend.add(number, [5, 60, 70], Sampling(60, release.stop_ids, seed=number, json_schema=schema))
    answers: dict[int, list[int]] = {number: [] for number in names}
    finishes: dict[int, str] = {}
    while len(finishes) < len(names):
        for number, event in backend.step():
            answers[number] += event.tokens
            if event.finish:
                finishes[number] = event.finish
    ended = {number for number, finish in finishes.items() if finish == "stop"}
    for number in ended:
        assert answers[number][-1] in release.stop_ids
        text = release.tokenizer.decode(answers[number][:-1])
        value = json.loads(text)
        jsonschema.validate(value, SCHEMAS[names[number]])
        assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text)), "no space outside a string"
    assert set(finishes.values()) <= {"stop", "length"}
    assert {names[number] for number in ended} >= SCHEMAS.keys() - {"list of nodes", "anything"}
