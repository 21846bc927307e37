// The page of queues and of the workers that serve them.
import { bytes, card, count, duration, element, keepDrawing, localTime, number, numberHeading, percent,
  table } from "./page.js";

function queueRow(queue) {
  const gone = queue.gone.length ? ` (${queue.gone.length} gone without a word)` : "";
  const workers = number(count(queue.workers) + gone);
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
  return element("tr", "",
    element("td", "", worker.name),
    element("td", "", worker.queues.join(", ")),
    element("td", "", element("span", "badge " + (worker.ready ? "bg-success" : "bg-primary"),
      worker.ready ? "ready" : "starting")),
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

keepDrawing((data) => {
  const queues = table(["Queue", numberHeading("Waiting"), numberHeading("Oldest has waited"), numberHeading("Workers")],
    data.queues.map(queueRow));
  const workers = table(["Worker", "Queue", "State", "Model versions", "GPU", "Release", numberHeading("Pid"), "Started"],
    data.workers.map(workerRow), "No worker is alive.");
  const batches = table(["Model", numberHeading("p50"), numberHeading("p95"), numberHeading("p99")],
    data.micro_batches.map(microBatchRow), "No model is configured.");
  document.getElementById("queues-cards").replaceChildren(
    card("Queues", data.broker_error ? [element("span", "run-failed", data.broker_error)] : [], queues),
    card("Workers", [count(data.workers.length) + " alive"], workers),
    card("Micro-batches", ["rows in one message of the real-time queue, last 5 min"], batches));
});
