// From options and a step number to the few numbers the rule needs, as src/adamas/coefficients.py
// computes them: in binary64, with additions, multiplications, divisions and square roots only, and
// rounded to binary32 once. Tests compare the bits. Names are those of Python.
"use strict";

/** What `adamas.Adam` does where nothing else is said; null where a method keeps no such mean. */
const DEFAULT_OPTIONS = Object.freeze({
  beta1: 0.9,
  beta2: 0.999,
  eps: 1e-8,
  weight_decay: 0,
  decay: "l2", // or "decoupled", "fully-decoupled", "cautious", "corrected"
  lr_max: null,
  amsgrad: false,
  nesterov: false,
  rectify: false,
  maximize: false,
  eps_place: "corrected", // or "uncorrected", "inside"
  eps_root: 0,
  bias_correction: "paper", // or "first-step", "none"
});

/** The numbers for a step (1 first) at a learning rate, in binary64. */
function at_step(options, step, lr, grad_scale = 1) {
  const { beta1, beta2, weight_decay } = options;
  let l2 = 0;
  let decay = 0;
  if (options.decay === "l2") {
    l2 = weight_decay;
  } else if (options.decay === "decoupled" || options.decay === "cautious") {
    decay = lr * weight_decay;
  } else {
    decay = weight_decay * (lr / options.lr_max);
    if (options.decay === "corrected") {
      decay = lr * decay;
    }
  }
  const [from_m, from_g] = beta1 === null ? [1, 0] : mean_weights(options, beta1, step);
  const unbias2 = beta2 === null ? 1 : unbias(options, beta2, step);
  let root = 1 / Math.sqrt(unbias2);
  let eps = options.eps;
  let inside = options.eps_root;
  if (options.eps_place === "uncorrected") {
    eps = eps * root;
  } else if (options.eps_place === "inside") {
    inside = inside + eps;
    eps = 0;
  }
  let rate = lr;
  if (options.rectify) {
    const rectified = rectification(beta2, step);
    if (rectified === 0) {
      root = 0;
      eps = 1;
    } else {
      rate = lr * rectified;
    }
  }
  return {
    grad_scale: options.maximize ? -grad_scale : grad_scale,
    l2,
    decay,
    opposed: options.decay === "cautious" ? 0 : decay,
    keep1: beta1 === null ? 0 : beta1,
    take1: beta1 === null ? 1 : 1 - beta1,
    keep2: beta2 === null ? 0 : beta2,
    take2: beta2 === null ? 1 : 1 - beta2,
    from_m,
    from_g,
    root,
    inner: inside * unbias2,
    eps,
    step: rate,
  };
}

/** The numbers as the rule takes them, each rounded to binary32 once. */
function rounded(c) {
  return Object.fromEntries(Object.entries(c).map(([name, number]) => [name, f(number)]));
}

/** 1 − β to the power of exponent, without a power: no engine's Math.pow is asked. */
function one_minus_power(beta, exponent) {
  let total = 0;
  let q = 1 - beta; // that of the power of two which the lowest bit stands for
  for (;;) {
    if (exponent & 1) {
      total = total + q * (1 - total);
    }
    exponent >>= 1;
    if (exponent === 0) {
      return total;
    }
    q = q * (2 - q);
  }
}

/** r_t of Liu et al. (2020), or 0 where ρ_t is not above 5. */
function rectification(beta, step) {
  let weights = 0;
  let numbers = 0;
  let q = 1 - beta; // of a power of two of terms, as all that follow
  let of_numbers = 1 - beta;
  let power = beta;
  let terms = 1;
  for (;;) {
    if (step & 1) {
      numbers = of_numbers + power * (terms * weights + numbers);
      weights = q + power * weights;
    }
    step >>= 1;
    if (step === 0) {
      break;
    }
    of_numbers = of_numbers + power * (terms * q + of_numbers);
    q = q + power * q;
    power = q <= 0.5 ? 1 - q : power * power;
    terms = terms + terms;
  }
  const length = 2 * (numbers / weights) - 1;
  if (!(length > 5)) {
    return 0;
  }
  const longest = 2 / (1 - beta) - 1;
  const now = (length - 4) * (length - 2);
  const last = (longest - 4) * (longest - 2);
  return Math.sqrt((now * longest) / (last * length));
}

/** What a mean is divided by at a step: 1 − β^t, or its like in the other forms. */
function unbias(options, beta, step) {
  if (options.bias_correction === "none") {
    return 1;
  }
  return one_minus_power(beta, options.bias_correction === "paper" ? step : 1);
}

function mean_weights(options, beta, step) {
  const now = unbias(options, beta, step);
  if (!options.nesterov) {
    return [1 / now, 0];
  }
  return [beta / unbias(options, beta, step + 1), (1 - beta) / now];
}
