"""One source of randomness for each picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from coda.tokenizer import CodaError
from coda.tokenizer.foundation.seeding import derived_seed

Seeds = int | torch.Generator | Sequence[int | torch.Generator] | None


def generators_per_image(generator: Seeds, labels: Sequence[int | None]) -> list[torch.Generator]:
    """One generator for each picture, so that a picture does not depend on what else is sampled with it.

    Args:
        generator: A seed or a generator for all, or one per picture; None takes a seed from torch's global randomness.
        labels: Class of each picture. The j-th picture of class c gets the same generator whatever the others are.

    Raises:
        CodaError: As many generators as pictures were expected.
    """
    if isinstance(generator, Sequence):
        if len(generator) != len(labels):
            raise CodaError(f"{len(generator)} generators for {len(labels)} pictures: give one, or one per picture")
        return [torch.Generator().manual_seed(one) if isinstance(one, int) else one for one in generator]
    if isinstance(generator, int):
        seed = generator
    else:
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    seen: Counter[int | None] = Counter()
    generators = []
    for label in labels:
        number = derived_seed("picture", seed, -1 if label is None else label, seen[label])
        generators.append(torch.Generator().manual_seed(number))
        seen[label] += 1
    return generators
