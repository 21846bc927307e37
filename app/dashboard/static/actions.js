// What the pages of runs and of differences share: states, and buttons that ask for confirmation and show the result.
import { element, post, root } from "./page.js";

const BADGES = { published: "bg-success", failed: "bg-danger", cancelled: "bg-secondary", held: "bg-warning",
  compared: "bg-secondary" };

// the colour of a run's bar: only what serves, or may, is green
const BARS = { failed: "bg-danger", cancelled: "bg-secondary", held: "bg-warning", published: "bg-success" };

export const barColour = (state) => BARS[state] || "bg-primary";

export const badge = (state) => element("span", "badge " + (BADGES[state] || "bg-primary"), state);

export function say(text, failed) {
  const note = document.getElementById("runs-note");
  note.textContent = text;
  note.className = "alert py-2 " + (failed ? "alert-danger" : "alert-success");
  note.hidden = false;
}

function confirmed(question, text) {
  const dialog = document.getElementById("runs-confirm");
  document.getElementById("runs-question").textContent = question;
  document.getElementById("runs-yes").textContent = text;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export async function tryPost(body, told, done) {
  try {
    const answer = await post(root.dataset.actions, body);
    say(told(answer), false);
    done(answer);
  } catch (error) {
    say(error.message, true);
  }
}

export async function confirmAndPost(question, text, body, told, done) {
  if (await confirmed(question, text)) await tryPost(body, told, done);
}

export function button(text, style, pressed) {
  const node = element("button", "btn btn-sm " + style, text);
  node.type = "button";
  node.addEventListener("click", pressed);
  return node;
}

// The buttons of a run that waits for its publication. `act`: asks, posts and shows the result.
export function heldButtons(run, act) {
  const { run_id: runId } = run;
  return [
    button("Publish this run", "btn-primary", () => act(
      `Publish run ${runId}? Its predictions serve then, if it passes its gates again.`, "Publish",
      { action: "publish", run_id: runId }, (after) => `Run ${runId} is ${after.state}.`)),
    button("Cancel this run", "btn-danger", () => act(
      `Cancel run ${runId}? What serves goes on serving.`, "Cancel the run", { action: "cancel", run_id: runId },
      (after) => `Run ${runId} is ${after.state}.`)),
  ];
}
