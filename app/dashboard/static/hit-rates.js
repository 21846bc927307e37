/* Asks for the figures every 2 s and draws them. Text only ever enters the page as text, never as HTML. */
(function () {
  "use strict";

  const REFRESH_MS = 2000;
  const TIMEOUT_MS = 5000;
  const OUTCOMES = ["hit_batch", "hit_realtime", "computed", "stale", "previous", "default", "shed"];
  const OUTCOME_NAMES = {
    hit_batch: "Batch hits", hit_realtime: "Real-time hits", computed: "Computed", stale: "Stale",
    previous: "Previous", default: "Default", shed: "Shed",
  };
  const DEGRADED = ["stale", "previous", "default", "shed"];
  const WINDOW_NAMES = { 300: "5 min", 3600: "1 h", 86400: "24 h" };

  const page = document.getElementById("hit-rates");
  // the address bar may hold name:password@, which fetch refuses
  const dataUrl = new URL(page.dataset.url, window.location.origin);

  function element(tag, className, ...children) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
    return node;
  }

  const count = (value) => (value == null ? "—" : Number(value).toLocaleString("en-US"));

  function percent(rate) {
    if (rate == null) return "—";
    // 99.97 % must not be shown as a perfect 100
    return (Math.floor(rate * 1000) / 10).toFixed(1) + " %";
  }

  function localTime(iso) {
    if (!iso) return "—";
    const at = new Date(iso);
    return isNaN(at) ? String(iso) : at.toLocaleString("sv-SE");
  }

  function outcomeBar(window_) {
    const bar = element("div", "outcome-bar");
    for (const name of OUTCOMES) {
      const number = window_.outcomes[name];
      if (!number) continue;
      const part = element("span", "outcome-" + name);
      part.style.width = (100 * number) / window_.total + "%";
      part.title = OUTCOME_NAMES[name] + ": " + count(number);
      bar.append(part);
    }
    return bar;
  }

  function table(headings, rows) {
    const head = element("tr", "", ...headings);
    const node = element("table", "workers-table table table-hover align-middle w-100 mb-0",
      element("thead", "", head), element("tbody", "", ...rows));
    return element("figure", "table-responsive mb-0", node);
  }

  function windowsTable(model) {
    const headings = [element("th", "", "Window"), element("th", "rate", "Hit rate"), element("th", "number", "Requests")];
    for (const name of OUTCOMES) {
      headings.push(element("th", "number", element("i", "outcome-swatch outcome-" + name), OUTCOME_NAMES[name]));
    }
    const rows = model.windows.map((window_) => element("tr", "",
      element("td", "", WINDOW_NAMES[window_.window_s] || window_.window_s + " s"),
      element("td", "rate", percent(window_.hit_rate), outcomeBar(window_)),
      element("td", "number", count(window_.total)),
      ...OUTCOMES.map((name) => element("td", "number", count(window_.outcomes[name])))));
    return table(headings, rows);
  }

  const STATE_BADGES = { published: "bg-success", failed: "bg-danger", cancelled: "bg-secondary" };

  function runNote(run) {
    if (run.error) return run.error;
    const failed = (run.gates || []).filter((gate) => gate.passed === false);
    if (failed.length) return failed.map((gate) => gate.name + ": " + gate.detail).join("; ");
    return run.source || "";
  }

  function runRow(run) {
    const done = count(run.rows_done) + (run.rows_total == null ? "" : " / " + count(run.rows_total));
    return element("tr", "",
      element("td", "", element("code", "", run.run_id)),
      element("td", "", element("span", "badge " + (STATE_BADGES[run.state] || "bg-primary"), run.state)),
      element("td", "", run.trigger || "—"),
      element("td", "", localTime(run.started_at || run.created_at)),
      element("td", "number", done),
      element("td", "number", count(run.rows_quarantined)),
      element("td", "run-note" + (run.error ? " run-failed" : ""), runNote(run)));
  }

  function runsTable(model) {
    const headings = ["Run", "State", "Trigger", "Started"].map((name) => element("th", "", name));
    headings.push(element("th", "number", "Rows"), element("th", "number", "Quarantined"), element("th", "", "Note"));
    const none = element("td", "empty-table-message", "No run yet.");
    none.colSpan = headings.length;
    return table(headings, model.runs.length ? model.runs.map(runRow) : [element("tr", "", none)]);
  }

  function modelCard(model) {
    const facts = [
      model.generation == null ? "no generation yet" : "generation " + model.generation,
      model.active_version == null ? "no active version" : "version " + model.active_version,
    ];
    if (model.previous_generation != null) facts.push("previous generation " + model.previous_generation);
    const header = element("header", "model-card-header", element("h2", "", model.model),
      ...facts.map((fact) => element("span", "", fact)));
    const card = element("section", "workers-table-card model-card", header, windowsTable(model), runsTable(model));
    card.setAttribute("aria-label", "Model " + model.model);
    return card;
  }

  function drawSummary(models) {
    const sum = (names) => models.reduce((total, model) =>
      total + names.reduce((part, name) => part + model.windows[0].outcomes[name], 0), 0);
    const total = sum(OUTCOMES);
    const show = (id, text) => { document.getElementById(id).textContent = text; };
    show("summary-hit-rate", percent(total ? sum(["hit_batch", "hit_realtime"]) / total : null));
    show("summary-total", count(total));
    show("summary-computed", count(sum(["computed"])));
    show("summary-degraded", count(sum(DEGRADED)));
  }

  function drawModels(models) {
    const none = element("p", "empty-table-message", "No model is configured.");
    document.getElementById("hit-rates-models").replaceChildren(...(models.length ? models.map(modelCard) : [none]));
  }

  function say(text, live) {
    document.getElementById("hit-rates-status").textContent = text;
    document.getElementById("hit-rates-indicator").className =
      "status-dot " + (live ? "status-dot-live" : "status-dot-error");
    page.classList.toggle("hit-rates-old", !live);
  }

  let drawn = "";

  async function refresh() {
    try {
      const answer = await fetch(dataUrl, { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
      const data = await answer.json();
      if (!answer.ok) throw new Error(data.error || "HTTP " + answer.status);
      const models = JSON.stringify(data.models);
      // unchanged figures are not redrawn: a selection or a scroll position stays where it was
      if (models !== drawn) {
        drawSummary(data.models);
        drawModels(data.models);
        drawn = models;
      }
      say("Live · " + localTime(data.read_at).slice(-8), true);
    } catch (error) {
      say("Not refreshed: " + error.message, false);
    }
    window.setTimeout(refresh, REFRESH_MS);
  }

  refresh();
}());
