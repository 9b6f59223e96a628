"""The house holds: imports run one way, and through a wing's front door."""

import ast
from pathlib import Path

import pytest

from finetuner.bases.families import FAMILIES

PROJECT = Path(__file__).parent.parent
LIBRARY = PROJECT / "finetuner"

# Each floor may use those above it in this list, and its neighbours not at all.
FLOORS = [
    {"paths", "phases", "requests", "data_uris", "other_names", "libraries"},
    {"bases", "store"},
    {"data"},
    {"loras"},
    {"training", "serving"},
    {"report"},
    {"finetune", "generate"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py")


def room(path: Path) -> str:
    """The wing that a module belongs to, or the module itself where it stands alone."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a module imports, also inside of functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
    return found


def exported(wing: str) -> list[str]:
    (names,) = [
        ast.literal_eval(node.value)
        for node in ast.parse((LIBRARY / wing / "__init__.py").read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    ]
    return names


def test_every_room_has_its_floor():
    assert {room(path) for path in MODULES} == set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_run_one_way_and_through_the_front_door(path):
    own = room(path)
    for module, name in imports(path):
        top, _, inside = module.partition(".")
        assert top not in ("cog", "ray", "fleet"), f"{module}: the library knows nothing of it"
        if top != "finetuner":
            continue
        other, _, behind = (inside or name).partition(".")
        if other == own:
            continue
        assert FLOOR[other] < FLOOR[own], f"{own} imports {other}, which is not below it"
        assert not behind, f"{module} reaches behind the front door of {other}"
        if (LIBRARY / other).is_dir():
            assert name in exported(other), f"{other} does not export {name}"


def test_the_fleet_knows_nothing_of_cog():
    for path in sorted((PROJECT / "fleet").rglob("*.py")):
        used = {module.partition(".")[0] for module, _ in imports(path)}
        assert not used & {"cog", "coglet", "entrypoints"}, path


@pytest.mark.parametrize("wing", sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py")))
def test_a_wings_first_page_says_what_it_is(wing):
    page = ast.get_docstring(ast.parse((LIBRARY / wing / "__init__.py").read_text()))
    assert "In: " in page and "Out: " in page and "Begin with " in page


def test_only_the_bases_name_a_family():
    classes = [kind.__name__ for family in FAMILIES for kind in (family.PIPELINE, family.TRANSFORMER, family.VAE)]
    named = [path for path in MODULES if any(name in path.read_text() for name in classes)]
    assert named and {room(path) for path in named} == {"bases"}
