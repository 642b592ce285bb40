"""Files from the Hugging Face hub, with a quick answer where there is no network.

The hub's client retries for most of a minute before it says that it cannot connect. A file that is
in its cache is therefore taken from there, and the hub is only asked once it can be reached at all.
"""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dogmed.errors import WeightsError, reason

TIMEOUT = 1.0  # seconds to connect

# What the hub's HTTP client raises: requests, httpx or httpx2, as the hub's version has it.
_CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


def fetch(repository: str, filenames: Sequence[str]) -> Path:
    """Return the first of ``filenames`` that ``repository`` has, from the hub's cache or the hub.

    Args:
        repository: ``organisation/name``, or with ``@revision``.
        filenames: in order of preference.

    Raises:
        WeightsError: the hub cannot be reached or refuses, or has no such repository or file.
    """
    name, _, revision = repository.partition("@")
    try:
        for filename in filenames:
            cached = try_to_load_from_cache(name, filename, revision=revision or None)
            if isinstance(cached, str):
                return Path(cached)
        _insist_on_connection(repository)
        for filename in filenames:
            try:
                return Path(hf_hub_download(name, filename, revision=revision or None))
            except LocalEntryNotFoundError:  # means that asking failed, not that there is none
                raise
            except EntryNotFoundError:
                continue
    except HFValidationError as error:
        raise WeightsError(f"'{repository}' is not a hub repository: {reason(error)}") from error
    except GatedRepoError as error:
        raise WeightsError(
            f"{repository} is gated: accept its terms on the hub, then log in with 'hf auth login'"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"{name} has no revision '{revision}' on the hub") from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no repository {name}, or it is private and needs 'hf auth login'"
        ) from error
    except (_CLIENT_ERROR, OSError) as error:
        raise WeightsError(f"fetching {repository} from the hub failed: {reason(error)}") from error
    raise WeightsError(f"{repository} on the hub has none of {', '.join(filenames)}")


def reachable(url: str, timeout: float) -> bool:
    """Whether a connection to ``url``'s host, or the proxy before it, opens within ``timeout``.

    Args:
        url: http or https.
        timeout: seconds, the look-up of the host's address included.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        proxy = urllib.request.getproxies().get(parts.scheme)
        if proxy and not urllib.request.proxy_bypass(host):
            parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    except ValueError:  # not an address, such as http://host:port
        return False
    opened = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection(address, timeout):
                opened.set()
        except OSError:
            pass

    # in a thread, because looking up an address knows no timeout
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    return opened.is_set()


def _insist_on_connection(repository: str) -> None:
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(
            f"{repository} is not in the local hub cache ({constants.HF_HUB_CACHE}), and "
            f"HF_HUB_OFFLINE forbids asking the hub: unset it, or give a file with --init PATH"
        )
    if not reachable(constants.ENDPOINT, TIMEOUT):
        raise WeightsError(
            f"{repository} is not in the local hub cache ({constants.HF_HUB_CACHE}), and "
            f"{constants.ENDPOINT} does not answer: go online, or give a file with --init PATH"
        )
