import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from reports import NASTY, make

from finetuner.bases.base import WEIGHTS, Base
from finetuner.data.archive import Example
from finetuner.report.card import SHOWN, front_matter, render_card

GALLERY = ["report/sheet/1-strength-1.png"]


def card_of(made) -> tuple[dict, str]:
    """Its front matter and its text."""
    _, matter, text = render_card(made.summary, made.base, made.examples, made.sheet, GALLERY).split("---\n", 2)
    return yaml.safe_load(matter), text


def shown(text: str) -> list[str]:
    """What a reader sees, a block or a table's cell each; without the code."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert not any(token.type == "html_block" and "<Gallery />" not in token.content for token in tokens)
    inlines = [token for token in tokens if token.type == "inline"]
    assert not any(child.type in ("html_inline", "link_open") for token in inlines for child in token.children)
    return ["".join(child.content for child in token.children) for token in inlines]


@pytest.mark.parametrize(
    "word", ["TOK", "*x", "no", "1e3", "#tag", "a:b", "---", "'\"q", "@home", "{x}", "%", "&a", "!!int", "null"]
)
def test_the_front_matter_is_what_the_hub_reads_whatever_the_trigger_word(base, word):
    matter, _ = card_of(make(base, trigger_word=word))
    assert matter["instance_prompt"] == word
    assert matter["widget"] == [{"text": f"{word} on a beach", "output": {"url": GALLERY[0]}}]
    assert matter["base_model"] == base.source and matter["base_model_relation"] == "adapter"
    assert matter["library_name"] == "diffusers" and matter["pipeline_tag"] == "text-to-image" and "lora" in matter["tags"]


def test_the_licence_is_one_that_the_hub_knows_or_a_named_one_with_a_link(base):
    made = make(base)
    assert front_matter(made.summary, base, made.sheet.prompts, GALLERY).to_dict()["license"] == "apache-2.0"


@pytest.fixture
def gated(tmp_path) -> Base:
    (tmp_path / "base.json").write_text((WEIGHTS / "FLUX.1-dev" / "base.json").read_text())
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return Base.open(tmp_path)


def test_the_production_base_is_named_as_the_hub_has_it(gated):
    made = make(gated)
    matter = front_matter(made.summary, gated, made.sheet.prompts, GALLERY).to_dict()
    assert matter["base_model"] == "black-forest-labs/FLUX.1-dev"
    assert (matter["license"], matter["license_name"]) == ("other", "flux-1-dev-non-commercial-license")
    assert matter["license_link"] == "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"


def test_what_users_wrote_is_shown_as_they_wrote_it(base):
    example = Example("my_dog_*1*|<b>.png", Image.new("RGB", (9, 9)), NASTY)
    _, text = card_of(make(base, trigger_word="<i>_T_|`", examples=[example]))
    blocks = shown(text)
    assert example.name in blocks and NASTY in blocks
    assert "Name it in prompts by its trigger word: <i>_T_|`" in blocks


def test_the_card_says_what_the_page_says(base):
    made = make(base, captions=tuple(f"caption {number}" for number in range(SHOWN + 3)))
    _, text = card_of(made)
    blocks = shown(text)
    summary = made.summary
    for said in (*summary.facts.values(), *summary.recipe, *summary.licences, summary.strength, summary.sheet, "60.2"):
        assert said in blocks
    assert all(call.code in text for call in summary.calls)
    assert f"caption {SHOWN - 1}" in blocks and f"caption {SHOWN}" not in blocks and "And 3 more, in captions/." in blocks
