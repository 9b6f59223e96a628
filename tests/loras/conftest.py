import pytest

from finetuner.bases import Family, flux1


@pytest.fixture
def family() -> Family:
    """The widths and fused linears in these tests are FLUX.1's; test_klein.py has its successor's."""
    return flux1
