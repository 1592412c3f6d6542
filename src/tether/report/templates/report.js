"use strict";
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)").matches;
  const plots = [...document.querySelectorAll(".plot")];

  // Plotly draws into SVG attributes, where CSS variables do not reach: read them and pass them on.
  const colours = (forPrint) => {
    if (forPrint) return { text: "#000000", soft: "#444444", grid: "#dddddd" };
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { text: read("--text"), soft: read("--soft"), grid: read("--grid") };
  };
  const look = (layout, forPrint) => {
    const { text, soft, grid } = colours(forPrint);
    const change = { "font.color": text, "legend.font.color": text };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis$/.test(key))) {
      change[`${axis}.gridcolor`] = grid;
      change[`${axis}.linecolor`] = soft;
      change[`${axis}.tickfont.color`] = soft;
      change[`${axis}.title.font.color`] = text;
    }
    return change;
  };
  // Reference lines and error bars take the colour of the text.
  const ink = (trace, colour) => {
    if (trace.meta === "ink") trace.line.color = colour;
    if (trace.error_x && trace.meta !== "own colours") trace.error_x.color = colour;
  };
  const setPath = (target, path, value) => {
    const keys = path.split(".");
    const last = keys.pop();
    keys.reduce((inner, key) => (inner[key] ??= {}), target)[last] = value;
  };
  const restyle = (forPrint) => {
    for (const plot of plots) {
      if (!plot.layout) continue;
      plot.data.forEach((trace) => ink(trace, colours(forPrint).text));
      for (const [path, value] of Object.entries(look(plot.layout, forPrint))) {
        setPath(plot.layout, path, value);
      }
      // One or two columns of an A4 or letter page; the screen's width would be cut off.
      const width = plot.closest(".grid.one") ? 640 : 310;
      plot.layout.width = forPrint ? width : undefined;
      plot.layout.autosize = !forPrint;
      Plotly.redraw(plot);
      if (!forPrint) Plotly.Plots.resize(plot);
    }
  };

  for (const plot of plots) {
    const figure = JSON.parse(document.getElementById(plot.dataset.figure).textContent);
    for (const [path, value] of Object.entries(look(figure.layout, false))) {
      setPath(figure.layout, path, value);
    }
    figure.data.forEach((trace) => ink(trace, colours(false).text));
    if (coarse) figure.layout.dragmode = false;
    Plotly.newPlot(plot, figure.data, figure.layout, {
      displayModeBar: false, displaylogo: false, responsive: true, showTips: false,
    });
    const button = plot.parentElement.querySelector("button");
    button.hidden = false;
    button.addEventListener("click", () => {
      Plotly.downloadImage(plot, { format: "svg", filename: plot.dataset.figure });
    });
  }
  dark.addEventListener("change", () => restyle(false));
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details:not(.raw)").forEach((block) => { block.open = true; });
    restyle(true);
  });
  window.addEventListener("afterprint", () => restyle(false));
})();
