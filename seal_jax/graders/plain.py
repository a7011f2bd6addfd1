"""A text in one spelling, whatever its accents, widths, digits and quotation marks were."""

from __future__ import annotations

import re
import unicodedata

from seal_jax.graders.words import LISTS

_LETTERS = str.maketrans(LISTS["letters"])
_SUPERSCRIPTS = re.compile(r"(?<=\d)([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff々"


def plain(text: str) -> str:
    """The text without accents and in one width; fractions, superscripts, dashes and digits as ASCII has them."""
    if text.isascii():
        return text
    text = _SUPERSCRIPTS.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[1]), text)
    text = "".join(" " + c if unicodedata.numeric(c, 0) % 1 else c for c in text)  # 3½ is 3 1/2
    text = unicodedata.normalize("NFKC", text).translate(_LETTERS)
    kept: list[str] = []
    for c in unicodedata.normalize("NFD", text):
        if (
            not unicodedata.combining(c)
            or not kept
            or not unicodedata.name(kept[-1], "").startswith(("LATIN", "GREEK"))
        ):
            kept.append(c)
    text = unicodedata.normalize("NFC", "".join(kept))
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() and not c.isascii() else c for c in text)
