// The page of costs.
import {
  card, choices, counted, element, keepDrawing, note, number, numberHeading, percent, show, table,
} from "./page.js";
import { drawCost, drawCurve, drawPromises, drawSwings } from "./charts.js";

// below, prices have two significant digits and not two decimals
const SMALL = 0.1;

function money(value, currency) {
  if (value == null) return "—";
  const digits = value !== 0 && Math.abs(value) < SMALL ? { maximumSignificantDigits: 2 } :
    { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  return Number(value).toLocaleString("en-US", { style: "currency", currency, ...digits });
}

// Three digits and no more, but whole numbers as they are.
function plain(value) {
  if (value == null) return "—";
  const digits = Math.abs(value) >= 100 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 3 };
  return Number(value).toLocaleString("en-US", digits);
}

// A value with its unit: money in the currency, shares in percent.
function withUnit(value, unit, currency) {
  if (value == null) return "—";
  if (unit === "share") return plain(100 * value) + " %";
  if (unit.startsWith("per ")) return `${money(value, currency)} ${unit}`;
  return `${plain(value)} ${value === 1 ? singular(unit) : unit}`;
}

const singular = (unit) => unit.replace(/^copies/, "copy").replace(/^(\w+)s(?=$|[/ ])/, "$1");

const about = (value) => (value == null ? "—" : Number(value.toPrecision(3)).toLocaleString("en-US"));

// inputs whose names say too little without the option's help
const INPUTS = { startup_s: "startup", rps: "requests", peak_rps: "requests at the peak",
  instance_rps: "requests that an instance computes", redis_price: "price of Redis", bytes: "memory" };
const APPROACHES = { batch: "Batch", realtime: "Real time", hybrid: "Hybrid" };
const instances = (n) => counted(n, "instance");

function drawCosts(costs) {
  const { estimate: told, currency } = costs;
  show("cost-batch", money(told && told.batch.daily, currency));
  show("cost-realtime", money(told && told.realtime.daily, currency));
  show("cost-hybrid", money(told && told.hybrid.daily, currency));
  if (!told) return;
  show("cost-batch-note",
    `${money(told.batch.compute, currency)} computing, ${money(told.batch.memory, currency)} Redis`);
  show("cost-realtime-note", instances(told.realtime.instances) + " all day");
  show("cost-hybrid-note", told.hybrid.precomputes ? `${instances(told.hybrid.instances)} for the misses` :
    `as a cache alone; with runs ${money(told.hybrid.everything, currency)}`);
}

// The advice goes by the use of the predictions, too: where another way costs less, the page says so itself.
function adviceNote({ advice, estimate, currency }) {
  const daily = Object.entries(APPROACHES).map(([name, title]) => [title.toLowerCase(), estimate[name].daily, name]);
  const [title, least, name] = daily.reduce((best, one) => (one[1] < best[1] ? one : best));
  const cheaper = name === advice.approach || least >= estimate[advice.approach].daily ? "" :
    `; by its use, though ${title} costs ${money(least, currency)}`;
  return `confidence ${advice.confidence}${cheaper}`;
}

function drawAdvice(costs) {
  const { advice, break_even: even, currency, is_advised: isAdvised } = costs;
  show("cost-advice", isAdvised ? APPROACHES[advice.approach] : "—");
  show("cost-advice-note", isAdvised ? adviceNote(costs) : "too little is known: see below");
  show("cost-unread", about(advice.never_read));
  show("cost-served", isAdvised ? money(advice.cost_per_1000_served, currency) : "—");
  show("cost-failing", plain(advice.instances_if_a_run_fails));
  show("cost-even", even ? (even.whole === 0 ? "any traffic" : plain(even.whole)) : "—");
  show("cost-even-note", even && even.whole === 0 ? "batch costs no more than one instance all day" :
    "requests per entity and day, for batch to pay");
}

const told = (what) => element("span", "", element("code", "", "forecache advise"), " " + what);

function adviceCard({ advice, is_advised: isAdvised }) {
  if (!isAdvised) {
    return card("No advice yet", [told("takes what you know already")],
      ...advice.gaps.map((gap) => note("Missing: " + gap)));
  }
  const numbers = [["schedule", "Schedule", ""], ["ttl", "TTL", ""], ["batch_workers", "Batch workers", "instances"],
    ["realtime_instances", "Real-time workers", "instances"], ["hit_rate", "Hit rate", "share"]];
  const rows = numbers.map(([name, title, unit]) => element("tr", "", element("td", "", title),
    element("td", "text-nowrap", typeof advice[name] === "number" ? withUnit(advice[name], unit) : advice[name] ?? "—"),
    element("td", "run-note", advice.explanations[name])));
  const reasons = [...advice.reasons, ...advice.gaps.map((gap) => "Not sure: " + gap)];
  return card("Advice: " + APPROACHES[advice.approach].toLowerCase(), ["confidence " + advice.confidence, told("takes what only you know")],
    table(["Number", "Value", "Because"], rows), ...reasons.map(note));
}

function inputsCard(costs) {
  const rows = costs.inputs.map((each) => element("tr", "",
    element("td", "", INPUTS[each.name] || each.name.replaceAll("_", " ")),
    number(withUnit(each.value, each.unit, costs.currency)),
    element("td", "", each.from), element("td", "run-note", each.how)));
  return card("Where each figure comes from", ["prices of " + costs.prices_as_of],
    table(["Input", numberHeading("Value"), "From", "How"], rows));
}

function drawCurves({ advice, currency }) {
  const { hit_curves: found } = advice;
  const measured = found.measured_hit_rate == null ? "" :
    ` Measured within 24 h: ${(100 * found.measured_hit_rate).toFixed(1)} %.`;
  show("curves-note", (found.too_little ? `No hit-rate curves to go by: ${found.too_little}.` :
    `From ${counted(found.accesses, "access", "accesses")} within ${plain(found.hours)} h, ` +
    `${counted(found.sampled_entities, "entity", "entities")} in the sample.`) + measured);
  for (const figure of document.querySelectorAll("[data-curve]")) {
    const curve = found.curves.find((each) => each.name === figure.dataset.curve);
    figure.hidden = !curve;
    if (!curve) continue;
    figure.querySelector("figcaption").textContent = "Hit rate against " + curve.title;
    drawCurve("chart-" + curve.name, curve, currency);
    figure.querySelector(".chart-note").textContent = (curve.advised ? "advised: " : "nothing advised: ") + curve.why;
  }
}

// days in the table
const ROWS = 10;
const PROMISED = [
  ["hit_rate", (value) => percent(value)],
  ["cost", (value, currency) => money(value, currency)],
  ["peak_rps", (value) => plain(value)],
  ["peak_misses_rps", (value) => plain(value)],
];

// Two cells for each figure: promised, and came.
function promiseRow({ day, promised, came }) {
  const cells = PROMISED.flatMap(([name, text]) => [promised, came].map((side) =>
    number(side && side[name] != null ? text(side[name], side.currency) : "—")));
  const told = [promised ? "" : "no promise was kept", !came ? "nothing was counted" : came.requests ? "" : "no requests"];
  return element("tr", "", element("td", "text-nowrap", day), ...cells,
    element("td", "run-note text-nowrap", told.filter(Boolean).join("; ")));
}

function drawPromised(days) {
  const known = days.some((day) => day.promised || day.came);
  document.getElementById("promise-charts").hidden = !known;
  if (!known) return;
  const inOrder = [...days].reverse();
  drawPromises("chart-promised-hits", inOrder, (side) => side.hit_rate == null ? null : 100 * side.hit_rate,
    { ticksuffix: " %", hoverformat: ".1f" });
  const { currency } = days.map((day) => day.promised || day.came).find(Boolean);
  drawPromises("chart-promised-cost", inOrder, (side) => side.cost,
    { tickformat: "~s", hoverformat: ".2f", title: { text: currency + " a day", standoff: 12 } });
}

function promisesCard(days) {
  const first = days.findLastIndex((day) => day.promised || day.came);
  const rows = days.slice(0, Math.min(first + 1, ROWS)).map(promiseRow);
  const titles = ["Hit rate", "Cost a day", "Requests/s at the peak", "Misses/s at the peak"];
  const headings = titles.flatMap((title) => [numberHeading(title + ", promised"), numberHeading("came")]);
  return card("What was promised, and what came", ["the last " + ROWS + " days, in UTC; the lines show " + days.length],
    table(["Day", ...headings, "Note"], rows,
      "Nothing is kept yet. Each day the maintenance worker keeps the advice for the next one, once 100 requests " +
      "were counted within 24 hours."));
}

keepDrawing((data) => {
  const { costs } = data;
  choices("choose-model", "model", data.models.map((name) => [name, name]), data.model);
  document.getElementById("forecache-figures").hidden = !costs;
  document.getElementById("forecache-empty").hidden = Boolean(costs);
  if (!costs) return;
  const hint = document.getElementById("cost-hint");
  hint.hidden = !costs.missing;
  hint.textContent = costs.missing ? `Too little was measured for a cost: ${costs.missing.replace(/: give --.*$/, "")}. ` +
    "A published run tells the number of entities, and requests tell the rest." : "";
  drawCosts(costs);
  drawAdvice(costs);
  document.getElementById("cost-charts").hidden = !costs.curve;
  if (costs.curve) {
    drawCost("chart-cost", costs.curve, costs.break_even, costs.currency);
    drawSwings("chart-swings", costs.sensitivity, costs.estimate.hybrid.daily, costs.currency);
  }
  drawCurves(costs);
  drawPromised(costs.promises);
  document.getElementById("cost-tables").replaceChildren(
    adviceCard(costs), promisesCard(costs.promises), inputsCard(costs));
});
