"""The graph that OpenVINO serves: it computes what torch computes of the same weights, in few nodes."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from openvino._offline_transformations import paged_attention_transformation

from llm.config import ConfigError
from llm.data.tokenizer import Tokenizer
from llm.export.gguf import Format, write_gguf
from llm.export.openvino import OpenVinoScorer, engine_properties, open_pipeline
from llm.export.openvino_graph import build_graph
from llm.infer.score import score
from llm.model.config import ModelConfig
from llm.model.folder import from_hf_state, to_hf_state
from llm.model.transformer import Transformer, init_weights
from llm.quant.blocks import Packed, pack_q4_0, pack_q8_0, round_q4_0, unpack

NUM_LAYERS = 2
SHAPES = {  # query heads, key/value heads, tied
    "plain": (2, 2, True),
    "grouped": (4, 2, True),
    "untied": (4, 1, False),
}
# Of a mixed file, in q8_0: a value apart from its query and key, a key apart from its neighbours, and two more.
LARGER = ("embed_tokens", "layers.0.self_attn.v_proj", "layers.1.self_attn.k_proj", "layers.1.mlp.up_proj")


def make_model(shape: str, vocab_size: int) -> Transformer:
    num_heads, num_kv_heads, tied = SHAPES[shape]
    config = ModelConfig(
        vocab_size=vocab_size, hidden_size=64, num_layers=NUM_LAYERS, num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_size=32, mlp_size=96, context=96, tie_embeddings=tied,
    )  # fmt: skip
    model = Transformer(config).eval()
    init_weights(model, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model


def write(path: Path, model: Transformer, tokenizer: Tokenizer, kind: str) -> Transformer:
    """Write the file and return the model that its bytes mean."""
    state = {name: tensor.numpy() for name, tensor in to_hf_state(model).items()}
    packed: dict[str, Packed] = {}
    for name, weight in state.items():
        if weight.ndim == 2 and (kind == "q8_0" or (kind == "mixed" and any(part in name for part in LARGER))):
            packed[name] = pack_q8_0(weight)
        elif weight.ndim == 2 and kind != "f16":
            packed[name] = pack_q4_0(*round_q4_0(weight))
    file_format: Format = "q4_0" if kind == "mixed" else kind  # type: ignore[assignment]
    write_gguf(path, model, tokenizer, file_format, packed)
    read_back = {
        name: unpack(packed[name]) if name in packed else weight.astype(np.float16) if weight.ndim == 2 else weight
        for name, weight in state.items()
    }
    meant = Transformer(model.config).eval()
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in read_back.items()}
    meant.load_state_dict(from_hf_state(tensors, model.config))
    return meant


def make_rows(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in (2, 95, 33, 64, 7)]


def largest_gap(found: list[list[float]], model: Transformer, rows: list[list[int]]) -> float:
    expected = score(model, rows, [1] * len(rows))
    return max(np.abs(np.subtract(ours, theirs)).max() for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "mixed"])
def test_graph_is_torchs_model(kind: str, shape: str, tokenizer: Tokenizer, tmp_path: Path):
    """Several sequences at once; then prefixes that share pages of the cache, of 32 tokens each."""
    vocab_size = tokenizer.vocab_size
    model = write(tmp_path / "model.gguf", make_model(shape, vocab_size), tokenizer, kind)
    rows = make_rows(vocab_size)
    scorer = OpenVinoScorer(tmp_path / "model.gguf", vocab_size=vocab_size, context=96, threads=1, exact=True)
    # Measured: 6e-6 nats.
    assert largest_gap(scorer.score(rows), model, rows) < 1e-4
    prefixes = [rows[1][:length] for length in (33, 40, 65, 66, 95)]
    with torch.no_grad():
        greedy = [int(model.unembed(model(torch.tensor([prefix])))[0, -1].argmax()) for prefix in prefixes]
    assert scorer.next_tokens(prefixes) == greedy
    # The negative control: without what the norms say about queries the figures are others.
    with torch.no_grad():
        model.blocks[1].attention.query_norm.weight.mul_(1.1)  # type: ignore[union-attr, operator]
    assert largest_gap(scorer.score(rows), model, rows) > 1e-3


@pytest.mark.parametrize("kind, num_products", [("q8_0", 5 + 5 + 1), ("mixed", 6 + 6 + 1)])
def test_nodes_are_few(kind: str, num_products: int, tokenizer: Tokenizer, tmp_path: Path):
    """What the CPU plugin makes of it: each product, norm and rotation is one node, and nothing is turned or copied."""
    write(tmp_path / "model.gguf", make_model("grouped", tokenizer.vocab_size), tokenizer, kind)
    model = build_graph(tmp_path / "model.gguf")
    paged_attention_transformation(model)
    runtime = ov.Core().compile_model(model, "CPU", engine_properties(1)).get_runtime_model()
    counts = Counter(str(node.get_rt_info()["layerType"].astype(str)) for node in runtime.get_ops())
    assert counts["FullyConnected"] == num_products
    assert counts["PagedAttention"] == NUM_LAYERS
    assert counts["RoPE"] == 2 * NUM_LAYERS
    assert counts["RMS"] == 4 * NUM_LAYERS + 1
    assert counts["Eltwise"] == 3 * NUM_LAYERS + 1  # silu is part of a product; the last one shifts the logits
    assert counts["Reshape"] == 4 * NUM_LAYERS + 3  # to heads and back, for queries and for keys
    assert counts["Transpose"] == counts["MatMul"] == counts["Concatenation"] == 0


def test_what_is_not_served_is_named(tokenizer: Tokenizer, tmp_path: Path):
    path = tmp_path / "model.gguf"
    write(path, make_model("plain", tokenizer.vocab_size), tokenizer, "f16")
    content = path.read_bytes()
    (tmp_path / "llama.gguf").write_bytes(content.replace(b"qwen3", b"llama"))
    with pytest.raises(ConfigError, match=r"llama.gguf: general.architecture is 'llama'; only 'qwen3'"):
        build_graph(tmp_path / "llama.gguf")
    (tmp_path / "cut.gguf").write_bytes(content.replace(b"qwen3.rope.freq_base", b"qwen3.rope.freq_bass"))
    with pytest.raises(ConfigError, match=r"cut.gguf: no qwen3.rope.freq_base"):
        build_graph(tmp_path / "cut.gguf")
    reader = GGUFReader(path, "r+")
    (up,) = (tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_up.weight")
    up.field.parts[4][0] = GGMLQuantizationType.BF16
    reader.data.flush()
    with pytest.raises(ConfigError, match=r"blk.1.ffn_up.weight is BF16; served are F16, Q8_0 and Q4_0"):
        build_graph(path)


def test_nothing_stays_on_the_disk(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.gguf"
    write(path, make_model("plain", tokenizer.vocab_size), tokenizer, "q8_0")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 4
    pipeline = open_pipeline(path, scheduler, engine_properties(1))
    assert not list(temporary.iterdir())
    with pytest.raises(RuntimeError, match="NO_SUCH_PROPERTY"):
        open_pipeline(path, scheduler, {"NO_SUCH_PROPERTY": 1})
    assert not list(temporary.iterdir())
    assert pipeline.get_metrics().cache_usage == 0
