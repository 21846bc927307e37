"""Pictures of a cost: against traffic, with the break-even, and which input matters most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import BadInput, SettingsError

if TYPE_CHECKING:
    from inference.economics import CostInputs

_SUFFIXES = (".png", ".svg")
#: told apart by the colour-blind too: Okabe and Ito
_BATCH, _REALTIME, _HYBRID, _INK, _GRID = "#009e73", "#d55e00", "#0072b2", "#333333", "#dddddd"
_LOWER, _HIGHER = "#56b4e9", "#e69f00"
_BARS, _FEWEST_ROWS = 8, 5
#: a bar shorter than this share of the longest would not be seen
_SHORTEST = 0.01


def draw_cost(inputs: CostInputs, file: Path, *, currency: str) -> None:
    """Draw both pictures side by side into one file, whole or not at all.

    Raises:
        SettingsError: the file's name does not end in .png or .svg, or matplotlib is not installed.
        BadInput: the file cannot be written.
    """
    if file.suffix.lower() not in _SUFFIXES:
        raise SettingsError(f"--picture: {file.name!r} does not end in .png or .svg", field="picture")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed: pip install 'forecache[charts]'") from error
    fresh = file.with_name(f".{file.name}.new{file.suffix}")
    # text stays text, and the same input gives the same file
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "forecache", "font.size": 10}):
        canvas = Canvas(figsize=(12, 4.8), layout="constrained")
        left, right = canvas.subplots(1, 2, width_ratios=(1.25, 1))
        _draw_curve(left, inputs, currency)
        _draw_tornado(right, inputs, currency)
        try:
            canvas.savefig(fresh, dpi=150, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
            fresh.replace(file)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise BadInput(f"--picture: {file} cannot be written ({error.strerror})", field="picture") from error


def _draw_curve(axes: Any, inputs: CostInputs, currency: str) -> None:
    from inference.economics import break_even, cost_curve

    curve, even = cost_curve(inputs), break_even(inputs)
    axes.plot(curve.requests, curve.realtime, color=_REALTIME, linewidth=2, label="real time")
    axes.plot(curve.requests, curve.hybrid, color=_HYBRID, linewidth=2, linestyle=(0, (5, 2)), label="hybrid")
    axes.plot(curve.requests, curve.batch, color=_BATCH, linewidth=2, label="batch")
    marks = (
        (curve.now, "today", "-"),
        (even.whole, "break-even", ":"),
        (even.shared, "break-even, shared instances", "--"),
    )
    for at, name, style in marks:
        if at > 0:  # the legend stands above the lines
            axes.axvline(at, ymax=0.68, color=_INK, linewidth=1, linestyle=style, label=f"{name}, {at:.3g}")
    axes.set(xscale="log", yscale="log", xlabel="requests per entity and day", ylabel=f"{currency} a day")
    axes.set_title("Cost against traffic", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    _tidy(axes)


def _draw_tornado(axes: Any, inputs: CostInputs, currency: str) -> None:
    from inference.economics import estimate, sensitivity
    from inference.economics.curves import SWING

    moved, now = sensitivity(inputs), estimate(inputs).hybrid.daily
    swings = [swing for swing in moved[:_BARS] if swing.span >= _SHORTEST * moved[0].span][::-1]
    for name, colour in (("at_low", _LOWER), ("at_high", _HIGHER)):
        widths = [getattr(swing, name) - now for swing in swings]
        label = f"{SWING:.0%} {'lower' if name == 'at_low' else 'higher'}"
        axes.barh(range(len(swings)), widths, left=now, color=colour, height=0.6, label=label)
    axes.set_yticks(range(len(swings)), [swing.name.replace("_", " ") for swing in swings])
    axes.axvline(now, color=_INK, linewidth=1)
    axes.set(xlabel=f"hybrid, {currency} a day (now {now:.4g})")
    axes.set_title("What moves the hybrid total", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    # the longest on top, and no bar fatter than a few would be
    axes.set_ylim(len(swings) - max(len(swings), _FEWEST_ROWS) - 1, len(swings) - 0.4)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.grid(axis="x", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
