// The functions of the page: values and gradients in binary64, as src/adamas/tracks.py has them, and
// one valley whose gradients are noisy. Powers are products. Tests compare both with Python.
"use strict";

/**
 * Start, picture and minima are those of `adamas race`. Learning rates are lower than there: with
 * these, single steps can be seen.
 */
const FUNCTIONS = {
  himmelblau: {
    value(x, y) {
      const a = x * x + y - 11;
      const b = x + y * y - 7;
      return a * a + b * b;
    },
    gradient(x, y) {
      const a = x * x + y - 11;
      const b = x + y * y - 7;
      return [4 * x * a + 2 * b, 2 * a + 4 * y * b];
    },
    start: [-0.5, -4.2],
    view: [[-5, 5], [-5, 5]],
    minima: [
      [3, 2],
      [-2.805118086952745, 3.131312518250573],
      [-3.779310253377747, -3.28318599128617],
      [3.584428340330492, -1.848126526964404],
    ],
    rates: { momentum: 0.01, rmsprop: 0.02, adam: 0.1 },
  },
  rosenbrock: {
    value(x, y) {
      const a = y - x * x;
      return (1 - x) * (1 - x) + 100 * (a * a);
    },
    gradient(x, y) {
      const a = y - x * x;
      return [-2 * (1 - x) - 400 * x * a, 200 * a];
    },
    start: [-1.2, 1],
    view: [[-2, 2], [-1, 3]],
    minima: [[1, 1]],
    rates: { momentum: 0.001, rmsprop: 0.01, adam: 0.1 },
  },
  beale: {
    value(x, y) {
      const [a, b, c] = beale_parts(x, y);
      return a * a + b * b + c * c;
    },
    gradient(x, y) {
      const [a, b, c] = beale_parts(x, y);
      // Python's sums begin at 0: none of them is −0.
      return [
        0 + 2 * a * (y - 1) + 2 * b * (y * y - 1) + 2 * c * (y * y * y - 1),
        0 + 2 * a * x + 2 * b * x * 2 * y + 2 * c * x * 3 * (y * y),
      ];
    },
    start: [1, 1.5],
    view: [[-1, 4.5], [-2, 2]],
    minima: [[3, 0.5]],
    rates: { momentum: 0.005, rmsprop: 0.02, adam: 0.1 },
  },
  rastrigin: {
    value(x, y) {
      const wave = 2 * Math.PI;
      return 20 + (x * x - 10 * Math.cos(wave * x) + (y * y - 10 * Math.cos(wave * y)));
    },
    gradient(x, y) {
      const wave = 2 * Math.PI;
      const height = 20 * Math.PI;
      return [2 * x + height * Math.sin(wave * x), 2 * y + height * Math.sin(wave * y)];
    },
    start: [-0.55, 0.8],
    view: [[-2.5, 2.5], [-2.5, 2.5]],
    minima: [[0, 0]],
    rates: { momentum: 0.005, rmsprop: 0.02, adam: 0.1 },
  },
  valley: {
    value(x, y) {
      return 0.25 * x * x + 4 * y * y;
    },
    gradient(x, y) {
      return [0.5 * x, 8 * y];
    },
    /** Largest size of what is added to each coordinate of the gradient. */
    noise: 4,
    start: [-4, 2.5],
    view: [[-5, 5], [-5, 5]],
    minima: [[0, 0]],
    rates: { momentum: 0.05, rmsprop: 0.05, adam: 0.1 },
  },
};

function beale_parts(x, y) {
  return [1.5 - x + x * y, 2.25 - x + x * (y * y), 2.625 - x + x * (y * y * y)];
}

/** The gradient that a method is given at a step: with noise where the function has any. */
function gradient_at(track, x, y, step, seed) {
  const slope = track.gradient(x, y);
  if (track.noise === undefined) {
    return slope;
  }
  const noise = uniform(seed, step);
  return [slope[0] + track.noise * noise[0], slope[1] + track.noise * noise[1]];
}

/** Two numbers in [−1, 1), a function of seed and step alone: the random bits of adamas. */
function uniform(seed, step) {
  const [k1, k2] = key_of(seed, step, 0);
  return [0, 1].map((index) => (random_bits(k1, k2, index) >>> 16) / 32768 - 1);
}

const DOUBLE_WORD = 0xffffffffffffffffn;

/** The key of src/adamas/codecs.py: rounds of splitmix64 (Steele, Lea & Flood 2014). */
function key_of(seed, step, tensor) {
  let z = 0n;
  for (const number of [seed, step, tensor]) {
    z = mixed((z + BigInt(number)) & DOUBLE_WORD);
  }
  return [Number(z & 0xffffffffn), Number(z >> 32n)];
}

function mixed(z) {
  z = (z + 0x9e3779b97f4a7c15n) & DOUBLE_WORD;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & DOUBLE_WORD;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & DOUBLE_WORD;
  return z ^ (z >> 31n);
}

function random_bits(k1, k2, index) {
  let x = (index + k1) >>> 0;
  x ^= x >>> 16;
  x = Math.imul(x, 0x21f0aaad);
  x ^= k2;
  x ^= x >>> 15;
  x = Math.imul(x, 0xd35a2d97);
  x ^= x >>> 15;
  return x >>> 0;
}
