// A pose and a crop set by hand: outlines that are dragged over the scan, and numbers for the keyboard.
import { apply, fromMm, matrix, toMm } from "/static/geometry.js";
import { COLORS, cropSquare, line, onNative, onSquare, paint } from "/static/steps.js";

const PIXELS = 320;
const byId = (id) => document.getElementById(id);
/** Format a number; zero has no sign. */
const fixed = (value, digits) => (Math.round(value * 10 ** digits) / 10 ** digits || 0).toFixed(digits);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const same = ([a, b], [c, d], reach) => Math.hypot(a - c, b - d) < reach;

export class HandView {
  /** changed: called with the new slice; predict: called with the correction, or with "as found" to remove it. */
  constructor({ changed, predict }) {
    this.changed = changed;
    this.predict = predict;
    this.pose = byId("posecanvas");
    this.crop = byId("cropcanvas");
    this.slider = byId("handslice");
    this.slider.addEventListener("input", () => this.goto(Number(this.slider.value)));
    for (const id of ["roll", "sx", "sy", "tx", "ty"]) byId(id).addEventListener("input", () => this.fromFields());
    byId("usecrop").addEventListener("change", () => this.edited());
    for (const id of ["scope-all", "scope-keys"]) byId(id).addEventListener("change", () => this.edited());
    byId("setkey").addEventListener("click", () => { this.keep(); this.edited(); });
    byId("asfound").addEventListener("click", () => this.reset());
    byId("handform").addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    this.drag(this.pose, (p) => this.grabPose(p));
    this.drag(this.crop, (p) => this.grabCrop(p));
    this.pose.addEventListener("keydown", (event) => this.key(event, 2));
    this.crop.addEventListener("keydown", (event) => this.key(event, 0));
  }

  open(view) {
    this.view = view;
    this.keys = new Map();
    this.touched = false;
    this.planes = null;
    this.slider.max = view.shape[0] - 1;
    this.z = view.best;
    this.slider.value = this.z;
    byId("usecrop").checked = false;
    byId("usecrop").disabled = !view.steps.crop_enabled;
    byId("scope-all").checked = true;
    this.size = [1, 0].map((axis) => Math.max(...view.steps.outline.flat().map((p) => Math.abs(p[1 - axis]))));
    this.load();
    byId("handsaid").textContent = view.corrected ? "This result was predicted with a pose set by hand." : "";
  }

  /** Return the predicted pose of the slice, or of the nearest one that shows a body. */
  found(z) {
    const slices = this.view.slices;
    return slices.reduce((a, b) => (Math.abs(b.slice - z) < Math.abs(a.slice - z) ? b : a));
  }

  load() {
    const keys = [...this.keys.entries()].sort(([a], [b]) => a - b);
    if (keys.length) {
      const above = keys.find(([z]) => z >= this.z) ?? keys.at(-1);
      const below = keys.findLast(([z]) => z <= this.z) ?? keys[0];
      const part = above[0] === below[0] ? 0 : (this.z - below[0]) / (above[0] - below[0]);
      const mix = (a, b) => a.map((value, k) => value + part * (b[k] - value));
      this.now = { pose: mix(below[1].pose, above[1].pose), box: mix(below[1].box, above[1].box) };
    } else {
      const entry = this.found(this.z);
      const [[scale, , x], [, , y]] = entry.homogenized_from_crop;
      this.now = { pose: [...entry.pose], box: [scale, x, y] };
    }
    this.toFields();
  }

  reset() {
    this.keys.clear();
    this.touched = false;
    byId("usecrop").checked = false;
    byId("scope-all").checked = true;
    this.load();
    this.edited();
    if (this.view.corrected) this.predict("as found");
  }

  goto(z) {
    const everywhere = byId("scope-all").checked;
    this.z = z;
    // A pose that is edited for all slices stays when the slice changes.
    if (!everywhere || !this.touched) {
      this.load();
      this.touched = false;
    }
    this.changed(z);
  }

  keep() {
    this.keys.set(this.z, { pose: [...this.now.pose], box: [...this.now.box] });
    this.touched = false;
  }

  submit() {
    const all = byId("scope-all").checked;
    if (all) this.keys.clear();
    // Include the pose on the screen, even if it was not set at this slice.
    if (all || !this.keys.size || this.touched) this.keep();
    const keys = [...this.keys.entries()].sort(([a], [b]) => a - b);
    const correction = { poses: keys.map(([slice, { pose }]) => ({ slice, pose })) };
    if (byId("usecrop").checked) {
      correction.crops = keys.map(([slice, { box: [scale, x, y] }]) => ({ slice, scale, x, y }));
    }
    this.predict(correction);
  }

  toFields() {
    const [angle, lx, ly, tx, ty] = this.now.pose;
    const half = this.view.frame.fov_mm / 2;
    byId("roll").value = fixed((angle * 180) / Math.PI, 1);
    byId("sx").value = Math.exp(lx).toFixed(3);
    byId("sy").value = Math.exp(ly).toFixed(3);
    byId("tx").value = fixed(tx * half, 1);
    byId("ty").value = fixed(ty * half, 1);
  }

  fromFields() {
    const half = this.view.frame.fov_mm / 2;
    const values = ["roll", "sx", "sy", "tx", "ty"].map((id) => Number(byId(id).value));
    if (values.some((value) => !Number.isFinite(value)) || values[1] <= 0 || values[2] <= 0) return;
    this.now.pose = [(values[0] * Math.PI) / 180, Math.log(values[1]), Math.log(values[2]), values[3] / half, values[4] / half];
    this.touched = true;
    this.edited();
  }

  key(event, first) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const step = event.shiftKey ? 0.05 : 0.01;
    if (first) {
      this.now.pose[3] += step * move[0];
      this.now.pose[4] += step * move[1];
    } else {
      this.setBox([this.now.box[0], this.now.box[1] + step * move[0], this.now.box[2] + step * move[1]]);
    }
    this.touched = true;
    this.toFields();
    this.edited();
  }

  setBox([scale, x, y]) {
    this.now.box = [clamp(scale, 0.25, 1), clamp(x, -1, 1), clamp(y, -1, 1)];
    byId("usecrop").checked = true;
  }

  drag(canvas, grab) {
    let move = null;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.planes) return;
      move = grab(place(event));
      if (move) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!move) return;
      move(place(event));
      this.touched = true;
      this.toFields();
      this.edited();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { move = null; });
  }

  handles() {
    const theta = matrix(this.now.pose), [width, depth] = this.size;
    const at = (p) => onNative(this.pose, this.view, apply(theta, p));
    return { turn: at([0, -depth - 0.2]), across: at([width, 0]), through: at([0, depth]) };
  }

  frameOf([x, y]) {
    const [, rows, columns] = this.view.shape;
    const mm = [((x / this.pose.width) * columns - 0.5) * this.view.spacing[0], ((y / this.pose.height) * rows - 0.5) * this.view.spacing[1]];
    return fromMm(this.view.frame, mm);
  }

  grabPose(start) {
    const handles = this.handles(), reach = this.pose.width * 0.035, before = [...this.now.pose];
    const local = (p) => {
      const [x, y] = this.frameOf(p), [angle, , , tx, ty] = before;
      const c = Math.cos(angle), s = Math.sin(angle);
      return [c * (x - tx) + s * (y - ty), -s * (x - tx) + c * (y - ty)];
    };
    if (same(start, handles.turn, reach)) {
      return (p) => {
        const [x, y] = this.frameOf(p);
        const angle = Math.atan2(x - before[3], -(y - before[4]));
        // Add the shortest turn, so that the angle does not jump by a full turn.
        this.now.pose[0] = before[0] + Math.atan2(Math.sin(angle - before[0]), Math.cos(angle - before[0]));
      };
    }
    if (same(start, handles.across, reach)) {
      return (p) => { this.now.pose[1] = Math.log(Math.max(local(p)[0] / this.size[0], 0.05)); };
    }
    if (same(start, handles.through, reach)) {
      return (p) => { this.now.pose[2] = Math.log(Math.max(local(p)[1] / this.size[1], 0.05)); };
    }
    const [fx, fy] = this.frameOf(start);
    return (p) => {
      const [x, y] = this.frameOf(p);
      this.now.pose[3] = before[3] + x - fx;
      this.now.pose[4] = before[4] + y - fy;
    };
  }

  grabCrop([px, py]) {
    if (!this.view.steps.crop_enabled) return null;
    const at = ([x, y]) => [(2 * x) / this.crop.width - 1, (2 * y) / this.crop.height - 1];
    const [sx, sy] = at([px, py]), [scale, x, y] = this.now.box;
    if (same([sx, sy], [x + scale, y + scale], 0.1)) {
      return (p) => { const q = at(p); this.setBox([Math.max(q[0] - x, q[1] - y), x, y]); };
    }
    return (p) => { const q = at(p); this.setBox([scale, x + q[0] - sx, y + q[1] - sy]); };
  }

  edited() {
    const all = byId("scope-all").checked;
    byId("setkey").hidden = all;
    const set = [...this.keys.keys()].sort((a, b) => a - b);
    byId("keys").textContent = all || !set.length ? "" : `Set for slice ${set.join(", ")}`;
    if (this.planes) this.draw(this.planes, this.window);
  }

  draw(planes, window) {
    Object.assign(this, { planes, window });
    const { view, now } = this, scale = Math.max(1, Math.round(640 / planes.native.shape[1]));
    const context = paint(this.pose, planes.native, window, null, [], 0, scale, view.spacing[1] / view.spacing[0]);
    const theta = matrix(now.pose);
    const on = (p) => onNative(this.pose, view, apply(theta, p));
    for (const outline of view.steps.outline) line(context, outline.map(on), COLORS.reference, { width: 3 });
    const square = cropSquare([[now.box[0], 0, now.box[1]], [0, now.box[0], now.box[2]]]);
    if (view.steps.crop_enabled) line(context, square.map(on), COLORS.crop);
    const { turn, across, through } = this.handles();
    line(context, [on([0, 0]), turn], COLORS.reference, { closed: false, dash: [6, 5] });
    context.fillStyle = COLORS.reference;
    for (const [x, y] of [across, through]) context.fillRect(x - 7, y - 7, 14, 14);
    context.beginPath();
    context.arc(...turn, 9, 0, 2 * Math.PI);
    context.fill();
    const seen = paint(this.crop, this.homogenized(theta), window, null, [], 0, 1.5);
    for (const outline of view.steps.outline) line(seen, outline.map((p) => onSquare(this.crop, p)), COLORS.reference);
    if (!view.steps.crop_enabled) return;
    const corners = square.map((p) => onSquare(this.crop, p));
    line(seen, corners, COLORS.crop, { width: 3 });
    seen.fillStyle = COLORS.crop;
    seen.fillRect(corners[2][0] - 7, corners[2][1] - 7, 14, 14);
  }

  /** Return the slice in the current pose, by nearest neighbor: a preview only. */
  homogenized(theta) {
    const { data, shape: [rows, columns] } = this.planes.native;
    const { view } = this, out = new Int16Array(PIXELS * PIXELS).fill(Math.max(this.window[0], -32768));
    for (let row = 0; row < PIXELS; row++) {
      for (let column = 0; column < PIXELS; column++) {
        const p = [(2 * column + 1) / PIXELS - 1, (2 * row + 1) / PIXELS - 1];
        const [x, y] = toMm(view.frame, apply(theta, p));
        const i = Math.round(x / view.spacing[0]), j = Math.round(y / view.spacing[1]);
        if (i >= 0 && j >= 0 && i < columns && j < rows) out[row * PIXELS + column] = data[j * columns + i];
      }
    }
    return { data: out, shape: [PIXELS, PIXELS] };
  }
}
