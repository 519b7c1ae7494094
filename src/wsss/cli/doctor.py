"""`wsss doctor`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import print_json, stdout

if TYPE_CHECKING:
    from ..runtime.doctor import Diagnosis


def doctor(
    model: Annotated[
        Path | None, typer.Option(help="Bundle of `wsss export`; one image is labelled by it.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write to; it is not made. Default: the current one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what works on this machine and what is missing, by doing it; ends with 1 if not well."""
    from ..runtime.doctor import diagnose

    diagnosis = diagnose(out, model)
    if as_json:
        print_json(diagnosis.to_json())
    else:
        _print_diagnosis(diagnosis)
    if not diagnosis.is_well:
        sys.exit(1)


def _print_diagnosis(diagnosis: "Diagnosis") -> None:
    from rich.table import Table

    table = Table("", "", "found", "", box=None)
    for column in table.columns:
        column.overflow = "fold"
    part = ""
    for finding in diagnosis.findings:
        state = "" if finding.state == "ok" else finding.state
        table.add_row(
            finding.part if finding.part != part else "", finding.name, finding.value, state
        )
        part = finding.part
    stdout.print(table)
    for finding in diagnosis.findings:
        if finding.remedy:
            stdout.print(f"{finding.name}: {finding.remedy}", soft_wrap=True)
    stdout.print("well" if diagnosis.is_well else "not well: mend what is broken")
