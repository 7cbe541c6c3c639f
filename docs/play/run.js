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

// ── what a step is made of ───────────────────────────────────────────────────────────────────────

/** What m and v are divided by at a step, in binary64. */
function divisors(options, t) {
  const of = (beta) => (beta === null ? 1 : unbias(options, beta, t));
  return { mean: of(options.beta1), square: of(options.beta2) };
}

/**
 * The numbers of one coordinate at a step that the page shows. The rule holds 1/(1−β^t) as from_m
 * and 1/√(1−β2^t) as root; so m̂ is from_m · m, to the bit, and v̂ is worked out beside it.
 */
function quantities(options, step, coordinate) {
  const { c, t } = step;
  const { before, g, m, v, p, u, change } = step.made[coordinate];
  const m_hat = m === null ? null : f(c.from_m * m);
  const v_hat = v === null ? null : f(v / divisors(options, t).square);
  const d = v === null ? null : f(f(sqrt(f(v + c.inner)) * c.root) + c.eps);
  return { before, g, m, v, m_hat, v_hat, d, u, change, p };
}

/**
 * The lines of rule.py with the numbers of one coordinate filled in: text, the same with numbers,
 * and what comes out; `needs` names what the method must keep for the line, if it keeps none.
 */
function filled_lines(step, coordinate) {
  const { c } = step;
  const { before, g: given, m, v, u, change, p } = step.made[coordinate];
  const g = f(f(given * c.grad_scale) + f(c.l2 * before.p));
  const top = m === null ? g : f(f(c.from_m * m) + f(c.from_g * g));
  const d = v === null ? null : f(f(sqrt(f(v + c.inner)) * c.root) + c.eps);
  const lines = [
    ["g = g * c.grad_scale + c.l2 * p", { g: given, p: before.p }, g],
    ["m = flush(c.keep1 * m + c.take1 * g)", { m: before.m, g }, m, "m"],
    ["v = flush(c.keep2 * v + c.take2 * g * g)", { v: before.v, g }, v, "v"],
    ["s = v", { v }, v, "v"],
    ["u = g", { g }, g],
    ["u = c.from_m * m + c.from_g * g", { m, g }, top, "m"],
    ["d = sqrt(s + c.inner) * c.root + c.eps", { s: v }, d, "v"],
    ["u = ratio(u, d)", { u: top, d }, u, "v"],
    ["change = c.step * u + c.decay * p", { u, p: before.p }, change],
    ["p = p - change", { p: before.p, change }, p],
  ];
  return lines.map(([text, values, result, needs]) => {
    const made = needs === undefined || step.made[coordinate][needs] !== null;
    const [target, formula] = text.split(" = ");
    const filled = formula.replace(/c\.(\w+)|\b\w+\b(?!\()/g, (name, number) =>
      short(number === undefined ? values[name] : c[number]),
    );
    return { text, target, filled: made ? filled : null, result, needs: made ? null : needs };
  });
}

// ── numbers as text ──────────────────────────────────────────────────────────────────────────────

/** The shortest text that stands for a binary32 number and no other: its bits can be read from it. */
function short(number) {
  for (let digits = 1; digits < 9; digits++) {
    const text = plain(number, digits);
    if (f(Number(text)) === number) {
      return text;
    }
  }
  return plain(number, 9);
}

/** A number in so many digits, without zeros behind, in powers of ten where that is shorter. */
function plain(number, digits) {
  const text = Number(number.toPrecision(digits)).toString();
  return Object.is(number, -0) ? "-0" : text;
}

// ── links ────────────────────────────────────────────────────────────────────────────────────────

const KEYS = { beta1: "b1", beta2: "b2", eps: "eps", lr: "lr", x: "x", y: "y", seed: "seed" };
const OF_A_KEPT_WAY = ["method", "correction", "beta1", "beta2", "eps", "lr", "x", "y", "seed", "steps"];

/** Settings, number of steps, chosen coordinate and kept ways as the hash of a link. */
function hash_of({ settings, steps, coordinate, kept }) {
  const parts = [`f=${settings.name}`, `m=${settings.method}`, `c=${settings.correction}`];
  for (const [key, short_key] of Object.entries(KEYS)) {
    const shown = key !== "seed" || FUNCTIONS[settings.name].noise !== undefined;
    if (settings[key] !== null && shown) {
      parts.push(`${short_key}=${settings[key]}`);
    }
  }
  parts.push(`t=${steps}`, `of=${"xy"[coordinate]}`);
  const ways = kept.map((each) => OF_A_KEPT_WAY.map((key) => each[key] ?? "").join(","));
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
