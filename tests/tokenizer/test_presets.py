import pytest

from coda.tokenizer import CodaError, CodeLayout
from coda.tokenizer.presets import PRESETS, adapt_preset


@pytest.mark.parametrize(("name", "factor", "tokens"), [("paper-f8", 8, 2240), ("paper-f16", 16, 680)])
def test_the_papers_recipes_fit_their_vaes(name: str, factor: int, tokens: int) -> None:
    settings = adapt_preset(name)
    assert settings.sides is not None and settings.size == 256
    layout = CodeLayout(settings.sides, settings.codebook_size)
    assert layout.grid == (256 // factor, 256 // factor) and layout.num_tokens == tokens
    assert settings.steps * settings.batch_size == pytest.approx(10 * 1_281_167, rel=0.01)  # ten epochs of ImageNet


def test_a_preset_can_be_changed_but_not_by_accident() -> None:
    changed = adapt_preset("paper-f8", lr=1e-4)
    assert changed.lr == 1e-4 and changed.lora_rank == PRESETS["paper-f8"]["lora_rank"] == 32
    with pytest.raises(TypeError):
        PRESETS["mine"] = {}  # type: ignore[index]
    with pytest.raises(CodaError, match="'paper' is not one of paper-f8, paper-f16"):
        adapt_preset("paper")
