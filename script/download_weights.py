"""Download a FLUX base, its reader of image prompts or the captioner, at a pinned revision, into weights/.

Run it as script/download-weights; it resumes.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, ModelInfo, constants, get_token, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class Model:
    repository: str
    revision: str
    index: str  # the file that is fetched last: where it lies, the model counts as downloaded
    parts: tuple[str, ...]  # what is loaded here; the repositories hold the same weights again for other programs


FLUX_1 = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
REDUX = ("feature_extractor", "image_embedder", "image_encoder")
FLUX_2 = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


def flux(name: str, revision: str, folders: tuple[str, ...]) -> Model:
    index = "model_index.json"
    return Model(f"black-forest-labs/{name}", revision, index, (index, "LICENSE*", *(f"{folder}/*" for folder in folders)))


MODELS = {
    "FLUX.2-klein-base-4B": flux("FLUX.2-klein-base-4B", "a3b4f4849157f664bdbc776fd7453c2783562f4d", FLUX_2),
    "FLUX.2-klein-4B": flux("FLUX.2-klein-4B", "e7b7dc27f91deacad38e78976d1f2b499d76a294", FLUX_2),
    "FLUX.2-klein-base-9B": flux("FLUX.2-klein-base-9B", "32773329fbe7e81a90ef971740e8ba4b0364ecf3", FLUX_2),
    "FLUX.2-klein-9B": flux("FLUX.2-klein-9B", "92196c8e11f7b6cf2b7493e037d8c5345c559216", FLUX_2),
    "FLUX.1-dev": flux("FLUX.1-dev", "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21", FLUX_1),
    "FLUX.1-schnell": flux("FLUX.1-schnell", "741f7c3ce8b383c54771c7003378a50191e9efe9", FLUX_1),
    "FLUX.1-Krea-dev": flux("FLUX.1-Krea-dev", "8162a9c7b05a641be098422bf2fcf335615c2f28", FLUX_1),
    # What makes image prompts readable to FLUX.1's bases: SigLIP, and a projection to T5's width.
    "FLUX.1-Redux-dev": flux("FLUX.1-Redux-dev", "1282f955f706b5240161278f2ef261d2a29ad649", REDUX),
    # The captioner. Not the program files that lie beside it: transformers has this model itself.
    "granite-vision-4.1-4b": Model(
        "ibm-granite/granite-vision-4.1-4b",
        "dd48e97503de471803850df70843cf9eb5da8712",
        "config.json",
        ("*.json", "*.safetensors", "*.jinja", "*.txt", "LICENSE*"),
    ),
}

DEFAULT = "FLUX.2-klein-base-4B"  # what a server and a training without BASE_MODEL run; it takes no token


class DownloadError(Exception):
    """A sentence for the user: what is wrong and what to do about it."""


def main(arguments: list[str] | None = None) -> int:
    try:
        download(parse(arguments))
    except DownloadError as error:
        print(f"script/download-weights: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> str:
    parser = argparse.ArgumentParser(
        prog="script/download-weights",
        description="Download a FLUX base, its reader of image prompts or the captioner into weights/. Run it again to resume.",
        epilog="The bases but FLUX.2 klein 4B are gated: accept the licence on the model's page, then set HF_TOKEN to a token"
        " of yours.",
    )
    parser.add_argument("model", nargs="?", default=DEFAULT, choices=MODELS, help=f"default: {DEFAULT}")
    return parser.parse_args(arguments).model


def download(name: str) -> None:
    folder, model = WEIGHTS / name, MODELS[name]
    try:
        sizes = listed_sizes(model, model_info(name))
        require_space(folder, sizes)
        for names in (set(sizes) - {model.index}, {model.index}):
            fetch(model, folder, {name: sizes[name] for name in sorted(names)})
    except GatedRepoError as error:
        raise DownloadError(gated_advice(name)) from error
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise DownloadError(f"{name} was not downloaded: {error}\nRun it again, and it resumes.") from error
    # The hub's notes on an unfinished download are no part of the model.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    print(f"{name} is complete in {folder}.")


def fetch(model: Model, folder: Path, sizes: dict[str, int]) -> None:
    missing = missing_files(folder, sizes)
    if missing:
        snapshot_download(model.repository, revision=model.revision, local_dir=folder, allow_patterns=missing)
    wrong = missing_files(folder, sizes)
    if wrong:
        raise DownloadError(
            f"these files in {folder} do not have their published size: {', '.join(wrong)}. Delete them and run it again."
        )


def model_info(name: str) -> ModelInfo:
    model = MODELS[name]
    info = HfApi().model_info(model.repository, revision=model.revision, files_metadata=True)
    if info.gated and get_token() is None:
        raise DownloadError(gated_advice(name))
    return info


def gated_advice(name: str) -> str:
    return (
        f"{name} is gated. Accept its licence at {constants.ENDPOINT}/{MODELS[name].repository}, make a token that may read it "
        f"at {constants.ENDPOINT}/settings/tokens, and run HF_TOKEN=... script/download-weights {name}"
    )


def listed_sizes(model: Model, info: ModelInfo) -> dict[str, int]:
    """Return the size in bytes of each file that is needed."""
    return {file.rfilename: file.size for file in info.siblings if any(fnmatch(file.rfilename, part) for part in model.parts)}


def require_space(folder: Path, sizes: dict[str, int]) -> None:
    needed = sum(sizes[name] for name in missing_files(folder, sizes))
    WEIGHTS.mkdir(exist_ok=True)
    free = shutil.disk_usage(WEIGHTS).free
    if free < needed:
        raise DownloadError(
            f"{gigabytes(needed)} are still to be downloaded, and the disk that holds {WEIGHTS} has "
            f"{gigabytes(free)} free. Make room, or put weights/ on another disk with a symbolic link."
        )


def missing_files(folder: Path, sizes: dict[str, int]) -> list[str]:
    """Return the files that are not there in their published size."""
    return [name for name, size in sizes.items() if not is_complete(folder / name, size)]


def is_complete(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


if __name__ == "__main__":
    sys.exit(main())
