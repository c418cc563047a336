"""The commands that prune: sensitivity, plan, prune."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from yolo_prune.cli.flags import Checkpoint, Config, Data, Device, Json, overlay, print_json
from yolo_prune.commands.config import FOLDS, PruneConfig, SensitivityConfig
from yolo_prune.errors import ConfigError
from yolo_prune.pruning.config import (
    AUTO,
    CRITERIA,
    DEFAULT_RATIO,
    GRANULARITIES,
    GROUP_REDUCTIONS,
    METRICS,
    NORMALIZATIONS,
    SCOPES,
    WEIGHT_CRITERIA,
)

_PRUNE, _PLAN, _SENSITIVITY = PruneConfig(), PruneConfig(name="plan"), SensitivityConfig()

Criterion = Annotated[
    str | None,
    typer.Option(help=f"What makes a channel matter: {', '.join((*CRITERIA, AUTO))}.", show_default=_PRUNE.criterion),
]
GroupReduce = Annotated[
    str | None,
    typer.Option(
        help=f"How scores of channels that shortcuts tie are combined: {', '.join(GROUP_REDUCTIONS)}.",
        show_default=_PRUNE.group_reduce,
    ),
]
ScoreBatches = Annotated[
    int | None,
    typer.Option(
        help="Batches of training pictures that taylor and obs look at.", show_default=str(_PRUNE.score_batches)
    ),
]
Seed = Annotated[int | None, typer.Option(help="What criterion random draws from.", show_default=str(_PRUNE.seed))]
_PlanName = Annotated[str | None, typer.Option(help="The run's folder below runs/.", show_default=_PLAN.name)]


def prune(
    checkpoint: Checkpoint = None,
    one_shot: Annotated[
        bool | None, typer.Option("--one-shot", help="Cut at once, without training.", show_default=False)
    ] = None,
    effort: Annotated[
        int | None,
        typer.Option(
            help="Epochs of training in which channels fall silent and are cut out.",
            show_default="half the checkpoint's own",
        ),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Save and leave with exit code 124 after so many minutes.", show_default=False)
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(GRANULARITIES)}: cut whole channels out, or set single weights to zero, by {', '.join(WEIGHT_CRITERIA)}.",
            show_default=_PRUNE.granularity,
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the prunable channels, or weights, that go, in [0, 1).",
            show_default=f"{DEFAULT_RATIO}, or what the targets need",
        ),
    ] = None,
    target_params: Annotated[
        float | None, typer.Option(help="Share of the parameters that may stay: 0.1 is a tenth.", show_default=False)
    ] = None,
    target_macs: Annotated[
        float | None, typer.Option(help="Share of the MACs that may stay.", show_default=False)
    ] = None,
    target_latency_ms: Annotated[
        float | None,
        typer.Option(help="Milliseconds that a picture may take, measured on --device.", show_default=False),
    ] = None,
    target_speedup: Annotated[
        float | None,
        typer.Option(help="How many times as fast as now, measured on --device.", show_default=False),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Of weights, instead of a ratio: N:M, such as 2:4, keeps N of every M consecutive input channels.",
            show_default=False,
        ),
    ] = None,
    spare_ends: Annotated[
        bool | None,
        typer.Option(
            "--spare-ends/--no-spare-ends",
            help="Of weights: leave the first convolution and those before detection heads whole.",
            show_default="spare-ends",
        ),
    ] = None,
    criterion: Criterion = None,
    group_reduce: GroupReduce = None,
    scope: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(SCOPES)}: rank all channels together, take the same share of every group, or rank all but have no group lose much more than others.",
            show_default=_PRUNE.scope,
        ),
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            help="Of scope floor: every group keeps at least this share of what it kept if all lost alike.",
            show_default=str(_PRUNE.floor),
        ),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            help=f"What a group's scores are divided by before ranking: {', '.join(NORMALIZATIONS)}.",
            show_default=_PRUNE.normalize,
        ),
    ] = None,
    score_batches: ScoreBatches = None,
    seed: Seed = None,
    from_sensitivity: Annotated[
        Path | None,
        typer.Option(help="A sensitivity.json: every group gets a ratio of its own by it.", show_default=False),
    ] = None,
    drop_blocks: Annotated[
        int | None,
        typer.Option(
            help="Residual blocks to cut out first, those that contribute least.", show_default=str(_PRUNE.drop_blocks)
        ),
    ] = None,
    shortcuts: Annotated[
        bool | None,
        typer.Option(
            "--shortcuts/--no-shortcuts",
            help="Prune channels that shortcuts tie together, or leave them alone.",
            show_default="shortcuts",
        ),
    ] = None,
    spare: Annotated[str | None, typer.Option(help="Layers to leave alone, such as 84,96.", show_default=False)] = None,
    min_channels: Annotated[
        int | None, typer.Option(help="Channels that every group keeps.", show_default=str(_PRUNE.min_channels))
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option(
            help="Keep the nearest multiple of this many channels in every group, at least one.",
            show_default="16, fewer where layers are narrow",
        ),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan.json to apply as it stands.", show_default=False)] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            help=f"What consumers take up for a dropped channel: {', '.join(FOLDS)}.", show_default=_PRUNE.fold
        ),
    ] = None,
    recalibrate: Annotated[
        int | None,
        typer.Option(
            help="Training pictures to measure batch norm on anew; 0 leaves it.", show_default=str(_PRUNE.recalibrate)
        ),
    ] = None,
    data: Data = None,
    name: Annotated[str | None, typer.Option(help="The run's folder below runs/.", show_default=_PRUNE.name)] = None,
    device: Device = None,
    config: Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the plan, prune nothing.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Take up the run NAME where it stopped; takes no other setting but device and max-minutes."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a checkpoint on while its least important channels are cut out, or zero its least weights, and print the path of the new one."""
    from yolo_prune.commands.lineage import adapt_prune, find_training
    from yolo_prune.commands.plan import format_layers
    from yolo_prune.commands.prune import make_plan_files
    from yolo_prune.commands.prune import prune as make_pruned
    from yolo_prune.commands.run_folders import make_run_folder, remember_latest, resolve_checkpoint
    from yolo_prune.console import report

    flags = {
        "one_shot": one_shot, "effort": effort, "max_minutes": max_minutes,
        "granularity": granularity, "pattern": pattern, "spare_ends": spare_ends,
        "ratio": ratio, "target_params": target_params, "target_macs": target_macs,
        "target_latency_ms": target_latency_ms, "target_speedup": target_speedup, "criterion": criterion,
        "group_reduce": group_reduce, "scope": scope, "floor": floor, "normalize": normalize, "score_batches": score_batches,
        "seed": seed, "from_sensitivity": from_sensitivity, "drop_blocks": drop_blocks, "shortcuts": shortcuts,
        "spare": parse_list(spare, int, "spare", "84,96"), "min_channels": min_channels, "round_to": round_to,
        "plan": plan, "fold": fold, "recalibrate": recalibrate, "data": data, "name": name, "device": device,
    }  # fmt: skip
    if resume:
        is_told = config is not None or checkpoint is not None or dry_run
        source, settings, folder = _find_stopped(name or _PRUNE.name, flags, is_told)
    else:
        source = resolve_checkpoint(checkpoint, "train")
        settings = overlay(_PLAN if dry_run else adapt_prune(find_training(source)), config, flags)
        folder = make_run_folder(settings.name, _PLAN.name if dry_run else _PRUNE.name)
    if dry_run:
        made = make_plan_files(source, settings, folder)
        report(format_layers(made.planned))
        print_json(made.as_dict()) if as_json else print(made.plan)
        return
    result = make_pruned(source, settings, folder)
    report(result.format())
    remember_latest("prune", result.checkpoint)
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.checkpoint)


def _find_stopped(name: str, flags: dict[str, Any], is_told: bool) -> tuple[Path, PruneConfig, Path]:
    """Return the checkpoint, the settings and the folder of the run that stopped, with what may be changed of them."""
    from yolo_prune.commands.prune_gradually import CHANGEABLE, load_journal
    from yolo_prune.commands.run_folders import RUNS
    from yolo_prune.config import parse_config

    changes = {key: value for key, value in flags.items() if value is not None and key != "name"}
    if other := [key for key in changes if key not in CHANGEABLE] or (["config"] if is_told else []):
        where = f"--{other[0].replace('_', '-')}"
        raise ConfigError("a resumed run keeps its settings", where=where, right="leave it out, or start a new run")
    folder = RUNS / name
    source, settings = load_journal(folder)
    return source, parse_config(settings, changes, "command line"), folder


def _as_dry_run(command: Callable[..., None], doc: str) -> Callable[..., None]:
    """Return `command` with --dry-run set, and without the flags of weights and of what happens after a plan is made."""
    hidden: dict[str, Any] = {"dry_run": True, "fold": None, "recalibrate": None, "resume": False}
    hidden |= {"one_shot": None, "effort": None, "max_minutes": None}
    hidden |= {"granularity": None, "pattern": None, "spare_ends": None}

    def plan(**flags: Any) -> None:
        command(**flags, **hidden)

    signature = inspect.signature(command, eval_str=True)
    shown = [
        parameter.replace(annotation=_PlanName) if name == "name" else parameter
        for name, parameter in signature.parameters.items()
        if name not in hidden
    ]
    plan.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]  # what Typer reads
    plan.__doc__ = doc
    return plan


plan = _as_dry_run(prune, "Write what prune would do as JSON and as a picture, and print the JSON's path.")


def sensitivity(
    checkpoint: Checkpoint = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Fractions of a group to drop, each by itself.", show_default=",".join(map(str, _SENSITIVITY.ratios))
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help=f"{' or '.join(METRICS)}.", show_default=_SENSITIVITY.metric)
    ] = None,
    pictures: Annotated[
        int | None,
        typer.Option(help="Validation pictures to measure on.", show_default=str(_SENSITIVITY.pictures)),
    ] = None,
    criterion: Criterion = None,
    group_reduce: GroupReduce = None,
    score_batches: ScoreBatches = None,
    seed: Seed = None,
    data: Data = None,
    name: Annotated[
        str | None, typer.Option(help="The run's folder below runs/.", show_default=_SENSITIVITY.name)
    ] = None,
    device: Device = None,
    config: Config = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with NAME where it stopped; takes no other setting but device.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure what pruning each group alone costs, and print the path of the table that prune --from-sensitivity takes."""
    from yolo_prune.commands.run_folders import RUNS, make_run_folder, resolve_checkpoint
    from yolo_prune.commands.sensitivity import resume_sensitivity, start_sensitivity
    from yolo_prune.console import report

    flags = {
        "ratios": parse_list(ratios, float, "ratios", "0.25,0.5,0.75"), "metric": metric, "pictures": pictures,
        "criterion": criterion, "group_reduce": group_reduce, "score_batches": score_batches, "seed": seed,
        "data": data, "name": name, "device": device,
    }  # fmt: skip
    if resume:
        given = [key for key, value in flags.items() if value is not None and key not in ("name", "device")]
        if given or config is not None or checkpoint is not None:
            flag = f"--{given[0].replace('_', '-')}" if given else "CHECKPOINT" if checkpoint else "--config"
            raise ConfigError(
                "a resumed measurement keeps its settings", where=flag, right="leave it out, or start anew"
            )
        result = resume_sensitivity(RUNS / (name or _SENSITIVITY.name), device)
    else:
        settings = overlay(_SENSITIVITY, config, flags)
        folder = make_run_folder(settings.name, _SENSITIVITY.name)
        result = start_sensitivity(resolve_checkpoint(checkpoint, "train"), settings, folder)
    report(result.format())
    if as_json:
        print_json(result.as_dict())
    else:
        print(result.path)


def parse_list(text: str | None, kind: Callable[[str], Any], where: str, example: str) -> list[Any] | None:
    """Read numbers between commas, None from None.

    Raises:
        ConfigError: one is no such number.
    """
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text} is no list of numbers", where=where, right=f"write {example}") from None
