// One graph model: loaded over HTTP, executed by output name, traced by node name, timed.
import { memory, tensor4d, tidy } from '@tensorflow/tfjs-core';
import { loadGraphModel } from '@tensorflow/tfjs-converter';
import { assertAlive, startBackend } from './backends.js';
import { fromBase64, toBase64 } from './base64.js';
import { BrowserTrouble, blameBrowser } from './trouble.js';

let model = null;
let outputNames = [];

export async function loadModel(url, names) {
  model?.dispose();
  model = await loadGraphModel(url);
  const known = Object.keys(model.artifacts.signature?.outputs ?? {});
  const missing = names.filter((name) => !known.includes(name));
  if (missing.length) throw new Error(`no output ${missing.join(', ')}; the model has ${known.join(', ')}`);
  outputNames = names;
}

// pixels: Float32Array of (height, width, 3) RGB 0..255; names: of outputs or of any node
export async function inferOnce(pixels, height, width, names = outputNames) {
  if (!model) throw new BrowserTrouble('the page holds no model: it was loaded again by itself');
  try {
    const results = tidy(() => model.execute(tensor4d(pixels, [1, height, width, 3]), names));
    const tensors = Array.isArray(results) ? results : [results];
    const values = await Promise.all(tensors.map((tensor) => tensor.data()));
    const shapes = tensors.map((tensor) => tensor.shape);
    tensors.forEach((tensor) => tensor.dispose());
    assertAlive();
    return { values, shapes };
  } catch (error) {
    assertAlive();
    throw blameBrowser(error);
  }
}

// -> one { shape, data } per name, data as base64 of float32
export async function runImage(base64, height, width, names = outputNames) {
  const { values, shapes } = await inferOnce(Float32Array.from(fromBase64(base64)), height, width, names);
  return values.map((value, place) => ({ shape: shapes[place], data: toBase64(Float32Array.from(value)) }));
}

// `count` inferences in a row; each sample is execute + the data of every output on the CPU side.
export async function timeRuns(base64, height, width, count) {
  const pixels = Float32Array.from(fromBase64(base64));
  const wallMs = [];
  for (let run = 0; run < count; run += 1) {
    const start = performance.now();
    await inferOnce(pixels, height, width);
    wallMs.push(performance.now() - start);
  }
  return { wallMs, tensors: memory().numTensors };
}

export async function timeLoad(url, names, threads) {
  const start = performance.now();
  const backend = await startBackend('wasm', { threads });
  await loadModel(url, names);
  return { backend, loadMs: performance.now() - start };
}
