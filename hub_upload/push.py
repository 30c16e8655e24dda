"""A folder goes to the Hub, on top of the commit that was looked at.

Notable:
- huggingface_hub sends what is new or changed, and not again what has arrived before a connection broke
- code, weights, files of a tokenizer and pickles that are no longer in the folder are deleted in the same commit
- a card that was edited on the Hub stays, and we say so. To know, the last line of a pushed card holds the hash of
  the rest: it is ours only as long as that is right.
"""

import glob
import hashlib
import re
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, errors

import modeling_sleep

from .card import PLACE
from .contents import CARD, STALE, TOKENIZER, list_files


STAMP = re.compile(r"\n*<!-- pushed by modeling_sleep\.hub_upload; sha256 of what is above: [0-9a-f]{64} -->\n*\Z")
LOADED = re.compile(r'(?<=from_pretrained\(")[^"\n]+(?=", trust_remote_code=True\))')

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN"
AGAIN = "The Hub could not be reached, or broke off. Run the command again: what has arrived is not sent twice."
# By the status of the Hub's answer, as its own words come without advice.
ADVICE = {
    401: f"The Hub does not know this token. {LOG_IN} anew.",
    403: "This token may not write there. Make one with the role `write` at https://huggingface.co/settings/tokens.",
    412: "Somebody else has committed to the repository meanwhile. Run the command again.",
}
OF_THE_HUB = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, ConnectionError, RuntimeError)


class HubError(ConnectionError):
    """The Hub refused or could not be reached; the message says what to do."""


@contextmanager
def explain_hub_errors():
    """Turn what the Hub's client raises into a [`HubError`]; a decorator, too."""
    try:
        yield
    except Exception as error:
        # Connections that fail raise the HTTP client's own errors; which client that is, depends on the Hub's version.
        if not isinstance(error, OF_THE_HUB) and not type(error).__module__.startswith("http"):
            raise
        status = getattr(getattr(error, "response", None), "status_code", 500)
        advice = AGAIN if status >= 500 else ADVICE.get(status, "The Hub refused.")
        reason = getattr(error, "server_message", None) or str(error).strip().partition("\n")[0]
        # Without what stands behind the `?` of an address: with its signature, anybody may write there.
        raise HubError(f"{advice} ({re.sub(r'[?][^ )]+', '', reason)})") from error


def stamp(card: str) -> str:
    """The card with the hash of itself as its last line."""
    card = STAMP.sub("", card).rstrip("\n") + "\n"
    digest = hashlib.sha256(card.encode()).hexdigest()
    return f"{card}\n<!-- pushed by modeling_sleep.hub_upload; sha256 of what is above: {digest} -->\n"


def is_as_pushed(card: str) -> bool:
    """Whether nobody has edited it since a push."""
    return stamp(card) == card


@explain_hub_errors()
def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
    force_card: bool = False,
) -> None:
    """
    Send a folder that was verified. Its card is given the repository's name; the options are the command's.

    A [`HubError`] says that the Hub refused or could not be reached, a `ValueError` that private was asked of a public
    repository.
    """
    api, files = HfApi(), list_files(folder)
    info = look_up(api, repo, revision)
    if private and info and not info.private:
        raise ValueError(
            f"{repo} is there already, and everybody can see it: --private is for repositories that are made. Make it "
            "private in its settings on the Hub, or choose another name."
        )
    theirs = {file.rfilename for file in info.siblings} if info else set()
    keep_card = False
    if CARD in theirs and not force_card:  # its own line ends, as changed ones are an edit
        card = Path(api.hf_hub_download(repo, CARD, revision=info.sha)).read_bytes()
        keep_card = not is_as_pushed(card.decode(errors="replace"))
    stale = sorted(name for name in theirs - files.keys() if STALE.fullmatch(name) or TOKENIZER.fullmatch(name))
    print(f"{repo}, {revision or 'main'} ({f'commit {info.sha[:8]}' if info else 'no such repository yet'})")
    for name, path in files.items():
        if name != CARD or not keep_card:
            print(f"{'there' if name in theirs else 'new':8}{name:<36}{path.stat().st_size:>14,} bytes")
    for name in stale:
        print(f"{'deleted':8}{name}")
    if keep_card:
        print(f"kept    {CARD} was edited on the Hub, or not made by this tool; --force-card overwrites it")
    if dry_run:
        print("dry run: this would go up; nothing was written")
        return

    if not info:
        api.create_repo(repo, private=private or None)  # None: as the account's or organisation's settings
        info = api.model_info(repo)
    if revision not in (None, "main"):
        api.create_branch(repo, branch=revision, exist_ok=True)
    card = (folder / CARD).read_text(encoding="utf-8")
    card = LOADED.sub(repo, card) if is_as_pushed(card) else card.replace(PLACE, repo)  # a pushed one has a name
    (folder / CARD).write_text(stamp(card), encoding="utf-8", newline="\n")
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        revision=revision,
        commit_message=message or f"Upload with modeling_sleep {modeling_sleep.__version__}",
        ignore_patterns=[CARD] if keep_card else None,
        delete_patterns=[glob.escape(name) for name in stale] or None,
        parent_commit=info.sha,  # refused if somebody, editing the card perhaps, was faster
    )
    print("all of it is there already" if commit.oid == info.sha else f"pushed: {commit.commit_url}")


def look_up(api: HfApi, repo: str, revision: str | None):
    """What the Hub says of a repository, or None. A branch that is not there yet begins as main."""
    try:
        return api.model_info(repo, revision=revision)
    except errors.RevisionNotFoundError:
        return api.model_info(repo)
    except errors.RepositoryNotFoundError:
        return None
