// The page of hit rates.
import { card, choice, choices, count, duration, element, keepDrawing, localTime, number, numberHeading, percent, show,
  table } from "./page.js";
import { OUTCOMES, OUTCOME_NAMES, drawHitRate, drawLatency, drawOutcomes } from "./charts.js";

const WINDOWS = [["5m", "5 min"], ["1h", "1 h"], ["24h", "24 h"]];
const WINDOW_NAMES = { 300: "5 min", 3600: "1 h", 86400: "24 h" };
const DEGRADED = ["stale", "previous", "default", "shed", "failed"];

function outcomeBar(figures) {
  const bar = element("div", "outcome-bar");
  for (const name of OUTCOMES) {
    if (!figures.outcomes[name]) continue;
    const part = element("span", "outcome-" + name);
    part.style.width = (100 * figures.outcomes[name]) / figures.total + "%";
    part.title = OUTCOME_NAMES[name] + ": " + count(figures.outcomes[name]);
    bar.append(part);
  }
  return bar;
}

const quantiles = (values) => [values.p50, values.p95, values.p99].map(duration).join(" / ");

function windowsTable(windows) {
  const outcomes = [...OUTCOMES, "unknown"];
  const outcomeHeadings = outcomes.map((name) =>
    element("th", "number", element("i", "outcome-swatch outcome-" + name), OUTCOME_NAMES[name]));
  const headings = ["Window", element("th", "rate", "Hit rate"), numberHeading("Predictions"), ...outcomeHeadings];
  return table(headings, windows.map((figures) => element("tr", "",
    element("td", "", WINDOW_NAMES[figures.window_s]),
    element("td", "rate", percent(figures.hit_rate), outcomeBar(figures)),
    number(count(figures.total)),
    outcomes.map((name) => number(count(figures.outcomes[name]))))));
}

function timesTable(windows) {
  const headings = ["Window", numberHeading("Hits p50 / p95 / p99"), numberHeading("Misses p50 / p95 / p99"),
    numberHeading("Age of answers p50 / p95 / p99")];
  return table(headings, windows.map((figures) => element("tr", "",
    element("td", "", WINDOW_NAMES[figures.window_s]),
    number(quantiles(figures.hit_latency_s)),
    number(quantiles(figures.miss_latency_s)),
    number(quantiles(figures.age_s)))));
}

// What each version answered: of errors and declared defaults, no version is known.
function versionsCard(serving, figures) {
  const role = (version) => [
    ...(version === serving.active_version ? ["answers"] : []),
    ...Object.keys(serving.labels).filter((label) => serving.labels[label] === version),
  ].join(", ");
  const rows = figures.versions.map((one) => element("tr", "",
    element("td", "", String(one.version)), element("td", "", role(one.version) || "—"),
    number(count(one.total)), number(percent(figures.total ? one.total / figures.total : null)),
    element("td", "rate", percent(one.hit_rate), outcomeBar(one)),
    ["hit_batch", "hit_realtime", "computed", "stale", "previous"].map((name) => number(count(one.outcomes[name])))));
  const headings = ["Version", "Role", numberHeading("Answers"), numberHeading("Of all"), element("th", "rate", "Hit rate"),
    ...["hit_batch", "hit_realtime", "computed", "stale", "previous"].map((name) => numberHeading(OUTCOME_NAMES[name]))];
  return card("Model versions", ["answers within " + WINDOW_NAMES[figures.window_s] + ", by the version that computed them"],
    table(headings, rows, "No version answered."));
}

function servingFacts(serving) {
  const facts = [
    serving.generation == null ? "no generation yet" : "generation " + serving.generation,
    serving.active_version == null ? "no active version" : "version " + serving.active_version,
  ];
  for (const [label, version] of Object.entries(serving.labels)) {
    const share = label === "canary" ? ` for ${percent(serving.canary_share)} of the entities` : "";
    facts.push(`${label}: version ${version}${share}`);
  }
  if (serving.held_versions.length) facts.push("held back after a rollback: version " + serving.held_versions.join(", "));
  if (serving.previous_generation != null) facts.push("previous generation " + serving.previous_generation);
  if (serving.published_at) facts.push("published " + localTime(serving.published_at));
  return facts;
}

function drawSummary(model, figures) {
  const name = WINDOW_NAMES[figures.window_s];
  document.querySelectorAll(".summary-window").forEach((node) => { node.textContent = name; });
  show("summary-hit-rate", percent(figures.hit_rate));
  show("summary-total", count(figures.total));
  show("summary-degraded", count(DEGRADED.reduce((sum, outcome) => sum + figures.outcomes[outcome], 0)));
  show("summary-hit-p95", duration(figures.hit_latency_s.p95));
  show("summary-miss-p95", duration(figures.miss_latency_s.p95));
  show("summary-age", duration(figures.age_s.p50));
  show("summary-coverage", percent(model.serving.coverage));
  const { generation, active_version: version, published_at: publishedAt } = model.serving;
  show("summary-serving", generation == null ? "—" : `${count(generation)} · v${version ?? "—"}`);
  show("summary-published", generation == null ? "no run is published yet" :
    "generation · model version" + (publishedAt ? ", since " + localTime(publishedAt).slice(5, 16) : ""));
  document.getElementById("summary-coverage").title = model.serving.coverage_detail || "";
}

// Says what to do while there are no figures.
function hint(model, figures) {
  const told = [];
  if (model.serving.generation == null) told.push("No run is published yet: the page of runs starts one.");
  if (!figures.total) {
    told.push(`No prediction was asked for within ${WINDOW_NAMES[figures.window_s]}: ` +
      "GET /predict/ENTITY of the API asks for one.");
  }
  show("hit-rates-hint", told.join(" "));
  document.getElementById("hit-rates-hint").hidden = !told.length;
}

function drawModel(model, windowS) {
  const figures = model.windows.find((one) => one.window_s === windowS);
  hint(model, figures);
  drawSummary(model, figures);
  drawHitRate("chart-hit-rate", model.points);
  drawOutcomes("chart-outcomes", model.points);
  drawLatency("chart-hit-latency", model.points, "hit_latency_s");
  drawLatency("chart-miss-latency", model.points, "miss_latency_s");
  document.getElementById("hit-rates-tables").replaceChildren(
    card(model.model, servingFacts(model.serving), windowsTable(model.windows)),
    versionsCard(model.serving, figures),
    card("Times", ["within 20 % of the exact value"], timesTable(model.windows)));
}

keepDrawing((data) => {
  const model = data.model;
  choices("choose-model", "model", data.models.map((name) => [name, name]), model && model.model);
  choices("choose-window", "window", WINDOWS, choice().get("window") || "1h");
  document.getElementById("forecache-figures").hidden = !model;
  document.getElementById("forecache-empty").hidden = Boolean(model);
  if (model) drawModel(model, data.window_s);
});
