// charts.js - curves of the selected runs and parallel coordinates of all that are shown, on canvases in the page's
// colours; groups and tasks as tables that can be read aloud.
"use strict";

const COLORS = 8;
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [14, 4], [4, 2, 1, 2]];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colorOf = (slot) => css("--c" + slot % COLORS);
const dashOf = (slot) => DASHES[Math.floor(slot / COLORS) % DASHES.length];

// The line that stands for a run in legends.
function swatch(slot) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ x1: 0, x2: 26, y1: 6, y2: 6, stroke: colorOf(slot), "stroke-width": 3,
    "stroke-dasharray": dashOf(slot).join(" ") })) line.setAttribute(name, value);
  svg.setAttribute("class", "swatch");
  svg.setAttribute("aria-hidden", "true");
  svg.append(line);
  return svg;
}

function surface(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth || 600;
  canvas.style.height = height + "px";
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  g.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  g.lineJoin = "round";
  return { g, width, height };
}

// Round values from low to high, about `count` of them; on a logarithmic axis the powers of ten, and 2 and 5 times
// these where there are few.
function ticks(low, high, count, log) {
  const list = [];
  if (log) {
    const decades = Math.log10(high / low);
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const m of decades < 2 ? [1, 2, 5] : [1]) {
        const value = m * 10 ** power;
        if (value >= low * 0.999 && value <= high * 1.001) list.push(value);
      }
    }
    return list.filter((_, i) => i % Math.ceil(list.length / (count + 2)) === 0);
  }
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) {
    list.push(parseFloat((k * step).toPrecision(12)));
  }
  return list;
}

// ---- curves -------------------------------------------------------------------------------------------------------

// Exponential mean of weight w for what was, without the pull to zero at the start (Kingma and Ba, 2015, section 3).
function smooth(y, w) {
  if (w === 0) return y;
  let mean = 0, weight = 0;
  return y.map((value) => {
    mean = w * mean + (1 - w) * value;
    weight = w * weight + (1 - w);
    return mean / weight;
  });
}

const plot = { at: null, box: null, series: [] }; // where the cursor is, and what was drawn

function chosenSeries() {
  const metric = $("metric").value, weight = Number($("smoothing").value), list = [];
  for (const [place, slot] of [...state.selected].sort((a, b) => a[1] - b[1])) {
    for (const [label, x, y] of curvesOf(place)[metric] || []) {
      list.push({ name: lines[place].name + (label ? ": " + label : ""), slot, x, raw: y, y: smooth(y, weight) });
    }
  }
  return list;
}

function limits(series, log) {
  let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
  for (const s of series) {
    for (let i = 0; i < s.x.length; i++) {
      if (log && s.y[i] <= 0) continue;
      x0 = Math.min(x0, s.x[i]); x1 = Math.max(x1, s.x[i]);
      y0 = Math.min(y0, s.y[i]); y1 = Math.max(y1, s.y[i]);
    }
  }
  if (x0 > x1) return null;
  if (x0 === x1) { x0 -= 1; x1 += 1; }
  if (log) return { x0, x1, y0: y0 / 1.1, y1: y1 * 1.1 };
  const room = (y1 - y0) * 0.05 || Math.abs(y1) * 0.1 || 1;
  return { x0, x1, y0: y0 - room, y1: y1 + room };
}

function drawAxes(g, box, range, log) {
  g.strokeStyle = css("--line");
  g.fillStyle = css("--quiet");
  g.lineWidth = 1;
  g.textAlign = "right";
  g.textBaseline = "middle";
  for (const value of ticks(range.y0, range.y1, 5, log)) {
    const y = Math.round(box.y(value)) + 0.5;
    g.beginPath(); g.moveTo(box.left, y); g.lineTo(box.right, y); g.stroke();
    g.fillText(numberText(value), box.left - 6, y);
  }
  g.textAlign = "center";
  g.textBaseline = "top";
  for (const value of ticks(range.x0, range.x1, Math.max(4, (box.right - box.left) / 110), false)) {
    g.fillText(numberText(value), box.x(value), box.bottom + 6);
  }
  g.fillText("step", (box.left + box.right) / 2, box.bottom + 22);
}

function trace(g, box, x, y, log) {
  g.beginPath();
  let pen = false;
  for (let i = 0; i < x.length; i++) {
    if (log && y[i] <= 0) { pen = false; continue; }
    if (pen) g.lineTo(box.x(x[i]), box.y(y[i])); else g.moveTo(box.x(x[i]), box.y(y[i]));
    pen = true;
  }
  g.stroke();
}

function drawCurves() {
  const canvas = $("curves"), log = $("log").checked;
  const { g, width, height } = surface(canvas, Math.min(380, 180 + innerHeight / 4));
  const series = chosenSeries(), range = limits(series, log);
  plot.series = series;
  plot.box = null;
  canvas.setAttribute("aria-label", range
    ? `${$("metric").value} over steps of ${series.length} curves; arrow keys read values` : "No curve to draw");
  if (!range) {
    g.fillStyle = css("--quiet");
    g.textAlign = "center";
    const said = state.selected.size ? "The selected runs have no such figure." : "Select runs in the table.";
    g.fillText(said, width / 2, height / 2);
    $("legend").replaceChildren();
    return;
  }
  const scale = log ? Math.log : (v) => v, bottom = scale(range.y0), top = scale(range.y1);
  const box = { left: 62, right: width - 14, top: 10, bottom: height - 40 };
  box.x = (v) => box.left + (v - range.x0) / (range.x1 - range.x0) * (box.right - box.left);
  box.y = (v) => box.bottom - (scale(v) - bottom) / (top - bottom) * (box.bottom - box.top);
  box.step = (px) => range.x0 + (px - box.left) / (box.right - box.left) * (range.x1 - range.x0);
  box.range = range;
  plot.box = box;
  drawAxes(g, box, range, log);
  g.save();
  g.beginPath(); g.rect(box.left, 0, box.right - box.left, box.bottom); g.clip();
  for (const s of series) {
    g.strokeStyle = colorOf(s.slot);
    if (s.raw !== s.y) { g.globalAlpha = 0.22; g.lineWidth = 1; g.setLineDash([]); trace(g, box, s.x, s.raw, log); }
    g.globalAlpha = 1;
    g.lineWidth = 1.8;
    g.setLineDash(dashOf(s.slot));
    trace(g, box, s.x, s.y, log);
  }
  if (plot.at !== null) {
    g.setLineDash([]);
    g.lineWidth = 1;
    g.strokeStyle = css("--quiet");
    g.beginPath(); g.moveTo(box.x(plot.at), box.top); g.lineTo(box.x(plot.at), box.bottom); g.stroke();
  }
  g.restore();
  drawLegend();
}

function nearest(x, at) {
  let low = 0, high = x.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= at) low = middle; else high = middle;
  }
  return Math.abs(x[low] - at) <= Math.abs(x[high] - at) ? low : high;
}

const rounded = (value, digits) => numberText(parseFloat(value.toPrecision(digits)));

function drawLegend() {
  $("legend").replaceChildren(...plot.series.map((s) => {
    const at = plot.at === null ? s.x.length - 1 : nearest(s.x, plot.at);
    const said = rounded(s.y[at], 4) + (plot.at === null ? "" : ` at ${numberText(s.x[at])}`);
    return element("li", {}, swatch(s.slot), s.name, element("span", {}, said));
  }));
}

function startCurves() {
  const canvas = $("curves"), names = report.metrics;
  $("metric").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  if (names.length === 0) $("curves-section").hidden = true;
  for (const id of ["metric", "log"]) $(id).addEventListener("change", drawCurves);
  $("smoothing").addEventListener("input", () => {
    $("smoothing-value").textContent = $("smoothing").value;
    drawCurves();
  });
  canvas.addEventListener("pointermove", (e) => {
    if (!plot.box) return;
    const { x0, x1 } = plot.box.range, step = plot.box.step(e.offsetX);
    plot.at = step >= x0 && step <= x1 ? step : null;
    drawCurves();
  });
  canvas.addEventListener("pointerleave", () => { plot.at = null; drawCurves(); });
  canvas.addEventListener("keydown", (e) => {
    if (!plot.box || !["ArrowLeft", "ArrowRight", "Escape"].includes(e.key)) return;
    const { x0, x1 } = plot.box.range, width = (x1 - x0) / 50;
    const from = plot.at === null ? x1 : plot.at;
    plot.at = e.key === "Escape" ? null : Math.min(x1, Math.max(x0, from + (e.key === "ArrowLeft" ? -width : width)));
    e.preventDefault();
    drawCurves();
  });
}

// ---- groups -------------------------------------------------------------------------------------------------------

const MOST_GROUPS = 200;

function groupKeys() {
  const choice = $("group").value;
  return choice === "" ? report.differing : JSON.parse(choice);
}

const meanText = (figure, column) => {
  if (!figure) return [""];
  const decimals = columns[column].decimals;
  const show = (v) => decimals === undefined ? rounded(v, 4) : v.toFixed(Math.max(decimals, 2));
  if (figure.half === null) return [show(figure.mean)];
  return [show(figure.mean), element("span", { className: "half" }, " ± " + show(figure.half))];
};

// The interval as a line with the mean as a point, all rows over one axis.
function intervalPicture(figure, low, high) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 192 20");
  svg.setAttribute("aria-hidden", "true");
  const x = (v) => 6 + (v - low) / (high - low || 1) * 180;
  const add = (tag, name, attributes) => {
    const part = document.createElementNS("http://www.w3.org/2000/svg", tag);
    part.setAttribute("class", name);
    for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value);
    svg.append(part);
  };
  if (low < 0 && high > 0) add("line", "zero", { x1: x(0), x2: x(0), y1: 0, y2: 20 });
  if (figure && figure.half !== null) {
    add("line", "span", { x1: x(figure.mean - figure.half), x2: x(figure.mean + figure.half), y1: 10, y2: 10 });
  }
  if (figure) add("circle", "point", { cx: x(figure.mean), cy: 10, r: 4 });
  return svg;
}

function drawGroups() {
  if (figures.length === 0) return;
  const keys = groupKeys(), column = Number($("figure").value);
  const groups = groupsOf(state.shown, keys).map((group) => ({ ...group, figure: group.of(column) }));
  groups.sort((a, b) => (b.figure ? b.figure.mean : -Infinity) - (a.figure ? a.figure.mean : -Infinity));
  const drawn = groups.slice(0, MOST_GROUPS);
  let low = Infinity, high = -Infinity;
  for (const { figure } of drawn) {
    if (!figure) continue;
    low = Math.min(low, figure.mean - (figure.half || 0));
    high = Math.max(high, figure.mean + (figure.half || 0));
  }
  const others = figuresAlone.filter((i) => i !== column).slice(0, 6);
  const head = (title, number) => element("th", { scope: "col", className: number ? "number" : "" }, title);
  $("groups").querySelector("thead").replaceChildren(element("tr", {}, head(keys.join(", ") || "group"),
    head("n", true), head(titleOf(column), true), head("95% interval"), ...others.map((i) => head(titleOf(i), true))));
  $("groups").querySelector("tbody").replaceChildren(...drawn.map((group) => element("tr", {},
    element("th", { scope: "row", title: group.name }, group.name),
    element("td", { className: "number" }, String(group.places.length)),
    element("td", { className: "number" }, ...meanText(group.figure, column)),
    element("td", {}, intervalPicture(group.figure, low, high)),
    ...others.map((i) => element("td", { className: "number" }, ...meanText(group.of(i), i))))));
  const inside = report.differing.filter((key) => !keys.includes(key));
  $("groups-said").textContent = "Student’s t over the shown runs of a group; one run has no interval." +
    (inside.length ? ` Runs of a group also differ by ${inside.join(", ")}.` : "") +
    (groups.length > MOST_GROUPS ? ` The first ${MOST_GROUPS} of ${groups.length} groups.` : "");
}

// ---- tasks: a heat map --------------------------------------------------------------------------------------------

function mix(a, b, share) {
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  return [0, 1, 2].map((i) => Math.round(part(a, i) + (part(b, i) - part(a, i)) * share));
}

// Colours of values: from low over the middle to high where they lie on both sides of zero, else from the middle to
// high.
function heatColors(low, high) {
  const from = css("--low"), middle = css("--middle"), to = css("--high"), most = Math.max(-low, high, 1e-300);
  if (low >= 0) return (value) => mix(middle, to, high > low ? (value - low) / (high - low) : 0.5);
  return (value) => mix(middle, value < 0 ? from : to, Math.min(1, Math.abs(value) / most));
}

// Black or white, whichever reads better on a colour (WCAG 2, relative luminance).
function inkOn([r, g, b]) {
  const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b) > 0.179 ? "#000000" : "#ffffff";
}

function drawHeat() {
  if (families.length === 0) return;
  const family = $("family").value, places = figures.filter((i) => columns[i].family === family);
  const groups = groupsOf(state.shown, groupKeys());
  const rows = groups.map(({ name, of }) => ({ name, cells: places.map(of) })).filter((row) => row.cells.some(Boolean));
  const drawn = rows.slice(0, MOST_GROUPS);
  const means = drawn.flatMap((row) => row.cells.filter(Boolean).map((cell) => cell.mean));
  const low = Math.min(...means), high = Math.max(...means), colorAt = heatColors(low, high);
  $("heat").querySelector("thead").replaceChildren(element("tr", {},
    element("th", { scope: "col" }, groupKeys().join(", ") || "group"),
    ...places.map((i) => element("th", { scope: "col", className: "number" }, titleOf(i).slice(family.length + 1)))));
  $("heat").querySelector("tbody").replaceChildren(...drawn.map((row) => element("tr", {},
    element("th", { scope: "row", title: row.name }, row.name),
    ...row.cells.map((cell, k) => {
      const made = element("td", {}, text(cell && cell.mean, places[k]));
      if (cell) {
        const color = colorAt(cell.mean);
        made.style.backgroundColor = `rgb(${color.join(" ")})`;
        made.style.color = inkOn(color);
        made.title = `mean of ${cell.n}` + (cell.half === null ? "" : `, ± ${rounded(cell.half, 3)}`);
      }
      return made;
    }))));
  $("heat-said").textContent = "Means over the shown runs of a group, grouped as above" +
    (low < 0 ? "; orange is below zero, blue above." : "; the bluer the larger.") +
    (rows.length > MOST_GROUPS ? ` The first ${MOST_GROUPS} of ${rows.length} groups.` : "");
}

// ---- parallel coordinates -----------------------------------------------------------------------------------------

const MOST_AXES = 10, MOST_NAMES = 14;

// Axes of what differs among the shown lines: numbers from low to high, texts one under another.
function axesOf(places) {
  const wanted = [...placesOf((c) => c.kind === "options" && c.shown).slice(0, 6), ...figuresAlone], axes = [];
  for (const column of wanted) {
    const values = places.map((i) => valueOf(lines[i], column)).filter((v) => v !== null);
    const distinct = new Set(values);
    if (distinct.size < 2 || axes.length === MOST_AXES) continue;
    if (columns[column].numeric) {
      const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
      const log = low > 0 && high / low > 50, scale = log ? Math.log : (v) => v;
      const whole = values.every(Number.isInteger), names = ticks(low, high, 4, log);
      axes.push({ column, names: names.filter((v) => !whole || Number.isInteger(v)),
        share: (v) => (scale(v) - scale(low)) / (scale(high) - scale(low)) });
    } else {
      const names = [...distinct].map(String).sort(collator.compare), rank = new Map(names.map((n, k) => [n, k]));
      axes.push({ column, names, share: (v) => rank.get(String(v)) / (names.length - 1) });
    }
  }
  return axes;
}

function drawAxis(g, axis, x, top, bottom, widest, last) {
  g.strokeStyle = css("--quiet");
  g.lineWidth = 1;
  g.beginPath(); g.moveTo(x, top); g.lineTo(x, bottom); g.stroke();
  const fit = (said) => {
    while (said.length > 3 && g.measureText(said).width > widest) said = said.slice(0, -2).trimEnd() + "…";
    return said;
  };
  g.textAlign = last ? "right" : "left";
  g.textBaseline = "middle";
  const page = css("--page"), every = Math.ceil(axis.names.length / MOST_NAMES), shift = last ? -6 : 6;
  axis.names.forEach((name, k) => {
    if (k % every) return;
    const y = bottom - axis.share(name) * (bottom - top), said = fit(text(name));
    g.lineWidth = 4;
    g.strokeStyle = page; // a rim of the page's colour keeps the text readable on the lines
    g.strokeText(said, x + shift, y);
    g.fillStyle = css("--text");
    g.fillText(said, x + shift, y);
  });
  g.font = "600 12px system-ui, 'DejaVu Sans', sans-serif";
  g.textBaseline = "alphabetic";
  g.fillText(fit(titleOf(axis.column)), last ? x + 4 : x - 4, top - 14);
  g.font = "12px system-ui, 'DejaVu Sans', sans-serif";
}

function drawParallel() {
  const canvas = $("parallel"), { g, width, height } = surface(canvas, 340);
  const places = state.shown.filter((i) => lines[i].status !== "broken"), axes = axesOf(places);
  canvas.setAttribute("aria-label", axes.length < 2 ? "Nothing differs between the shown runs"
    : `Parallel coordinates of ${places.length} runs over ${axes.map((a) => titleOf(a.column)).join(", ")}`);
  $("scale").replaceChildren();
  if (axes.length < 2) {
    g.fillStyle = css("--quiet");
    g.textAlign = "center";
    g.fillText("Nothing differs between the shown runs.", width / 2, height / 2);
    return;
  }
  const left = 14, right = width - 14, top = 40, bottom = height - 18, gap = (right - left) / (axes.length - 1);
  const by = Number($("color-by").value);
  const colored = places.map((i) => valueOf(lines[i], by)).filter((v) => typeof v === "number");
  const low = colored.reduce((a, b) => Math.min(a, b), Infinity);
  const high = colored.reduce((a, b) => Math.max(a, b), -Infinity);
  const from = css("--low"), between = css("--quiet"), to = css("--high");
  const colorAt = (value) => {
    if (typeof value !== "number") return between;
    const share = high > low ? (value - low) / (high - low) : 0.5;
    return `rgb(${(share < 0.5 ? mix(from, between, 2 * share) : mix(between, to, 2 * share - 1)).join(" ")})`;
  };
  if (low <= high) $("scale").replaceChildren(text(low, by), element("i"), text(high, by));
  const draw = (place) => {
    g.beginPath();
    let pen = false;
    axes.forEach((axis, k) => {
      const value = valueOf(lines[place], axis.column);
      if (value === null) { pen = false; return; }
      const x = left + k * gap, y = bottom - axis.share(value) * (bottom - top);
      if (pen) g.lineTo(x, y); else g.moveTo(x, y);
      pen = true;
    });
    g.stroke();
  };
  g.globalAlpha = Math.max(0.12, Math.min(0.8, 60 / places.length));
  g.lineWidth = 1.2;
  for (const place of places) {
    g.strokeStyle = colorAt(valueOf(lines[place], by));
    draw(place);
  }
  g.globalAlpha = 1;
  g.lineWidth = 2.5;
  for (const [place, slot] of state.selected) {
    if (!places.includes(place)) continue;
    g.strokeStyle = colorOf(slot);
    g.setLineDash(dashOf(slot));
    draw(place);
  }
  g.setLineDash([]);
  axes.forEach((axis, k) => drawAxis(g, axis, left + k * gap, top, bottom, gap - 16, k === axes.length - 1));
}
