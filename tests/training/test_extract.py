import pytest
import torch

from finetuner.training.extract import extract_lora


def decaying(rows, columns, seed):
    """A matrix whose singular values fall off as those of a fine-tune's change do."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    s = torch.arange(1, min(rows, columns) + 1).float() ** -0.7
    return u[:, : len(s)] * s @ v[:, : len(s)].T


def product(weights, name):
    return weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]


def test_a_change_of_low_rank_is_extracted_exactly():
    change = torch.randn(96, 8) @ torch.randn(8, 64)
    extraction = extract_lora({"linear": change}, rank=16, seed=0)
    assert torch.allclose(product(extraction.weights, "linear"), change, atol=1e-3)
    assert extraction.total_energy == pytest.approx(1.0, abs=1e-5)


def test_it_keeps_the_energy_that_the_full_svd_keeps():
    change = decaying(192, 256, seed=1)
    s = torch.linalg.svdvals(change)
    best = (s[:16].square().sum() / s.square().sum()).item()
    assert extract_lora({"linear": change}, rank=16, seed=0).energy["linear"] == pytest.approx(best, abs=2e-3)


def test_large_values_are_not_clamped():
    change = decaying(64, 64, seed=2)
    change[3, 5] = 50.0
    extracted = product(extract_lora({"linear": change}, rank=16, seed=0).weights, "linear")
    assert extracted[3, 5].item() == pytest.approx(50.0, rel=0.01)


def test_both_matrices_carry_half_of_the_scale():
    weights = extract_lora({"linear": 1e-4 * decaying(64, 64, seed=3)}, rank=16, seed=0).weights
    a, b = weights["linear.lora_A.weight"], weights["linear.lora_B.weight"]
    assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-3)


def test_the_energy_of_all_weighs_matrices_by_their_size():
    extraction = extract_lora({"low": 10 * torch.ones(64, 64), "full": torch.eye(64)}, rank=16, seed=0)
    assert extraction.energy["low"] == pytest.approx(1.0, abs=1e-4)
    assert extraction.energy["full"] == pytest.approx(16 / 64, abs=1e-3)
    assert extraction.total_energy > 0.99


def test_a_matrix_that_did_not_change_gives_zeros():
    extraction = extract_lora({"linear": torch.zeros(64, 64)}, rank=16, seed=0)
    assert not product(extraction.weights, "linear").any() and extraction.total_energy == 1.0


def test_it_repeats_itself():
    change = {"linear": decaying(192, 256, seed=4)}
    first, second = extract_lora(change, 16, seed=5), extract_lora(change, 16, seed=5)
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
