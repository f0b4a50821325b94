"""The model card: metadata that the Hub's own reader accepts, and every figure from the reports."""

from typing import Any

from huggingface_hub import ModelCard

from llm.config import InitFrom
from llm.data.chat import render
from llm.data.tokenizer import Tokenizer
from llm.export.card import PackagedFile, write_card, write_modelfile
from llm.export.gate import Check
from llm.model.config import ModelConfig

CONFIG = ModelConfig(
    vocab_size=4096, hidden_size=256, num_layers=6, num_heads=4, num_kv_heads=2, head_size=64, mlp_size=768,
    context=512,
)  # fmt: skip
EVALUATION: dict[str, Any] = {
    "bits_per_byte": {"base": 1.8123, "policy": 1.9},
    "baselines": {"xz": 2.2, "uniform": 8.0},
    "multiple_choice": {
        "policy": {"accuracy": 0.391, "low": 0.34, "high": 0.44, "n": 400},
        "word_overlap": {"accuracy": 0.3, "low": 0.26, "high": 0.34, "n": 400},
    },
    "reward": {"delta": 0.25, "delta_low": 0.1, "delta_high": 0.4, "n": 256},
    "kl": {"value": 2.5, "bound": 8.0},
}
CARD = {"bits_per_byte": 1.91, "size_bytes": 7654321, "bits_per_weight": 8.5, "agreement": 0.991}
KEEPS = {"bits_per_byte": 1.91, "difference": 0.0012, "agreement": 0.991, "n": 400}
CORPUS = {
    "languages": {"en": 97, "de": 2, "fr": 1, "la": 0},
    "sources": {"pydocs": {"documents": {"train": 90, "val": 10}, "licences": {"MIT": 60, "A | B": 40}}},
}


def make_card(passed: bool, init_from: InitFrom | None = None) -> str:
    checks = [Check("kl", 2.5, 8.0, True, "near sft"), Check("length", 0.125, 0.2, True, "as long as sft's")]
    if not passed:
        low = {"low": -0.02, "high": 0.5, "n": 400, "by": -0.02}
        checks[0] = Check("reward", 0.24, 0.0, False, "more than sft's", **low, remedy="raise rlhf.steps")
        checks.append(Check("distinct", None, 0.8, False, "not measured: variety", remedy="run evaluate"))
    quantization = {"card": {"original": CARD, "q8_0": CARD, "q4_0": CARD}}
    files = [
        PackagedFile("hf", "hf/model.safetensors", 23_456_789, {"transformers": KEEPS}),
        PackagedFile("f16", "gguf/model-f16.gguf", 11_654_321, {"openvino": KEEPS}),
        PackagedFile("q8_0", "gguf/model-q8_0.gguf", 7_654_321, {"openvino": KEEPS, "llamacpp": KEEPS}),
    ]
    return write_card(
        "gristmill", "0123456789abcdef", CONFIG, EVALUATION, quantization, CORPUS, checks, files, init_from
    )


def test_the_hub_accepts_the_metadata():
    card = ModelCard(make_card(True))
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert {result.metric_value for result in card.data.eval_results} == {1.9, 0.391}
    assert card.data.model_name == "gristmill"
    assert card.data.license == "other"
    assert card.data.language == ["de", "en", "fr"]  # of Latin there is too little
    assert card.data.datasets == ["pydocs"]
    assert {"qwen3", "gguf"} <= set(card.data.tags)
    assert card.data.base_model is None
    other = InitFrom(path="/home/ann/models/Qwen3-0.6B", digest="0" * 32)
    assert ModelCard(make_card(True, other)).data.base_model == "Qwen3-0.6B"


def test_two_lines_load_it_in_ollama_and_lm_studio():
    text = make_card(True)
    assert "\nollama create gristmill -f Modelfile && ollama run gristmill\n" in text
    assert "\nlms import --copy --user-repo gristmill/gristmill gguf/model-q8_0.gguf && lms load gristmill" in text


def test_ollamas_template_is_our_chat_format(tokenizer: Tokenizer):
    """Worked by hand from Go's rules: a range repeats its body, text stands as it is."""
    modelfile = write_modelfile("gguf/model-q8_0.gguf", 512)
    assert modelfile.startswith("FROM ./gguf/model-q8_0.gguf\n")
    assert "\nPARAMETER stop <|im_end|>\n" in modelfile
    assert "\nPARAMETER num_ctx 512\n" in modelfile
    template = modelfile.split('"""')[1]
    body, after = template.removeprefix("{{ range .Messages }}").split("{{ end }}")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello\n"}]
    turns = [body.replace("{{ .Role }}", one["role"]).replace("{{ .Content }}", one["content"]) for one in chat]
    assert "".join(turns) + after == tokenizer.decode(render(tokenizer, chat, add_generation_prompt=True)[0])


def test_figures_come_from_the_reports():
    text = make_card(True)
    # 6 * 256 * ((4 + 2*2 + 4) * 64 + 3 * 768) + 4096 * 256 weights
    assert "5.8 million parameter" in text
    assert "| bits per byte, base | 1.8123 |" in text
    assert "| multiple choice, policy | 39.1% (34.0% to 44.0%, n 400) |" in text
    assert "| `gguf/model-q8_0.gguf` | 7,654,321 | 8.50 | llamacpp | 1.9100 | +0.120% | 99.1% |" in text
    assert "| `gguf/model-f16.gguf` | 11,654,321 | 16.00 | openvino |" in text
    assert "| pydocs | 90 | 10 | MIT (60), A \\| B (40) |" in text
    assert "0123456789abcdef" in text
    assert "Not released" not in text


def test_a_failed_gate_is_said_in_front():
    text = make_card(False)
    assert "**Not released.**" in text
    assert "| length | 0.125 | 0.2 | passed | as long as sft's |" in text
    row = "| reward | 0.24 (-0.02 to 0.5, n 400) | 0 | **failed** by -0.02 | more than sft's. Next: raise rlhf.steps |"
    assert row in text
    assert "| distinct | not measured | 0.8 | **failed** | not measured: variety. Next: run evaluate |" in text


def test_where_it_started_is_said():
    assert "trained from raw text" in make_card(True)
    other = InitFrom(path="/home/ann/models/Qwen3-0.6B", digest="0" * 32)
    text = make_card(True, other)
    assert f"started from the model `Qwen3-0.6B` (content `{'0' * 32}`)" in text
    assert "raw text" not in text
    assert "/home/ann" not in text
    assert "started from release `fedcba9876543210`" in make_card(
        True, other.model_copy(update={"release": "fedcba9876543210"})
    )
