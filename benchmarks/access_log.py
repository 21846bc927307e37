"""The access log: CPU time of a hit with the log on, by the same with it off."""

from __future__ import annotations

import argparse
from statistics import median

from rig.dataset import make_dataset
from rig.pairs import add_options, compare, measure, prepare
from rig.report import print_report
from rig.stack import MODEL, Stack, temporary_folder

ENABLED = f"FORECACHE_MODELS__{MODEL.upper()}__ACCESS_LOG__ENABLED"


def main() -> None:
    """Load a process with the log and one without it in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, pairs=24)
    options = parser.parse_args()
    with temporary_folder() as folder, Stack(folder, make_dataset(folder, options.rows)) as stack:
        targets = prepare(stack, {"on": {ENABLED: "true"}, "off": {ENABLED: "false"}})
        used_us = measure(targets, stack, options)
        with stack.client() as client:
            sizes = {key: client.memory_usage(key) or 0 for key in client.scan_iter("*:h:*")}
    on, off = (median(used_us[name]) for name in ("on", "off"))
    ratio, bounds, ratios = compare(used_us["on"], used_us["off"])
    figures = {
        "ratio_hit_cpu": round(ratio, 4),
        "on_us": round(on, 2),
        "off_us": round(off, 2),
        "bounds": [round(one, 4) for one in bounds],
        "ratios": [round(one, 3) for one in ratios],
        "redis_bytes": sum(sizes.values()),
    }
    rows = [("on", on), ("off", off), ("on by off", ratio), *zip(("at least", "at most"), bounds, strict=True)]
    print_report(
        f"Access log: {options.pairs} pairs, {options.rows:,} ids",
        ["log", "µs a hit"],
        rows,
        figures,
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
