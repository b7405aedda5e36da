// table.js - the table of runs: order by a click on a head, a filter, a choice of columns. Only the rows that are in
// sight are in the document, so that thousands cost no more than fifty.
"use strict";

const $ = (id) => document.getElementById(id);

// An element from text alone; properties that start with "on" are listeners, "data" and "aria-..." are attributes.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const ROW = 32, AROUND = 12; // height of a row in pixels; rows made beyond those in sight

const state = {
  shown: lines.map((_, i) => i), // places of the lines that pass the filter, in order
  selected: new Map(),           // place of a line -> its colour's number
  columns: placesOf((c) => c.shown),
  sort: null,                    // {column, down}
  active: 0,                     // row that the arrow keys are at
};

// ---- selection ----------------------------------------------------------------------------------------------------

const MOST_SELECTED = 48;

function select(place, on) {
  if (!on) state.selected.delete(place);
  else if (!state.selected.has(place) && state.selected.size < MOST_SELECTED) {
    const taken = new Set(state.selected.values());
    let slot = 0;
    while (taken.has(slot)) slot++;
    state.selected.set(place, slot);
  }
}

function toggle(place) {
  select(place, !state.selected.has(place));
  drawRows();
  drawSelected();
}

// ---- filter and order ---------------------------------------------------------------------------------------------

function applyFilter() {
  const { tests, problems } = parseFilter($("filter").value);
  const passing = lines.map((_, i) => i).filter((i) => tests.every((test) => test(lines[i])));
  state.shown = state.sort ? sorted(passing, state.sort.column, state.sort.down) : passing;
  state.active = 0;
  const count = `${state.shown.length} of ${lines.length} shown`;
  $("filter-said").textContent = problems.length ? problems.join("; ") : count;
  $("filter-said").classList.toggle("problem", problems.length > 0);
}

// Up, down, and as it was.
function sortBy(column) {
  const before = state.sort;
  if (!before || before.column !== column) state.sort = { column, down: false };
  else state.sort = before.down ? null : { column, down: true };
  applyFilter();
  drawHead();
  drawRows();
}

// ---- drawing ------------------------------------------------------------------------------------------------------

const shownColumns = () => [NAME, STATUS, ...state.columns];

// Widths from the longest text of a column, so that they stay as they are while rows come and go.
const widths = new Map();
function widthOf(column) {
  if (!widths.has(column)) {
    let longest = titleOf(column).length + 2;
    for (const line of lines) longest = Math.max(longest, text(valueOf(line, column), column).length);
    widths.set(column, Math.min(column === NAME ? 44 : 28, longest) + (column === NAME ? 3 : 0));
  }
  return widths.get(column);
}

function drawHead() {
  const cols = [], heads = [];
  for (const column of shownColumns()) {
    const col = element("col"), width = `calc(${widthOf(column)}ch + 1.4rem)`;
    col.style.width = column === NAME ? `min(${width}, 46vw)` : width;
    cols.push(col);
    const by = state.sort && state.sort.column === column ? (state.sort.down ? "descending" : "ascending") : "none";
    const arrow = { ascending: " ▲", descending: " ▼", none: "" }[by];
    const button = element("button", { type: "button", title: titleOf(column), onclick: () => sortBy(column) },
      titleOf(column) + arrow);
    heads.push(element("th", { scope: "col", "aria-sort": by, className: isNumeric(column) ? "number" : "" }, button));
  }
  $("table").querySelector("colgroup").replaceChildren(...cols);
  const row = element("tr", {}, ...heads);
  const focused = [...$("table").querySelectorAll("thead button")].indexOf(document.activeElement);
  $("table").querySelector("thead").replaceChildren(row);
  if (focused >= 0) row.querySelectorAll("button")[focused]?.focus();
}

function rowOf(at) {
  const place = state.shown[at], line = lines[place];
  const cells = shownColumns().slice(1).map((column) => {
    const name = column === STATUS ? "status-" + line.status : isNumeric(column) ? "number" : "";
    const value = text(valueOf(line, column), column);
    return element("td", { className: name, title: value.length > 28 ? value : "" }, value);
  });
  const box = element("input", { type: "checkbox", checked: state.selected.has(place),
    tabIndex: at === state.active ? 0 : -1, onchange: () => toggle(place), onfocus: () => { state.active = at; } });
  const mark = state.selected.has(place) ? swatch(state.selected.get(place)) : null;
  return element("tr", { "aria-rowindex": at + 2, onclick: (e) => { if (!e.target.closest("label")) toggle(place); } },
    element("th", { scope: "row", title: line.name },
      element("label", {}, box, mark, element("span", {}, line.name))), ...cells);
}

function spacer(rows) {
  const cell = element("td", { colSpan: shownColumns().length });
  cell.style.height = rows * ROW + "px";
  return element("tr", { className: "spacer", "aria-hidden": "true" }, cell);
}

function drawRows() {
  const frame = $("table-frame"), body = $("table").querySelector("tbody"), count = state.shown.length;
  const focused = body.contains(document.activeElement);
  const top = Math.max(0, Math.floor(frame.scrollTop / ROW) - AROUND);
  const first = Math.min(top, Math.max(0, count - 1));
  const last = Math.min(count, first + Math.ceil((frame.clientHeight || 512) / ROW) + 2 * AROUND);
  const rows = [];
  for (let at = first; at < last; at++) rows.push(rowOf(at));
  if (count === 0) {
    const empty = element("td", { className: "empty", colSpan: shownColumns().length }, "No run passes the filter.");
    rows.push(element("tr", {}, empty));
  }
  body.replaceChildren(...(first ? [spacer(first)] : []), ...rows, ...(last < count ? [spacer(count - last)] : []));
  $("table").setAttribute("aria-rowcount", count + 1);
  if (!body.querySelector("[tabindex='0']")) body.querySelector("input")?.setAttribute("tabindex", "0");
  if (focused) body.querySelector("[tabindex='0']")?.focus({ preventScroll: true });
}

// The arrow keys go from row to row, also to rows that are not in the document yet.
function moveActive(event) {
  const page = Math.max(1, Math.floor($("table-frame").clientHeight / ROW) - 2), last = state.shown.length - 1;
  const to = { ArrowDown: state.active + 1, ArrowUp: state.active - 1, PageDown: state.active + page,
    PageUp: state.active - page, Home: 0, End: last }[event.key];
  if (to === undefined || last < 0) return;
  event.preventDefault();
  state.active = Math.min(last, Math.max(0, to));
  const frame = $("table-frame"), top = state.active * ROW, room = frame.clientHeight - 2 * ROW;
  if (top < frame.scrollTop) frame.scrollTop = top;
  else if (top > frame.scrollTop + room) frame.scrollTop = top - room;
  drawRows();
}

function drawColumnMenu() {
  const list = $("columns").querySelector(".list");
  const boxes = (title, places) => places.length === 0 ? [] : [element("strong", {}, title), ...places.map((i) =>
    element("label", {}, element("input", {
      type: "checkbox", checked: state.columns.includes(i),
      onchange: (e) => {
        state.columns = state.columns.filter((c) => c !== i);
        if (e.target.checked) state.columns = [...state.columns, i].sort((a, b) => a - b);
        drawHead();
        drawRows();
      },
    }), columns[i].key))];
  list.replaceChildren(
    ...boxes("options that differ", placesOf((c) => c.kind === "options" && c.differs)),
    ...boxes("figures", placesOf((c) => c.kind === "results")),
    ...boxes("options that all runs share", placesOf((c) => c.kind === "options" && !c.differs)));
}

let scrolled = false, typing = 0;
function startTable() {
  applyFilter();
  drawHead();
  drawRows();
  $("filter").addEventListener("input", () => {
    $("table-frame").scrollTop = 0;
    applyFilter();
    drawRows();
    clearTimeout(typing);
    typing = setTimeout(drawShown, 100); // the charts wait for the end of a word
  });
  $("columns").addEventListener("toggle", drawColumnMenu);
  $("table-frame").addEventListener("scroll", () => {
    if (scrolled) return;
    scrolled = true;
    requestAnimationFrame(() => { scrolled = false; drawRows(); });
  });
  $("table").querySelector("tbody").addEventListener("keydown", moveActive);
  $("select-shown").addEventListener("click", () => {
    state.selected.clear();
    for (const place of state.shown.slice(0, 8)) select(place, true);
    drawRows();
    drawSelected();
  });
  $("select-none").addEventListener("click", () => {
    state.selected.clear();
    drawRows();
    drawSelected();
  });
}
