"""A Hub on this machine: what `huggingface_hub`'s own client asks of huggingface.co in a push and a pull.

    with HubServer(tokens={"secret": "anna"}) as hub:
        HfApi(endpoint=hub.endpoint, token="secret").create_repo("anna/model")

Real HTTP, so the client runs as it is. Repositories are in memory. Files that hold more than text go to LFS, as on the
Hub. `requests` records what was asked.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Refusal(Exception):
    """Status, the error code and message that the client reads from the headers, perhaps an answer."""


class Repository:
    """`branches` and `commits` by name; a commit is a dictionary of files. `lfs` holds what has arrived, by hash."""

    def __init__(self, private: bool):
        self.private, self.lfs, self.commits, self.branches = private, {}, {}, {}
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{branch}{len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def find(self, revision: str) -> str:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid


def is_lfs(name: str, content: bytes) -> bool:
    return name.endswith(".safetensors") or b"\0" in content


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(name: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_lfs(name, content) else git_hash(content)


class Handler(BaseHTTPRequestHandler):
    REPO = r"(?P<repo>[^/]+/[^/]+)"
    ROUTES = {
        r"POST /api/validate-yaml": "validate_yaml",
        r"POST /api/repos/create": "create",
        rf"GET /api/models/{REPO}(/revision/(?P<revision>[^/]+))?": "info",
        rf"GET /api/models/{REPO}/tree/(?P<revision>[^/]+)": "tree",
        rf"POST /api/models/{REPO}/branch/(?P<branch>[^/]+)": "create_branch",
        rf"POST /api/models/{REPO}/preupload/(?P<revision>[^/]+)": "preupload",
        rf"POST /{REPO}\.git/info/lfs/objects/batch": "lfs_batch",
        rf"PUT /lfs/{REPO}/(?P<oid>[^/]+)": "lfs_put",
        rf"POST /api/models/{REPO}/commit/(?P<revision>[^/]+)": "commit",
        rf"(GET|HEAD) /{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)": "resolve",
    }

    def answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.hub.requests.append((self.command, path))
        headers, content = {"Content-Type": "application/json"}, b""
        try:
            for route, method in self.ROUTES.items():
                if match := re.fullmatch(route, f"{self.command} {path}"):
                    body = self.read_body()
                    answer = getattr(self, method)(body=body, **match.groupdict())
                    break
            else:
                raise Refusal(404, "", f"Nothing here: {path}")
            status = 200
            if isinstance(answer, dict | list):
                content = json.dumps(answer).encode()
            else:
                content, more = answer
                headers |= more
        except Refusal as refusal:
            status, code, message, *answer = refusal.args
            content = json.dumps(answer[0] if answer else {}).encode()
            headers |= {"X-Error-Code": code, "X-Error-Message": message}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *arguments) -> None:
        pass

    # Who may do what.

    def account(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme and token not in self.server.hub.tokens:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return self.server.hub.tokens.get(token)

    def repository(self, repo: str, write: bool = False) -> Repository:
        account, repository = self.account(), self.server.hub.repositories.get(repo)
        owner = repo.partition("/")[0]
        if repository is None or repository.private and account != owner:  # look alike
            raise Refusal(401 if account is None else 404, "RepoNotFound", "Repository not found")
        if write and account != owner:
            raise Refusal(403, "", "You don't have the rights to write to this repository with this token.")
        return repository

    # Repositories.

    def validate_yaml(self, body: bytes):
        return {"errors": [], "warnings": []}

    def create(self, body: bytes):
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or self.account()}/{wanted['name']}"
        if self.account() != repo.partition("/")[0]:
            raise Refusal(403, "", "You don't have the rights to create a model under this namespace")
        answer = {"url": f"{self.server.hub.endpoint}/{repo}", "name": repo}
        if repo in self.server.hub.repositories:
            raise Refusal(409, "", "You already created this model repo", answer)
        self.server.hub.repositories[repo] = Repository(wanted.get("visibility") == "private")
        return answer

    def info(self, repo: str, revision: str | None, body: bytes):
        repository = self.repository(repo)
        oid = repository.find(revision or "main")
        siblings = [{"rfilename": name} for name in sorted(repository.commits[oid])]
        return {"id": repo, "sha": oid, "private": repository.private, "siblings": siblings, "tags": []}

    def tree(self, repo: str, revision: str, body: bytes):
        repository = self.repository(repo)
        files = repository.commits[repository.find(revision)]
        return [{"type": "file", "path": n, "size": len(c), "oid": git_hash(c)} for n, c in sorted(files.items())]

    def create_branch(self, repo: str, branch: str, body: bytes):
        repository = self.repository(repo, write=True)
        if branch in repository.branches:
            raise Refusal(409, "", "Reference already exists")
        repository.branches[branch] = repository.find("main")
        return {}

    # Uploads: how each file goes, the large ones, then the commit.

    def preupload(self, repo: str, revision: str, body: bytes):
        repository, answers = self.repository(repo, write=True), []
        known = repository.commits[repository.find(revision)]
        for file in json.loads(body)["files"]:
            name = file["path"]
            mode = "lfs" if is_lfs(name, base64.b64decode(file["sample"])) else "regular"
            oid = etag(name, known[name]) if name in known else None
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, repo: str, body: bytes):
        self.repository(repo, write=True)
        where = f"{self.server.hub.endpoint}/lfs/{repo}"
        wishes = json.loads(body)["objects"]
        return {
            "transfer": "basic",
            "objects": [{**wish, "actions": {"upload": {"href": f"{where}/{wish['oid']}"}}} for wish in wishes],
        }

    def lfs_put(self, repo: str, oid: str, body: bytes):
        """The address is secret enough, as those that the Hub signs: no token comes with it."""
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.hub.repositories[repo].lfs[oid] = body
        return {}

    def commit(self, repo: str, revision: str, body: bytes):
        repository = self.repository(repo, write=True)
        head = repository.find(revision)
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", head) != head:
            raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[head])
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = repository.lfs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = repository.commit(revision, files)  # only now can anybody see it
        self.server.hub.messages[oid] = header["summary"]
        return {"commitUrl": f"{self.server.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid}

    def resolve(self, repo: str, revision: str, name: str, body: bytes):
        repository = self.repository(repo)
        oid = repository.find(revision)
        if name not in repository.commits[oid]:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        content = repository.commits[oid][name]
        return content, {"X-Repo-Commit": oid, "ETag": f'"{etag(name, content)}"'}


class HubServer:
    """
    Serves in threads of its own while it is entered.

    Parameters
    ----------
    tokens : dict[str, str]
        Whose each token is.
    """

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.messages: dict[str, str] = {}  # of commits
        self.requests: list[tuple[str, str]] = []  # method and path, in order

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def head(self, repo: str, branch: str = "main") -> str:
        return self.repositories[repo].find(branch)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[repo].commits[self.head(repo, revision)]

    def edit(self, repo: str, contents: dict[str, bytes]) -> str:
        """As somebody does on the Hub's pages."""
        return self.repositories[repo].commit("main", {**self.files(repo), **contents})

    def writes(self, since: int = 0) -> list[tuple[str, str]]:
        return [(method, path) for method, path in self.requests[since:] if method not in ("GET", "HEAD")]
