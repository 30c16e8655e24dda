"""What the Hub answers when it does not do what it was asked, in words that say what to do."""

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
MAY_NOT_WRITE = (
    "This token may not write there. Make one with the role `write` at https://huggingface.co/settings/tokens, or "
    "choose a repository of your own."
)


@contextmanager
def explain_hub_errors():
    """
    Turn what the Hub's client raises into a `ConnectionError` of one sentence.

    Raises
    ------
    ConnectionError
        If the Hub refused or could not be reached.
    """
    try:
        yield
    except Exception as error:
        if message := explanation(error):
            raise ConnectionError(message) from error
        raise


def explanation(error: BaseException) -> str:
    """What happened and what to do, or nothing if the Hub has no part in it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError):
        return f"No token was found. {LOG_IN}."
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
        return MAY_NOT_WRITE
    if status == 412:
        return "Somebody else has committed to the repository meanwhile, and nothing was sent. Run the command again."
    if isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError):
        first, *_ = str(error).strip().splitlines() or [""]
        return f"The Hub answered {status}: {first}. Run the command again: only what is not there yet is sent."
    if isinstance(error, LocalEntryNotFoundError) or is_of_http_client(error):
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        return f"The Hub could not be reached: {first}. Check the connection and run the command again."
    if isinstance(error, RuntimeError) and "Error while uploading" in str(error):
        return (
            f"{error} {error.__cause__ or ''} Nothing was published. Run the command again: files that have arrived "
            "are not sent twice."
        )
    return ""


def is_of_http_client(error: BaseException) -> bool:
    """Connections that fail raise the HTTP client's own errors; which client that is, depends on the Hub's version."""
    return any(cls.__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore") for cls in type(error).__mro__)
