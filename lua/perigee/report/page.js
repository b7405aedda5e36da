// page.js - starts the page and keeps its parts together: what is drawn anew when the filter, the selection or the
// reader's light changes.
"use strict";

// What depends on the lines that are shown.
function drawShown() {
  drawGroups();
  drawHeat();
  drawParallel();
}

// What depends on the lines that are selected.
function drawSelected() {
  drawCurves();
  drawParallel();
  drawCards();
}

// ---- the selected runs: command, error, pictures ------------------------------------------------------------------

const MOST_CARDS = 12;

function pictureOf([name, path, data, why]) {
  if (data === null) return element("figcaption", {}, `${path}: not in this page, it ${why}`);
  return element("figure", {}, element("img", { src: "data:image/png;base64," + data, alt: name, loading: "lazy" }),
    element("figcaption", {}, name));
}

async function copy(button, said) {
  try {
    await navigator.clipboard.writeText(said);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select the text to copy it"; // the browser gives pages from disk no clipboard
  }
}

function optionsText(line) {
  return placesOf((c) => c.kind === "options").filter((i) => line.cells[i] !== null)
    .map((i) => `${columns[i].key}=${text(line.cells[i])}`).join("  ");
}

function cardOf(place, slot) {
  const line = lines[place], run = runs[line.run];
  const command = run.command === null ? null : element("pre", { tabIndex: 0 }, run.command);
  return element("article", { className: "card" },
    element("h3", {}, swatch(slot), line.name),
    element("p", { className: "hint" }, `${run.folder}: `,
      element("span", { className: "status-" + run.status }, run.status)),
    run.error === null ? null : element("p", { className: "error" }, run.error),
    command,
    command && element("button", { type: "button", onclick: (e) => copy(e.target, run.command) }, "Copy the command"),
    element("details", {}, element("summary", {}, "Options"), element("pre", {}, optionsText(line))),
    element("div", { className: "pictures" }, ...picturesOf(line.run).map(pictureOf)));
}

function drawCards() {
  const chosen = [...state.selected].sort((a, b) => a[1] - b[1]);
  const seen = new Set(), cards = [];
  for (const [place, slot] of chosen) { // the methods of one run share its command and pictures
    if (!seen.has(lines[place].run) && cards.length < MOST_CARDS) cards.push(cardOf(place, slot));
    seen.add(lines[place].run);
  }
  const hint = (said) => cards.push(element("p", { className: "hint" }, said));
  if (seen.size > MOST_CARDS) hint(`The first ${MOST_CARDS} of ${seen.size} runs.`);
  if (chosen.length === 0) hint("Select runs in the table.");
  $("cards").replaceChildren(...cards);
}

// ---- the head of the page -----------------------------------------------------------------------------------------

function drawSummary() {
  $("title").textContent = report.title;
  const count = new Map();
  for (const run of runs) count.set(run.status, (count.get(run.status) || 0) + 1);
  $("summary").textContent = `${runs.length} runs, ${[...count].map(([status, n]) => `${n} ${status}`).join(", ")}; ` +
    `${lines.length} lines; made ${report.made}.`;
  const warnings = report.warnings;
  if (warnings.length) {
    $("warnings").hidden = false;
    $("warnings").querySelector("summary").textContent = `${warnings.length} warning${warnings.length > 1 ? "s" : ""}`;
    $("warnings").querySelector("ul").replaceChildren(...warnings.slice(0, 200).map((said) => element("li", {}, said)));
  }
}

function fillChoices() {
  const option = (value, said) => element("option", { value }, said);
  const keys = placesOf((c) => c.kind === "options" && c.differs).map((i) => columns[i].key);
  $("group").replaceChildren(option("", "every option but the seed"),
    ...keys.map((key) => option(JSON.stringify([key]), key)));
  if (report.group) {
    const value = JSON.stringify(report.group), there = [...$("group").options].some((o) => o.value === value);
    if (!there) $("group").append(option(value, report.group.join(", ")));
    $("group").value = value;
  }
  const ordered = [...figuresAlone, ...figures.filter((i) => columns[i].family)];
  for (const id of ["figure", "color-by"]) {
    $(id).replaceChildren(...ordered.map((i) => option(String(i), columns[i].key)));
  }
  $("family").replaceChildren(...families.map((name) => option(name, name)));
  if (families.includes("tasks")) $("family").value = "tasks";
  $("groups-section").hidden = figures.length === 0;
  $("heat-section").hidden = families.length === 0;
  $("group").addEventListener("change", () => { drawGroups(); drawHeat(); });
  $("figure").addEventListener("change", drawGroups);
  $("family").addEventListener("change", drawHeat);
  $("color-by").addEventListener("change", drawParallel);
}

function start() {
  drawSummary();
  fillChoices();
  for (const place of state.shown.filter((i) => lines[i].status !== "broken").slice(0, 8)) select(place, true);
  startTable();
  startCurves();
  drawCurves();
  drawCards();
  setTimeout(drawShown); // the table is there before the charts below it
  const redraw = () => { drawRows(); drawShown(); drawCurves(); drawCards(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = innerWidth;
  addEventListener("resize", () => { // a phone's address bar comes and goes, and changes the height alone
    if (innerWidth === width) return;
    width = innerWidth;
    redraw();
  });
}

start();
