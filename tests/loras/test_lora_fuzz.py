"""Mutated LoRA files: each is read or refused in words, whatever its bytes are, and nothing is published of a refused one.

script/fuzz-lora runs this for longer, and on other files each time.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_files import in_bfl_names, in_diffusers_names, in_pieces, in_xlabs_names, written
from safetensors.torch import save

from finetuner.bases import block_linears, choose_base
from finetuner.loras import exchange
from finetuner.loras.exchange import import_lora
from finetuner.store import FolderStore

LONG_RUN = "FUZZ_LORAS" in os.environ
FILES = int(os.environ.get("FUZZ_LORAS", "300"))
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I64", "I32", "I8", "U8", "BOOL", "C64", "X", ""]
TELLING = [bytes(8), b"\xff" * 8, b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"\0\0\0\x80\0\0\0\0", b"PK\3\4", b"\x80\x02", b"{" * 8]
METADATA = [
    {"lora_adapter_metadata": '{"transformer.lora_alpha": 2, "transformer.alpha_pattern": {"to_q": 8}}'},
    {"ss_network_alpha": "1", "ss_network_dim": "4", "modelspec.architecture": "flux-1-dev/lora"},
    {"network_alpha": "None"},
]


@cache
def files() -> list[bytes]:
    """LoRAs of the first block of each kind, as several tools write them."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, linear in block_linears(choose_base().meta_transformer()).items():
        if name.split(".")[1] == "0":
            weights[f"{name}.lora_A.weight"] = torch.randn(2, linear.in_features, generator=generator).half()
            weights[f"{name}.lora_B.weight"] = torch.randn(linear.out_features, 2, generator=generator).half()
    xlabs = in_xlabs_names(weights)
    tools = [
        written(in_bfl_names(weights, "diffusion_model."), "kohya", torch.tensor(2)),
        written(in_diffusers_names(weights, "base_model.model."), "default"),
        written(in_pieces(weights, "transformer."), "kohya", torch.tensor(2.0)),
        {f"{m}.{s}.weight": t for m, pair in xlabs.items() for s, t in zip(("down", "up"), pair, strict=True)},
    ]
    tools[0] |= {f"lora_te1_x.lora_{side}.weight": torch.zeros(2, 2) for side in ("down", "up")}
    return [save({n: t.contiguous() for n, t in tool.items()}, m) for tool, m in zip(tools, [*METADATA, None], strict=True)]


def edited(draw, data: bytes) -> bytes:
    """With its header changed, and still one: shapes, dtypes, offsets, names, metadata."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(header.keys() - {"__metadata__"}) or [""]))
        entry = header.get(key)
        if not isinstance(entry, dict):
            entry = header[key] = {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}
        match draw(st.sampled_from(["dtype", "shape", "offsets", "rename", "remove", "metadata", "odd"])):
            case "dtype":
                entry["dtype"] = draw(st.sampled_from(DTYPES))
            case "shape":
                entry["shape"] = draw(st.lists(st.sampled_from([0, 1, 2, 32, 192, -1, 2**40, 2**64]), max_size=4))
            case "offsets":
                entry["data_offsets"] = draw(st.lists(st.sampled_from([0, 1, 64, 2**31, -8, 2**64]), max_size=3))
            case "rename":
                endings = [".lora_A.weight", ".lora_B.bias", ".alpha", ".dora_scale", ".lokr_w1", ".weight", ".diff", "x"]
                header[key.rpartition(".lora_")[0] + draw(st.sampled_from(endings))] = header.pop(key, entry)
            case "remove":
                header.pop(key, None)
            case "metadata":
                names = ["lora_adapter_metadata", "lora_alpha", "ss_network_alpha", "ss_network_args", "ss_base_model_version"]
                values = [
                    '{"lora_alpha": null}',
                    '{"alpha_pattern": {"(": 1}, "lora_alpha": 1}',
                    "[[[",
                    "nan",
                    "1e999",
                    "0",
                    "x" * 99,
                ]
                header["__metadata__"] = {draw(st.sampled_from(names)): draw(st.sampled_from(values))}
            case "odd":
                header[key] = draw(st.sampled_from([None, 1, [], {}, "x", {"dtype": 1, "shape": None, "data_offsets": {}}]))
    new = json.dumps(header).encode()
    return len(new).to_bytes(8, "little") + new + data[8 + length :]


def mutated(draw, data: bytes) -> bytes:
    """Like ``data``, with its header edited, values overwritten, or a few bytes changed, cut out, doubled or cut off."""
    if draw(st.booleans()):
        data = edited(draw, data)
    mutant = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, min(len(mutant), draw(st.sampled_from([8, 4096, 2**40]))) - 1)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["flip", "telling", "cut out", "double", "cut off", "not finite"])):
            case "flip":
                mutant[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "telling":
                mutant[at : at + 8] = draw(st.sampled_from(TELLING))
            case "cut out":
                del mutant[at : at + length]
            case "double":
                mutant[at:at] = mutant[at : at + length]
            case "cut off":
                del mutant[max(at, len(mutant) - 4 * length) :]
            case "not finite":
                mutant[-length * 2 :] = b"\x00\x7e" * length  # NaN in float16
    return bytes(mutant)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A place of its own, also for temporary files; the base is chosen once, as a server does."""
    folder, before, base = tmp_path_factory.mktemp("fuzz"), tempfile.tempdir, choose_base()
    transformer, tempfile.tempdir = base.meta_transformer(), str(folder)
    chosen = patch.object(exchange, "choose_base", lambda: base)
    with chosen, patch.object(type(base), "meta_transformer", lambda _: transformer):
        yield folder
    tempfile.tempdir = before


@settings(
    max_examples=FILES,
    derandomize=not LONG_RUN,
    database=settings().database if LONG_RUN else None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_bytes_are_read_or_refused_in_words(folder, data):
    store, path = FolderStore(folder / "store"), folder / "lora.safetensors"
    path.write_bytes(mutated(data.draw, data.draw(st.sampled_from(files()))))
    before = sorted(folder.rglob("*"))
    try:
        imported = import_lora(path, "TOK", store, resize=data.draw(st.booleans()), blocks_only=data.draw(st.booleans()))
    except ValueError as error:
        assert str(error).startswith("lora.safetensors: ") and str(error).endswith((".", "?"))
        assert sorted(folder.rglob("*")) == before
    else:
        assert store.fetch(imported.id).trigger_word == "TOK"
        store.delete(imported.id)
        assert sorted(folder.rglob("*")) in (before, sorted([*before, folder / "store"]))
