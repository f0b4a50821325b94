"""Personal data and secrets: found, replaced, measured, and looked for again."""
