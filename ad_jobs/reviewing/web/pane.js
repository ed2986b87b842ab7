// One picture with its heatmap on a canvas: window and level, zoom and pan are shared by all panes.

export const newView = () => ({ low: 0, high: 1, zoom: 1, x: 0, y: 0, opacity: 0.7, hidden: false });

const MAX_ZOOM = 64;
// Where a picture would be.
const EMPTY = "#3a3a3a";

export class Pane {
  constructor(view, colours, onChange) {
    this.view = view;
    this.colours = colours;
    this.onChange = onChange;
    this.element = document.createElement("figure");
    this.caption = this.element.appendChild(document.createElement("figcaption"));
    this.canvas = this.element.appendChild(document.createElement("canvas"));
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "No picture yet");
    this.note = this.element.appendChild(document.createElement("p"));
    this.note.className = "note";
    this.note.setAttribute("role", "status");
    this.#listen();
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.canvas);
  }

  close() {
    this.sizes.disconnect();
    this.element.remove();
  }

  // Something is on its way: what was shown before stays until then.
  loading() {
    this.canvas.setAttribute("aria-label", "Loading");
    this.note.textContent = "Loading…";
  }

  // What is shown: samples of the picture and of the heatmap, each null where there is none, and what to say.
  show(picture, heatmap, label, notes) {
    this.picture = picture;
    // Without a picture the heatmap stands alone, in the frame's shape.
    this.shape = picture ?? heatmap;
    this.heat = heatmap && this.#coloured(heatmap);
    this.windowed = null;
    this.canvas.setAttribute("aria-label", label);
    this.note.textContent = notes.join(" ");
    this.draw();
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.#draw());
  }

  // Pixels of the canvas for one of the picture, and where its corner lies.
  #placed() {
    const { width, height } = this.canvas;
    const { columns, rows } = this.shape;
    const scale = Math.min(width / columns, height / rows) * this.view.zoom;
    const ratio = devicePixelRatio;
    return { scale, x: (width - columns * scale) / 2 + this.view.x * ratio, y: (height - rows * scale) / 2 + this.view.y * ratio };
  }

  #draw() {
    const box = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.max(1, Math.round(box.width * devicePixelRatio));
    this.canvas.height = Math.max(1, Math.round(box.height * devicePixelRatio));
    if (!this.shape) return;
    const context = this.canvas.getContext("2d");
    const { scale, x, y } = this.#placed();
    const { columns, rows } = this.shape;
    // Single pixels are to be seen as what they are.
    context.imageSmoothingEnabled = scale < 3;
    context.imageSmoothingQuality = "high";
    if (this.picture) context.drawImage(this.#windowed(), x, y, columns * scale, rows * scale);
    else {
      context.fillStyle = EMPTY;
      context.fillRect(x, y, columns * scale, rows * scale);
    }
    if (!this.heat || this.view.hidden) return;
    // Stretched linearly over the whole frame, as on the source.
    context.imageSmoothingEnabled = true;
    context.globalAlpha = this.view.opacity;
    context.drawImage(this.heat, x, y, columns * scale, rows * scale);
  }

  #windowed() {
    const key = `${this.view.low} ${this.view.high}`;
    if (this.windowed?.key === key) return this.windowed.canvas;
    const { width, height, values, colour } = this.picture;
    const levels = colour ? 256 : 65536;
    const low = this.view.low * (levels - 1);
    const span = Math.max((this.view.high - this.view.low) * (levels - 1), 1e-9);
    const table = new Uint8ClampedArray(levels);
    for (let i = 0; i < levels; i++) table[i] = ((i - low) / span) * 255;
    const canvas = this.windowed?.canvas ?? new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const { data } = image;
    if (colour) for (let i = 0, o = 0; i < values.length; o += 4) {
      data[o] = table[values[i++]];
      data[o + 1] = table[values[i++]];
      data[o + 2] = table[values[i++]];
      data[o + 3] = 255;
    }
    else for (let i = 0, o = 0; i < values.length; i++, o += 4) {
      data[o] = data[o + 1] = data[o + 2] = table[values[i]];
      data[o + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    this.windowed = { key, canvas };
    return canvas;
  }

  // As ad_jobs.page.colours.overlay: cold is transparent.
  #coloured({ width, height, values }) {
    const { table, cold, warm } = this.colours;
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    for (let i = 0; i < values.length; i++) {
      const value = values[i] / 65535;
      const [r, g, b] = table[Math.round(value * (table.length - 1))];
      image.data.set([r, g, b, 255 * Math.min(1, Math.max(0, (value - cold) / (warm - cold)))], 4 * i);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  zoomBy(factor, clientX = null, clientY = null) {
    const box = this.canvas.getBoundingClientRect();
    const zoom = Math.min(MAX_ZOOM, Math.max(1, this.view.zoom * factor));
    const grown = zoom / this.view.zoom;
    // What lies under the pointer stays there.
    const px = clientX === null ? 0 : clientX - box.left - box.width / 2;
    const py = clientY === null ? 0 : clientY - box.top - box.height / 2;
    this.view.x = zoom === 1 ? 0 : px - (px - this.view.x) * grown;
    this.view.y = zoom === 1 ? 0 : py - (py - this.view.y) * grown;
    this.view.zoom = zoom;
    this.onChange();
  }

  #listen() {
    const { canvas, view } = this;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      canvas.focus();
      this.drag = { x: event.clientX, y: event.clientY, pans: event.button !== 0 || event.shiftKey };
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.drag) return;
      const dx = event.clientX - this.drag.x;
      const dy = event.clientY - this.drag.y;
      Object.assign(this.drag, { x: event.clientX, y: event.clientY });
      if (this.drag.pans) {
        view.x += dx;
        view.y += dy;
      } else {
        // Right widens the window, up brightens.
        const width = Math.min(4, Math.max(1 / 4096, (view.high - view.low) * Math.exp(dx / 250)));
        const level = (view.low + view.high) / 2 + (dy / 500) * Math.max(width, 0.05);
        view.low = level - width / 2;
        view.high = level + width / 2;
      }
      this.onChange();
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (this.drag = null));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey || event.metaKey) this.zoomBy(Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
      else canvas.dispatchEvent(new CustomEvent("slice", { bubbles: true, detail: Math.sign(event.deltaY) }));
    }, { passive: false });
  }
}
