// Settings, the way that a method makes with them, and both as text for a link. No page is needed.
"use strict";

/** What each method keeps, what it does where nothing else is said, and its colour. */
const METHODS = {
  momentum: {
    name: "Momentum", mean: true, square: false,
    beta1: 0.9, beta2: null, eps: null, correction: "none", colour: "#D55E00",
  },
  rmsprop: {
    name: "RMSProp", mean: false, square: true,
    beta1: null, beta2: 0.9, eps: 1e-8, correction: "none", colour: "#009E73",
  },
  adam: {
    name: "Adam", mean: true, square: true,
    beta1: 0.9, beta2: 0.999, eps: 1e-8, correction: "paper", colour: "#0072B2",
  },
};
const CORRECTIONS = ["paper", "first-step", "none"];
/** Of Adam where the exponent t is missing. */
const NOTE_COLOUR = "#CC79A7";
const MOST_STEPS = 5000;
const MOST_KEPT = 8;
const LARGEST_SEED = 999999;

function colour_of(settings) {
  const note = settings.method === "adam" && settings.correction === "first-step";
  return note ? NOTE_COLOUR : METHODS[settings.method].colour;
}

/** What a method is set to on a function where nobody has changed anything. */
function defaults(name = "himmelblau", method = "adam") {
  const track = FUNCTIONS[name];
  const { beta1, beta2, eps, correction } = METHODS[method];
  const [x, y] = track.start;
  return { name, method, correction, beta1, beta2, eps, lr: track.rates[method], x, y, seed: 0 };
}

// ── what may be set ──────────────────────────────────────────────────────────────────────────────

/** For each number: whether a value is possible. Values that are no finite number never are. */
const POSSIBLE = {
  beta1: (b) => b >= 0 && b < 1,
  beta2: (b) => b >= 0 && b < 1,
  eps: (e) => e >= 0,
  lr: (r) => r >= 0,
  x: (p) => Math.abs(p) <= 1000,
  y: (p) => Math.abs(p) <= 1000,
  seed: (s) => Number.isInteger(s) && s >= 0 && s <= LARGEST_SEED,
  steps: (n) => Number.isInteger(n) && n >= 0 && n <= MOST_STEPS,
};

/** The number that a text says; NaN where it says none. A comma may stand for the point. */
function number_of(text) {
  const plain = text.trim().replace(",", ".").replace("−", "-");
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
}

function is_possible(key, value) {
  return Number.isFinite(value) && POSSIBLE[key](value);
}

// ── the way ──────────────────────────────────────────────────────────────────────────────────────

/** The options of coefficients.js that settings stand for. */
function options_of(settings) {
  const { mean, square } = METHODS[settings.method];
  return {
    ...DEFAULT_OPTIONS,
    beta1: mean ? settings.beta1 : null,
    beta2: square ? settings.beta2 : null,
    eps: square ? settings.eps : 0,
    bias_correction: settings.correction,
  };
}

/**
 * A way from its start on: `points[t]` is where it is after t steps, `steps[t - 1]` what step t did
 * to each coordinate. It ends where point or gradient is no finite number; `diverged` is then true.
 */
class Way {
  constructor(settings) {
    const { mean, square } = METHODS[settings.method];
    this.settings = settings;
    this.track = FUNCTIONS[settings.name];
    this.options = options_of(settings);
    this.points = [[f(settings.x), f(settings.y)]];
    this.steps = [];
    this.diverged = false;
    this.state = [0, 1].map(() => ({ m: mean ? 0 : null, v: square ? 0 : null }));
  }

  /** Make steps until there are `count`; return how many there are. */
  to(count) {
    while (!this.diverged && this.steps.length < count) {
      this.step();
    }
    return Math.min(count, this.steps.length);
  }

  step() {
    const t = this.steps.length + 1;
    const point = this.points[t - 1];
    const c = rounded(at_step(this.options, t, this.settings.lr));
    const slope = gradient_at(this.track, ...point, t, this.settings.seed).map(f);
    const made = point.map((p, i) => {
      const before = { p, ...this.state[i] };
      return { before, g: slope[i], ...rule(c, p, slope[i], before.m, before.v) };
    });
    if (![...slope, ...made.map((each) => each.p)].every(Number.isFinite)) {
      this.diverged = true;
      return;
    }
    this.state = made.map(({ m, v }) => ({ m, v }));
    this.points.push(made.map(({ p }) => p));
    this.steps.push({ t, c, made });
  }
}

// ── links ────────────────────────────────────────────────────────────────────────────────────────

const KEYS = { beta1: "b1", beta2: "b2", eps: "eps", lr: "lr", x: "x", y: "y", seed: "seed" };
const OF_A_KEPT_WAY = ["method", "correction", "beta1", "beta2", "eps", "lr", "x", "y", "seed", "steps"];

/** A setting in a link, where a plus would be read as a space. */
const in_link = (setting) => String(setting ?? "").replace("+", "");

/** Settings, number of steps, chosen coordinate and kept ways as the hash of a link. */
function hash_of({ settings, steps, coordinate, kept }) {
  const parts = [`f=${settings.name}`, `m=${settings.method}`, `c=${settings.correction}`];
  for (const [key, short_key] of Object.entries(KEYS)) {
    const shown = key !== "seed" || FUNCTIONS[settings.name].noise !== undefined;
    if (settings[key] !== null && shown) {
      parts.push(`${short_key}=${in_link(settings[key])}`);
    }
  }
  parts.push(`t=${steps}`, `of=${"xy"[coordinate]}`);
  const ways = kept.map((each) => OF_A_KEPT_WAY.map((key) => in_link(each[key])).join(","));
  return `#${[...parts, ...ways.map((way) => `keep=${way}`)].join("&")}`;
}

/** What a hash says, with defaults for the rest; `wrong` lists the parts that say nothing possible. */
function from_hash(hash) {
  const wrong = [];
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const chosen = (key, list, otherwise) => {
    const value = given.get(key);
    if (value !== null && !list.includes(value)) {
      wrong.push(`${key}=${value}`);
    }
    return list.includes(value) ? value : otherwise;
  };
  const name = chosen("f", Object.keys(FUNCTIONS), "himmelblau");
  const method = chosen("m", Object.keys(METHODS), "adam");
  const settings = defaults(name, method);
  settings.correction = chosen("c", CORRECTIONS, settings.correction);
  const numbers = (key, short_key, otherwise) => {
    const text = given.get(short_key);
    if (text === null) {
      return otherwise;
    }
    const value = number_of(text);
    if (!is_possible(key, value)) {
      wrong.push(`${short_key}=${text}`);
      return otherwise;
    }
    return value;
  };
  for (const [key, short_key] of Object.entries(KEYS)) {
    const value = numbers(key, short_key, settings[key]);
    settings[key] = settings[key] === null ? null : value;
  }
  const steps = numbers("steps", "t", 0);
  const coordinate = chosen("of", ["x", "y"], "x") === "x" ? 0 : 1;
  const kept = [];
  for (const text of given.getAll("keep")) {
    const way = kept_of(name, text);
    if (way === null || kept.length === MOST_KEPT) {
      wrong.push(`keep=${text}`);
    } else {
      kept.push(way);
    }
  }
  return { settings, steps, coordinate, kept, wrong };
}

function kept_of(name, text) {
  const parts = text.split(",");
  const [method, correction] = parts;
  if (parts.length !== OF_A_KEPT_WAY.length || !Object.hasOwn(METHODS, method)) {
    return null;
  }
  const way = { ...defaults(name, method), correction };
  for (const key of OF_A_KEPT_WAY.slice(2)) {
    const value = number_of(parts[OF_A_KEPT_WAY.indexOf(key)]);
    const kept = way[key] !== null; // undefined, of steps, is no null
    if (kept && !is_possible(key, value)) {
      return null;
    }
    way[key] = kept ? value : null;
  }
  return CORRECTIONS.includes(correction) ? way : null;
}
