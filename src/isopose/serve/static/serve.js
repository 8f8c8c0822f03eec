// isopose serve: the queue on the left, the chosen scan's result in the middle, volumes and pose on the right.
import { ask, panels, send } from "/static/api.js";
import { HandView } from "/static/hand.js";
import { confirmed, element, legend, offerWindows, tabs, themes, valueOf } from "/static/shared.js";
import { StepsView } from "/static/steps.js";
import { VolumeView } from "/static/volume.js";

const byId = (id) => document.getElementById(id);
const KINDS = {
  nifti: "NIfTI", "dicom-seg": "DICOM SEG", rtstruct: "RTSTRUCT", "dicom-sr": "DICOM SR", report: "Report", record: "Record",
};
const WAITS = ["queued", "running"];

const state = { jobs: [], chosen: null, view: null, shown: null, tab: "scan", z: 0, planes: null };
const volume = new VolumeView(byId("volume"), located);
const steps = new StepsView(byId("steps"));
const hand = new HandView({ changed: (z) => slice(z), predict: (correction) => again(correction) });
const openTab = tabs(document.querySelector('[role="tablist"]'), (name) => { state.tab = name; present(); });
themes(byId("theme"));

const names = byId("names");
names.addEventListener("change", () => { state.shown = null; refresh(); });
const label = (job) => job.filename ?? `Scan ${job.number}`;

// ---- uploads ------------------------------------------------------------------------------------------------

/** The server's limits; requested once, and again after a failure. */
let known = null;
const about = () => (known ??= ask("/api/about").catch((error) => { known = null; throw error; }));

async function give(files) {
  for (const file of files) {
    const line = element("p", { className: "quiet" });
    byId("sending").append(line);
    const name = names.checked ? file.name : "a scan";
    try {
      const { taken, largest_bytes: largest } = await about();
      if (!taken.some((kind) => file.name.toLowerCase().endsWith(kind))) {
        throw new Error(`expected a file that ends in ${taken.join(", ")}`);
      }
      if (file.size > largest) throw new Error(`larger than ${(largest / 2 ** 30).toFixed(0)} GB`);
      const number = await send(file, (part) => { line.textContent = `Uploading ${name}: ${Math.round(100 * part)} %`; });
      line.remove();
      if (state.chosen === null || !state.view) state.chosen = number;
      await refresh();
    } catch (error) {
      line.textContent = `${name}: ${error.message}`;
      line.append(" ", element("button", { text: "Dismiss", type: "button", onclick: () => line.remove() }));
    }
  }
}

byId("file").addEventListener("change", (event) => { give([...event.target.files]); event.target.value = ""; });
// A browser would otherwise open a scan that is dropped beside the field, in place of the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
document.addEventListener("dragover", () => byId("drop").classList.add("over"));
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => { byId("drop").classList.remove("over"); give([...event.dataTransfer.files]); });

// ---- the queue ----------------------------------------------------------------------------------------------

let timer = null;
async function refresh() {
  clearTimeout(timer);
  try {
    state.jobs = await ask(`/api/jobs?names=${names.checked}`);
    byId("none").textContent = "No scans yet. Uploaded scans stay on this server.";
    pick();
    list();
    await follow();
  } catch (error) {
    console.error(error);
    // The result may be half shown; show it again.
    state.shown = volume.shown = null;
    byId("none").hidden = false;
    byId("none").textContent = `${error.message}; retrying`;
  }
  timer = setTimeout(refresh, state.jobs.some((job) => WAITS.includes(job.state)) ? 500 : 3000);
}

function list() {
  byId("none").hidden = state.jobs.length > 0;
  byId("clear").hidden = state.jobs.length < 2;
  const place = byId("jobs");
  const kept = new Map([...place.children].map((item) => [Number(item.dataset.number), item]));
  state.jobs.forEach((job, at) => {
    const key = JSON.stringify([job, job.number === state.chosen]);
    let item = kept.get(job.number);
    // Replace changed rows only, so that a button under the pointer or with the focus stays.
    if (item?.dataset.key !== key) {
      const made = row(job);
      made.dataset.key = key;
      const focus = item?.contains(document.activeElement) ? document.activeElement.className : null;
      item?.replaceWith(made);
      item = made;
      if (focus !== null) made.querySelector(focus ? `.${focus.split(" ")[0]}` : "button")?.focus();
    }
    if (place.children[at] !== item) place.insertBefore(item, place.children[at] ?? null);
    kept.delete(job.number);
  });
  for (const item of kept.values()) item.remove();
}

function row(job) {
  const item = element("li", { className: job.number === state.chosen ? "job chosen" : "job" });
  item.dataset.number = job.number;
  const name = element("button", { className: "name", type: "button", text: label(job), onclick: () => choose(job.number) });
  if (job.number === state.chosen) name.setAttribute("aria-current", "true");
  const actions = element("span", { className: "actions" });
  const post = (what, body) => ask(`/api/jobs/${job.number}/${what}`, { method: "POST", body }).then(refresh, fail);
  if (WAITS.includes(job.state)) {
    actions.append(element("button", { className: "cancel", type: "button", text: "Cancel", onclick: () => post("cancel") }));
  } else {
    if (job.state !== "done") actions.append(element("button", { className: "again", type: "button", text: "Try again", onclick: () => post("again", {}) }));
    const remove = element("button", { className: "delete", type: "button", text: "Delete", onclick: () => drop(job) });
    remove.setAttribute("aria-label", `Delete ${label(job)}`);
    actions.append(remove);
  }
  item.append(name, actions, element("span", { className: job.state === "failed" ? "state bad" : "state", text: describe(job) }));
  if (job.state === "running") {
    const bar = element("progress", job.total ? { max: job.total, value: job.done } : {});
    bar.setAttribute("aria-label", `Progress of ${label(job)}`);
    item.append(bar);
  }
  if (job.state === "failed" && /--series|no series/.test(job.problem ?? "")) {
    const field = element("input", { placeholder: "series number", maxLength: 64 });
    field.setAttribute("aria-label", "Number of the series");
    const form = element("form", {}, field, element("button", { text: "Use this series" }));
    form.addEventListener("submit", (event) => { event.preventDefault(); post("again", { series: field.value.trim() }); form.remove(); });
    item.append(form);
  }
  return item;
}

function describe(job) {
  if (job.state === "running") return job.total ? `predicting, slice ${job.done} of ${job.total}` : "reading";
  if (job.state === "done") return `done in ${job.seconds.toFixed(1)} s${job.corrected ? ", set by hand" : ""}`;
  if (job.state === "failed") return job.problem;
  return job.state === "cancelled" ? "canceled" : job.state;
}

const fail = (error) => { byId("sending").append(element("p", { className: "quiet", text: error.message })); };

async function drop(job) {
  if (!(await confirmed(`Delete ${label(job)}, its result and the uploaded file? This cannot be undone.`))) return;
  await ask(`/api/jobs/${job.number}`, { method: "DELETE" }).catch(fail);
  if (state.chosen === job.number) choose(null);
  await refresh();
}

byId("clear").addEventListener("click", async () => {
  if (!(await confirmed("Delete all scans and results? This cannot be undone."))) return;
  for (const job of state.jobs) await ask(`/api/jobs/${job.number}`, { method: "DELETE" }).catch(fail);
  choose(null);
  await refresh();
});

// ---- one result ---------------------------------------------------------------------------------------------

function choose(number) {
  state.chosen = number;
  state.shown = null;
  list();
  follow();
}

function pick() {
  const known = state.jobs.some(({ number }) => number === state.chosen);
  if (!known) state.chosen = (state.jobs.find((job) => job.state === "done") ?? state.jobs[0])?.number ?? null;
}

/** Show where NiiVue's crosshair is: millimeters to the patient's left or right, front or back, up or down. */
function located({ mm, vox, values }) {
  if (!state.view) return;
  const [x, y, z] = mm;
  const sides = [[x < 0 ? "left" : "right", x], [y < 0 ? "back" : "front", y], [z < 0 ? "down" : "up", z]];
  const place = sides.map(([name, value]) => `${Math.abs(value).toFixed(0)} ${name}`).join(", ");
  const marked = state.view.labels[Math.round(values[1]?.value ?? 0) - 1]?.name;
  const { plane, shape } = state.view, step = volume.slow ? state.view.reduced[2] : 1;
  const number = plane === "coronal" ? shape[0] - 1 - vox[1] * step : vox[plane === "sagittal" ? 0 : 2] * step;
  byId("where").textContent = `slice ${number} · ${place} (mm) · ${valueOf(state.view.values, values[0].value)}${marked ? ` · ${marked}` : ""}`;
}

/** Show the chosen scan's result if there is one that is not shown yet. */
async function follow() {
  const job = state.jobs.find(({ number }) => number === state.chosen);
  const mark = job?.state === "done" ? `${job.number} ${job.seconds}` : null;
  if (!mark) {
    const again = job && WAITS.includes(job.state) && state.view?.number === job.number;
    byId("handsaid").textContent = again ? "Predicting again …" : byId("handsaid").textContent;
    if (again) return;
    state.view = null;
    byId("shown").hidden = byId("facts").hidden = true;
    byId("empty").hidden = false;
    byId("empty").querySelector("p").textContent = job
      ? WAITS.includes(job.state) ? "The scan is waiting or being predicted." : job.problem ?? "The scan was canceled."
      : "Drop a scan on the left; its result appears here.";
    return;
  }
  if (state.shown === mark) return;
  state.shown = mark;
  const view = await ask(`/api/jobs/${job.number}/view`);
  // Another scan may have been chosen while this one was read.
  if (state.shown !== mark) return;
  const before = state.view;
  const again = before?.number === job.number;
  state.view = { ...view, number: job.number, best: again ? before.best : best(view) };
  state.planes = null;
  if (!again) state.z = state.view.best;
  offerWindows(byId("window"), view.values);
  byId("empty").hidden = true;
  byId("shown").hidden = byId("facts").hidden = false;
  byId("slice").max = view.shape[0] - 1;
  byId("slice").value = state.z;
  byId("tab-hand").disabled = !view.steps.reference || !view.slices?.length;
  byId("tab-hand").title = view.steps.reference ? "" : "Models of volumes do not support poses set by hand";
  if (byId("tab-hand").disabled && state.tab === "hand") openTab("scan");
  facts(job);
  if (!byId("tab-hand").disabled) { state.view.best = state.z; hand.open(state.view); }
  document.body.dataset.result = mark;
  await present();
}

/** Return the slice to show first: the middle of those with a pose. */
function best(view) {
  const slices = (view.slices ?? view.steps.slices).map(({ slice: z }) => z);
  return slices.length ? slices[Math.floor(slices.length / 2)] : Math.floor(view.shape[0] / 2);
}

const windowNow = () => state.view.values.windows[byId("window").value];
const opacityNow = () => byId("opacity").value / 100;

async function present() {
  const { view } = state;
  if (!view) return;
  if (state.tab === "scan") {
    const mark = state.shown;
    if (volume.shown !== mark) {
      volume.shown = mark;
      await volume.show(`/api/jobs/${view.number}`, view.labels, windowNow(), opacityNow());
      volume.goto(state.z, view.shape[0], view.plane);
      byId("reduced").hidden = !volume.slow || view.reduced.every((step) => step === 1);
      document.body.dataset.drawn = mark;
    }
    return;
  }
  await slice(state.z);
}

let asked = null;
async function slice(z) {
  const { view } = state;
  state.z = z;
  byId("slice").value = byId("handslice").value = z;
  byId("sliceno").textContent = byId("handno").textContent = `${z} of ${view.shape[0] - 1}`;
  asked?.abort();
  asked = new AbortController();
  try {
    const planes = await panels(`/api/jobs/${view.number}/slices/${z}`, asked.signal);
    if (state.view === view) state.planes = planes;
  } catch (error) {
    if (error.name === "AbortError") return;
    throw error;
  }
  if (state.view !== view) return;
  draw();
  poseFacts();
}

function draw() {
  if (!state.planes || !state.view) return;
  if (state.tab === "steps") {
    steps.draw(state.view, state.z, state.planes, windowNow(), opacityNow());
    byId("steps").dataset.slice = state.z;
  }
  if (state.tab === "hand") hand.draw(state.planes, windowNow());
}

byId("slice").addEventListener("input", (event) => slice(Number(event.target.value)));
byId("steps").addEventListener("wheel", (event) => {
  event.preventDefault();
  const z = state.z - Math.sign(event.deltaY);
  if (z >= 0 && z < state.view.shape[0]) slice(z);
}, { passive: false });
byId("window").addEventListener("change", () => { if (!state.view) return; volume.window(windowNow()); draw(); });
byId("opacity").addEventListener("input", () => { volume.opacity(opacityNow()); draw(); });
byId("planes").addEventListener("change", (event) => volume.planes(event.target.value));

async function again(correction) {
  byId("handsaid").textContent = "Predicting again …";
  try {
    await ask(`/api/jobs/${state.view.number}/again`, { method: "POST", body: { correction } });
    await refresh();
  } catch (error) {
    byId("handsaid").textContent = error.message;
  }
}

// ---- facts --------------------------------------------------------------------------------------------------

function facts(job) {
  const { view } = state;
  byId("title").textContent = label(job);
  byId("legend").replaceChildren(...legend(view.labels));
  const lines = view.warnings.map((text) => element("li", { text }));
  byId("warnings").replaceChildren(...(lines.length ? lines : [element("li", { className: "fine", text: "No warnings." })]));
  byId("volumes").tBodies[0].replaceChildren(...Object.entries(view.volumes_ml).map(([name, ml]) =>
    element("tr", {}, element("td", { text: name }), element("td", { text: ml.toFixed(1) }))));
  byId("downloads").replaceChildren(...view.downloads.map((kind) =>
    element("a", { href: `/api/jobs/${job.number}/download/${kind}?names=${names.checked}`, text: KINDS[kind], download: "" })));
  poseFacts();
}

function poseFacts() {
  const { view } = state, rows = [];
  const entry = view.slices?.find(({ slice: z }) => z === state.z);
  const degrees = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(1)}°`;
  if (entry) {
    rows.push(["Slice", state.z], ["Roll", degrees(entry.roll_degrees)], ["Size across", entry.scale_x.toFixed(2)], ["Size front–back", entry.scale_y.toFixed(2)]);
    rows.push(["Confidence", entry.confidence.toFixed(2), entry.confidence < view.min_confidence]);
    rows.push(["Agreement", entry.agreement.toFixed(2), entry.agreement < view.min_agreement], ["Pose from", entry.pose_from]);
  } else if (view.scales) {
    for (const axis of ["roll", "pitch", "yaw"]) rows.push([axis[0].toUpperCase() + axis.slice(1), degrees(view[`${axis}_degrees`])]);
    rows.push(["Sizes", view.scales.map((value) => value.toFixed(2)).join(" × ")], ["Confidence", view.confidence.toFixed(2), view.confidence < view.min_confidence]);
  } else {
    rows.push(["Slice", state.z], ["Body", "none in this slice"]);
  }
  rows.push(["Voxels", [...view.shape].reverse().join(" × ")], ["Voxel, mm", view.spacing.map((value) => value.toFixed(2)).join(" × ")]);
  byId("pose").replaceChildren(...rows.flatMap(([name, value, low]) =>
    [element("dt", { text: name }), element("dd", { text: low ? `${value} (low)` : value, className: low ? "low" : "" })]));
}

refresh();
