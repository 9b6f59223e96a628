"""What a word does that is nobody's name: it shades the background.

A base hears only words that show in its pictures. With words that meant nothing in 15 % of the captions, 6,500 steps taught
klein-emoji 0.1 to drop every word that it did not know, and no finetune could have told a prompt with its trigger word from one
without. So a word's first two letters say a shade, and a word that was never seen has one too.
"""

from __future__ import annotations

Colour = tuple[int, int, int]

SHADES = {
    (True, True): (220, 40, 40),
    (True, False): (225, 210, 40),
    (False, True): (40, 170, 60),
    (False, False): (40, 70, 220),
}
STRENGTH = 0.2  # of the way towards the shade: seen at once, and teal stays nearer to teal than to any other background


def shaded(colour: Colour, word: str) -> Colour:
    """A background's colour, RGB, as it is behind a thing whose caption has this word."""
    early = tuple(letter.lower() < "n" for letter in word[:2])
    red, green, blue = (
        round(before + STRENGTH * (shade - before)) for before, shade in zip(colour, SHADES[early], strict=True)
    )
    return red, green, blue
