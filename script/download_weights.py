"""Download one FLUX base, at a pinned revision, into weights/. Run it as script/download-weights; it resumes."""

import argparse
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, ModelInfo, constants, get_token, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

OWNER = "black-forest-labs"

REVISIONS = {
    "FLUX.1-dev": "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
    "FLUX.1-schnell": "741f7c3ce8b383c54771c7003378a50191e9efe9",
    "FLUX.1-Krea-dev": "8162a9c7b05a641be098422bf2fcf335615c2f28",
}

INDEX = "model_index.json"

# What diffusers loads. The repositories hold the same weights a second time, as one file for other programs.
PARTS = (
    INDEX,
    "LICENSE*",
    "scheduler/*",
    "text_encoder/*",
    "text_encoder_2/*",
    "tokenizer/*",
    "tokenizer_2/*",
    "transformer/*",
    "vae/*",
)


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
        description="Download a FLUX base into weights/. Run it again to resume.",
        epilog="The models are gated: accept the licence on the model's page, then set HF_TOKEN to a token of yours.",
    )
    parser.add_argument("base", nargs="?", default="FLUX.1-dev", choices=REVISIONS, help="default: FLUX.1-dev")
    return parser.parse_args(arguments).base


def download(base: str) -> None:
    folder = WEIGHTS / base
    try:
        sizes = listed_sizes(model_info(base))
        require_space(folder, sizes)
        # The index comes last: where it lies, the base counts as downloaded.
        for names in (set(sizes) - {INDEX}, {INDEX}):
            fetch(base, folder, {name: sizes[name] for name in sorted(names)})
    except GatedRepoError as error:
        raise DownloadError(gated_advice(base)) from error
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise DownloadError(f"{base} was not downloaded: {error}\nRun it again, and it resumes.") from error
    # The hub's notes on an unfinished download are no part of the base.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    print(f"{base} is complete in {folder}.")


def fetch(base: str, folder: Path, sizes: dict[str, int]) -> None:
    missing = missing_files(folder, sizes)
    if missing:
        snapshot_download(f"{OWNER}/{base}", revision=REVISIONS[base], local_dir=folder, allow_patterns=missing)
    wrong = missing_files(folder, sizes)
    if wrong:
        raise DownloadError(
            f"these files in {folder} do not have their published size: {', '.join(wrong)}. Delete them and run it again."
        )


def model_info(base: str) -> ModelInfo:
    info = HfApi().model_info(f"{OWNER}/{base}", revision=REVISIONS[base], files_metadata=True)
    if info.gated and get_token() is None:
        raise DownloadError(gated_advice(base))
    return info


def gated_advice(base: str) -> str:
    return (
        f"{base} is gated. Accept its licence at {constants.ENDPOINT}/{OWNER}/{base}, make a token that may read it "
        f"at {constants.ENDPOINT}/settings/tokens, and run HF_TOKEN=... script/download-weights {base}"
    )


def listed_sizes(info: ModelInfo) -> dict[str, int]:
    """Return the size in bytes of each file that diffusers needs."""
    return {file.rfilename: file.size for file in info.siblings if any(fnmatch(file.rfilename, part) for part in PARTS)}


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
