"""A folder goes to the Hub in one commit, which applies as a whole or not at all.

Notable:
- only what is new or changed is sent; large files that have arrived before a connection broke are not sent again
- code, weights, files of a tokenizer and pickles that are no longer in the folder are deleted in the same commit
- a card that was edited on the Hub stays, and we say so. To know, the last line of a pushed card holds the hash of
  the rest: it is ours only as long as that is right.
"""

import hashlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from .card import PLACE
from .contents import CARD, CODE_FIELD, is_ours_to_delete, list_files, read_json
from .hub import MAY_NOT_WRITE, HubError, explain_hub_errors


STAMP = re.compile(r"\n*<!-- pushed by modeling_sleep\.hub_upload; sha256 of what is above: ([0-9a-f]{64}) -->\n*\Z")

LOADED = re.compile(r'(?<=from_pretrained\(")[^"\n]+(?=", trust_remote_code=True\))')


class Remote(NamedTuple):
    """What the Hub has: the commit that a push builds upon, if there is one, and git's or LFS' hash of every file."""

    exists: bool = False
    private: bool = False
    has_revision: bool = False
    commit: str | None = None
    hashes: dict[str, str] = {}
    lfs: frozenset[str] = frozenset()


class Plan(NamedTuple):
    """What a push would do: every file with its state (`new`, `changed`, `same`), what it deletes, what it leaves."""

    files: dict[str, tuple[str, Path | bytes]]
    deleted: list[str]
    notes: list[str]

    def lines(self) -> list[str]:
        lines = [f"{state:8}{name:<36}{size(content):>14,} bytes" for name, (state, content) in self.files.items()]
        lines += [f"{'deleted':8}{name}" for name in self.deleted]
        return lines + self.notes

    def sent(self) -> dict[str, Path | bytes]:
        return {name: content for name, (state, content) in self.files.items() if state != "same"}


def size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def stamp(card: str) -> str:
    """The card with the hash of itself as its last line."""
    card = STAMP.sub("", card).rstrip("\n") + "\n"
    digest = hashlib.sha256(card.encode()).hexdigest()
    return f"{card}\n<!-- pushed by modeling_sleep.hub_upload; sha256 of what is above: {digest} -->\n"


def is_as_pushed(card: str) -> bool:
    """Whether nobody has edited it since a push."""
    return STAMP.search(card) is not None and stamp(card) == card


@explain_hub_errors("Nothing was published.")
def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
    force_card: bool = False,
    token: str | None = None,
    say: Callable[[str], None] = print,
) -> str | None:
    """
    Send a folder that was verified.

    Parameters
    ----------
    folder : Path
        What `export` wrote and `verify` approved.
    repo : str
        `user/name`, or a name of one's own. It is made if it is not there.
    private : bool
        Whether a repository that is made is private. If not, it is what the account's or organisation's settings say.
    revision : str, optional
        A branch, made from main if it is not there.
    dry_run : bool
        Print what would be done, and write nothing.
    message : str, optional
        Of the commit.
    force_card : bool
        Overwrite a card that was edited on the Hub.
    token : str, optional
        Default: that of `HF_TOKEN` or `hf auth login`.
    say : callable
        Takes a line.

    Returns
    -------
    str or None
        The commit's address, or None if nothing was written.

    Raises
    ------
    HubError
        If the Hub refused or could not be reached. Nothing is published then.
    ValueError
        If the repository is there and public, but should be private.
    """
    api = HfApi(token=token)
    if not dry_run or "/" not in repo:  # who only looks at what is public needs no token
        repo = whole_name(api, repo, may_write=not dry_run)
    remote = look_up(api, repo, revision)
    if private and remote.exists and not remote.private:
        raise ValueError(
            f"{repo} is there already, and everybody can see it: --private is for repositories that are made. Make it "
            "private in its settings on the Hub, or choose another name."
        )
    plan = make_plan(api, Path(folder), repo, remote, force_card)
    where = (
        f"commit {remote.commit[:8]}" if remote.commit else f"no such repository {'in sight' if dry_run else 'yet'}"
    )
    say(f"{repo}, {revision or 'main'} ({where})")
    for line in plan.lines():
        say(line)
    sent = plan.sent()
    if dry_run:
        say(f"dry run: {len(sent)} files, {sum(map(size, sent.values())):,} bytes would go up; nothing was written")
        return None
    if not sent and not plan.deleted and remote.has_revision:
        say("all of it is there already; nothing was written")
        return None

    if not remote.exists:
        api.create_repo(repo, private=private or None)  # None: what an organisation has as its default
    if not remote.has_revision:
        if revision not in (None, "main"):
            api.create_branch(repo, branch=revision)
        remote = look_up(api, repo, revision)
    if not sent and not plan.deleted:
        say(f"made the branch {revision}, equal to main")
        return None
    operations = [CommitOperationDelete(name) for name in plan.deleted]
    operations += [CommitOperationAdd(name, content) for name, content in sent.items()]
    commit = api.create_commit(
        repo,
        operations,
        commit_message=message or default_message(folder),
        revision=revision,
        parent_commit=remote.commit,  # refused if somebody, editing the card perhaps, was faster
    )
    say(f"pushed {len(sent)} files, {sum(map(size, sent.values())):,} bytes: {commit.commit_url}")
    return commit.commit_url


def whole_name(api: HfApi, repo: str, may_write: bool) -> str:
    """The name with its namespace. The token is tried here, before anything else is."""
    account = api.whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if may_write and role == "read":
        raise HubError(MAY_NOT_WRITE)
    return repo if "/" in repo else f"{account['name']}/{repo}"


def look_up(api: HfApi, repo: str, revision: str | None) -> Remote:
    """What the Hub has of a repository. A branch that is not there yet begins as main."""
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True)
    except RevisionNotFoundError:
        return look_up(api, repo, None)._replace(has_revision=False)
    except RepositoryNotFoundError:
        return Remote()
    lfs = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
    hashes = {file.rfilename: file.blob_id for file in info.siblings}
    return Remote(True, info.private, True, info.sha, {**hashes, **lfs}, frozenset(lfs))


def make_plan(api: HfApi, folder: Path, repo: str, remote: Remote, force_card: bool) -> Plan:
    """Compare the folder with the Hub. `.gitattributes` is the Hub's own, and stays."""
    contents: dict[str, Path | bytes] = {**list_files(folder)}
    contents.pop(".gitattributes", None)
    card = (folder / CARD).read_text(encoding="utf-8")
    card = LOADED.sub(repo, card) if is_as_pushed(card) else card.replace(PLACE, repo)  # a pulled one has a name
    contents[CARD] = stamp(card).encode()
    files, notes = {}, []
    for name, content in contents.items():
        if name not in remote.hashes:
            state = "new"
        else:
            state = "same" if file_hash(content, name in remote.lfs) == remote.hashes[name] else "changed"
        files[name] = (state, content)
    if files[CARD][0] == "changed" and not is_as_pushed(remote_card(api, repo, remote)):
        if force_card:
            notes.append(
                f"note    {CARD} was edited on the Hub, or not made by this tool: it is overwritten, as you asked"
            )
        else:
            del files[CARD]
            notes.append(f"kept    {CARD} was edited on the Hub, or not made by this tool; --force-card overwrites it")
    gone = sorted(name for name in remote.hashes if name not in contents and name != ".gitattributes")
    notes += [
        f"kept    {name} is not in the folder, and not ours to delete" for name in gone if not is_ours_to_delete(name)
    ]
    return Plan(files, [name for name in gone if is_ours_to_delete(name)], notes)


def remote_card(api: HfApi, repo: str, remote: Remote) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo, CARD, revision=remote.commit, local_dir=folder)
        # Bytes, not text: changed line ends are an edit.
        return Path(path).read_bytes().decode("utf-8", errors="replace")


def file_hash(content: Path | bytes, is_lfs: bool) -> str:
    """SHA-256 of a file in LFS, git's hash of any other."""
    digest = hashlib.sha256() if is_lfs else hashlib.sha1(b"blob %d\0" % size(content))
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def default_message(folder: Path) -> str:
    config = read_json(Path(folder) / "config.json")
    return f"Upload with modeling_sleep {config.get(CODE_FIELD, '')}".rstrip()
