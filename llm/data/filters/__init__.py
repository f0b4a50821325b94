"""Rules that say whether a text is worth training on."""
