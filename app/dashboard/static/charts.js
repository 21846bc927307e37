/* global Plotly */
// Charts in the page's own colours, drawn by Plotly, which this server serves itself.

const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false };

export const OUTCOMES = ["hit_batch", "hit_realtime", "computed", "stale", "previous", "default", "shed"];
export const OUTCOME_NAMES = {
  hit_batch: "Batch hits", hit_realtime: "Real-time hits", computed: "Computed", stale: "Stale",
  previous: "Previous", default: "Default", shed: "Shed",
};

function colour(name) {
  return window.getComputedStyle(document.getElementById("forecache-page")).getPropertyValue(name).trim();
}

export const outcomeColour = (outcome) => colour("--outcome-" + outcome.replace("_", "-"));

function layout(more) {
  const muted = colour("--flower-text-muted");
  const grid = colour("--bs-border-color");
  const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, fixedrange: true, automargin: true };
  return {
    font: { family: "inherit", size: 12, color: muted },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 48, r: 16, t: 8, b: 32 },
    height: 240,
    hovermode: "x unified",
    hoverlabel: { bgcolor: colour("--flower-surface"), bordercolor: grid, font: { color: colour("--bs-body-color") } },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: 11 } },
    barmode: "stack",
    bargap: 0.15,
    showlegend: more.showlegend !== false,
    xaxis: { ...axis, type: "date", range: more.range, showgrid: false, tickformat: "%H:%M" },
    yaxis: { ...axis, rangemode: "tozero", ...more.yaxis },
  };
}

function draw(id, traces, more) {
  return Plotly.react(id, traces, layout(more), CONFIG);
}

// local wall clock: Plotly shows instants as they are written
const at = (point) => new Date(new Date(point.at) - new Date(point.at).getTimezoneOffset() * 60000).toISOString();

function span(points) {
  const step = points.length > 1 ? new Date(points[1].at) - new Date(points[0].at) : 60000;
  const shifted = (point, ms) => new Date(new Date(at(point)).getTime() + ms).toISOString();
  return [shifted(points[0], -step / 2), shifted(points[points.length - 1], step / 2)];
}

export function drawHitRate(id, points) {
  const y = points.map((point) => (point.hit_rate == null ? null : 100 * point.hit_rate));
  draw(id, [{
    x: points.map(at), y, type: "scatter", mode: points.length > 70 ? "lines" : "lines+markers", name: "Hit rate",
    line: { color: outcomeColour("hit_batch"), width: 2 }, marker: { size: 6 }, fill: "tozeroy",
    fillcolor: outcomeColour("hit_batch") + "22", hovertemplate: "%{y:.1f} %<extra></extra>", connectgaps: false,
  }], { range: span(points), showlegend: false, yaxis: { range: [0, 102], ticksuffix: " %" } });
}

export function drawOutcomes(id, points) {
  draw(id, OUTCOMES.map((outcome) => ({
    x: points.map(at), y: points.map((point) => point.outcomes[outcome]), type: "bar",
    name: OUTCOME_NAMES[outcome], marker: { color: outcomeColour(outcome) }, hovertemplate: "%{y}",
  })), { range: span(points) });
}

export function drawLatency(id, points, field) {
  const shades = { p50: "--outcome-hit-batch", p95: "--outcome-computed", p99: "--outcome-shed" };
  draw(id, Object.entries(shades).map(([quantile, name]) => ({
    x: points.map(at), y: points.map((point) => (point[field][quantile] == null ? null : 1000 * point[field][quantile])),
    type: "scatter", mode: points.length > 70 ? "lines" : "lines+markers", name: quantile,
    line: { color: colour(name), width: 1.75 }, marker: { size: 5 }, hovertemplate: "%{y:.2f} ms",
  })), { range: span(points), yaxis: { ticksuffix: " ms" } });
}
