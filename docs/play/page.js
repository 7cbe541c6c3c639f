// The page: what is chosen, what is shown, and what happens when somebody touches it.
"use strict";

const by_id = (id) => document.getElementById(id);
const QUANTITIES = [
  ["p", "row_p"], ["g", "row_g"], ["m", "row_m"], ["v", "row_v"],
  ["m_hat", "row_m_hat"], ["v_hat", "row_v_hat"], ["d", "row_d"], ["change", "row_change"],
];
const LETTERS = "ABCDEFGH";
const DASHES = [[], [7, 5], [2, 5], [10, 4, 2, 4]];

/** All that a link holds, and what of the page it does not. */
const state = { ...from_hash(location.hash), code: false, language: "en", playing: false };
/** The way that is stepped now. It may be longer than the steps that are shown. */
let way = new Way(state.settings);

// ── words ────────────────────────────────────────────────────────────────────────────────────────

/** The text of the chosen language; {name} is filled in. */
function word(key, filled = {}) {
  return WORDS[state.language][key].replace(/\{(\w+)\}/g, (_, name) => filled[name]);
}

function first_language() {
  const asked = new URLSearchParams(location.search).get("lang");
  if (Object.hasOwn(WORDS, asked ?? "")) {
    return asked;
  }
  return (navigator.languages ?? [navigator.language]).some((tag) => /^uk\b/i.test(tag)) ? "uk" : "en";
}

function write_words() {
  document.documentElement.lang = state.language;
  document.title = word("title");
  for (const each of document.querySelectorAll("[data-word]")) {
    each.textContent = word(each.dataset.word);
  }
  for (const each of document.querySelectorAll("[data-label]")) {
    each.setAttribute("aria-label", word(each.dataset.label));
    if (each.tagName === "BUTTON") {
      each.title = word(each.dataset.label);
    }
  }
  by_id("docs").href = word("docs_link");
  by_id("language").lang = state.language === "en" ? "uk" : "en";
  for (const [key, { field }] of Object.entries(amounts)) {
    const name = word(key === "x" || key === "y" ? `start_${key}` : key);
    field.label.textContent = name;
    field.number.setAttribute("aria-label", word("as_number", { name }));
    field.slider?.setAttribute("aria-label", word("by_slider", { name }));
  }
  write_theme();
}

function say(text) {
  by_id("message").textContent = text;
}

// ── theme ────────────────────────────────────────────────────────────────────────────────────────

const prefers_dark = matchMedia("(prefers-color-scheme: dark)");
const prefers_stillness = matchMedia("(prefers-reduced-motion: reduce)");

/** What was chosen here before. Some browsers keep nothing for files, and say so by an error. */
function remembered_theme() {
  try {
    return localStorage.getItem("adamas-theme");
  } catch {
    return null;
  }
}

function write_theme(chosen = document.documentElement.dataset.theme) {
  document.documentElement.dataset.theme = chosen;
  const label = word(chosen === "dark" ? "to_light" : "to_dark");
  by_id("theme").setAttribute("aria-label", label);
  by_id("theme").title = label;
}

// ── what is changed ──────────────────────────────────────────────────────────────────────────────

/** Take other settings: the path follows at once, as far as it was. */
function set(changes, steps = state.steps) {
  const reached = Math.max(way.steps.length, steps);
  state.settings = { ...state.settings, ...changes };
  way = new Way(state.settings);
  way.to(reached);
  go(steps);
}

/** Show the state after so many steps, which are made where they are not yet. */
function go(steps) {
  const wanted = Math.max(0, Math.min(steps, MOST_STEPS));
  state.steps = way.to(wanted);
  if (state.steps < wanted) {
    say(word("diverged", { t: way.steps.length + 1 }));
  } else if (steps > MOST_STEPS) {
    say(word("most", { most: MOST_STEPS }));
  } else {
    const [x, y] = way.points[state.steps];
    const inside = (p, [lower, upper]) => p >= lower && p <= upper;
    const view = view_now();
    say(inside(x, view[0]) && inside(y, view[1]) ? "" : word("outside"));
  }
  show();
  return state.steps === wanted && steps <= MOST_STEPS;
}

function choose_function(name) {
  stop();
  state.kept = [];
  way = new Way(defaults(name, state.settings.method));
  set(defaults(name, state.settings.method), 0);
}

/** Another method with what it does where nothing else is said, from the same start. */
function choose_method(method) {
  const { name, x, y, seed } = state.settings;
  set({ ...defaults(name, method), x, y, seed });
}

/** The hash as it was read or written last; another one is that of a link on its way here. */
let known_hash = location.hash;
/** Take what a link says, unless it is what is shown. */
function follow_hash() {
  known_hash = location.hash;
  if (known_hash !== hash_of(state)) {
    clear_errors();
    take_hash();
  }
}

function take_hash() {
  stop();
  const found = from_hash(location.hash);
  Object.assign(state, found);
  way = new Way(state.settings);
  go(found.steps);
  if (found.wrong.length > 0) {
    say(word("wrong_link", { parts: listed(found.wrong) }));
  }
}

/** Parts of a link, as much of them as is read. */
function listed(parts) {
  const texts = parts.slice(0, 3).map((part) => (part.length > 60 ? `${part.slice(0, 60)}…` : part));
  return texts.join(", ") + (parts.length > 3 ? ", …" : "");
}

let hash_waits = null;
function write_hash() {
  clearTimeout(hash_waits);
  if (location.hash === known_hash) {
    history.replaceState(null, "", hash_of(state));
    known_hash = location.hash;
  }
}

// ── running ──────────────────────────────────────────────────────────────────────────────────────

let next_tick = 0;
/** Step about 30 times a second, in longer strides as the path grows. */
function run() {
  if (prefers_stillness.matches) {
    go(state.steps + 200);
    return;
  }
  state.playing = true;
  let before = 0;
  const tick = (now) => {
    next_tick = requestAnimationFrame(tick);
    if (now - before >= 30) {
      before = now;
      if (!go(state.steps + Math.max(1, Math.round(state.steps / 80)))) {
        stop();
      }
    }
  };
  next_tick = requestAnimationFrame(tick);
  show();
}

function stop() {
  if (state.playing) {
    state.playing = false;
    cancelAnimationFrame(next_tick);
    show();
  }
}

// ── kept ways ────────────────────────────────────────────────────────────────────────────────────

const kept_ways = new WeakMap();
function way_of(kept) {
  if (!kept_ways.has(kept)) {
    const { steps, ...settings } = kept;
    const made = new Way(settings);
    made.to(steps);
    kept_ways.set(kept, made);
  }
  return kept_ways.get(kept);
}

function keep(...ways) {
  const over = state.kept.length + ways.length - MOST_KEPT;
  if (over > 0) {
    say(word("too_many", { most: MOST_KEPT, over }));
    return;
  }
  state.kept = [...state.kept, ...ways];
  show();
}

/** Momentum, RMSProp, Adam and the note's form from the start that is chosen. */
function keep_all() {
  const { name, x, y, seed } = state.settings;
  const steps = state.steps || 200;
  const all = Object.keys(METHODS).map((method) => ({ ...defaults(name, method), x, y, seed, steps }));
  keep(...all, { ...defaults(name, "adam"), x, y, seed, steps, correction: "first-step" });
}

/** Kept ways with colour, dash and letter; those of one colour differ by their dashes. */
function kept_styles() {
  const seen = { [colour_of(state.settings)]: 1 };
  return state.kept.map((kept, i) => {
    const colour = colour_of(kept);
    const dash = DASHES[(seen[colour] ?? 0) % DASHES.length];
    seen[colour] = (seen[colour] ?? 0) + 1;
    return { kept, colour, dash, letter: LETTERS[i] };
  });
}

function values_of(made) {
  made.values ??= [];
  for (let t = made.values.length; t < made.points.length; t++) {
    made.values.push(made.track.value(...made.points[t]));
  }
  return made.values;
}

/** All that each step of a way is made of, by coordinate; worked out once. */
function quantities_of(made) {
  made.quantities ??= [[], []];
  made.quantities.forEach((list, i) => {
    for (let t = list.length; t < made.steps.length; t++) {
      list.push(quantities(made.options, made.steps[t], i));
    }
  });
  return made.quantities;
}

// ── showing ──────────────────────────────────────────────────────────────────────────────────────

let shown_soon = false;
/** Draw everything before the next frame, once. */
function show() {
  if (!shown_soon) {
    shown_soon = true;
    requestAnimationFrame(() => {
      shown_soon = false;
      show_now();
    });
  }
}

function view_now() {
  return view_of(way.track, [state.settings.x, state.settings.y]);
}

let ground_drawn = "";
function show_now() {
  const { settings, steps, coordinate } = state;
  document.documentElement.style.setProperty("--method", colour_of(settings));
  show_map();
  show_settings();
  const [x, y] = way.points[steps];
  const f_now = values_of(way)[steps];
  const now = word("now", { t: steps, x: pretty(x), y: pretty(y), f: pretty(f_now) });
  by_id("now").textContent = now.replaceAll(" = ", "\u00a0=\u00a0"); // no line ends there
  by_id("now").setAttribute("aria-live", state.playing ? "off" : "polite");
  const time = by_id("time");
  time.max = way.steps.length;
  time.value = steps;
  time.setAttribute("aria-valuetext", `t = ${steps}`);
  by_id("run").textContent = word(state.playing ? "pause" : "run");
  by_id("run").setAttribute("aria-pressed", state.playing);
  for (const id of ["reset", "back"]) {
    by_id(id).disabled = steps === 0;
  }
  show_lines(steps === 0 ? null : way.steps[steps - 1], coordinate);
  show_numbers(steps === 0 ? null : way.steps[steps - 1]);
  show_kept();
  clearTimeout(hash_waits);
  if (!state.playing) {
    hash_waits = setTimeout(write_hash, 250); // browsers refuse addresses that change all the time
  }
}

function show_map() {
  const { settings, steps } = state;
  const view = view_now();
  const ground = by_id("ground");
  const looks = JSON.stringify([
    settings.name, view, ground.clientWidth, ground.clientHeight, devicePixelRatio,
    document.documentElement.dataset.theme,
  ]);
  if (looks !== ground_drawn) {
    ground_drawn = looks;
    draw_ground(ground, way.track, view);
  }
  const kept = kept_styles().map(({ kept: each, ...style }) => {
    const made = way_of(each);
    return { points: made.points, steps: Math.min(each.steps, made.steps.length), ...style };
  });
  const last = steps === 0 ? null : way.steps[steps - 1].made.map((each) => each.g);
  const now = { points: way.points, steps, colour: colour_of(settings), letter: "", dash: [] };
  draw_paths(by_id("paths"), view, [...kept, now], last);
  const map = by_id("map");
  const [a, b] = placing(view, map.clientWidth, map.clientHeight).to([settings.x, settings.y]);
  const start = by_id("start");
  start.style.left = `${a}px`;
  start.style.top = `${b}px`;
  start.setAttribute("aria-label", word("start_at", { x: pretty(settings.x), y: pretty(settings.y) }));
}

function show_lines(step, coordinate) {
  const { settings, code } = state;
  by_id("lines-title").textContent = word(step ? "lines" : "lines_none", { t: step?.t });
  by_id("code-note").hidden = !code;
  const list = by_id("lines");
  list.className = code ? "code" : "formula";
  const items = code ? code_items(step, coordinate) : formula_items(step, coordinate);
  if (step === null) {
    items.push(made("li", { class: "first" }, word("first")));
  }
  list.replaceChildren(...items);
  check_choice("coordinate", "xy"[coordinate]);
  check_choice("shown-as", code ? "code" : "formula");
  check_choice("method", settings.method);
  check_choice("correction", settings.correction);
}

function formula_items(step, coordinate) {
  return formula_lines(state.settings, step, coordinate).map((line) => {
    const { target, formula, filled, result, why } = line;
    const item = made("li", {}, made("p", { class: "rule" }));
    item.firstChild.innerHTML = formula;
    if (step !== null) {
      const numbers = made("p", { class: "numbers" });
      numbers.append(filled === "" ? `${target} = ` : `${filled} = `, made("b", {}, result));
      item.append(numbers);
    }
    item.append(made("p", { class: "why" }, word(why, { x: "xy"[coordinate] })));
    return item;
  });
}

function code_items(step, coordinate) {
  return filled_lines(state.settings, step, coordinate).map((line) => {
    const { text, target, filled, result, needs } = line;
    const item = made("li", {}, made("p", { class: "rule" }, text));
    if (needs !== null) {
      const method = METHODS[state.settings.method].name;
      item.className = "out";
      item.append(made("p", { class: "why" }, word("left_out", { method, needs })));
    } else if (step !== null) {
      const numbers = made("p", { class: "numbers" }, `${target} = ${filled} = `);
      numbers.append(made("b", {}, short(result)));
      item.append(numbers);
    }
    return item;
  });
}

function show_numbers(step) {
  const { ink, muted } = theme_colours();
  const over_time = quantities_of(way);
  const found = [0, 1].map((i) => (step === null ? null : over_time[i][step.t - 1]));
  for (const [key, row] of QUANTITIES) {
    const cells = [by_id(`x-${key}`), by_id(`y-${key}`)];
    cells.forEach((cell, i) => {
      const number = found[i] === null ? (key === "p" ? way.points[0][i] : null) : found[i][key];
      cell.textContent = number === null ? "–" : short(number).replace(/^-/, "−");
    });
    const series = [0, 1].map((i) => {
      const numbers = over_time[i].map((each) => each[key]).filter((number) => number !== null);
      const before = key === "p" ? way.points[0][i] : NaN;
      return {
        numbers: [before, ...numbers], colour: i === 0 ? ink : muted, dash: i === 0 ? [] : [4, 3],
      };
    });
    const canvas = by_id(`plot-${key}`);
    canvas.setAttribute("aria-label", word("plot_of", { name: word(row) }));
    draw_plot(canvas, series, { at: state.steps, last: way.steps.length, zero: true });
  }
}

function show_kept() {
  const styles = kept_styles();
  by_id("clear").hidden = styles.length === 0;
  by_id("kept-none").hidden = styles.length > 0;
  const items = styles.map(({ kept, colour, letter }, i) => {
    const made_way = way_of(kept);
    const t = made_way.steps.length;
    const text = word("kept_way", {
      name: METHODS[kept.method].name,
      lr: pretty(kept.lr),
      correction: word(kept.correction === "none" ? "uncorrected" : kept.correction),
      f: pretty(values_of(made_way)[t], 3),
      t,
    });
    const button = made("button", { type: "button", class: "icon", "aria-label": word("forget", { letter }) }, "×");
    button.addEventListener("click", () => {
      state.kept = state.kept.filter((_, j) => j !== i);
      show();
      by_id("keep").focus();
    });
    const swatch = made("span", { class: "swatch", style: `--swatch: ${colour}` });
    return made("li", {}, swatch, made("b", {}, letter), made("span", {}, text), button);
  });
  by_id("kept").replaceChildren(...items);
  const goal = Math.min(...way.track.minima.map((point) => way.track.value(...point)));
  const logarithms = (made_way, steps) =>
    values_of(made_way).slice(0, steps + 1).map((value) => Math.log10(Math.max(value - goal, 1e-12)));
  const ways = [
    ...styles.map(({ kept, colour, dash }) => ({ made_way: way_of(kept), steps: kept.steps, colour, dash })),
    { made_way: way, steps: state.steps, colour: colour_of(state.settings), dash: [], wide: 2.75 },
  ];
  const series = ways.map(({ made_way, steps, ...style }) => ({
    numbers: logarithms(made_way, steps), ...style,
  }));
  const last = Math.max(1, ...series.map(({ numbers }) => numbers.length - 1));
  draw_plot(by_id("values"), series, { at: state.steps, last, zero: false, ticks: true });
}

/** An element with attributes, and texts or elements in it. */
function made(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function check_choice(id, value) {
  for (const radio of by_id(id).querySelectorAll("input")) {
    radio.checked = radio.value === value;
  }
}

// ── start ────────────────────────────────────────────────────────────────────────────────────────

state.language = first_language();
write_theme(remembered_theme() ?? (prefers_dark.matches ? "dark" : "light"));
make_controls();
write_words();
take_hash();
