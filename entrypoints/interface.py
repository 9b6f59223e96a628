"""What Cog's server refuses or takes before our code is asked: null, names that are no inputs, the wrong endpoint, data URIs.

Cog's worker reads .cog/openapi_schema.json after it has imported the entrypoint (coglet 0.23.1, `worker.rs`), and the server
checks every request against that file alone: it drops unknown fields first, then validates what is left as JSON Schema, which
does not know the `nullable` that `cog build` writes. So the entrypoint completes the file as it is imported.
"""

import io
import json
import os
import urllib.request
import urllib.response
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any, get_args, get_type_hints

import cog
import coglet

from finetuner.data_uris import read_data_uri
from finetuner.other_names import sentences

SCHEMA = Path(".cog/openapi_schema.json")  # as Cog names it, in the server's folder
IS_SERVER = coglet.server.active  # false where a test or a script imports an entrypoint

# The inputs that are files: what each is called, and the media type of one.
FILES = {"input_images": ("archive", "application/zip"), "image_prompt": ("picture", "image/png")}

ELSEWHERE = {  # what a server says to a request for the other one, by the schema that it is checked against
    "TrainingInput": "This server makes images: POST /predictions. Trainings go to a server started with --x-mode train.",
    "Input": "This server trains: POST /trainings. Images are made by a server started without --x-mode train.",
}


def complete_schema(trains: bool) -> None:
    """Complete the schema that Cog is about to read; does nothing outside of Cog's worker.

    ``trains``: whether this server's function is the training.
    """
    if not IS_SERVER or not SCHEMA.is_file():
        return
    written = json.loads(SCHEMA.read_text())
    completed = complete(written, trains)
    if completed == written:
        return
    partial = SCHEMA.with_name(f"{SCHEMA.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(completed, indent=2, sort_keys=True) + "\n")
        os.replace(partial, SCHEMA)
    except OSError as error:
        print(f"{SCHEMA} cannot be completed: {error}. So null is refused, and unknown fields are dropped.", flush=True)


def complete(document: dict, trains: bool) -> dict:
    """``document``, as `cog build` writes it, made to take null as left out and to refuse what would be lost in silence."""
    document = json.loads(json.dumps(document))
    schemas = document["components"]["schemas"]
    endpoints = [name for name in ELSEWHERE if name in schemas]
    # cog.yaml builds both endpoints into one document; cog.trainer.yaml builds the training alone, as a prediction.
    served = "TrainingInput" if trains and "TrainingInput" in schemas else "Input"
    for name in endpoints:
        if name == served:
            _accept_null(schemas[name], schemas)
            _refuse_other_names(schemas[name])
        else:
            schemas[name] = {"title": name, "type": "object", "properties": {}, "const": ELSEWHERE[name]}
    return document


def _accept_null(schema: dict, schemas: dict) -> None:
    """In every field that may be left out. A field with choices keeps them in a schema of its own name."""
    for name, field in schema["properties"].items():
        if name in schema["required"] or "const" in field:
            continue
        typed = schemas[name] if "allOf" in field else field
        if isinstance(typed["type"], str):
            typed["type"] = [typed["type"], "null"]
            if "enum" in typed:
                typed["enum"] = [*typed["enum"], None]


def _refuse_other_names(schema: dict) -> None:
    """Cog drops every field that is no property. So a name that other tools give to an input is made one that nothing meets:
    the refusal then quotes the sentence."""
    known = [name for name, field in schema["properties"].items() if "const" not in field]
    for name, sentence in sentences(known).items():
        schema["properties"][name] = {"const": sentence, "deprecated": True, "description": "Not an input; refused."}


def as_documented(request: type, **inputs: Any) -> Any:
    """A request of the library from the inputs as Cog hands them over.

    Null means left out. Cog checks the numbers but does not convert them: 3.0 arrives for an int, 1 for a float, and an
    integer of more than 64 bits as the float next to it.

    Raises:
        ValueError: an integer is one of those.
    """
    hints = get_type_hints(request)
    given = {name: value for name, value in inputs.items() if value is not None}
    return request(**{name: _converted(name, value, hints[name]) for name, value in given.items()})


def _converted(name: str, value: Any, hint: Any) -> Any:
    kinds = get_args(hint) or (hint,)
    if float in kinds:
        return float(value)
    if int not in kinds:
        return value
    if isinstance(value, float) and abs(value) >= 2**53:
        raise ValueError(
            f"{name}: {value:.17g} did not arrive as it was sent. Send an integer of at most 64 bits, without a point or"
            " exponent."
        )
    return int(value)


@contextmanager
def local_file(field: str, sent: Path | str | None) -> Iterator[Path | None]:
    """The file of an input of `FILES`, on this machine's disk as long as the context lasts; None where it is left out.

    Cog downloads http(s) URLs and decodes data: URIs, but hands over any other string as it came: a scheme in capitals or
    after a space, too, which is fetched here.

    Raises:
        ValueError: it is no such address.
    """
    if sent is None:
        yield None
        return
    if isinstance(sent, Path):
        yield Path(sent)
        return
    scheme, _, rest = sent.strip().partition(":")
    if scheme.lower() not in ("http", "https", "data"):
        raise ValueError(
            f"{field}: {sent[:80]!r} is not an address this server fetches. "
            f"Send an http:// or https:// URL of the {FILES[field][0]}, or the {FILES[field][0]} itself as a data: URI."
        )
    fetched = cog.Path.validate(f"{scheme.lower()}:{rest}")
    try:
        yield Path(fetched.convert())
    finally:
        fetched.unlink(missing_ok=True)


class DataUris(urllib.request.DataHandler):
    """Reads data: URIs in every spelling that clients send: Cog fetches its files through urllib, which takes one."""

    def __init__(self, field: str):
        self.field = field

    def data_open(self, request: urllib.request.Request) -> urllib.response.addinfourl:
        kind, content = read_data_uri(self.field, request.full_url)
        headers = Message()
        headers["Content-Type"] = kind
        headers["Content-Length"] = str(len(content))
        return urllib.response.addinfourl(io.BytesIO(content), headers, request.full_url)


def read_data_uris(field: str) -> None:
    """Let this process read data: URIs so. ``field``: the input that they are sent in."""
    urllib.request.install_opener(urllib.request.build_opener(DataUris(field)))
