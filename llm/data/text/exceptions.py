"""English words that are not split by their signs alone: contractions, abbreviations, units, emoticons."""

# ruff: noqa: SIM905 (a list of words reads best as words)
MERGED = 1 << 30  # stands as one word also where its signs have been taken apart
UNIT = 1 << 31  # stands apart after a digit; no word of its own here

_SUBJECTS = "i you he she it we they that there these those this who what when where why how".split()
_SUBJECT_ENDINGS = ["d", "d've", "ll", "ll've", "s", "ve", "re", "m"]
_AUXILIARIES = (
    "ai are ca could dare did do does had has have is may might must need ought sha should was were wo would".split()
)
# With the apostrophe left out these are other words.
_OTHER_WORDS = {"ill", "its", "hell", "shell", "shed", "were", "well"}
_NEVER = {"i": {"s", "re"}, "he": {"ve", "re"}, "she": {"ve", "re"}, "it": {"ve", "re"}, "this": {"re", "ve"},
          "that": {"re", "ve"}, "you": {"s"}, "we": {"s"}, "they": {"s"}, "these": {"s"}, "those": {"s"}}  # fmt: skip
_ABBREVIATIONS = (
    "a.m. p.m. e.g. i.e. E.g. E.G. I.e. I.E. vs. v.s. Mr. Mrs. Ms. Dr. Prof. St. Mt. Jr. Sr. Inc. Ltd. Co. co. Corp. "
    "Bros. Gen. Gov. Rep. Rev. Sen. Adm. Messrs. Ph.D. D.C. N.C. N.D. N.H. N.J. N.M. N.Y. S.C. Jan. Feb. Mar. Apr. "
    "Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. "
    "Kan. Ky. La. Mass. Md. Mich. Minn. Miss. Mo. Mont. Neb. Nev. Okla. Ore. Pa. Tenn. Va. Wash. Wis. "
    "and/or w/o c'mon y'all o'clock ma'am C++ '' ’’"
).split()
_EMOTICONS = (
    "(-: (: (; (= ): )-: :( :(( :() :) :)) :* :-( :-) :-* :-/ :-> :-D :-P :-] :-o :-p :-x :-| :-} :/ :0 :1 :3 :> :D :O "
    ":P :X :] :o :p :x :| :} ;) ;-) ;D =( =) =/ =3 =D =[ =] =| [: [= ]= <3 8) 8-) 8D -_- ^_^ o_o o.o O.O v.v V_V xD "
    ">.< <.< >:( \\\") \\t \\n 0_0 0.0 (o: :o) '' ’’"
).split()
_UNITS = (
    "km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa "
    "mbar mb MB kb KB gb GB tb TB T G M K %"
).split()


def list_exceptions() -> dict[str, int]:
    """Return each exception with its cuts: the lengths of its first pieces, 8 bits each, the last one left out."""
    found = dict.fromkeys(_UNITS, UNIT)
    for stem, endings in _list_contractions():
        for word, cut in _spell(stem, endings):
            found[word] = cut
    for hour in range(1, 13):
        for half in ("am", "pm", "a.m.", "p.m."):
            found[f"{hour}{half}"] = len(str(hour))
    for letter in "abcdefghijklmnopqrstuvwxyz":
        found[letter + "."] = MERGED
    for first, second in (("can", "not"), ("gon", "na"), ("got", "ta")):
        for form in (first, first.title()):
            found[form + second] = len(first)
    found.update(dict.fromkeys(_ABBREVIATIONS, 0))
    found.update(dict.fromkeys(_EMOTICONS, MERGED))
    return found


def _list_contractions() -> list[tuple[str, list[str]]]:
    """Return stems with the endings that may follow them, in turn."""
    pairs = [(stem, ending.split("'")) for stem in _SUBJECTS for ending in _SUBJECT_ENDINGS]
    pairs = [(stem, e) for stem, e in pairs if (e != ["m"] or stem == "i") and e[0] not in _NEVER.get(stem, ())]
    pairs += [(stem, ["n't", *more]) for stem in _AUXILIARIES for more in ([], ["ve"])]
    pairs += [(stem, ["ve"]) for stem in ("could", "might", "must", "should", "would", "not")]
    return [*pairs, ("let", ["s"])]


def _spell(stem: str, endings: list[str]) -> list[tuple[str, int]]:
    """Return the spellings of a contraction with its cuts: with either apostrophe, and without."""
    spellings = []
    for mark in ("'", "’", ""):
        pieces = [ending.replace("'", mark) if "'" in ending else mark + ending for ending in endings]
        lengths = [len(one) for one in (stem, *pieces)][:-1]
        cut = sum(size << 8 * i for i, size in enumerate(lengths))
        for form in (stem, stem.title()):
            word = form + "".join(pieces)
            if mark or (word.lower() not in _OTHER_WORDS and stem != "let"):
                spellings.append((word, cut))
    return spellings
