"""Measure what changes to the recipe do.

    python -m benchmarks.ablate --change logit_mean=0.5 --change batch_size=8,training_steps=150 --concepts styles

Each ``--change`` is one variant against the library's own recipe, all trained on the same concepts and seeds. Give changes of
equal cost: batch_size x training_steps counts the images seen. Rows go to a file of JSON lines; what is there already is not
measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from benchmarks.fidelity.cell import Cell
from benchmarks.fidelity.concepts import chosen
from benchmarks.fidelity.logged import LOG
from benchmarks.fidelity.pool import run_cells
from benchmarks.fidelity.tables import comparison
from benchmarks.fidelity.variants import OURS, PRESETS, Variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--change", action="append", default=[], help=f"field=value[,field=value], or: {', '.join(PRESETS)}")
    parser.add_argument("--concepts", default="all", help="names, or styles, characters, products; separated by commas")
    parser.add_argument("--images", help="numbers of images in the archive, separated by commas; each counts as a concept")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="training_steps of every variant that does not set its own")
    parser.add_argument("--against", default=OURS.name, help="the variant that the others are compared with")
    parser.add_argument("--log", type=Path, default=LOG)
    arguments = parser.parse_args()

    variants = [Variant.parse(text) for text in (arguments.against, *arguments.change)]
    if arguments.steps:
        variants = [v.with_steps(arguments.steps) for v in variants]
    concepts = chosen(arguments.concepts)
    if arguments.images:
        concepts = [concept.with_images(int(count)) for concept in concepts for count in arguments.images.split(",")]
    cells = [Cell(concept, variant, seed) for seed in range(arguments.seeds) for concept in concepts for variant in variants]
    names = {cell.key(): cell.variant.name for cell in cells}
    found = tqdm(run_cells(cells, arguments.log), total=len(cells), desc="cells")
    rows = [row | {"variant": names[row["key"]]} for row, _ in found]
    print(comparison(rows, variants[0].name))


if __name__ == "__main__":
    main()
