"""Random models of any size on a device, and what float32 makes of the same weights.

Error everywhere: ||x - reference|| / ||reference||, over all elements together.
B rows, T tokens, P chosen positions, V vocabulary.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.data.loader import Batch
from llm.model.config import ModelConfig
from llm.model.transformer import Block, Transformer, initial_std, rope_tables
from llm.train.local import model_loss


class Gradients(NamedTuple):
    """The loss of a batch and the gradient of every parameter, by name, in fp32."""

    loss: float
    by_name: dict[str, Tensor]


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Transformer:
    """Return a model filled on the device in its own dtype: 30 billion parameters never stand in host memory.

    Norms are spread around one, so that a check sees them.
    """
    with torch.device("meta"):
        model = Transformer(config)
    model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.8, 1.2, generator=generator)
            else:
                parameter.normal_(0.0, initial_std(name, parameter, config), generator=generator)
    return model


def random_tokens(config: ModelConfig, rows: int, length: int, device: torch.device) -> Tensor:
    """Return int64 ids [rows, length], the same in every process."""
    generator = torch.Generator(device=device).manual_seed(1)
    return torch.randint(0, config.vocab_size, (rows, length), device=device, generator=generator)


def take_gradients(model: Transformer, batch: Batch) -> Gradients:
    """Return loss and gradients of the model as it is; the model keeps none."""
    loss = model_loss(model, batch)
    loss.backward()
    return Gradients(float(loss.detach()), _pop_gradients(model))


def reference_gradients(model: Transformer, batch: Batch) -> Gradients:
    """Return loss and gradients of a float32 copy, row by row, so that activations of one row exist at a time.

    Every target must count, or the mean over rows is not the mean over tokens.
    """
    torch.set_float32_matmul_precision("highest")
    with torch.device("meta"):
        twin = Transformer(model.config)
    twin.to_empty(device=batch.tokens.device)
    twin.load_state_dict(model.state_dict())
    total = 0.0
    for row in range(len(batch.tokens)):
        loss = model_loss(twin, Batch(batch.tokens[row : row + 1], batch.targets[row : row + 1]))
        (loss / len(batch.tokens)).backward()
        total += float(loss.detach())
    return Gradients(total / len(batch.tokens), _pop_gradients(twin))


@torch.no_grad()
def reference_logits(model: Transformer, tokens_BT: Tensor, positions: Iterable[int]) -> Tensor:
    """Return the float32 logits [B, P, V] of some positions, with one layer in float32 at a time.

    So the reference of a 30-billion-parameter model needs the memory of one block more, and has the full depth.
    """
    torch.set_float32_matmul_precision("highest")
    config, device = model.config, tokens_BT.device
    with torch.device("meta"):
        twin = Block(config)
    twin.to_empty(device=device)
    cos, sin = (table[: tokens_BT.shape[1]][None, None] for table in rope_tables(config, torch.float32, device))
    x_BTD = F.embedding(tokens_BT, model.embedding.weight).float()
    for block in model.blocks:
        twin.load_state_dict(block.state_dict())
        x_BTD = twin(x_BTD, (cos, sin), None, None, 0)
    x_BPD = x_BTD[:, list(positions)]
    x_BPD = F.rms_norm(x_BPD, (config.hidden_size,), model.norm.weight.float(), config.norm_eps)
    head = model.embedding if model.head is None else model.head
    return F.linear(x_BPD, head.weight.float())


def relative_error(got: Iterable[Tensor], want: Iterable[Tensor]) -> float:
    """Return ||got - want|| / ||want|| over all tensors together; NaN stays NaN."""
    pairs = [(g.float(), w.float()) for g, w in zip(got, want, strict=True)]
    difference = sum(float((g - w).square().sum(dtype=torch.float64)) for g, w in pairs)
    size = sum(float(w.square().sum(dtype=torch.float64)) for _, w in pairs)
    return float((difference / size) ** 0.5)


def _pop_gradients(model: Transformer) -> dict[str, Tensor]:
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        gradients[name], parameter.grad = parameter.grad, None
    return gradients
