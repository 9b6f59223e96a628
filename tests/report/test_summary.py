from dataclasses import replace

from reports import make


def test_what_an_extraction_kept_is_said_where_there_was_one(base):
    made = make(base)
    assert made.summary.facts["energy kept by the extraction"] == "50.0%"
    assert "4 steps more" in made.summary.recipe[0]
    del made.manifest["energy_kept"], made.manifest["velocity_kept"]
    made.request = replace(made.request, finetune_type="lora")
    made.recipe = replace(made.recipe, finetune_type="lora")
    assert not any("kept" in name for name in made.summary.facts)
    assert "steps more" not in made.summary.recipe[0]


def test_each_phase_has_its_seconds_and_its_peak_memory(base):
    assert make(base).summary.cost == [("encode", "1.5", "1.00 GiB"), ("train", "60.2", "2.00 GiB")]


def test_every_number_of_the_recipe_is_there(base):
    made = make(base)
    numbers = made.summary.numbers
    assert numbers["plan.micro_batch"] == "4" and numbers["learning_rate"] == "0.003" and numbers["betas"] == "0.9, 0.99"
    nested = {f"plan.{name}" for name in made.manifest["recipe"]["plan"]}
    assert set(numbers) == set(made.manifest["recipe"]) - {"plan"} | nested
    assert any("a strength of its own: 0.5 to 2," in line for line in made.summary.recipe)


def test_it_says_whether_the_rest_was_preserved(base):
    made = make(base)
    for images, said in ((0, False), (1, True)):
        made.recipe = replace(made.recipe, preserved_images=images)
        assert any("without the trigger word" in line for line in made.summary.recipe) == said
