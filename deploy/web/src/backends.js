// Starts one TF.js backend and says what was really obtained: build, renderer, precision, isolation.
import { add, backend, env, getBackend, ready, setBackend, tensor, tidy } from '@tensorflow/tfjs-core';
import { getThreadsCount, setThreadsCount, setWasmPaths } from '@tensorflow/tfjs-backend-wasm';
import { BrowserTrouble } from './trouble.js';

let isLost = () => false;

// 1 + 2^-12 is a float32; a 16-bit float rounds it to 1. Small tensors never leave the CPU: send 1,024.
const PROBE = 1 + 2 ** -12;

async function keepsFloat32() {
  const sum = tidy(() => add(tensor(new Float32Array(1024).fill(PROBE), [1, 32, 32, 1]), 0));
  const values = await sum.data();
  sum.dispose();
  return values.every((value) => value === PROBE);
}

// One thread takes the plain SIMD build: the one a page without cross-origin isolation gets.
async function startWasm({ threads = 1 }) {
  setWasmPaths(new URL('./', import.meta.url).href);
  env().set('WASM_HAS_MULTITHREAD_SUPPORT', threads > 1 && crossOriginIsolated);
  if (threads > 1) setThreadsCount(threads);
  await select('wasm');
  const simd = await env().getAsync('WASM_HAS_SIMD_SUPPORT');
  const threaded = env().getBool('WASM_HAS_MULTITHREAD_SUPPORT');
  return {
    simd,
    build: `${threaded && simd ? 'threaded-' : ''}${simd ? 'simd' : 'scalar'}`,
    threads: threaded ? getThreadsCount() : 1,
  };
}

function findWebglObstacle() {
  const canvas = document.createElement('canvas');
  let reason = '';
  canvas.addEventListener('webglcontextcreationerror', (event) => (reason ||= event.statusMessage));
  const gl = canvas.getContext('webgl2') ?? canvas.getContext('webgl');
  gl?.getExtension('WEBGL_lose_context')?.loseContext(); // one context less of the few a page may have
  return gl ? '' : reason || 'it creates no WebGL context';
}

// forceFloat16 imitates the phones whose GPUs have 16-bit textures only.
async function startWebgl({ forceFloat16 = false }) {
  const unavailable = findWebglObstacle();
  if (unavailable) return { unavailable };
  await import('./webgl.js');
  if (forceFloat16) env().set('WEBGL_FORCE_F16_TEXTURES', true);
  await select('webgl');
  const { gl } = backend().getGPGPUContext();
  isLost = () => gl.isContextLost();
  const names = gl.getExtension('WEBGL_debug_renderer_info');
  return {
    renderer: gl.getParameter(names ? names.UNMASKED_RENDERER_WEBGL : gl.RENDERER),
    vendor: gl.getParameter(names ? names.UNMASKED_VENDOR_WEBGL : gl.VENDOR),
    webglVersion: env().getNumber('WEBGL_VERSION'),
    float32Textures: env().getBool('WEBGL_RENDER_FLOAT32_ENABLED'),
    forcedFloat16: env().getBool('WEBGL_FORCE_F16_TEXTURES'),
    keepsFloat32: await keepsFloat32(),
  };
}

async function startWebgpu() {
  if (!navigator.gpu) return { unavailable: 'it offers no WebGPU (navigator.gpu)' };
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) return { unavailable: 'WebGPU finds no adapter' };
  await import('./webgpu.js');
  await select('webgpu');
  backend().device.lost.then(() => (isLost = () => true));
  const { vendor, architecture, device, description } = adapter.info;
  return {
    renderer: [vendor, architecture, device, description].filter(Boolean).join(' '),
    fallbackAdapter: Boolean(adapter.info.isFallbackAdapter ?? adapter.isFallbackAdapter),
    keepsFloat32: await keepsFloat32(),
  };
}

async function select(name) {
  // A backend that does not initialise is no exception: setBackend returns false.
  if (!(await setBackend(name))) throw new BrowserTrouble(`setBackend("${name}") returned false`);
  await ready();
  if (getBackend() !== name) throw new BrowserTrouble(`asked for ${name}, got ${getBackend()}`);
}

// -> what was obtained, or { unavailable: reason } where this browser has no such thing.
export async function startBackend(name, options = {}) {
  const start = { wasm: startWasm, webgl: startWebgl, webgpu: startWebgpu }[name];
  if (!start) throw new Error(`no backend ${name}`);
  const obtained = await start(options);
  if (obtained.unavailable) return obtained;
  return { backend: getBackend(), ...obtained, crossOriginIsolated, userAgent: navigator.userAgent };
}

// A lost GPU context answers with zeros instead of errors.
export function assertAlive() {
  if (isLost()) throw new BrowserTrouble('it lost its GPU context');
}
