"""Grad-CAM through MONAI against one written with autograd here; layers, classes and what has no Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import dogmed.models  # noqa: F401  (registers our families in timm)
from dogmed.errors import ConfigError
from dogmed.inference.classifier import Classifier
from dogmed.inference.explain.maps import Explainer
from dogmed.inference.explain.page import Shown, page
from dogmed.inference.explain.pictures import draw
from dogmed.inference.reading.pictures import Picture, read
from dogmed.models.folding import reparameterize
from dogmed.models.trained import Trained
from dogmed.plots import write_figure
from dogmed.weights.records import DataRecord, WeightsRecord

SIZE = 64
CLASSES = ("a", "b", "c")
SMALL: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20)}
NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "dognext": ("dognext_test", {}, "stages.3"),
    "dognext stride 2": ("dognext_test", {"stem_stride": 2, "conv_mlp": False}, "stages.3"),
    "convnextv2": ("convnextv2_atto", SMALL, "stages.3"),
    "convnext": ("convnext_tiny", SMALL, "stages.3"),
    "resnet": ("resnet18", {"channels": (8, 8, 8, 8)}, "layer4"),
    "gaussderresnet avg": ("gaussderresnet_test", {"selection": "avg", "pooling": "avg"}, "last_norm"),
    "gaussderresnet centre": ("gaussderresnet_test", {"zero_order": True}, "blocks.1"),
}  # fmt: skip


def make(
    model: nn.Module | str, kind: str = "multi-class", outputs: int = 3, size: int = SIZE, **options: Any
) -> Classifier:  # fmt: skip
    """A classifier of random weights, as ``open_trained`` gives one: without gradients."""
    torch.manual_seed(0)
    name = "made"
    if isinstance(model, str):
        name, model = model, timm.create_model(model, num_classes=outputs, **options)
    assert isinstance(model, nn.Module)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 1.5  # random networks answer all images alike
    data = DataRecord(
        name="made", size=size, source_size=size, interpolation=None, mean=(0.5,) * 3, std=(0.3,) * 3,
        licence=None, source="npz", kind=kind, classes=CLASSES, channels=3,
    )  # fmt: skip
    record = WeightsRecord(
        model=name, num_classes=outputs, params=1, recipe="finetune", init="scratch", epochs=1, score={},
        data=data, licence=None, temperature=1.7, options=options,
    )  # fmt: skip
    return Classifier(
        Trained(model.eval().requires_grad_(False), record, Path("made")), torch.device("cpu")
    )


def make_picture(size: int = SIZE, seed: int = 0) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)
    pixels[size // 4 : size // 2, size // 2 :] //= 4
    (picture,) = read(pixels, "it", size=size, grey=False)
    return picture


def plain_grad_cam(
    classifier: Classifier, picture: Picture, layer: str, score: Callable[[Tensor], Tensor]
) -> tuple[np.ndarray, Tensor, Tensor]:
    """The map (h, w) by the paper's two equations, with the layer's maps and gradients."""
    model, kept = classifier.model.requires_grad_(True), list[Tensor]()
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: kept.append(output)
    )
    x = torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)[None] / 255
    logits = model((x - 0.5) / 0.3)
    handle.remove()
    (gradient,) = torch.autograd.grad(score(logits)[0], kept[0])
    model.requires_grad_(False)
    maps = kept[0].detach()
    if maps.ndim == 5:  # (S, C, H, B, W)
        maps, gradient = (t[:, :, :, 0].flatten(0, 1)[None] for t in (maps, gradient))
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * maps).sum(1).clamp(min=0)[0].numpy(), maps, gradient


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize("case", NETWORKS)
def test_the_map_is_that_of_autograd(case: str) -> None:
    name, options, layer = NETWORKS[case]
    classifier, picture = make(name, **options), make_picture()
    before = {n: len(m._forward_hooks) for n, m in classifier.model.named_modules()}
    explainer = Explainer(classifier)
    assert explainer.layer.name == layer
    for label in range(3):
        expected, _, _ = plain_grad_cam(classifier, picture, layer, lambda z, k=label: z[:, k])
        (found,) = explainer.explain(picture, label)
        if not expected.max() > 0:
            assert found.peak is None and not found.heat.any()
            continue
        close(found.cells, expected)
        assert found.peak is not None and found.heat.min() >= 0 and found.heat.max() <= 1
        row, column = np.unravel_index(expected.argmax(), expected.shape)
        assert found.peak[:2] == (row, column)
        cell = SIZE / len(expected)
        assert found.peak[2:] == pytest.approx(((column + 0.5) * cell, (row + 0.5) * cell))
    assert any(one.peak for k in range(3) for one in explainer.explain(picture, k))
    assert before == {n: len(m._forward_hooks) for n, m in classifier.model.named_modules()}
    assert not any(m.training for m in classifier.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in classifier.model.parameters())


@pytest.mark.parametrize(
    "name, layer",
    [("dognext_test", "stages.3"), ("resnet18", "layer4"), ("convnext_tiny", "stages.3")],
)
def test_the_layer_is_the_last_before_pooling(name: str, layer: str) -> None:
    options = (
        {} if name == "dognext_test" else {"channels": (8,) * 4} if name == "resnet18" else SMALL
    )
    model: Any = timm.create_model(name, num_classes=3, **options).eval()
    kept: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda m, a, output: kept.append(output))
    features = model.forward_features(torch.randn(1, 3, SIZE, SIZE))
    torch.testing.assert_close(features, kept[0])


def test_kept_kernels_and_the_fused_stem_leave_the_numbers_as_they_are() -> None:
    classifier, picture = make("dognext_test"), make_picture()
    layers = ("stages.3", "stages.0.blocks.0.conv_dw", "stages.0")
    expected = {}
    classifier.model.stem.fused = False
    for layer in layers:
        expected[layer] = plain_grad_cam(classifier, picture, layer, lambda z: z[:, 1])[0]
    classifier.model.stem.fused = True
    classifier.logits(picture.pixels[None])  # keeps kernels
    assert classifier.model.stages[0].blocks[0].conv_dw._cached is not None
    for layer in layers:
        (found,) = Explainer(classifier, layer).explain(picture, 1)
        close(found.cells, expected[layer])
    folded = make(reparameterize(timm.create_model("dognext_test", num_classes=3)))
    folded.model.load_state_dict(reparameterize(classifier.model).state_dict())
    explainer = Explainer(folded, "stages.3")
    (found,) = explainer.explain(picture, 1)
    close(found.cells, expected["stages.3"])
    assert explainer.dog is None and found.kernels == ()


def test_layers_whose_next_works_in_place_can_be_explained() -> None:
    classifier, picture = make("resnet18", channels=(8,) * 4), make_picture()
    explainer = Explainer(classifier, "bn1")
    found = [explainer.explain(picture, k)[0].cells for k in range(3)]
    for module in classifier.model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    expected = [
        plain_grad_cam(classifier, picture, "bn1", lambda z, k=k: z[:, k])[0] for k in range(3)
    ]
    close(np.stack(found), np.stack(expected))


@pytest.mark.parametrize(
    "layer, dog, pixels",
    [
        ("stages.3", "stages.3.blocks.0.conv_dw", 16),
        ("stages.2.blocks.0", "stages.2.blocks.0.conv_dw", 8),
        ("stages.2.blocks.1.conv_dw", "stages.2.blocks.1.conv_dw", 16),
        ("stages.2.blocks.0.mlp.fc1", "stages.2.blocks.0.conv_dw", 8),
        ("stem", None, 0),
    ],
)
def test_the_strongest_kernels_are_of_the_nearest_dogconv(
    layer: str, dog: str | None, pixels: int
) -> None:
    classifier, picture = make("dognext_test"), make_picture()
    explainer = Explainer(classifier, layer)
    assert (explainer.dog, explainer.kernel_pixels) == (dog, pixels)
    (found,) = explainer.explain(picture, 2)
    if dog is None:
        assert found.kernels == ()
        return
    _, maps, gradient = plain_grad_cam(classifier, picture, dog, lambda z: z[:, 2])
    parts = (gradient.mean((2, 3)) * maps.mean((2, 3)))[0].numpy()
    order = [k for k in np.argsort(-parts)[:8] if parts[k] > 0]
    assert [kernel.channel for kernel in found.kernels] == order and order
    np.testing.assert_allclose([k.part for k in found.kernels], parts[order], rtol=1e-3)
    module: Any = classifier.model.get_submodule(dog)
    for kernel in found.kernels:
        np.testing.assert_array_equal(kernel.kernel, module.kernel()[kernel.channel, 0].numpy())


def test_classes_that_are_explained() -> None:
    picture = make_picture()
    classifier = make("dognext_test")
    expected = classifier.predict(picture.pixels)
    (found,) = Explainer(classifier).explain(picture)
    assert (found.name,) == expected.names[0] and found.decided
    assert found.probability == expected.probabilities.max()
    many = make("dognext_test", "multi-label")
    for bias, count in ((20.0, 3), (-20.0, 1)):
        many.model.get_classifier().bias.data.fill_(bias)
        explained = Explainer(many).explain(picture)
        assert len(explained) == count and all(one.decided == (bias > 0) for one in explained)
        likeliest = many.predict(picture.pixels).probabilities[0]
        assert [one.probability for one in explained] == sorted(likeliest)[-count:] or count == 3


def test_a_class_without_an_output_of_its_own_has_its_log_probability_explained() -> None:
    classifier, picture = make("dognext_test", "ordinal", outputs=2), make_picture()

    def middle(z: Tensor) -> Tensor:  # P(y > 0) (1 - P(y > 1 | y > 0))
        return (z[:, 0].sigmoid() * (1 - z[:, 1].sigmoid())).log()

    expected, _, _ = plain_grad_cam(classifier, picture, "stages.3", middle)
    (found,) = Explainer(classifier).explain(picture, 1)
    np.testing.assert_allclose(found.cells, expected, rtol=1e-3, atol=1e-6)


def test_a_stage_of_a_single_cell_is_passed_over() -> None:
    explainer = Explainer(make("dognext_test", size=28))
    assert (explainer.layer.name, explainer.layer.side) == ("stages.2", 2) and explainer.passed_over
    assert not Explainer(make("dognext_test")).passed_over


def test_pixels_of_the_file_are_told_where_it_was_stretched() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 128, 3)).astype(np.uint8)
    (picture,) = read(pixels, "it", size=SIZE, grey=False)
    (found,) = Explainer(make("dognext_test"), "stages.1").explain(picture)
    assert found.peak is not None
    assert found.peak.x == (found.peak.column + 0.5) * 16
    assert found.peak.y == (found.peak.row + 0.5) * 4


def test_a_centre_that_only_derivatives_reach_has_gradients_of_mean_zero() -> None:
    classifier, picture = make("gaussderresnet_test"), make_picture()
    with pytest.raises(ConfigError, match="selects the centre and has no zero order"):
        Explainer(classifier)
    _, _, gradient = plain_grad_cam(classifier, picture, "blocks.1", lambda z: z[:, 0])
    assert gradient.abs().sum() > 0
    assert gradient.mean((2, 3)).abs().max() < 1e-5 * gradient.abs().mean((2, 3)).max()


@pytest.mark.parametrize(
    "name, options, layer, told",
    [
        ("dognext_test", {}, "stage.3", r"no such layer \(did you mean 'stages.3'\?\)"),
        ("dognext_test", {}, "xyz", r"no such layer \(its stages: stages.0, stages.1"),
        ("dognext_test", {}, "head", r"--layer head gives \(1, 3\), expected square maps"),
        (
            "convnext_tiny",
            SMALL,
            "stages.3.blocks.0.mlp.fc1",
            r"gives \(1, 2, 2, 80\), expected square",
        ),
        ("test_vit", {"img_size": SIZE}, None, "test_vit has no stage with square maps"),
    ],
)
def test_what_has_no_grad_cam_is_one_line(
    name: str, options: dict[str, Any], layer: str | None, told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        Explainer(make(name, **options), layer)
    assert "\n" not in str(raised.value)


def test_a_row_is_drawn_for_each_label_and_an_empty_map_is_told(tmp_path: Path) -> None:
    picture = make_picture()
    classifier = make("dognext_test", "multi-label")
    classifier.model.get_classifier().bias.data.fill_(20.0)
    explainer = Explainer(classifier)
    found = explainer.explain(picture)
    weight = classifier.model.get_classifier().weight.data
    weight[1] = 0  # nothing speaks for the second
    found[1:2] = explainer.explain(picture, 1)
    assert found[1].peak is None and not found[1].heat.any() and found[1].kernels == ()
    figure = draw(explainer, picture, found, "bright")
    titles = [ax.get_title() for ax in figure.axes]
    assert sum(title.startswith(("a: ", "b: ", "c: ")) for title in titles) == 3
    assert sum("none speaks for it" in title for title in titles) == 1
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels.count("the map is 0 everywhere") == 1
    assert write_figure(figure, tmp_path / "it.png").stat().st_size > 10_000
    text = page(explainer, [Shown(picture, found, "bright")], ["it is empty"])
    assert text.count("<figure>") == 9 and "the map is 0 everywhere" in text
