"""The interface that clients see: documented field by field, the same however the container is built."""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest
import yaml
from cog._inspector import create_predictor

from entrypoints.interface import complete
from finetuner.other_names import sentences
from script import openapi_schema

PROJECT = Path(__file__).parent.parent

TRAINING_INPUTS = {
    "input_images": {"type": "string", "format": "uri"},
    "training_steps": {"type": "integer", "minimum": 1, "maximum": 6000, "default": 300},
    "trigger_word": {"type": "string", "default": "TOK"},
    "mode": {"type": "string", "enum": ["general", "character", "style", "product"], "default": "general"},
    "learning_rate": {"type": "number", "minimum": 1e-6, "maximum": 5e-3, "default": None, "nullable": True},
    "captioning": {
        "type": "string",
        "enum": ["automatic", "captioning-enabled", "captioning-disabled"],
        "default": "automatic",
    },
    "priority": {"type": "string", "enum": ["speed", "quality", "high_res_only"], "default": "quality"},
    "finetune_type": {"type": "string", "enum": ["lora", "full"], "default": "full"},
    "lora_rank": {"type": "integer", "enum": [16, 32], "default": 32},
}

PREDICTION_INPUTS = {
    "prompt": {"type": "string"},
    "finetune_id": {"type": "string"},
    "finetune_strength": {"type": "number", "minimum": 0, "maximum": 2, "default": 1},
    "image_prompt": {"type": "string", "format": "uri", "default": None, "nullable": True},
    "image_prompt_strength": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.1},
    "aspect_ratio": {
        "type": "string",
        "enum": ["custom", "1:1", "21:9", "16:9", "3:2", "4:3", "5:4", "4:5", "3:4", "2:3", "9:16", "9:21"],
        "default": "1:1",
    },
    "width": {"type": "integer", "minimum": 256, "maximum": 1440, "default": None, "nullable": True},
    "height": {"type": "integer", "minimum": 256, "maximum": 1440, "default": None, "nullable": True},
    "prompt_upsampling": {"type": "boolean", "default": False},
    "steps": {"type": "integer", "minimum": 1, "maximum": 50, "default": 40},
    "guidance": {"type": "number", "minimum": 2, "maximum": 5, "default": 3},
    "raw": {"type": "boolean", "default": False},
    "safety_tolerance": {"type": "integer", "minimum": 1, "maximum": 6, "default": 2},
    "seed": {"type": "integer", "default": None, "nullable": True},
    "output_format": {"type": "string", "enum": ["jpg", "png"], "default": "jpg"},
}


@pytest.fixture(scope="module")
def combined():
    return openapi_schema.combined_document()


@pytest.fixture(scope="module")
def trainer():
    return openapi_schema.trainer_document()


def inputs_of(document: dict, name: str) -> dict:
    """Return what a client may send, in order: each field's type, choices, bounds and default."""
    schemas = document["components"]["schemas"]
    fields = sorted(schemas[name]["properties"].items(), key=lambda item: item[1]["x-order"])
    return {field: contract(prop, schemas) for field, prop in fields}


def contract(prop: dict, schemas: dict) -> dict:
    referenced = schemas[prop["allOf"][0]["$ref"].rpartition("/")[2]] if "allOf" in prop else {}
    kept = ("type", "format", "enum", "minimum", "maximum", "default", "nullable")
    return {key: value for key, value in (referenced | prop).items() if key in kept}


def test_the_nine_training_inputs_are_the_documented_ones(combined):
    inputs = inputs_of(combined, "TrainingInput")
    assert inputs == TRAINING_INPUTS
    assert list(inputs) == list(TRAINING_INPUTS)
    assert combined["components"]["schemas"]["TrainingInput"]["required"] == ["input_images"]


def test_the_prediction_inputs_are_the_documented_ones(combined):
    inputs = inputs_of(combined, "Input")
    assert inputs == PREDICTION_INPUTS
    assert list(inputs) == list(PREDICTION_INPUTS)
    assert combined["components"]["schemas"]["Input"]["required"] == ["prompt", "finetune_id"]


def test_outputs(combined, trainer):
    schemas = combined["components"]["schemas"]
    assert schemas["TrainingOutput"] == {"type": "string", "title": "Output"}
    assert schemas["Output"] == {"type": "string", "title": "Output", "format": "uri"}
    assert trainer["components"]["schemas"]["Output"] == {"type": "string", "title": "Output"}


def test_the_trainer_takes_the_training_inputs_as_a_prediction(trainer):
    assert inputs_of(trainer, "Input") == TRAINING_INPUTS
    assert set(trainer["paths"]) == {"/", "/health-check", "/predictions", "/predictions/{prediction_id}/cancel"}


def test_every_input_explains_itself(combined):
    for name in ("Input", "TrainingInput"):
        for field, prop in combined["components"]["schemas"][name]["properties"].items():
            assert len(prop["description"]) > 20, field


def test_no_choices_mean_one_thing_in_training_and_another_in_prediction(combined):
    """They share one namespace, and Cog quietly keeps the prediction's."""
    for name in set(TRAINING_INPUTS) & set(PREDICTION_INPUTS):
        assert TRAINING_INPUTS[name].get("enum") == PREDICTION_INPUTS[name].get("enum")


def test_our_generator_writes_what_cog_writes():
    ours = openapi_schema.combine(
        openapi_schema.document_of(create_predictor("cog_example", "Predictor"), openapi_schema.PREDICTION),
        openapi_schema.document_of(create_predictor("cog_example", "train"), openapi_schema.TRAINING),
    )
    cogs = json.loads((PROJECT / "tests/cog_example.json").read_text())
    assert ours | {"info": None} == cogs | {"info": None}


SERVED = [("combined", "TrainingInput", True), ("combined", "Input", False), ("trainer", "Input", True)]


@pytest.mark.parametrize(("built", "name", "trains"), SERVED)
def test_a_server_completes_cogs_document_and_keeps_what_it_says_of_the_inputs(request, built, name, trains):
    document = request.getfixturevalue(built)
    before = json.dumps(document)
    served = complete(document, trains)
    assert complete(served, trains) == served and json.dumps(document) == before
    schemas, fields = served["components"]["schemas"], served["components"]["schemas"][name]["properties"]
    known = {field for field, said in fields.items() if "const" not in said}
    wanted = TRAINING_INPUTS if trains else PREDICTION_INPUTS
    assert known == set(wanted)
    for field in known - set(schemas[name]["required"]):
        said = contract(fields[field], schemas)
        assert said["type"] == [wanted[field]["type"], "null"] and (None in said.get("enum", [])) == ("enum" in wanted[field])
    for field in schemas[name]["required"]:
        assert contract(fields[field], schemas) == wanted[field]
    other = {"Input": "TrainingInput", "TrainingInput": "Input"}[name]
    assert ("const" in schemas[other]) if other in schemas else built == "trainer"


def test_no_name_that_is_refused_is_an_input_of_the_documented_models():
    """The hosted trainer's page spoke of a caption_prefix, so that a client of it may send one."""
    for inputs in (TRAINING_INPUTS, PREDICTION_INPUTS):
        refused = set(sentences(list(inputs)))
        assert len(refused) > 50 and not refused & {*inputs, "caption_prefix"}


@pytest.mark.parametrize("file", ["train.py", "predict.py"])
def test_inputs_are_written_as_cog_can_read_them(file):
    """`cog build` reads the source without running it, and silently drops a bound or a default that it cannot read."""
    source = (PROJECT / file).read_text()
    inputs = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and called(node) == "Input"]
    assert inputs
    for keyword in (keyword for node in inputs for keyword in node.keywords):
        ast.literal_eval(keyword.value)
        if keyword.arg == "description":
            assert string_tokens(ast.get_source_segment(source, keyword.value)) == 1


def called(node: ast.Call) -> str:
    return getattr(node.func, "id", "")


def string_tokens(source: str) -> int:
    return sum(token.type == tokenize.STRING for token in tokenize.generate_tokens(io.StringIO(source).readline))


def test_both_containers_are_built_alike():
    cog = yaml.safe_load((PROJECT / "cog.yaml").read_text())
    trainer = yaml.safe_load((PROJECT / "cog.trainer.yaml").read_text())
    assert trainer["build"] == cog["build"]
    assert trainer["environment"] == cog["environment"]
    assert trainer["run"] == cog["train"]


def test_tests_run_on_the_server_of_the_container():
    cog = yaml.safe_load((PROJECT / "cog.yaml").read_text())
    assert f"cog=={cog['build']['sdk_version']}" in pins("requirements-dev.txt")


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_every_package_is_pinned(file):
    for line in pins(file):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_the_pins_hold_what_was_chosen(name):
    chosen = [line for line in pins(f"{name}.in") if not line.startswith("-c")]
    available = pins("requirements.txt") + pins("requirements-dev.txt")
    assert [line for line in chosen if line not in available] == []


def pins(file: str) -> list[str]:
    lines = (PROJECT / file).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
