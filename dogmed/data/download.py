"""Fetching official files: resumed, verified by MD5, and in place only when whole."""

from __future__ import annotations

import re
import time
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError

from dogmed.data.progress import Progress, human
from dogmed.data.writer import check_space, file_digest, make_folder
from dogmed.errors import DataError

ATTEMPTS = 3  # in a row without a single new byte
_CHECK_BYTES = 64 << 20  # between looks at the free space
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class _Transient(Exception):  # noqa: N818
    """A try that failed in a way that may pass."""


def download(
    url: str,
    target: Path,
    *,
    md5: str,
    progress: Progress,
    backoff: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Fetch ``url`` to ``target``, going on from ``<target>.part`` where an earlier try stopped.

    ``backoff`` is the first pause in seconds between tries (doubled each time), ``timeout`` the
    seconds without an answer. Raises DataError when the address refuses, answers with a web page,
    keeps failing, or what came has another MD5.
    """
    make_folder(target.parent)
    part = target.with_name(f"{target.name}.part")
    failures = 0
    restarted = False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch(url, part, progress, timeout)
        except (_Transient, requests.RequestException) as error:
            gained = (part.stat().st_size if part.exists() else 0) > before
            failures = 1 if gained else failures + 1
            if failures >= ATTEMPTS:
                raise DataError(
                    _by_hand(url, target, f"failed {ATTEMPTS} times, last: {_reason(error)}")
                ) from error
            progress.note(f"{target.name}: {_reason(error)}; trying again")
            time.sleep(backoff * 2 ** (failures - 1))
            continue
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"{part} cannot be written: {error.strerror}") from error
        except (ValueError, HTTPError) as error:  # a redirect to what is no address
            raise DataError(_by_hand(url, target, f"failed: {_reason(error)}")) from error
        finally:
            progress.finish()
        received = file_digest(part, "md5", progress, f"checking {target.name}")
        if received == md5:
            part.replace(target)
            return target
        part.unlink()
        if before and not restarted:  # an old part may have spoilt it: once more from the beginning
            restarted = True
            progress.note(f"{target.name}: the resumed file is damaged; fetching it anew")
            continue
        raise DataError(_by_hand(url, target, f"has MD5 {received}, expected {md5}"))


def _fetch(url: str, part: Path, progress: Progress, timeout: float) -> None:
    """One try: append what is missing to ``part``; returns when the server says it is all."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    headers["Accept-Encoding"] = "identity"
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        if answer.status_code == 416 and done:  # nothing beyond what is here; the MD5 decides
            return
        if answer.status_code in _TRANSIENT:
            raise _Transient(f"the server answered {answer.status_code} {answer.reason}")
        if answer.status_code not in (200, 206):
            raise DataError(
                _by_hand(url, part, f"was answered {answer.status_code} {answer.reason}")
            )
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise DataError(_by_hand(url, part, "was answered with a web page instead of the file"))
        resumed = answer.status_code == 206
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            part.unlink(missing_ok=True)
            raise _Transient("the server resumed at another place")
        done = done if resumed else 0
        length = answer.headers.get("Content-Length", "")
        expected = done + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        what = f"downloading {part.name.removesuffix('.part')}"
        check_space(part.parent, 0 if expected is None else expected - done, what)
        progress.start(what, expected, done)
        unchecked = 0
        with part.open("ab" if resumed else "wb") as file:
            for data in answer.iter_content(1 << 16):
                if not done and not data.startswith(b"PK"):
                    raise DataError(
                        _by_hand(url, part, "was answered with something that is no npz file")
                    )
                file.write(data)
                done += len(data)
                unchecked += len(data)
                progress.advance(len(data))
                if expected is None and unchecked >= _CHECK_BYTES:  # it may never end
                    check_space(part.parent, 0, what)
                    unchecked = 0
    if expected is not None and done < expected:
        raise _Transient(f"the connection ended after {human(done)} of {human(expected)}")


def _reason(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection to the server"
    return " ".join(str(error).split())


def _by_hand(url: str, target: Path, what: str) -> str:
    name = target.name.removesuffix(".part")
    return (
        f"{url} {what}; fetch it yourself, keep the name {name}, and pass its folder as --data-dir"
    )
