// The explorer: two linked maps of one run's points, the molecule, and the error by distance.
(() => {
  const source = document.getElementById("explorer-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const $ = (name) => document.getElementById(`explorer-${name}`);
  const N_NEAR = 10;

  const { s, structures, sortedDistance, runs, viewOf } = readExplorer(data);

  // ---- words ------------------------------------------------------------------------------
  const sig = (v) => (Number.isFinite(v) ? String(Number(v.toPrecision(3))).replace("-", "−") : "unknown");
  const number = (i, kind) => (kind === "edges" ? [view().atom[2 * i], view().atom[2 * i + 1]] : [view().atom[i]]);
  const elementsOf = (row) => Array.from(
    structures.numbers.subarray(structures.start[row], structures.start[row + 1]), (z) => data.elements[z].symbol);
  const formula = (symbols) => {
    const counts = new Map();
    for (const x of symbols) counts.set(x, (counts.get(x) ?? 0) + 1);
    const hill = (x) => (counts.has("C") ? { C: "0", H: "1" }[x] ?? `2${x}` : x);
    const digits = (n) => (n > 1 ? String(n).replace(/\d/g, (d) => "₀₁₂₃₄₅₆₇₈₉"[d]) : "");
    return [...counts.keys()].sort((a, b) => (hill(a) < hill(b) ? -1 : 1)).map((x) => x + digits(counts.get(x))).join("");
  };
  const subsetName = (row) => s.subsets[structures.subset[row]][1];
  const errorOf = (row, target) => (run().pred[target]?.[row] ?? NaN) - (structures.true[target]?.[row] ?? NaN);

  // ---- colours ----------------------------------------------------------------------------
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  let ink = null;
  const readInk = () => {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(`--${name}`).trim();
    const page = { page: read("page"), text: read("text"), soft: read("soft"), grid: read("grid"), faded: read("faded"), mark: read("mark") };
    const paper = { page: "#ffffff", text: "#000000", soft: "#444444", grid: "#dddddd", faded: "#cccccc", mark: "#e0a100" };
    ink = { ...(printing ? paper : page), theme: dark.matches && !printing ? 1 : 0 };
  };
  const coloursOf = Object.fromEntries(Object.values(data.elements).map(({ symbol, colours }) => [symbol, colours]));
  const elementColour = (x) => coloursOf[x][ink.theme];
  const ramp = (share) => {
    const stops = RAMP[ink.theme];
    const at = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
    const [a, b] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]].map((c) => [1, 3, 5].map((k) => parseInt(c.slice(k, k + 2), 16)));
    return `rgb(${a.map((v, k) => Math.round(v + (b[k] - v) * (at % 1))).join(",")})`;
  };

  // ---- state ------------------------------------------------------------------------------
  const state = { run: data.start, kind: "atoms", layer: 0, colour: "class", filter: new Set(), lasso: null, hover: -1, pinned: -1, chosen: false };
  const run = () => runs[state.run];
  const view = () => viewOf(run(), state.kind);
  const layer = () => view().layers[state.layer];
  const shown = () => (state.hover >= 0 ? state.hover : state.pinned);

  // A way to colour: categories have a name a point, numbers a value a point.
  const colouring = () => {
    const v = view();
    const first = (i) => elementsOf(v.structure[i])[number(i, state.kind)[0]];
    if (state.colour === "class") {
      const all = data.classes[state.kind];
      const colour = (name) => PAPER[name] ?? CYCLE[all.indexOf(name) % CYCLE.length];
      const shape = (name) => (state.kind === "edges" ? all.indexOf(name) : SHAPE[name.match(/^[A-Z][a-z]?/)?.[0]] ?? 5);
      return { of: v.class, names: all, colour, shape };
    }
    if (state.colour === "element") {
      const of = v.class.map((_, i) => first(i));
      return { of, names: [...new Set(of)].sort(), colour: elementColour, shape: (x) => SHAPE[x] ?? 5 };
    }
    if (state.colour === "group") {
      const all = v.groupNames;
      return { of: v.group, names: all, colour: (x) => CYCLE[all.indexOf(x) % CYCLE.length], shape: (x) => all.indexOf(x) };
    }
    if (state.colour === "subset") {
      const of = v.class.map((_, i) => s.subsets[structures.subset[v.structure[i]]][0]);
      const labels = Object.fromEntries(s.subsets);
      const other = (name) => [CYCLE[s.subsets.findIndex(([x]) => x === name) % CYCLE.length], 1];
      return { of, names: s.subsets.map(([x]) => x), label: (x) => labels[x], colour: (x) => (SUBSETS[x] ?? other(x))[0], shape: (x) => (SUBSETS[x] ?? other(x))[1] };
    }
    const target = state.colour.startsWith("error:") ? state.colour.slice(6) : null;
    const values = Array.from(v.structure, (row) => (target === null ? structures.distance[row] : Math.abs(errorOf(row, target))));
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
    const quantile = (q) => sorted[Math.round(q * (sorted.length - 1))] ?? NaN;
    const [low, high] = [quantile(0.02), quantile(0.98)];
    return { values, low, high, unit: target === null ? "" : data.targets.find((t) => t.name === target)?.unit ?? "" };
  };

  // ---- the three plots --------------------------------------------------------------------
  const handlers = {
    hover: (i) => { if (i !== state.hover) { state.hover = i; refresh(); } },
    move: (i) => { state.hover = i; refresh(); announce(); },
    pick: (i) => {
      if (i >= 0) [state.pinned, state.chosen] = [i, true];
      state.hover = -1;
      refresh();
      if (i >= 0) announce("Selected. ");
    },
    lasso: (found) => { state.lasso = found.length ? new Set(found) : null; state.hover = -1; redraw(); },
    clear: () => { state.hover = -1; state.lasso = null; state.filter.clear(); redraw(); },
  };
  const before = new Scatter($("before"), handlers);
  const after = new Scatter($("after"), handlers);
  const pointOfRow = (row) => view().structure.indexOf(row);
  // Points of the third plot are structures; a structure stands for its first point in the sample.
  const byRow = (go) => (i) => go(i < 0 ? -1 : pointOfRow(far.rows[i]));
  const far = new Scatter($("far"), {
    hover: byRow(handlers.hover), move: byRow(handlers.move), pick: byRow(handlers.pick), clear: handlers.clear,
  });
  const molecule = new MoleculeView($("molecule"));
  if (!molecule.available) {
    $("molecule").hidden = $("reset").hidden = true;
    $("no-webgl").hidden = false;
  }

  let colours = null;
  let fadedNow = null;
  const redraw = () => {
    const v = view();
    colours = colouring();
    const n = v.structure.length;
    const paint = colours.values
      ? Array.from(colours.values, (x) => (Number.isFinite(x) ? ramp((x - colours.low) / (colours.high - colours.low || 1)) : ink.faded))
      : colours.of.map(colours.colour);
    const shapes = colours.values ? new Uint8Array(n) : Uint8Array.from(colours.of, colours.shape);
    fadedNow = Uint8Array.from({ length: n }, (_, i) =>
      Number((state.filter.size && !colours.values && !state.filter.has(colours.of[i])) || (state.lasso && !state.lasso.has(i))));
    const [xb, yb, xa, ya] = layer().at;
    const common = { colours: paint, shapes, faded: fadedNow, ink };
    before.set({ x: xb, y: yb, ...common });
    after.set({ x: xa, y: ya, ...common });
    drawFar();
    drawLegend();
    drawCaptions();
    refresh();
  };

  const drawFar = () => {
    const target = farTarget();
    const unit = data.targets.find((t) => t.name === target)?.unit;
    const rows = [...new Set(view().structure)].filter((row) =>
      Number.isFinite(structures.distance[row]) && Number.isFinite(errorOf(row, target)));
    $("far-box").hidden = rows.length === 0;
    if (!rows.length) return;
    const x = Float32Array.from(rows, (row) => structures.distance[row]);
    const y = Float32Array.from(rows, (row) => Math.abs(errorOf(row, target)));
    const kept = new Set();
    view().structure.forEach((row, i) => { if (!fadedNow[i]) kept.add(row); });
    const names = rows.map((row) => s.subsets[structures.subset[row]][0]);
    far.rows = rows;
    const axis = (values, title, zero) => {
      const [low, high] = [zero ? 0 : Math.min(...values), Math.max(...values)];
      const pad = 0.04 * (high - low) || 0.5;
      const ends = [zero ? 0 : low - pad, high + pad];
      return { low: ends[0], high: ends[1], ticks: roundTicks(...ends, 4), format: sig, title };
    };
    far.set({
      x, y, ink,
      colours: names.map((name) => (SUBSETS[name] ?? ["#8a6fd1", 1])[0]),
      shapes: Uint8Array.from(names, (name) => (SUBSETS[name] ?? ["", 1])[1]),
      faded: Uint8Array.from(rows, (row) => Number(!kept.has(row))),
      axes: { x: axis(x, "distance to the training set", false), y: axis(y, "", true) },
    });
    $("far-title").textContent = `|error| of ${target}${unit ? ` (${unit})` : ""} by distance`;
    const present = s.subsets.filter(([name]) => names.includes(name));
    $("far-key").replaceChildren(...present.flatMap(([name, label]) => {
      const [colour, shape] = SUBSETS[name] ?? ["#8a6fd1", 1];
      return [marker(shape, colour), document.createTextNode(label)];
    }));
  };
  const farTarget = () => (state.colour.startsWith("error:") ? state.colour.slice(6) : data.targets[0]?.name);

  const drawCaptions = () => {
    const { purity } = layer();
    const text = (v) => (v === null || v === undefined ? "" : `neighbour purity in feature space ${v.toFixed(3)}`);
    $("before-note").textContent = text(purity?.[0]);
    $("after-note").textContent = text(purity?.[1]);
    $("after-title").textContent = `After: ${run().name}`;
    const n = view().layers.length;
    const at = layer().layer;
    $("layer-value").textContent = n === 1 ? "last only" : `${at} of ${view().layers[n - 1].layer}${state.layer === n - 1 ? " (last)" : state.layer === 0 ? " (first)" : ""}`;
    $("layer").setAttribute("aria-valuetext", `layer ${$("layer-value").textContent}`);
  };

  // ---- legend, filter, lasso --------------------------------------------------------------
  const marker = (shape, colour) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "-7 -7 14 14");
    svg.setAttribute("aria-hidden", "true");
    const path = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
    path.setAttribute("d", shapePath(shape, 4.6));
    path.setAttribute("fill", colour);
    return svg;
  };
  const counted = (indices) => {
    const counts = new Map();
    for (const i of indices) counts.set(view().class[i], (counts.get(view().class[i]) ?? 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1]);
  };
  const drawLegend = () => {
    const box = $("legend");
    const focused = document.activeElement?.dataset?.name;
    const hadFocus = box.contains(document.activeElement);
    box.replaceChildren();
    $("gradient").hidden = !colours.values;
    box.hidden = $("legend-help").hidden = Boolean(colours.values);
    if (colours.values) {
      $("gradient-bar").style.background = `linear-gradient(to right, ${RAMP[ink.theme].join(",")})`;
      $("gradient-low").textContent = `≤ ${sig(colours.low)}`;
      $("gradient-high").textContent = `≥ ${sig(colours.high)} ${colours.unit}`;
    } else {
      const counts = new Map();
      colours.of.forEach((name) => counts.set(name, (counts.get(name) ?? 0) + 1));
      for (const name of colours.names.filter((x) => counts.has(x))) {
        const chip = box.appendChild(document.createElement("button"));
        chip.type = "button";
        chip.dataset.name = name;
        chip.setAttribute("aria-pressed", String(state.filter.has(name)));
        chip.append(marker(colours.shape(name), colours.colour(name)), colours.label?.(name) ?? name, " ");
        const count = chip.appendChild(document.createElement("span"));
        count.className = "muted";
        count.textContent = counts.get(name);
        chip.addEventListener("click", () => {
          if (!state.filter.delete(name)) state.filter.add(name);
          redraw();
        });
      }
      if (hadFocus) [...box.children].find((chip) => chip.dataset.name === focused)?.focus();
    }
    const words = state.lasso ? `${state.lasso.size} ${state.kind} circled: ${counted(state.lasso).map(([name, n]) => `${n} ${name}`).join(", ")}.` : "";
    $("lasso").textContent = words;
    $("clear").hidden = !state.lasso && !state.filter.size;
  };

  // ---- the point shown --------------------------------------------------------------------
  const nearest = (x, y, i) => {
    const all = Array.from(x, (_, j) => j).filter((j) => j !== i);
    const d = (j) => (x[j] - x[i]) ** 2 + (y[j] - y[i]) ** 2;
    return all.map((j) => [d(j), j]).sort((a, b) => a[0] - b[0]).slice(0, N_NEAR).map((pair) => pair[1]);
  };
  const bondsOf = (row) => {
    const [start, n] = [structures.start[row], structures.sizes[row]];
    const bonds = [];
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < i; j++) {
        const reach = 1.15 * (data.elements[structures.numbers[start + i]].radius + data.elements[structures.numbers[start + j]].radius);
        if (apart(row, i, j) < reach) bonds.push([i, j]);
      }
    }
    return bonds;
  };
  const apart = (row, i, j) => {
    const at = (k) => 3 * (structures.start[row] + k);
    return Math.hypot(...[0, 1, 2].map((k) => structures.xyz[at(i) + k] - structures.xyz[at(j) + k]));
  };

  const describe = (i) => {
    const v = view();
    const row = v.structure[i];
    const atoms = number(i, state.kind);
    const symbols = elementsOf(row);
    const [xb, yb, xa, ya] = layer().at;
    const [was, is] = [nearest(xb, yb, i), nearest(xa, ya, i)];
    const same = (found) => found.filter((j) => v.class[j] === v.class[i]).length;
    const facts = [["Molecule", formula(symbols)], ["Set", subsetName(row)]];
    if (v.group) facts.push(["Functional group", v.group[i]]);
    for (const { name, unit } of data.targets) {
      const [t, p] = [structures.true[name][row], run().pred[name]?.[row] ?? NaN];
      if (Number.isFinite(t) || Number.isFinite(p)) {
        facts.push([name, `true ${sig(t)}, predicted ${sig(p)}, error ${sig(p - t)}${unit ? ` ${unit}` : ""}`]);
      }
    }
    const d = structures.distance[row];
    if (Number.isFinite(d)) {
      const below = sortedDistance.filter((x) => x < d).length / sortedDistance.length;
      facts.push(["Distance to training", `${sig(d)}, beyond ${Math.round(100 * below)} % of those shown`]);
    }
    if (v.length) {
      const image = Math.abs(apart(row, ...atoms) - v.length[i]) > 0.05 ? ", through a periodic image" : "";
      facts.push(["Length", `${v.length[i].toFixed(2)} Å${image}`]);
    }
    facts.push([`${N_NEAR} nearest points`, `${was.filter((j) => is.includes(j)).length} of them still are; of its class ${same(was)} → ${same(is)}`]);
    const place = atoms.map((a) => `${symbols[a]}${a}`).join("–");
    return { row, atoms, symbols, was, title: `${v.class[i]}, ${state.kind === "edges" ? place : `atom ${atoms[0]}`} of ${structures.ids[row]}`, facts };
  };

  let frame = 0;
  const refresh = () => {
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; draw(); });
  };
  const draw = () => {
    const i = shown();
    before.cursor = after.cursor = i;
    if (i < 0) {
      for (const plot of [before, after, far]) plot.mark([]);
      return;
    }
    const found = describe(i);
    const marks = [...found.was.map((index) => ({ index, kind: "near" })), { index: i, kind: "main" }];
    const [xb, yb] = layer().at;
    before.mark(marks);
    after.mark(marks, [xb[i], yb[i]]);
    const at = far.rows?.indexOf(found.row) ?? -1;
    far.cursor = at;
    far.mark(at < 0 ? [] : [{ index: at, kind: "main" }]);
    drawDetails(i, found);
    drawMolecule(i, found);
  };
  const drawDetails = (i, { title, facts }) => {
    $("title").textContent = title;
    $("state").textContent = i !== state.pinned ? "pointed at" : state.chosen ? "selected" : "moved furthest";
    $("facts").replaceChildren(...facts.flatMap(([term, text]) => {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      [dt.textContent, dd.textContent] = [term, text];
      return [dt, dd];
    }));
  };
  const drawMolecule = (i, { row, atoms, symbols }) => {
    const label = state.kind === "edges" ? `${view().length[i].toFixed(2)} Å` : view().class[i];
    const host = $("molecule");
    host.setAttribute("aria-label", `Molecule ${structures.ids[row]}, ${formula(symbols)}, in 3D; marked: ${atoms.map((a) => `${symbols[a]} ${a}`).join(" and ")}. Arrow keys turn it, plus and minus zoom.`);
    host.dataset.structure = structures.ids[row];
    host.dataset.atoms = atoms.join(",");
    if (!visible) return;
    molecule.show({
      id: `${row}`, symbols, colours: symbols.map(elementColour), bonds: bondsOf(row),
      xyz: structures.xyz.subarray(3 * structures.start[row], 3 * structures.start[row + 1]),
    }, atoms, label, ink);
  };
  let saying = 0;
  const announce = (prefix = "") => {
    clearTimeout(saying);
    saying = setTimeout(() => {
      if (shown() < 0) return;
      const { title, facts } = describe(shown());
      $("live").textContent = `${prefix}${title}. ${facts.map(([term, text]) => `${term}: ${text}`).join(". ")}.`;
    }, 200);
  };

  // ---- controls ---------------------------------------------------------------------------
  const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
  // Keep the same atom through a change of run or layer; at first, take the one that moved furthest.
  const settle = (wanted) => {
    const v = view();
    const found = wanted === null ? -1 : v.number.indexOf(wanted);
    const [xb, yb, xa, ya] = layer().at;
    const moved = xb.map((x, i) => (x - xa[i]) ** 2 + (yb[i] - ya[i]) ** 2);
    state.chosen &&= found >= 0;
    state.pinned = found >= 0 ? found : moved.indexOf(Math.max(...moved));
    state.hover = -1;
  };
  const change = (apply, keepPoint = true) => {
    const wanted = keepPoint && state.chosen ? view().number[state.pinned] : null;
    const circled = keepPoint && state.lasso ? new Set([...state.lasso].map((i) => view().number[i])) : null;
    apply();
    if (!run().views[state.kind]) state.kind = Object.keys(run().views)[0];
    state.layer = Math.min(state.layer, view().layers.length - 1);
    state.lasso = circled ? new Set([...view().number.keys()].filter((i) => circled.has(view().number[i]))) : null;
    if (!state.lasso?.size) state.lasso = null;
    fillControls();
    settle(wanted);
    redraw();
  };
  const fillControls = () => {
    for (const radio of $("kind").querySelectorAll("input")) {
      radio.disabled = !run().views[radio.value];
      radio.checked = radio.value === state.kind;
    }
    const slider = $("layer");
    slider.max = view().layers.length - 1;
    slider.value = state.layer;
    slider.disabled = view().layers.length === 1;
    const has = { element: state.kind === "atoms", group: Boolean(view().group), subset: s.subsets.length > 1, distance: sortedDistance.length > 0 };
    const choices = [["class", state.kind === "atoms" ? "class (element × neighbours)" : "class (pair × distance)"], ["element", "element"], ["group", "functional group"], ["subset", "ID or OOD"], ["distance", "distance to training"]]
      .filter(([value]) => has[value] ?? true)
      .concat(data.targets.map(({ name }) => [`error:${name}`, `|error| of ${name}`]));
    if (!choices.some(([value]) => value === state.colour)) state.colour = "class";
    $("colour").replaceChildren(...choices.map(([value, text]) => option(value, text)));
    $("colour").value = state.colour;
  };
  $("run").replaceChildren(...runs.map((r, i) => option(String(i), r.name)));
  $("run").value = String(state.run);
  $("run").addEventListener("change", (event) => change(() => { state.run = Number(event.target.value); }));
  $("kind").addEventListener("change", (event) => change(() => {
    state.kind = event.target.value;
    state.layer = view().layers.length - 1;
    state.filter.clear();
  }, false));
  $("layer").addEventListener("input", (event) => change(() => { state.layer = Number(event.target.value); }));
  $("colour").addEventListener("change", (event) => {
    state.colour = event.target.value;
    state.filter.clear();
    redraw();
  });
  $("clear").addEventListener("click", () => { handlers.clear(); $("before").focus(); });
  $("reset").addEventListener("click", () => molecule.reset());

  // ---- start, and changes of the page's colours -------------------------------------------
  let visible = false;
  const recolour = () => { readInk(); redraw(); };
  $("app").hidden = false;
  readInk();
  state.kind = run().views.atoms ? "atoms" : "edges";
  state.layer = view().layers.length - 1;
  change(() => {}, false);
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    visible = true;
    observer.disconnect();
    refresh();
  }, { rootMargin: "400px" }).observe($("app"));
  dark.addEventListener("change", recolour);
  window.addEventListener("beforeprint", () => { printing = visible = true; readInk(); redraw(); draw(); });
  window.addEventListener("afterprint", () => { printing = false; recolour(); });
})();
