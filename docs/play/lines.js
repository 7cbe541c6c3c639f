// What a step is made of: the numbers of a coordinate, and the lines of the rule with them filled in.
"use strict";

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

/** The lines of rule.py, but those of AMSGrad; and what a method must keep for a line, if anything. */
const RULE_LINES = [
  ["g = g * c.grad_scale + c.l2 * p"],
  ["m = flush(c.keep1 * m + c.take1 * g)", "m"],
  ["v = flush(c.keep2 * v + c.take2 * g * g)", "v"],
  ["s = v", "v"],
  ["u = g"],
  ["u = c.from_m * m + c.from_g * g", "m"],
  ["d = sqrt(s + c.inner) * c.root + c.eps", "v"],
  ["u = ratio(u, d)", "v"],
  ["change = c.step * u + shrinkage(c.decay, c.opposed, u, p)"],
  ["p = p - change"],
];

/**
 * The lines with the numbers of one coordinate: text, the same with numbers, and what comes out. A
 * line that is left out names what the method does not keep; before the first step there is text.
 */
function filled_lines(settings, step, coordinate) {
  const { mean, square } = METHODS[settings.method];
  const kept = { m: mean, v: square };
  const known = step === null ? null : values_of_lines(step, coordinate);
  return RULE_LINES.map(([text, needs], number) => {
    const [target, formula] = text.split(" = ");
    const out = needs !== undefined && !kept[needs];
    const line = { text, target, filled: null, result: null, needs: out ? needs : null };
    if (out || known === null) {
      return line;
    }
    const [values, result] = known[number];
    const filled = formula.replace(/c\.(\w+)|\b\w+\b(?!\()/g, (name, coefficient) =>
      short(coefficient === undefined ? values[name] : step.c[coefficient]),
    );
    return { ...line, filled, result };
  });
}

/** For each line: the values that it reads, and what it gives. */
function values_of_lines(step, coordinate) {
  const { c } = step;
  const { before, g: given, m, v, u, change, p } = step.made[coordinate];
  const g = f(f(given * c.grad_scale) + f(c.l2 * before.p));
  const top = m === null ? g : f(f(c.from_m * m) + f(c.from_g * g));
  const d = v === null ? null : f(f(sqrt(f(v + c.inner)) * c.root) + c.eps);
  return [
    [{ g: given, p: before.p }, g],
    [{ m: before.m, g }, m],
    [{ v: before.v, g }, v],
    [{ v }, v],
    [{ g }, g],
    [{ m, g }, top],
    [{ s: v }, d],
    [{ u: top, d }, u],
    [{ u, p: before.p }, change],
    [{ p: before.p, change }, p],
  ];
}

// ── as formulas ──────────────────────────────────────────────────────────────────────────────────

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/** A number to be read: five digits, a real minus, powers of ten. */
function pretty(number, digits = 5) {
  if (!Number.isFinite(number)) {
    return Number.isNaN(number) ? "NaN" : number > 0 ? "∞" : "−∞";
  }
  const [digit_part, power] = plain(number, digits).split("e");
  const raised = (text) =>
    [...text].map((c) => (c === "-" ? "⁻" : c === "+" ? "" : SUPERSCRIPTS[c])).join("");
  const text = power === undefined ? digit_part : `${digit_part}·10${raised(power)}`;
  return text.replace("-", "−").replace(/^1·10/, "10");
}

/** The same as a part of a product or sum: in parentheses where it is negative. */
function factor(number) {
  const text = pretty(number);
  return text.startsWith("−") ? `(${text})` : text;
}

// Parts of formulas in HTML: MathML needs a font for mathematics, which many machines lack. What is
// hidden is read aloud.
const hidden = (text) => `<span class="hidden">${text}</span>`;
const letter = (text) => `<i>${text}</i>`;
const sign = (text) => ` ${text} `;
const row = (...parts) => parts.join("");
const fraction = (top, bottom) =>
  `<span class="fraction"><span>${top}</span>${hidden(" / (")}<span>${bottom}</span>${hidden(")")}</span>`;
const root_of = (part) => `<span class="root">√<span>${part}</span></span>`;
const squared = (part) => `${part}<sup>2</sup>`;
const hat = (part) => `<span class="hat">${part}${hidden("\u0302")}</span>`;
const beta = (index) => `${letter("β")}<sub>${index}</sub>`;
const beta_to_t = (index) =>
  `${letter("β")}<span class="scripts"><sup>${letter("t")}</sup><sub>${index}</sub></span>`;
const rest = (part) => `1${sign("−")}${part}`;
const in_parentheses = (part) => `(${part}) `;
const math = (...parts) => `<span class="math">${row(...parts)}</span>`;

const [G, M, V, ETA, EPS, DELTA] = [..."gmvηεΔ"].map(letter);
const DENOMINATOR = row(root_of(hat(V)), sign("+"), EPS);

/** The quantities of the table, as formulas. */
const SYMBOLS = {
  p: math(letter("x"), ", ", letter("y")),
  g: math(G),
  m: math(M),
  v: math(V),
  m_hat: math(hat(M)),
  v_hat: math(hat(V)),
  d: math(DENOMINATOR),
  change: math(DELTA),
};

/** A mean after correction: over 1 − β^t, over 1 − β, or as it is. */
function corrected(mean, index, correction) {
  const by = { paper: beta_to_t(index), "first-step": beta(index) }[correction];
  return by === undefined ? mean : fraction(mean, rest(by));
}

/**
 * The paper's lines for one coordinate: formula, what it is of, numbers in it, what comes out, and
 * the word that says what for. Before the first step there are formulas alone.
 */
function formula_lines(settings, step, coordinate) {
  const { method, correction, lr, beta1, beta2, eps } = settings;
  const { mean, square } = METHODS[method];
  const x = "xy"[coordinate];
  const q = step === null ? null : quantities(options_of(settings), step, coordinate);
  const by = q === null ? null : divisors(options_of(settings), step.t);
  const noisy = FUNCTIONS[settings.name].noise !== undefined;
  const lines = [];
  const add = (target, formula, why, filled, result) =>
    lines.push({ target, formula: math(...formula), why, filled: q && filled(), result: q && pretty(result) });
  const why_hat = { paper: "why_hat_paper", "first-step": "why_hat_first", none: "why_hat_none" }[correction];
  const over = (number, divisor) =>
    correction === "none" ? pretty(number) : `${pretty(number)} / ${pretty(divisor)}`;
  const moving = (mean_of, index, what) => [
    mean_of, sign("←"), beta(index), mean_of, sign("+"), in_parentheses(rest(beta(index))), what,
  ];

  const slope = fraction(`∂${letter("f")}`, `∂${letter(x)}`);
  const noise = noisy ? [sign("+"), letter("ξ")] : [];
  add("g", [G, sign("="), slope, ...noise], noisy ? "why_g_noise" : "why_g", () => "", q?.g);
  if (mean) {
    const filled = () => `${pretty(beta1)}·${factor(q.before.m)} + ${pretty(1 - beta1)}·${factor(q.g)}`;
    add("m", moving(M, 1, G), "why_m", filled, q?.m);
  }
  if (square) {
    const filled = () => `${pretty(beta2)}·${factor(q.before.v)} + ${pretty(1 - beta2)}·${factor(q.g)}²`;
    add("v", moving(V, 2, squared(G)), "why_v", filled, q?.v);
  }
  if (mean) {
    const formula = [hat(M), sign("="), corrected(M, 1, correction)];
    add("m̂", formula, why_hat, () => over(q.m, by.mean), q?.m_hat);
  }
  if (square) {
    const formula = [hat(V), sign("="), corrected(V, 2, correction)];
    add("v̂", formula, why_hat, () => over(q.v, by.square), q?.v_hat);
  }
  const top = mean ? hat(M) : G;
  const update = () =>
    `${pretty(lr)}·${factor(mean ? q.m_hat : q.g)}` +
    (square ? ` / (√${pretty(q.v_hat)} + ${pretty(eps)})` : "");
  const formula = [DELTA, sign("="), ETA, square ? fraction(top, DENOMINATOR) : top];
  const about_lr = method !== "adam" || correction === "paper";
  add("Δ", formula, `why_update_${about_lr ? method : "other"}`, update, q?.change);
  const moved = [letter(x), sign("←"), letter(x), sign("−"), DELTA];
  add(x, moved, "why_p", () => `${pretty(q.before.p)} − ${factor(q.change)}`, q?.p);
  return lines;
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
