// The page nailtool drives: start a backend, load one graph model over HTTP, run it, time it.
import { env, getBackend, memory, ready, setBackend, tensor4d, tidy } from '@tensorflow/tfjs-core';
import { loadGraphModel } from '@tensorflow/tfjs-converter';
import { getThreadsCount, setThreadsCount, setWasmPaths } from '@tensorflow/tfjs-backend-wasm';

let model = null;
let outputNames = [];

// One thread takes the plain SIMD build: the one a page without cross-origin isolation gets.
async function startBackend(threads) {
  setWasmPaths(new URL('./', import.meta.url).href);
  env().set('WASM_HAS_MULTITHREAD_SUPPORT', threads > 1 && crossOriginIsolated);
  if (threads > 1) setThreadsCount(threads);
  if (!(await setBackend('wasm'))) throw new Error('setBackend("wasm") returned false');
  await ready();
  if (getBackend() !== 'wasm') throw new Error(`asked for wasm, got ${getBackend()}`);
  const simd = await env().getAsync('WASM_HAS_SIMD_SUPPORT');
  const threaded = env().getBool('WASM_HAS_MULTITHREAD_SUPPORT');
  return {
    backend: getBackend(),
    simd,
    build: `${threaded && simd ? 'threaded-' : ''}${simd ? 'simd' : 'scalar'}`,
    threads: threaded ? getThreadsCount() : 1,
    crossOriginIsolated,
    userAgent: navigator.userAgent,
  };
}

async function loadModel(url, names) {
  model?.dispose();
  model = await loadGraphModel(url);
  const known = Object.keys(model.artifacts.signature?.outputs ?? {});
  const missing = names.filter((name) => !known.includes(name));
  if (missing.length) throw new Error(`no output ${missing.join(', ')}; the model has ${known.join(', ')}`);
  outputNames = names;
}

// pixels: Float32Array of (height, width, 3) RGB 0..255
async function inferOnce(pixels, height, width) {
  const results = tidy(() => model.execute(tensor4d(pixels, [1, height, width, 3]), outputNames));
  const tensors = Array.isArray(results) ? results : [results];
  const values = await Promise.all(tensors.map((tensor) => tensor.data()));
  const shapes = tensors.map((tensor) => tensor.shape);
  tensors.forEach((tensor) => tensor.dispose());
  return { values, shapes };
}

const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

function toBase64(floats) {
  const bytes = new Uint8Array(floats.buffer, floats.byteOffset, floats.byteLength);
  let text = '';
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

async function runImage(base64, height, width) {
  const { values, shapes } = await inferOnce(Float32Array.from(fromBase64(base64)), height, width);
  return values.map((value, place) => ({ shape: shapes[place], data: toBase64(value) }));
}

// `count` inferences in a row; each sample is execute + the data of every output on the CPU side.
async function timeRuns(base64, height, width, count) {
  const pixels = Float32Array.from(fromBase64(base64));
  const wallMs = [];
  for (let run = 0; run < count; run += 1) {
    const start = performance.now();
    await inferOnce(pixels, height, width);
    wallMs.push(performance.now() - start);
  }
  return { wallMs, tensors: memory().numTensors };
}

async function timeLoad(url, names, threads) {
  const start = performance.now();
  const backend = await startBackend(threads);
  await loadModel(url, names);
  return { backend, loadMs: performance.now() - start };
}

window.nailtool = { startBackend, loadModel, runImage, timeRuns, timeLoad };
