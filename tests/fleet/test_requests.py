from pathlib import Path

import pytest

from finetuner.requests import FinetuneRequest, ImageRequest
from fleet.requests import from_json


def test_json_becomes_the_librarys_request():
    assert from_json(FinetuneRequest, {"input_images": "/a.zip", "training_steps": 3}) == FinetuneRequest(
        Path("/a.zip"), training_steps=3
    )
    assert from_json(ImageRequest, {"prompt": "x", "finetune_id": "y", "width": None}) == ImageRequest("x", "y")


@pytest.mark.parametrize("inputs, field", [({"mode": "none"}, "mode"), ({"colour": "red"}, "colour")])
def test_what_is_wrong_is_said_by_its_name(inputs, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        from_json(FinetuneRequest, {"input_images": "/a.zip"} | inputs)
