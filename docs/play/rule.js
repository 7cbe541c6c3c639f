// The rule: what one step of Adam, RMSProp or Momentum does to one element, in binary32.
//
// The lines are those of src/adamas/rule.py, and a test compares the two; read that file for what
// the letters mean and where they come from. JavaScript computes in binary64, so f rounds after each
// operator. For + − × ÷ √ of binary32 numbers that gives the bits of binary32 (Figueroa 1995).
"use strict";

const f = Math.fround;
/** 2 to the power of −126, without Math.pow, which differs by engine. */
const SMALLEST_NORMAL = 1.1754943508222875e-38;

/** Parameter and state after one step; m, v and w are null where a method keeps none. */
function rule(c, p, g, m = null, v = null, w = null) {
  g = f(f(g * c.grad_scale) + f(c.l2 * p));
  if (m !== null) {
    m = flush(f(f(c.keep1 * m) + f(c.take1 * g)));
  }
  if (v !== null) {
    v = flush(f(f(c.keep2 * v) + f(f(c.take2 * g) * g)));
  }
  let s = v;
  if (w !== null) {
    w = maximum(w, v);
    s = w;
  }
  let u = g;
  if (m !== null) {
    u = f(f(c.from_m * m) + f(c.from_g * g));
  }
  if (s !== null) {
    const d = f(f(sqrt(f(s + c.inner)) * c.root) + c.eps);
    u = ratio(u, d);
  }
  const change = f(f(c.step * u) + shrinkage(c.decay, c.opposed, u, p));
  p = f(p - change);
  return { p, m, v, w, u, change };
}

/** The running mean after one more value: exponential smoothing, flushed. */
function smooth(keep, take, mean, x) {
  return flush(f(f(keep * mean) + f(take * x)));
}

/** 0 where x is subnormal, else x; NaN passes. */
function flush(x) {
  return Math.abs(x) < SMALLEST_NORMAL ? 0 : x;
}

/** u / d, and 0 where d is 0, so that ε = 0 is usable; NaN passes. */
function ratio(u, d) {
  const still = d === 0 && u === u;
  return still ? 0 : f(u / d);
}

/** The larger of a and b, b where they are equal, NaN where either is. */
function maximum(a, b) {
  return a > b || a !== a ? a : b;
}

/** decay · p, and opposed · p where u and p have opposite signs. */
function shrinkage(decay, opposed, u, p) {
  const differ = (u < 0 && p > 0) || (u > 0 && p < 0);
  return differ ? f(opposed * p) : f(decay * p);
}

/** The correctly rounded square root. */
function sqrt(x) {
  return f(Math.sqrt(x));
}
