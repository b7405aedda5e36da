// browser_checks.js - what browser_spec.lua does to a report inside Chromium. It is put behind the page's own script,
// uses the page as a reader would, and leaves a line for each check in <pre id="checks">.
"use strict";

const said = [];
function check(name, good, detail = "") { said.push(`${good ? "ok" : "FAIL"} ${name}${good ? "" : ": " + detail}`); }
const same = (name, expected, got) => check(name, JSON.stringify(expected) === JSON.stringify(got),
  `expected ${JSON.stringify(expected)}, got ${JSON.stringify(got)}`);

const rowsInPage = () => [...document.querySelectorAll("#table tbody tr:not(.spacer)")];
const namesInPage = () => rowsInPage().map((row) => row.querySelector("th span").textContent);
const cellsOf = (title) => {
  const heads = [...document.querySelectorAll("#table thead button")], at = heads.findIndex((b) => b.title === title);
  return rowsInPage().map((row) => row.children[at].textContent);
};
const head = (title) => [...document.querySelectorAll("#table thead button")].find((b) => b.title === title);
function type(words) {
  $("filter").value = words;
  $("filter").dispatchEvent(new Event("input"));
}
const drawn = (id) => {
  const canvas = $(id), pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.some((v) => v !== 0);
};
function press(where, key) {
  where.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
}
function activeName() {
  return document.querySelector("#table tbody [tabindex='0']").closest("tr").querySelector("span").textContent;
}
const later = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

const CHECKS = {
  // A sweep of 60 runs.
  async use() {
    same("rows", "60 of 60 shown", $("filter-said").textContent);
    check("curves are drawn", drawn("curves"));
    await later(200);
    check("parallel coordinates are drawn", drawn("parallel"));
    same("eight runs are selected", 8, document.querySelectorAll("#legend li").length);
    same("each has a card", 8, document.querySelectorAll(".card").length);
    const command = document.querySelector(".card pre").textContent;
    check("a command", command.startsWith("perigee run toy.lua batch=64 lr=0.0001"), command);

    head("a_lp").click();
    const up = cellsOf("a_lp").map(Number).filter((v) => v > 0);
    check("sorts up", up.every((v, i) => i === 0 || up[i - 1] <= v), up.join(" "));
    same("the head says so", "ascending", head("a_lp").closest("th").getAttribute("aria-sort"));
    head("a_lp").click();
    const down = cellsOf("a_lp").map(Number).filter((v) => v > 0);
    check("sorts down", down.every((v, i) => i === 0 || down[i - 1] >= v) && down[0] > up[0], down.join(" "));
    press($("table").querySelector("tbody"), "End");
    same("the failed run, which has no value, is last", "run-0050", namesInPage().pop());
    head("a_lp").click();

    type("lr<1e-3 method=fda");
    same("a filter of numbers and text", "6 of 60 shown", $("filter-said").textContent);
    check("what passes it", cellsOf("lr").every((v) => Number(v) < 1e-3));
    check("what passes it, of text", cellsOf("method").every((v) => v === "fda"));
    await later(200);
    same("groups follow the filter", 2, document.querySelectorAll("#groups tbody tr").length);
    type('seed >= 2  -proxy  "run-00"');
    same("words, left out words and blanks", "32 of 60 shown", $("filter-said").textContent);
    type("status=failed");
    same("by status", ["run-0050"], namesInPage());
    type("lrr<1 seed<x");
    same("a problem is said", "there is no column “lrr”; seed< needs a number", $("filter-said").textContent);
    type("");
    await later(200);

    press($("table").querySelector("tbody"), "Home");
    same("arrow keys: home", "run-0001", activeName());
    press($("table").querySelector("tbody"), "End");
    same("arrow keys: end", "run-0060", activeName());
    document.querySelector("#table tbody [tabindex='0']").click();
    same("one more is selected", 9, document.querySelectorAll("#legend li").length);
    $("select-none").click();
    same("none is selected", 0, document.querySelectorAll("#legend li").length);
    $("select-shown").click();

    const before = $("curves").toDataURL();
    $("smoothing").value = "0.9";
    $("smoothing").dispatchEvent(new Event("input"));
    check("smoothing draws anew", $("curves").toDataURL() !== before);
    $("curves").focus();
    press($("curves"), "ArrowLeft");
    check("the cursor reads values", document.querySelector("#legend li").textContent.includes(" at "));

    $("group").value = '["method"]';
    $("group").dispatchEvent(new Event("change"));
    same("five methods", 5, document.querySelectorAll("#groups tbody tr").length);
    same("five tasks", 6, document.querySelectorAll("#heat thead th").length);
    const inside = $("groups-said").textContent;
    check("what differs inside is said", inside.includes("also differ by lr"), inside);
    const means = groupsOf(state.shown, ["method"]).map((g) => [g.name, g.of(columnNamed("delta_lp"))]);
    said.push("means " + JSON.stringify(means));
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const page = getComputedStyle(document.body).backgroundColor;
    check("the page follows the reader's light", dark === (page === "rgb(20, 23, 26)"), `${dark} ${page}`);
  },

  // Names, options and errors that are markup; the page's policy is taken out, so that nothing but the page keeps them
  // text.
  async hostile() {
    $("select-shown").click();
    for (const details of document.querySelectorAll("details")) details.open = true;
    await later(200);
    for (const box of document.querySelectorAll("#columns input:not(:checked)")) box.click();
    for (const id of ["group", "figure", "color-by", "metric", "family"]) {
      for (const option of [...$(id).options]) {
        $(id).value = option.value;
        $(id).dispatchEvent(new Event("change"));
      }
    }
    for (const button of [...document.querySelectorAll("#table thead button")]) button.click();
    for (const words of ["<img src=x onerror=boom()>", "<img", ""]) {
      type(words);
      await later(200);
    }
    same("nothing was executed", 0, executed);
    const foreign = "img:not([src^='data:image/png;base64,']), svg[onload], b, iframe";
    same("no element came from a name", 0, document.querySelectorAll(foreign).length);
    check("the name is shown as it is", namesInPage().some((n) => n.includes("<img src=x onerror=boom()>")));
    same("scripts", 6, document.querySelectorAll("script").length);
  },

  // The same with the policy: what slips into the page after all is not run.
  async policy() {
    const slipped = document.createElement("div");
    slipped.innerHTML = "<img src=x onerror=boom()>";
    document.body.append(slipped);
    await later(300);
    same("nothing was executed", 0, executed);
    problems.length = 0;
  },

  // 2,000 runs; times are real.
  async many() {
    function time(work) {
      const began = performance.now();
      work();
      document.body.offsetHeight; // lays the page out
      return performance.now() - began;
    }
    const times = { open: opened };
    times.sort = time(() => head("a_lp").click());
    times.filter = time(() => type("lr<1e-3 fda"));
    type("");
    times.scroll = time(() => { $("table-frame").scrollTop = 40000; drawRows(); });
    said.push("times " + Object.entries(times).map(([name, ms]) => `${name} ${ms.toFixed(0)}`).join(" "));
    same("all are there", "2000 of 2000 shown", $("filter-said").textContent);
    check("few rows are in the page", rowsInPage().length < 100, rowsInPage().length);
  },

  // A phone's width, inside a frame.
  async phone() {
    same("width", 390, innerWidth);
    await later(200);
    const wide = document.documentElement.scrollWidth;
    check("nothing stands out to the right", wide <= 390, wide);
    check("curves are drawn", drawn("curves"));
    const name = document.querySelector("#table tbody th");
    check("other columns are seen beside the name", name.offsetWidth <= 0.6 * 390, name.offsetWidth);
    const small = [...document.querySelectorAll("button, select, input[type=search]")]
      .filter((e) => e.offsetParent && !e.closest("thead") && e.getBoundingClientRect().height < 30);
    same("what is touched is large enough", 0, small.length);
  },
};

CHECKS[CHOSEN]().catch((error) => said.push("FAIL " + error.stack)).finally(() => {
  for (const problem of problems) said.push("FAIL the console: " + problem);
  if (parent !== window) parent.postMessage(said.join("\n"), "*");
  document.body.append(element("pre", { id: "checks" }, said.join("\n")));
});
