"""What the Hub answers when it does not do what it was asked, in words that say what to do."""

import re
from contextlib import contextmanager

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN"
NO_TOKEN = f"No token was found. {LOG_IN}."
SENT_ONCE = "files that have arrived are not sent twice"
MAY_NOT_WRITE = (
    "This token may not write there. Make one with the role `write` at https://huggingface.co/settings/tokens, or "
    "choose a repository of your own."
)


class HubError(ConnectionError):
    """The Hub refused or could not be reached; the message says what to do."""


@contextmanager
def explain_hub_errors(so: str = ""):
    """
    Turn what the Hub's client raises into a [`HubError`]; a decorator, too.

    Parameters
    ----------
    so : str
        What follows from it, a sentence at the end of the message.
    """
    try:
        yield
    except HubError as error:
        raise HubError(f"{error} {so}".rstrip()) from error.__cause__
    except Exception as error:
        if message := explanation(error):
            raise HubError(f"{message} {so}".rstrip()) from error
        raise


def explanation(error: BaseException) -> str:
    """What happened and what to do, or nothing if the Hub has no part in it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError):
        return NO_TOKEN
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it to reach the Hub."
    if isinstance(error, GatedRepoError):
        return f"The repository is gated, and this account has no access. {LOG_IN}, and ask for access on its page."
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no such repository, or it is private and not yours. Check the name. {LOG_IN}."
    if isinstance(error, RevisionNotFoundError):
        return "The repository has no such revision. Give a branch, a tag or a commit that it has."
    if status == 401:
        return f"The Hub does not know this token. {LOG_IN} anew."
    if status == 403:
        # The Hub's own words tell a token from a full account.
        return " ".join(
            filter(None, [MAY_NOT_WRITE, error.server_message and f"The Hub says: {error.server_message}"])
        )
    if status == 412:
        return "Somebody else has committed to the repository meanwhile. Run the command again."
    if isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError):
        return f"The Hub answered {status}: {first_line(error)}. Run the command again: {SENT_ONCE}."
    if isinstance(error, LocalEntryNotFoundError) or is_of_http_client(error):
        return f"The Hub could not be reached: {first_line(error)}. Check the connection and run the command again."
    if isinstance(error, (RuntimeError, ConnectionError)):  # of LFS and Xet
        reason = ": ".join(first_line(e) for e in (error, error.__cause__) if e is not None)
        return f"The transfer broke off: {reason}. Run the command again: {SENT_ONCE}."
    return ""


def first_line(error: BaseException) -> str:
    """Without what stands behind the `?` of an address: with its signature, anybody may write there."""
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\?[^\s'\"]+", "", first).rstrip(".")


def is_of_http_client(error: BaseException) -> bool:
    """Connections that fail raise the HTTP client's own errors; which client that is, depends on the Hub's version."""
    return any(cls.__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore") for cls in type(error).__mro__)
