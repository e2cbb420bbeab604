"""The way to a server: the file system of fsspec for a protocol, and its errors in a line.

What the libraries say of an error is never repeated: it may hold signed addresses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from ...errors import FileError

__all__ = [
    "INSTALL",
    "AccessError",
    "filesystem",
    "forget",
    "in_words",
    "patiently",
    "ranges_of",
    "whole_answer",
]

INSTALL = "pip install tdecomp-toolkit[remote]"
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
_S3 = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; a public bucket needs none with"
_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS; a public bucket needs none with"
_AZURE = "AZURE_STORAGE_CONNECTION_STRING"
_CREDENTIALS = {
    "s3": f"{_S3} FSSPEC_S3_ANON=true",
    "s3a": f"{_S3} FSSPEC_S3_ANON=true",
    "gs": f"{_GOOGLE} FSSPEC_GS_TOKEN=anon",
    "gcs": f"{_GOOGLE} FSSPEC_GCS_TOKEN=anon",
    "hf": "HF_TOKEN",
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
}
_NO_CREDENTIALS = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),
        *("ProfileNotFound", "DefaultCredentialsError", "LocalTokenNotFoundError"),
        *("GatedRepoError", "TokenRetrievalError", "UnauthorizedSSOTokenError"),
    }
)
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError),
    *(ImportError, NotImplementedError, ValueError, TypeError, KeyError, AttributeError),
)
LONG_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Seconds between one try and the next, while a model is read."""
SHORT_PAUSES = (0.2, 0.8)
"""The same, where nobody knows yet whether there is a server."""

_Answer = TypeVar("_Answer")


def filesystem(scheme: str) -> Any:
    """The file system of a protocol, one for each that this process uses.

    Credentials and addresses are those that its library finds: its variables, its files, and
    ``FSSPEC_…`` of fsspec's own configuration.

    Raises
    ------
    FileError
        If fsspec or the library of the protocol is missing, or there is no such protocol.
    """
    return _of_process(scheme, os.getpid())


@cache
def _of_process(scheme: str, number: int) -> Any:
    """One for all threads: fsspec would make one for each, with connections of its own."""
    try:
        import fsspec  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise FileError(f"{scheme}:// is read through fsspec: {INSTALL}") from None
    try:
        library: Any = fsspec
        # A listing that is kept would hide that something has changed.
        return library.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError:
        package = _PACKAGES.get(scheme, f"the package of {scheme}:// that fsspec asks for")
        raise FileError(f"{scheme}:// needs {package}: pip install {package}") from None
    except ValueError:
        raise FileError(
            f"no protocol {scheme}:// is known: say s3://, gs://, hf://, https:// or a path"
        ) from None
    except Exception as error:  # libraries have errors of their own
        raise in_words(error, f"{scheme}://", scheme) from error


def patiently(
    call: Callable[[], _Answer], name: str, scheme: str, *, known: bool = False
) -> _Answer:
    """What a call to a server returns; asked again, after growing pauses, where that may help.

    Parameters
    ----------
    call
        What to ask.
    name, scheme
        Of what, for messages, and by which protocol.
    known
        Whether the server has answered before: then it is waited for longer.

    Raises
    ------
    FileError
        What is wrong, in a line that names `name`.
    """
    for pause in LONG_PAUSES if known else SHORT_PAUSES:
        try:
            return call()
        except Exception as error:  # every library has errors of its own
            if _is_final(error):
                raise in_words(error, name, scheme) from error
            time.sleep(pause)
    try:
        return call()
    except Exception as error:
        raise in_words(error, name, scheme) from error


def forget() -> None:
    """Make new connections from now on, with what the environment says then."""
    _of_process.cache_clear()


class AccessError(FileError):
    """A server that asks for credentials, or for others."""


def in_words(error: Exception, name: str, scheme: str) -> FileError:
    """An error of a library as one of ours."""
    if isinstance(error, FileError):
        return error
    status = _status(error)
    if type(error).__name__ in _NO_CREDENTIALS or status == 401:
        return AccessError(f"{name}: no credentials that the server accepts{_set(scheme)}")
    if isinstance(error, PermissionError) or status == 403:
        return AccessError(f"{name}: the server refuses access{_set(scheme)}")
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileError(f"{name} does not exist")
    if isinstance(error, NotImplementedError):
        return FileError(f"{scheme}:// cannot do this: {name} is neither read nor written")
    kind = type(error).__name__ + (f", status {status}" if status else "")
    return FileError(f"cannot reach {name}: {kind}{_where(scheme)}")


def whole_answer(error: FileNotFoundError) -> Exception:
    """What is behind an error: over https everything that fails is called not found."""
    cause = error.__cause__
    web = isinstance(cause, Exception) and type(cause).__module__.partition(".")[0] == "aiohttp"
    return cause if web and isinstance(cause, Exception) and _status(cause) != 404 else error


def ranges_of(system: Any) -> dict[str, Any]:
    """Options by which a file system reads a range and no more: some read ahead by themselves."""
    if getattr(system, "async_impl", False):
        return {}
    own: str = system.cat_file.__module__
    return {"cache_type": "none"} if own == "fsspec.spec" else {}


def _is_final(error: Exception) -> bool:
    """Whether asking again would give the same answer."""
    status = _status(error)
    if status in (408, 429):
        return False
    known = isinstance(error, (*_FINAL, FileError)) or type(error).__name__ in _NO_CREDENTIALS
    return known or (status is not None and 400 <= status < 500)


def _status(error: Exception) -> int | None:
    """Status of the answer, where the library tells it."""
    response = getattr(error, "response", None)
    for holder, key in ((error, "status"), (response, "status_code"), (error, "code")):
        status = getattr(holder, key, None)
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None


def _set(scheme: str) -> str:
    names = _CREDENTIALS.get(scheme)
    return f": set {names}" if names else ""


def _where(scheme: str) -> str:
    if scheme not in ("s3", "s3a"):
        return ""
    chosen = "AWS_ENDPOINT_URL" in os.environ or "AWS_ENDPOINT_URL_S3" in os.environ
    return "; AWS_ENDPOINT_URL says where the server is" if chosen else ""
