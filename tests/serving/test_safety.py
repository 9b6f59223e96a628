import pytest
from helpers import flagged_picture
from PIL import Image

from finetuner.data import ImageFile
from finetuner.paths import WEIGHTS
from finetuner.serving import FlaggedError, load_safety_checker
from finetuner.serving.safety import FLAGGED_ABOVE

TRIGGER = flagged_picture()


@pytest.fixture(scope="module")
def checker():
    return load_safety_checker(wanted=True)


@pytest.mark.parametrize("tolerance", range(6))
def test_what_scores_high_is_flagged_in_the_words_that_clients_know(checker, tolerance):
    with pytest.raises(
        FlaggedError, match="^E005: The input or output was flagged as sensitive. image_prompt scores 0.99"
    ) as error:
        checker.check("image_prompt", TRIGGER, tolerance)
    assert f"safety_tolerance {tolerance}" in str(error.value)
    assert error.value.what == "image_prompt" and error.value.score > 0.98


def test_six_lets_all_pass_and_still_says_the_score(checker):
    assert checker.check("The image", TRIGGER, 6) > 0.98


def test_the_drawings_of_the_embedded_bases_pass_at_the_strictest(checker):
    for sheet in ("flux-emoji", "klein-emoji"):
        picture = Image.open(WEIGHTS / sheet / "sheet.png")
        assert checker.check("The image", picture, 0) < 0.05


def test_a_picture_between_two_levels_is_flagged_at_the_stricter_one(checker):
    """The more grey is mixed in, the lower the score: somewhere it lies between the ends of the table."""
    grey, low, high = Image.new("RGB", TRIGGER.size, (128, 128, 128)), 0.0, 1.0
    while True:
        blend = Image.blend(grey, TRIGGER.convert("RGB"), share := (low + high) / 2)
        score = checker.check("The image", blend, 6)
        if 0.3 < score < 0.8:
            break
        low, high = (share, high) if score < 0.5 else (low, share)
        assert high - low > 1e-4, "no such blend"
    passed = [tolerance for tolerance in FLAGGED_ABOVE if passes(checker, blend, tolerance)]
    assert passed == [tolerance for tolerance, limit in FLAGGED_ABOVE.items() if limit is None or score <= limit]
    assert not {0, 1} & set(passed) and {4, 5, 6} <= set(passed)


def passes(checker, picture: Image.Image, tolerance: int) -> bool:
    try:
        checker.check("The image", picture, tolerance)
    except FlaggedError:
        return False
    return True


def test_each_level_lets_more_pass_than_the_one_before():
    limits = [FLAGGED_ABOVE[tolerance] for tolerance in range(7)]
    assert limits[:-1] == sorted(set(limits[:-1])) and limits[-1] is None


def test_the_log_says_that_the_check_is_off(caplog):
    caplog.set_level("INFO")
    assert load_safety_checker(wanted=False) is None
    assert "Safety: off, by SAFETY=0" in caplog.text


def test_an_image_prompt_is_scored_once_and_judged_each_time(checker, monkeypatch, tmp_path):
    flagged_picture().save(tmp_path / "shown.png")
    scored, score = [], checker.classifier.score
    monkeypatch.setattr(checker.classifier, "score", lambda image: scored.append(1) or score(image))
    for tolerance in (6, 2, 1):
        file = ImageFile.read(tmp_path / "shown.png")
        if tolerance == 6:
            checker.check_image_prompt(file, tolerance)
        else:
            with pytest.raises(FlaggedError, match="^E005: .* image_prompt scores 0.99"):
                checker.check_image_prompt(file, tolerance)
    assert len(scored) == 1
