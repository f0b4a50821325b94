"""Serving: a packaged release behind an OpenAI-compatible API, a chat page and a terminal chat."""
