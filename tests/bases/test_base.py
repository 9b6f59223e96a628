import json
import re
import shutil

import pytest
import torch
from diffusers import ConfigMixin

from finetuner.bases import base as bases
from finetuner.bases.base import Base, choose_base
from finetuner.bases.model_folder import loaded_files

KLEIN = ["FLUX.2-klein-base-4B", "FLUX.2-klein-4B", "FLUX.2-klein-base-9B", "FLUX.2-klein-9B"]
KLEIN += ["klein-emoji", "klein-emoji-distilled"]
CONFIGURED = ["FLUX.1-dev", "FLUX.1-schnell", "FLUX.1-Krea-dev", "flux-emoji", *KLEIN]
DISTILLED = {
    "FLUX.1-schnell": "FLUX.1-dev",
    "FLUX.2-klein-4B": "FLUX.2-klein-base-4B",
    "FLUX.2-klein-9B": "FLUX.2-klein-base-9B",
    "klein-emoji-distilled": "klein-emoji",
}


@pytest.fixture
def weights(tmp_path):
    """A weights folder as a clone has it: the manifests of all bases, the files of none."""
    for name in CONFIGURED:
        (tmp_path / name).mkdir()
        shutil.copy(bases.WEIGHTS / name / "base.json", tmp_path / name)
    return tmp_path


def download(weights, name):
    """What a download leaves of what says how a base is guided."""
    klein, distilled = name in KLEIN, name in DISTILLED
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": distilled} if klein else {"_class_name": "FluxPipeline"}
    (weights / name / "model_index.json").write_text(json.dumps(index))
    (weights / name / "transformer").mkdir(exist_ok=True)
    (weights / name / "transformer" / "config.json").write_text(json.dumps({"guidance_embeds": not klein and not distilled}))


def test_every_base_says_what_is_needed_of_it(weights):
    for name in CONFIGURED:
        download(weights, name)
        base = Base.open(weights / name)
        assert base.name == name and set(base.resolutions) == {"speed", "quality", "high_res_only"}
        assert base.largest_side >= base.sampling_side and base.licence
        assert (base.refusal is not None) == (name in DISTILLED)


def test_without_a_choice_the_freest_of_what_was_downloaded_is_used_and_the_embedded_base_elsewhere(weights, monkeypatch):
    monkeypatch.delenv("BASE_MODEL", raising=False)
    for name in ("klein-emoji", "FLUX.1-dev", "FLUX.2-klein-base-4B"):
        download(weights, name)
        assert choose_base(weights).name == name
    (weights / "FLUX.1-dev" / "model_index.json").unlink()
    assert choose_base(weights).name == "FLUX.2-klein-base-4B"


def test_a_base_is_guided_as_its_own_files_say(weights):
    found = {}
    for name in CONFIGURED:
        download(weights, name)
        base = Base.open(weights / name)
        found[name] = (base.guidance, base.sampling_guidance, base.sampling_steps)
    assert {name: found[name] for name in DISTILLED} == dict.fromkeys(DISTILLED, ("none", None, 4))
    assert {found[name] for name in ("FLUX.1-dev", "FLUX.1-Krea-dev", "flux-emoji")} == {("embedded", 3.0, 40)}
    assert {found[name] for name in ("FLUX.2-klein-base-4B", "FLUX.2-klein-base-9B")} == {("cfg", 4.0, 50)}


def test_the_environment_chooses_by_name_or_path(weights, monkeypatch):
    download(weights, "FLUX.1-schnell")
    monkeypatch.setenv("BASE_MODEL", "FLUX.1-schnell")
    assert choose_base(weights).name == "FLUX.1-schnell"
    monkeypatch.setenv("BASE_MODEL", str(weights / "FLUX.1-schnell"))
    assert choose_base(weights / "elsewhere").name == "FLUX.1-schnell"


@pytest.mark.parametrize(("name", "remedy"), [("FLUX.1-dev", "script/download-weights FLUX.1-dev"), ("SDXL", "no base.json")])
def test_a_base_that_is_not_here_is_refused_with_the_remedy(weights, monkeypatch, name, remedy):
    monkeypatch.setenv("BASE_MODEL", name)
    with pytest.raises(ValueError, match=f"^BASE_MODEL: .*{remedy}"):
        choose_base(weights)


def test_the_fingerprint_is_of_the_weights_and_not_of_the_place(base, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(base.folder, copy)
    assert Base.open(copy).fingerprint == base.fingerprint
    manifest = json.loads((copy / "base.json").read_text())
    (copy / "base.json").write_text(json.dumps(manifest | {"caption_form": "another"}))
    assert Base.open(copy).fingerprint == base.fingerprint
    weights = next((copy / "transformer").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert Base.open(copy).fingerprint != base.fingerprint


@pytest.mark.parametrize(
    "stray", ["notes.txt", "transformer/other-lora.safetensors", "lora/model.safetensors", "transformer/a.json"]
)
def test_a_file_that_nothing_loads_changes_no_fingerprint(base, tmp_path, stray):
    copy = tmp_path / "copy"
    shutil.copytree(base.folder, copy)
    (copy / stray).parent.mkdir(exist_ok=True)
    (copy / stray).write_text("stray")
    assert Base.open(copy).fingerprint == base.fingerprint


def test_every_file_of_the_embedded_base_that_is_loaded_counts(base):
    pages = {"README.md", "base.json", "sheet.png"}
    files = {str(path.relative_to(base.folder)) for path in base.folder.rglob("*") if path.is_file()}
    assert {str(path.relative_to(base.folder)) for path in base.loaded_files()} == files - pages


def test_of_weights_in_shards_those_of_the_index_count(tmp_path):
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors", "model-3.safetensors", "model.safetensors"):
        (tmp_path / name).touch()
    loaded = {path.name for path in loaded_files(tmp_path)}
    assert loaded == {"config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"}


@pytest.mark.parametrize(("distilled", "trained"), DISTILLED.items())
def test_a_distilled_base_says_what_to_train_instead_and_draws_with_that(weights, distilled, trained):
    for name in (distilled, trained):
        download(weights, name)
    with pytest.raises(
        ValueError, match=f"^BASE_MODEL: {re.escape(distilled)} is distilled.* BASE_MODEL={re.escape(trained)}:"
    ):
        Base.open(weights / distilled).require_trains()
    trained_on = Base.open(weights / trained)
    trained_on.require_trains()
    Base.open(weights / distilled).require_serves("an-id", trained_on.describe())


def test_a_base_of_no_known_family_is_refused(weights):
    (weights / "FLUX.1-dev" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="^BASE_MODEL: .*StableDiffusionPipeline.*FluxPipeline"):
        Base.open(weights / "FLUX.1-dev")


def test_parts_come_frozen_one_at_a_time(base):
    assert not any(p.requires_grad for p in base.load_transformer().parameters())
    assert not any(p.requires_grad for p in base.load_vae().parameters())
    encoders = base.load_text_encoders()
    assert encoders.transformer is None and encoders.vae is None and encoders.text_encoder_2 is not None


def test_sizes_are_multiples_of_a_latent_patch(base):
    vae = base.load_vae()
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode()
    assert base.size_multiple == 2 * 64 // latents.shape[-1]


@pytest.mark.parametrize("load", [Base.load_transformer, Base.load_vae, Base.load_pipeline])
def test_a_cancel_while_a_model_loads_leaves_torchs_default_dtype(base, monkeypatch, load):
    def cancelled(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("finetuner.bases.base.weight_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(ConfigMixin, "from_config", cancelled)
    with pytest.raises(KeyboardInterrupt):
        load(base)
    assert torch.get_default_dtype() is torch.float32
