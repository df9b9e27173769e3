"""Where a setting comes from: default, file, environment or flag, in rising order."""

from pathlib import Path

import pytest

from daemon import settings as table
from daemon_process import here


def shown(*arguments: object, **variables: str) -> dict[str, tuple[object, str]]:
    """Setting -> (value, origin), as `config show --json` tells them."""
    ended = here("config", "show", "--json", *arguments, **variables)
    assert ended.code == 0, ended.stderr
    return {name: (told["value"], told["origin"]) for name, told in ended.json.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "supsup.toml"
    path.write_text('classes = 3\nseed = 4\nbank = "from-file"\ntopic = "one"\nburst = true\n')
    return path


def test_without_anything_every_setting_is_its_default() -> None:
    told = shown()
    assert list(told) == list(table.NAMES)
    assert {origin for _, origin in told.values()} == {"default"}


def test_each_source_overrides_the_one_before(file: Path) -> None:
    told = shown("--config", file, "--bank=from-flag", SUPSUP_BANK="from-variable", SUPSUP_SEED="5")
    assert told["classes"] == (3, "file")
    assert told["seed"] == (5, "environment SUPSUP_SEED")
    assert told["bank"] == ("from-flag", "flag")
    assert told["budget"] == (2500, "default")


def test_the_environment_can_name_the_file(file: Path) -> None:
    told = shown(SUPSUP_CONFIG=str(file))
    assert told["classes"] == (3, "file")
    assert told["topic"] == (["one"], "file")
    assert told["burst"] == (True, "file")


def test_every_setting_can_be_a_variable() -> None:
    values = {"topic": "a,b", "input_shape": "4x4", "burst": "yes", "create_topics": "no", "embedded": "1"}
    for name, value in values.items():
        told = shown(**{table.variable(name): value})
        assert told[name][1] == f"environment {table.variable(name)}"
    assert shown(SUPSUP_TOPIC="a,b c")["topic"][0] == ["a", "b", "c"]
    assert shown(SUPSUP_CREATE_TOPICS="no")["create_topics"][0] is False


def test_a_flag_given_more_than_once_adds_up() -> None:
    assert shown("--topic=a", "--topic=b,c")["topic"] == (["a", "b", "c"], "flag")


def test_a_flag_can_say_no(file: Path) -> None:
    assert shown("--config", file, "--no-burst")["burst"] == (False, "flag")


@pytest.mark.parametrize(("command", "names"), [("start", table.START_NAMES), ("serve", table.SERVE_NAMES)])
def test_every_setting_stands_in_the_help_of_its_command_with_its_variable_and_default(
    command: str, names: tuple[str, ...]
) -> None:
    text = " ".join(here(command, "--help").stdout.split())
    for name in names:
        assert table.flag(name) in text
        assert table.variable(name) in text


def test_all_problems_of_all_sources_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("clases = 3\nbudget = 0\n")
    ended = here("start", "--config", path, "--std=0", SUPSUP_KAFKAS="k:1", SUPSUP_EPSILON="small")
    assert ended.code == 2
    lines = ended.stderr.removeprefix("error: ").splitlines()
    assert len(lines) == 5
    assert f"{path}: unknown key 'clases'; did you mean classes?" in lines
    assert "unknown variable SUPSUP_KAFKAS; did you mean SUPSUP_KAFKA?" in lines
    for start in ("--budget (file): ", "--std (flag): ", "--epsilon (environment SUPSUP_EPSILON): "):
        assert any(line.startswith(start) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--clases=3",), "Did you mean one of: '--classes'"),
        (("--config=nowhere.toml",), "cannot read the settings file nowhere.toml"),
        (("--bank=a b",), "--bank (flag)"),
        (("--arch=lenet",), "unknown architecture 'lenet': choose lenet-300-100"),
        (("--outputs=3", "--classes=4"), "outputs (3) must not be fewer than classes (4)"),
        (("--device=cuda:99",), "--device cuda:99: not usable here"),
        (("--device=toaster",), "--device toaster: not usable here"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_connected(arguments: tuple[str, ...], told: str) -> None:
    ended = here("start", "--kafka=127.0.0.1:1", "--redis=redis://127.0.0.1:1/0", *arguments)
    assert ended.code == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_switch_that_is_neither_yes_nor_no_is_refused() -> None:
    ended = here("start", SUPSUP_BURST="perhaps")
    assert ended.code == 2
    assert "'perhaps' is not a valid boolean" in ended.stderr


@pytest.mark.parametrize("value", ["5", "[true]", "'maybe'", "1.5"])
def test_a_switch_in_a_file_that_is_neither_true_nor_false_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "supsup.toml"
    path.write_text(f"burst = {value}\n")
    ended = here("config", "show", "--config", path)
    assert ended.code == 2
    assert "is not a valid boolean" in ended.stderr
