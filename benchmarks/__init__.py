"""Side-by-side measurements against installable peers, in a venv of their own (`make bench NAME=...`)."""
