"""The exported graphs in onnxruntime against the tokenizer in PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from coda.tokenizer import CodaError, CodaTokenizer, ResidualQuantizer, load_vae
from coda.tokenizer.onnx_export import _CODES_AT_ONCE, export_onnx
from coda.tokenizer.vae.continuous_vae import ContinuousVAE

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'coda[onnx]'")


def run(path: Path, **inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0])


def assert_graphs_equal_torch(tokenizer: CodaTokenizer, folder: Path, images: torch.Tensor) -> None:
    expected = tokenizer.encode(images)
    codes = run(folder / "encoder.onnx", images=images)
    assert codes.dtype == torch.int64 and torch.equal(codes, expected)
    decoded = run(folder / "decoder.onnx", codes=codes)
    layout = tokenizer.layout_for(*images.shape[-2:])
    torch.testing.assert_close(decoded, tokenizer.decode(expected, layout=layout), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("norm", "size"), [(None, None), ("rms_norm", None), ("layer_norm", (24, 40))])
def test_the_graphs_give_the_codes_and_images_of_torch(
    small_vae: ContinuousVAE, tmp_path: Path, norm: str | None, size: tuple[int, int] | None
) -> None:
    quantizer = ResidualQuantizer(4, 50, (1, 2, 3, (5, 4), 8), attention_dim=12, norm=norm)
    tokenizer = CodaTokenizer(small_vae, quantizer).eval()
    export_onnx(tokenizer, tmp_path, size)
    for batch in (1, 3):
        assert_graphs_equal_torch(tokenizer, tmp_path, torch.rand(batch, 3, *(size or tokenizer.size)) * 2 - 1)
    described = json.loads((tmp_path / "onnx.json").read_text())
    assert (described["fingerprint"], described["size"]) == (tokenizer.fingerprint, list(size or tokenizer.size))


def test_a_real_image_through_a_real_vae(shared_data: Path, tmp_path: Path) -> None:
    from coda.tokenizer.images import decode_image, to_unit

    vae = load_vae(shared_data / "taef2")
    codebook_size = _CODES_AT_ONCE + 1000  # in two parts
    quantizer = ResidualQuantizer(vae.latent_channels, codebook_size, (1, 2, 4, 8), attention_dim=64, norm="rms_norm")
    with torch.no_grad():  # of equal codes, in either part, the first is taken
        quantizer.codebook.weight[_CODES_AT_ONCE:] = quantizer.codebook.weight[:1000]
    tokenizer = CodaTokenizer(vae, quantizer).eval()
    export_onnx(tokenizer, tmp_path)
    files = sorted((shared_data / "imagenet-sample-256").rglob("*.*"))[:2]
    images = torch.stack([to_unit(decode_image(file.read_bytes(), tokenizer.size)) for file in files])
    assert_graphs_equal_torch(tokenizer, tmp_path, images)


def test_what_is_missing_is_named(small_vae: ContinuousVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it could not be imported
    tokenizer = CodaTokenizer(small_vae, ResidualQuantizer(4, 50, (1, 2)))
    with pytest.raises(CodaError, match=r"exporting needs onnx: pip install 'coda\[onnx\]'"):
        export_onnx(tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
