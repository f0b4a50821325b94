"""How far a packaged format, loaded by its own consumer, is from the model that was trained: scores, tokens, ids.

A window's scores are compared whole where the consumer gives them, at the sample's positions where it does not.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llm.data.tokenizer import Tokenizer
from llm.export.llamacpp import LlamaCppScorer
from llm.export.sample import Sample, agreement, bits_per_byte

LONGEST = 2_000  # characters, at most 8,000 tokens: of more than 8,192 OpenVINO's tokenizer drops the first ones
Reference = tuple[list[list[float]], list[int]]  # log-probabilities [nats] of each window's tokens, greedy tokens


def compare_scores(
    sample: Sample, reference: Reference, scores: list[list[float]], tokens: list[int]
) -> dict[str, Any]:
    """Return what a consumer that scores whole windows keeps of the reference, as reports hold it."""
    expected, greedy = reference
    original, bits = (bits_per_byte(logprobs, sample.num_bytes) for logprobs in (expected, scores))
    return _as_metrics(original, bits, agreement(tokens, greedy), len(greedy))


def compare_llamacpp(
    sample: Sample, reference: Reference, scorer: LlamaCppScorer, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return the same for llama.cpp, which scores one token after a prefix: at the sample's positions.

    A token that is no whole UTF-8 character has no score there, and is left out on both sides.
    """
    targets = [sample.windows[window][length] for window, length in sample.positions]
    found = scorer.score_next(sample.prefixes, targets)
    expected = [reference[0][window][length - 1] for window, length in sample.positions]
    sizes = [len(piece) for piece in tokenizer.token_bytes()]
    rows = [
        (before, after, sizes[target])
        for before, (_, after), target in zip(expected, found, targets, strict=True)
        if after is not None
    ]
    num_bytes = sum(size for *_, size in rows)
    before, after = (bits_per_byte([[row[side] for row in rows]], num_bytes) for side in (0, 1))
    return _as_metrics(before, after, agreement([token for token, _ in found], reference[1]), len(rows))


def compare_ids(tokenizer: Tokenizer, ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> dict[str, Any]:
    """Return the share of texts with equal ids, their number, and where the first that differs does so."""
    pairs = list(zip(ours, theirs, strict=True))
    found: dict[str, Any] = {"value": round(sum(a == b for a, b in pairs) / max(1, len(pairs)), 6), "n": len(pairs)}
    for number, (a, b) in enumerate(pairs):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            near = slice(max(0, at - 1), at + 3)
            found["first"] = f"text {number}, token {at}: {tokenizer.decode(a[near])!a} is {a[near]}, not {b[near]}"
            break
    return found


def leave_out_special(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """Return the texts without a special token in them: transformers and OpenVINO parse it, and we never do."""
    specials = [tokenizer.decode([i]) for i in sorted(tokenizer.special_ids)]
    return [text for text in texts if not any(special in text for special in specials)]


def compare_tokenizers(
    tokenizer: Tokenizer, texts: Iterable[str], engines: dict[str, Callable[[Sequence[str]], list[list[int]]]]
) -> dict[str, Any]:
    """Return `compare_ids` of the beginning of each text for each engine."""
    plain = leave_out_special(tokenizer, (text[:LONGEST] for text in texts))
    ours = tokenizer.encode_batch(plain)
    return {name: compare_ids(tokenizer, ours, encode(plain)) for name, encode in engines.items()}


def _as_metrics(original: float, bits: float, same: float, num_positions: int) -> dict[str, Any]:
    return {
        "bits_per_byte": round(bits, 6),
        "difference": round(bits / original - 1, 7),
        "agreement": round(same, 5),
        "n": num_positions,
    }
