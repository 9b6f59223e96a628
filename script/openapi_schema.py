"""Write the OpenAPI document that `cog build` would make of train.py and predict.py.

A Cog server checks its inputs against .cog/openapi_schema.json alone, and only `cog build` writes that file.
script/serve runs the server without a build, so it needs the same document from here.

    python script/openapi_schema.py             trainings and predictions, as cog.yaml builds them
    python script/openapi_schema.py --trainer   train.py served as a prediction, as cog.trainer.yaml builds it

With --served train or --served predict, as the server completes it when it starts (entrypoints/interface.py).
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import cog
from cog._adt import InputField, PredictorInfo, Repetition
from cog._inspector import create_predictor

PROJECT = Path(__file__).resolve().parent.parent

RESPONSE_FIELDS = {
    "id": "string",
    "version": "string",
    "created_at": "date-time",
    "started_at": "date-time",
    "completed_at": "date-time",
    "status": "string",
    "error": "string",
    "logs": "string",
    "metrics": "object",
}

STATUS = {
    "title": "Status",
    "description": "An enumeration.",
    "enum": ["starting", "processing", "succeeded", "canceled", "failed"],
    "type": "string",
}

VALIDATION_ERROR = {
    "title": "ValidationError",
    "type": "object",
    "required": ["loc", "msg", "type"],
    "properties": {
        "loc": {
            "title": "Location",
            "type": "array",
            "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        },
        "msg": {"title": "Message", "type": "string"},
        "type": {"title": "Error Type", "type": "string"},
    },
}


@dataclass(frozen=True)
class Endpoint:
    """What Cog calls things when it serves a function as a prediction, or as a training."""

    verb: str
    noun: str
    schema_prefix: str

    @property
    def input_name(self) -> str:
        return f"{self.schema_prefix}Input"

    @property
    def output_name(self) -> str:
        return f"{self.schema_prefix}Output"

    @property
    def request_name(self) -> str:
        return f"{self.noun.title()}Request"

    @property
    def response_name(self) -> str:
        return f"{self.noun.title()}Response"


PREDICTION = Endpoint(verb="predict", noun="prediction", schema_prefix="")
TRAINING = Endpoint(verb="train", noun="training", schema_prefix="Training")


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the OpenAPI document of this project's Cog servers.")
    parser.add_argument("--trainer", action="store_true", help="train.py served as a prediction")
    parser.add_argument("--served", choices=["train", "predict"], help="completed, as a server of this function does it")
    arguments = parser.parse_args()
    document = trainer_document() if arguments.trainer else combined_document()
    if arguments.served:
        from entrypoints.interface import complete  # this file is run from script/, which does not hold it

        document = complete(document, trains=arguments.served == "train")
    json.dump(document, sys.stdout, indent=2, sort_keys=True)
    print()


def trainer_document() -> dict:
    return document_of(create_predictor("train", "train"), PREDICTION)


def combined_document() -> dict:
    return combine(
        document_of(create_predictor("predict", "Predictor"), PREDICTION),
        document_of(create_predictor("train", "train"), TRAINING),
    )


def combine(predictions: dict, trainings: dict) -> dict:
    """Join the two; where both define a name, Cog keeps the prediction's."""
    return predictions | {
        "paths": trainings["paths"] | predictions["paths"],
        "components": {"schemas": trainings["components"]["schemas"] | predictions["components"]["schemas"]},
    }


def document_of(served: PredictorInfo, endpoint: Endpoint) -> dict:
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": cog.__version__},
        "paths": paths(endpoint),
        "components": {"schemas": schemas(served, endpoint)},
    }


def schemas(served: PredictorInfo, endpoint: Endpoint) -> dict:
    fields = served.inputs.values()
    return {
        endpoint.input_name: input_object(served, endpoint.input_name),
        endpoint.output_name: served.output.json_type(),
        **{field.name: enumeration(field) for field in fields if field.choices},
        endpoint.request_name: request_object(endpoint),
        endpoint.response_name: response_object(endpoint),
        "Status": STATUS,
        "HTTPValidationError": object_of("HTTPValidationError", {"detail": error_list()}),
        "ValidationError": VALIDATION_ERROR,
    }


def input_object(served: PredictorInfo, title: str) -> dict:
    fields = served.inputs.values()
    schema = object_of(title, {field.name: input_property(field) for field in fields})
    return schema | {"required": [field.name for field in fields if is_required(field)]}


def input_property(field: InputField) -> dict:
    own_type = {"title": title_of(field.name), **field.type.json_type()}
    schema = {"allOf": [reference(field.name)]} if field.choices else own_type
    schema |= {"description": field.description, "x-order": field.order}
    if not is_required(field):
        schema["default"] = as_written(field.default)
    if is_optional(field):
        schema["nullable"] = True
    if field.ge is not None:
        schema["minimum"] = as_written(field.ge)
    if field.le is not None:
        schema["maximum"] = as_written(field.le)
    return schema


def is_optional(field: InputField) -> bool:
    return field.type.repetition is Repetition.OPTIONAL


def is_required(field: InputField) -> bool:
    return field.default is None and not is_optional(field)


def as_written(value):
    """Undo the inspector's conversion of every number to float: Cog writes 2, not 2.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def enumeration(field: InputField) -> dict:
    return {
        "title": field.name,
        "description": "An enumeration.",
        "enum": field.choices,
        **field.type.json_type(),
    }


def request_object(endpoint: Endpoint) -> dict:
    return object_of(
        endpoint.request_name,
        {"id": {"title": "Id", "type": "string"}, "input": reference(endpoint.input_name)},
    )


def response_object(endpoint: Endpoint) -> dict:
    fields = {name: response_field(name, kind) for name, kind in RESPONSE_FIELDS.items()}
    ends = {"input": reference(endpoint.input_name), "output": reference(endpoint.output_name)}
    return object_of(endpoint.response_name, ends | fields)


def response_field(name: str, kind: str) -> dict:
    if kind == "date-time":
        return {"title": title_of(name), "type": "string", "format": "date-time"}
    return {"title": title_of(name), "type": kind}


def paths(endpoint: Endpoint) -> dict:
    verb, noun = endpoint.verb, endpoint.noun
    run = {
        "summary": verb.title(),
        "description": f"Run a single {noun} on the model",
        "operationId": f"{verb}_{noun}s_post",
        "requestBody": json_content(reference(endpoint.request_name)),
        "responses": answers(reference(endpoint.response_name)) | refusal(),
    }
    cancel = {
        "summary": "Cancel",
        "operationId": f"cancel_{noun}s__{noun}_id__cancel_post",
        "parameters": [id_parameter(f"{noun}_id")],
        "responses": answers({}) | refusal(),
    }
    return {
        "/": {"get": {"summary": "Root", "operationId": "root__get", "responses": answers({})}},
        "/health-check": {
            "get": {
                "summary": "Healthcheck",
                "operationId": "healthcheck_health_check_get",
                "responses": answers({}),
            }
        },
        f"/{noun}s": {"post": run},
        f"/{noun}s/{{{noun}_id}}/cancel": {"post": cancel},
    }


def id_parameter(name: str) -> dict:
    return {"in": "path", "name": name, "required": True, "schema": {"title": title_of(name), "type": "string"}}


def answers(schema: dict) -> dict:
    return {"200": {"description": "Successful Response", **json_content(schema)}}


def refusal() -> dict:
    return {"422": {"description": "Validation Error", **json_content(reference("HTTPValidationError"))}}


def json_content(schema: dict) -> dict:
    return {"content": {"application/json": {"schema": schema}}}


def error_list() -> dict:
    return {"title": "Detail", "type": "array", "items": reference("ValidationError")}


def object_of(title: str, properties: dict) -> dict:
    return {"title": title, "type": "object", "properties": properties}


def reference(name: str) -> dict:
    return {"$ref": f"#/components/schemas/{name}"}


def title_of(name: str) -> str:
    return name.replace("_", " ").title()


if __name__ == "__main__":
    # `python script/openapi_schema.py` puts script/ on the path, not the project that holds train.py.
    sys.path.insert(0, str(PROJECT))
    main()
