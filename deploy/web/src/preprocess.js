// A photograph or video frame -> the network's input, as nailcore/preprocess.py makes it; docs/preprocessing.md.
export const PAD_VALUE = 128; // the nearest uint8 to the networks' mean: padding is "nothing" to them

// Pixels as they are in the file: turned upright, no colour profile applied, no alpha multiplied in.
const AS_STORED = {
  imageOrientation: 'from-image', colorSpaceConversion: 'none', premultiplyAlpha: 'none',
};

function roundHalfEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

// How a (height, width) photo lies inside the input: scaled, then padded evenly.
export function placePhoto(height, width, inputHeight, inputWidth) {
  const scale = Math.min(inputHeight / height, inputWidth / width);
  const fit = (side, limit) => Math.max(1, Math.min(limit, roundHalfEven(side * scale)));
  const scaledHeight = fit(height, inputHeight);
  const scaledWidth = fit(width, inputWidth);
  return {
    height, width, inputHeight, inputWidth, scale, scaledHeight, scaledWidth,
    top: Math.floor((inputHeight - scaledHeight) / 2),
    left: Math.floor((inputWidth - scaledWidth) / 2),
  };
}

// For each target pixel of one axis: the source pixels it covers and how much of each (their mean).
function coverArea(from, to) {
  const step = from / to;
  const taps = [];
  for (let target = 0; target < to; target += 1) {
    const start = target * step;
    const end = Math.min(start + step, from);
    const first = Math.min(Math.floor(start + 1e-3), from - 1);
    const last = Math.max(first, Math.min(Math.ceil(end - 1e-3) - 1, from - 1));
    const weights = [];
    let sum = 0;
    for (let source = first; source <= last; source += 1) {
      const weight = Math.min(source + 1, end) - Math.max(source, start);
      weights.push(weight);
      sum += weight;
    }
    taps.push({ first, weights: weights.map((weight) => weight / sum) });
  }
  return taps;
}

// Bilinear between pixel centres (half-pixel convention), the border repeated.
function blendNeighbours(from, to) {
  const taps = [];
  for (let target = 0; target < to; target += 1) {
    const place = ((target + 0.5) * from) / to - 0.5;
    const first = Math.floor(place);
    if (first < 0) taps.push({ first: 0, weights: [1] });
    else if (first >= from - 1) taps.push({ first: from - 1, weights: [1] });
    else taps.push({ first, weights: [1 - (place - first), place - first] });
  }
  return taps;
}

// One source row, resampled to `taps.length` RGB pixels in `row`.
function resampleRow(data, start, channels, taps, row) {
  for (let x = 0; x < taps.length; x += 1) {
    const { first, weights } = taps[x];
    let red = 0;
    let green = 0;
    let blue = 0;
    for (let tap = 0, at = start + first * channels; tap < weights.length; tap += 1, at += channels) {
      const weight = weights[tap];
      red += weight * data[at];
      green += weight * data[at + 1];
      blue += weight * data[at + 2];
    }
    row[3 * x] = red;
    row[3 * x + 1] = green;
    row[3 * x + 2] = blue;
  }
}

// data: RGB or RGBA bytes (alpha is dropped) -> Uint8Array RGB (inputHeight, inputWidth, 3).
export function letterbox(data, height, width, inputHeight, inputWidth) {
  const channels = data.length / (height * width);
  if (channels !== 3 && channels !== 4) {
    throw new Error(`${data.length} bytes are no RGB or RGBA image of ${width}x${height} px`);
  }
  const box = placePhoto(height, width, inputHeight, inputWidth);
  const plan = box.scale < 1 ? coverArea : blendNeighbours;
  const columns = plan(width, box.scaledWidth);
  const rows = plan(height, box.scaledHeight);
  const result = new Uint8Array(inputHeight * inputWidth * 3).fill(PAD_VALUE);
  const length = box.scaledWidth * 3;
  const total = new Float64Array(length);
  const kept = new Map(); // source row -> resampled row; neighbours share at most two
  for (let y = 0; y < rows.length; y += 1) {
    const { first, weights } = rows[y];
    for (const source of kept.keys()) if (source < first) kept.delete(source);
    total.fill(0.5); // rounding, before the fraction is cut off below
    for (let tap = 0; tap < weights.length; tap += 1) {
      const source = first + tap;
      let row = kept.get(source);
      if (!row) {
        row = new Float64Array(length);
        resampleRow(data, source * width * channels, channels, columns, row);
        kept.set(source, row);
      }
      const weight = weights[tap];
      for (let at = 0; at < length; at += 1) total[at] += weight * row[at];
    }
    const start = ((box.top + y) * inputWidth + box.left) * 3;
    for (let at = 0; at < length; at += 1) result[start + at] = Math.min(255, total[at]);
  }
  return result;
}

// What the model takes: float32 RGB 0..255. Mean and deviation are inside the graph: do not divide.
export const toTensor = (rgb) => Float32Array.from(rgb);

// A page's own canvas first: not every engine gives an OffscreenCanvas every kind of context.
function makeContext(height, width, kind, options) {
  if (typeof document === 'undefined') return new OffscreenCanvas(width, height).getContext(kind, options);
  return Object.assign(document.createElement('canvas'), { height, width }).getContext(kind, options);
}

const make2d = (height, width) => makeContext(height, width, '2d', { willReadFrequently: true, colorSpace: 'srgb' });

// RGBA bytes of a file with alpha: a 2D canvas stores colours multiplied by alpha and loses them. An
// <img> and not a bitmap is uploaded: WebKit multiplies a bitmap's colours whatever it is told.
async function readThroughWebGL(bytes, height, width) {
  if (typeof Image !== 'function') return null;
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([bytes]));
  try {
    await image.decode();
    return uploadAndRead(image, height, width);
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

function uploadAndRead(image, height, width) {
  const gl = makeContext(1, 1, 'webgl', { premultipliedAlpha: false });
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  if (image.naturalWidth !== width || image.naturalHeight !== height) return null;
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D,
    gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE) return null;
  const data = new Uint8ClampedArray(height * width * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.getExtension('WEBGL_lose_context')?.loseContext();
  return failed ? null : data;
}

function hasAlpha(data) {
  for (let at = 3; at < data.length; at += 4) if (data[at] !== 255) return true;
  return false;
}

// Anything drawable (ImageBitmap, video, canvas) at its own size -> RGBA bytes, nothing scaled.
export function readPixels(source, height, width) {
  const context = make2d(height, width);
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

const openBitmap = (bytes, options) => createImageBitmap(new Blob([bytes]), options);

// File bytes -> RGBA bytes, upright, at the photo's own size; `reader` says how they were had.
export async function decodePhoto(bytes) {
  const bitmap = await openBitmap(bytes, AS_STORED);
  const { height, width } = bitmap;
  try {
    const drawn = readPixels(bitmap, height, width);
    if (!hasAlpha(drawn)) return { data: drawn, height, width, reader: '2d' };
    const exact = await readThroughWebGL(bytes, height, width);
    return { data: exact ?? drawn, height, width, reader: exact ? 'webgl' : '2d, alpha multiplied in' };
  } finally {
    bitmap.close();
  }
}

// File bytes -> Float32Array RGB 0..255 of the network's size: the recipe, start to end.
export async function preprocess(bytes, inputHeight, inputWidth) {
  const { data, height, width } = await decodePhoto(bytes);
  return toTensor(letterbox(data, height, width, inputHeight, inputWidth));
}

// What most pages do instead: the browser's own scaling inside drawImage ('low' is its default), and
// no option set. Here to be measured against the recipe, not to be used.
export async function preprocessByCanvas(bytes, inputHeight, inputWidth, quality = 'low') {
  const bitmap = await openBitmap(bytes);
  const box = placePhoto(bitmap.height, bitmap.width, inputHeight, inputWidth);
  const context = make2d(inputHeight, inputWidth);
  context.fillStyle = `rgb(${PAD_VALUE} ${PAD_VALUE} ${PAD_VALUE})`;
  context.fillRect(0, 0, inputWidth, inputHeight);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = quality;
  context.drawImage(bitmap, box.left, box.top, box.scaledWidth, box.scaledHeight);
  bitmap.close();
  const { data } = context.getImageData(0, 0, inputWidth, inputHeight);
  const result = new Float32Array(inputHeight * inputWidth * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    result[to] = data[from];
    result[to + 1] = data[from + 1];
    result[to + 2] = data[from + 2];
  }
  return result;
}
