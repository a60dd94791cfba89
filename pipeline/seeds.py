"""The seed law: an image depends on its class and its own seed alone, and image j of a class has seed + j."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Integral

import torch

from coda.tokenizer import CodaError

Seeds = int | torch.Generator | Sequence[int | torch.Generator] | None


def image_seeds(seed: int, labels: Sequence[int | None]) -> list[int]:
    """The seed of each image: seed + j for the j-th image of its class (of no class, None), counted from 0.

    So `pipeline(207, num_images_per_class=4, generator=0)` makes four images, of which the last is
    `pipeline(207, generator=3)`, `coda sample --class 207 --seed 3 --num 1` and image 3 of `coda benchmark gfid`.
    """
    earlier: Counter[int | None] = Counter()
    seeds = []
    for label in labels:
        seeds.append(seed + earlier[label])
        earlier[label] += 1
    return seeds


def generators_per_image(generator: Seeds, labels: Sequence[int | None]) -> list[torch.Generator]:
    """One generator for each image, so that neither batch size nor order changes an image.

    Args:
        generator: A seed for all (see `image_seeds`); a generator, which is asked for such a seed; or one seed or
            generator per image. None asks torch's global generator for a seed.
        labels: Class of each image, None for no class.

    Raises:
        CodaError: If there is not one generator per image, or a seed is not an integer of 64 bits.
    """
    if isinstance(generator, Iterable):
        given = list(generator)
        if len(given) != len(labels):
            raise CodaError(f"{len(given)} generators for {len(labels)} images: pass one, or one per image")
        return [one if isinstance(one, torch.Generator) else _seeded(one) for one in given]
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        generator = int(torch.randint(2**62, (), generator=generator, device=device))
    _seeded(generator)  # refuses what is not a seed
    return [_seeded(seed) for seed in image_seeds(int(generator), labels)]


def _seeded(seed: object) -> torch.Generator:
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**63:
        raise CodaError(f"generator {seed!r} is not a seed (an integer of 64 bits) or a torch.Generator")
    return torch.Generator().manual_seed(int(seed))
