"""A client's mistakes, sent to the real servers: each is refused by its name, at once, and the server lives on."""

import pytest

WRONG_TRAINING_INPUTS = [
    ("input_images", None),
    ("input_images", 7),
    ("training_steps", 0),
    ("training_steps", 6001),
    ("training_steps", 2.5),
    ("training_steps", "300"),
    ("trigger_word", 7),
    ("mode", "person"),
    ("learning_rate", 0),
    ("learning_rate", 1),
    ("learning_rate", "fast"),
    ("captioning", "yes"),
    ("priority", "best"),
    ("finetune_type", "dreambooth"),
    ("lora_rank", 8),
    ("lora_rank", "16"),
]

WRONG_PREDICTION_INPUTS = [
    ("prompt", 7),
    ("finetune_id", 7),
    ("finetune_strength", -0.1),
    ("finetune_strength", 2.1),
    ("finetune_strength", "1"),
    ("image_prompt", 7),
    ("image_prompt_strength", -0.1),
    ("image_prompt_strength", 1.1),
    ("image_prompt_strength", "0.1"),
    ("aspect_ratio", "2:1"),
    ("width", 100),
    ("width", 1441),
    ("width", 512.5),
    ("height", 100),
    ("height", 1441),
    ("prompt_upsampling", "true"),
    ("prompt_upsampling", 1),
    ("steps", 0),
    ("steps", 51),
    ("guidance", 1.9),
    ("guidance", 5.1),
    ("raw", "true"),
    ("raw", 1),
    ("safety_tolerance", 0),
    ("safety_tolerance", 7),
    ("safety_tolerance", 2.5),
    ("safety_tolerance", "2"),
    ("seed", "random"),
    ("seed", 1.5),
    ("output_format", "gif"),
]

ARCHIVE = "data:application/zip;base64,"
PREDICTION = {"prompt": "a photo of TOK", "finetune_id": "00000000-0000-4000-8000-000000000000"}


@pytest.fixture(params=["train_server", "trainer_server"])
def training_server(request):
    return request.getfixturevalue(request.param)


def assert_refused(response, field: str) -> None:
    assert response.status_code == 422, response.text
    assert {tuple(error["loc"]) for error in response.json()["detail"]} == {("body", "input", field)}


def failure_of(response) -> str:
    assert response.status_code == 200, response.text
    assert response.json()["status"] == "failed"
    return response.json()["error"]


@pytest.mark.parametrize(("field", "value"), WRONG_TRAINING_INPUTS)
def test_a_wrong_training_input_is_refused(training_server, field, value):
    assert_refused(training_server.run(**({"input_images": ARCHIVE} | {field: value})), field)


def test_input_images_must_be_given(training_server):
    assert_refused(training_server.run(trigger_word="TOK"), "input_images")


@pytest.mark.parametrize("path", ["/etc/hostname", "file:///etc/hostname", "photos.zip"])
def test_a_path_on_the_server_is_not_read(training_server, path):
    error = failure_of(training_server.run(input_images=path))
    assert f"input_images: '{path}' is not an address this server fetches" in error
    assert "https://" in error


def test_the_server_answers_after_a_failure(training_server, tmp_path):
    failure_of(training_server.run(input_images="/etc/hostname"))
    not_an_archive = tmp_path / "photos.zip"
    not_an_archive.write_text("not an archive")
    assert "input_images" in failure_of(training_server.run(input_images=not_an_archive))
    training_server.wait_until_ready(seconds=10)


@pytest.mark.parametrize(("field", "value"), WRONG_PREDICTION_INPUTS)
def test_a_wrong_prediction_input_is_refused(predict_server, field, value):
    assert_refused(predict_server.run(**(PREDICTION | {field: value})), field)


@pytest.mark.parametrize("path", ["/etc/hostname", "file:///etc/hostname", "picture.png", ""])
def test_an_image_prompt_on_the_server_is_not_read(predict_server, path):
    error = failure_of(predict_server.run(**PREDICTION, image_prompt=path))
    assert f"image_prompt: '{path}' is not an address this server fetches" in error and "URL of the picture" in error


def test_an_image_prompt_as_a_damaged_data_uri_is_named(predict_server):
    error = failure_of(predict_server.run(**PREDICTION, image_prompt="data:image/png;base64"))
    assert "image_prompt: the data: URI has no comma. Send data:TYPE;base64," in error


@pytest.mark.parametrize("field", ["prompt", "finetune_id"])
def test_prompt_and_finetune_id_must_be_given(predict_server, field):
    assert_refused(predict_server.run(**{name: value for name, value in PREDICTION.items() if name != field}), field)


def test_an_unknown_finetune_is_named(predict_server):
    error = failure_of(predict_server.run(**PREDICTION))
    assert "finetune_id" in error
    predict_server.wait_until_ready(seconds=10)


def test_each_server_shows_its_own_interface(train_server, trainer_server, predict_server):
    interfaces = [interface_of(server) for server in (train_server, trainer_server, predict_server)]
    assert [set(schema["properties"]) >= {"input_images", "lora_rank"} for schema in interfaces] == [True, True, False]


def interface_of(server) -> dict:
    document = server.get("/openapi.json")
    return document["components"]["schemas"]["TrainingInput" if server.mode == "train" else "Input"]
