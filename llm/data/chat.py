"""Conversations to ids and loss mask, in ChatML.

Template pieces and content are encoded apart, so that no content can forge a turn.
"""

from collections.abc import Mapping, Sequence

from llm.config import ConfigError
from llm.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")


def render(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Return (ids, mask) of a conversation.

    Args:    messages: {"role", "content"}, in order.  add_generation_prompt: end with an opened assistant turn.
    Returns: two lists of equal length; mask is 1 on what the assistant must produce: its content and <|im_end|>.
    Raises:  ConfigError: an unknown role.
    """
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    mask: list[int] = []

    def add(piece: list[int], learn: bool) -> None:
        ids.extend(piece)
        mask.extend([int(learn)] * len(piece))

    for message in messages:
        role = message["role"]
        if role not in ROLES:
            raise ConfigError(f"role {role!r}: allowed are {', '.join(ROLES)}")
        learn = role == "assistant"
        add([tokenizer.im_start_id, *tokenizer.encode(role), *newline], False)
        add([*tokenizer.encode(message["content"]), tokenizer.im_end_id], learn)
        add(newline, False)
    if add_generation_prompt:
        add([tokenizer.im_start_id, *tokenizer.encode("assistant"), *newline], False)
    return ids, mask
