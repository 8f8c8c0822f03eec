// theta1 = T · R · S and millimeters, as in geometry/pose.py and geometry/frame.py.

/** Return a pose's matrix as [a, b, c, d, tx, ty]: x' = a x + b y + tx, y' = c x + d y + ty. */
export function matrix([angle, lx, ly, tx, ty]) {
  const c = Math.cos(angle), s = Math.sin(angle), sx = Math.exp(lx), sy = Math.exp(ly);
  return [c * sx, -s * sy, s * sx, c * sy, tx, ty];
}

/** Return the numbers [a, b, c, d, tx, ty] of a matrix of two rows. */
export const flat = ([[a, b, tx], [c, d, ty]]) => [a, b, c, d, tx, ty];

export const apply = ([a, b, c, d, tx, ty], [x, y]) => [a * x + b * y + tx, c * x + d * y + ty];

/** Convert the frame's normalized coordinates to millimeters in the plane of the slice, and back. */
export const toMm = (frame, [x, y]) => [0, 1].map((k) => frame.center_mm[k] + (frame.fov_mm / 2) * [x, y][k]);
export const fromMm = (frame, [x, y]) => [0, 1].map((k) => ([x, y][k] - frame.center_mm[k]) / (frame.fov_mm / 2));

export const SQUARE = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
