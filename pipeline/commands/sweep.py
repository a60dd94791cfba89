"""`coda sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from coda import benchmarks
from coda.benchmarks.settings import SweepSettings
from coda.tokenizer.foundation.settings import Precision
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, UsageError, Without
from .flags import ModelOptions, Out, Placement
from .model import open_pipeline, sampler_of, sampling_record
from .output import ending_of


def sweep(
    *,
    source: ModelOptions,
    cache: Annotated[
        Path | None, Help("Code cache whose decoded codes samples are compared with; by default runs/cache.")
    ] = None,
    reference: Annotated[str | None, Help("Images (as --data elsewhere) to compare with, instead of a cache.")] = None,
    write: Annotated[bool, Help("Write the winner into the model's scheduler, for all later sampling.")] = False,
    out: Out = Path("runs/sweep"),
    dtype: Annotated[
        Precision, Help("Precision of the sampling; auto is bfloat16 on CUDA and float32 elsewhere.")
    ] = "auto",
    settings: SweepSettings,
    run: Annotated[RunOptions, Without("dtype", "checkpoint_every", "log_with")],
) -> str:
    """Search the sampling settings that make the best samples: guidance, noise, temperature and steps.

    One setting after the other goes to its neighbors for as long as the Frechet distance of samples falls, within
    --minutes. The winner must also be better on seeds that the search did not see. Rerun the same command to resume.

    Examples:
        coda sweep --model runs/generator --minutes 20
        coda sweep --model runs/generator --reference photos --num-images 2000 --write
    """
    from coda.benchmarks.class_matching import match_classes
    from coda.benchmarks.image_sets.decoded_codes import DecodedCodes
    from coda.benchmarks.image_sets.image_set import open_image_set
    from coda.benchmarks.sweep import GRID
    from coda.tokenizer.code_cache import CodeCache
    from coda.tokenizer.fingerprint import weights_digest
    from coda.tokenizer.foundation.atomic_io import write_bytes

    if cache is not None and reference is not None:
        raise UsageError("--cache and --reference are both given; samples are compared with one of them")
    config = Path(source.model).expanduser() / "scheduler" / "scheduler_config.json"
    if write and not config.is_file():
        raise UsageError(f"--write needs a directory with a scheduler, and there is no {config}")
    pipeline = open_pipeline(source, Placement(run.device, dtype))
    known, layout = pipeline.classes, pipeline.transformer.layout
    names = {i: known[i].wnid or ", ".join(known[i].names) for i in known.seen} if reference is not None else None
    found: Any
    if reference is None:
        found = DecodedCodes(CodeCache(cache or Path("runs/cache")), pipeline.decode, settings.limit, settings.seed)
    else:
        found = open_image_set(reference, pipeline.tokenizer.size, settings.limit, settings, run)
    classes = match_classes(found.labels(), found.class_names, names)[0] if known.seen else [0]  # [0] is ignored
    scheduler, kind = pipeline.scheduler.config, type(pipeline.scheduler)

    def sampler_with(choice: dict[str, Any]) -> Any:
        pipeline.scheduler = kind.from_config(scheduler, **choice)
        return sampler_of(pipeline)

    start = {name: scheduler[name] for name in GRID if isinstance(scheduler[name], int | float)}
    record = sampling_record(pipeline, source.model) | {"weights": weights_digest("", pipeline.transformer)}
    report = benchmarks.sweep(
        sampler_with, found, classes, start, out, settings, run, record, least_steps=layout.num_levels
    )
    if write:
        write_bytes(config, kind.from_config(scheduler, **report.provenance["winner"]).to_json_string().encode())
    return ending_of(report, out) + (f"; the winner is in {config}" if write else "")
