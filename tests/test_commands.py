"""Every command that a page tells people to type names what is there, and its program takes the options given.

A program is stopped as soon as it has read its command line. What takes minutes at most is also run, in the order of
the pages, which build on one another; that test is slow.
"""

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[1]
PAGES = [page for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md") for page in sorted(REPOSITORY.glob(pattern))]
PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which also tells what is no more
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BEGINNINGS = ("python ", "make ", "pip install ", "accelerate launch ", "torchrun ")
OF_OTHERS = ("modeling_sleep.serve",)  # whose options are another library's
OF_EXTRAS = ("gradio",)  # which programs import without ado


def commands_of(text: str) -> list[str]:
    """Lines of code, indented or fenced, and code in sentences, that begin like a command; without comments."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    code = [line.strip() for line in lines if line.startswith(("    ", *BEGINNINGS))]
    code += [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    return [re.split(r"\s+#\s", line)[0] for line in code if line.startswith(BEGINNINGS)]


COMMANDS = dict.fromkeys(command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8")))


class HasRead(Exception):
    """Raised inside a program in the place of all that it would do."""


def check_program(words: list[str], monkeypatch):
    """The words behind `python`: a file or `-m` and a module, and its options."""
    if words[0] == "-m":
        module, options = words[1], words[2:]
    else:
        assert (REPOSITORY / words[0]).is_file(), words[0]
        module, options = words[0].removesuffix(".py").replace("/", "."), words[1:]
    try:
        program = importlib.import_module(module)
    except SystemExit as error:  # of an extra that is not installed
        pytest.skip(str(error))
    except ModuleNotFoundError as error:
        if error.name not in OF_EXTRAS:
            raise
        pytest.skip(str(error))
    if hasattr(program, "__path__"):
        program = importlib.import_module(f"{module}.__main__")
    if module in OF_OTHERS:
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse(self, args, namespace)  # which exits if it cannot
        raise HasRead

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [module, *options])
    try:
        program.main()
    except HasRead:
        pass
    except SystemExit as error:
        assert "--help" in options and error.code == 0, f"{shlex.join(words)} exits with {error.code}"


def test_there_are_commands_of_every_kind():
    assert {beginning for beginning in BEGINNINGS for command in COMMANDS if command.startswith(beginning)} >= {
        "python ",
        "make ",
        "pip install ",
        "accelerate launch ",
    }
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one(command, monkeypatch, capsys):
    first, *words = shlex.split(command)
    if first == "make":
        targets = [word for word in words if "=" not in word]
        variables = [word.partition("=")[0] for word in words if "=" in word]
        assert all(re.search(rf"^{target}:", MAKEFILE, re.M) for target in targets)
        assert all(re.search(rf"^{variable} \?=", MAKEFILE, re.M) for variable in variables)
    elif first == "pip":
        for extra in re.findall(r"(?:\.|modeling-sleep)\[(\w+)\]", command):
            assert extra in PROJECT["optional-dependencies"]
    elif first == "python":
        check_program(words, monkeypatch)
    else:
        for option, value in zip(words, words[1:]):
            if option == "--config_file":
                assert (REPOSITORY / value).is_file(), value
        begin = next(i for i, word in enumerate(words) if word == "-m" or word.startswith("examples/"))
        if not words[begin].endswith("..."):
            check_program(words[begin:], monkeypatch)


def test_the_makefile_runs_what_is_there(monkeypatch, capsys):
    recipes = re.sub(r"\\\n\s*", "", MAKEFILE)
    recipes = recipes.replace("$(CHAT)", "folder").replace("$(WORKERS)", "2").replace("$(QUICK)", "depo-mini")
    recipes = re.sub(r"\$\((?:EVIDENCE|QUICK):?[^)]*\)", "rule110-mini", recipes)
    found = re.findall(r"^\t@?\$\(BIN\)/python ((?:examples/|-m examples).*)", recipes, re.M)
    assert len(found) > 6
    for command in found:
        with monkeypatch.context() as patch:
            check_program(shlex.split(command), patch)


# Pages in the order in which their commands build on one another, what a reader puts in the place of names in
# capitals, and the programs that take minutes at most, need no network and no second machine.
JOURNEY = ("docs/TRAIN.md", "docs/HUB.md", "docs/MEMORY.md", "docs/RESULTS.md", "docs/results/gsm-mini.md")
PLACES = {"MODEL": "my-model"}
MINUTES = re.compile(
    r"python (examples/(finetune_\w+|train_accelerate)\.py|examples/prefix_reuse\.py$|-m modeling_sleep\.memory "
    r"|-m modeling_sleep\.hub_upload (export|verify)|-m examples\.experiments\.(report|depth_answered))"
)


@pytest.mark.slow
def test_commands_of_the_pages_run_one_behind_the_other(tmp_path):
    for path in REPOSITORY.iterdir():
        if path.name == "docs":  # programs write beside what they read there
            shutil.copytree(path, tmp_path / "docs")
        elif path.name not in (".git", "outputs", "runs"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "book.txt").write_text("Emma's sister is Ada. " * 40, encoding="utf-8")
    commands = [x for page in JOURNEY for x in commands_of((REPOSITORY / page).read_text(encoding="utf-8"))]
    commands = [x for x in dict.fromkeys(commands) if MINUTES.match(x)]
    assert len(commands) > 12
    for command in commands:
        words = []
        for word in shlex.split(command):
            words += sorted(map(str, tmp_path.glob(word))) if "*" in word else [PLACES.get(word, word)]
        ran = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
