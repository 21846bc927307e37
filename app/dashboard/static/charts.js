/* global Plotly */
// Charts in the page's own colours, drawn by Plotly, which this server serves itself.

const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false };

// all outcomes that the hit rate counts: all except `unknown`
export const OUTCOMES = ["hit_batch", "hit_realtime", "computed", "stale", "previous", "default", "shed", "failed"];
export const OUTCOME_NAMES = {
  hit_batch: "Batch hits", hit_realtime: "Real-time hits", computed: "Computed", stale: "Stale",
  previous: "Previous", default: "Default", shed: "Shed", failed: "Failed", unknown: "Unknown",
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
    margin: { l: 48, r: 16, t: more.annotations ? 24 : 8, b: 32 },
    height: more.height || 240,
    hovermode: more.hovermode || "x unified",
    hoverlabel: { bgcolor: colour("--flower-surface"), bordercolor: grid, font: { color: colour("--bs-body-color") } },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: 11 } },
    barmode: more.barmode || "stack",
    bargap: more.bargap || 0.15,
    showlegend: more.showlegend !== false,
    shapes: more.shapes || [],
    annotations: more.annotations || [],
    xaxis: { ...axis, type: "date", range: more.range, showgrid: false, tickformat: "%H:%M", ...more.xaxis },
    yaxis: { ...axis, rangemode: "tozero", ...more.yaxis },
  };
}

function draw(id, traces, more) {
  return Plotly.react(id, traces, layout(more), CONFIG);
}

// in local time: Plotly shows instants as text
const at = (point) => new Date(new Date(point.at) - new Date(point.at).getTimezoneOffset() * 60000).toISOString();

function span(points) {
  const step = points.length > 1 ? new Date(points[1].at) - new Date(points[0].at) : 60000;
  const shifted = (point, ms) => new Date(new Date(at(point)).getTime() + ms).toISOString();
  return [shifted(points[0], -step / 2), shifted(points[points.length - 1], step / 2)];
}

// Sizes of the dots of a line, which is not drawn through points without requests. If there are many points, only those
// without a neighbour have a dot: no line would show them.
function dots(y) {
  const alone = (at) => y[at] != null && y[at - 1] == null && y[at + 1] == null;
  return y.map((_, at) => (y.length <= 70 || alone(at) ? 5 : 0));
}

export function drawHitRate(id, points) {
  const y = points.map((point) => (point.hit_rate == null ? null : 100 * point.hit_rate));
  draw(id, [{
    x: points.map(at), y, type: "scatter", mode: "lines+markers", name: "Hit rate", marker: { size: dots(y) },
    line: { color: outcomeColour("hit_batch"), width: 2 }, hovertemplate: "%{y:.1f} %<extra></extra>", connectgaps: false,
  }], { range: span(points), showlegend: false, yaxis: { range: [0, 102], ticksuffix: " %" } });
}

export function drawOutcomes(id, points) {
  draw(id, [...OUTCOMES, "unknown"].map((outcome) => ({
    x: points.map(at), y: points.map((point) => point.outcomes[outcome]), type: "bar",
    name: OUTCOME_NAMES[outcome], marker: { color: outcomeColour(outcome) }, hovertemplate: "%{y}",
  })), { range: span(points) });
}

export function drawLatency(id, points, field) {
  const shades = { p50: "--outcome-hit-batch", p95: "--outcome-computed", p99: "--outcome-shed" };
  draw(id, Object.entries(shades).map(([quantile, name]) => {
    const y = points.map((point) => (point[field][quantile] == null ? null : 1000 * point[field][quantile]));
    return {
      x: points.map(at), y, type: "scatter", mode: "lines+markers", name: quantile, marker: { size: dots(y) },
      line: { color: colour(name), width: 1.75 }, hovertemplate: "%{y:.2f} ms", connectgaps: false,
    };
  }), { range: span(points), yaxis: { ticksuffix: " ms" } });
}

// --- costs

// The days' promises as a dashed line, and what came as dots: a day without a figure is a gap. `of` takes it from a side.
export function drawPromises(id, days, of, yaxis) {
  const x = days.map((day) => day.day);
  const sides = [["promised", "Promised", "--outcome-computed", { mode: "lines", line: { dash: "dash", width: 2 } }],
    ["came", "Came", "--outcome-hit-batch", { mode: "lines+markers", line: { width: 2 }, marker: { size: 6 } }]];
  draw(id, sides.map(([side, name, shade, form]) => ({
    x, y: days.map((day) => (day[side] ? of(day[side]) : null)), type: "scatter", name, connectgaps: false, ...form,
    line: { ...form.line, color: colour(shade) }, hovertemplate: "%{y}",
  })), { xaxis: { range: undefined, tickformat: "%b %-d" }, yaxis: { rangemode: "normal", ...yaxis } });
}

const TALL = 320;

// A vertical line over the whole height with its name at the top.
function mark(x, name, dash) {
  const ink = colour("--flower-text-muted");
  return {
    shape: { type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: ink, width: 1, dash } },
    annotation: {
      x: Math.log10(x), yref: "paper", y: 1, yanchor: "bottom", text: name, showarrow: false,
      font: { size: 11, color: ink },
    },
  };
}

export function drawCost(id, curve, even, currency) {
  const lines = [["realtime", "Real time", "--outcome-shed", "solid"],
    ["hybrid", "Hybrid", "--outcome-computed", "dash"], ["batch", "Batch", "--outcome-hit-batch", "solid"]];
  const marks = [mark(curve.now, "today", "solid")];
  const breakEven = even.whole || even.shared;
  if (breakEven > 0) marks.push(mark(breakEven, even.whole ? "break-even" : "break-even, shared", "dot"));
  draw(id, lines.map(([field, name, shade, dash]) => ({
    x: curve.requests, y: curve[field], type: "scatter", mode: "lines", name,
    line: { color: colour(shade), width: 2, dash }, hovertemplate: "%{y:.3s}",
  })), {
    height: TALL, shapes: marks.map((one) => one.shape), annotations: marks.map((one) => one.annotation),
    xaxis: { type: "log", range: undefined, tickformat: ",~r", showgrid: true, dtick: 1, hoverformat: ".3~g",
      title: { text: "requests per entity and day" } },
    yaxis: { type: "log", rangemode: "normal", tickformat: ",~r", dtick: 1, title: { text: currency + " a day", standoff: 12 } },
  });
}

// A hit rate with its bounds, today's point and the advised one.
export function drawCurve(id, curve, currency) {
  const isShare = curve.points[0].label.endsWith("%");
  const x = (point) => (isShare ? 100 * point.at : point.at);
  const percent = (values) => values.map((value) => 100 * value);
  const line = outcomeColour("hit_batch");
  const bound = (name) => ({
    x: curve.points.map(x), y: percent(curve.points.map((point) => point[name])), type: "scatter", mode: "lines",
    line: { width: 0 }, hoverinfo: "skip", showlegend: false,
  });
  const cost = (point) => (point.cost_per_day == null ? "" : `, ${point.cost_per_day.toPrecision(4)} ${currency} a day`);
  const text = (point) => `${point.label}: ${(100 * point.hit_rate).toFixed(1)} % ` +
    `(${(100 * point.low).toFixed(1)} to ${(100 * point.high).toFixed(1)})${cost(point)}`;
  const marks = [["today", "circle"], ["advised", "circle-open"]].filter(([name]) => curve[name]).map(([name, symbol]) => ({
    x: [x(curve[name])], y: [100 * curve[name].hit_rate], type: "scatter", mode: "markers", hoverinfo: "skip",
    cliponaxis: false, name: `${name}: ${curve[name].label}`,
    marker: { size: symbol === "circle" ? 9 : 15, symbol, color: colour("--bs-body-color"), line: { width: 2 } },
  }));
  const every = Math.ceil(curve.points.length / 6);
  const ticks = curve.points.filter((_, number) => number % every === 0);
  draw(id, [bound("low"), { ...bound("high"), fill: "tonexty", fillcolor: line + "33" }, {
    x: curve.points.map(x), y: percent(curve.points.map((point) => point.hit_rate)), type: "scatter", mode: "lines",
    showlegend: false, line: { color: line, width: 2 }, text: curve.points.map(text), hovertemplate: "%{text}<extra></extra>",
  }, ...marks], {
    hovermode: "closest", showlegend: true,
    xaxis: isShare ? { type: "linear", range: [0, 100], tickformat: "", ticksuffix: " %" } :
      { type: "log", range: undefined, tickvals: ticks.map(x), ticktext: ticks.map((point) => point.label) },
    yaxis: { range: [0, 102], ticksuffix: " %" },
  });
}

// Nobody could see bars shorter than a hundredth of the longest.
const SHORTEST = 0.01;

export function drawSwings(id, swings, now, currency) {
  const span = (swing) => Math.abs(swing.at_high - swing.at_low);
  const seen = swings.slice(0, 8).filter((swing) => span(swing) >= SHORTEST * span(swings[0])).reverse();
  const ends = [["at_low", "25 % lower", "--outcome-computed"], ["at_high", "25 % higher", "--outcome-stale"]];
  draw(id, ends.map(([end, name, shade]) => ({
    y: seen.map((swing) => swing.name.replaceAll("_", " ")), x: seen.map((swing) => swing[end] - now), base: now,
    customdata: seen.map((swing) => swing[end]), type: "bar", orientation: "h", name,
    marker: { color: colour(shade) }, hovertemplate: "%{y}: %{customdata:.4s}",
  })), {
    height: TALL, hovermode: "closest", bargap: 0.4, barmode: "overlay",
    xaxis: { type: "linear", range: undefined, tickformat: "", showgrid: true,
      title: { text: "hybrid, " + currency + " a day" } },
    yaxis: { rangemode: "normal", showgrid: false },
  });
}

// --- differences

export function drawSideBySide(id, histogram) {
  const { edges } = histogram;
  const sides = [["before", "Before", "--outcome-unknown"], ["after", "After", "--outcome-computed"]];
  const label = (at) => `${edges[at].toPrecision(4)} to ${edges[at + 1].toPrecision(4)}`;
  draw(id, sides.map(([field, name, shade]) => ({
    x: histogram[field].map((_, at) => (edges[at] + edges[at + 1]) / 2), y: histogram[field].map((value) => 100 * value),
    customdata: histogram[field].map((_, at) => label(at)), type: "bar", name, marker: { color: colour(shade) },
    hovertemplate: "%{customdata}: %{y:.2f} %",
  })), {
    barmode: "group", bargap: 0.1, hovermode: "closest",
    xaxis: { type: "linear", range: undefined, tickformat: "" }, yaxis: { ticksuffix: " %" },
  });
}
