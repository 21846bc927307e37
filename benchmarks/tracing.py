"""Traces: CPU time of a hit with a share of the requests recorded, by the same without traces."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median

from rig.dataset import make_dataset
from rig.pairs import add_options, compare, measure, prepare
from rig.report import print_report
from rig.stack import Stack, free_port, temporary_folder

#: the promise
TARGET = 1.03


def main() -> None:
    """Load a process with traces, one whose collector is away, and one without, in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, pairs=10)
    parser.add_argument("--share", type=float, default=0.01, help="of the requests that are recorded")
    options = parser.parse_args()
    with (
        temporary_folder() as folder,
        _collector() as port,
        Stack(folder, make_dataset(folder, options.rows)) as stack,
    ):
        on, away = (_variables(one, options.share) for one in (port, free_port()))
        targets = prepare(stack, {"on": on, "off": {}, "collector away": away})
        used_us = measure(targets, stack, options)
    medians = {name: median(found) for name, found in used_us.items()}
    ratio, bounds, ratios = compare(used_us["on"], used_us["off"])
    away_ratio, away_bounds, _ = compare(used_us["collector away"], used_us["off"])
    figures = {
        "ratio_hit_cpu": round(ratio, 4),
        "bounds": [round(one, 4) for one in bounds],
        "target_met": ratio <= TARGET,
        "ratio_collector_away": round(away_ratio, 4),
        "bounds_collector_away": [round(one, 4) for one in away_bounds],
        "on_us": round(medians["on"], 2),
        "off_us": round(medians["off"], 2),
        "span_bytes": _taken[0],
        "ratios": [round(one, 3) for one in ratios],
    }
    rows = [*medians.items(), ("on by off", ratio), *zip(("at least", "at most"), bounds, strict=True)]
    print_report(
        f"Traces: {options.share:.1%} of the requests, {options.pairs} pairs, {options.rows:,} ids",
        ["traces", "µs a hit"],
        rows,
        figures,
        as_json=options.json,
    )


def _variables(port: int, share: float) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(share),
    }


#: bytes of spans that the collector took
_taken = [0]


class _Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        _taken[0] += len(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _collector() -> Iterator[int]:
    """Take spans in this process, and yield the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
