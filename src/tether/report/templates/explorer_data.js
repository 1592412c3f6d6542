// Data of the explorer: typed arrays out of the page's JSON, and the colours that never change.
const CYCLE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8a6fd1", "#8c949c", "#b5a100", "#a5435f"];
const PAPER = {
  C4: "#0072B2", C3: "#56B4E9", C2: "#8a6fd1", H: "#8c949c", F: "#009E73", O2: "#D55E00", O1: "#E69F00",
  N3: "#CC79A7", N2: "#a5435f", N1: "#b5a100",
};
const SHAPE = { C: 0, H: 1, N: 2, O: 3, F: 4 };
const SUBSETS = { "test/id": ["#0072B2", 0], "test/ood": ["#D55E00", 3] };
const RAMP = [["#d3d27c", "#7cc9b6", "#3f9fc3", "#2b62ad", "#1b2a75"], ["#3a5aa8", "#2f86bd", "#47b9b0", "#a3d99b", "#f6f2a0"]];

// From the JSON: structures, runs, and what decodes a run's points when they are first shown.
const readExplorer = (data) => {
  const unpack = (text, Type) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Type(bytes.buffer);
  };
  const s = data.structures;
  const structures = {
    ids: s.ids,
    sizes: unpack(s.sizes, Uint16Array), numbers: unpack(s.numbers, Uint8Array),
    xyz: Float32Array.from(unpack(s.positions, Int16Array), (v) => v * s.step),
    subset: unpack(s.subset, Uint8Array), distance: unpack(s.distance, Float32Array),
    true: Object.fromEntries(Object.entries(s.true).map(([k, v]) => [k, unpack(v, Float32Array)])),
  };
  structures.start = [0];
  structures.sizes.forEach((n, i) => structures.start.push(structures.start[i] + n));
  const sortedDistance = structures.distance.filter(Number.isFinite).sort();

  const runs = data.runs.map((run) => {
    const rows = unpack(run.rows, Uint32Array);
    const pred = Object.fromEntries(Object.entries(run.pred).map(([name, text]) => {
      const all = new Float32Array(s.ids.length).fill(NaN);
      unpack(text, Float32Array).forEach((v, i) => { all[rows[i]] = v; });
      return [name, all];
    }));
    return { name: run.seed === null ? run.recipe : `${run.recipe}, seed ${run.seed}`, pred, views: run.views, rows };
  });
  // Decoded when first shown: a page may hold twenty runs.
  const viewOf = (run, kind) => {
    const view = run.views[kind];
    if (!view || view.decoded) return view;
    view.number = unpack(view.number, Uint32Array);
    view.structure = unpack(view.structure, Uint32Array);
    view.atom = unpack(view.atom, Uint16Array);
    view.class = Array.from(unpack(view.class, Uint16Array), (k) => view.names[k]);
    if (view.group) view.group = Array.from(unpack(view.group, Uint8Array), (k) => view.groupNames[k]);
    if (view.length) view.length = unpack(view.length, Float32Array);
    for (const layer of view.layers) {
      const raw = unpack(layer.xy, Uint16Array);
      layer.at = [0, 1, 2, 3].map((k) => Float32Array.from({ length: raw.length / 4 }, (_, i) => raw[4 * i + k] / 65535));
    }
    view.decoded = true;
    return view;
  };
  return { s, structures, sortedDistance, runs, viewOf };
};
