"""Strict loading of weights into a model: only the classifier may differ, and that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from dogmed.errors import WeightsError
from dogmed.models.weights import some
from dogmed.weights.records import DataRecord, WeightsRecord


@dataclass(frozen=True)
class Loaded:
    """What went into a model, for the log and the run's records; as a string, one line."""

    init: str
    """As asked for."""
    source: str | None = None
    """The file or repository; None for scratch."""
    licence: str | None = None
    sha256: str | None = None
    """Of all tensors of the source."""
    not_taken: tuple[str, ...] = ()
    """Parameters of the classifier that were left at their initial values or left out."""
    classes: tuple[str, ...] = ()
    """What the model's outputs stand for, where that was said."""
    data: DataRecord | None = None
    """What the weights were trained on, where known."""
    record: WeightsRecord | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Constructor options the model was built with."""
    notes: tuple[str, ...] = ()
    """What else should be said."""

    def __str__(self) -> str:
        if self.source is None:
            return "; ".join(["from scratch", *self.notes])
        licence = self.licence or "not stated"
        if "-nc" in licence.lower():
            licence += " (non-commercial)"
        short = f", sha256 {self.sha256[:12]}" if self.sha256 else ""
        named = "" if self.init == self.source else f"{self.init} from "
        line = f"{named}{self.source}, licence {licence}{short}; {self._of_classifier()}"
        return "; ".join([line, *self.notes])

    def _of_classifier(self) -> str:
        if not self.not_taken:
            same = f": the same {len(self.classes)} classes ({some(self.classes)})"
            return "classifier taken too" + same * bool(self.classes)
        why = ""
        if self.classes and not same_classes(self.data, self.classes):
            theirs = self.data.classes if self.data else ()
            why = f" (theirs is for {some(theirs)})" if theirs else ""
        return f"new classifier{why}, not taken: {', '.join(self.not_taken)}"


def same_classes(data: DataRecord | None, classes: Sequence[str]) -> bool:
    """Whether weights were trained to tell these classes, in this order; numbers are no names."""
    named = any(not name.isdigit() for name in classes)
    return named and data is not None and data.classes == tuple(classes)


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    trained: str | None = None,
    classifier: bool = True,
) -> tuple[str, ...]:
    """Load ``state`` into a timm model; only the classifier may differ.

    The classifier is taken too if all of it fits, and otherwise keeps its initial values.

    Args:
        model: changed only if everything fits.
        state: tensors by name.
        source: file or repository, for the message.
        trained: name of the architecture the tensors come from, where known.
        classifier: whether to take it; False leaves it even if it fits.

    Returns:
        Names in the model's classifier, or in that of ``state``, that were not taken.

    Raises:
        WeightsError: anything outside the classifier is missing, left over or of another shape, or
            anything holds integers where the model has floating-point numbers, or the reverse.
    """
    own = model.state_dict()
    head = {n for n in (*own, *state) if n.startswith(tuple(_classifier_prefixes(model)))}
    head_fits = classifier and all(
        n in own and n in state and own[n].shape == state[n].shape for n in head
    )
    not_taken = () if head_fits else tuple(sorted(head))
    missing = [n for n in own if n not in state and n not in head]
    left_over = [n for n in state if n not in own and n not in head]
    common = [n for n in own if n in state and n not in head]
    misshapen = [n for n in common if own[n].shape != state[n].shape]
    if missing or left_over or misshapen:
        said = [
            f"{len(names)} {what} ({some(names)})"
            for names, what in ((missing, "missing"), (left_over, "unknown"))
            if names
        ]
        if misshapen:
            name = misshapen[0]
            shapes = f"{tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            said.append(f"{len(misshapen)} of another shape ({name} is {shapes})")
        raise WeightsError(
            f"the weights in {source} do not fit {architecture(model)}: "
            f"{_cause(model, state, trained, common, misshapen)}; tensors: {', '.join(said)}"
        )
    shared = [n for n in own if n in state and own[n].shape == state[n].shape]
    for name in shared:  # torch would convert without a word
        if own[name].is_floating_point() != state[name].is_floating_point():
            raise WeightsError(
                f"the weights in {source} do not fit {architecture(model)}: {name} holds "
                f"{state[name].dtype}, expected {own[name].dtype}"
            )
    taken = {name: state[name] for name in common} | (
        {} if not_taken else {n: state[n] for n in head}
    )
    model.load_state_dict(taken, strict=False)
    return not_taken


def architecture(model: nn.Module) -> str:
    """Return the name under which timm built ``model``."""
    return _timm_config(model).get("architecture", type(model).__name__)


def _timm_config(model: nn.Module) -> dict[str, Any]:
    """Return the configuration that timm hung onto ``model``."""
    config: Any = getattr(model, "pretrained_cfg", {})
    return config


def _classifier_prefixes(model: nn.Module) -> list[str]:
    """``head.fc.`` and the like: the modules timm's ``get_classifier`` returns, by their names."""
    classifier = cast(Any, model).get_classifier()
    heads = classifier if isinstance(classifier, tuple | list) else (classifier,)
    return [f"{n}." for n, m in model.named_modules() if any(m is head for head in heads)]


def _cause(
    model: nn.Module,
    state: Mapping[str, Tensor],
    trained: str | None,
    common: list[str],
    misshapen: list[str],
) -> str:
    """What most likely explains weights that do not fit."""
    if trained is not None and trained != architecture(model):
        return f"they are weights of {trained}"
    if not common:
        return "no name is the same, so they are of another architecture"
    first = _timm_config(model).get("first_conv")
    for conv in first if isinstance(first, tuple | list) else (first,):
        name = f"{conv}.weight"
        if name in misshapen:
            theirs, ours = state[name].shape, model.state_dict()[name].shape
            if theirs[:1] + theirs[2:] == ours[:1] + ours[2:]:
                return f"they take images of {theirs[1]} channels, the model {ours[1]}"
    if len(misshapen) > len(common) / 2:
        return "they are of another size of this architecture"
    return "they are of a variant of this architecture, or of another version of it"
