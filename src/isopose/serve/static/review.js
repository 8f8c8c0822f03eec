// isopose review: a table of cases and a plot on the left, the chosen case on the right.
import { ask, panels, rgb } from "/static/api.js";
import { arrange, element, legend, offerWindows, tabs, themes, valueOf } from "/static/shared.js";
import { paint } from "/static/steps.js";
import { VolumeView } from "/static/volume.js";

const byId = (id) => document.getElementById(id);
const cohort = await ask("/api/cohort");
const cases = cohort.rows.map((row, number) => ({ ...row, number }));
const has = {
  dice: cases.some(({ dice }) => dice), against: cases.some(({ against }) => against),
  confidence: cases.some(({ confidence }) => confidence !== null), age: cases.some(({ age_years: age }) => age !== null),
  size: cases.some(({ size_mm: size }) => size !== null),
};
const state = { target: cohort.targets[0], sort: null, down: false, listed: [], chosen: null, view: null, z: 0, tab: "sides", planes: null };
const SVG = "http://www.w3.org/2000/svg";

themes(byId("theme"));
const volume = new VolumeView(byId("volume"), ({ vox, values }) => {
  if (state.view) byId("where").textContent = `slice ${vox[2] * (volume.slow ? state.view.reduced[2] : 1)} · ${valueOf(state.view.values, values[0].value)}`;
});
let other = null; // The second viewer, made when it is first needed.
const arrangeSides = arrange(byId("sides"));
tabs(document.querySelector('[role="tablist"]'), (name) => { state.tab = name; present(); });

// ---- the table ----------------------------------------------------------------------------------------------

const shown = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const COLUMNS = [
  { id: "case", name: "Case", of: (row) => row.case, text: (row) => row.case },
  { id: "dice", name: "Dice", of: (row) => row.dice?.[state.target] ?? null, text: (row) => shown(row.dice?.[state.target], 3), when: has.dice },
  { id: "against", name: "Other Dice", of: (row) => row.against?.[state.target] ?? null, text: (row) => shown(row.against?.[state.target], 3), when: has.against },
  { id: "confidence", name: "Conf.", of: (row) => row.confidence, text: (row) => shown(row.confidence, 2), when: has.confidence },
  { id: "volume", name: "ml", of: (row) => row.volumes_ml[state.target] ?? null, text: (row) => shown(row.volumes_ml[state.target], 1) },
  { id: "age", name: "Age", of: (row) => row.age_years, text: (row) => shown(row.age_years, 1), when: has.age },
  { id: "size", name: "Size", of: (row) => row.size_mm, text: (row) => shown(row.size_mm, 0), when: has.size },
  { id: "warnings", name: "Warnings", of: (row) => row.warnings.length, text: (row) => row.warnings.length || "" },
  { id: "decision", name: "Decision", of: (row) => row.decision, text: (row) => row.decision },
].filter(({ when }) => when !== false);
// Worst first: by Dice, else by confidence in the pose, else by number of warnings.
state.sort = has.dice ? "dice" : has.confidence ? "confidence" : "warnings";
state.down = state.sort === "warnings";

byId("target").append(...cohort.targets.map((name) => element("option", { text: name, value: name })));
byId("target").addEventListener("change", (event) => { state.target = event.target.value; list(); });
byId("find").addEventListener("input", () => list());
byId("which").addEventListener("change", () => list());

function heads() {
  const made = COLUMNS.map(({ id, name }) => {
    const head = element("th", { scope: "col", className: ["case", "decision"].includes(id) ? "" : "number" });
    if (id === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    const arrow = id === state.sort ? (state.down ? " ↓" : " ↑") : "";
    head.append(element("button", { type: "button", text: name + arrow, onclick: () => {
      state.down = id === state.sort ? !state.down : false;
      state.sort = id;
      list();
      byId("heads").querySelectorAll("button")[COLUMNS.findIndex((column) => column.id === id)].focus();
    } }));
    return head;
  });
  byId("heads").replaceChildren(element("th", { scope: "col", text: "" }), ...made);
}

function wanted(row) {
  const text = byId("find").value.trim().toLowerCase();
  const which = byId("which").value;
  const right = { all: true, open: !row.decision, warned: row.warnings.length > 0 }[which] ?? row.decision === which;
  return right && (!text || [row.case, row.comment, ...row.warnings].some((value) => value.toLowerCase().includes(text)));
}

function list() {
  const { of } = COLUMNS.find(({ id }) => id === state.sort), sign = state.down ? -1 : 1;
  state.listed = cases.filter(wanted).sort((a, b) => {
    const [x, y] = [of(a), of(b)];
    // Cases without a value come first: they must not be overlooked.
    if (x === null || y === null) return (x === null ? 0 : 1) - (y === null ? 0 : 1) || a.number - b.number;
    return sign * (x < y ? -1 : x > y ? 1 : 0) || a.number - b.number;
  });
  heads();
  byId("rows").replaceChildren(...state.listed.map(line));
  const decided = cases.filter(({ decision }) => decision).length;
  byId("count").textContent = `${state.listed.length} of ${cases.length} cases, ${decided} decided`;
  plot();
}

function line(row) {
  const made = element("tr", { className: row.number === state.chosen ? "chosen" : "" });
  made.dataset.number = row.number;
  // Thumbnails are requested when they scroll into view.
  const picture = element("img", { loading: "lazy", width: 40, height: 40, alt: "", src: `/api/cases/${row.number}/thumbnail.png` });
  made.append(element("td", {}, picture));
  for (const { id, text } of COLUMNS) {
    const cell = element("td", { className: ["case", "decision"].includes(id) ? "" : "number" });
    if (id === "case") cell.append(element("button", { type: "button", text: row.case }));
    else if (id === "decision" && row.decision) cell.append(element("span", { className: `mark ${row.decision}`, text: row.decision }));
    else cell.textContent = text(row);
    made.append(cell);
  }
  made.addEventListener("click", () => choose(row.number));
  return made;
}

// ---- the plot -----------------------------------------------------------------------------------------------

function plot() {
  const place = byId("scatter"), by = has.size ? "size_mm" : "age_years", unit = has.size ? "mm" : "years";
  const known = state.listed.filter((row) => row.dice?.[state.target] != null && row[by] != null);
  byId("plot").hidden = !has.dice || !(has.size || has.age);
  if (byId("plot").hidden) return;
  const wide = place.clientWidth || 500, high = 190, left = 34, bottom = 26;
  place.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  const values = known.map((row) => row[by]);
  const low = Math.min(...values), span = Math.max(...values) - low || 1;
  const x = (value) => left + 10 + ((value - low) / span) * (wide - left - 24);
  const y = (dice) => 8 + (1 - dice) * (high - bottom - 14);
  const draw = (tag, properties, text) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const parts = [0, 0.5, 1].flatMap((dice) => [
    draw("line", { x1: left, x2: wide, y1: y(dice), y2: y(dice) }), draw("text", { x: 4, y: y(dice) + 4 }, dice.toFixed(1)),
  ]);
  if (known.length) {
    parts.push(draw("text", { x: left + 4, y: high - 6 }, `${low.toFixed(0)} ${unit}`), draw("text", { x: wide - 6, y: high - 6, "text-anchor": "end" }, `${(low + span).toFixed(0)} ${unit}`));
  }
  for (const row of known) {
    const dot = draw("circle", { cx: x(row[by]), cy: y(row.dice[state.target]), r: 5, tabindex: -1, role: "button", class: row.number === state.chosen ? "chosen" : "" });
    dot.setAttribute("aria-label", `${row.case}: Dice ${row.dice[state.target].toFixed(3)}`);
    dot.append(draw("title", {}, `${row.case}: ${row.dice[state.target].toFixed(3)}`));
    dot.addEventListener("click", () => choose(row.number));
    parts.push(dot);
  }
  place.replaceChildren(...parts);
  byId("plotsays").textContent = `Dice (${state.target}) against ${by === "size_mm" ? "body size in mm" : "age in years"}; click a dot to open its case.`;
}

// ---- one case -----------------------------------------------------------------------------------------------

const KINDS = { labels: "Prediction", truth: "Ground truth", against: "Other prediction" };
const windowNow = () => state.view.values.windows[byId("window").value];
const opacityNow = () => byId("opacity").value / 100;

async function choose(number) {
  keepComment();
  const before = document.querySelector("tr.chosen");
  before?.classList.remove("chosen");
  state.chosen = number;
  const row = cases[number];
  const item = document.querySelector(`tr[data-number="${number}"]`);
  item?.classList.add("chosen");
  item?.scrollIntoView({ block: "nearest" });
  plot();
  byId("title").textContent = row.case;
  byId("comment").value = row.comment;
  marks(row);
  const unknown = row.image ? [] : ["the scan was not found, so its pictures are blank; give its folder with --images"];
  byId("warnings").replaceChildren(...[...row.warnings, ...unknown].map((text) => element("li", { text })));
  // Never show the previous case under this one's name.
  Object.assign(state, { view: null, planes: null });
  for (const one of volumes()) {
    one.shown = null;
    one.canvas.style.visibility = "hidden";
  }
  byId("sides").replaceChildren(element("p", { className: "quiet", text: "Reading …" }));
  byId("empty").hidden = true;
  byId("shown").hidden = false;
  let view;
  try {
    view = await ask(`/api/cases/${number}/view`);
  } catch (error) {
    if (state.chosen !== number) return;
    byId("sides").replaceChildren();
    byId("warnings").append(element("li", { text: error.message }));
    return;
  }
  // Another case may have been chosen while this one was read.
  if (state.chosen !== number) return;
  state.view = { ...view, number };
  offerWindows(byId("window"), view.values);
  state.z = view.best;
  byId("slice").max = view.shape[0] - 1;
  byId("legend").replaceChildren(...legend(view.labels));
  byId("sides").replaceChildren(...["native", ...view.maps].map((name) => {
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", KINDS[name] ?? "Scan");
    canvas.dataset.name = name;
    const dice = { labels: row.dice, against: row.against }[name]?.[state.target];
    const score = dice == null ? "" : `, Dice ${dice.toFixed(3)}`;
    return element("figure", {}, canvas, element("figcaption", { text: (KINDS[name] ?? "Scan") + score }));
  }));
  choices(view.maps);
  await present();
  document.body.dataset.case = row.case;
}

/** Offer the label maps of this case: one for the planes and 3D, one for the second viewer. */
function choices(maps) {
  for (const [id, first] of [["map", []], ["beside", [["", "nothing"]]]]) {
    const place = byId(id), before = place.value;
    const all = [...first, ...maps.map((name) => [name, KINDS[name]])];
    place.replaceChildren(...all.map(([value, text]) => element("option", { value, text })));
    place.value = all.some(([value]) => value === before) ? before : all[0][0];
  }
}

const volumes = () => (other ? [volume, other] : [volume]);

async function showVolumes() {
  const { view } = state, beside = byId("beside").value;
  byId("second").hidden = !beside;
  if (beside && !other) {
    other = new VolumeView(byId("othervolume"), () => {});
    other.planes(byId("planes").value);
    volume.together(other);
  }
  for (const [one, map] of [[volume, byId("map").value], [other, beside]]) {
    const mark = `${view.number} ${map}`;
    if (!one || !map || one.shown === mark) continue;
    one.shown = mark;
    await one.show(`/api/cases/${view.number}`, view.labels, windowNow(), opacityNow(), map);
    if (state.view !== view) return;
    one.goto(state.z, view.shape[0]);
  }
  byId("volume").dataset.drawn = byId("map").value;
  byId("othervolume").dataset.drawn = beside;
}

async function present() {
  if (!state.view) return;
  if (state.tab === "volume") {
    await showVolumes();
    return;
  }
  await slice(state.z);
}

let asked = null;
async function slice(z) {
  const { view } = state;
  state.z = z;
  byId("slice").value = z;
  byId("sliceno").textContent = `${z} of ${view.shape[0] - 1}`;
  asked?.abort();
  asked = new AbortController();
  try {
    const planes = await panels(`/api/cases/${view.number}/slices/${z}`, asked.signal);
    if (state.view === view) state.planes = planes;
  } catch (error) {
    if (error.name === "AbortError") return;
    throw error;
  }
  draw();
}

function draw() {
  const { view, planes } = state;
  if (!planes || !view) return;
  const colors = view.labels.map(({ color }) => rgb(color));
  const scale = Math.max(1, Math.round(520 / planes.native.shape[1])), tall = view.spacing[1] / view.spacing[0];
  for (const canvas of byId("sides").querySelectorAll("canvas")) {
    const map = canvas.dataset.name === "native" ? null : planes[canvas.dataset.name];
    paint(canvas, planes.native, windowNow(), map, colors, opacityNow(), scale, tall);
  }
  arrangeSides();
  byId("sides").dataset.slice = state.z;
}

byId("slice").addEventListener("input", (event) => {
  if (state.tab === "volume") for (const one of volumes()) one.goto(Number(event.target.value), state.view.shape[0]);
  slice(Number(event.target.value));
});
byId("sides").addEventListener("wheel", (event) => {
  event.preventDefault();
  const z = state.z - Math.sign(event.deltaY);
  if (z >= 0 && z < state.view.shape[0]) slice(z);
}, { passive: false });
byId("window").addEventListener("change", () => { if (!state.view) return; for (const one of volumes()) one.window(windowNow()); draw(); });
byId("opacity").addEventListener("input", () => { for (const one of volumes()) one.opacity(opacityNow()); draw(); });
byId("planes").addEventListener("change", (event) => { for (const one of volumes()) one.planes(event.target.value); });
for (const id of ["map", "beside"]) byId(id).addEventListener("change", () => present());

// ---- decisions ----------------------------------------------------------------------------------------------

function marks(row) {
  for (const [id, name] of [["accept", "accepted"], ["reject", "rejected"]]) {
    byId(id).classList.toggle("on", row.decision === name);
    byId(id).setAttribute("aria-pressed", row.decision === name);
  }
}

let saving = Promise.resolve();

/** Decide on the page at once, then on the server, in order; undo on the page if saving fails. */
function decide(decision, comment) {
  const row = cases[state.chosen], before = { decision: row.decision, comment: row.comment };
  Object.assign(row, { decision, comment });
  update(row);
  saving = saving
    .then(() => ask(`/api/cases/${row.number}/decision`, { method: "POST", body: { decision, comment } }))
    .then(() => { byId("saved").textContent = "saved"; })
    .catch((error) => {
      Object.assign(row, before);
      update(row);
      byId("saved").textContent = `${row.case} was not saved: ${error.message}`;
    });
}

function update(row) {
  if (state.chosen === row.number) marks(row);
  document.querySelector(`tr[data-number="${row.number}"]`)?.replaceWith(line(row));
  const decided = cases.filter((one) => one.decision).length;
  byId("count").textContent = `${state.listed.length} of ${cases.length} cases, ${decided} decided`;
}

const toggled = (name) => (cases[state.chosen].decision === name ? "" : name);
byId("accept").addEventListener("click", () => decide(toggled("accepted"), byId("comment").value));
byId("reject").addEventListener("click", () => { const name = toggled("rejected"); decide(name, byId("comment").value); if (name) byId("comment").focus(); });
byId("comment").addEventListener("change", () => keepComment());

function keepComment() {
  if (state.chosen === null) return;
  const row = cases[state.chosen], comment = byId("comment").value.trim();
  if (comment !== row.comment) decide(row.decision, comment);
}

function step(by) {
  const at = state.listed.findIndex(({ number }) => number === state.chosen);
  const next = state.listed[Math.min(Math.max(at + by, 0), state.listed.length - 1)];
  if (next) choose(next.number);
}

byId("before").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
const KEYS = { j: () => step(1), k: () => step(-1), a: () => byId("accept").click(), r: () => byId("reject").click(), "/": () => byId("find").focus() };
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]), select, textarea");
  if (typing && event.key === "Escape") event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  if (state.chosen === null && "ar".includes(event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

list();
new ResizeObserver(() => plot()).observe(byId("plot"));
if (state.listed.length) choose(state.listed[0].number);
document.body.dataset.ready = "true";
