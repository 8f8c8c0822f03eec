// The steps of one slice side by side: input, homogenized, cropped, prediction, restored.
import { rgb } from "/static/api.js";
import { apply, flat, matrix, toMm, SQUARE } from "/static/geometry.js";
import { arrange } from "/static/shared.js";

export const COLORS = { frame: "#56b4e9", reference: "#ff8fc7", crop: "#ff9f50" };

/** Draw values in a window, and classes over them, on a canvas of the slice's pixels times scale. */
export function paint(canvas, plane, window, classes, colors, opacity, scale = 1, tall = 1) {
  const [rows, columns] = plane.shape;
  const own = document.createElement("canvas");
  own.width = columns; own.height = rows;
  const context = own.getContext("2d");
  const image = context.createImageData(columns, rows);
  const [low, high] = window, factor = 255 / (high - low);
  for (let k = 0; k < plane.data.length; k++) {
    const gray = Math.max(0, Math.min(255, (plane.data[k] - low) * factor));
    const label = classes ? classes.data[k] : 0;
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * k + channel] = label ? gray * (1 - opacity) + colors[label - 1][channel] * opacity : gray;
    }
    image.data[4 * k + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  // Outlines need more pixels than a small slice has; tall is the ratio of the spacings.
  canvas.width = Math.round(columns * scale);
  canvas.height = Math.round(rows * scale * tall);
  const drawn = canvas.getContext("2d");
  drawn.imageSmoothingEnabled = true;
  drawn.drawImage(own, 0, 0, canvas.width, canvas.height);
  return drawn;
}

export function line(context, points, color, { closed = true, dash = [], width = 2 } = {}) {
  context.save();
  context.strokeStyle = color;
  context.lineWidth = width;
  context.setLineDash(dash);
  context.beginPath();
  points.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y)));
  if (closed) context.closePath();
  context.stroke();
  context.restore();
}

/** Convert normalized coordinates of a square that fills a canvas to its pixels. */
export const onSquare = (canvas, [x, y]) => [((x + 1) / 2) * canvas.width, ((y + 1) / 2) * canvas.height];

/** Convert normalized coordinates of the frame to pixels of the native slice's canvas. */
export function onNative(canvas, view, point) {
  const [x, y] = toMm(view.frame, point);
  const [, rows, columns] = view.shape;
  return [((x / view.spacing[0] + 0.5) / columns) * canvas.width, ((y / view.spacing[1] + 0.5) / rows) * canvas.height];
}

export function cropSquare(theta2) {
  const [[across, , x], [, through, y]] = theta2;
  return SQUARE.map(([a, b]) => [across * a + x, through * b + y]);
}

export class StepsView {
  constructor(place) {
    this.place = place;
    this.canvases = {};
    for (const [name, caption] of [
      ["native", "Input"], ["homogenized", "Homogenized"], ["crop", "Cropped"], ["predicted", "Prediction in the crop"], ["restored", "Restored"],
    ]) {
      const figure = document.createElement("figure");
      figure.className = `step-${name}`;
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", caption);
      const legend = document.createElement("figcaption");
      legend.textContent = caption;
      figure.append(canvas, legend);
      place.append(figure);
      this.canvases[name] = canvas;
    }
    this.arrange = arrange(place);
  }

  draw(view, z, planes, window, opacity) {
    const colors = view.labels.map(({ color }) => rgb(color));
    const { native, homogenized, crop, predicted, restored } = this.canvases;
    const entry = (view.slices ?? view.steps.slices).find(({ slice }) => slice === z);
    const scale = Math.max(1, Math.round(560 / planes.native.shape[1]));
    const tall = view.spacing[1] / view.spacing[0];
    const context = paint(native, planes.native, window, null, colors, 0, scale, tall);
    paint(restored, planes.native, window, planes.labels, colors, opacity, scale, tall);
    for (const [name, canvas] of Object.entries(this.canvases)) {
      const known = ["native", "restored"].includes(name) || (planes.homogenized && entry);
      canvas.parentElement.hidden = !known;
    }
    if (!planes.homogenized || !entry) return this.arrange();
    const theta1 = entry.pose ? matrix(entry.pose) : flat(entry.frame_from_homogenized);
    line(context, SQUARE.map((p) => onNative(native, view, apply(theta1, p))), COLORS.frame);
    for (const outline of view.steps.outline) {
      line(context, outline.map((p) => onNative(native, view, apply(theta1, p))), COLORS.reference);
    }
    const square = cropSquare(entry.homogenized_from_crop);
    line(context, square.map((p) => onNative(native, view, apply(theta1, p))), COLORS.crop);
    // The networks see intensities clipped to the range of their training; values below it are air.
    const [low, high] = view.steps.window;
    const seen = [Math.max(window[0], low), Math.max(Math.min(window[1], high), low + 1)];
    const over = paint(homogenized, planes.homogenized, seen, null, colors, 0, 2);
    for (const outline of view.steps.outline) line(over, outline.map((p) => onSquare(homogenized, p)), COLORS.reference);
    line(over, square.map((p) => onSquare(homogenized, p)), COLORS.crop);
    const larger = Math.max(1, Math.round(512 / planes.crop.shape[1]));
    paint(crop, planes.crop, seen, null, colors, 0, larger);
    paint(predicted, planes.crop, seen, planes.crop_labels, colors, opacity, larger);
    this.arrange();
  }
}
