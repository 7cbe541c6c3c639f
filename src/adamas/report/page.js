const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = 6;

// ── charts ───────────────────────────────────────────────────────────────────────────────────

function look() {
  const [ink, quiet, grid, line] = ["--ink", "--quiet", "--grid", "--line"].map(colour);
  const text = { labelColor: quiet, titleColor: quiet, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" };
  return {
    background: "transparent",
    font: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
    view: { stroke: null },
    axis: { ...text, gridColor: grid, domainColor: line, tickColor: line },
    legend: { ...text, labelLimit: 240, gradientLength: innerWidth < 560 ? 140 : 240, symbolStrokeColor: ink },
    rule: { color: ink },
  };
}

const views = new Map(); // by the id of its place
async function draw(id, chart, renderer) {
  const former = views.get(id);
  const { view } = await window.vegaEmbed(byId(id), chart, {
    actions: false,
    ast: true, // expressions are interpreted: no code is made of text
    config: look(),
    renderer,
    tooltip: { theme: dark.matches ? "dark" : "light" },
  });
  former?.finalize();
  views.set(id, view);
}

/** The chart with its rows, colours of the runs, and a rule that follows the pointer. */
function withLines({ chart, lines }) {
  const made = structuredClone(chart);
  const [rows, told] = [[], []];
  lines.forEach((line, place) => {
    const key = `line${place}`;
    const run = data.runs.length > 1 ? data.runs[line.run] : "";
    const title = [run, line.series].filter(Boolean).join(", ") || chart.description;
    const largest = Math.max(...line.value.map(Math.abs));
    const format = largest !== 0 && (largest < 1e-3 || largest >= 1e6) ? ".3~e" : ".4~g";
    told.push({ field: key, type: "quantitative", title, format });
    line.value.forEach((value, i) => {
      if (value === null) return;
      const row = { run: `run ${line.run}`, series: line.series, step: line.step[i], value, key };
      if (line.low && line.low[i] !== null && line.high[i] !== null) {
        [row.low, row.high] = [line.low[i], line.high[i]];
      }
      rows.push(row);
    });
  });
  made.data = { values: rows };
  const runs = data.runs.map((_, i) => `run ${i}`);
  const scale = { domain: runs, range: runs.map((_, i) => colour(`--run-${i % COLOURS}`)) };
  for (const { encoding } of made.layer) {
    if (encoding.color) encoding.color = { field: "run", type: "nominal", scale, legend: null };
  }
  made.layer.push({
    transform: [{ pivot: "key", value: "value", groupby: ["step"] }],
    params: [{ name: "near", select: { type: "point", fields: ["step"], nearest: true, on: "pointerover", clear: "pointerout" } }],
    mark: { type: "rule", strokeWidth: 1 },
    encoding: {
      x: { field: "step", type: "quantitative" },
      opacity: { condition: { param: "near", value: 0.5, empty: false }, value: 0 },
      tooltip: [{ field: "step", type: "quantitative", format: "," }, ...told],
    },
  });
  return made;
}

function number(value) {
  if (value === null) return "none";
  return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) ? value.toExponential() : String(value);
}

/** Names without the parts that all of them begin with. Of too long ones the parts before the last
 * have their first letters and their digits, and then the middle is left out. */
function shortened(names, letters) {
  const parts = names.map((name) => name.split("."));
  let same = 0;
  const isSame = (of) => of.length > same + 1 && of[same] === parts[0][same];
  while (parts.length > 1 && parts.every(isSame)) same += 1;
  return parts.map((of) => {
    const left = of.slice(same);
    const length = () => left.join(".").length;
    for (let i = 0; i < left.length - 1 && length() > letters; i += 1) {
      left[i] = left[i].slice(0, 1) + left[i].slice(1).replace(/\D/g, "");
    }
    const name = left.join(".");
    const head = Math.floor(letters / 3);
    return name.length <= letters ? name : `${name.slice(0, head)}…${name.slice(head + 1 - letters)}`;
  });
}

/** The heat map of a run. */
function withCells({ layers, edges, values, charts, kinds }, field) {
  const made = structuredClone(charts[field]);
  const isLog = kinds[field] === "log";
  const rows = [];
  layers.forEach((layer, i) => {
    values[field][i].forEach((value, j) => {
      const shown = value === null || (isLog && value <= 0) ? null : value;
      rows.push({ place: i, layer, from: edges[j], to: edges[j + 1], value: shown, told: number(value) });
    });
  });
  const [cells, others] = made.layer;
  cells.data = { values: rows.filter((row) => row.value !== null) };
  others.data = { values: rows.filter((row) => row.value === null) };
  cells.encoding.color.scale[isLog ? "scheme" : "range"] = isLog ? "viridis" : colour("--fraction").split(" ");
  others.mark.color = colour("--none");
  made.layer = made.layer.filter((layer) => layer.data.values.length > 0);
  made.encoding.y.scale = { domain: layers.map((_, i) => i) };
  const labels = shortened(layers, byId("heat").clientWidth < 560 ? 18 : 40);
  // Vega's expressions take these two for ends of lines.
  const told = JSON.stringify(labels).replaceAll("\u2028", "\\u2028").replaceAll("\u2029", "\\u2029");
  made.encoding.y.axis.labelExpr = `${told}[datum.value]`;
  return made;
}

const [run, field] = [byId("run"), byId("field")];
async function drawHeat() {
  const heat = data.heats[run.value];
  for (const option of field.options) option.disabled = !(option.value in heat.values);
  if (field.selectedOptions[0]?.disabled) field.value = Object.keys(heat.values)[0];
  if (!(field.value in heat.values)) {
    byId("heat").textContent = "The record has no statistics of layers.";
    return;
  }
  await draw("heat", withCells(heat, field.value), "canvas");
  byId("heat").setAttribute("role", "img");
  byId("heat").setAttribute("aria-label", `${field.selectedOptions[0].text}, by layer and step`);
}

async function drawAll() {
  document.documentElement.dataset.drawn = "";
  for (const [i, curve] of data.curves.entries()) await draw(`curve-${i}`, withLines(curve), "svg");
  await drawHeat();
  document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
}

// ── the table ────────────────────────────────────────────────────────────────────────────────

const shown = (cell) => {
  const text = cell.dataset.v ?? cell.textContent.replace(/[,%>\s]/g, "").replace("−", "-");
  return text === "∞" ? Infinity : text === "-∞" ? -Infinity : text === "" ? NaN : Number(text);
};

function sortBy(head) {
  const [table, column] = [head.closest("table"), head.cellIndex];
  const rows = [...table.tBodies[0].rows];
  const cells = rows.map((row) => row.cells[column]);
  const isText = !cells.some((cell) => !Number.isNaN(shown(cell)));
  const former = head.getAttribute("aria-sort");
  const up = former ? former === "descending" : isText; // numbers: the largest first
  for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const values = new Map(rows.map((row, i) => [row, isText ? cells[i].textContent : shown(cells[i])]));
  rows.sort((a, b) => {
    const [x, y] = [values.get(a), values.get(b)];
    if (isText) return (up ? 1 : -1) * x.localeCompare(y, undefined, { numeric: true });
    // What has no number stands last.
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return x === y ? 0 : (up ? 1 : -1) * (x < y ? -1 : 1);
  });
  table.tBodies[0].append(...rows);
}

function filterRows() {
  const [wanted, table] = [byId("filter").value.toLowerCase(), document.querySelector(".scroll:not([hidden])")];
  const rows = [...table.querySelectorAll("tbody tr")];
  for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  const left = rows.filter((row) => !row.hidden).length;
  byId("matches").textContent = wanted ? `${left} of ${rows.length}` : "";
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}
byId("filter").addEventListener("input", filterRows);
field.addEventListener("change", drawHeat);
run.addEventListener("change", () => {
  for (const table of document.querySelectorAll(".scroll")) table.hidden = table.dataset.run !== run.value;
  filterRows();
  drawHeat();
});
dark.addEventListener("change", drawAll);
drawAll();
