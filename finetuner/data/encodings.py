"""Bytes in an encoding that nobody names -> text, and the guess said.

UTF-8 is told with certainty. The encodings of before it are guessed, by charset-normalizer and, among those that it finds
possible, by how common the characters are that come out: a caption or a file's name is too short for statistics of language.
Texts that belong together are guessed together, for most archives are of one encoding.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from charset_normalizer import from_bytes

# In the order that decides where nothing else does.
TEXT_ENCODINGS = (
    *("cp1252", "cp1251", "gb18030", "cp932", "cp949", "big5", "euc_jp", "koi8_r", "cp1254", "cp1250", "cp1253", "cp1255"),
    *("cp1256", "cp874"),
)
NAME_ENCODINGS = ("cp437", "cp850", "cp866", "cp852", *TEXT_ENCODINGS)  # Windows packs names in MS-DOS's encoding
SAMPLE_BYTES = 8 * 2**10  # more makes no guess more certain

# Two thirds of the letters of any text in Russian, Greek, Hebrew, Arabic, Thai.
FREQUENT = {
    **dict.fromkeys(("cp1251", "cp866", "koi8_r"), "оеаинтсрвл"),
    **{"cp1253": "αοιετσνηυρ", "cp1255": "יוהלאמרתבש", "cp1256": "اليمونترعه", "cp874": "านรอกเงลยม"},
}
WESTERN = "àâäáãåæçèéêëìíîïñòóôöõøœùúûüÿßšž"
CENTRAL = "áâăäąćčçďđéęěëíîĺľłńňóôőöŕřśšşťţúůűüýźžż"
TURKISH = "âçğ\u0131îöşûü"
LATIN = {"cp437": WESTERN, "cp850": WESTERN, "cp852": CENTRAL, "cp1252": WESTERN, "cp1250": CENTRAL, "cp1254": TURKISH}
SCRIPTS = {"cp1253": "GREEK", "cp1255": "HEBREW", "cp1256": "ARABIC", "cp874": "THAI"}  # the others': Cyrillic
# Where the characters that everybody writes begin and end, by their first byte in the standard of each script.
FREQUENT_LEADS = {
    "gb18030": ("gb2312", range(0xB0, 0xD8)),
    "big5": ("big5", range(0xA4, 0xC7)),
    "cp949": ("euc_kr", range(0xB0, 0xC9)),
    "cp932": ("shift_jis", range(0x88, 0x98)),
    "euc_jp": ("shift_jis", range(0x88, 0x98)),
}


def guess_encoding(texts: list[bytes], encodings: tuple[str, ...]) -> str | None:
    """The one of ``encodings`` in which all the texts are most probably written; None where they are in none of them."""
    sample = b""
    for text in sorted(set(texts), key=len):
        if len(sample) + len(text) > SAMPLE_BYTES:
            sample = sample or text[:SAMPLE_BYTES].rpartition(b"\n")[0] or text[:SAMPLE_BYTES]
            break
        sample += text + b"\n"
    possible = [encoding for encoding in encodings if all(decodes(text, encoding) for text in texts)]
    if not possible:
        return None
    found = from_bytes(sample, cp_isolation=possible, threshold=0.5)
    ranks = {name: rank for rank, match in enumerate(found) for name in match.could_be_from_charset}
    worst = len(ranks)
    long = sum(byte > 127 for byte in sample) >= 30
    return max(
        possible,
        key=lambda e: (round(_commonness(sample, e), 2), -ranks.get(e, worst) if long else 0, -encodings.index(e)),
    )


def guess_unknown(texts: list[bytes], encodings: tuple[str, ...]) -> tuple[set[bytes], str | None]:
    """Those of the texts that are in an encoding other than UTF-8, and which it is, if they are all in one.

    A Chinese word of up to four characters looks like UTF-8 now and then: where most texts are not, it is taken for Chinese.
    """
    spelt = {text for text in texts if not text.isascii()}
    unknown = {text for text in spelt if not decodes(text, "utf-8")}
    if unknown and 2 * len(unknown) >= len(spelt):
        doubtful = unknown | {text for text in spelt if sum(byte > 127 for byte in text) <= 8}
        if encoding := guess_encoding(list(doubtful), encodings):
            return doubtful, encoding
    return unknown, guess_encoding(list(unknown), encodings) if unknown else None


def decodes(text: bytes, encoding: str) -> bool:
    """Whether a text may be in an encoding."""
    try:
        text.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _commonness(sample: bytes, encoding: str) -> float:
    """How common the characters beyond ASCII are, in what the sample says in an encoding: from 0 to 1."""
    text = f" {sample.decode(encoding, errors='replace')} "
    weights = [_weight(text, at, encoding) for at in range(1, len(text) - 1) if not text[at].isascii()]
    mean = sum(weights) / max(1, len(weights))
    # Every second Chinese character looks like a frequent Korean one: one alone says nothing, and five are no chance.
    return mean * (1 - 0.5 ** len(weights)) if encoding == "cp949" else mean


def _weight(text: str, at: int, encoding: str) -> float:
    before, character, after = text[at - 1], text[at], text[at + 1]
    if encoding in FREQUENT_LEADS:
        return _weight_in_east_asia(character, encoding)
    if character in "\u2018\u2019\u201c\u201d\u201e\u2013\u2014\u2026":
        return 0.9
    if encoding in LATIN:
        if character in "°©®£€§½²·«»µ\u00d7¿¡":
            return 0.8
        if character.lower() not in LATIN[encoding] or (character.isupper() and before.islower()):
            return 0.0
        return 1.0 if (before + after).isascii() and re.search("[A-Za-z]", before + after) else 0.4
    script = SCRIPTS.get(encoding, "CYRILLIC")
    if not unicodedata.name(character, "").startswith(script) or re.search("[A-Za-z]", before + after):
        return 0.0
    weight = 1.0 if character.lower() in FREQUENT[encoding] else 0.7
    return weight if not character.isupper() else weight * (0.3 if before.islower() else 0.9)


@cache
def _weight_in_east_asia(character: str, encoding: str) -> float:
    if "\u3000" <= character <= "\u303f" or "\uff01" <= character <= "\uff5e":
        return 0.7
    if encoding in ("cp932", "euc_jp") and "\u3040" <= character <= "\u30ff":
        return 1.0
    if "\uff66" <= character <= "\uff9f":
        return 0.4  # half-width katakana: rarely meant, and what the bytes of other encodings look like
    standard, leads = FREQUENT_LEADS[encoding]
    try:
        return (1.0 if encoding == "cp949" else 0.9) * (character.encode(standard)[0] in leads)
    except UnicodeEncodeError:
        return 0.0
