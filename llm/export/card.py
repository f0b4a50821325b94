"""The model card: README.md of a release, with the Hub's metadata in front and figures taken from the reports.

Every figure comes from a report of the pipeline; what no report holds is not claimed. No dates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm.config import InitFrom
from llm.export.gate import Check, find, read
from llm.model.config import ModelConfig

LIMITS = """\
- It knows its corpus and nothing else: it imitates that style, and is often wrong about facts.
- Rewards, costs and their bounds are measured on this project's prompts. They show a direction; they do not
  make the model safe. Do not let its answers decide anything about people.
- Quantized files lose what the table says; the gate bounds it."""

USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("hf")
model = AutoModelForCausalLM.from_pretrained("hf")
chat = [{"role": "user", "content": "Hello"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=60)[0]))
```

In [Ollama](https://ollama.com) and in [LM Studio](https://lmstudio.ai), from the folder of this file:

```bash
ollama create {name} -f Modelfile && ollama run {name}
lms import --copy --user-repo {name}/{name} gguf/model-q8_0.gguf && lms load {name} && lms chat {name}
```

The GGUF files also load in llama.cpp and OpenVINO GenAI. The chat format is ChatML without a default system prompt;
answers end with `<|im_end|>`."""

# Ollama reads a Go template and has a short context by default; this is the ChatML of `llm.data.chat`.
MODELFILE = """\
FROM ./{served}
TEMPLATE \"\"\"{{{{ range .Messages }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
\"\"\"
PARAMETER stop <|im_end|>
PARAMETER stop <|endoftext|>
PARAMETER num_ctx {context}
"""
LEAST_SHARE = 0.01  # of the documents: a language with less is not named in the metadata
WIDTHS = {"hf": "original"}  # what the quantization card calls a format


@dataclass(frozen=True)
class PackagedFile:
    """A format of the model in the release, and what each engine that reads it keeps (`llm.export.parity`)."""

    kind: str
    place: str
    size_bytes: int
    engines: Mapping[str, Mapping[str, Any]]


def write_card(
    name: str,
    release: str,
    config: ModelConfig,
    evaluation: Mapping[str, Any],
    quantization: Mapping[str, Any],
    corpus: Mapping[str, Any],
    checks: Sequence[Check],
    files: Sequence[PackagedFile],
    init_from: InitFrom | None = None,
) -> str:
    """Return the text of README.md.

    Args:    release: its hash.  evaluation, quantization: `metrics` of reports/evaluate.json and reports/quantize.json.
             corpus: `llm.export.lineage.describe_corpus`.  checks: the release gate.  files: the packaged formats.
             init_from: the model that training started from, None for random weights.
    """
    passed = all(check.passed for check in checks)
    sections = [
        _front_matter(name, evaluation, corpus, init_from),
        f"# {name}\n\nA {_shape(config)} language model (Qwen3 dense architecture), {_start(init_from)}, tuned "
        f"on conversations and aligned with a reward model by Gristmill. Release `{release}`.",
        "" if passed else "> **Not released.** The release gate failed; see the table of checks below.",
        f"## Use\n\n{USE.replace('{name}', name)}",
        f"## Evaluation\n\n{_evaluation_table(evaluation)}",
        f"## Files\n\n{_files_table(files, quantization)}",
        f"## Release gate\n\n{_gate_table(checks)}",
        f"## Training data\n\n{_corpus_table(corpus)}\n\nPer-stage digests and params are in `lineage.json`; "
        "`sbom.cdx.json` lists the software; `SHA256SUMS` covers every file.",
        f"## Limits\n\n{LIMITS}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def write_modelfile(served: str, context: int) -> str:
    """Return the Modelfile with which Ollama loads the served GGUF file."""
    return MODELFILE.format(served=served, context=context)


def _start(init_from: InitFrom | None) -> str:
    """Where the weights came from; no path, which would be of one machine."""
    if init_from is None:
        return "trained from raw text"
    if init_from.release:
        return f"started from release `{init_from.release}` of this project"
    return f"started from the model `{Path(init_from.path).name}` (content `{init_from.digest}`)"


def _front_matter(
    name: str, evaluation: Mapping[str, Any], corpus: Mapping[str, Any], init_from: InitFrom | None
) -> str:
    figures = [
        ("text-generation", "bits_per_byte", "Bits per byte, held-out text", find(evaluation, "bits_per_byte.policy")),
    ]
    if evaluation["multiple_choice"]:
        accuracy = find(evaluation, "multiple_choice.policy.accuracy")
        figures.append(("multiple-choice", "accuracy", "Four-way choice", accuracy))
    results = [
        {
            "task": {"type": task},
            "dataset": {"type": "held-out", "name": "held-out part of the training corpus"},
            "metrics": [{"type": kind, "name": title, "value": round(value, 4)}],
        }
        for task, kind, title, value in figures
    ]
    total = sum(corpus["languages"].values())
    spoken = [code for code, count in corpus["languages"].items() if count >= LEAST_SHARE * total and code != "unknown"]
    metadata = {
        # Weights learned from texts under several licences carry no single one; the table below counts them.
        "license": "other",
        "license_name": "mixed-see-training-data",
        "license_link": "lineage.json",
        "language": sorted(spoken),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "datasets": sorted(corpus["sources"]),
        "tags": ["qwen3", "gguf", "conversational", "gristmill"],
        "model-index": [{"name": name, "results": results}],
    }
    if init_from is not None and not init_from.release:
        metadata["base_model"] = Path(init_from.path).name
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---"


def _shape(config: ModelConfig) -> str:
    matrices = (config.num_heads + 2 * config.num_kv_heads + config.num_heads) * config.head_size + 3 * config.mlp_size
    embeddings = config.vocab_size * (1 if config.tie_embeddings else 2)
    millions = config.hidden_size * (config.num_layers * matrices + embeddings) / 1e6
    return f"{millions:.1f} million parameter ({config.num_layers} layers, context {config.context} tokens)"


def _evaluation_table(evaluation: Mapping[str, Any]) -> str:
    bits = evaluation["bits_per_byte"]
    rows = [("bits per byte, " + model, f"{find(bits, model):.4f}") for model in ("base", "policy") if model in bits]
    baselines = evaluation["baselines"]
    rows += [(f"bits per byte, {name} (baseline)", f"{find(baselines, name):.4f}") for name in sorted(baselines)]
    for model, choice in sorted(evaluation["multiple_choice"].items()):
        if isinstance(choice, Mapping) and "accuracy" in choice:
            interval = f"{choice['accuracy']:.1%} ({choice['low']:.1%} to {choice['high']:.1%}, n {choice['n']})"
            rows.append((f"multiple choice, {model}", interval))
    gain, kl = read(evaluation, "reward", "delta"), read(evaluation, "kl")
    if gain is not None:
        interval = f"{gain.value:.4f} ({gain.low:.4f} to {gain.high:.4f}, n {gain.n})"
        rows.append(("reward, policy minus sft", interval))
    if kl is not None:
        rows.append(("KL to sft [nats]", f"{kl.value:.4f} (bound {find(evaluation, 'kl.bound'):.4f})"))
    return _table(("figure", "value (95 % interval)"), rows)


def _files_table(files: Sequence[PackagedFile], quantization: Mapping[str, Any]) -> str:
    rows = []
    for file in files:
        measured = quantization["card"].get(WIDTHS.get(file.kind, file.kind), {"bits_per_weight": 16.0})
        for engine, found in file.engines.items():
            rows.append(
                (
                    f"`{file.place}`",
                    f"{file.size_bytes:,}",
                    f"{measured['bits_per_weight']:.2f}",
                    engine,
                    f"{found['bits_per_byte']:.4f}",
                    f"{found['difference']:+.3%}",
                    f"{found['agreement']:.1%}",
                )
            )
    header = ("file", "bytes", "bits per weight", "read by", "bits per byte (sample)", "change", "same greedy token")
    return _table(header, rows)


def _gate_table(checks: Sequence[Check]) -> str:
    rows = [
        (
            check.name,
            "not measured" if check.value is None else _with_interval(check),
            "-" if check.bound is None else f"{check.bound:g}",
            "passed" if check.passed else "**failed**" if check.by is None else f"**failed** by {check.by:+g}",
            check.why if check.passed else f"{check.why}. Next: {check.remedy}",
        )
        for check in checks
    ]
    return _table(("check", "value (95 % interval)", "bound", "", "meaning"), rows)


def _with_interval(check: Check) -> str:
    if check.low is None or check.high is None:
        return f"{check.value:g}"
    return f"{check.value:g} ({check.low:g} to {check.high:g}{'' if check.n is None else f', n {check.n}'})"


def _corpus_table(corpus: Mapping[str, Any]) -> str:
    rows = []
    for source, about in corpus["sources"].items():
        licences = sorted(about["licences"].items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{licence} ({count})" for licence, count in licences[:8])
        if len(licences) > 8:
            named += f", {len(licences) - 8} more in lineage.json"
        split = about["documents"]
        rows.append((source, str(split.get("train", 0)), str(split.get("val", 0)), named))
    return _table(("source", "training documents", "held out", "licences (documents)"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
