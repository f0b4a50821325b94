"""Passages of evaluation sets in training text: the planted ones are found, what is merely common is not."""

import ast
import gzip
import json
import os
import random
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm.data.dedup.decontaminate import Contamination, HitLedger, describe_match, find_hits
from llm.data.dedup.evaluation_index import DecontaminateParams, EvaluationIndex, EvaluationText, build_index
from llm.data.dedup.ngrams import cut_words, hash_ngrams, hash_words, split_words

PARAMS = DecontaminateParams()
DATA = Path(os.environ.get("GRISTMILL_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
QUESTION = (
    "A miller grinds twelve sacks of rye before noon and twice as many sacks of barley after the wheel was mended; "
    "how many sacks does he grind on such a day, when each third one is spoiled by rain?"
)
LICENCE = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated "
    "documentation files, to deal in the software without restriction, including without limitation the rights to use"
)


def make_text(seed: int, num_words: int = 200) -> list[str]:
    generator = random.Random(seed)
    return [f"word{generator.randrange(10**6)}" for _ in range(num_words)]


def plant(passage: str, seed: int = 0) -> str:
    words = make_text(seed)
    return " ".join([*words[:100], passage, *words[100:]])


def find_contaminated(
    texts: pa.StringArray, index: EvaluationIndex, params: DecontaminateParams
) -> list[Contamination | None]:
    """What the clean stage does batch by batch, for texts that fit in one."""
    ledger = HitLedger(index, params)
    ledger.add(find_hits(texts, index), 0)
    matches = ledger.find_matches(np.ones(len(texts), dtype=np.bool_))
    return [
        describe_match(matches[number], texts[number].as_py(), index, params) if number in matches else None
        for number in range(len(texts))
    ]


def find(training: list[str], *evaluation: str, params: DecontaminateParams = PARAMS) -> list[str | None]:
    texts = [EvaluationText(f"e{number}", "exam", text) for number, text in enumerate(evaluation)]
    found = find_contaminated(pa.array(training, pa.string()), build_index(texts, params), params)
    return [one and one.id for one in found]


def test_words_by_hand() -> None:
    words, offsets = split_words(pa.array(["Grind, don't_stop!", "", "…", "磨坊 mill2 ไทย"]))
    assert words.to_pylist() == ["grind", "don", "t_stop", "磨", "坊", "mill2", "ไ", "ท", "ย"]
    assert offsets.tolist() == [0, 3, 3, 3, 9]
    assert cut_words("Grind, don't stop!", 1, 2, 100) == "don't"
    assert cut_words("Grind, don't stop!", 0, 4, 8) == "Grind, …"


def test_ngram_hashes_depend_on_order_and_words_alone() -> None:
    hashes, offsets = hash_words(pa.array(["a b c a b c", "x a B c"]))
    assert offsets.tolist() == [0, 6, 10]
    grams = hash_ngrams(hashes, 3)
    assert grams[0] == grams[3] == grams[7]
    assert len(set(grams.tolist())) == 6
    assert hash_ngrams(hashes[:2], 3).shape == (0,)


def test_the_passage_is_listed_as_it_stands_in_the_text() -> None:
    text = plant(QUESTION.upper())
    index = build_index([EvaluationText("q1", "exam", QUESTION)], PARAMS)
    found = find_contaminated(pa.array(["clean text", text]), index, PARAMS)
    assert found[0] is None
    assert found[1] is not None
    assert found[1]._asdict() == {
        "id": "q1",
        "source": "exam",
        "matched_words": len(QUESTION.split()),
        "share": 1.0,
        "passage": QUESTION.upper().removesuffix("?"),
    }


def test_a_passage_with_small_changes_is_one_passage() -> None:
    words = QUESTION.split()
    words[18] = "oats"
    assert find([plant(" ".join(words))], QUESTION) == ["e0"]
    far = " ".join([*words[:16], *make_text(1, 20), *words[20:]])  # 16 and 18 words that do not belong together
    assert find([plant(far)], QUESTION) == [None]


@pytest.mark.parametrize("num_words, found", [(19, None), (20, "e0")])
def test_a_passage_must_be_long_enough(num_words: int, found: str | None) -> None:
    assert find([plant(" ".join(QUESTION.split()[:num_words]))], QUESTION) == [found]


@pytest.mark.parametrize("num_words, found", [(49, None), (50, "e0")])
def test_of_a_long_item_fifty_words_are_enough(num_words: int, found: str | None) -> None:
    item = make_text(7, 1000)
    assert find([plant(" ".join(item[300 : 300 + num_words]))], " ".join(item)) == [found]


def test_a_short_item_must_stand_there_whole() -> None:
    item = "Which seven rivers turn the old mills of Saxony?"
    assert find([plant(item), plant(item[:-9]), plant("Which seven rivers?")], item) == ["e0", None, None]
    assert find([plant("Which rivers turn mills?")], "Which rivers turn mills?") == [None]


def test_unspaced_scripts() -> None:
    item = "磨坊主上午磨了十二袋黑麦下午磨了两倍的大麦请问他一共磨了多少袋粮食呢"
    assert find(["磨" + item + "粉", "磨坊主上午去了集市"], item) == ["e0", None]


def test_templates_of_an_evaluation_set_do_not_count() -> None:
    template = (
        "Read the passage below with care and choose the best of the four given answers to the question of the exam"
    )
    items = [f"{template} {' '.join(make_text(1000 + number, 30))}" for number in range(11)]
    assert find([plant(template)], *items) == [None]
    assert find([plant(template)], *items[:10]) == ["e0"]
    assert find([plant(items[3])], *items) == ["e3"]
    # The same item again, as in another copy of the set, is not yet a template.
    assert find([plant(QUESTION)], *[QUESTION] * 20) == ["e0"]


def test_a_common_phrase_of_the_training_texts_does_not_count() -> None:
    item = " ".join([LICENCE, *make_text(1000, 30)])
    training = [plant(LICENCE, seed) for seed in range(20)] + [plant(item, 30)]
    assert find(training[:10], item) == ["e0"] * 10
    found = find(training, item)
    assert found == [None] * 20 + ["e0"]


def test_a_whole_item_counts_however_often_it_stands_there() -> None:
    training = [plant(QUESTION, seed) for seed in range(30)] + [plant(" ".join(QUESTION.split()[:28]))]
    assert find(training, QUESTION) == ["e0"] * 30 + [None]


def test_texts_that_dedup_drops_make_no_phrase_common() -> None:
    item = " ".join([LICENCE, *make_text(1000, 30)])
    index = build_index([EvaluationText("q", "exam", item)], PARAMS)
    texts = pa.array([plant(LICENCE)] * 50)
    ledger = HitLedger(index, PARAMS)
    for start in range(0, 50, 10):
        ledger.add(find_hits(texts[start : start + 10], index), start)
    assert ledger.find_matches(np.ones(50, dtype=np.bool_)) == {}
    kept = np.arange(50) == 37
    assert {text: index.items[match.item] for text, match in ledger.find_matches(kept).items()} == {37: ("q", "exam")}


@pytest.mark.parametrize(
    "item",
    [
        " ".join(str(number) for number in range(60)),
        "it was what they would have had if only it had been all of that which he and she could do to them there",
    ],
)
def test_numbers_and_function_words_alone_do_not_count(item: str) -> None:
    assert find([plant(item)], item) == [None]


def test_nothing_to_look_for() -> None:
    assert find(["some text"]) == [None]
    assert find([], QUESTION) == []
    assert find(["some text"], "", "?") == [None]


def test_index_and_hits_do_not_depend_on_batches() -> None:
    texts = [EvaluationText(str(seed), "exam", " ".join(make_text(seed, 20 + seed % 30))) for seed in range(300)]
    training = pa.array([plant(texts[seed].text, seed) for seed in range(0, 300, 10)])
    index = build_index(iter(texts), PARAMS)
    whole = find_hits(training, index)
    parts = [find_hits(training[start : start + 7], index) for start in range(0, 30, 7)]
    assert np.concatenate([hits.places for hits in parts]).tolist() == whole.places.tolist()
    assert [one and one.id for one in find_contaminated(training, index, PARAMS)] == [
        str(seed) for seed in range(0, 300, 10)
    ]


def read_evaluation() -> list[EvaluationText]:
    if not DATA.is_dir():
        pytest.skip(f"{DATA}: no sample data here; set GRISTMILL_SHARED_DATA")
    texts = []
    for number, line in enumerate((DATA / "gsm8k/train.jsonl").read_text().splitlines()):
        texts.append(EvaluationText(f"gsm8k/{number}", "gsm8k", json.loads(line)["question"]))
    with gzip.open(DATA / "human-eval/HumanEval.jsonl.gz", "rt") as file:
        for row in map(json.loads, file):
            texts.append(EvaluationText(row["task_id"], "human-eval", row["prompt"]))
            texts.append(EvaluationText(row["task_id"], "human-eval", row["canonical_solution"]))
    return texts


def test_planted_items_are_found_and_unrelated_text_is_left_alone() -> None:
    """Of gsm8k and human-eval every 20th item is planted in other text; then corpora that have nothing of them."""
    evaluation = read_evaluation()
    index = build_index(evaluation, PARAMS)
    planted = [one for one in evaluation[::20] if len(one.text.split()) >= 25]
    texts = pa.array([plant(one.text, seed) for seed, one in enumerate(planted)])
    found = find_contaminated(texts, index, PARAMS)
    hit = sum(one is not None for one in found)
    named = sum(one is not None and one.id == item.id for one, item in zip(found, planted, strict=True))

    unrelated = [text for name in ("gut-alice/11-0.txt", "gut-pride/1342-0.txt", "tinyshakespeare/input.txt")
                 for text in cut((DATA / name).read_text(encoding="utf-8-sig"))]  # fmt: skip
    with gzip.open(DATA / "hh-rlhf/test.jsonl.gz", "rt") as file:
        unrelated += [json.loads(line)["chosen"] for line in file]
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.FunctionDef)]
        unrelated += [
            path.read_text(encoding="utf8", errors="replace"),
            *(ast.get_docstring(node) or "" for node in nodes),
        ]
    false = [one for one in find_contaminated(pa.array(unrelated), index, PARAMS) if one is not None]
    print(
        f"{hit} of {len(planted)} planted items found; {len(false)} of {len(unrelated)} unrelated texts taken for leaks"
    )
    assert len(planted) > 300
    assert hit == len(planted)
    assert named >= 0.99 * len(planted)  # gsm8k asks about Aaron's brothers twice
    assert false == []


def cut(text: str) -> list[str]:
    return [text[start : start + 4000] for start in range(0, len(text), 4000)]
