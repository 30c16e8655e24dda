"""The wheel holds what it should and nothing else, and the repository's folder names do not leak into user code."""

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from wheels import build_wheel

import modeling_sleep


REPOSITORY = Path(__file__).parents[1]
PRESETS = {f"modeling_sleep/configuration/presets/{p.name}" for p in REPOSITORY.glob("configuration/presets/*.*")}
PATTERNS = {f"modeling_sleep/teach/{p.name}" for p in REPOSITORY.glob("modeling_sleep/teach/patterns_*.txt")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("packaging"))


@pytest.fixture(scope="module")
def files(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_contains_the_configuration_every_preset_and_the_patterns_of_teaching(files):
    assert PRESETS and len(PATTERNS) == 3
    assert files >= PRESETS | PATTERNS
    assert {"modeling_sleep/configuration/configuration_sleep.py", "modeling_sleep/hub_upload/__init__.py"} <= files


def test_wheel_installs_one_top_level_package(files):
    metadata = f"modeling_sleep-{modeling_sleep.__version__}.dist-info"
    assert {name.split("/")[0] for name in files} == {"modeling_sleep", metadata}
    assert all(
        name.endswith((".py", ".json", ".yaml", "card_template.md")) or name in PATTERNS
        for name in files
        if name.startswith("modeling_sleep/")
    )


@pytest.mark.programs
@pytest.mark.parametrize("installation", ["wheel", "editable"])
def test_only_modeling_sleep_can_be_imported(wheel, installation, tmp_path):
    """In a process of its own, away from the repository, whose folders the working directory would let in."""
    environment = dict(os.environ)
    home = REPOSITORY
    if installation == "wheel":
        home = tmp_path / "site"
        zipfile.ZipFile(wheel).extractall(home)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    code = """
        import importlib.util, modeling_sleep
        from modeling_sleep import SleepConfig
        from modeling_sleep.configuration.configuration_sleep import SleepConfig as Canonical
        assert SleepConfig is Canonical
        assert [n for n in ("configuration", "hub_upload") if importlib.util.find_spec(n)] == []
        print(modeling_sleep.__file__)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(home)
