// Bundles src/ into bundle/ with the wasm binaries and every licence beside it: `npm install && npm run build`.
import { build } from 'esbuild';
import { copyFile, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';

const wasmFolder = 'node_modules/@tensorflow/tfjs-backend-wasm/dist';

// What may end up in bundle/, and under which text. A package not listed here stops the build.
const licences = {
  'apache-2.0': ['@tensorflow/tfjs-backend-cpu', '@tensorflow/tfjs-backend-wasm', '@tensorflow/tfjs-backend-webgl',
    '@tensorflow/tfjs-backend-webgpu', '@tensorflow/tfjs-converter', '@tensorflow/tfjs-core', 'long'],
  seedrandom: ['seedrandom'],
  xnnpack: [], // linked into the wasm binaries, as is the runtime of the next one
  emscripten: [],
};
const emptied = ['node-fetch']; // named by tfjs for Node.js, replaced by nothing in a browser

await rm('bundle', { recursive: true, force: true });
await mkdir('bundle');
const { metafile } = await build({
  entryPoints: ['src/runner.js', 'src/webgl.js', 'src/webgpu.js'], // the GPU backends load on demand
  outdir: 'bundle',
  chunkNames: '[name]-[hash]',
  splitting: true,
  bundle: true,
  minify: true,
  format: 'esm',
  target: 'es2022',
  legalComments: 'none', // collected in LICENSES.txt instead of repeated per source file
  banner: { js: '/*! Bundles TensorFlow.js and others; licences in LICENSES.txt. */' },
  metafile: true,
});

const bundled = new Set();
for (const source of Object.keys(metafile.inputs)) {
  const found = source.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/);
  if (found && !emptied.includes(found[1])) bundled.add(found[1]);
}
const known = Object.values(licences).flat();
const unknown = [...bundled].filter((name) => !known.includes(name));
if (unknown.length) throw new Error(`no licence text for ${unknown.join(', ')}: add it to licenses/`);

const versions = {};
for (const name of [...bundled].sort()) {
  versions[name] = JSON.parse(await readFile(`node_modules/${name}/package.json`, 'utf-8')).version;
}
let text = 'The .js and .wasm files hold work of others, under these licences.\n';
for (const [licence, packages] of Object.entries(licences)) {
  const names = packages.map((name) => `${name} ${versions[name] ?? ''}`.trim()).join(', ');
  text += `\n${'='.repeat(80)}\n${names || `${licence} (inside the .wasm files)`}\n${'='.repeat(80)}\n\n`;
  text += await readFile(`licenses/${licence}.txt`, 'utf-8');
}
await writeFile('bundle/LICENSES.txt', text);
await writeFile('bundle/versions.json', `${JSON.stringify(versions, null, 1)}\n`);

for (const name of await readdir(wasmFolder)) {
  if (name.endsWith('.wasm')) await writeFile(`bundle/${name}`, await readFile(`${wasmFolder}/${name}`));
}
await copyFile('src/index.html', 'bundle/index.html');
