// Logits -> nails and masks, as nailcore/tryon does it: components, finger classes, angles, extents.
const MIN_COHERENCE = 1e-6; // below it the directions cancel out, and what is left is rounding

// Index of cell `cell`, channel `channel`: TF.js gives NHWC, CoreML and ONNX NCHW.
function strides(layout, cells, channels) {
  if (layout === 'NHWC') return { perCell: channels, perChannel: 1 };
  if (layout === 'NCHW') return { perCell: 1, perChannel: cells };
  throw new Error(`layout '${layout}': expected NHWC or NCHW`);
}

// 8-connectivity by union-find in one scan over row pairs: each cell looks at the row above and its left neighbour.
// Returns Int32Array labels: 0 background, then 1.. in raster order of each component's first cell.
export function labelComponents(mask, height, width) {
  const labels = new Int32Array(height * width);
  const parents = [0];
  const find = (label) => {
    let root = label;
    while (parents[root] !== root) root = parents[root];
    while (parents[label] !== root) [parents[label], label] = [root, parents[label]];
    return root;
  };
  for (let y = 0, cell = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, cell += 1) {
      if (!mask[cell]) continue;
      const above = y > 0 ? labels[cell - width] : 0;
      const left = x > 0 ? labels[cell - 1] : 0;
      const aboveLeft = y > 0 && x > 0 ? labels[cell - width - 1] : 0;
      const aboveRight = y > 0 && x + 1 < width ? labels[cell - width + 1] : 0;
      // `above` touches all three others; without it only `aboveRight` may join two components.
      let label = above || aboveLeft || left;
      if (!above && aboveRight) {
        if (!label) label = aboveRight;
        else {
          const [one, other] = [find(label), find(aboveRight)];
          label = Math.min(one, other); // the older one stays the root: it was met first
          parents[Math.max(one, other)] = label;
        }
      }
      if (!label) {
        label = parents.length;
        parents.push(label);
      }
      labels[cell] = label;
    }
  }
  // A root is the smallest label of its component, so roots appear in raster order.
  const ranks = new Int32Array(parents.length);
  let count = 0;
  for (let label = 1; label < parents.length; label += 1) {
    const root = find(label);
    if (root === label) ranks[label] = count += 1;
    else ranks[label] = ranks[root];
  }
  for (let cell = 0; cell < labels.length; cell += 1) labels[cell] = ranks[labels[cell]];
  return { labels, count };
}

function emptyBlob(fingers) {
  return {
    area: 0, sumX: 0, sumY: 0, left: Infinity, top: Infinity, right: -1, bottom: -1,
    score: 0, unitX: 0, unitY: 0, classes: new Float64Array(fingers), cells: [],
  };
}

// Adds the class softmax of one cell to `sums`; `powers` is scratch of the same length.
function addSoftmax(logits, start, step, sums, powers) {
  let largest = -Infinity;
  for (let i = 0, at = start; i < sums.length; i += 1, at += step) {
    if (logits[at] > largest) largest = logits[at];
  }
  let total = 0;
  for (let i = 0, at = start; i < sums.length; i += 1, at += step) {
    powers[i] = Math.exp(logits[at] - largest);
    total += powers[i];
  }
  for (let i = 0; i < sums.length; i += 1) sums[i] += powers[i] / total;
}

function checkLogits(logits, channels, cells) {
  for (const name of Object.keys(channels)) {
    const values = logits[name];
    if (values.length !== cells * channels[name]) {
      throw new Error(`${name} holds ${values.length} values, not ${cells} x ${channels[name]}`);
    }
    for (let at = 0; at < values.length; at += 1) {
      if (!Number.isFinite(values[at])) throw new Error(`${name} holds NaN or infinite values`);
    }
  }
}

function addCell(blob, cell, x, y) {
  blob.area += 1;
  blob.cells.push(cell);
  blob.sumX += x;
  blob.sumY += y;
  blob.left = Math.min(blob.left, x);
  blob.right = Math.max(blob.right, x);
  blob.top = Math.min(blob.top, y);
  blob.bottom = Math.max(blob.bottom, y);
}

// The point furthest along the direction and against it, on the line through the centroid.
function findExtents(blob, x, y, width) {
  const [cx, cy] = blob.centroid;
  let low = Infinity;
  let high = -Infinity;
  for (const cell of blob.cells) {
    const along = ((cell % width) - cx) * x + (Math.floor(cell / width) - cy) * y;
    low = Math.min(low, along);
    high = Math.max(high, along);
  }
  const halfCell = (Math.abs(x) + Math.abs(y)) / 2; // a unit square's reach along the direction
  low -= halfCell;
  high += halfCell;
  return { base: [cx + low * x, cy + low * y], tip: [cx + high * x, cy + high * y] };
}

// As nailcore/tryon/naming.py: every nail a finger of its own, the likeliest way; returns one index per nail.
const SECOND_HAND_NATS = 4;
const MIN_CHANCE = 1e-3;
const STEPS_PER_NAT = 1024; // whole scores: a tie is a tie in every language

export function nameFingers(chances, fingers = 10) {
  const indexOfLargest = (row) => row.reduce((best, value, i) => (value > row[best] ? i : best), 0);
  if (chances.length > fingers) return chances.map(indexOfLargest);
  const scores = chances.map((row) => row.map((c) => Math.floor(Math.log(c + MIN_CHANCE) * STEPS_PER_NAT + 0.5)));
  const hand = fingers / 2;
  let [best, names] = assign(scores, fingers);
  best -= SECOND_HAND_NATS * STEPS_PER_NAT;
  if (chances.length > hand) return names;
  const [right, rightNames] = assign(scores.map((row) => row.slice(hand)), hand);
  const [left, leftNames] = assign(scores.map((row) => row.slice(0, hand)), hand);
  if (right >= best) [best, names] = [right, rightNames.map((name) => hand + name)];
  return left >= best ? leftNames : names;
}

// The largest sum with one score of each row and none two of a column. values[used]: the best that the remaining
// rows can add when the columns `used` (bits) are taken; as many rows are named as bits are set.
function assign(scores, columns) {
  const sets = 1 << columns;
  const values = new Float64Array(sets);
  const choices = new Uint8Array(sets);
  for (let used = sets - 1; used >= 0; used -= 1) {
    let row = 0;
    for (let bits = used; bits; bits &= bits - 1) row += 1;
    if (row >= scores.length) continue;
    let best = -Infinity;
    for (let column = 0; column < columns; column += 1) {
      if (used & (1 << column)) continue;
      const sum = scores[row][column] + values[used | (1 << column)];
      if (sum > best) [best, choices[used]] = [sum, column];
    }
    values[used] = best;
  }
  const names = [];
  for (let row = 0, used = 0; row < scores.length; row += 1) {
    names.push(choices[used]);
    used |= 1 << choices[used];
  }
  return [values[0], names];
}

function finishBlob(blob, width, finger) {
  blob.centroid = [blob.sumX / blob.area, blob.sumY / blob.area];
  const length = Math.hypot(blob.unitX, blob.unitY);
  const coherence = length / blob.score;
  const nail = {
    area: blob.area,
    left: blob.left,
    top: blob.top,
    width: blob.right - blob.left + 1,
    height: blob.bottom - blob.top + 1,
    centroid: blob.centroid,
    finger,
    fingerScore: blob.chances[finger],
    fingerChances: blob.chances,
    score: blob.score / blob.area,
    coherence: null,
    angleDeg: null, // image axes: 0 points right, 90 down; null where the directions cancel out
    base: null,
    tip: null,
  };
  if (!(blob.score > 0) || coherence < MIN_COHERENCE) return nail;
  const [x, y] = [blob.unitX / length, blob.unitY / length];
  const angleDeg = (Math.atan2(y, x) * 180) / Math.PI;
  return {
    ...nail, coherence: Math.min(coherence, 1), angleDeg: angleDeg <= -180 ? 180 : angleDeg,
    ...findExtents(blob, x, y, width),
  };
}

// logits: {fgbg, finger, direction} Float32Arrays of one image. Points are x, y in logits cells.
export function findNails(logits, height, width, { minArea, layout = 'NHWC', fingers = 10 }) {
  const { fgbg, finger, direction } = logits;
  const cells = height * width;
  checkLogits(logits, { fgbg: 2, finger: fingers, direction: 2 }, cells);
  if (!(minArea >= 1)) throw new Error(`minArea ${minArea}: expected at least 1`);
  const two = strides(layout, cells, 2);
  const ten = strides(layout, cells, fingers);
  const mask = new Uint8Array(cells);
  for (let cell = 0; cell < cells; cell += 1) {
    const at = cell * two.perCell;
    mask[cell] = fgbg[at + two.perChannel] > fgbg[at] ? 1 : 0; // argmax; a tie is background
  }
  const { labels, count } = labelComponents(mask, height, width);
  const powers = new Float64Array(fingers);
  const blobs = Array.from({ length: count }, () => emptyBlob(fingers));
  for (let cell = 0; cell < cells; cell += 1) {
    if (!labels[cell]) continue;
    const blob = blobs[labels[cell] - 1];
    addCell(blob, cell, cell % width, Math.floor(cell / width));
    const at = cell * two.perCell;
    const score = 1 / (1 + Math.exp(fgbg[at] - fgbg[at + two.perChannel])); // softmax of the nail class
    blob.score += score;
    const [dx, dy] = [direction[at], direction[at + two.perChannel]];
    const length = Math.hypot(dx, dy);
    if (length > 0) { // the loss knows unit vectors alone: a prediction's length means nothing
      blob.unitX += (score * dx) / length;
      blob.unitY += (score * dy) / length;
    }
    addSoftmax(finger, cell * ten.perCell, ten.perChannel, blob.classes, powers);
  }
  const kept = blobs.filter((blob) => blob.area >= minArea);
  for (const blob of kept) blob.chances = Array.from(blob.classes, (sum) => sum / blob.area);
  const names = nameFingers(kept.map((blob) => blob.chances), fingers);
  return kept.map((blob, i) => finishBlob(blob, width, names[i]));
}

// fgbg logits -> Uint8Array mask (0, 1) at the photo's own size; `box` is what placePhoto() gave.
// The logits are stretched bilinearly and the argmax is taken last, so contours are smooth.
export function maskOnPhoto(fgbg, height, width, box, outputStride, layout = 'NHWC') {
  const { perCell, perChannel } = strides(layout, height * width, 2);
  const margin = new Float64Array(height * width);
  for (let cell = 0; cell < margin.length; cell += 1) {
    margin[cell] = fgbg[cell * perCell + perChannel] - fgbg[cell * perCell];
  }
  // Photo pixel -> cells to the left/top and the right/bottom one's weight; the border is repeated.
  const plan = (side, scaled, origin, limit) => Array.from({ length: side }, (_, pixel) => {
    const place = ((pixel + 0.5) * (scaled / side) + origin) / outputStride - 0.5;
    const first = Math.floor(place);
    const clamp = (cell) => Math.max(0, Math.min(limit - 1, cell));
    return [clamp(first), clamp(first + 1), place - first];
  });
  const columns = plan(box.width, box.scaledWidth, box.left, width);
  const rows = plan(box.height, box.scaledHeight, box.top, height);
  const mask = new Uint8Array(box.height * box.width);
  const row = new Float64Array(width);
  for (let y = 0; y < box.height; y += 1) {
    const [upper, lower, down] = rows[y];
    for (let x = 0; x < width; x += 1) {
      row[x] = margin[upper * width + x] * (1 - down) + margin[lower * width + x] * down;
    }
    for (let x = 0; x < box.width; x += 1) {
      const [left, right, across] = columns[x];
      mask[y * box.width + x] = row[left] * (1 - across) + row[right] * across > 0 ? 1 : 0;
    }
  }
  return mask;
}
