"""Tasks: items of four kinds, readers of published files, and the measures of any causal model on them."""
