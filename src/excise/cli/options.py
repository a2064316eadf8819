"""Commands from functions, and their flags from `RunConfig`: no name, type or help is written twice."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from typer.core import TyperCommand

from excise.cli.session import USAGE, Outcome, Session, execute, fail, quiet_imported_libraries, quiet_libraries
from excise.config import Group, RunConfig, describe
from excise.errors import ExciseError

COMMANDS: dict[str, Callable[..., None]] = {}
"""What `command` made, by name; `excise.cli.app` puts it together."""

Configure = Callable[..., RunConfig]

_SWITCHES = {"--thinking": ("off", "on", "both")}
"""Options that may stand without a value, which then is `on`, and the values that they take."""

_POSITIONAL = "model"
_CONTEXT = "context"
_FILE = Annotated[Path | None, typer.Option("--config", help="TOML file with settings, one per line; flags go first.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
_DEBUG = Annotated[bool, typer.Option("--debug", help="Show tracebacks and what libraries log.")]


class Command(TyperCommand):
    """A command whose `--thinking` may stand alone, for `--thinking on`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write out the values that are left out, then parse as ever."""
        return super().parse_args(ctx, list(_with_values(args)))


def _with_values(args: Sequence[str]) -> Iterator[str]:
    for place, word in enumerate(args):
        if word == "--":
            yield from args[place:]
            return
        yield word
        if word in _SWITCHES and args[place + 1 : place + 2] not in [[value] for value in _SWITCHES[word]]:
            yield "on"


def settings(*groups: Group, but: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the settings in `groups`, in the order of their declaration, without some."""
    return tuple(name for name in RunConfig.model_fields if describe(name)["group"] in groups and name not in but)


def command(
    name: str, *, takes: Sequence[str] = (), uses_models: bool = True, group: bool = False
) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Make a function the command `name`.

    The function gets `session`; `config`, a `RunConfig`, where `takes` names settings (or, where the model is not among
    them, `configure`, which makes one from the settings that the command fixes itself); and its other parameters as
    they are annotated for typer. Its docstring is the help. `group`: the command has others under it (`NAME OTHER`),
    and is called where none of them is.
    """

    def register(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.name not in ("session", "config", "configure")
        ]
        shared = [_parameter("config_file", _FILE, None)] if takes else []
        shared += [_parameter("as_json", _JSON, False), _parameter("debug", _DEBUG, False)]

        def invoke(**values: Any) -> None:
            called = values.pop(_CONTEXT).invoked_subcommand if group else None
            if called is not None:
                if values["as_json"] or values["debug"]:
                    raise typer.BadParameter(f"--json and --debug go behind `{called}`")
                return
            raise typer.Exit(_call(function, values, takes=takes, own=[item.name for item in own], models=uses_models))

        context = [_parameter(_CONTEXT, typer.Context, inspect.Parameter.empty)] if group else []
        parameters = [*context, *(_setting(setting) for setting in takes), *own, *shared]
        invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        invoke.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        invoke.__doc__ = inspect.getdoc(function)
        COMMANDS[name] = invoke
        return function

    return register


def _call(
    function: Callable[..., Outcome], values: dict[str, Any], *, takes: Sequence[str], own: Sequence[str], models: bool
) -> int:
    as_json, debug = values["as_json"], values["debug"]
    arguments = {name: values[name] for name in own}
    if takes:
        given = {name: values[name] for name in takes if values[name] is not None and values[name] != []}

        def configure(**fixed: Any) -> RunConfig:
            return RunConfig.resolve(given=given | fixed, file=values["config_file"])

        try:
            config = configure() if _POSITIONAL in takes else configure(model="(given by the command)")
        except ExciseError as error:
            return fail(error, as_json=as_json, debug=debug, code=USAGE)
        arguments |= {"config": config} if _POSITIONAL in takes else {"configure": configure}
        if config.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which comes later

    def work(session: Session) -> Outcome:
        if not debug:
            quiet_libraries()
            if models:
                quiet_imported_libraries()
        return function(session=session, **arguments)

    return execute(work, as_json=as_json, debug=debug)


def _setting(name: str) -> inspect.Parameter:
    """One setting as a parameter for typer. None means not given: then the file's value holds, or the default."""
    field, about = RunConfig.model_fields[name], describe(name)
    kind: Any = field.annotation
    if name == _POSITIONAL:
        return _parameter(name, Annotated[str | None, typer.Argument(help=about["help"], show_default=False)], None)
    flag = f"--{name.replace('_', '-')}"
    metavar = None
    if field.default is True:
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    elif get_origin(kind) is tuple:
        kind, metavar = (list[str], "TEXT") if field.default == () else (str, ",".join(["N"] * len(field.default)))
    option = typer.Option(
        flag,
        help=about["help"] + _default(field.default),
        metavar=metavar,
        show_default=False,
        rich_help_panel=about["group"].capitalize(),
    )
    return _parameter(name, Annotated[kind | None, option], None)


def _default(value: object) -> str:
    if value is True:
        return " Default: yes."
    if value is None or value is False or value == ():
        return ""
    return f" Default: {','.join(map(str, value)) if isinstance(value, tuple) else value}."


def _parameter(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
