// A molecule in 3D with one atom, or both ends of an edge, marked.
class MoleculeView {
  constructor(host) {
    this.host = host;
    this.viewer = null;
    this.shown = null;
    this.available = MoleculeView.#hasWebGL();
    // A wheel over the molecule scrolls the page, unless the molecule was clicked.
    host.addEventListener("wheel", (event) => {
      if (!host.contains(document.activeElement)) event.stopPropagation();
    }, { capture: true });
    host.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => {
      if (!this.viewer || !host.clientWidth || !host.clientHeight) return;
      this.viewer.resize();
      this.viewer.render();
    }).observe(host);
  }

  static #hasWebGL() {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
  }

  #key(event) {
    if (!this.viewer || event.ctrlKey || event.metaKey || event.altKey) return;
    const turns = {
      ArrowLeft: [-15, "y"], ArrowRight: [15, "y"], ArrowUp: [-15, "x"], ArrowDown: [15, "x"],
    };
    if (turns[event.key]) this.viewer.rotate(...turns[event.key]);
    else if (event.key === "+" || event.key === "=") this.viewer.zoom(1.2);
    else if (event.key === "-") this.viewer.zoom(1 / 1.2);
    else if (event.key === "Home" || event.key === "0") this.reset();
    else return;
    this.viewer.render();
    event.preventDefault();
  }

  reset() {
    if (!this.viewer) return;
    this.viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);
    this.viewer.zoomTo();
    this.viewer.zoom(1.25);
    this.viewer.render();
  }

  // molecule: id, symbols, colours, xyz (3 n), bonds [[i, j]]; marked: one or two atoms;
  // label: text at the mark; ink: colours of the page.
  show(molecule, marked, label, ink) {
    if (!this.available) return;
    if (!this.viewer) {
      this.viewer = $3Dmol.createViewer(this.host, { antialias: true, disableFog: true });
      const canvas = this.host.querySelector("canvas");
      canvas.setAttribute("aria-hidden", "true");
      canvas.removeAttribute("tabindex");
    }
    const { viewer } = this;
    const isNew = this.shown !== molecule.id;
    this.shown = molecule.id;
    viewer.setBackgroundColor(ink.page, 1);
    viewer.removeAllShapes();
    viewer.removeAllLabels();
    if (isNew || this.ink !== ink) {
      viewer.removeAllModels();
      this.#addModel(molecule);
      this.ink = ink;
    }
    this.#addMarks(molecule, marked, label, ink);
    if (isNew) this.reset();
    else viewer.render();
  }

  #addModel({ symbols, colours, xyz, bonds }) {
    const model = this.viewer.addModel();
    model.addAtoms(symbols.map((elem, i) => {
      const partners = bonds.filter((pair) => pair.includes(i)).map(([a, b]) => (a === i ? b : a));
      return {
        elem, serial: i, index: i, x: xyz[3 * i], y: xyz[3 * i + 1], z: xyz[3 * i + 2],
        bonds: partners, bondOrder: partners.map(() => 1), properties: {},
      };
    }));
    const colorfunc = (atom) => colours[atom.serial];
    model.setStyle({}, { stick: { radius: 0.11, colorfunc }, sphere: { scale: 0.24, colorfunc } });
  }

  #addMarks({ symbols, xyz }, marked, label, ink) {
    const places = marked.map((i) => ({ x: xyz[3 * i], y: xyz[3 * i + 1], z: xyz[3 * i + 2] }));
    for (const [k, center] of places.entries()) {
      const radius = symbols[marked[k]] === "H" ? 0.5 : 0.62;
      this.viewer.addSphere({ center, radius, color: ink.mark, alpha: 0.5 });
    }
    if (places.length === 2) {
      const [start, end] = places;
      this.viewer.addCylinder({ start, end, radius: 0.06, color: ink.mark, dashed: true, dashLength: 0.18, gapLength: 0.14, fromCap: 1, toCap: 1 });
    }
    const mean = (key) => places.reduce((sum, p) => sum + p[key], 0) / places.length;
    this.viewer.addLabel(label, {
      position: { x: mean("x"), y: mean("y"), z: mean("z") },
      fontSize: 13, fontColor: ink.text, backgroundColor: ink.page, backgroundOpacity: 0.82,
      borderThickness: 0.8, borderColor: ink.soft, inFront: true, screenOffset: { x: 14, y: -14 },
    });
  }

  canvas() {
    return this.viewer ? this.host.querySelector("canvas") : null;
  }
}
