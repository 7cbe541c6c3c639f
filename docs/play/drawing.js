// What is drawn: the function's contours, paths on them, and plots of numbers over steps.
"use strict";

const LEVELS = 24;
/** Around paths, in both themes: the colours of the methods are made for light ground. */
const PATH_HALO = "#ffffff";

/** The colours of the theme, as style.css has them. */
function theme_colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: of("ink"), muted: of("muted"), low: of("low"), high: of("high"), halo: of("halo"), rule: of("rule"), contour: of("contour"),
  };
}

/** Give a canvas as many pixels as it covers; return its context, in units of CSS pixels. */
function fitted(canvas) {
  const scale = Math.min(window.devicePixelRatio || 1, 2);
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height, scale };
}

// ── the map ──────────────────────────────────────────────────────────────────────────────────────

/** The bounds of the picture, widened where the start would not be in it. */
function view_of(track, start) {
  return track.view.map(([lower, upper], i) => {
    const at = start[i];
    const margin = (Math.max(upper, at) - Math.min(lower, at)) / 20;
    return [at >= lower ? lower : at - margin, at <= upper ? upper : at + margin];
  });
}

/** Functions from points to pixels of a map and back. */
function placing(view, width, height) {
  const [[left, right], [bottom, top]] = view;
  const near = (pixel) => Math.max(-1e5, Math.min(1e5, pixel));
  return {
    to: ([x, y]) => [
      near(((x - left) / (right - left)) * width),
      near(((top - y) / (top - bottom)) * height),
    ],
    from: ([a, b]) => [left + (a / width) * (right - left), top - (b / height) * (top - bottom)],
  };
}

function quantile(sorted, share) {
  return sorted[Math.round(share * (sorted.length - 1))];
}

/** Fill a canvas with bands of equal steps of the logarithm, as `adamas race` draws them. */
function draw_ground(canvas, track, view) {
  const { context, width, height, scale } = fitted(canvas);
  const columns = canvas.width;
  const rows = canvas.height;
  const { from } = placing(view, columns, rows);
  const heights = new Float64Array(columns * rows);
  const sample = [];
  for (let j = 0; j < rows; j++) {
    for (let i = 0; i < columns; i++) {
      const h = track.value(...from([i + 0.5, j + 0.5]));
      heights[j * columns + i] = h;
      if (i % 8 === 0 && j % 8 === 0) {
        sample.push(h);
      }
    }
  }
  sample.sort((a, b) => a - b);
  const lowest = sample[0];
  const middle = quantile(sample, 0.5);
  const offset = 1e-3 * (middle - lowest) + 1e-12;
  const level = (h) => Math.log10(Math.max(h - lowest, 0) + offset);
  const first = level(lowest);
  const all = level(sample[sample.length - 1]) - first || 1;
  for (let k = 0; k < heights.length; k++) {
    heights[k] = ((level(heights[k]) - first) / all) * LEVELS;
  }
  const [from_colour, to_colour, line_colour] = ["low", "high", "contour"].map((name) =>
    channels(theme_colours()[name]),
  );
  const image = context.createImageData(columns, rows);
  for (let j = 0; j < rows; j++) {
    for (let i = 0; i < columns; i++) {
      const k = j * columns + i;
      const here = heights[k];
      const across = heights[i + 1 < columns ? k + 1 : k - 1] - here;
      const down = heights[j + 1 < rows ? k + columns : k - columns] - here;
      const share = Math.min(Math.floor(here), LEVELS - 1) / (LEVELS - 1);
      // A contour is as wide on steep ground as on flat: its distance is in pixels.
      const distance = Math.abs(here - Math.round(here)) / (Math.hypot(across, down) + 1e-9);
      const contour = 0.55 * Math.max(0, Math.min(1, 0.5 * scale + 0.5 - distance));
      for (let channel = 0; channel < 3; channel++) {
        const band = from_colour[channel] + share * (to_colour[channel] - from_colour[channel]);
        image.data[4 * k + channel] = band + contour * (line_colour[channel] - band);
      }
      image.data[4 * k + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  draw_scales(context, view, width, height);
  const { to } = placing(view, width, height);
  for (const minimum of track.minima) {
    draw_star(context, ...to(minimum));
  }
}

/** The three channels of a colour "#rrggbb". */
function channels(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

function draw_scales(context, view, width, height) {
  const { muted, halo } = theme_colours();
  const { to } = placing(view, width, height);
  context.font = "11px system-ui, sans-serif";
  context.lineJoin = "round";
  const write = (text, a, b) => {
    context.strokeStyle = halo;
    context.lineWidth = 3;
    context.strokeText(text, a, b);
    context.fillStyle = muted;
    context.fillText(text, a, b);
  };
  view.forEach(([lower, upper], axis) => {
    const by = nice_step((upper - lower) / (axis === 0 ? width / 80 : height / 60));
    for (let n = Math.ceil(lower / by); n * by <= upper; n++) {
      const value = Number((n * by).toPrecision(6));
      const [a, b] = to(axis === 0 ? [value, view[1][0]] : [view[0][0], value]);
      const text = pretty(value);
      if (axis === 0 && a > 24 && a < width - 12) {
        context.textAlign = "center";
        write(text, a, height - 6);
      } else if (axis === 1 && b > 12 && b < height - 20) {
        context.textAlign = "left";
        write(text, 5, b + 4);
      }
    }
  });
}

/** 1, 2 or 5 times a power of ten, not less than a size. */
function nice_step(size) {
  const power = 10 ** Math.floor(Math.log10(size));
  return power * [1, 2, 5, 10].find((digit) => digit * power >= size * 0.999);
}

function draw_star(context, x, y) {
  const { ink, halo } = theme_colours();
  context.beginPath();
  for (let k = 0; k < 10; k++) {
    const angle = -Math.PI / 2 + (k * Math.PI) / 5;
    const size = k % 2 === 0 ? 9 : 3.8;
    context.lineTo(x + size * Math.cos(angle), y + size * Math.sin(angle));
  }
  context.closePath();
  context.lineJoin = "round";
  context.strokeStyle = halo;
  context.lineWidth = 3;
  context.stroke();
  context.fillStyle = ink;
  context.fill();
}

/**
 * Draw ways on a map: each is { points, steps, colour, letter, dash }, the last one that which is
 * stepped now, with the gradient that its last step was given as an arrow.
 */
function draw_paths(canvas, view, ways, gradient) {
  const { context, width, height } = fitted(canvas);
  const { halo, ink } = theme_colours();
  const { to } = placing(view, width, height);
  context.lineJoin = "round";
  context.lineCap = "round";
  const trace = (points) => {
    context.beginPath();
    points.forEach((point) => context.lineTo(...to(point)));
    context.stroke();
  };
  ways.forEach(({ points, steps, colour, dash }, number) => {
    const now = number === ways.length - 1;
    const made = points.slice(0, steps + 1);
    context.setLineDash([]);
    context.strokeStyle = PATH_HALO;
    context.lineWidth = now ? 6 : 4.5;
    trace(made);
    context.strokeStyle = colour;
    if (now && points.length > made.length) {
      context.globalAlpha = 0.35;
      context.lineWidth = 2;
      trace(points.slice(steps));
      context.globalAlpha = 1;
    }
    context.lineWidth = now ? 3 : 2.25;
    context.setLineDash(dash);
    trace(made);
    context.setLineDash([]);
    if (now && steps <= 300) {
      context.fillStyle = colour;
      for (const point of made) {
        dot(context, ...to(point), 3);
      }
    }
    if (now && gradient !== null && steps > 0) {
      arrow(context, to(points[steps - 1]), to, points[steps - 1], gradient, ink, halo);
    }
    const [a, b] = to(made[made.length - 1]);
    context.fillStyle = PATH_HALO;
    dot(context, a, b, now ? 9 : 8);
    context.fillStyle = colour;
    dot(context, a, b, now ? 7 : 6.5);
  });
  // Above all paths, so that none hides another's letter.
  context.font = "700 13px system-ui, sans-serif";
  context.textAlign = "center";
  context.lineWidth = 4;
  for (const { points, steps, letter } of ways) {
    const [a, b] = to(points[steps]);
    context.strokeStyle = halo;
    context.strokeText(letter, a + 14, b - 8);
    context.fillStyle = ink;
    context.fillText(letter, a + 14, b - 8);
  }
}

function dot(context, a, b, radius) {
  context.beginPath();
  context.arc(a, b, radius, 0, 2 * Math.PI);
  context.fill();
}

/** An arrow of one length against a gradient: where plain gradient descent would go. */
function arrow(context, [a, b], to, point, gradient, ink, halo) {
  const size = Math.hypot(...gradient);
  if (!(size > 0) || !Number.isFinite(size)) {
    return;
  }
  const [c, d] = to(point.map((p, i) => p - gradient[i] / size));
  const length = Math.hypot(c - a, d - b);
  const [x, y] = [(c - a) / length, (d - b) / length];
  const tip = [a + 40 * x, b + 40 * y];
  for (const [colour, wide] of [[halo, 4.5], [ink, 1.75]]) {
    context.strokeStyle = colour;
    context.lineWidth = wide;
    context.beginPath();
    context.moveTo(a, b);
    context.lineTo(...tip);
    context.moveTo(tip[0] - 8 * x + 5 * y, tip[1] - 8 * y - 5 * x);
    context.lineTo(...tip);
    context.lineTo(tip[0] - 8 * x - 5 * y, tip[1] - 8 * y + 5 * x);
    context.stroke();
  }
}

// ── plots over steps ─────────────────────────────────────────────────────────────────────────────

/**
 * Draw series of numbers over steps: each is { numbers, colour, dash, wide }, of one length or less.
 * A line marks step `at`; `zero` draws that line, too, and keeps it in the picture.
 */
function draw_plot(canvas, series, { at, last, zero, ticks = false }) {
  const { context, width, height } = fitted(canvas);
  const { rule: pale, muted, ink } = theme_colours();
  let [lowest, highest] = zero ? [0, 0] : [Infinity, -Infinity];
  for (const { numbers } of series) {
    for (const number of numbers) {
      if (Number.isFinite(number)) {
        lowest = Math.min(lowest, number);
        highest = Math.max(highest, number);
      }
    }
  }
  if (!(lowest < highest)) {
    [lowest, highest] = Number.isFinite(lowest) ? [lowest - 1, lowest + 1] : [-1, 1];
  }
  if (ticks) {
    [lowest, highest] = [Math.floor(lowest), Math.ceil(highest)];
  }
  const left = ticks ? 38 : 3;
  const across = (t) => left + (last === 0 ? 0 : (t / last) * (width - left - 4));
  const up = (number) => height - 4 - ((number - lowest) / (highest - lowest)) * (height - 8);
  const rule_off = (a, b, c, d) => {
    context.beginPath();
    context.moveTo(a, b);
    context.lineTo(c, d);
    context.stroke();
  };
  context.lineWidth = 1;
  context.strokeStyle = pale;
  if (zero) {
    rule_off(left, up(0), width, up(0));
  }
  if (ticks) {
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = muted;
    context.textAlign = "right";
    const by = Math.max(1, nice_step((highest - lowest) / 4));
    for (let power = Math.ceil(lowest / by) * by; power <= highest; power += by) {
      rule_off(left, up(power), width, up(power));
      context.fillText(pretty(Number(`1e${power}`)), left - 5, Math.min(up(power) + 4, height - 2));
    }
  }
  context.strokeStyle = ink;
  context.globalAlpha = 0.45;
  rule_off(across(at), 0, across(at), height);
  context.globalAlpha = 1;
  context.lineJoin = "round";
  for (const { numbers, colour, dash, wide = 1.75 } of series) {
    context.strokeStyle = colour;
    context.lineWidth = wide;
    context.setLineDash(dash);
    context.beginPath();
    numbers.forEach((number, t) => {
      if (Number.isFinite(number)) {
        context.lineTo(across(t), up(number));
      }
    });
    context.stroke();
    context.setLineDash([]);
  }
}
