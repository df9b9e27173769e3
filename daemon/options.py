"""Settings as click options: every command takes those it needs, from the same table, by the same rules."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import structlog
from click.core import ParameterSource

from daemon import settings as table
from daemon import settings_file
from daemon.settings import Settings

log = structlog.get_logger()

F = TypeVar("F", bound=Callable[..., Any])

_PROBLEMS: Final = "daemon.options.problems"
_SWITCHES: Final = {name for name, field in Settings.model_fields.items() if field.annotation is bool}
_ORIGINS: Final = {ParameterSource.COMMANDLINE: "flag", ParameterSource.DEFAULT_MAP: "file"}


def setting_options(*names: str) -> Callable[[F], F]:
    """Options for some settings, and `--config`; the command reads them with `current_settings`."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            command = _option(name)(command)
        return click.option(
            "--config",
            type=click.Path(dir_okay=False, path_type=Path),
            envvar="SUPSUP_CONFIG",
            is_eager=True,
            expose_value=False,
            callback=_load_file,
            help="TOML file of settings.  [SUPSUP_CONFIG]",
        )(command)

    return decorate


def current_settings(context: click.Context | None = None) -> Settings:
    """The checked settings of the running command.

    Raises:
        ConfigError: every problem, a line each.
    """
    context = context or click.get_current_context()
    values, origins = _given(context)
    for name, origin in origins.items():
        if origin == _ORIGINS[ParameterSource.COMMANDLINE] and table.is_secret(name):
            # Everybody on this machine can read the arguments of a process.
            log.warning("secret.on_command_line", flag=table.flag(name), better=f"{table.variable(name)} or a file")
    return table.parse(values, origins, [*context.meta.get(_PROBLEMS, ()), *table.unknown_variables(os.environ)])


def origins_of(context: click.Context) -> dict[str, str]:
    """Setting -> where its value comes from, for all settings of a command."""
    return dict.fromkeys(table.NAMES, "default") | _given(context)[1]


def _given(context: click.Context) -> tuple[dict[str, Any], dict[str, str]]:
    """Values that do not come from a default, and their origins."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name in table.NAMES:
        source = context.get_parameter_source(name)
        if name in context.params and source not in (None, ParameterSource.DEFAULT):
            values[name] = context.params[name]
            from_environment = source is ParameterSource.ENVIRONMENT
            origins[name] = f"environment {table.variable(name)}" if from_environment else _ORIGINS[source]
    return values, origins


def _option(name: str) -> Callable[[F], F]:
    field = Settings.model_fields[name]
    flag, default = table.flag(name), field.default
    described = f"{field.description}  [{table.variable(name)}; default {_shown(default)}]"
    if isinstance(default, bool):
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, envvar=table.variable(name), help=described)
    return click.option(
        flag,
        name,
        default=None,
        multiple=name == "topic",
        type=click.UNPROCESSED,
        envvar=table.variable(name),
        metavar=name.upper(),
        help=described,
    )


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        separator = "x" if all(isinstance(part, int) for part in default) else ","
        return separator.join(map(str, default))
    return "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _load_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        values = settings_file.read_file(path)
        context.meta[_PROBLEMS] = table.unknown_keys(path, values)
        if isinstance(values.get("topic"), str):
            values["topic"] = [values["topic"]]
        for name in values.keys() & _SWITCHES:  # click looks at switches itself, and takes text and booleans only
            if not isinstance(values[name], bool):
                values[name] = str(values[name])
        context.default_map = values
