"""The project's own files: they agree with each other, with the code, and with what is on disk."""

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import supsup_online

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("daemon", "supsup_online")
FOLDERS = (*PACKAGES, "tests", "docs", "deploy", "benchmarks", ".ci")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
REQUIREMENTS = [
    Requirement(line) for lines in (PYPROJECT["project"]["dependencies"], *EXTRAS.values()) for line in lines
]
MAKEFILE = (ROOT / "Makefile").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]

MOST_LINES = 400
LONG_FOR_A_REASON: set[str] = set()  # modules beyond MOST_LINES, each with its reason beside it
LEFT_BEHIND = {"__pycache__", "results"}  # by the interpreter and by benchmarks; git ignores them


def own_files():
    """Every file that is part of the project, by its path from the root."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not LEFT_BEHIND & set(path.relative_to(ROOT).parts):
                yield path.relative_to(ROOT)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith(".coverage"):
            yield path.relative_to(ROOT)


def modules():
    return {str(path) for path in own_files() if path.parts[0] in PACKAGES and path.suffix in {".py", ".lua"}}


def code_of(markdown):
    """What stands in fences, in indented blocks and between backticks."""
    fences = re.findall(r"```.*?\n(.*?)```", markdown, flags=re.DOTALL)
    prose = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    indented = re.findall(r"^    (.+)$", prose, flags=re.MULTILINE)
    inline = re.findall(r"`([^`]+)`", prose)
    return "\n".join([*fences, *indented, *inline])


def make_targets_named_in(text):
    """`make lint test ARGS=...` at the start of a command -> lint, test."""
    for line in re.findall(r"^\s*(?:\$ )?make((?: +[a-zA-Z_-]+(?![\w=]))+)", text, flags=re.MULTILINE):
        yield from line.split()


def is_a_target(name):
    benchmark = name.removeprefix("bench-")
    if benchmark != name:
        return benchmark == "NAME" or (ROOT / "benchmarks" / f"{benchmark}.py").exists()
    return re.search(rf"^{re.escape(name)}:", MAKEFILE, flags=re.MULTILINE) is not None


def pins():
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_the_installed_version_is_the_packages_own():
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert metadata.version("supsup-daemon") == supsup_online.__version__


def test_the_package_holds_every_file_it_reads_at_run_time():
    declared = PYPROJECT["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        folder = ROOT / package
        included = {path for pattern in declared[package] for path in folder.glob(pattern)}
        for name in PYPROJECT["tool"]["setuptools"]["packages"]:
            if name.split(".")[0] == package:
                included |= set(ROOT.joinpath(*name.split(".")).glob("*.py"))
        assert included == {ROOT / path for path in own_files() if path.parts[0] == package}


def test_the_map_in_contributing_names_every_module_and_no_other():
    rows = re.findall(r"^\| `((?:daemon|supsup_online)/[^`]+)` \|", CONTRIBUTING, flags=re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == {module for module in modules() if not module.endswith("__init__.py")}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_named_in_a_document_exists(document):
    named = set(make_targets_named_in(code_of(document.read_text())))
    assert [name for name in named if not is_a_target(name)] == []


@pytest.mark.parametrize("script", [".ci/run", ".pre-commit-config.yaml", "constraints.txt", "deploy/Dockerfile"])
def test_every_make_target_named_in_a_script_exists(script):
    text = (ROOT / script).read_text()
    named = {*make_targets_named_in(text), *make_targets_named_in(code_of(text))}
    assert [name for name in named if not is_a_target(name)] == []


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make (\S+)", shown, flags=re.MULTILINE)) | {"help"}
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert listed == {*phony[1].split(), "bench-NAME"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_only_files_that_exist(document):
    text = document.read_text()
    named = re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*)`", text)
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing + [link for link in links if not (document.parent / link).exists()] == []


def test_the_code_points_only_to_documents_that_exist():
    named = {
        (str(path), document)
        for path in own_files()
        if path.suffix == ".py"
        for document in re.findall(r"\bdocs/[\w-]+\.md\b", (ROOT / path).read_text())
    }
    assert [(path, document) for path, document in sorted(named) if not (ROOT / document).exists()] == []


def test_no_file_names_a_directory_of_somebodys_machine():
    absolute = re.compile(r"(?<![\w.~/}-])/(?:work|root|home/\w+|Users/\w+)/")
    found = []
    for path in own_files():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:
            lines = content.decode(errors="replace").splitlines()
            found += [f"{path}: {line}" for line in lines if absolute.search(line)]
    assert found == []


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_at_a_release_within_its_range(requirement):
    assert requirement.specifier, f"{requirement.name} has no lower bound"
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_what_the_dependencies_need_is_pinned_too():
    needed, todo = set(), [("supsup-daemon", extra) for extra in ("", *EXTRAS)]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed.add(canonicalize_name(requirement.name))
                more = {(canonicalize_name(requirement.name), further) for further in ("", *requirement.extras)} - seen
                seen |= more
                todo += more
    cuda = {name for name in needed if name.startswith(("nvidia-", "cuda-", "triton"))}  # a CPU build has none
    assert needed - cuda <= pins().keys()


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_is_short_or_has_a_reason(module):
    length = len((ROOT / module).read_text().splitlines())
    assert (length > MOST_LINES) == (module in LONG_FOR_A_REASON)


@pytest.mark.parametrize("script", [path for path in own_files() if path.parts[0] == ".ci"], ids=str)
def test_a_ci_script_can_be_run_and_is_valid_bash(script):
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_the_git_hooks_run_what_make_lint_runs_and_download_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = {hook["entry"].split(" --")[0] for hook in config["repos"][0]["hooks"]}
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", MAKEFILE, flags=re.MULTILINE)
    linted = {line.strip().replace("$(BIN)", ".venv/bin").split(" --")[0] for line in recipe[1].splitlines()}
    assert hooks == {command.removesuffix(" .") for command in linted}


def test_the_changelog_begins_with_what_is_unreleased_and_knows_this_version():
    headings = re.findall(r"^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert len(headings) == 1 or headings[1] == supsup_online.__version__


def test_the_licence_is_apache_2_as_declared():
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
