"use strict";
// A scatter plot on a canvas: thousands of points, hover, lasso, and arrow keys from point to point.
// Plotly's WebGL traces compile code from strings, which the page's security policy forbids.
const SHAPES = [
  (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
  (r) => `M${-0.88 * r},${-0.88 * r}h${1.76 * r}v${1.76 * r}h${-1.76 * r}z`,
  (r) => `M0,${-1.2 * r}L${1.1 * r},${0.8 * r}H${-1.1 * r}z`,
  (r) => `M0,${-1.25 * r}L${1.25 * r},0L0,${1.25 * r}L${-1.25 * r},0z`,
  (r) => `M0,${1.2 * r}L${1.1 * r},${-0.8 * r}H${-1.1 * r}z`,
  (r) => {
    const [a, b] = [0.42 * r, 1.2 * r];
    return `M${-a},${-b}h${2 * a}v${b - a}h${b - a}v${2 * a}h${a - b}v${b - a}h${-2 * a}v${a - b}h${a - b}v${-2 * a}h${b - a}z`;
  },
];
const shapePath = (shape, radius) => SHAPES[shape % SHAPES.length](radius);

class Scatter {
  // handlers: hover(index | -1), move(index), pick(index | -1), lasso(indices), clear()
  constructor(host, handlers) {
    this.host = host;
    this.handlers = handlers;
    this.data = null;
    this.marks = [];
    this.base = host.appendChild(document.createElement("canvas"));
    this.top = host.appendChild(document.createElement("canvas"));
    for (const canvas of [this.base, this.top]) canvas.setAttribute("aria-hidden", "true");
    this.cursor = -1;
    this.order = new Uint32Array();
    new ResizeObserver(() => this.resize()).observe(host);
    this.#listen();
  }

  // data: x, y, colours (an entry a point), shapes, faded; colours of the page in `ink`;
  // `axes` gives both directions a scale, without it they have none and share one unit.
  set(data) {
    if (this.order.length !== data.x.length) this.order = Scatter.#shuffled(data.x.length);
    this.data = data;
    this.resize();
  }

  // The same order each time, and of no class: the last ones drawn hide the others.
  static #shuffled(n) {
    const order = Uint32Array.from({ length: n }, (_, i) => i);
    let state = 12345;
    for (let i = n - 1; i > 0; i--) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const j = state % (i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  resize() {
    // Whole pixels, so that equal maps in columns of unequal fractions are equal pictures.
    const box = this.host.getBoundingClientRect();
    const [width, height] = [Math.floor(box.width), Math.floor(box.height)];
    if (!this.data || width < 10) return;
    const ratio = Math.min(3, Math.max(2, window.devicePixelRatio || 1)); // paper is finer than screens
    for (const canvas of [this.base, this.top]) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
    }
    this.base.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    [this.width, this.height] = [width, height];
    this.#place();
    this.draw();
  }

  #place() {
    const { x, y, axes } = this.data;
    const pad = axes ? { l: 46, r: 10, t: 10, b: 38 } : { l: 10, r: 10, t: 10, b: 10 };
    const [w, h] = [this.width - pad.l - pad.r, this.height - pad.t - pad.b];
    if (axes) {
      this.toX = (v) => pad.l + (w * (v - axes.x.low)) / (axes.x.high - axes.x.low);
      this.toY = (v) => pad.t + h - (h * (v - axes.y.low)) / (axes.y.high - axes.y.low);
    } else {
      const side = Math.min(w, h);
      this.toX = (v) => pad.l + (w - side) / 2 + side * v;
      this.toY = (v) => pad.t + (h + side) / 2 - side * v;
    }
    this.pad = pad;
    this.px = Float32Array.from(x, this.toX);
    this.py = Float32Array.from(y, this.toY);
  }

  draw() {
    if (!this.data || !this.px) return;
    const context = this.base.getContext("2d");
    context.clearRect(0, 0, this.width, this.height);
    if (this.data.axes) this.#drawAxes(context);
    const radius = this.width < 260 ? 2.4 : 3.1;
    const paths = SHAPES.map((_, shape) => new Path2D(shapePath(shape, radius)));
    for (const wantFaded of [true, false]) {
      context.globalAlpha = wantFaded ? 0.35 : 0.85;
      for (const i of this.order) {
        if (Boolean(this.data.faded[i]) !== wantFaded) continue;
        context.save();
        context.translate(this.px[i], this.py[i]);
        context.fillStyle = wantFaded ? this.data.ink.faded : this.data.colours[i];
        context.fill(paths[this.data.shapes[i] % paths.length]);
        context.restore();
      }
    }
    context.globalAlpha = 1;
    this.drawMarks();
  }

  #drawAxes(context) {
    const { axes, ink } = this.data;
    const [left, bottom] = [this.pad.l, this.height - this.pad.b];
    context.font = "11px system-ui, sans-serif";
    context.lineWidth = 1;
    context.fillStyle = ink.soft;
    context.strokeStyle = ink.grid;
    context.textAlign = "center";
    for (const v of axes.x.ticks) {
      context.fillText(axes.x.format(v), this.toX(v), bottom + 14);
      context.strokeRect(this.toX(v), this.pad.t, 0, bottom - this.pad.t);
    }
    context.fillText(axes.x.title, (left + this.width - this.pad.r) / 2, bottom + 31);
    context.textAlign = "right";
    for (const v of axes.y.ticks) {
      context.fillText(axes.y.format(v), left - 6, this.toY(v) + 4);
      context.strokeRect(left, this.toY(v), this.width - this.pad.r - left, 0);
    }
  }

  // marks: { index, kind: "main" | "near" }, `trail` a line from another place in data units.
  mark(marks, trail = null) {
    this.marks = marks;
    this.trail = trail;
    this.drawMarks();
  }

  drawMarks(lasso = null) {
    if (!this.data || !this.px) return;
    const sheet = new OffscreenCanvas(this.top.width, this.top.height);
    const context = sheet.getContext("2d");
    context.scale(sheet.width / this.width, sheet.height / this.height);
    const { ink } = this.data;
    const main = this.marks.find((mark) => mark.kind === "main");
    if (this.trail && main) {
      context.setLineDash([4, 3]);
      this.#stroke(context, `M${this.toX(this.trail[0])},${this.toY(this.trail[1])}L${this.px[main.index]},${this.py[main.index]}`, 1.4);
      context.setLineDash([]);
      this.#ring(context, this.toX(this.trail[0]), this.toY(this.trail[1]), 3.5, 1.4);
    }
    for (const { index, kind } of this.marks) {
      if (kind === "near") this.#ring(context, this.px[index], this.py[index], 5.5, 1.3);
    }
    if (main) {
      const [x, y] = [this.px[main.index], this.py[main.index]];
      context.fillStyle = this.data.colours[main.index];
      context.fill(new Path2D(`M${x},${y}m-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z`));
      this.#ring(context, x, y, 8, 2.4);
    }
    if (lasso) {
      context.globalAlpha = 0.12;
      context.fillStyle = ink.text;
      const path = `M${lasso.map((p) => p.join(",")).join("L")}z`;
      context.fill(new Path2D(path));
      context.globalAlpha = 1;
      this.#stroke(context, path, 1.2);
    }
    // Handed over as a picture: Chromium prints a canvas by repeating its strokes, and clearing it
    // is one of them: white paint over the points below.
    this.top.getContext("bitmaprenderer").transferFromImageBitmap(sheet.transferToImageBitmap());
  }

  // A line with the page's colour around it, so that it is seen on points of any colour.
  #stroke(context, path, width) {
    for (const [colour, extra] of [[this.data.ink.page, 2.5], [this.data.ink.text, 0]]) {
      context.strokeStyle = colour;
      context.lineWidth = width + extra;
      context.stroke(new Path2D(path));
    }
  }

  #ring(context, x, y, radius, width) {
    this.#stroke(context, `M${x - radius},${y}a${radius},${radius} 0 1,0 ${2 * radius},0a${radius},${radius} 0 1,0 ${-2 * radius},0z`, width);
  }

  nearest(x, y, reach) {
    let [best, found] = [reach * reach, -1];
    for (let i = 0; i < this.px.length; i++) {
      if (this.data.faded[i]) continue;
      const d = (this.px[i] - x) ** 2 + (this.py[i] - y) ** 2;
      if (d < best) [best, found] = [d, i];
    }
    return found;
  }

  // The nearest point in a direction; one off the line counts as further away.
  step(from, dx, dy) {
    let [best, found] = [Infinity, from];
    for (let i = 0; i < this.px.length; i++) {
      if (i === from || this.data.faded[i]) continue;
      const [x, y] = [this.px[i] - this.px[from], this.py[i] - this.py[from]];
      const along = x * dx + y * dy;
      const across = Math.abs(x * dy - y * dx);
      if (along <= 0.01 || across > along) continue;
      if (along + 2 * across < best) [best, found] = [along + 2 * across, i];
    }
    return found;
  }

  #turn(from, by) {
    const n = this.px.length;
    for (let k = 1, i = from; k <= n; k++) {
      i = (i + by + n) % n;
      if (!this.data.faded[i]) return i;
    }
    return from;
  }

  #listen() {
    const at = (event) => {
      const box = this.top.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let [down, path] = [null, null];
    this.host.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.data) return;
      [down, path] = [at(event), null];
      if (event.pointerType !== "touch") this.host.setPointerCapture(event.pointerId);
    });
    this.host.addEventListener("pointermove", (event) => {
      if (!this.data) return;
      const [x, y] = at(event);
      if (down && event.pointerType !== "touch" && this.handlers.lasso) {
        if (!path && Math.hypot(x - down[0], y - down[1]) > 6) path = [down];
        if (path) {
          path.push([x, y]);
          this.drawMarks(path);
          return;
        }
      }
      if (event.pointerType !== "touch") this.handlers.hover(this.nearest(x, y, 16));
    });
    this.host.addEventListener("pointerup", (event) => {
      if (!down) return;
      if (path) this.handlers.lasso(this.#inside(path));
      else this.handlers.pick(this.nearest(...at(event), event.pointerType === "touch" ? 24 : 16));
      down = path = null;
    });
    this.host.addEventListener("pointercancel", () => { down = path = null; });
    this.host.addEventListener("pointerleave", () => { if (!down && this.data) this.handlers.hover(-1); });
    this.host.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    if (!this.data || event.ctrlKey || event.metaKey || event.altKey || !this.px?.length) return;
    const from = this.cursor;
    const start = this.#turn(-1, 1);
    const moves = {
      ArrowLeft: (i) => this.step(i, -1, 0), ArrowRight: (i) => this.step(i, 1, 0),
      ArrowUp: (i) => this.step(i, 0, -1), ArrowDown: (i) => this.step(i, 0, 1),
      PageDown: (i) => this.#turn(i, 1), PageUp: (i) => this.#turn(i, -1),
      Home: () => start, End: () => this.#turn(0, -1),
    };
    if (moves[event.key]) this.handlers.move(from < 0 ? start : moves[event.key](from));
    else if (event.key === "Enter" || event.key === " ") this.handlers.pick(from < 0 ? start : from);
    else if (event.key === "Escape") this.handlers.clear();
    else return;
    event.preventDefault();
  }

  #inside(path) {
    const found = [];
    for (let i = 0; i < this.px.length; i++) {
      let inside = false;
      for (let j = 0, k = path.length - 1; j < path.length; k = j++) {
        const [[x1, y1], [x2, y2]] = [path[j], path[k]];
        if ((y1 > this.py[i]) !== (y2 > this.py[i])
          && this.px[i] < ((x2 - x1) * (this.py[i] - y1)) / (y2 - y1) + x1) inside = !inside;
      }
      if (inside) found.push(i);
    }
    return found;
  }
}

// At most `wanted` round numbers between two ends.
const roundTicks = (low, high, wanted) => {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high * (1 + 1e-9); k++) ticks.push(k * step);
  return ticks;
};
