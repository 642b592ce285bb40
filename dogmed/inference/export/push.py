"""An exported folder to a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from dogmed.errors import ConfigError, DataError, DogmedError, reason
from dogmed.inference.export.card import CARD
from dogmed.inference.export.files import SUMS, names_in, read_sums, sha256, sums_text
from dogmed.models.hub import TIMEOUT, reachable

# What the hub's HTTP client raises: requests, httpx or httpx2, as the hub's version has it.
_CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


class Planned(NamedTuple):
    """What an upload would do."""

    folder: Path
    repo: str
    sums: dict[str, str]
    """SHA-256 of what the export wrote, as it is now, by names in the folder."""
    changed: tuple[str, ...]
    """Those of them that are no more as the export wrote them."""
    left_out: tuple[str, ...]
    """What else is in the folder, which may be anybody's image."""
    licence: str
    """By the card."""
    token: bool
    """Whether one is configured."""

    @property
    def files(self) -> tuple[str, ...]:
        """What is uploaded, by names in the folder."""
        return tuple(sorted([*self.sums, SUMS]))

    @property
    def address(self) -> str:
        """Of the repository."""
        return f"{constants.ENDPOINT}/{self.repo}"


def plan_push(folder: Path, repo: str) -> Planned:
    """Find out what of a folder would go where; asks nobody.

    Args:
        folder: that ``dogmed export`` has written.
        repo: ``organisation/name``.

    Raises:
        DataError: it is no export, for it has no model card or no list of its files, or some cannot be read.
        ConfigError: there can be no such repository.
    """
    card = folder / CARD
    if not card.is_file():
        raise DataError(f"{folder} is no export: it has no {CARD}; dogmed export MODEL makes one")
    try:
        licence = ModelCard.load(card).data.to_dict().get("license")
    except (OSError, ValueError) as error:
        raise DataError(f"{card} is no model card: {reason(error)}") from error
    if licence is None:
        raise DataError(f"{card} names no licence in its first lines: dogmed export writes one")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--repo '{repo}': {reason(error)}") from error
    if "/" not in repo:
        raise ConfigError(f"--repo '{repo}': expected ORGANISATION/NAME")
    written, there = read_sums(folder), names_in(folder)
    if missing := sorted(set(written).difference(there)):
        raise DataError(
            f"{folder} lacks {', '.join(missing)}, by its {SUMS}: export it again to a new folder"
        )
    try:
        sums = {name: sha256(folder / name) for name in written}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {reason(error)}") from error
    changed = tuple(name for name in sorted(sums) if sums[name] != written[name])
    left_out = tuple(name for name in there if name not in {*sums, SUMS})
    token = huggingface_hub.get_token() is not None
    return Planned(folder, repo, sums, changed, left_out, str(licence), token)


def upload(planned: Planned, *, public: bool) -> str:
    """Make the repository, if there is none, and upload the export's files in one commit.

    Args:
        planned: what goes where.
        public: make a new repository public.

    Returns:
        The commit's address.

    Raises:
        ConfigError: there is no token.
        DogmedError: the hub cannot be reached, or refuses.
    """
    if not planned.token:
        raise ConfigError("no token of the hub is configured: hf auth login, or set HF_TOKEN")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE forbids asking the hub: unset it")
    if not reachable(constants.ENDPOINT, TIMEOUT):
        raise DogmedError(f"{constants.ENDPOINT} does not answer: nothing was uploaded")
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        api.create_repo(planned.repo, private=not public, exist_ok=True)
        done = api.create_commit(
            repo_id=planned.repo,
            operations=[CommitOperationAdd(name, planned.folder / name) for name in planned.sums]
            + [CommitOperationAdd(SUMS, sums_text(planned.sums).encode())],
            commit_message=f"Upload {planned.folder.resolve().name}, exported by dogmed",
        )
    except (_CLIENT_ERROR, OSError) as error:
        raise DogmedError(f"uploading to {planned.address} failed: {reason(error)}") from error
    return done.commit_url
