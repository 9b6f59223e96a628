import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image
from reports import NASTY, make

from finetuner.data.archive import Example
from finetuner.report.curve import FAINT, INK, draw_loss_curve
from finetuner.report.page import SHOWN, render_page
from finetuner.report.sheet import STRENGTHS, Sheet

LOADING = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background")


class Page(HTMLParser):
    """Elements with their attributes, and the text of all that is no style."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def pictures(self) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


def page_of(made) -> str:
    return render_page(made.summary, made.examples, made.sheet, draw_loss_curve(made.history, made.recipe))


def decoded(picture: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))).convert("RGB")


def test_the_page_loads_nothing_from_elsewhere(base):
    page = page_of(make(base, captions=(NASTY,)))
    parsed = Page(page)
    loaded = [value for _, attributes in parsed.elements for name, value in attributes.items() if name in LOADING]
    assert len(loaded) > 5 and all(address.startswith(("data:", "#")) for address in loaded)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in parsed.elements}
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", page)) and "@import" not in page
    (policy,) = [a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_what_users_wrote_is_shown_as_they_wrote_it(base):
    example = Example("<b>my</b> & 'dog'.png", Image.new("RGB", (60, 40)), NASTY)
    parsed = Page(page_of(make(base, trigger_word="<script>'\"&", examples=[example])))
    texts = [text.strip() for text in parsed.texts]
    assert NASTY in texts and example.name in texts and "<script>'\"& on a beach" in texts
    assert NASTY in [picture["alt"] for picture in parsed.pictures()]


def test_of_2000_images_some_are_shown_and_the_page_stays_small(base):
    photograph = Image.effect_noise((480, 360), 24).convert("RGB")
    examples = [
        Example(f"{number}.jpg", photograph, f"a photo of TOK, number {number}, " + 40 * "word ") for number in range(2000)
    ]
    sheet = Sheet(["a", "b", "c"], [[photograph] * len(STRENGTHS)] * 3)
    page = page_of(make(base, examples=examples, sheet=sheet))
    assert len(page) < 2 * 2**20
    parsed = Page(page)
    assert len(parsed.pictures()) == SHOWN + 3 * len(STRENGTHS)
    assert any(f"And {2000 - SHOWN:,} more" in text for text in parsed.texts)


def test_every_image_of_a_few_is_shown_whole(base):
    parsed = Page(page_of(make(base, captions=("one", "two", "three"))))
    assert [(int(p["width"]), int(p["height"])) for p in parsed.pictures()[-3:]] == [(60, 40)] * 3
    assert not any("more. All captions" in text for text in parsed.texts)


def test_small_pictures_are_shown_pixel_by_pixel_and_exact_and_large_ones_smooth(base):
    made = make(base)
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    large = Image.new("RGB", (900, 600), "red")
    made.sheet.rows[0][0] = noise
    made.examples = [Example("large.jpg", large, "TOK")]
    pictures = Page(page_of(made)).pictures()
    assert pictures[0]["class"] == "few-pixels" and decoded(pictures[0]).tobytes() == noise.tobytes()
    assert pictures[-1]["class"] == "" and decoded(pictures[-1]).size == (240, 160)


def test_the_curve_takes_the_colours_of_the_page(base):
    page = page_of(make(base))
    curve = page[page.index("<svg") : page.index("</svg>")]
    assert "var(--accent)" in curve and "var(--ink)" in curve
    assert INK not in curve and FAINT not in curve and "prefers-color-scheme: dark" in page


def test_the_page_says_what_people_ask_for(base):
    texts = " ".join(Page(page_of(make(base))).texts)
    for said in (
        "93.0%",
        "60.2",
        "2.00 GiB",
        "logistic",
        "FINETUNE_ID",
        "Apache-2.0",
        "finetune_strength 1",
        "load_lora_weights",
    ):
        assert said in texts
