// The page of differences: a run beside what serves, or served before it.
import { card, choices, choose, count, counted, element, keepDrawing, localTime, note, number, numberHeading, root, show,
  table } from "./page.js";
import { confirmAndPost, heldButtons, say, tryPost } from "./actions.js";
import { drawSideBySide } from "./charts.js";

const READ_ONLY = root.dataset.readOnly === "true";
const MOST_SEGMENTS = 20;
const MOST_FEATURES = 20;

let refresh = () => {};
let shown = null;
// what was compared when the button was pressed; null when nothing is awaited
let awaited = null;

function plain(value) {
  if (value == null) return "—";
  if (Array.isArray(value)) return "[" + value.slice(0, 5).map(plain).join(", ") + (value.length > 5 ? ", …]" : "]");
  if (typeof value !== "number") return String(value);
  return value.toLocaleString("en-US", { maximumSignificantDigits: 5 });
}

const share = (value) => (value == null ? "—" : (100 * value).toLocaleString("en-US", { maximumFractionDigits: 2 }) + " %");

// --- one output

function distributionTable(output) {
  const sides = [output.before, output.after].map((side) => ({ ...side.quantiles, mean: side.mean, std: side.std,
    min: side.min, max: side.max }));
  return table(["", numberHeading("Before"), numberHeading("After"), numberHeading("Movement")],
    Object.keys(sides[0]).map((name) => element("tr", "", element("td", "", name), number(plain(sides[0][name])),
      number(plain(sides[1][name])), number(plain((output.movement || {})[name])))));
}

function moversTable(movers) {
  return table(["Moved most", numberHeading("Before"), numberHeading("After"), numberHeading("Movement")],
    movers.map((one) => element("tr", "",
      element("td", "", one.id == null ? "(a long id: the store has its digest)" : element("code", "", one.id)),
      number(plain(one.before)), number(plain(one.after)), number(plain(one.movement)))), "No entity moved.");
}

function changesTable(changes) {
  return table(["Before", "After", numberHeading("Entities")], changes.map((one) => element("tr", "",
    element("td", "", one.before ?? "…"), element("td", "", one.after ?? "…"), number(count(one.rows)))),
  "No text changed.");
}

function segmentsTable(segments, name) {
  return table([name, numberHeading("Entities"), numberHeading("Moved"), numberHeading("Flipped"),
    numberHeading("Mean before"), numberHeading("Mean after")],
  segments.slice(0, MOST_SEGMENTS).map((one) => element("tr", "", element("td", "", one.value), number(count(one.rows)),
    number(share(one.moved)), number(share(one.flipped)), number(plain(one.mean_before)),
    number(plain(one.mean_after)))));
}

function flipsText(flips) {
  const directed = flips.up == null ? "" : ` (${count(flips.up)} up, ${count(flips.down)} down)`;
  return `${share(flips.share)} of the decisions flip, ${counted(flips.rows, "entity", "entities")}${directed}`;
}

function outputCard(output, at, options) {
  const than = options.tolerance == null ? "float noise" : options.tolerance;
  const facts = [`${share(output.moved)} moved by more than ${than}`];
  if (output.flips) facts.push(flipsText(output.flips));
  const parts = [];
  if (output.histogram) {
    const chart = element("div", "diff-chart");
    chart.id = "chart-output-" + at;
    parts.push(chart);
  }
  if (output.before && output.after) {
    parts.push(element("div", "diff-pair", distributionTable(output), moversTable(output.movers)));
  } else if (output.changes.length) parts.push(changesTable(output.changes));
  if (output.segments.length) parts.push(segmentsTable(output.segments, options.segment));
  const told = [...(output.decision ? ["A decision is " + output.decision + "."] : []),
    ...output.left_out.map((text) => "Left out: " + text + ".")];
  return card(output.name, facts, ...parts, ...told.map(note));
}

function featuresCard(features) {
  const rows = features.features.slice(0, MOST_FEATURES).map((one) => element("tr", "", element("td", "", one.name),
    number(plain(one.moved)), number(share(one.changed)), number(plain(one.drift)), number(plain(one.mean_before)),
    number(plain(one.mean_after))));
  const headings = ["Feature", numberHeading("Moved (std)"), numberHeading("Changed"), numberHeading("Drift"),
    numberHeading("Mean before"), numberHeading("Mean after")];
  return card("Features that moved most", [], ...(rows.length ? [table(headings, rows)] : []), note(features.how));
}

// --- choices and buttons

function drawRuns(data) {
  const select = document.getElementById("choose-run");
  const key = JSON.stringify([data.runs.map((run) => [run.run_id, run.state]), data.run && data.run.run_id]);
  if (select.dataset.drawn === key) return;
  select.dataset.drawn = key;
  const listed = data.runs.some((run) => run.run_id === data.run.run_id) ? data.runs : [data.run, ...data.runs];
  select.replaceChildren(...listed.filter(Boolean).map((run) => {
    const option = element("option", "", `${run.run_id} · ${run.kind}, ${run.state}`);
    option.value = run.run_id;
    option.selected = run.run_id === data.run.run_id;
    return option;
  }));
}

function drawButtons(run) {
  const box = document.getElementById("diff-buttons");
  const key = JSON.stringify(run && [run.run_id, run.state]);
  if (READ_ONLY || box.dataset.drawn === key) return;
  box.dataset.drawn = key;
  const act = (question, text, body, told) => confirmAndPost(question, text, body, told, () => refresh());
  box.replaceChildren(...(run && run.state === "held" ? heldButtons(run, act) : []));
}

function drawHint(data) {
  const hint = document.getElementById("diff-hint");
  const { run, diff } = data;
  hint.hidden = Boolean(diff && diff.notes.length === 0) || !run;
  if (!run) return;
  hint.textContent = diff ? diff.notes.join(" ") : `Run ${run.run_id} was not compared yet` +
    (READ_ONLY ? `: "forecache batch diff ${run.run_id}" does it.` : ": the button above does it.");
}

document.getElementById("choose-run").addEventListener("change", (event) => choose("run", event.target.value));
if (!READ_ONLY) {
  document.getElementById("diff-options").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!shown) return;
    const threshold = document.getElementById("diff-threshold").value;
    const segment = document.getElementById("diff-segment").value.trim();
    const options = { threshold: threshold === "" ? null : Number(threshold), segment: segment || null };
    const before = shown.diff && shown.diff.made_at;
    tryPost({ action: "compare", run_id: shown.run.run_id, options },
      (run) => `Run ${run.run_id} is being compared; this takes seconds.`, () => {
        awaited = { runId: shown.run.run_id, before };
        refresh();
      });
  });
}

// --- the page

function drawOutputs(diff) {
  const box = document.getElementById("diff-outputs");
  box.replaceChildren(...diff.outputs.map((output, at) => outputCard(output, at, diff.options)));
  diff.outputs.forEach((output, at) => {
    if (output.histogram) drawSideBySide("chart-output-" + at, output.histogram);
  });
}

refresh = keepDrawing((data) => {
  choices("choose-model", "model", data.models.map((name) => [name, name]), data.model);
  document.getElementById("forecache-empty").hidden = Boolean(data.model);
  const { run, diff } = data;
  shown = run ? data : null;
  document.getElementById("forecache-figures").hidden = !diff;
  document.querySelectorAll(".diff-choice, #diff-compare").forEach((node) => { node.hidden = !run; });
  if (run) drawRuns(data);
  drawButtons(run);
  drawHint(data);
  if (awaited && diff && diff.run_id === awaited.runId && diff.made_at !== awaited.before) {
    awaited = null;
    say(`Compared at ${localTime(diff.made_at)}.`, false);
  }
  if (!diff) return;
  if (!READ_ONLY) document.getElementById("diff-threshold").placeholder = diff.options.threshold ?? "none";
  show("diff-both", count(diff.rows_both));
  show("diff-new", count(diff.rows_new));
  show("diff-gone", count(diff.rows_gone));
  show("diff-versions", diff.against_version === diff.model_version ? diff.model_version
    : `${diff.against_version} → ${diff.model_version}`);
  show("diff-generations", `generation ${diff.against_generation} before, ${diff.generation} after; compared ` +
    localTime(diff.made_at));
  drawOutputs(diff);
  const features = document.getElementById("diff-features");
  features.replaceChildren(...(diff.features ? [featuresCard(diff.features)] : []));
});
