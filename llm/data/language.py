def identify_languages(texts): return [("en", 1.0)] * len(texts)
