"""prompt_upsampling: a captioner's language model says more of what a prompt leaves open, as text alone."""

from __future__ import annotations

import logging
import re
from functools import cached_property

from cachetools import LRUCache

from finetuner.bases import Base
from finetuner.data.captioner import CAPTIONERS, Captioner, generate_texts
from finetuner.data.captions import SECOND_MENTION, SUBJECT, cut_to_length, mentions
from finetuner.paths import WEIGHTS

log = logging.getLogger(__name__)

INSTRUCTION = (
    "Rewrite the user's prompt for an image generator so that it says more. Keep its words: every thing, place, colour, number"
    f" and style that it names stays as it is, and {SUBJECT}, which stands for something that the generator alone knows, stays"
    " in its place. Say after them what the prompt leaves open: the composition, the light, the background, the detail. Add no"
    " second subject and no writing. Answer with the new prompt alone, in at most 60 words."
)
REMEMBERED = 256  # prompts: the next seed need not wait for the same again
PASSING_BYTES = 1 << 30  # beside the weights, while it writes: a model of 4 B keeps 0.1 MB of every token it has read
MAX_TOKENS = 160  # 60 words, and room for those that are spelt
# Words that a rewriting may drop without changing what is asked for.
SMALL_WORDS = {
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "in", "into", "is", "it", "its", "of", "on", "or", "over",
    "some", "that", "the", "their", "this", "to", "under", "with", "without",
}  # fmt: skip
STEM = 4  # letters of a word that its other forms share: "photo" and "photograph", "painting" and "painted"


class PromptUpsampler:
    """Rewrites prompts for one base. Its model stays on the device where that has room for it; elsewhere it waits on the CPU,
    from the first prompt on, and comes to the device layer by layer."""

    def __init__(self, base: Base, captioner: Captioner, bytes_left: int):
        self.base, self.captioner = base, captioner
        self.streamed = captioner.weight_bytes + PASSING_BYTES > bytes_left
        self.upsampled: LRUCache[tuple[str, str, str], str] = LRUCache(REMEMBERED)

    @classmethod
    def open(cls, base: Base, bytes_left: int) -> PromptUpsampler:
        """With the captioner that ``CAPTION_MODEL`` names, else the production one where it was downloaded, else the embedded
        one; loads no weights.

        Args:
            bytes_left: what the device has for the captioner, beside all else.

        Raises:
            ValueError: ``CAPTION_MODEL`` names none that is here; or it is not set, and the default does not know the kind of
                pictures that the base draws.
        """
        folder, reason = CAPTIONERS.choose(WEIGHTS)
        captioner = Captioner.open(folder)
        if base.pictures not in captioner.pictures and not CAPTIONERS.is_chosen():
            raise ValueError(
                f"prompt_upsampling: {base.name} is for {base.pictures}, and the language model here, {captioner.name}, knows"
                f" {' and '.join(captioner.pictures)} alone. Run script/download-weights {CAPTIONERS.production[0]}, or send"
                " prompt_upsampling false."
            )
        log.info("Prompts are upsampled by %s %s (%s)", captioner.name, captioner.version, reason)
        return cls(base, captioner, bytes_left)

    def prepare(self) -> None:
        """Load the model, where it will stay on the device: the first who asks need not wait for it."""
        if not self.streamed:
            _ = self._loaded

    @cached_property
    def _loaded(self) -> tuple:
        return self.captioner.load(self.streamed)

    def upsample(self, prompt: str, trigger_word: str, mode: str) -> str:
        """The prompt, longer, with the trigger word in it exactly once; greedy, so that it is the same every time.

        A rewriting that is empty, repeats itself, was made of numbers that are not finite or lost a word of the prompt is not
        taken: then it is the prompt as it was, with a warning.

        Args:
            mode: the finetune's: where the trigger word is put if neither prompt nor rewriting has it.
        """
        key = prompt, trigger_word, mode
        if key not in self.upsampled:
            self.upsampled[key] = self._upsample(*key)
        longer = self.upsampled[key]
        log.info("Prompt, upsampled by %s: %s", self.captioner.name, longer)
        return longer

    def _upsample(self, prompt: str, trigger_word: str, mode: str) -> str:
        asked = replace_mentions(prompt, trigger_word, SUBJECT, SUBJECT)
        conversation = [
            {"role": "system", "content": [{"type": "text", "text": INSTRUCTION}]},
            {"role": "user", "content": [{"type": "text", "text": asked}]},
        ]
        (said,) = generate_texts(*self._loaded, [conversation], MAX_TOKENS)
        if said is None:
            return self._as_it_was(prompt, "came out empty, repeated itself or was made of numbers that are not finite")
        if lost := lost_words(asked, said):
            return self._as_it_was(prompt, f"lost {', '.join(lost)}")
        said = replace_mentions(said, trigger_word, SUBJECT, SUBJECT)
        longer = replace_mentions(said, SUBJECT, trigger_word, SECOND_MENTION[mode])
        longer = cut_to_length(longer, trigger_word, mode, self.base.characters_read)
        if lost := lost_words(prompt, longer):
            return self._as_it_was(prompt, f"lost {', '.join(lost)} where it was cut to what the text encoder reads")
        return longer

    def _as_it_was(self, prompt: str, why: str) -> str:
        log.warning("prompt_upsampling: the rewriting %s; the prompt is drawn as it was sent", why)
        return prompt


def replace_mentions(text: str, word: str, first: str, later: str) -> str:
    """The text with another word for the first mention of ``word``, and for those after it."""
    found = list(mentions(text, word))
    for number, mention in reversed(list(enumerate(found))):
        text = text[: mention.start()] + (later if number else first) + text[mention.end() :]
    return text


def lost_words(prompt: str, longer: str) -> list[str]:
    """The prompt's words of any weight that ``longer`` has in no form."""
    said = set(_words(longer))
    return [word for word in dict.fromkeys(_words(prompt)) if word not in SMALL_WORDS and not _is_kept(word, said)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _is_kept(word: str, said: set[str]) -> bool:
    if len(word) <= STEM:  # "car" is no form of "carpet"
        return not said.isdisjoint((word, f"{word}s", f"{word}es"))
    return any(other.startswith(word[: max(STEM, len(word) - 3)]) for other in said)
