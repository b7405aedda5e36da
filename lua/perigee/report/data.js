// data.js - the report's data, and what the page works out from it: text of values, filters, order, groups.
//
// A line is {run, name, status, cells}; cells stand in the order of `columns`. Columns are meant by their place, and by
// NAME and STATUS, which every line has.
"use strict";

const report = JSON.parse(document.getElementById("data").textContent);
const { columns, lines, runs } = report;
const NAME = -2, STATUS = -1;

const valueOf = (line, column) => column === NAME ? line.name : column === STATUS ? line.status : line.cells[column];
const titleOf = (column) => column === NAME ? "run" : column === STATUS ? "status" : columns[column].key;
const isNumeric = (column) => column >= 0 && columns[column].numeric;
const placesOf = (test) => columns.map((c, i) => i).filter((i) => test(columns[i]));
const figures = placesOf((c) => c.kind === "results" && c.numeric);
const figuresAlone = figures.filter((i) => !columns[i].family);
const families = [...new Set(figures.map((i) => columns[i].family).filter(Boolean))];

// ---- text ---------------------------------------------------------------------------------------------------------

function numberText(x) {
  if (Number.isInteger(x) && Math.abs(x) < 1e9) return String(x);
  const size = Math.abs(x);
  if (size < 1e-4 || size >= 1e6) return x.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(parseFloat(x.toPrecision(6)));
}

// As tables show a value: a column's numbers have its decimals.
function text(value, column = NAME) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value !== "number") return String(value);
  const decimals = column >= 0 ? columns[column].decimals : undefined;
  return decimals === undefined ? numberText(value) : value.toFixed(decimals);
}

// ---- filter -------------------------------------------------------------------------------------------------------

// The place of the column that a reader means: its whole name, or what stands behind the last dot where that is one's
// alone.
function columnNamed(name) {
  const wanted = name.toLowerCase();
  if (wanted === "run" || wanted === "name") return NAME;
  if (wanted === "status") return STATUS;
  const whole = columns.findIndex((c) => c.key.toLowerCase() === wanted);
  if (whole >= 0) return whole;
  const ends = placesOf((c) => c.key.toLowerCase().endsWith("." + wanted));
  return ends.length === 1 ? ends[0] : null;
}

const COMPARE = {
  "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
  "=": (a, b) => a === b, "!=": (a, b) => a !== b,
};

function comparison(name, operator, wanted) {
  const column = columnNamed(name);
  if (column === null) return { problem: `there is no column “${name}”` };
  const number = wanted === "" ? NaN : Number(wanted), compare = COMPARE[operator], ordered = /[<>]/.test(operator);
  if (ordered && Number.isNaN(number)) return { problem: `${name}${operator} needs a number` };
  return {
    test(line) {
      const value = valueOf(line, column);
      if (value === null) return operator === "!=";
      if (typeof value === "number") return compare(value, number);
      return !ordered && compare(String(value).toLowerCase(), wanted.toLowerCase());
    },
  };
}

// Everything of a line that can be read, in small letters; made once.
function searchText(line) {
  if (line.search === undefined) {
    const run = runs[line.run];
    line.search = [line.name, line.status, run.folder, run.error, ...line.cells.filter((v) => typeof v === "string")]
      .join("\n").toLowerCase();
  }
  return line.search;
}

// {tests: functions of a line, problems: text} of what was typed.
function parseFilter(typed) {
  const tests = [], problems = [];
  const terms = typed.replace(/\s*(<=|>=|!=|<|>|=)\s*/g, "$1").match(/(?:"[^"]*"?|[^\s"])+/g) || [];
  for (const term of terms) {
    const bare = term.replace(/"/g, ""), parts = term.match(/^([^"<>=!]+)(<=|>=|!=|<|>|=)(.*)$/);
    if (parts) {
      const { test, problem } = comparison(parts[1], parts[2], parts[3].replace(/"/g, ""));
      if (test) tests.push(test); else problems.push(problem);
    } else if (bare.length > 1 && term[0] === "-") {
      const word = bare.slice(1).toLowerCase();
      tests.push((line) => !searchText(line).includes(word));
    } else if (bare) {
      tests.push((line) => searchText(line).includes(bare.toLowerCase()));
    }
  }
  return { tests, problems };
}

// ---- order --------------------------------------------------------------------------------------------------------

const collator = new Intl.Collator("en", { numeric: true });

// Places of lines by a column; what has no value comes last either way, equals keep their order.
function sorted(places, column, down) {
  const value = (i) => valueOf(lines[i], column), sign = down ? -1 : 1;
  return [...places].sort((i, j) => {
    const a = value(i), b = value(j);
    if (a === null || b === null) return (a === null) - (b === null) || i - j;
    if (typeof a === "number" && typeof b === "number") return sign * (a - b) || i - j;
    if (typeof a === "number" || typeof b === "number") return typeof a === "number" ? -1 : 1;
    return sign * collator.compare(String(a), String(b)) || i - j;
  });
}

// ---- groups: mean and 95% interval over what is equal in the options chosen ---------------------------------------

function interval(values) {
  const n = values.length;
  if (n === 0) return null;
  const mean = values.reduce((a, b) => a + b, 0) / n;
  if (n === 1) return { mean, half: null, n };
  const squares = values.reduce((a, b) => a + (b - mean) ** 2, 0);
  return { mean, half: report.quantiles[n - 2] * Math.sqrt(squares / (n - 1) / n), n };
}

// Groups of the lines at `places`: [{name, places, of(column)}], where `of` gives {mean, half, n} or null.
function groupsOf(places, keys) {
  const by = keys.map((key) => columns.findIndex((c) => c.key === key && c.kind === "options"));
  const found = new Map();
  for (const i of places) {
    if (lines[i].status === "broken") continue;
    const words = [];
    by.forEach((c, k) => {
      const value = valueOf(lines[i], c); // null where a run has no such option
      if (value !== null) words.push((by.length > 1 ? keys[k] + "=" : "") + text(value, c));
    });
    const name = words.join(" ") || (by.length === 1 ? "-" : "all runs");
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(i);
  }
  return [...found].map(([name, members]) => ({
    name, places: members,
    of: (column) => interval(members.map((i) => valueOf(lines[i], column)).filter((v) => typeof v === "number")),
  }));
}

// ---- curves and pictures: read when a run is first looked at ------------------------------------------------------

function lazily(id) {
  let texts = null;
  const read = new Map();
  return (i) => {
    if (!texts) texts = document.getElementById(id).textContent.split("\n");
    if (!read.has(i)) read.set(i, JSON.parse(texts[i]));
    return read.get(i);
  };
}
const curvesOf = lazily("curve-data");     // of a line: {metric: [[label, x, y], ...]}
const picturesOf = lazily("picture-data"); // of a run: [[name, path, base64 or null, why not], ...]
