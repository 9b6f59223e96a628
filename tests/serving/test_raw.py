from dataclasses import replace

import pytest

from finetuner.serving import raw_look, require_raw
from finetuner.serving.raw import RAW_WORDS


def test_the_prompt_stays_first_and_the_guidance_falls(caplog):
    caplog.set_level("INFO")
    prompt, guidance = raw_look("a portrait of TOK. ", 3.0)
    assert prompt == f"a portrait of TOK, {RAW_WORDS}" and guidance == pytest.approx(2.0)
    assert f"', {RAW_WORDS}', and guidance 3 becomes 2" in caplog.text


def test_a_base_without_guidance_gets_the_words_alone_and_the_log_says_so(caplog):
    caplog.set_level("INFO")
    prompt, guidance = raw_look("TOK", None)
    assert prompt == f"TOK, {RAW_WORDS}" and guidance is None
    assert "takes no guidance that could be lowered" in caplog.text


def test_only_a_base_that_draws_photographs_has_it(base, klein_base):
    with pytest.raises(ValueError, match="^raw: .*flux-emoji draws emoji. Send false"):
        require_raw(base)
    require_raw(replace(klein_base, pictures="photographs"))
