"""Make transformers' own model tests importable, as the package `transformers_tests` in the folder given.

Wheels do not carry the tests. The source distribution carries those modules that the tests of all models share, but
not the folders beside them, of which the few names that are asked for are written here.

    python tests/fetch_transformers_tests.py .transformers_tests

`make test` calls this. Version: that of the transformers installed.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


MODULES = [
    "test_configuration_common.py",
    "test_fsdp_mixin.py",
    "test_modeling_common.py",
    "test_tensor_parallel_mixin.py",
    "test_training_mixin.py",
]

STUBS = {
    # The real one tests `generate`, as tests/test_generation.py does.
    "generation/test_utils.py": """
class GenerationTesterMixin:
    pass
""",
    "exporters/test_export.py": """
class ExportTesterMixin:
    pass
""",
    "utils/test_configuration_utils.py": """
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 3,
    "architectures": ["X"],
    "id2label": {0: "a"},
    "label2id": {"a": "0"},
    "problem_type": "regression",
}
""",
    "distributed_testing_utils.py": """
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing


# The ranks are forked off a server that has imported already what takes seconds.
torch.multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["modeling_sleep", "torch.distributed.fsdp", "transformers.testing_utils", "transformers.trainer_utils"]
)


def _get_distributed_device_type():
    return "cuda" if torch.cuda.is_available() else "cpu"


def _get_distributed_backend():
    return "nccl" if torch.cuda.is_available() else "gloo"


def _get_rank_device(rank):
    return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")


def _set_rank_device(rank):
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)


def _start_rank_processes(function, args, nprocs):
    torch.multiprocessing.start_processes(function, args, nprocs, start_method="forkserver")


def _run_rank(rank, function, world_size, port, args, kwargs):
    os.environ.update(WORLD_SIZE=str(world_size), RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    _set_rank_device(rank)
    dist.init_process_group(_get_distributed_backend(), rank=rank, world_size=world_size)
    function(rank, *args, **kwargs)
    dist.barrier()
    dist.destroy_process_group()


def run_distributed(world_size):
    def outer(function):
        def inner(*args, **kwargs):
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            _start_rank_processes(_run_rank, (function, world_size, port, args, kwargs), world_size)

        return inner

    return outer
""",
}


def fetch(package: Path) -> None:
    version = transformers.__version__
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory() as folder:
        # Without isolation: pip asks the source for its name and version, for which setuptools is here already.
        options = ["--no-binary", "transformers", "--no-build-isolation", "--dest", folder]
        if subprocess.run([*pip, *options, f"transformers=={version}"]).returncode:
            sys.exit(
                f"pip cannot fetch the source distribution of transformers {version}; the message above says why."
            )
        (archive,) = Path(folder).glob("*.tar.gz")
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir(parents=True)
        with tarfile.open(archive) as source:
            for module in MODULES:
                content = source.extractfile(f"transformers-{version}/tests/{module}").read()
                (package / module).write_bytes(content)
    for path, content in STUBS.items():
        (package / path).parent.mkdir(exist_ok=True)
        (package / path).write_text(content.lstrip(), encoding="utf-8")
        (package / path).parent.joinpath("__init__.py").touch()
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]) / "transformers_tests")
