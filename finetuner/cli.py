"""The command line for people. What lists and shows imports no torch, so as to answer at once."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from finetuner.store import StoreError, open_store

app = typer.Typer(
    help="Look after the finetunes of the store that FINETUNE_STORE names.", add_completion=False, no_args_is_help=True
)
Id = Annotated[str, typer.Argument(metavar="ID", help="The finetune_id that the training returned.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command; what a user can mend is said in one sentence, not as a traceback."""
    logging.basicConfig(format="%(message)s")
    try:
        app(prog_name="python -m finetuner")
    except (ValueError, StoreError, OSError, SafetensorError) as error:
        sys.exit(f"python -m finetuner: {error}")


@app.command("list")
def list_finetunes(as_json: Json = False) -> None:
    """List the finetunes, the newest first."""
    listings = open_store().listings()
    if as_json:
        return print(json.dumps([asdict(listing) for listing in listings], indent=2))
    table = Table("finetune_id", "created", "base", "trigger word", box=None)
    for listing in listings:
        table.add_row(listing.id, listing.created[:16].replace("T", " "), listing.base, listing.trigger_word)
    wide_console().print(table)


@app.command()
def show(finetune_id: Id, as_json: Json = False) -> None:
    """Show what a finetune was made of; with --json its whole manifest."""
    manifest = open_store().manifest(finetune_id)
    if as_json:
        return print(json.dumps(manifest, indent=2))
    table = Table(show_header=False, box=None)
    for name, value in facts(manifest).items():
        table.add_row(name, str(value))
    wide_console().print(table)


@app.command()
def delete(finetune_id: Id) -> None:
    """Delete a finetune. A server that has it in its cache of an object store, or in memory, can serve it still."""
    open_store().delete(finetune_id)
    print(f"Deleted {finetune_id}")


@app.command("export")
def export(
    finetune_id: Id,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .safetensors file to write.")],
    file_format: Annotated[
        Literal["diffusers", "kohya"], typer.Option("--format", help="diffusers, which ComfyUI reads too, or kohya.")
    ] = "diffusers",
) -> None:
    """Write a finetune's LoRA to a file for other tools."""
    from finetuner.loras import export_lora

    export_lora(open_store().fetch(finetune_id), file_format, file)
    print(f"Wrote {file}")


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A LoRA's .safetensors file, or a folder or archive with one in it.")
    ],
    trigger_word: Annotated[str, typer.Option(help="The word that prompts name its concept by.")],
    resize: Annotated[bool, typer.Option("--resize", help="Cut a rank above 32 to 32, and say how much that keeps.")] = False,
    blocks_only: Annotated[
        bool,
        typer.Option(
            "--blocks-only",
            help="Leave out what is not in the transformer's blocks (text encoders, embedders, the output layer), and say how"
            " much that is.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a LoRA that was trained elsewhere a finetune of the base that BASE_MODEL chooses."""
    from finetuner.loras import import_lora

    tell(import_lora(file, trigger_word, open_store(), resize=resize, blocks_only=blocks_only).id, as_json)


@app.command()
def publish(job: Annotated[str, typer.Argument(metavar="JOB", help="As the failed training named it.")], as_json: Json = False):
    """Publish the result of a training that was done when the store could not be reached."""
    from finetuner import finetune

    tell(finetune.publish(job).id, as_json)


def tell(finetune_id: str, as_json: bool) -> None:
    print(json.dumps({"finetune_id": finetune_id}) if as_json else finetune_id)


def facts(manifest: dict) -> dict:
    """What of a manifest people ask for."""
    base, inputs = manifest["base"], manifest["inputs"]
    seconds = {"training took": f"{sum(manifest['seconds'].values()):.0f} s"} if "seconds" in manifest else {}
    measured = {name: manifest[name] for name in ("images", "final_loss", "velocity_kept") if name in manifest}
    imported = {"imported from": manifest["imported"]["file"]} if "imported" in manifest else {}
    size = {"size": f"{sum(manifest['bytes'].values()) / 1e6:.1f} MB"}
    origin = {"created": manifest["created"], "base": f"{base['name']} {base.get('version', '')}".strip()}
    return {"finetune_id": manifest["id"]} | origin | inputs | imported | measured | seconds | size


def wide_console() -> Console:
    """A console that never cuts an id: where the output is no terminal, lines are as long as they must be."""
    return Console() if sys.stdout.isatty() else Console(width=200)
