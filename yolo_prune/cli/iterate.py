"""The command that prunes step by step."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from yolo_prune.cli.flags import Checkpoint, Config, Data, Device, Json, overlay, print_json
from yolo_prune.cli.pruning import parse_list
from yolo_prune.commands.iterate_config import IterateConfig
from yolo_prune.errors import ConfigError
from yolo_prune.pruning.config import CRITERIA, GRANULARITIES, SCOPES, WEIGHT_CRITERIA

_DEFAULTS = IterateConfig()
_CHANGEABLE = ("name", "device", "max_minutes")


def iterate(
    checkpoint: Checkpoint = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(GRANULARITIES)}: cut whole channels out, or set single weights to zero.",
            show_default=_DEFAULTS.granularity,
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            help="Share of the original's prunable channels, or weights, that go at every step.",
            show_default=str(_DEFAULTS.step),
        ),
    ] = None,
    target_ratio: Annotated[
        float | None,
        typer.Option(help="Share of them that is gone in the end.", show_default=str(_DEFAULTS.target_ratio)),
    ] = None,
    target_params: Annotated[
        float | None, typer.Option(help="End once this share of the parameters is left.", show_default=False)
    ] = None,
    target_macs: Annotated[
        float | None, typer.Option(help="End once this share of the MACs is left.", show_default=False)
    ] = None,
    target_latency_ms: Annotated[
        float | None, typer.Option(help="End once a picture takes no longer.", show_default=False)
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            help=f"What makes a channel matter: {', '.join(CRITERIA)}; or a weight: {', '.join(WEIGHT_CRITERIA)}.",
            show_default="taylor, or bn-gamma",
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(SCOPES)}: rank all channels together, or take the same share of every group.",
            show_default=_DEFAULTS.scope,
        ),
    ] = None,
    spare: Annotated[str | None, typer.Option(help="Layers to leave alone, such as 84,96.", show_default=False)] = None,
    min_channels: Annotated[
        int | None, typer.Option(help="Channels that every group keeps.", show_default=str(_DEFAULTS.min_channels))
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="The most epochs of finetuning after a step.", show_default=str(_DEFAULTS.epochs))
    ] = None,
    recover: Annotated[
        float | None,
        typer.Option(help="End a step's finetuning once AP50 is within this of the original's.", show_default=False),
    ] = None,
    score_every: Annotated[
        int | None,
        typer.Option(help="Steps from one validation to the next.", show_default=str(_DEFAULTS.score_every)),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="End with the last good network once AP50 is lower by more.", show_default=str(_DEFAULTS.max_drop)
        ),
    ] = None,
    settle_epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of finetuning at the end.", show_default=str(_DEFAULTS.settle_epochs)),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Save and leave with exit code 124 after so many minutes.", show_default=False)
    ] = None,
    data: Data = None,
    name: Annotated[str | None, typer.Option(help="The run's folder below runs/.", show_default=_DEFAULTS.name)] = None,
    device: Device = None,
    seed: Annotated[
        int | None, typer.Option(help="Every random number follows from this one.", show_default=str(_DEFAULTS.seed))
    ] = None,
    config: Config = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Take up the run NAME where it stopped; takes no other setting but device and max_minutes."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Prune a few channels, or weights, finetune, and again until the target; print the path of the last good checkpoint."""
    from yolo_prune.commands.iterate import resume_iterate, start_iterate
    from yolo_prune.commands.run_folders import RUNS, make_run_folder, remember_latest, resolve_checkpoint
    from yolo_prune.console import report

    flags: dict[str, Any] = {
        "granularity": granularity, "step": step, "target_ratio": target_ratio, "target_params": target_params, "target_macs": target_macs,
        "target_latency_ms": target_latency_ms, "criterion": criterion, "scope": scope,
        "spare": parse_list(spare, int, "spare", "84,96"), "min_channels": min_channels, "epochs": epochs,
        "recover": recover, "score_every": score_every, "max_drop": max_drop, "settle_epochs": settle_epochs,
        "max_minutes": max_minutes, "data": data, "name": name, "device": device, "seed": seed,
    }  # fmt: skip
    if resume:
        given = [key for key, value in flags.items() if value is not None and key not in _CHANGEABLE]
        if given or config is not None or checkpoint is not None:
            flag = f"--{given[0].replace('_', '-')}" if given else "CHECKPOINT" if checkpoint else "--config"
            raise ConfigError("a resumed run keeps its settings", where=flag, right="leave it out, or start a new run")
        changes = {key: flags[key] for key in _CHANGEABLE[1:] if flags[key] is not None}
        result = resume_iterate(RUNS / (name or _DEFAULTS.name), changes)
    else:
        settings = overlay(_DEFAULTS, config, flags)
        folder = make_run_folder(settings.name, _DEFAULTS.name)
        result = start_iterate(resolve_checkpoint(checkpoint, "train"), settings, folder)
    report(result.format())
    remember_latest("finetune", result.checkpoint)
    print_json(result.as_dict()) if as_json else print(result.checkpoint)
