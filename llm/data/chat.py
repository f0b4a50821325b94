"""Conversations to ids and loss weights, in ChatML: the ids that `transformers.apply_chat_template` gives.

Template pieces and content are encoded apart, so that no content can forge a turn; but for the line break before a
content, which may share a token with the line breaks that the content begins with.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from llm.config import ConfigError
from llm.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
Row = tuple[list[int], list[float]]  # ids, and how much each counts when it is the target


def render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> Row:
    """Return (ids, weights) of a conversation.

    Args:    messages: {"role", "content"}, in order.  add_generation_prompt: end with an opened assistant turn.
    Returns: two lists of equal length; the weight is 1 on what the assistant must produce: its content and <|im_end|>.
    Raises:  ConfigError: an unknown role.
    """
    contents = (tokenizer.encode("\n" + message["content"]) for message in messages)
    ids, weights = _join_turns(tokenizer, [message["role"] for message in messages], contents)
    if add_generation_prompt:
        opening = [tokenizer.im_start_id, *tokenizer.encode("assistant"), *tokenizer.encode("\n")]
        ids += opening
        weights += [0] * len(opening)
    return ids, weights


def render_batch(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    weights: Sequence[Sequence[float] | None] | None = None,
) -> list[Row]:
    """Return `render` of many conversations; their contents are encoded in parallel.

    `weights` has for each conversation those of its assistant's messages in turn, or None where all are 1.
    """
    flat = ["\n" + message["content"] for messages in conversations for message in messages]
    contents = iter(tokenizer.encode_batch(flat))
    roles = [[message["role"] for message in messages] for messages in conversations]
    return [
        _join_turns(tokenizer, one, contents, None if said is None else iter(said))
        for one, said in zip(roles, weights or [None] * len(roles), strict=True)
    ]


def _join_turns(
    tokenizer: Tokenizer, roles: Sequence[str], contents: Iterable[list[int]], said: Iterator[float] | None = None
) -> Row:
    """Return (ids, weights) of turns; as many contents, each after a line break, are taken as there are roles.

    A token that the line break shares with the content is the content's.
    """
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    weights: list[float] = []
    for role, content in zip(roles, contents, strict=False):  # roles first: the contents may go on with the next talk
        if role not in ROLES:
            raise ConfigError(f"role {role!r}: allowed are {', '.join(ROLES)}")
        start = len(newline) if content[: len(newline)] == newline else 0
        opening = [tokenizer.im_start_id, *tokenizer.encode(role), *content[:start]]
        answer = [*content[start:], tokenizer.im_end_id]
        weight = 0.0 if role != "assistant" else 1.0 if said is None else next(said)
        ids += [*opening, *answer, *newline]
        weights += [0.0] * len(opening) + [weight] * len(answer) + [0.0] * len(newline)
    return ids, weights
