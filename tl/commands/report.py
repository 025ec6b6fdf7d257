"""`tl report`: write the HTML report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tl.commands.console import packages_of, warn
from tl.commands.model_files import check_model_files
from tl.commands.options import Overwrite, check_outputs


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Also show the summary of the run's exported model file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file to write. Default: report.html in the run's folder.")
    ] = None,
    overwrite: Overwrite = False,
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Write the HTML report of a run: curves, errors, the images behind them, and how to repeat it.

    Examples:
    - `tl report runs/beetles --open`

    - `tl report runs/wings --model wings.onnx -o for-my-colleague.html`

    The page is one self-contained file and needs no network access. `tl train` writes it after training; after
    `tl train --test`, it shows the test split.
    """
    check_outputs(overwrite, out)
    from tl.runtime.model_file.contract import Contract, parse_contract
    from tl.runtime.model_file.safety import check_model_file

    with packages_of("train"):
        from tl.studies.report.run_page import write_run_report
        from tl.trainer.run_folder.run import Run

    check_model_files(model)
    contract: Contract | None = None
    if model is not None:
        text = check_model_file(model).contract_text
        contract = None if text is None else parse_contract(text, str(model))
    path = write_run_report(Run(run), out, contract)
    warn(f"report: {path}")
    if show:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
