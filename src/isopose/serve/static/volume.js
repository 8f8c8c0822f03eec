// The scan and its labels in NiiVue: three planes and 3D.
import { MULTIPLANAR_TYPE, NVImage, Niivue, SHOW_RENDER } from "/static/niivue/niivue.js";
import { rgb } from "/static/api.js";

export class VolumeView {
  constructor(canvas, moved) {
    this.canvas = canvas;
    this.viewer = new Niivue({
      show3Dcrosshair: true,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isOrientationTextVisible: true,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      backColor: [0.024, 0.035, 0.047, 1],
      crosshairColor: [0.34, 0.71, 0.91, 0.7],
      crosshairWidth: 1,
      dragAndDropEnabled: false,
      loadingText: "",
      logLevel: "error",
    });
    this.viewer.onLocationChange = (place) => moved(place);
    this.ready = this.viewer.attachToCanvas(canvas);
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** Whether the browser draws without a GPU; a large scan then takes a minute. */
  get slow() {
    const { gl } = this.viewer;
    const info = gl.getExtension("WEBGL_debug_renderer_info");
    return /swiftshader|llvmpipe|software|basic render/i.test(info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "");
  }

  /** Show a scan and one of its label maps, in the labels' colors. */
  async show(base, labels, window, opacity, map = "labels") {
    await this.ready;
    // Never show the previous scan under the name of this one; if two load at once, show the later.
    this.canvas.style.visibility = "hidden";
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const which = this.slow ? "?reduced=true" : "";
    const volumes = [await NVImage.loadFromUrl({ url: `${base}/scan.nii${which}`, name: "scan.nii", colormap: "gray", cal_min: window[0], cal_max: window[1] })];
    if (labels.length) {
      const marked = await NVImage.loadFromUrl({ url: `${base}/${map}.nii${which}`, name: "labels.nii", opacity });
      const colors = labels.map(({ color }) => rgb(color));
      const channel = (k) => [0, ...colors.map((color) => color[k])];
      marked.setColormapLabel({
        R: channel(0), G: channel(1), B: channel(2), A: [0, ...colors.map(() => 255)],
        I: [0, ...colors.map((_, k) => k + 1)], labels: ["", ...labels.map(({ name }) => name)],
      });
      volumes.push(marked);
    }
    if (turn !== this.turn) return;
    // Both at once: each addVolume uploads all volumes to the GPU again.
    Object.assign(this.viewer, { volumes, back: volumes[0], overlays: volumes.slice(1) });
    this.viewer.updateGLVolume();
    this.canvas.style.visibility = "visible";
  }

  window([low, high]) {
    if (!this.viewer.volumes.length) return;
    Object.assign(this.viewer.volumes[0], { cal_min: low, cal_max: high });
    this.viewer.updateGLVolume();
  }

  opacity(value) {
    if (this.viewer.volumes.length > 1) this.viewer.setOpacity(1, value);
  }

  planes(name) {
    const { sliceTypeMultiplanar, sliceTypeAxial, sliceTypeCoronal, sliceTypeSagittal, sliceTypeRender } = this.viewer;
    const kinds = { all: sliceTypeMultiplanar, axial: sliceTypeAxial, coronal: sliceTypeCoronal, sagittal: sliceTypeSagittal, render: sliceTypeRender };
    this.viewer.setSliceType(kinds[name]);
  }

  /** Move and turn together with another view. */
  together(other) {
    this.viewer.broadcastTo([other.viewer], { "2d": true, "3d": true });
    other.viewer.broadcastTo([this.viewer], { "2d": true, "3d": true });
  }

  /** Move the crosshair to a slice of a plane, counted toward the head, the back or the right. */
  goto(z, slices, plane = "axial") {
    const place = [...this.viewer.scene.crosshairPos], part = (z + 0.5) / slices;
    // NiiVue's axes run to the right, the front and the head.
    if (plane === "coronal") place[1] = 1 - part;
    else place[plane === "sagittal" ? 0 : 2] = part;
    this.viewer.scene.crosshairPos = place;
    this.viewer.createOnLocationChange();
    this.viewer.drawScene();
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    this.viewer.moveCrosshairInVox(...move);
    this.viewer.sync();
  }
}
