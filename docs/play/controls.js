// Controls: made once, and what each does.
"use strict";

const round_to = (number, digits) => Number(number.toPrecision(digits));

/** Sliders go by powers of ten: of η, of ε, and of what β leaves to the new value, 1 − β. */
const BY_POWERS = {
  lr: { min: -4, max: 1, step: 0.05, number: (s) => round_to(10 ** s, 2), place: (r) => Math.log10(r) },
  eps: {
    min: -13, max: 2, step: 0.25,
    number: (s) => (s <= -13 ? 0 : round_to(10 ** s, 2)), place: (e) => Math.log10(e),
  },
  beta: {
    min: 0, max: 4, step: 0.05,
    number: (s) => round_to(1 - round_to(10 ** -s, 2), 6), place: (b) => -Math.log10(1 - b),
  },
};
const WRONG = {
  beta1: "wrong_beta", beta2: "wrong_beta", lr: "wrong_amount", eps: "wrong_amount",
  x: "wrong_place", y: "wrong_place", seed: "wrong_seed",
};
/** For each number that may be set: its field (label, slider, number, error), and how it slides. */
const amounts = {};

function make_amount(key, sliding) {
  const id = `amount-${key}`;
  const label = made("label", { for: id });
  const number = made("input", {
    id, type: "text", inputmode: "decimal", autocomplete: "off", spellcheck: "false",
    "aria-describedby": `${id}-error`,
  });
  const error = made("p", { id: `${id}-error`, class: "error", role: "alert" });
  const field = { label, number, error, box: made("div", { class: `field field-${key} ${sliding ? "" : "narrow"}` }) };
  field.box.append(label, number);
  number.addEventListener("change", () => take_text(key));
  if (sliding) {
    const { min, max, step } = sliding;
    field.slider = made("input", { type: "range", min, max, step, id: `slider-${key}` });
    field.slider.addEventListener("input", () => {
      clear_error(key);
      set({ [key]: sliding.number(Number(field.slider.value)) });
    });
    field.box.append(field.slider);
  }
  field.box.append(error);
  amounts[key] = { field, sliding };
  return field.box;
}

/** Take what stands in a field, or say what must stand there and change nothing. */
function take_text(key) {
  const { field } = amounts[key];
  const text = field.number.value.trim();
  const value = number_of(text);
  if (is_possible(key, value)) {
    clear_error(key);
    set({ [key]: value });
    return;
  }
  field.number.setAttribute("aria-invalid", "true");
  const name = field.label.textContent;
  field.error.textContent = word(Number.isNaN(value) ? "wrong_number" : WRONG[key], { name, text });
}

/** Errors in the language that has been chosen now. */
function write_errors() {
  const waits = ([, { field }]) => field.number.getAttribute("aria-invalid") === "true";
  Object.entries(amounts).filter(waits).forEach(([key]) => take_text(key));
}

function clear_error(key) {
  const { field } = amounts[key];
  field.number.removeAttribute("aria-invalid");
  field.error.textContent = "";
}

function clear_errors() {
  Object.keys(amounts).forEach(clear_error);
}

/** Write settings into their fields, but for those that are being written in or wait for a number. */
function show_settings() {
  const { settings } = state;
  by_id("function").value = settings.name;
  for (const [key, { field, sliding }] of Object.entries(amounts)) {
    const value = settings[key];
    field.box.hidden = value === null || (key === "seed" && way.track.noise === undefined);
    if (value === null) {
      continue;
    }
    const busy = field.number.getAttribute("aria-invalid") === "true";
    if (!busy && field.number !== document.activeElement) {
      field.number.value = String(value);
    }
    if (sliding) {
      const place = sliding.place(value);
      field.slider.value = Math.max(sliding.min, Math.min(sliding.max, place));
      field.slider.setAttribute("aria-valuetext", String(value));
    }
  }
}

/** Radio buttons in a row: [value, word or text, colour or nothing] each. */
function make_choice(id, choices, chosen) {
  for (const [value, text, colour] of choices) {
    const radio = made("input", { type: "radio", name: id, value, id: `${id}-${value}` });
    radio.addEventListener("change", () => chosen(value));
    const label = made("label", { for: radio.id });
    if (colour) {
      label.append(made("span", { class: "swatch", style: `--swatch: ${colour}` }));
    }
    const words = made("span", {}, text);
    if (Object.hasOwn(WORDS.en, text)) {
      words.dataset.word = text;
    }
    label.append(words);
    by_id(id).append(radio, label);
  }
}

function make_controls() {
  for (const name of Object.keys(FUNCTIONS)) {
    by_id("function").append(made("option", { value: name, "data-word": name }));
  }
  by_id("function").addEventListener("change", (event) => {
    clear_errors();
    choose_function(event.target.value);
  });
  const methods = Object.entries(METHODS).map(([key, { name, colour }]) => [key, name, colour]);
  make_choice("method", methods, (method) => {
    clear_errors();
    choose_method(method);
  });
  make_choice("correction", CORRECTIONS.map((each) => [each, each]), (correction) => set({ correction }));
  make_choice("coordinate", [["x", "x"], ["y", "y"]], (letter) => {
    state.coordinate = "xy".indexOf(letter);
    show();
  });
  make_choice("shown-as", [["formula", "formula"], ["code", "code"]], (form) => {
    state.code = form === "code";
    show();
  });
  const { lr, beta, eps } = BY_POWERS;
  const kinds = { lr, beta1: beta, beta2: beta, eps, x: null, y: null, seed: null };
  for (const [key, sliding] of Object.entries(kinds)) {
    by_id("amounts").append(make_amount(key, sliding));
  }
  make_table();
  make_experiments();
  make_buttons();
  make_start();
  addEventListener("resize", show);
  addEventListener("hashchange", follow_hash);
}

function make_buttons() {
  const clicked = (id, does) => by_id(id).addEventListener("click", does);
  const stopped = (does) => () => {
    stop();
    does();
  };
  by_id("time").addEventListener("input", (event) => {
    stop();
    go(Number(event.target.value));
  });
  clicked("reset", stopped(() => go(0)));
  clicked("back", stopped(() => go(state.steps - 1)));
  clicked("step", stopped(() => go(state.steps + 1)));
  clicked("jump", stopped(() => go(state.steps + 100)));
  clicked("run", () => (state.playing ? stop() : run()));
  clicked("keep", () => keep({ ...state.settings, steps: state.steps }));
  clicked("all", stopped(keep_all));
  clicked("clear", () => {
    state.kept = [];
    show();
  });
  clicked("defaults", () => {
    clear_errors();
    set(defaults(state.settings.name, state.settings.method));
  });
  clicked("share", async () => {
    write_hash();
    try {
      await navigator.clipboard.writeText(location.href);
      say(word("copied"));
    } catch {
      say(word("not_copied"));
    }
  });
  clicked("theme", () => {
    const chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    write_theme(chosen);
    try {
      localStorage.setItem("adamas-theme", chosen);
    } catch {
      // Then it holds for this visit.
    }
    show();
  });
  prefers_dark.addEventListener("change", () => {
    if (remembered_theme() === null) {
      write_theme(prefers_dark.matches ? "dark" : "light");
      show();
    }
  });
  clicked("language", () => {
    state.language = state.language === "en" ? "uk" : "en";
    const link = new URL(location.href);
    link.searchParams.set("lang", state.language);
    history.replaceState(null, "", link.href);
    write_words();
    write_errors();
    say("");
    show();
  });
}

/** The start: dragged by mouse or finger, moved by arrow keys, set by a click on the map. */
function make_start() {
  const map = by_id("map");
  const start = by_id("start");
  const move_to = (event) => {
    const box = map.getBoundingClientRect();
    const pixel = [event.clientX - box.left, event.clientY - box.top];
    const at = [
      Math.max(0, Math.min(box.width, pixel[0])),
      Math.max(0, Math.min(box.height, pixel[1])),
    ];
    place_start(placing(drag_view ?? view_now(), box.width, box.height).from(at));
  };
  let drag_view = null; // the picture must not move under the hand
  map.addEventListener("pointerdown", (event) => {
    const by_mouse = event.pointerType === "mouse" && event.button === 0;
    if (start.contains(event.target) || by_mouse) {
      event.preventDefault();
      stop();
      drag_view = view_now();
      map.setPointerCapture(event.pointerId);
      start.focus({ preventScroll: true });
      if (by_mouse) {
        move_to(event);
      }
    }
  });
  map.addEventListener("pointermove", (event) => {
    if (drag_view !== null && map.hasPointerCapture(event.pointerId)) {
      move_to(event);
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    map.addEventListener(name, () => {
      drag_view = null;
    });
  }
  // A finger on the map may be there to scroll; what ends as a tap is meant for the start.
  map.addEventListener("click", (event) => {
    if (event.pointerType !== "mouse" && !start.contains(event.target) && event.detail > 0) {
      stop();
      move_to(event);
    }
  });
  const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
  start.addEventListener("keydown", (event) => {
    const direction = directions[event.key];
    if (direction) {
      event.preventDefault();
      const by = event.shiftKey ? 0.1 : 0.01;
      const { x, y } = state.settings;
      const spans = way.track.view.map(([lower, upper]) => upper - lower);
      place_start([x + direction[0] * by * spans[0], y + direction[1] * by * spans[1]]);
    }
  });
}

/** Start at a point, in as many digits as a hand can mean. */
function place_start([x, y]) {
  const near = (p) => Math.max(-1000, Math.min(1000, Number(p.toFixed(3))));
  clear_error("x");
  clear_error("y");
  set({ x: near(x), y: near(y) });
}

function make_table() {
  for (const [key, name] of QUANTITIES) {
    const head = made("th", { scope: "row" });
    head.innerHTML = SYMBOLS[key];
    head.append(" ", made("span", { "data-word": name }));
    const cells = ["x", "y"].map((letter) => made("td", { id: `${letter}-${key}`, class: "number" }));
    const plot = made("canvas", { id: `plot-${key}`, role: "img" });
    by_id("numbers").append(made("tr", {}, head, ...cells, made("td", { class: "plot" }, plot)));
  }
}

/** What is worth a look: each is a link, as a teacher would share it. */
const EXPERIMENTS = [
  ["try_valley", { name: "rosenbrock", steps: 300, kept: [{ method: "momentum" }, { method: "rmsprop" }] }],
  ["try_start", { steps: 12, correction: "none", kept: [{ correction: "paper" }] }],
  ["try_note", { steps: 25, correction: "first-step", kept: [{ correction: "paper" }] }],
  ["try_noise", { name: "valley", steps: 120, beta1: 0.95, kept: [{ beta1: 0 }] }],
  ["try_eps", { steps: 150, eps: 100, lr: 1, kept: [{ method: "momentum" }, {}] }],
  ["try_local", { name: "rastrigin", steps: 150, x: 1.7, y: 1.2, kept: [] }],
];

function link_of({ name = "himmelblau", steps, kept, ...changes }) {
  const settings = { ...defaults(name), ...changes };
  const ways = kept.map(({ method = "adam", ...other }) => ({
    ...defaults(name, method), x: settings.x, y: settings.y, ...other, steps,
  }));
  return hash_of({ settings, steps, coordinate: 0, kept: ways });
}

function make_experiments() {
  for (const [key, experiment] of EXPERIMENTS) {
    const link = made("a", { href: link_of(experiment), "data-word": key });
    by_id("experiments").append(made("li", {}, link, made("p", { "data-word": `${key}_text` })));
  }
}
