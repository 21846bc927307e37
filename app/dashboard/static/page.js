// Shared by all pages: builds nodes, formats numbers, reads the address, and asks for figures every 2 s.
// Text enters the page as text, never as HTML.

const REFRESH_MS = 2000;
const TIMEOUT_MS = 5000;

export const root = document.getElementById("forecache-page");

export function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.flat().map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

export function show(id, text) {
  document.getElementById(id).textContent = text;
}

export const count = (value) => (value == null ? "—" : Number(value).toLocaleString("en-US"));

// A count with its noun; the plural is the noun with an s if none is given.
export const counted = (value, one, many = one + "s") => `${count(value)} ${value === 1 ? one : many}`;

export function percent(share) {
  if (share == null) return "—";
  // do not show 99.97 % as a perfect 100
  return (Math.floor(share * 1000 + 1e-9) / 10).toFixed(1) + " %";
}

export function duration(seconds) {
  if (seconds == null) return "—";
  if (seconds < 0.1) return (seconds * 1000).toPrecision(2) + " ms";
  if (seconds < 1) return Math.round(seconds * 1000) + " ms";
  if (seconds < 10) return seconds.toFixed(1) + " s";
  if (seconds < 100) return Math.round(seconds) + " s";
  if (seconds < 6000) return Math.round(seconds / 60) + " min";
  if (seconds < 172800) return (seconds / 3600).toFixed(1) + " h";
  return (seconds / 86400).toFixed(1) + " d";
}

export function bytes(value) {
  return (value / 2 ** 30).toFixed(1) + " GiB";
}

// In the browser's time zone, which the head of every page names.
export function localTime(iso) {
  if (!iso) return "—";
  const at = new Date(iso);
  return isNaN(at) ? String(iso) : at.toLocaleString("sv-SE");
}

function zone() {
  const minutes = -new Date().getTimezoneOffset();
  const two = (value) => String(Math.floor(Math.abs(value))).padStart(2, "0");
  const offset = "UTC" + (minutes ? `${minutes < 0 ? "−" : "+"}${two(minutes / 60)}:${two(minutes % 60)}` : "");
  const name = new Intl.DateTimeFormat().resolvedOptions().timeZone;
  return name && name !== "UTC" ? `${offset}, ${name}` : offset;
}

export function table(headings, rows, none) {
  if (!rows.length) return element("p", "empty-table-message mb-0", none);
  const cells = headings.map((heading) => (heading instanceof Node ? heading : element("th", "", heading)));
  const node = element("table", "workers-table table table-hover align-middle w-100 mb-0",
    element("thead", "", element("tr", "", cells)), element("tbody", "", rows));
  const scroller = element("figure", "table-responsive mb-0", node);
  const box = element("div", "table-box", scroller, element("p", "table-more", "More columns: scroll sideways →"));
  scroller.addEventListener("scroll", () => markEnds(box, scroller), { passive: true });
  resized.observe(scroller);
  return box;
}

// A table that is wider than its place says so, and can be scrolled by the keyboard.
function markEnds(box, scroller) {
  const { scrollLeft, scrollWidth, clientWidth } = scroller;
  box.classList.toggle("more-right", scrollLeft + clientWidth < scrollWidth - 1);
  box.classList.toggle("more-left", scrollLeft > 1);
  if (scrollWidth > clientWidth) scroller.tabIndex = 0;
  else scroller.removeAttribute("tabindex");
}

const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => markEnds(target.parentElement, target)));

export const number = (text) => element("td", "number", ...[text].flat());
export const numberHeading = (text) => element("th", "number", text);

export const note = (text) => element("p", "card-note", text);

export function card(title, facts, ...content) {
  const header = element("header", "model-card-header", element("h2", "", title),
    facts.map((fact) => (fact instanceof Node ? fact : element("span", "", fact))));
  const node = element("section", "workers-table-card model-card", header, content);
  node.setAttribute("aria-label", title);
  return node;
}

// --- the address: it holds the choices, so that a colleague can open the same view

export const choice = () => new URLSearchParams(window.location.search);

let changed = () => {};

export function choose(name, value) {
  const parameters = choice();
  if (value) parameters.set(name, value);
  else parameters.delete(name);
  window.history.pushState(null, "", "?" + parameters);
  changed();
}

window.addEventListener("popstate", () => changed());

// A row of buttons, one of them pressed. Draws it again only if something has changed.
export function choices(id, name, options, chosen) {
  const box = document.getElementById(id);
  const key = JSON.stringify([options, chosen]);
  if (box.dataset.drawn === key) return;
  box.dataset.drawn = key;
  box.replaceChildren(...options.map(([value, text]) => {
    const button = element("button", "btn btn-sm btn-choice" + (value === chosen ? " active" : ""), text);
    button.type = "button";
    button.setAttribute("aria-pressed", String(value === chosen));
    button.addEventListener("click", () => choose(name, value));
    return button;
  }));
}

// --- figures

function say(text, live) {
  show("forecache-status", text);
  document.getElementById("forecache-indicator").className =
    "status-dot " + (live ? "status-dot-live" : "status-dot-error");
  root.classList.toggle("forecache-old", !live);
}

async function ask(url, options) {
  // the address bar may hold name:password@, which fetch refuses
  const answer = await fetch(new URL(url, window.location.origin), {
    signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store", ...options,
  });
  // the answer of a proxy is not JSON
  const data = await answer.json().catch(() => ({ error: "HTTP " + answer.status + ", not from this server" }));
  if (!answer.ok) throw new Error(data.error || "HTTP " + answer.status);
  return data;
}

// Calls draw(data) when the figures have changed, and at once when the address or the theme has.
export function keepDrawing(draw) {
  let drawn = "";
  let timer = 0;
  let asked = 0;

  async function refresh() {
    window.clearTimeout(timer);
    const mine = ++asked;
    try {
      const data = await ask(root.dataset.url + "?" + choice());
      if (mine !== asked) return;
      const { read_at: readAt, read_in_ms: _took, ...figures } = data;
      const key = JSON.stringify(figures);
      // do not redraw unchanged figures: so a selection or scroll position stays
      if (key !== drawn) draw(data);
      drawn = key;
      say(`Live · ${localTime(readAt).slice(-8)} (${zone()})`, true);
    } catch (error) {
      if (mine !== asked) return;
      say("Not refreshed: " + error.message, false);
    }
    timer = window.setTimeout(refresh, REFRESH_MS);
  }

  changed = refresh;
  new MutationObserver(() => { drawn = ""; refresh(); })
    .observe(document.documentElement, { attributes: true, attributeFilter: ["data-bs-theme"] });
  refresh();
  return refresh;
}

export function post(url, body) {
  return ask(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-XSRFToken": root.dataset.xsrf },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(15000),
  });
}
