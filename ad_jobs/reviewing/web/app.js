// The page: a list, what is selected in it, and what is done with that.

import { get, post } from "./api.js";
import { agreementDetails, frameDetails } from "./details.js";
import { Filters } from "./filters.js";
import * as keys from "./keys.js";
import { List } from "./list.js";
import { Pane, newView } from "./pane.js";
import { Samples } from "./samples.js";
import { element, nameOf } from "./text.js";

const $ = (id) => document.getElementById(id);
const run = await get("/api/run");
const samples = new Samples(run.models);
const view = newView();
// What is looked at: a frame, what the server told of it, and whether its whole range of values is shown.
const seen = { frame: null, told: null, ready: false, whole: false, compare: false, turn: 0 };
let panes = [];

const rule = (decision) => Object.entries(decision.rule).map(([name, value]) => `--${name.replaceAll("_", "-")} ${value}`).join(" ");
$("about").replaceChildren(
  `run ${run.run_id}`, run.since ? ` · new since ${run.since}` : "",
  run.decision ? ` · decision ${run.decision.decision_id} (${rule(run.decision)})` : "",
  " · reviewer ", element("b", {}, run.reviewer), run.blind ? element("span", { className: "badge" }, "blinded") : "",
);
// Pictures, as of parts or boards, are no slices, and lie in folders.
if (run.pictures) {
  $("gathered").textContent = "folders";
  $("slice-word").textContent = "Image";
}
document.title = `Review of ${run.run_id}`;
for (const { model_id, kind } of run.models) $("model").append(element("option", { value: model_id }, `${kind} ${model_id.slice(0, 6)}`));
$("model-label").hidden = $("compare").hidden = run.models.length < 2;
if (run.blind) $("list").setAttribute("aria-label", "Images in an order that was drawn");

const model = () => $("model").value;
const shownModels = () => (seen.compare ? run.models.map((one) => one.model_id) : [model()]);
const say = (text, bad = false) => {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
};
const failing = (deed) => async (...given) => {
  try {
    return await deed(...given);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
    return undefined;
  }
};

const list = new List($("list"), $("count"), run.pictures ? ["folder", "folders"] : ["study", "studies"], failing((row) => (row ? look(row) : nothing())));
const filters = new Filters($("filters"), run, failing(async (event) => ask(event)));
const ask = async () => list.ask($("level").value, { model: model(), ...filters.values() });
$("model").addEventListener("change", () => {
  filters.make(model());
  makePanes();
});

function nothing() {
  Object.assign(seen, { frame: null, told: null });
  for (const pane of panes) pane.show(null, null, "No picture", ["Nothing meets the filter."]);
  $("details").replaceChildren();
  pressed();
}

function makePanes() {
  for (const pane of panes) pane.close();
  panes = shownModels().map((id) => {
    const pane = new Pane(view, run.colours, redraw);
    pane.model = id;
    $("panes").append(pane.element);
    return pane;
  });
  $("panes").style.setProperty("--panes", panes.length);
}

function redraw() {
  for (const pane of panes) pane.draw();
  const center = (view.low + view.high) / 2;
  $("window-told").textContent = `level ${(100 * center).toFixed(1)} %, window ${(100 * (view.high - view.low)).toFixed(1)} %, zoom ${view.zoom.toFixed(1)}`;
  $("blink").setAttribute("aria-pressed", String(view.hidden));
  $("range").setAttribute("aria-pressed", String(seen.whole));
  $("compare").setAttribute("aria-pressed", String(seen.compare));
}

// Look at a frame: what is known of it and its pictures come side by side.
async function look(frame, { keepStack = false } = {}) {
  const turn = ++seen.turn;
  say("");
  seen.ready = false;
  for (const pane of panes) pane.loading();
  seen.frame = { object_id: frame.object_id, frame: frame.frame };
  const known = get(`/api/frame/${frame.object_id}/${frame.frame}`);
  const shown = Promise.all(panes.map((pane) => fill(pane, frame, turn, known)));
  const told = await known;
  if (turn !== seen.turn) return;
  tell(told, keepStack);
  await shown;
  if (turn !== seen.turn) return;
  seen.ready = true;
  samples.fetchAhead(keepStack ? nearSlices() : list.near(), shownModels(), seen.whole);
}

async function fill(pane, frame, turn, known) {
  const notes = [];
  const noted = (error) => {
    if (error.name === "AbortError") throw error;
    notes.push(error.message);
    return null;
  };
  const picture = samples.picture(frame, pane.model, seen.whole).catch(noted);
  const row = known.then((told) => told.rows.find((one) => one.model_id === pane.model));
  const heat = row.then((one) => {
    if (one.heatmap) return samples.heatmap(frame, pane.model);
    if (one.status === "scored" && !one.hidden) notes.push("No heatmap was kept for this image.");
    return null;
  }).catch(noted);
  const [image, heatmap, one] = await Promise.all([picture, heat, row]);
  if (turn !== seen.turn) return;
  if (image?.changed) notes.unshift("The bytes of this picture have changed since the scan: it is not what was scored.");
  pane.caption.textContent = panes.length > 1 ? $("model").querySelector(`[value="${pane.model}"]`).textContent : "";
  pane.element.classList.toggle("changed", Boolean(image?.changed));
  pane.show(image, heatmap, `${nameOf(one.uri)}, frame ${frame.frame}`, notes);
}

function tell(told, keepStack = false) {
  seen.told = told;
  const row = told.rows.find((one) => one.model_id === model()) ?? told.rows[0];
  list.told(row);
  $("details").replaceChildren(...frameDetails(run, told, model()));
  if (!keepStack) seen.stack = told.stack;
  const at = seen.stack.findIndex(([object, frame]) => object === row.object_id && frame === row.frame);
  seen.at = at;
  $("slice").max = Math.max(0, seen.stack.length - 1);
  $("slice").value = at;
  $("slice-label").hidden = seen.stack.length < 2;
  $("slice-told").textContent = `${at + 1} / ${seen.stack.length}`;
  pressed(row.verdicts.find((one) => one.reviewer === run.reviewer)?.verdict);
}

function pressed(verdict) {
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
    button.disabled = !seen.frame;
  }
}

const nearSlices = () => [1, -1, 2, -2].map((by) => seen.stack[seen.at + by]).filter(Boolean)
  .map(([object_id, frame, status]) => ({ object_id, frame, status, has_heatmap: false }));

const slice = failing(async (to) => {
  const wanted = Math.min(seen.stack.length - 1, Math.max(0, to));
  if (!seen.stack.length || wanted === seen.at) return;
  seen.at = wanted;
  const [object_id, frame] = seen.stack[wanted];
  await look({ object_id, frame }, { keepStack: true });
});

const verdict = failing(async (word) => {
  if (!seen.frame) return undefined;
  // A picture that cannot be had says so, and may be judged.
  if (!seen.ready) return say("The picture is not here yet.", true);
  const frame = seen.frame;
  const own = seen.told.rows[0].verdicts.find((one) => one.reviewer === run.reviewer)?.verdict;
  if (own === word) return say(`It is ${word} already.`);
  const told = await post("/api/verdicts", { ...frame, verdict: word, model: model() });
  say(`Noted: ${word}.`);
  panes[0].canvas.focus({ preventScroll: true });
  return anew(frame, told);
});

const undo = failing(async () => {
  const { withdrawn } = await post("/api/undo");
  if (!withdrawn) return say("You have no verdict to take back.");
  await anew(withdrawn, await get(`/api/frame/${withdrawn.object_id}/${withdrawn.frame}`));
  return say(`Taken back: ${withdrawn.verdict}, of object ${withdrawn.object_id}, frame ${withdrawn.frame}.`);
});

// A frame's verdicts have changed: in a blinded reading its heatmap comes or goes with them.
async function anew(frame, told) {
  samples.forget(frame);
  const here = seen.frame && seen.frame.object_id === frame.object_id && seen.frame.frame === frame.frame;
  if (!here) {
    const n = list.rows.findIndex((row) => row.object_id === frame.object_id && row.frame === frame.frame);
    return n < 0 ? look(frame) : list.select(n);
  }
  tell(told, true);
  if (run.blind) await Promise.all(panes.map((pane) => fill(pane, frame, seen.turn, Promise.resolve(told))));
}

const reset = () => {
  Object.assign(view, { low: 0, high: 1, zoom: 1, x: 0, y: 0 });
  redraw();
};
const again = failing(async () => seen.frame && look(seen.frame, { keepStack: true }));
const blink = () => {
  view.hidden = !view.hidden;
  redraw();
};
const whole = () => {
  seen.whole = !seen.whole;
  reset();
  return again();
};
const compare = () => {
  if (run.models.length < 2) return;
  seen.compare = !seen.compare;
  makePanes();
  redraw();
  again();
};
const agreement = failing(async () => {
  $("agreement-told").replaceChildren(...agreementDetails(await get("/api/agreement")));
  $("agreement").showModal();
});
const filter = () => {
  $("filter-box").open = true;
  $("fields").querySelector("select, input").focus();
};

const step = failing((by) => list.step(by));
const deeds = [
  ["j", "next", () => step(1)],
  ["k", "previous", () => step(-1)],
  ["a", "accepted: the suspicion is right, the image is abnormal", () => verdict("accepted")],
  ["r", "rejected: nothing is abnormal in it", () => verdict("rejected")],
  ["s", "supplemented: abnormal, and more of it or elsewhere than was marked", () => verdict("supplemented")],
  ["u", "take my last verdict back", undo],
  ["/", "filter", filter],
  ["b", "hide the heatmap, or show it", blink],
  ["w", "the whole range of grey values, or the window that the model saw", whole],
  ["c", "all models side by side, or one", compare],
  ["[ ]", run.pictures ? "the folder's image before, after" : "slice before, slice after", (event) => slice(seen.at + (event.key === "]" ? 1 : -1))],
  ["+ -", "zoom in, zoom out", (event) => panes[0].zoomBy(event.key === "+" ? 1.5 : 1 / 1.5)],
  ["0", "window, zoom and place as at first", reset],
  ["?", "this help", () => $("help").showModal()],
];
keys.listen(deeds, (held) => {
  view.hidden = held;
  redraw();
});
const byMouse = [
  ["space", "while held, the picture without its heatmap"],
  ["wheel", run.pictures ? "images of the folder" : "slices of the series, study or folder"],
  ["drag", "window (right is wider) and level (up is brighter)"],
  ["shift-drag", "move the picture"],
  ["ctrl-wheel", "zoom"],
];
$("keys").replaceChildren(...keys.told([...deeds, ...byMouse]));

for (const button of document.querySelectorAll("[data-verdict]")) button.addEventListener("click", () => verdict(button.dataset.verdict));
const clicks = { undo, blink, range: whole, compare, reset, "open-agreement": agreement, "open-help": () => $("help").showModal() };
for (const [id, deed] of Object.entries(clicks)) $(id).addEventListener("click", deed);
$("zoom-in").addEventListener("click", () => panes[0].zoomBy(1.5));
$("zoom-out").addEventListener("click", () => panes[0].zoomBy(1 / 1.5));
$("opacity").addEventListener("input", (event) => {
  view.opacity = event.target.value / 100;
  redraw();
});
$("slice").addEventListener("input", (event) => slice(Number(event.target.value)));
$("panes").addEventListener("slice", (event) => slice(seen.at + event.detail));

makePanes();
redraw();
await failing(ask)();
