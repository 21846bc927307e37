"""What batch, real time and hybrid cost, and which of them fits: pure functions, and what is measured to feed them."""

from inference.economics.brief import BriefEstimate, brief_estimate
from inference.economics.curves import BreakEven, Curve, Swing, break_even, cost_curve, sensitivity
from inference.economics.estimate import Estimate, estimate
from inference.economics.inputs import FIELDS, Basis, CostInputs, Figure, complete_figures
from inference.economics.prices import PriceTable, read_prices

__all__ = [
    "FIELDS",
    "Basis",
    "BreakEven",
    "BriefEstimate",
    "CostInputs",
    "Curve",
    "Estimate",
    "Figure",
    "PriceTable",
    "Swing",
    "break_even",
    "brief_estimate",
    "complete_figures",
    "cost_curve",
    "estimate",
    "read_prices",
    "sensitivity",
]
