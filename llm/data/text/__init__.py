"""Text itself: encodings, normal form, languages, words."""
