"""A repository of the Hub as a folder, of one commit."""

import shutil
from pathlib import Path

from huggingface_hub import HfApi

from .contents import list_files
from .hub import explain_hub_errors


@explain_hub_errors()
def pull(repo: str, out: Path, *, revision: str | None = None, token: str | None = None) -> str:
    """
    Fetch a repository.

    Parameters
    ----------
    repo : str
        `user/name`.
    out : Path
        Not there yet, or empty, or where an earlier pull broke off.
    revision : str, optional
        A branch, a tag or a commit. Default: main.
    token : str, optional
        Default: that of `HF_TOKEN` or `hf auth login`.

    Returns
    -------
    str
        The repository and the commit that was fetched.

    Raises
    ------
    HubError
        If the Hub refused or could not be reached. What has arrived stays: the same call goes on from there.
    ValueError
        If the folder holds anything else.
    """
    out, notes = Path(out), Path(out) / ".cache"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (notes / "huggingface").is_dir())):
        raise ValueError(f"{out} is not empty. Give a folder that is not there yet.")
    api = HfApi(token=token)
    info = api.model_info(repo, revision=revision)
    commit = info.sha
    theirs = {file.rfilename for file in info.siblings}
    if strangers := [name for name in list_files(out) if name not in theirs and not name.startswith(".cache/")]:
        # A pull that broke off, of another repository or commit.
        raise ValueError(
            f"{out} holds {strangers[0]}, which {repo} does not have. Give a folder that is not there yet."
        )
    api.snapshot_download(repo, revision=commit, local_dir=out)
    shutil.rmtree(notes, ignore_errors=True)  # the client's, with which a pull that broke off would have gone on
    return f"{repo} at commit {commit}"
