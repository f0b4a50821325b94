"""Conversations to ids and loss mask, in ChatML.

Template pieces and content are encoded apart, so that no content can forge a turn.
"""

from collections.abc import Iterable, Mapping, Sequence

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
    contents = (tokenizer.encode(message["content"]) for message in messages)
    ids, mask = _join_turns(tokenizer, [message["role"] for message in messages], contents)
    if add_generation_prompt:
        opening = [tokenizer.im_start_id, *tokenizer.encode("assistant"), *tokenizer.encode("\n")]
        ids += opening
        mask += [0] * len(opening)
    return ids, mask


def render_batch(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Mapping[str, str]]]
) -> list[tuple[list[int], list[int]]]:
    """Return `render` of many conversations; their contents are encoded in parallel."""
    flat = [message["content"] for messages in conversations for message in messages]
    contents = iter(tokenizer.encode_batch(flat))
    roles = [[message["role"] for message in messages] for messages in conversations]
    return [_join_turns(tokenizer, one, contents) for one in roles]


def _join_turns(
    tokenizer: Tokenizer, roles: Sequence[str], contents: Iterable[list[int]]
) -> tuple[list[int], list[int]]:
    """Return (ids, mask) of turns; as many contents are taken as there are roles."""
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    mask: list[int] = []
    for role, content in zip(roles, contents, strict=False):  # roles first: the contents may go on with the next talk
        if role not in ROLES:
            raise ConfigError(f"role {role!r}: allowed are {', '.join(ROLES)}")
        opening = [tokenizer.im_start_id, *tokenizer.encode(role), *newline]
        said = [*content, tokenizer.im_end_id]
        ids += [*opening, *said, *newline]
        mask += [0] * len(opening) + [int(role == "assistant")] * len(said) + [0] * len(newline)
    return ids, mask
