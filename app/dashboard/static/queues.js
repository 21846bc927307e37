// The page of queues and of the workers that serve them.
import { bytes, card, count, counted, duration, element, keepDrawing, localTime, note, number, numberHeading,
  percent, table } from "./page.js";

function queueRow(queue) {
  const gone = queue.gone.length ? ` (${queue.gone.length} gone without a word)` : "";
  const workers = number((queue.workers ? count(queue.workers) : "none alive") + gone);
  if (!queue.workers) workers.classList.add("run-failed");
  if (queue.gone.length) workers.title = queue.gone.join(", ");
  return element("tr", "", element("td", "", queue.queue), number(count(queue.depth)),
    number(queue.oldest_age_s == null && queue.depth === 0 ? "nothing waits" : duration(queue.oldest_age_s)), workers);
}

function gpuText(gpus) {
  return gpus.map((gpu) => element("div", "", `${gpu.index}: ${gpu.name}, ${bytes(gpu.memory_used)} of ` +
    `${bytes(gpu.memory_total)}, ${percent(gpu.busy_share)} busy`));
}

function workerRow(worker) {
  const versions = Object.entries(worker.versions).map(([model, held]) => `${model} ${held.join(", ")}`).join("; ");
  const [state, color] = worker.ready ? ["ready", "bg-success"] :
    worker.deaf ? ["deaf", "bg-danger"] : ["starting", "bg-primary"];
  return element("tr", "",
    element("td", "", worker.name),
    element("td", "", worker.queues.join(", ")),
    element("td", "", element("span", "badge " + color, state)),
    element("td", "", versions || "—"),
    element("td", "", worker.gpus.length ? gpuText(worker.gpus) : "none seen"),
    element("td", "", worker.release || "from sources"),
    number(worker.pid),
    element("td", "", localTime(new Date(1000 * worker.started_at).toISOString())));
}

function microBatchRow(sizes) {
  return element("tr", "", element("td", "", sizes.model),
    ["p50", "p95", "p99"].map((name) => number(sizes[name] == null ? "—" : Math.max(1, Math.round(sizes[name])))));
}

// One breaker in each API process for each model.
function breakerRow(one, processes) {
  const told = one.closed + one.half_open + one.open;
  const badge = one.open ? ["bg-danger", "no"] : one.half_open ? ["bg-primary", "once, to try"] : ["bg-success", "yes"];
  const state = told ? element("span", "badge " + badge[0], badge[1]) : "not known yet";
  return element("tr", "", element("td", "", one.model), element("td", "", state),
    number(`${count(one.closed)} of ${count(processes)}`), number(count(one.half_open)), number(count(one.open)));
}

function apiFacts(api) {
  const alive = counted(api.alive, "process alive", "processes alive");
  if (!api.gone.length) return [api.alive ? alive : element("span", "run-failed", "no API process is alive")];
  const gone = element("span", "run-failed", `${api.gone.length} gone without a word within the hour`);
  gone.title = api.gone.join(", ");
  return [alive, gone];
}

keepDrawing((data) => {
  const queues = table(["Queue", numberHeading("Waiting"), numberHeading("Oldest has waited"), numberHeading("Workers")],
    data.queues.map(queueRow));
  const workers = table(["Worker", "Queue", "State", "Model versions", "GPU", "Release", numberHeading("Pid"), "Started"],
    data.workers.map(workerRow), "No worker is alive.");
  const breakers = table(["Model", "Workers are asked", numberHeading("Closed"), numberHeading("Half-open"),
    numberHeading("Open")], data.breakers.map((one) => breakerRow(one, data.api.alive)), "No model is configured.");
  const batches = table(["Model", numberHeading("p50"), numberHeading("p95"), numberHeading("p99")],
    data.micro_batches.map(microBatchRow), "No model is configured.");
  document.getElementById("queues-cards").replaceChildren(
    card("Queues", data.broker_error ? [element("span", "run-failed", data.broker_error)] : [], queues),
    card("Workers", [count(data.workers.length) + " alive"], workers),
    card("API and its breakers", apiFacts(data.api), breakers,
      note("A breaker that is open asks the real-time workers nothing, since they did not answer: misses get what " +
        "the ladder has at once. Half-open, the next miss tries them again.")),
    card("Micro-batches", ["rows in one message of the real-time queue, last 5 min"], batches));
});
