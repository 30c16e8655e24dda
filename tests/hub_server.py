"""A Hub on this machine: what `huggingface_hub`'s own client asks of huggingface.co, answered on loopback.

    with HubServer(tokens={"secret": Account("anna")}) as hub:
        HfApi(endpoint=hub.endpoint, token="secret").create_repo("anna/model")

What is notable:
- real HTTP (Starlette on uvicorn), so the client runs as it is; state is in memory
- a commit is checked as a whole before it becomes the head of its branch: it applies fully or not at all
- files that hold more than text go to LFS, as on the Hub; those of private and gated repositories need a token
- `requests` records what was asked, `cut` breaks connections
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass
class Account:
    """Who a token belongs to, and what it may do: `role` is "write" or "read"."""

    name: str
    role: str = "write"


@dataclass
class File:
    """A file of a commit. What a tree shows as its hash is git's, of the file or of its LFS pointer."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        header = b"version https://git-lfs.github.com/spec/v1\n"
        return header + f"oid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def blob_id(self) -> str:
        content = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass
class Commit:
    oid: str
    parent: str | None
    title: str
    files: dict[str, File]
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"))


@dataclass
class Repository:
    """Branches and tags are names of commits. `lfs` holds what has arrived, committed or not."""

    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)

    def add_commit(self, branch: str, title: str, files: dict[str, File]) -> Commit:
        parent = self.branches.get(branch)
        tree = json.dumps([parent, title, len(self.commits), {name: file.etag for name, file in files.items()}])
        commit = Commit(hashlib.sha1(tree.encode()).hexdigest(), parent, title, files)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def find(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]


def refuse(status: int, code: str = "", message: str = ""):
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    raise HTTPException(status, message, headers={name: value for name, value in headers.items() if value})


class HubServer:
    """
    Serves in a thread of its own while it is entered.

    Parameters
    ----------
    tokens : dict[str, Account]
    """

    def __init__(self, tokens: dict[str, Account]):
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []  # method and path, in order
        self.cut: dict[str, int] = {}  # of an LFS file's hash: how many more uploads or downloads of it break off
        self.private_by_default = False  # as organisations can choose
        self.fail_commits: list[tuple[int, str]] = []  # status and message of the next, after all files have arrived

    def __enter__(self):
        model, git = "/api/models/{user}/{name}", "/{user}/{name}.git"
        routes = [
            Route("/api/whoami-v2", self.whoami),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route(model, self.info),
            Route(model + "/revision/{revision}", self.info),
            Route(model + "/tree/{revision}", self.tree),
            Route(model + "/tree/{revision}/{folder:path}", self.tree),
            Route(model + "/paths-info/{revision}", self.paths_info, methods=["POST"]),
            Route(model + "/refs", self.refs),
            Route(model + "/commits/{revision}", self.commits),
            Route(model + "/branch/{branch}", self.create_branch, methods=["POST"]),
            Route(model + "/tag/{revision}", self.create_tag, methods=["POST"]),
            Route(model + "/preupload/{revision}", self.preupload, methods=["POST"]),
            Route(model + "/commit/{revision}", self.commit, methods=["POST"]),
            Route(git + "/info/lfs/objects/batch", self.lfs_batch, methods=["POST"]),
            Route("/lfs/{user}/{name}/verify", self.lfs_verify, methods=["POST"]),
            Route("/lfs/{user}/{name}/{oid}", self.lfs_put, methods=["PUT"]),
            Route("/{user}/{name}/resolve/{revision}/{path:path}", self.resolve, methods=["GET", "HEAD"]),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: self.error})
        config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none", http="h11")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            if not self.thread.is_alive():
                raise RuntimeError("The server did not start.")
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *error):
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()

    # For tests.

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return {name: file.content for name, file in self.repositories[repo].find(revision).files.items()}

    def edit(self, repo: str, name: str, content: bytes, branch: str = "main") -> str:
        """As somebody does on the Hub's pages."""
        repository = self.repositories[repo]
        files = {**repository.find(branch).files, name: File(content, is_lfs=False)}
        return repository.add_commit(branch, f"Update {name}", files).oid

    def uploads(self, since: int = 0) -> list[str]:
        """Hashes of the LFS files that were sent, whole or in part."""
        return [path.rpartition("/")[2] for method, path in self.requests[since:] if method == "PUT"]

    def writes(self, since: int = 0) -> list[tuple[str, str]]:
        return [(m, p) for m, p in self.requests[since:] if m not in ("GET", "HEAD")]

    def hang_up(self, request: Request, oid: str) -> Response:
        self.cut[oid] -= 1
        request.receive.__self__.transport.abort()  # uvicorn's own end of the connection
        return Response()

    # Who may do what.

    async def error(self, request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    def account(self, request: Request) -> Account | None:
        self.requests.append((request.method, request.url.path))
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not scheme:
            return None
        if token not in self.tokens:
            refuse(401, message="Invalid credentials in Authorization header")
        return self.tokens[token]

    def repository(self, request: Request, *, write: bool = False, content: bool = False) -> Repository:
        """The repository that the path names, if whoever asks may see it, write to it or read its files."""
        account = self.account(request)
        user, name = request.path_params["user"], request.path_params["name"]
        repository = self.repositories.get(f"{user}/{name}")
        allowed = account is not None and repository is not None and account.name in {user, *repository.readers}
        if repository is None or repository.private and not allowed:
            # What is not there and what is not shown look alike.
            refuse(401 if account is None else 404, "RepoNotFound", "Repository not found")
        if content and repository.gated and not allowed:
            refuse(401 if account is None else 403, "GatedRepo", f"Access to model {user}/{name} is restricted.")
        if write and account is None:
            refuse(401, message="Invalid username or password.")
        if write and (account.role != "write" or account.name != user):
            refuse(403, message="You don't have the rights to write to this repository with this token.")
        return repository

    # Accounts and repositories.

    async def whoami(self, request: Request) -> Response:
        account = self.account(request)
        if account is None:
            refuse(401, message="Invalid username or password.")
        auth = {"type": "access_token", "accessToken": {"displayName": "token", "role": account.role}}
        return JSONResponse({"type": "user", "id": account.name, "name": account.name, "orgs": [], "auth": auth})

    async def validate_yaml(self, request: Request) -> Response:
        self.account(request)
        content = (await request.json())["content"]
        try:
            _, text, _ = content.split("---\n", 2)
            metadata = yaml.safe_load(text)
            assert isinstance(metadata, dict), "not a mapping"
            models = metadata.get("base_model", [])
            for model in [models] if isinstance(models, str) else models:
                assert re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model), f"base_model {model} is not a repository"
        except (ValueError, AssertionError, yaml.YAMLError) as error:
            return JSONResponse({"errors": [{"message": f"Invalid metadata: {error}"}], "warnings": []}, 400)
        return JSONResponse({"errors": [], "warnings": []})

    async def create(self, request: Request) -> Response:
        account, wanted = self.account(request), await request.json()
        if account is None:
            refuse(401, message="Invalid username or password.")
        repo = f"{wanted.get('organization') or account.name}/{wanted['name']}"
        if account.role != "write" or not repo.startswith(f"{account.name}/"):
            refuse(403, message="You don't have the rights to create a model under this namespace")
        answer = {"url": f"{self.endpoint}/{repo}", "name": repo}
        if repo in self.repositories:
            return JSONResponse({**answer, "error": "You already created this model repo"}, 409)
        visibility = wanted.get("visibility", "private" if self.private_by_default else "public")
        repository = self.repositories[repo] = Repository(visibility == "private")
        attributes = File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_lfs=False)
        repository.add_commit("main", "initial commit", {".gitattributes": attributes})
        return JSONResponse(answer)

    async def info(self, request: Request) -> Response:
        repository = self.repository(request)
        commit = repository.find(unquote(request.path_params.get("revision", "main")))
        siblings = []
        for name, file in sorted(commit.files.items()):
            sibling = {"rfilename": name}
            if "blobs" in request.query_params:
                sibling |= {"size": len(file.content), "blobId": file.blob_id}
                if file.is_lfs:
                    lfs = {"sha256": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
                    sibling["lfs"] = lfs
            siblings.append(sibling)
        repo = "{user}/{name}".format(**request.path_params)
        about = {"id": repo, "modelId": repo, "sha": commit.oid, "lastModified": commit.date, "siblings": siblings}
        about |= {"private": repository.private, "gated": "auto" if repository.gated else False, "tags": []}
        return JSONResponse({**about, "downloads": 0, "likes": 0, "createdAt": commit.date})

    async def tree(self, request: Request) -> Response:
        commit = self.repository(request).find(unquote(request.path_params["revision"]))
        folder = request.path_params.get("folder", "")
        prefix = f"{folder}/" if folder else ""
        entries, folders = [], set()
        for name, file in sorted(commit.files.items()):
            if not name.startswith(prefix):
                continue
            parents = name[len(prefix) :].split("/")[:-1]
            folders |= {prefix + "/".join(parents[:i]) for i in range(1, len(parents) + 1)}
            if not parents or request.query_params.get("recursive", "").lower() == "true":
                entries.append(tree_entry(name, file))
        if folder and not entries and not folders:
            refuse(404, "EntryNotFound", f"{folder} does not exist on this revision")
        entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
        return JSONResponse(entries)

    async def paths_info(self, request: Request) -> Response:
        commit = self.repository(request).find(unquote(request.path_params["revision"]))
        async with request.form() as form:
            names = form.getlist("paths")
        return JSONResponse([tree_entry(name, commit.files[name]) for name in names if name in commit.files])

    async def refs(self, request: Request) -> Response:
        repository = self.repository(request)
        kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
        lists = {
            kind: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": oid} for n, oid in names.items()]
            for kind, (where, names) in kinds.items()
        }
        return JSONResponse({**lists, "converts": []})

    async def commits(self, request: Request) -> Response:
        repository = self.repository(request)
        commit, listed = repository.find(unquote(request.path_params["revision"])), []
        while commit is not None:
            about = {"id": commit.oid, "title": commit.title, "message": "", "date": commit.date, "authors": []}
            listed.append(about)
            commit = repository.commits.get(commit.parent)
        return JSONResponse(listed)

    async def create_branch(self, request: Request) -> Response:
        repository, body = self.repository(request, write=True), await request.json()
        branch = unquote(request.path_params["branch"])
        if branch in repository.branches:
            refuse(409, message="Reference already exists")
        repository.branches[branch] = repository.find(body.get("startingPoint", "main")).oid
        return JSONResponse({})

    async def create_tag(self, request: Request) -> Response:
        repository, body = self.repository(request, write=True), await request.json()
        if body["tag"] in repository.tags:
            refuse(409, message="Reference already exists")
        repository.tags[body["tag"]] = repository.find(unquote(request.path_params["revision"])).oid
        return JSONResponse({})

    # Uploads: how each file goes, the large ones, then the commit.

    async def preupload(self, request: Request) -> Response:
        repository, wanted = self.repository(request, write=True), await request.json()
        files = repository.find(unquote(request.path_params["revision"])).files
        answers = []
        for file in wanted["files"]:
            sample = base64.b64decode(file["sample"])
            is_lfs = file["path"].endswith(".safetensors") or file["size"] > 10_000_000 or b"\0" in sample
            answer = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            known = files.get(file["path"])
            answers.append({**answer, "oid": known.etag if known else None})
        return JSONResponse({"files": answers})

    async def lfs_batch(self, request: Request) -> Response:
        repository, wanted = self.repository(request, write=True), await request.json()
        where = "{endpoint}/lfs/{user}/{name}".format(endpoint=self.endpoint, **request.path_params)
        objects = []
        for wish in wanted["objects"]:
            actions = {"upload": {"href": f"{where}/{wish['oid']}"}, "verify": {"href": f"{where}/verify"}}
            # What has arrived need not come again.
            objects.append(wish if wish["oid"] in repository.lfs else {**wish, "actions": actions})
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def lfs_put(self, request: Request) -> Response:
        """The address is secret enough, as those that the Hub signs: no token comes with it."""
        self.requests.append((request.method, request.url.path))
        oid, content = request.path_params["oid"], b""
        async for chunk in request.stream():
            content += chunk
            if self.cut.get(oid, 0) > 0 and content:
                return self.hang_up(request, oid)
        if hashlib.sha256(content).hexdigest() != oid:
            refuse(400, message="The content is not what its hash says")
        self.repositories["{user}/{name}".format(**request.path_params)].lfs[oid] = content
        return Response()

    async def lfs_verify(self, request: Request) -> Response:
        repository, claim = self.repository(request, write=True), await request.json()
        if len(repository.lfs.get(claim["oid"], b"")) != claim["size"]:
            refuse(404, message="Object not found")
        return JSONResponse({})

    async def commit(self, request: Request) -> Response:
        repository, branch = self.repository(request, write=True), unquote(request.path_params["revision"])
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if branch not in repository.branches:
            refuse(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        if self.fail_commits:
            status, message = self.fail_commits.pop(0)
            refuse(status, message=message)
        if header.get("parentCommit", repository.branches[branch]) != repository.branches[branch]:
            refuse(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(repository.find(branch).files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in repository.lfs:
                    refuse(400, message=f"LFS pointer points to a file that does not exist: {value['path']}")
                files[value["path"]] = File(repository.lfs[value["oid"]], is_lfs=True)
            elif line["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                refuse(404, "EntryNotFound", f"A file with this name doesn't exist: {value['path']}")
        commit = repository.add_commit(branch, header["summary"], files)  # only now can anybody see it
        repo = "{user}/{name}".format(**request.path_params)
        return JSONResponse({"commitUrl": f"{self.endpoint}/{repo}/commit/{commit.oid}", "commitOid": commit.oid})

    # Downloads.

    async def resolve(self, request: Request) -> Response:
        repository = self.repository(request, content=True)
        commit, path = repository.find(unquote(request.path_params["revision"])), request.path_params["path"]
        if path not in commit.files:
            refuse(404, "EntryNotFound", "Entry not found")
        file = commit.files[path]
        if request.method == "GET" and self.cut.get(file.etag, 0) > 0:
            return self.hang_up(request, file.etag)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.is_lfs:
            headers |= {"X-Linked-Size": str(len(file.content)), "X-Linked-Etag": f'"{file.etag}"'}
        content, status = file.content, 200
        if asked := request.headers.get("range"):
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            content, status = content[begin:], 206
        return Response(content, status, headers=headers, media_type="application/octet-stream")


def tree_entry(name: str, file: File) -> dict:
    entry = {"type": "file", "path": name, "size": len(file.content), "oid": file.blob_id}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
    return entry
