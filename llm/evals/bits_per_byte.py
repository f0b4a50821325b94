"""Bits per byte: how short a model makes text that it never saw. Independent of the tokenizer.

The held-out documents are one stream, in order, each followed by the end-of-text token, as in training. Every
token is predicted, the end-of-text tokens too: their bits count, but they add no bytes, so the figure errs on
the model's disadvantage. Windows as wide as the model's context slide by `stride` tokens and each token is
scored once, so that all but the first have at least window - stride tokens before them.

Shape suffixes: B windows, T positions of a window, N scored tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from llm.model.transformer import Transformer
from llm.progress import track

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32] | npt.NDArray[np.int64]
# Logits are fp32 [N, V]: this many rows at a time keep them near 130 MB with 8,192 entries.
LOGIT_ROWS = 4096


@dataclass(frozen=True)
class BitsPerByte:
    """What the stream cost in all, and per byte of text."""

    bits: float
    num_tokens: int
    num_bytes: int

    @property
    def value(self) -> float:
        return self.bits / self.num_bytes


def decode_stream(tokens: TokenArray, token_bytes: Sequence[bytes], terminator: bytes = b"\0") -> bytes:
    """Return the bytes of a token stream; tokens without bytes (the ends of documents) become `terminator`."""
    table = [piece or terminator for piece in token_bytes]
    return b"".join(map(table.__getitem__, tokens.tolist()))


def count_bytes(tokens: TokenArray, token_bytes: Sequence[bytes]) -> int:
    """Return how many bytes of text the tokens hold; special tokens hold none."""
    length_V = np.array([len(piece) for piece in token_bytes], dtype=np.int64)
    return int(length_V[tokens].sum())


@torch.inference_mode()
def measure_bits_per_byte(
    model: Transformer,
    tokens: TokenArray,
    token_bytes: Sequence[bytes],
    eos_id: int,
    window: int,
    stride_share: float = 0.5,
    batch_size: int = 16,
    label: str = "bits per byte",
) -> BitsPerByte:
    """Return what the model needs to code a stream of documents.

    Args:    tokens: ids of the documents, each followed by eos_id.  token_bytes: the bytes of each id.
             window: tokens of context, cut to the model's own.  The compute type is the model's.
             stride_share: in (0, 1]; how much of a window is scored anew.
    Returns: bits = -sum log2 p(token | up to window - 1 tokens before it), the first token after eos_id.
    Raises:  ValueError: the stream holds no text, or stride_share is out of range.
    Source:  sliding evaluation as in GPT-2 (Radford et al. 2019, section 3.1) with invertible byte counts.
    """
    num_bytes = count_bytes(tokens, token_bytes)
    if not num_bytes or not 0 < stride_share <= 1:
        raise ValueError(f"{num_bytes} bytes of text and stride_share={stride_share}: need text and (0, 1]")
    window = min(window, model.config.context)
    stream = np.concatenate([[eos_id], tokens]).astype(np.int64)
    batches = list(slide(len(tokens), window, max(1, round(window * stride_share)), batch_size))
    nats = 0.0
    for spans in track(batches, label):
        rows_BT = torch.from_numpy(np.stack([stream[start : stop + 1] for start, _, stop in spans]))
        fresh_BT = torch.zeros(len(spans), rows_BT.shape[1] - 1, dtype=torch.bool)
        for row, (start, first, _) in enumerate(spans):
            fresh_BT[row, first - start :] = True
        hidden_NT = model(rows_BT[:, :-1])[fresh_BT]
        targets_N = rows_BT[:, 1:][fresh_BT]
        for at in range(0, len(targets_N), LOGIT_ROWS):
            logits_NV = model.unembed(hidden_NT[at : at + LOGIT_ROWS])
            loss_N = F.cross_entropy(logits_NV, targets_N[at : at + LOGIT_ROWS], reduction="none")
            nats += float(loss_N.double().sum())
    return BitsPerByte(nats / math.log(2), len(tokens), num_bytes)


def slide(length: int, window: int, stride: int, batch_size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield batches of (start, first, stop): read inputs [start, stop), score the predictions [first, stop).

    The scored ranges cover [0, length) once, in order. All windows are equally wide; the last one is moved
    back to end at the end.
    """
    window = min(window, length)
    spans = [(0, 0, window)]
    while spans[-1][2] < length:
        done = spans[-1][2]
        stop = min(done + stride, length)
        spans.append((stop - window, done, stop))
    for at in range(0, len(spans), batch_size):
        yield spans[at : at + batch_size]
