"""Pairs: what is rendered, what is left out, which half, and in which order."""

import pytest

from llm.config import ConfigError
from llm.data.schema import Preference, write_rows
from llm.data.tokenizer import train_tokenizer
from llm.rl.pairs import plan_batches, read_split, tokenize_pairs
from llm.rl.prompts import Prompt, plan_prompts, read_prompts, set_aside

SHARES = {"sibling": 3.0, "principle": 1.0, "absent": 5.0}
WORDS = "what does the function of this module do it returns a list and reads one file"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS] * 20, 300)


def make_rows(count: int, principle: str | None = None) -> list[Preference]:
    kind = "principle" if principle else "sibling"
    return [
        Preference(
            id=f"{principle or 'doc'}-{i:03d}",
            group="g",
            source="s",
            kind=kind,
            prompt=[{"role": "user", "content": f"what does function {principle or ''} {i // 2} do"}],
            chosen="it returns a list" + " and a file" * (i % 7),
            rejected="it reads",
            margin=0.5 if i % 2 else None,
            principle=principle,
        )
        for i in range(count)
    ]


def as_dicts(rows: list[Preference]) -> list[dict]:
    return [{name: getattr(row, name) for name in Preference.schema.names} for row in rows]


def test_both_conversations_share_the_prompt_and_end_closed(tokenizer):
    (pair,) = tokenize_pairs(tokenizer, as_dicts(make_rows(1)), 500)
    text = tokenizer.decode(pair.prompt + pair.chosen)
    expected = (
        "<|im_start|>user\nwhat does function  0 do<|im_end|>\n<|im_start|>assistant\nit returns a list<|im_end|>"
    )
    assert text == expected
    assert pair.rejected[-1] == pair.chosen[-1] == tokenizer.im_end_id


def test_long_pairs_are_left_out_and_not_cut(tokenizer):
    pairs = tokenize_pairs(tokenizer, as_dicts(make_rows(14)), 500)
    limit = sorted(pair.length for pair in pairs)[6]
    kept = tokenize_pairs(tokenizer, as_dicts(make_rows(14)), limit)
    assert [pair.id for pair in kept] == [pair.id for pair in pairs if pair.length <= limit]
    assert 0 < len(kept) < 14


def test_margins_default_to_zero(tokenizer):
    assert [pair.margin for pair in tokenize_pairs(tokenizer, as_dicts(make_rows(4)), 500)] == [0.0, 0.5, 0.0, 0.5]


def test_a_margin_of_zero_and_a_pair_of_a_principle_are_ties_of_helpfulness(tokenizer):
    rows = as_dicts(make_rows(4) + make_rows(1, "justice"))
    rows[1]["margin"] = 0.0
    assert [pair.tie for pair in tokenize_pairs(tokenizer, rows, 500)] == [False, True, False, False, True]


def test_halves_never_share_a_prompt(tokenizer):
    pairs = tokenize_pairs(tokenizer, as_dicts(make_rows(200)), 500)
    prompts = [{tuple(pair.prompt) for pair in pairs if pair.half == half} for half in (0, 1)]
    assert not prompts[0] & prompts[1]
    assert 60 < sum(pair.half for pair in pairs) < 140


def test_plan_has_the_asked_shape_and_share(tokenizer):
    rows = make_rows(100) + make_rows(10, "justice")
    pairs = tokenize_pairs(tokenizer, as_dicts(rows), 500)
    batches = plan_batches(pairs, steps=10, batch_pairs=8, shares=SHARES, seed=1)
    assert [len(batch) for batch in batches] == [8] * 10
    flat = [pair for batch in batches for pair in batch]
    assert sum(pair.principle is not None for pair in flat) == 20
    # Ten principle pairs fill twenty places: each twice.  Sixty of a hundred others: none twice.
    assert len({pair.id for pair in flat}) == 70
    assert batches == plan_batches(pairs, 10, 8, SHARES, seed=1) != plan_batches(pairs, 10, 8, SHARES, seed=2)


def test_batches_hold_pairs_of_similar_length(tokenizer):
    pairs = tokenize_pairs(tokenizer, as_dicts(make_rows(64)), 500)
    batches = plan_batches(pairs, steps=8, batch_pairs=8, shares={}, seed=0)
    spread = [max(p.length for p in batch) - min(p.length for p in batch) for batch in batches]
    whole = max(p.length for p in pairs) - min(p.length for p in pairs)
    assert sum(spread) / len(spread) < whole / 2


def test_plan_without_one_of_the_pools(tokenizer):
    only = tokenize_pairs(tokenizer, as_dicts(make_rows(5, "justice")), 500)
    assert all(pair.principle for batch in plan_batches(only, 2, 4, SHARES, 0) for pair in batch)
    others = tokenize_pairs(tokenizer, as_dicts(make_rows(5)), 500)
    assert len(plan_batches(others, 2, 4, SHARES, 0)) == 2


def test_missing_file_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="dvc repro clean"):
        read_split(tmp_path / "preferences.parquet", "train")


READABLE = {"justice": ["principle"]}


def test_prompts_come_once_from_the_training_split(tokenizer, tmp_path):
    rows = make_rows(40) + make_rows(6, "justice")
    path = tmp_path / "preferences.parquet"
    write_rows(path, Preference, rows, {"g": "train"})
    prompts, too_long = read_prompts(path, tokenizer, 500, READABLE)
    assert len(prompts) == 23  # two rows share each prompt
    assert too_long == 0
    assert sum(prompt.principle == "justice" for prompt in prompts) == 3
    longest = max(len(prompt.ids) for prompt in prompts)
    kept, too_long = read_prompts(path, tokenizer, longest - 1, READABLE)
    assert len(kept) + too_long == 23
    assert too_long > 0
    # Where no head can read the cost, a prompt is like any other.
    assert all(prompt.principle is None for prompt in read_prompts(path, tokenizer, 500, {"justice": ["scene"]})[0])
    write_rows(path, Preference, rows, {"g": "val"})
    assert read_prompts(path, tokenizer, 500, READABLE) == ([], 0)


def test_a_prompt_keeps_its_principle_in_pairs_of_other_kinds(tokenizer, tmp_path):
    (row,) = make_rows(1, "justice")
    same = Preference("a", "g", "s", "truncated", row.prompt, "it returns a list", "it returns")
    path = tmp_path / "preferences.parquet"
    write_rows(path, Preference, [same, row], {"g": "train"})
    assert [prompt.principle for prompt in read_prompts(path, tokenizer, 500, READABLE)[0]] == ["justice"]


def test_prompt_plan_keeps_the_share_and_goes_round(tokenizer, tmp_path):
    path = tmp_path / "preferences.parquet"
    write_rows(path, Preference, make_rows(40) + make_rows(6, "justice"), {"g": "train"})
    prompts, _ = read_prompts(path, tokenizer, 500, READABLE)
    plan = plan_prompts(prompts, steps=5, prompts_per_step=5, principle_share=0.2, seed=0)
    assert [sum(prompt.principle is not None for prompt in batch) for batch in plan] == [1] * 5
    others = [prompt.key for batch in plan for prompt in batch if prompt.principle is None]
    assert len(others) == len(set(others)) == 20


def test_principles_take_turns():
    prompts = [Prompt(f"{name}{i}", [i], name) for name in ("justice", "autonomy", None) for i in range(4)]
    plan = plan_prompts(prompts, steps=2, prompts_per_step=4, principle_share=0.5, seed=0)
    assert [prompt.principle for batch in plan for prompt in batch] == [None, "autonomy", None, "justice"] * 2


def test_what_is_set_aside_leaves_two_thirds_of_every_principle():
    prompts = [Prompt(f"{name}{i}", [i], name) for name, n in (("justice", 6), (None, 50)) for i in range(n)]
    checks, left = set_aside(prompts, 20, 0.5)
    assert len(checks) == 20
    assert sum(prompt.principle == "justice" for prompt in checks) == 2
    assert len(left) == 36
    assert not {prompt.key for prompt in checks} & {prompt.key for prompt in left}
