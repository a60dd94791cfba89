from __future__ import annotations

import pytest
import torch

from coda.tokenizer import CodeLayout
from coda.tokenizer.usage import CodeUsage, effective_rank


def test_usage_and_perplexity_of_known_codes() -> None:
    usage = CodeUsage(CodeLayout([1, 2], 8))
    usage.update(torch.tensor([[0, 1, 2, 3, 4], [0, 1, 1, 1, 1]]))
    first, second = usage.per_level()
    assert (first.codes_seen, first.tokens, first.usage, first.perplexity) == (1, 2, 12.5, pytest.approx(1))
    assert (second.codes_seen, second.tokens, second.usage) == (4, 8, 50)
    frequencies = torch.tensor([5, 1, 1, 1]).double() / 8
    assert second.perplexity == pytest.approx(float(torch.exp(-(frequencies * frequencies.log()).sum())))
    assert usage.overall().codes_seen == 5
    assert usage.overall().tokens == 10


def test_batches_add_up() -> None:
    layout = CodeLayout([1, (2, 3), 4], 32)
    codes = torch.randint(32, (12, layout.num_tokens))
    whole, parts = CodeUsage(layout), CodeUsage(layout)
    whole.update(codes)
    for part in codes.split(5):
        parts.update(part)
    assert whole.per_level() == parts.per_level()


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (torch.arange(16).repeat(3, 1), (100, 100, 16, 4)),  # all codes are equally frequent
        (torch.zeros(1, 16, dtype=torch.int64), (6.25, 100, 1, 0)),
        (torch.zeros(0, 16, dtype=torch.int64), (0, 0, 0, 0)),
    ],
)
def test_usage_attainable_perplexity_and_bits(codes: torch.Tensor, expected: tuple[float, ...]) -> None:
    usage = CodeUsage(CodeLayout([4], 16))
    usage.update(codes)
    (level,) = usage.per_level()
    assert (level.usage, level.attainable, level.perplexity, level.bits) == pytest.approx(expected)


def test_few_tokens_cannot_show_many_codes() -> None:
    usage = CodeUsage(CodeLayout([1, 4], 64))
    usage.update(torch.randint(64, (4, 17)))
    assert usage.per_level()[0].attainable == 100 * 4 / 64


def test_effective_rank_counts_dimensions() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.randn(50, 1) @ torch.randn(1, 6)) == pytest.approx(1, abs=1e-5)
