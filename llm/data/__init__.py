"""Text in, tokens out: sources, cleaning, tokenizer, shards, chat."""
