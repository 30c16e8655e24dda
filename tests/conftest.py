"""What holds for every test: offline, one seed, one thread per parallel worker, hypothesis without surprises."""

import gc
import os


gc.disable()  # until all is imported, see pytest_collection_finish

# Before the first import of torch or transformers: both read their environment at import, and processes started by
# a test inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if XDIST_WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402


if XDIST_WORKER:
    torch.set_num_threads(1)


def seed_none(seed: int):
    """For devices of which there are none."""


# `torch.manual_seed` remembers the seed for devices that may yet be found, each time with a traceback. In a test that
# takes about a millisecond, and tests seed ten thousands of times.
for devices in (torch.cuda, torch.xpu, torch.mtia):
    if not devices.is_available():
        devices.manual_seed_all = seed_none

# HYPOTHESIS_PROFILE=thorough looks for new counter-examples; "ci" tries the same few examples every time.
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


class TorchRandom:
    """Torch's generator as hypothesis sees it: reseeded before every example, so that a failure can be replayed."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # hypothesis keeps a weak reference only
hypothesis.register_random(TORCH_RANDOM)


# What transformers' own tests are marked with.
TRANSFORMERS_MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_fsdp_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "torch_compile_test",
)


def pytest_configure(config):
    for marker in TRANSFORMERS_MARKERS:
        config.addinivalue_line("markers", f"{marker}: see tests/test_transformers_suite.py")


def pytest_collection_finish():
    """What is imported by now stays: not to be looked at by every collection is worth a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_report_header():
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def progress_bars():
    """Commands that run within a test hide transformers' bars, and no later test is to go without."""
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def fresh_dynamo():
    """Nothing is compiled yet, and nothing stays compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
