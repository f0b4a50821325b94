"""Build conversations about documented functions: what they do, their arguments, module and result."""

from collections.abc import Iterator
from dataclasses import dataclass

from llm.data.builtin.docstrings import Entry, parse_arguments, parse_returns, split_sentences, strip_markup, summarise
from llm.data.builtin.pydocs import DocumentedModule
from llm.data.schema import Conversation, Message, hash_id, hash_share, pick

MAX_ANSWER_CHARS = 320
MAX_ARGUMENTS = 4

DESCRIBE = (
    "What does `{name}` in `{module}` do?",
    "What does the function `{name}` of the module `{module}` do?",
    "Can you tell me what `{module}.{name}` does?",
    "Explain `{module}.{name}` in a sentence.",
    "I found a call of `{name}` from `{module}`. What is it for?",
    "What is `{name}` for? I mean the one in `{module}`.",
    "Describe `{name}`, please. It is in `{module}`.",
    "In `{module}` there is `{name}`. What does it do?",
    "Please explain what {name} from {module} does.",
    "what does {module}.{name} do",
    "When would I call `{name}` of `{module}`?",
    "Summarise `{module}.{name}` for me.",
)
ARGUMENTS = (
    "What arguments does `{module}.{name}` take?",
    "Which parameters does `{name}` in `{module}` have?",
    "What do I pass to `{name}` from `{module}`?",
    "Explain the arguments of `{module}.{name}`.",
    "How do I call `{name}` of the module `{module}`? Which arguments are there?",
)
RETURNS = (
    "What does `{module}.{name}` return?",
    "What do I get back from `{name}` in `{module}`?",
    "What is the result of `{name}` of the module `{module}`?",
    "And what does `{name}` from `{module}` give me as a result?",
)
MODULE = (
    "Which module is `{name}` in? I only know that it belongs to {package}.",
    "Where in {package} do I find `{name}`?",
    "From which module of {package} do I import `{name}`?",
    "In what module does {package} keep `{name}`?",
)
FOLLOW_ARGUMENTS = ("And its arguments?", "Which arguments does it take?", "What do I pass to it?")
FOLLOW_RETURNS = ("And what does it return?", "What do I get back?", "What is its result?")


@dataclass(frozen=True, slots=True)
class Function:
    """A public function or method whose docstring opens with a usable sentence."""

    package: str
    module: str
    entry: Entry
    summary: str

    @property
    def name(self) -> str:
        """Return the dotted name within the module."""
        return self.entry.name


def list_functions(module: DocumentedModule) -> list[Function]:
    """Return the module's public functions and methods that can be described in a sentence, each name once."""
    found: dict[str, Function] = {}
    for entry in module.entries:
        public = not any(part.startswith("_") for part in f"{module.name}.{entry.name}".split("."))
        if public and entry.kind in ("function", "method") and entry.name not in found:
            found[entry.name] = Function(module.package, module.name, entry, summarise(entry.text))
    return [function for function in found.values() if function.summary]


def ask(templates: tuple[str, ...], function: Function, salt: str) -> str:
    """Return a question about the function in the phrasing that its hash names."""
    template = pick(templates, salt, function.module, function.name)
    package = function.package.replace("python/", "Python's ")
    return template.format(name=function.name, module=function.module, package=package)


def describe(function: Function) -> str:
    """Return the first sentence, and the second where both are short."""
    sentences = split_sentences(strip_markup(function.entry.text.split("\n\n", 1)[0]))[:2]
    both = " ".join(sentences)
    answer = both if len(sentences) == 2 and sentences[1][-1] in ".!" and len(both) <= 200 else function.summary
    return answer if answer[-1] in ".!?" else answer + "."


def explain_arguments(function: Function) -> str:
    """Return a sentence or two on the arguments, from the docstring or else from the signature; "" if none."""
    names = [name.lstrip("*") for name in function.entry.parameters]
    known = [(n, t) for n, t in parse_arguments(function.entry.text) if n.lstrip("*") in names]
    if known:
        parts: list[str] = []
        for name, text in known[:MAX_ARGUMENTS]:
            part = f"`{name}`: {text[0].lower() + text[1:] if text[:2].istitle() else text}"
            if len(" ".join([*parts, part])) > MAX_ANSWER_CHARS:
                break
            parts.append(part if part[-1] in ".!?" else part + ".")
        return " ".join(parts)
    if not 1 <= len(names) <= 6:
        return ""
    shown = [f"`{name}`" for name in function.entry.parameters]
    if len(shown) == 1:
        return f"It takes one argument, {shown[0]}."
    return f"Its arguments are {', '.join(shown[:-1])} and {shown[-1]}."


def explain_return(function: Function) -> str:
    """Return what the docstring says of the result, or ""."""
    text = parse_returns(function.entry.text)
    if not 12 <= len(text) <= MAX_ANSWER_CHARS or not text[0].isalpha() or " " not in text:
        return ""
    first = text.split()[0]
    if first in ("The", "A", "An"):
        text = f"It returns {first.lower()}{text[len(first) :]}"
    elif first.lower() not in ("returns", "return"):
        text = f"It returns: {text}"
    return text if text[-1] in ".!?" else text + "."


def build_conversations(modules: list[list[Function]], source: str) -> list[Conversation]:
    """Return conversations about every function of the modules."""
    return [
        Conversation(hash_id(source, "qa", *(m["content"] for m in messages)), function.package, source, "qa", messages)
        for functions in modules
        for function in functions
        for messages in _talk_about(function)
    ]


def _talk_about(function: Function) -> Iterator[list[Message]]:
    """Yield the conversations on one function: always its description, and one other by hash."""
    arguments, result = explain_arguments(function), explain_return(function)
    turns = [(ask(DESCRIBE, function, "describe"), describe(function))]
    share = hash_share("follow", function.module, function.name)
    if share < 0.2 and arguments:
        turns.append((pick(FOLLOW_ARGUMENTS, function.module, function.name), arguments))
    if share < 0.1 and result:
        turns.append((pick(FOLLOW_RETURNS, function.module, function.name), result))
    yield _messages(turns)
    other = hash_share("other", function.module, function.name)
    if other < 0.3 and arguments:
        yield _messages([(ask(ARGUMENTS, function, "arguments"), arguments)])
    elif other < 0.6 and result:
        yield _messages([(ask(RETURNS, function, "returns"), result)])
    elif other > 0.9:
        answer = f"`{function.name}` is in the module `{function.module}`."
        yield _messages([(ask(MODULE, function, "module"), answer)])


def _messages(turns: list[tuple[str, str]]) -> list[Message]:
    return [
        {"role": role, "content": content}
        for question, answer in turns
        for role, content in (("user", question), ("assistant", answer))
    ]
