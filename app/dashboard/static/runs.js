// The page of runs: a model's newest runs, all details of one, and the buttons.
import { card, choice, choices, choose, count, counted, duration, element, keepDrawing, localTime, number,
  numberHeading, percent, root, table } from "./page.js";
import { badge, barColour, button, confirmAndPost, heldButtons } from "./actions.js";

const CELLS = { "#": "done", "+": "partly", ">": "scoring", o: "waiting", ".": "unsent" };
const READ_ONLY = root.dataset.readOnly === "true";

let refresh = () => {};

const act = (question, text, body, told) => confirmAndPost(question, text, body, told, (done) => {
  if (done.run_id) choose("run", done.run_id);
  else refresh();
});

const startButton = ({ model }) => button("Start a run", "btn-primary", () => act(
  `Start a run of ${model}?`, "Start", { action: "start", model }, (run) => `Run ${run.run_id} is ${run.state}.`));

function rollbackButtons({ model, serving }) {
  const buttons = [];
  if (serving.previous_generation != null) {
    const { generation, previous_generation: previous } = serving;
    buttons.push(button("Roll back", "btn-outline-danger", () => act(
      `Serve generation ${previous} of ${model} again, instead of ${generation}? If that is of an older model version, ` +
      "the newer one is held back. If both are of one version nothing is, and the next scheduled run publishes again.",
      "Roll back", { action: "rollback", model, generation },
      (now) => `${now.model} serves generation ${now.generation} again.`)));
  }
  return buttons;
}

function runButtons(run) {
  const { run_id: runId } = run;
  if (["queued", "running"].includes(run.state)) {
    return [button("Cancel this run", "btn-danger", () => act(
      `Cancel run ${runId}? What serves goes on serving.`, "Cancel the run", { action: "cancel", run_id: runId },
      (after) => `Run ${runId} is ${after.state}.`))];
  }
  if (run.state === "held") return heldButtons(run, act);
  if (run.can_resume) {
    return [button("Resume this run", "btn-primary", () => act(
      `Resume run ${runId}? Only what is left is scored.`, "Resume", { action: "resume", run_id: runId },
      (after) => `Run ${runId} is ${after.state}.`))];
  }
  return [];
}

function drawButtons(data) {
  const { model, serving, details } = data;
  const box = document.getElementById("runs-buttons");
  const key = JSON.stringify([model, serving, details && [details.run_id, details.state, details.can_resume]]);
  // a button does nothing if the page replaces it while it is pressed
  if (READ_ONLY || box.dataset.drawn === key) return;
  box.dataset.drawn = key;
  box.replaceChildren(startButton(data), ...(details ? runButtons(details) : []));
  document.getElementById("runs-rollback").replaceChildren(...rollbackButtons(data));
}

// --- one run

function progress(run) {
  const share = run.rows_total ? run.rows_done / run.rows_total : 0;
  const bar = element("div", "progress-bar " + barColour(run.state));
  bar.style.width = 100 * share + "%";
  const box = element("div", "progress", bar);
  box.setAttribute("role", "progressbar");
  box.setAttribute("aria-label", "Rows done, run " + run.state);
  box.setAttribute("aria-valuenow", String(Math.floor(100 * share)));
  return box;
}

function chunkGrid(map, state) {
  const given = ["failed", "cancelled"].includes(state) ? "chunks-ended" : "";
  const grid = element("div", "chunk-grid", [...map].map((cell) => {
    const node = element("i", "chunk chunk-" + (CELLS[cell] || "unsent"));
    node.title = CELLS[cell] || "";
    return node;
  }));
  grid.setAttribute("aria-label", "Chunks in order");
  const legend = element("p", "chunk-legend", Object.values(CELLS).map((name) =>
    element("span", "", element("i", "chunk chunk-" + name), name)));
  return element("div", given, grid, legend);
}

// Shows the end of a path, which says most; the tooltip has all of it.
function shortPath(path) {
  const parts = path.split("/");
  const node = element("span", "", parts.length > 3 ? "…/" + parts.slice(-2).join("/") : path);
  node.title = path;
  return node;
}

function facts(details) {
  const { chunks, phases } = details;
  const told = [
    ["Rows", count(details.rows_done) + " of " + count(details.rows_total)],
    ["Rate", details.rows_per_s == null ? "—" : count(Math.round(details.rows_per_s)) + " rows/s"],
    ["Time left", duration(details.eta_s)],
    ["Chunks", `${count(chunks.done)} of ${count(details.chunks_total)} done, ${chunks.scoring} being scored`],
    ["Queued / scoring / publishing", [phases.queued_s, phases.scoring_s, phases.publishing_s].map(duration).join(" / ")],
    ["Trigger", details.trigger + ", " + localTime(details.created_at)],
    ["Engine", details.engine],
    ["Model version", details.model_version == null ? "—" : details.model_version],
    ["Source", shortPath(details.source)],
  ];
  if (details.entities_note) {
    told.push(["Entities", details.entities_note + " (" + details.entities_rule + ")"],
      ["Outside the set", counted(details.rows_outside, "row")]);
  }
  if (details.shadow) told.push(["Shadow", "only compares version " + details.model_version]);
  if (details.delta) told.push(["Delta", deltaText(details) || "carries over what has not changed"]);
  if (details.approved_by) told.push(["Approved", details.approved_by + ", " + localTime(details.approved_at)]);
  if (details.forced) told.push(["Published by force", details.forced_by + ", " + localTime(details.forced_at)]);
  return element("dl", "run-facts", told.map(([name, value]) => element("div", "",
    element("dt", "", name), element("dd", "", value))));
}

function gatesTable(gates) {
  return table(["Gate", "Verdict", "What it rests on"], gates.map((gate) => element("tr", "",
    element("td", "", gate.name),
    element("td", "", element("span", "badge " + (gate.passed ? "bg-success" : "bg-danger"),
      gate.passed ? "passed" : "failed")),
    element("td", "run-note", gate.detail))), "The gates were not checked yet.");
}

function quarantineTable(reasons) {
  return table(["Column", "Reason", numberHeading("Rows"), "Such as"], reasons.map((bad) => element("tr", "",
    element("td", "", bad.feature || "—"),
    element("td", "", bad.reason),
    number(count(bad.rows)),
    element("td", "run-note", bad.examples.join(", ")))), "No row was left out.");
}

function detailCards(details) {
  const head = card(details.run_id, [badge(details.state)],
    element("div", "run-body", progress(details), chunkGrid(details.chunks.map, details.state), facts(details)));
  if (!details.entities_asked && !details.since && !["queued", "running"].includes(details.state)) {
    const link = element("a", "", "How it differs from what serves, or served before");
    link.href = root.dataset.differences + "?" + new URLSearchParams({ model: details.model, run: details.run_id });
    head.querySelector(".run-body").append(element("p", "mb-0", link));
  }
  const error = details.error || details.last_error;
  if (error) head.querySelector(".run-body").append(element("p", "run-failed mb-0", error));
  const { quarantine } = details;
  return [head, card("Gates", [], gatesTable(details.gates)),
    card("Left out", [counted(details.rows_quarantined, "row"), ...(quarantine.folder ? [shortPath(quarantine.folder)] : [])],
      quarantineTable(quarantine.reasons))];
}

// --- the list

function generationCell(run, serving) {
  const { generation, previous_generation: previous } = serving;
  const text = run.generation == null ? "—" : String(run.generation);
  if (run.state !== "published" || run.generation == null) return number(text);
  if (run.generation === generation) return number([element("span", "badge bg-success me-1", "serves"), " ", text]);
  return number(run.generation === previous ? [element("span", "run-note me-1", "before it"), " ", text] : text);
}

function runRow(run, shown, serving) {
  const link = element("a", "", element("code", "", run.run_id));
  const parameters = choice();
  parameters.set("run", run.run_id);
  link.href = "?" + parameters;
  link.addEventListener("click", (event) => { event.preventDefault(); choose("run", run.run_id); });
  const share = run.state === "published" || !run.rows_total || run.rows_done === run.rows_total ? "" : " (" + percent(run.rows_done / run.rows_total) + ")";
  return element("tr", run.run_id === shown ? "table-active" : "",
    element("td", "", link), element("td", "", badge(run.state)), kind(run), element("td", "", run.trigger),
    element("td", "", localTime(run.started_at || run.created_at)),
    number(count(run.rows_done) + share), outside(run), number(count(run.rows_quarantined)),
    generationCell(run, serving));
}

// What a run scores; the tooltip says what became of a run that was to score only what changed.
function kind(run) {
  const cell = element("td", "", run.kind);
  cell.title = deltaText(run) || "";
  return cell;
}

function deltaText(run) {
  if (run.full_reason) return "a full run: " + run.full_reason;
  if (run.rows_carried == null) return run.base_run && "carries over rows of " + run.base_run;
  return `${counted(run.rows_carried, "row")} carried over from ${run.base_run}, ${count(run.rows_rescored)} scored, ` +
    `${count(run.rows_removed)} gone` + (run.change_feed ? `; ${run.change_feed}` : "");
}

// The rows that a run did not score by the rule in its settings; the tooltip names the rule.
function outside(run) {
  const cell = number(run.rows_outside ? count(run.rows_outside) : "—");
  cell.title = run.entities_note || "";
  return cell;
}

function noRun(model) {
  const command = `"forecache batch run ${model}"`;
  return "No run yet. " + (READ_ONLY ? `${command} starts one.` : `The button above starts one, and so does ${command}.`);
}

function listCard(data) {
  const headings = ["Run", "State", "Kind", "Trigger", "Started", numberHeading("Rows"), numberHeading("Outside the set"),
    numberHeading("Left out"), numberHeading("Generation")];
  const { serving } = data;
  const facts_ = serving.generation == null ? ["no generation yet"]
    : ["generation " + serving.generation, "version " + serving.active_version];
  return card(data.model, facts_, table(headings,
    data.runs.map((run) => runRow(run, data.details && data.details.run_id, serving)), noRun(data.model)));
}

refresh = keepDrawing((data) => {
  choices("choose-model", "model", data.models.map((name) => [name, name]), data.model);
  document.getElementById("forecache-figures").hidden = !data.model;
  document.getElementById("forecache-empty").hidden = Boolean(data.model);
  if (!data.model) return;
  drawButtons(data);
  document.getElementById("runs-details").replaceChildren(...(data.details ? detailCards(data.details) : []));
  document.getElementById("runs-list").replaceChildren(listCard(data));
});
