"""Flags of `tl predict` for prediction on several machines: one shard of the images, and the join of all shards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl.commands.console import EXIT_SOME_FAILED, console_progress, warn
from tl.commands.output_formats import check_format
from tl.commands.predict_flags import OutputFlags
from tl.commands.requests import refuse_given
from tl.commands.sequence_flags import FileFlags, SequenceFlags
from tl.commands.task_flags import TaskFlags, plan_tasks
from tl.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from tl.runtime.output.notes import Notes
    from tl.runtime.output.shard_checks import ShardFacts
    from tl.runtime.predictor import Predictor
    from tl.runtime.sources.inputs import Inputs
    from tl.runtime.sources.shards import Listing, Shard

FOR_SHARDS = "Several machines"


@dataclass(frozen=True, kw_only=True)
class ShardFlags:
    """Which part of the images is predicted, and the join of all parts."""

    shard: Annotated[
        str | None,
        typer.Option(
            help="Predict only this shard of the images, counted from 1, as in 3/64; --out is the folder of all "
            "shards. The shard of an image depends on its path only.",
            metavar="N/TOTAL",
            rich_help_panel=FOR_SHARDS,
        ),
    ] = None
    join: Annotated[
        Path | None,
        typer.Option(
            help="Join all shards in this folder to --out, with the rows of a single run in the same order.",
            metavar="FOLDER",
            rich_help_panel=FOR_SHARDS,
        ),
    ] = None


def check_shard(flags: ShardFlags, output: OutputFlags, sequences: SequenceFlags, files: FileFlags) -> Shard | None:
    """Return the shard to predict, None for all images. Raises `ConfigError`, `OutputError` for what does not fit."""
    from tl.runtime.sources.shards import parse_shard

    if flags.shard is None:
        return None
    shard = parse_shard(flags.shard)
    if output.output is None:
        raise ConfigError("--shard writes a file of its own in the folder of all shards: give --out FOLDER")
    if output.output.is_file() or output.output.suffix.lower() in (".csv", ".jsonl", ".xlsx", ".parquet", ".tps"):
        raise OutputError(f"{output.output}: with --shard, --out is a folder, in which each shard writes its own file")
    refuse_given(sequences, "cannot be combined with --shard, which would divide sequences")
    refuse_given(FileFlags(every=files.every), "cannot be combined with --shard, which would divide films")
    if output.to is not None or output.excel:
        raise ConfigError("--to and --excel: give the format with --join; shards are JSON lines")
    return shard


def file_of_shard(output: OutputFlags, shard: Shard | None) -> OutputFlags:
    """Return the flags with the shard's own file as output."""
    if shard is None or output.output is None:
        return output
    return replace(output, output=output.output / shard.file_name)


@dataclass(frozen=True)
class ShardRun:
    """The prediction of one shard. `finish` records that it is complete."""

    output: Path
    shard: Shard
    facts: ShardFacts
    inputs: Inputs
    listing: Listing
    predictor: Predictor[Any]

    def finish(self) -> None:
        """Write what the shard is of. Raises `OutputError`, `DataError`."""
        from tl.runtime.output.shards import finish_shard

        finish_shard(self.output, self.shard, self.facts, self.inputs, self.listing, self.predictor.boxes)
        warn(f"shard {self.shard} is finished: {len(self.inputs)} of {self.listing.count} images")


def shard_run(
    shard: Shard | None, output: Path | None, notes: Notes, inputs: Inputs, listing: Listing, predictor: Predictor[Any]
) -> ShardRun | None:
    """Return what is to be finished when all rows are written, None without a shard."""
    from tl.runtime.output.shards import shard_facts

    if shard is None or output is None:
        return None
    return ShardRun(output, shard, shard_facts(predictor, output, notes), inputs, listing, predictor)


def of_shard(inputs: Inputs, shard: Shard | None) -> tuple[Inputs, Listing]:
    """Return the images of a shard, or all without one."""
    from tl.runtime.sources.shards import Listing

    return (inputs, Listing()) if shard is None else inputs.of_shard(shard)


def joined(flags: ShardFlags, output: OutputFlags, tasks: TaskFlags, others: list[object]) -> bool:
    """Join the shards of --join if it is given; returns whether it is. Exits if a row has an error."""
    if flags.join is None:
        return False
    if not join(flags, output, tasks, others):
        raise typer.Exit(EXIT_SOME_FAILED)
    return True


def join(flags: ShardFlags, output: OutputFlags, tasks: TaskFlags, others: list[object]) -> bool:
    """Join the shards of --join. Returns whether no row has an error. `others`: groups of flags that do not apply."""
    from tl.runtime.output.files import check_output
    from tl.runtime.output.shards import iter_paths, join_shards, read_shards

    for group in others:
        refuse_given(group, "does not apply to --join, which predicts nothing")
    allowed = replace(output, output=None, to=None, excel=False, overwrite=False)
    refuse_given(allowed, "does not apply to --join, which predicts nothing")
    if flags.join is None or flags.shard is not None:
        raise ConfigError("--shard predicts a part of the images, --join joins all parts: give one of them")
    if output.output is None:
        raise ConfigError("--join requires an output file: give --out")
    if output.to == "megadetector":
        raise ConfigError("--to megadetector cannot be combined with --join")
    shards = read_shards(flags.join)
    facts = shards[0].facts
    check_format(output.to, output.output, facts.task, boxes=facts.has_boxes, exif=bool(facts.notes))
    check_output(output.output, overwrite=output.overwrite)
    links = plan_tasks(
        *(tasks, output.output, output.to, facts.fields, facts.model_names, iter_paths(shards)),
        overwrite=output.overwrite,
    )
    with console_progress() as progress:
        progress.start("joining", sum(stored.rows for stored in shards), "rows")
        failed = join_shards(
            *(flags.join, output.output),
            point_format=output.to,
            links=links,
            for_excel=output.excel,
            overwrite=output.overwrite,
            advance=progress.advance,
            shards=shards,
        )
    rows = sum(stored.rows for stored in shards)
    warn(f"{len(shards)} shards joined: {rows} rows, {failed} could not be read; {output.output}")
    return not failed
