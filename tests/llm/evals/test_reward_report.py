"""The report on given pairs: what is judged and what is left out, the figures by hand, and the command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.data.schema import Preference, write_rows
from llm.data.tokenizer import Tokenizer, train_tokenizer
from llm.evals.reward_report import (
    describe_length,
    judge_pairs,
    main,
    measure_length,
    read_pairs,
    report_source,
    summarise_pairs,
)
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer, init_weights
from llm.rl.pairs import Pair
from llm.rl.reward_model import HEADS, RewardModel

ASK = {"role": "user", "content": "Hi?"}
SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_size": 16, "mlp_size": 32}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["How do I sort a list? user assistant", "Call sorted on it."] * 4, 300)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first and a second reward model whose heads are random."""
    root = tmp_path_factory.mktemp("reward")
    for seed, part in enumerate((root, root / "second")):
        trunk = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context=64, **SHAPE))
        init_weights(trunk, seed)
        model = RewardModel(trunk.eval())
        with torch.no_grad():
            model.weight_HD.normal_(generator=torch.Generator().manual_seed(seed))
        model.save(part)
        tokenizer.save(part)
    return root


def make_pair(number: int, kind: str = "given", chosen: int = 3, rejected: int = 3, **changes: object) -> Pair:
    filled = {"id": str(number), "kind": kind, "principle": None, "prompt": [number], "margin": 0.0, "tie": False}
    sides = {"chosen": [1] * chosen, "rejected": [2] * rejected, "half": number % 2}
    return Pair(**{**filled, **sides, **changes})


def make_logits(rows: list[tuple[float, float]], head: str = "reward") -> np.ndarray:
    logits = np.zeros((len(rows), 2, len(HEADS)))
    logits[:, :, HEADS.index(head)] = rows
    return logits


BAD = [
    ("empty_reply", {"prompt": "2+2?", "chosen": "4", "rejected": " "}),
    ("empty_reply", {"chosen": "\n\nHuman: Hi?\n\nAssistant:", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}),
    ("same_answers", {"prompt": "2+2?", "chosen": "4", "rejected": " 4"}),
    ("differing_prompts", {"chosen": "\n\nHuman: a\n\nAssistant: 1", "rejected": "\n\nHuman: b\n\nAssistant: 2"}),
    ("unknown_label", {"input": "Q", "output_1": "x", "output_2": "y", "label": True}),
    ("unknown_label", {"input": "Q", "output_1": "x", "output_2": "y", "label": [1]}),
    ("wrong_type", {"prompt": "2+2?", "chosen": 4, "rejected": "5"}),
    ("no_answer", {"chosen": [ASK], "rejected": [ASK]}),
    ("no_answer", {"messages": [ASK]}),
    ("no_pair", {"messages": [ASK, {"role": "assistant", "content": "Hello."}]}),
    ("over_context", {"prompt": "sort " * 90, "chosen": "4", "rejected": "5"}),
]


def test_what_cannot_be_judged_is_counted_by_reason(tokenizer: Tokenizer, tmp_path: Path) -> None:
    good = [
        {"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
        {"input": "Q", "output_1": "x", "output_2": "y", "label": 2},
        {"prompt": "Q", "response_a": "x", "response_b": "y", "winner": "tie"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*good, *(row for _, row in BAD)]))
    found = read_pairs(str(path), tokenizer, 64)
    reasons = [reason for reason, _ in BAD]
    assert found.rejected == {reason: reasons.count(reason) for reason in set(reasons)}
    assert [pair.tie for pair in found.pairs] == [False, False, True]
    assert found.num_read == len(found.pairs) + found.rejected.total() == len(good) + len(BAD)
    assert tokenizer.decode(found.pairs[1].chosen, skip_special=True) == "y"


def test_of_our_own_pairs_the_held_out_ones_are_judged(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [
        Preference(str(i), f"g{i % 2}", "s", "sibling", [ASK], f"Hello {i}.", "No.", None, "justice" if i > 3 else None)
        for i in range(6)
    ]
    write_rows(tmp_path / "preferences.parquet", Preference, rows, {"g0": "train", "g1": "val"})
    found = read_pairs(str(tmp_path / "preferences.parquet"), tokenizer, 64)
    assert [(pair.id, pair.kind, pair.principle) for pair in found.pairs] == [
        *(("1", "sibling", None), ("3", "sibling", None), ("5", "sibling", "justice")),
    ]
    assert (found.groups, found.rejected, found.num_read) == (["g1"] * 3, {"in_training_split": 3}, 6)


def test_accuracy_and_calibration_by_hand() -> None:
    # Three right by 2, one wrong by 2 on the half that the temperature is fitted on, a draw on the other one.
    pairs = [make_pair(i, kind="a" if i < 4 else "b") for i in (0, 2, 4, 6, 1)]
    found = summarise_pairs(pairs, "vwxyz", make_logits([(2, 0), (3, 1), (1, -1), (0, 2), (5, 5)]))
    assert found["accuracy"]["all"]["value"] == pytest.approx(3.5 / 5)
    assert (found["accuracy"]["a"]["value"], found["accuracy"]["a"]["n"]) == (pytest.approx(2.5 / 3), 3)
    assert found["calibration"]["temperature"] == pytest.approx(2 / np.log(3), rel=1e-4)
    assert (found["calibration"]["ece"], found["calibration"]["n"]) == (0.0, 1)
    assert found["ties"] == 0


def test_pairs_of_a_principle_count_for_its_cost_head_alone() -> None:
    pairs = [make_pair(i, principle="justice", tie=True) for i in range(12)]
    logits = make_logits([(-1, 1), (-2, 0), (1, 0.5), (-1, 2)] * 3, "justice")
    found = summarise_pairs(pairs, "abcdefghijkl", logits)
    # Bad answers 1, 0, 0.5, 2 against good ones -1, -2, 1, -1: all 16 but 1 = 1 (a half), 0 < 1 and 0.5 < 1.
    assert found["cost"]["justice"]["auroc"]["value"] == pytest.approx(13.5 / 16)
    assert (found["accuracy"], found["ties"]) == ({}, 12)
    assert not {"calibration", "length"} & set(found)
    assert summarise_pairs(pairs, "abcdefghiiii", logits)["cost"] == {}  # nine groups are too few to resample


def test_length_bias_by_hand_and_corrected() -> None:
    # The longer answer wins 2 of 3; differences in reward 1, -2, 3 and in length 1, 2, 3: 6 / 14.
    found = describe_length(np.array([[1, 0], [0, 2], [3, 0]]), np.array([[2, 1], [3, 1], [4, 1]]))
    assert found == pytest.approx({"accuracy": 2 / 3, "longer_preferred": 2 / 3, "correlation": 6 / 14})
    random = np.random.default_rng(0)
    lengths = random.integers(2, 40, (200, 2))
    pairs = [make_pair(i, chosen=int(a), rejected=int(b)) for i, (a, b) in enumerate(lengths)]
    biased = np.stack([0.5 + 0.1 * lengths[:, 0], 0.1 * lengths[:, 1]], axis=1) + random.normal(0, 0.05, (200, 2))
    length = measure_length(pairs, biased)
    assert length["slope"] == pytest.approx(0.1, abs=0.01)
    assert length["longer_preferred"] > 0.75
    assert length["corrected"]["accuracy"] == 1.0
    assert abs(length["corrected"]["correlation"]) < 0.2 < length["as_is"]["correlation"]


def test_cut_answers_say_nothing_about_length() -> None:
    pairs = [make_pair(i, kind="truncated" if i > 1 else "given", chosen=9) for i in range(4)]
    found = summarise_pairs(pairs, "abcd", make_logits([(0, 1), (0, 1), (1, 0), (1, 0)]))
    assert found["length"]["longer_preferred"] == 0.0
    assert found["accuracy"]["all"]["value"] == 0.5
    assert "length" not in summarise_pairs(pairs[2:], "cd", make_logits([(1, 0), (1, 0)]))


def test_logits_are_those_of_each_conversation_alone(folder: Path) -> None:
    model = RewardModel.load(folder)
    pairs = [make_pair(i + 1, chosen=i + 1, rejected=9) for i in range(3)]
    found = judge_pairs(model, pairs)
    for pair, both in zip(pairs, found, strict=True):
        for answer, row in zip((pair.chosen, pair.rejected), both, strict=True):
            alone = model.compute_logits([pair.prompt + answer])[0]
            assert row == pytest.approx(alone.numpy(), abs=1e-5)


def test_the_command_prints_both_models_and_the_reasons(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{i}+{i}?", "chosen": str(2 * i), "rejected": str(3 * i)} for i in range(1, 12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "Q", "chosen": "", "rejected": "x"}])))
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "Q", "chosen": "", "rejected": "x"}))
    sources = [str(path), str(tmp_path / "bad.jsonl")]
    monkeypatch.setattr(sys, "argv", ["reward_report", "--model", str(folder), *sources])
    main()
    shown = capsys.readouterr().out
    assert f"{path}: 12 read, 11 judged; left out: empty_reply 1" in shown
    assert "bad.jsonl: 1 read, 0 judged; left out: empty_reply 1" in shown
    assert all(f"  {name}" in shown for name in ("first ", "second"))
    assert all(words in shown for words in ("at chance", "calibration error", "longer preferred", "a token"))
    monkeypatch.setattr(sys, "argv", ["reward_report", "--model", str(folder), *sources, "--json"])
    main()
    found = json.loads(capsys.readouterr().out)["sources"]
    assert found[sources[1]] == {"read": 1, "judged": 0, "rejected": {"empty_reply": 1}}
    assert found[sources[0]]["second"]["accuracy"]["all"]["n"] == 11
    for wrong in ([str(tmp_path / "none.jsonl")], [sources[0], "--model", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["reward_report", "--model", str(folder), *wrong])
        with pytest.raises(SystemExit, match="error: "):
            main()


def test_public_pairs_are_judged_and_their_blank_replies_counted(
    shared_data: Path, folder: Path, tokenizer: Tokenizer
) -> None:
    models = {"first": RewardModel.load(folder)}
    found = {name: report_source(str(shared_data / name), tokenizer, models) for name in ("hh-rlhf", "llmbar")}
    assert (found["hh-rlhf"]["read"], found["hh-rlhf"]["rejected"]["empty_reply"]) == (1156, 4)
    assert found["llmbar"]["read"] == 100
    for one in found.values():
        assert one["read"] == one["judged"] + sum(one["rejected"].values())
