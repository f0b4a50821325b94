"""The same questions answered by base, sft and policy, side by side: `python -m llm.serve.demo [QUESTION ...]`.

Greedy, so that a difference is the training's and not the sampler's. The base model has never seen a chat: it gets
the question as plain text and continues it.
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm.config import ConfigError
from llm.data.chat import render
from llm.data.tokenizer import Tokenizer
from llm.infer.generate import generate
from llm.model.folder import load_model
from llm.serve.text import make_printable

MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = {"base": "continues the text", "sft": "answers, by example", "policy": "answers, by preference"}
QUESTIONS = (
    "Hello! Who are you?",
    "What does `dirname` in `posixpath` do?",
    "What arguments does `textwrap.shorten` take?",
)
MAX_TOKENS = 80


def answer(folder: Path, questions: list[str]) -> list[str]:
    """Return a model's greedy answers. Raises ConfigError when the folder or a question cannot be used."""
    model, tokenizer = load_model(folder).eval(), Tokenizer.load(folder)
    prompts = []
    for question in questions:
        turn = [{"role": "user", "content": question}]
        as_text = [tokenizer.eos_id, *tokenizer.encode(question + "\n")]
        ids = as_text if folder.name == "base" else render(tokenizer, turn, add_generation_prompt=True)[0]
        if len(ids) >= model.config.context:
            raise ConfigError(f"a question of {len(ids)} tokens leaves no room in a context of {model.config.context}")
        prompts.append(ids)
    stop_ids = {tokenizer.im_end_id, tokenizer.eos_id}
    answers = generate(model, prompts, max_new_tokens=MAX_TOKENS, temperature=0.0, stop_ids=stop_ids)
    return [make_printable(tokenizer.decode(one.tokens, skip_special=True).strip()) for one in answers]


def main() -> None:
    """Print the table."""
    questions = [one.encode("utf-8", "replace").decode() for one in sys.argv[1:]] or list(QUESTIONS)
    missing = [name for name in NAMES if not (MODELS / name / "model.safetensors").is_file()]
    if missing:
        sys.exit(f"error: {MODELS}: no model {', '.join(missing)}; run `make run` first")
    try:
        columns = [answer(MODELS / name, questions) for name in NAMES]
    except ConfigError as error:
        sys.exit(f"error: {error}")
    table = Table(show_lines=True, expand=True)
    table.add_column("question", ratio=2)
    for name, what in NAMES.items():
        table.add_column(f"{name}\n({what})", ratio=3)
    # Text, not str: an answer is data, and rich would read [brackets] in it as markup.
    for row in zip(questions, *columns, strict=True):
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


if __name__ == "__main__":
    main()
