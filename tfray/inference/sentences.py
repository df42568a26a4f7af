"""Long texts -> sentences, by their punctuation; targets of sentences -> one target.

A sentence ends with . ! ? or … (with closing quotes and brackets after it), before white space and
something that does not go on in lower case; with the full-width marks of Chinese and Japanese wherever
they stand; with the danda of Indic scripts; and at a blank line. After an abbreviation, an initial, or (in
German, for one) an ordinal number no sentence ends. Short letters with full stops between them are an
abbreviation in any language, also with spaces (z. B., т. е., m.in.).
"""

from __future__ import annotations

import re

ABBREVIATIONS = {
    "en": "mr mrs ms dr prof st jr sr vs etc e.g i.e cf al fig no vol pp inc ltd co corp dept gen col capt lt sgt rev "
    "hon jan feb mar apr jun jul aug sep sept oct nov dec a.m p.m u.s u.k approx est ed eds",
    "de": "dr prof hr fr nr z.b d.h u.a usw bzw ca evtl ggf inkl vgl s st str abs art bd hrsg jh mio mrd tel o.ä u.ä "
    "i.d.r z.t v.a v.chr n.chr u v n jan feb mär apr jun jul aug sep okt nov dez",
    "fr": "m mm mme mlle dr pr me st ste cf etc p.ex d av apr env éd fig janv févr avr juil sept oct nov déc",
    "es": "sr sra srta dr dra d da ud uds etc p.ej pág págs núm art av ej ene feb mar abr jun jul ago sep oct nov dic",
    "it": "sig sig.ra dott prof ing avv ecc es pag pagg art n cfr",
    "pt": "sr sra dr dra prof profa etc p.ex ex pág núm art av",
    "nl": "dhr mevr dr prof ir bijv d.w.z enz blz nr art ca",
    "pl": "np tzn tj dr prof mgr inż ul św nr str tzw zob por",
    "ru": "проф акад ул стр рис см ср напр",
}
ORDINALS = {"de", "da", "no", "nb", "fi", "cs", "sk", "hu", "pl", "hr", "sl", "et"}  # write 3. for third
# German, for they alone are capitalized: after a number of a text of which nobody says the language.
MONTH = re.compile(
    r"(?:Jan(uar)?|Feb(ruar)?|März|Apr(il)?|Mai|Jun[io]?|Jul[io]?|Aug(ust)?|Sept?(ember)?|Okt(ober)?|Nov(ember)?"
    r"|Dez(ember)?)\b"
)
# A mark, its closing quotes; then white space (not after full-width marks), or the end of a paragraph. A row of
# marks is looked at from its first one alone, and nothing of it is given back, else long rows take quadratic time: a
# group that was looked ahead at is taken as it was found (Python 3.10 has no other way).
END = re.compile(
    r"(?<![.!?…])(?=([.!?…]+[\"'”’»)\]]*))\1(?=\s+\S)"
    r"|(?<![。！？｡])(?=([。！？｡]+[”’」』）\"']*))\2(?!$)"
    r"|(?<![।॥؟۔])(?=([।॥؟۔]+))\3(?=\s+\S)"
    r"|\n\s*\n"
)
CJK = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")
# With the letters before it that have a full stop and a space each, as the z of z. B.
LAST_WORD = re.compile(r"(?:(?<![\w.])[^\W\d_]\.[^\S\n]+(?=[^\W\d_]))*[\w.]+(?=[.!?…]+[\"'”’»)\]]*$)")
SHORT_PARTS = re.compile(r"[^\W\d_]{1,2}(?:\.[^\W\d_]{1,2})+")
LETTER_OR_NUMBER = re.compile(r"[^\W\d_]\.|\d")


def split_sentences(text: str, language: str | None = None) -> list[str]:
    """Return a text's sentences in order, without the white space around them; a text of none is one."""
    names = abbreviations(language)
    sentences, start = [], 0
    for match in END.finditer(text):
        if ends_sentence(text, start, match.end(), names, language):
            sentences.append(text[start : match.end()])
            start = match.end()
    sentences.append(text[start:])
    return [stripped for sentence in sentences if (stripped := sentence.strip())] or [text]


def abbreviations(language: str | None) -> frozenset[str]:
    """Return the abbreviations of a language, of all where none is given; none where it has none here."""
    known = ABBREVIATIONS.values() if language is None else [ABBREVIATIONS.get(language.lower()[:2], "")]
    return frozenset(word for words in known for word in words.split())


def ends_sentence(text: str, start: int, stop: int, names: frozenset[str], language: str | None) -> bool:
    """Say whether a mark that ends at a place ends a sentence there."""
    following = text[stop : stop + 50].lstrip()
    if "\n" in text[stop - 1 : stop]:
        return True
    if following[:1].islower():
        return False
    word = LAST_WORD.search(text, max(start, stop - 40), stop)
    mark = text[max(start, stop - 40) : stop].rstrip("\"'”’»)]")
    if word is None or not mark.endswith(".") or text.endswith("..", 0, stop):
        return True
    parts = word.group().rstrip(".").split() or [""]
    if parts[-1].isdigit():
        return not is_ordinal(following, language)
    return not is_abbreviation(parts, following, names)


def is_ordinal(following: str, language: str | None) -> bool:
    """Say whether a number with a full stop is an ordinal, from what follows it."""
    return bool(MONTH.match(following)) if language is None else language.lower()[:2] in ORDINALS


def is_abbreviation(parts: list[str], following: str, names: frozenset[str]) -> bool:
    """Say whether what ends with a full stop is cut short: a known one, an initial, short parts (z.B), or a letter
    before another one or a number (z. B., p. 5); `parts` are such letters, then the last word."""
    last, whole = parts[-1], "".join(parts)
    if len(last) == 1 and (last.isupper() or LETTER_OR_NUMBER.match(following)):
        return True
    is_short = whole[:1].islower() and bool(SHORT_PARTS.fullmatch(whole))
    return is_short or not names.isdisjoint({last.lower(), whole.lower()})


def join_sentences(targets: list[str]) -> str:
    """Return targets one after the other, with a space between them unless both sides of it are Chinese or Japanese."""
    text = ""
    for target in targets:
        is_tight = bool(CJK.match(text[-1:])) and bool(CJK.match(target[:1]))
        text += target if is_tight or not text or not target else f" {target}"
    return text
