"""Write tests/llm/data/verdicts.json: made-up texts with what datatrove 0.10 says of them, for the test of our filters.

`make bench NAME=verdicts` runs it. For each rule there are texts on both sides of its threshold, drawn from a small
stock of sentences with a fixed seed; the lines of `TRICKY` come with the words that datatrove's tokenizer finds.
"""

import json
import random
from pathlib import Path

TARGET = Path("tests/llm/data/verdicts.json")
SENTENCES = (
    "The miller opens the gate of the pond before the sun is up.",
    "Water falls on the wheel, and the wheel turns a shaft of oak.",
    "Two stones lie one above the other; only the upper one moves.",
    "Grain is poured into the hopper and runs between the stones.",
    "What comes out at the rim is flour that is still warm to the hand.",
    "A bell rings when the hopper has become empty, so that nothing burns.",
    "In dry summers the river doesn't carry enough water to grind at all.",
    "Farmers wait with their carts in the yard and talk of prices.",
    "Nobody can say how old the mill is, but its walls have marks of floods.",
    "The bakery takes half of the flour; the rest goes to the market in sacks.",
    "Why should anyone pay more for bread that's made by hand?",
    '"It tastes of something," she said, and that was all she had to say.',
)
TRICKY = (
    "foo(x): returns a/b, key=value and x<y>z.",
    "don't can’t we'll I'd id its cannot gonna",
    "10km 5GB 3.5x 100% $5 #1 2-3 1/2 1+2",
    "``code``: 'quoted' \"both\" (see e.g. this, i.e. that).",
    "http://docs.example.org:80/a,b/c?d=e foo@example.com: module.Class self.name",
    "a--b --flag a-b -x well-known 8) :-) (o: range(8): ...and more... wait…",
    "U.S. Mr. Smith a.m. 10am Ph.D. vs. etc. end.",
    "日本語の文章です。 これは「引用」です、はい。",
    "Мельник мелет зерно, потому что днём мало воды.",
    "→ • ■item 20°C. x’s “quote” ¿qué? «oui»",
    "**kwargs *args, __init__ list[str]: dict{a:b} \\n \\t a...b A.B.C snake_case_name",
    "C++ and/or w/o '' they're You've let's o'clock",
)


def make_texts() -> list[str]:
    """Return the texts, always the same."""
    generator = random.Random(29)

    def prose(count: int) -> list[str]:
        return generator.choices(SENTENCES, k=count) if count > 12 else generator.sample(SENTENCES, count)

    texts = ["", "A", " \n ", " ".join(prose(4)), " ".join(prose(12)), "\n\n".join(prose(12)), *TRICKY]
    for share in (0.05, 0.09, 0.11, 0.2, 0.35, 0.5):  # of words that are spoiled in one way each
        for spoil in (lambda w: "#" + w, lambda w: w + "...", lambda w: str(len(w)), lambda w: w * 4, lambda w: w[0],
                      lambda w: f"{w[:2]}={w[2:]}({w})"):  # fmt: skip
            words = " ".join(prose(9)).split()
            texts.append(" ".join(spoil(word) if generator.random() < share else word for word in words))
        lines = prose(12)
        texts.append("\n".join(line if generator.random() > share else line + " ..." for line in lines))
        texts.append("\n".join(line if generator.random() < share / 4 else "- " + line for line in lines))
        repeated = [lines[0] if generator.random() < share else line for line in lines]
        texts += ["\n".join(repeated), "\n\n".join(repeated), " ".join(repeated)]
        phrase = " ".join(lines[1].split()[: generator.randint(2, 9)])
        texts.append(" ".join(phrase if generator.random() < share else word for word in " ".join(lines).split()))
    for ending in (
        "",
        ".",
        "...",
        "!",
        ' said "so"',
        " [12]",
        " use JavaScript.",
        " {x}.",
        " Lorem ipsum.",
        " We use cookies.",
    ):
        for count in (3, 5, 7):
            texts.append("\n".join(line.rstrip(".?") + ending for line in prose(count)))
    return texts


def main() -> None:
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.text import split_into_words

    filters = {
        "gopher_quality": GopherQualityFilter(),
        "gopher_repetition": GopherRepetitionFilter(),
        "c4": C4QualityFilter(),
    }
    rows = []
    for text in make_texts():
        row: dict[str, object] = {"text": text}
        for name, one in filters.items():
            verdict = (
                one.filter(Document(text=text, id="")) if text.strip() or name != "gopher_quality" else (False, "")
            )
            row[name] = verdict is True
        if text in TRICKY:
            row["words"] = split_into_words(text)
        rows.append(row)
    TARGET.write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    kept = {name: sum(bool(row[name]) for row in rows) for name in filters}
    print(json.dumps({"texts": len(rows), "kept": kept}))


if __name__ == "__main__":
    main()
