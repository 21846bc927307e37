"""Prints how a run differs from what serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from app.cli.output import print_fields, print_json, print_rows, terminal

if TYPE_CHECKING:
    from inference.batch.comparison.differences import (
        Distribution,
        FeatureMoves,
        Mover,
        OutputDiff,
        RunDiff,
        SideBySide,
    )

_BAR_WIDTH = 20
_SEGMENTS_SHOWN, _FEATURES_SHOWN, _CHANGES_SHOWN = 20, 10, 10


def print_diff(diff: RunDiff, *, as_json: bool) -> None:
    """Print a comparison."""
    if as_json:
        print_json(diff.to_json())
        return
    of_run = f" of run {diff.against_run}" if diff.against_run else ""
    print_fields(
        {
            "run": diff.run_id,
            "compared": f"{diff.made_at}{', kept: its rows are gone from Redis by now' if diff.is_kept else ''}",
            "after": f"generation {diff.generation}, model version {diff.model_version}",
            "before": f"generation {diff.against_generation}, model version {diff.against_version}{of_run}",
            "entities": f"{diff.rows_both:,} in both, {diff.rows_new:,} new, {diff.rows_gone:,} gone",
        }
    )
    for output in diff.outputs:
        _print_output(output, tolerance=diff.options.tolerance, segment=diff.options.segment)
    if diff.features is not None:
        _print_features(diff.features)
    for text in diff.notes:
        typer.echo(text)


def _print_output(output: OutputDiff, *, tolerance: float | None, segment: str | None) -> None:
    typer.echo(f"\n{output.name}")
    than = "float noise" if tolerance is None else f"{tolerance:g}"
    fields = {"moved": f"{output.moved:.2%} by more than {than}"}
    if output.flips is not None:
        directed = "" if output.flips.up is None else f", {output.flips.up:,} up and {output.flips.down:,} down"
        fields["flips"] = f"{output.flips.rows:,} ({output.flips.share:.2%}{directed}); a decision is {output.decision}"
    if output.left_out:
        fields["left out"] = "; ".join(output.left_out)
    print_fields(fields)
    if output.before is not None and output.after is not None:
        _print_distributions(output.before, output.after, output.movement or {})
    if output.histogram is not None:
        _print_histogram(output.histogram)
    _print_movers(output.movers)
    rows = [[one.before or "…", one.after or "…", f"{one.rows:,}"] for one in output.changes[:_CHANGES_SHOWN]]
    _print_table("changes", ("before", "after", "entities"), rows)
    rows = [
        [one.value, f"{one.rows:,}", _percent(one.moved), _percent(one.flipped), _text(one.mean_before),
         _text(one.mean_after)]
        for one in output.segments[:_SEGMENTS_SHOWN]
    ]  # fmt: skip
    _print_table(f"by {segment}", (str(segment), "entities", "moved", "flipped", "mean before", "mean after"), rows)


def _print_distributions(before: Distribution, after: Distribution, movement: Any) -> None:
    names = [*before.quantiles, "mean", "std", "min", "max"]
    sides = [
        {**one.quantiles, "mean": one.mean, "std": one.std, "min": one.min, "max": one.max} for one in (before, after)
    ]
    rows = [[name, _text(sides[0][name]), _text(sides[1][name]), _text(movement.get(name))] for name in names]
    _print_table("distribution", ("", "before", "after", "movement"), rows)


def _print_histogram(histogram: SideBySide) -> None:
    most = max((*histogram.before, *histogram.after), default=0.0) or 1.0

    def bar(share: float) -> str:
        return "█" * round(share / most * _BAR_WIDTH) or ("▏" if share else "")

    rows = [
        [f"from {_text(low)}", f"{before:.1%}", bar(before), f"{after:.1%}", bar(after)]
        for low, before, after in zip(histogram.edges, histogram.before, histogram.after, strict=False)
        if before or after
    ]
    if terminal().is_terminal:
        _print_table("histogram", ("values", "before", " ", "after", "  "), rows)
    else:
        _print_table("histogram", ("values", "before", "after"), [[one[0], one[1], one[3]] for one in rows])


def _print_movers(movers: Sequence[Mover]) -> None:
    rows = [
        [one.id or "(only a digest of a long id is stored)", _text(one.before), _text(one.after), _text(one.movement)]
        for one in movers
    ]
    _print_table("moved most", ("entity", "before", "after", "movement"), rows)


def _print_features(features: FeatureMoves) -> None:
    typer.echo(f"\nfeatures: {features.how}")
    rows = [
        [
            one.name,
            _text(one.moved),
            _percent(one.changed),
            _text(one.drift),
            _text(one.mean_before),
            _text(one.mean_after),
        ]
        for one in features.features[:_FEATURES_SHOWN]
    ]
    _print_table("", ("feature", "moved", "changed", "drift", "mean before", "mean after"), rows)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        if title:
            typer.echo(f"\n{title}")
        print_rows(columns, rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value[:5]))}{', …' if len(value) > 5 else ''}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
