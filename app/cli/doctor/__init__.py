"""`doctor`: checks a deployment and prints each fault with its fix. One file per subject."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.context import load_settings
from app.cli.output import AsJson, print_json, terminal

if TYPE_CHECKING:
    from app.cli.doctor.findings import Finding


def doctor(
    *,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only the files, for CI: loads each model, asks no server.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every part of the deployment; name each fault and its fix.

    Versions, Redis, broker, workers, models, contracts, tables, schedules, and this machine. Exit 1 on any error.
    """
    from app.cli.context import log_warnings_only
    from app.cli.doctor.checkup import check_up
    from app.cli.doctor.findings import Status

    log_warnings_only()
    settings = load_settings()
    if offline:
        from app.cli.doctor.offline import check_files

        findings = check_files(settings)
    else:
        findings = check_up(settings)
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        print_findings(findings)
    if any(finding.status is Status.ERROR for finding in findings):
        raise typer.Exit(1)


def print_findings(findings: list[Finding]) -> None:
    """Print the findings by subject, each fix below its finding, and the counts."""
    from collections import Counter
    from itertools import groupby

    from rich.text import Text

    from app.cli.doctor.findings import Status

    styles = {Status.OK: "green", Status.WARNING: "yellow", Status.ERROR: "bold red"}
    console = terminal()

    def line(*texts: str | tuple[str, str]) -> None:
        # soft_wrap: the terminal wraps long lines; in a pipe, a finding is one line
        console.print(Text.assemble(*texts), soft_wrap=True)

    for check, group in groupby(findings, key=lambda finding: finding.check):
        line((check, "bold"))
        for finding in group:
            mark = (f"{finding.status.value:<7}", styles[finding.status])
            line("  ", mark, f"  {finding.subject}: {finding.detail}")
            if finding.fix:
                line(" " * 11, f"fix: {finding.fix}")
    count = Counter(finding.status for finding in findings)
    line(f"{count[Status.OK]} ok, {count[Status.WARNING]} to look at, {count[Status.ERROR]} wrong")
