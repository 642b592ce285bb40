"""The variants of DoGNeXt, read from ``configs/ablate.yaml``, and the runs that train them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dogmed import references
from dogmed.config import recipe
from dogmed.errors import ConfigError, nearest
from dogmed.finetune.config import FinetuneConfig
from dogmed.finetune.lists import split_words

BASELINE = "dognext"
FAMILY = "dognext_"
_INITIAL = {"dog_init", "dog_margin"}  # options that say no more than the first weights


@dataclass(frozen=True)
class Thesis:
    """What the thesis measured of a variant on ImageNet-1K, atto at 224 px; accuracies in percent."""

    table: str
    row: str
    acc1: float
    acc5: float


@dataclass(frozen=True)
class Variant:
    """A network and how it differs from DoGNeXt."""

    name: str
    title: str
    net: Mapping[str, Any]
    """Options of the network, by field of ``NetConfig``."""
    family: str
    """Another family, whose network of the same size it is; empty for DoGNeXt itself."""
    thesis: Thesis | None

    def model(self, size_of: str) -> str:
        """Its model in the size of a DoGNeXt: ``dognext_atto`` -> ``convnextv2_atto``."""
        return size_of.replace(FAMILY, f"{self.family}_", 1) if self.family else size_of

    @property
    def label(self) -> str:
        """Part of the name of its runs' folders; models by themselves are runs as any other."""
        return self.name if self.net else ""


def read_variants() -> dict[str, Variant]:
    """Every variant by name, DoGNeXt first."""
    return {
        name: Variant(
            name,
            values["title"],
            values.get("net", {}),
            values.get("model", ""),
            _thesis(*values["thesis"]) if "thesis" in values else None,
        )
        for name, values in recipe("ablate").items()
    }


def choose(words: Iterable[str]) -> list[Variant]:
    """The variants asked for, in the order of the tables; DoGNeXt is always among them.

    Args:
        words: names, apart by commas or spaces, or ``all``.

    Raises:
        ConfigError: none, or no variant of that name; the nearest is named.
    """
    known, names = read_variants(), split_words(words)
    if not names:
        raise ConfigError(f"--variants: expected all, or some of {', '.join(known)}")
    for name in names:
        if name not in (*known, "all"):
            close = nearest(name, [*known, "all"])
            raise ConfigError(
                f"--variants: unknown variant '{name}'{close}; there are {', '.join(known)}"
            )
    every = "all" in names
    return [v for name, v in known.items() if every or name in names or name == BASELINE]


def refuse_equal(variants: Iterable[Variant], init: str) -> None:
    """Make sure that no variant is DoGNeXt over again, because its first weights are given.

    Raises:
        ConfigError: one is.
    """
    same = [v.name for v in variants if v.net and v.net.keys() <= _INITIAL]
    if init != "scratch" and same:
        raise ConfigError(
            f"--init {init} gives the first weights, and these are all that {', '.join(same)} "
            "differ in: leave them out of --variants, or give --init scratch"
        )


def run_of(variant: Variant, shared: FinetuneConfig, seed: int) -> FinetuneConfig:
    """The run of a variant with a seed.

    Args:
        variant: to be trained.
        shared: options of all runs; their model gives the size.
        seed: of the run.
    """
    return replace(
        shared,
        model=variant.model(shared.model),
        net=replace(shared.net, **variant.net),
        seed=seed,
        label="-".join(filter(None, [shared.label, variant.label])),
    )


def _thesis(table: str, row: str) -> Thesis:
    acc1, acc5 = references.imagenet_tables()[table].rows[row]
    assert acc1 is not None and acc5 is not None
    return Thesis(table, row, acc1, acc5)
